#!/usr/bin/env bash
# Trains on a real cluster of containers and takes it down again: the cluster of docker-compose.yml,
# its verdict, the loss of two workers in mid-training, and what an attacker would look for. With
# MPI=openmpi also ranks that are lost and done without.
#
# Uses the container engine that runs here. Where none does and this is root, installs Debian's
# docker.io and starts it in namespaces of its own, so that no bridge, rule of a firewall, mount or
# process outlives this script. No registry is needed: where BASE cannot be pulled, a base image is
# made of Debian packages, or of this machine's own files where there is no package mirror either.
# A saved base is kept in $CLUSTER_CACHE if that folder exists.
#
# Exit status: 0 all checks passed, or skipped with a loud line because no engine can start here.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
repository=$PWD

python=${PYTHON:-python3}
cache=${CLUSTER_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/distgrad-cluster}
settings=(--steps 80 --save-every 5 --log-every 10 --eval-every -1 --expect "val_loss<3.2")
limit_s=240 # of one training; a cluster that hangs must not hold up CI

work=$(mktemp -d)
context=$work/context
log=$work/log # of the command that runs now
engine_pid=''
own_base=distgrad-base:ci
began=$SECONDS
failures=0
export COMPOSE_PROJECT_NAME=distgrad-ci-$$ COMPOSE_DOCKER_CLI_BUILD=0
export WORKERS=3 SLOTS=1 MPI=${MPI:-mpich}

say() { printf '[%4d s] %s\n' $((SECONDS - began)) "$*"; }
skip() {
    local line
    line=$(printf '!%.0s' {1..80})
    printf '\n%s\n!!! ci-cluster: SKIPPED, nothing was tested: %s\n%s\n\n' "$line" "$*" "$line"
    exit 0
}
fail() { say "FAILED: $*"; failures=$((failures + 1)); }
die() { say "FAILED: $*"; [ ! -s "$log" ] || tail -n 40 "$log"; exit 1; }
expect() { # expect WHAT FOUND WANTED
    if [ "$2" = "$3" ]; then say "ok: $1"; else fail "$1: found '$2', wanted '$3'"; fi
}
logged() { "$@" >"$log" 2>&1; }

# ------------------------------------------------------------------ the end, whatever happened

tear_down() {
    local status=$?
    trap - EXIT INT TERM
    if [ -d "$context" ]; then
        compose down -v -t 1 --remove-orphans >/dev/null 2>&1
        [ "${BASE:-}" != "$own_base" ] || docker image rm "$own_base" >/dev/null 2>&1
    fi
    if [ -n "$engine_pid" ]; then
        kill -9 "$engine_pid" 2>/dev/null # the namespaces' first process: all others go with it
        wait "$engine_pid" 2>/dev/null
        find /sys/fs/cgroup -depth -type d -path "*/$COMPOSE_PROJECT_NAME*" -exec rmdir {} + 2>/dev/null
    fi
    for _ in 1 2 3 4 5; do rm -rf "$work" 2>/dev/null && break; sleep 1; done
    say "taken down; exit status $status"
    exit "$status"
}
trap tear_down EXIT
trap 'exit 130' INT TERM

# ------------------------------------------------------------------ engine

compose() {
    if docker compose version >/dev/null 2>&1; then
        (cd "$context" && docker compose "$@")
    else
        (cd "$context" && docker-compose "$@")
    fi
}

have() { command -v "$1" >/dev/null 2>&1; }

install_engine() {
    have dockerd && { have docker-compose || docker compose version >/dev/null 2>&1; } && return
    have apt-get || skip "dockerd or compose is missing and there is no apt-get to install them"
    say "installs docker.io, docker-compose, iptables and debootstrap"
    export DEBIAN_FRONTEND=noninteractive
    local packages=(docker.io docker-compose iptables debootstrap)
    logged apt-get install -y --no-install-recommends "${packages[@]}" \
        || { logged apt-get update && logged apt-get install -y --no-install-recommends "${packages[@]}"; } \
        || skip "the engine cannot be installed: $(tail -n 1 "$log")"
}

start_engine() {
    if docker info >/dev/null 2>&1 && { docker compose version || docker-compose version; } >/dev/null 2>&1; then
        say "uses the engine that runs here"
        return
    fi
    [ "$(id -u)" -eq 0 ] || skip "no container engine runs, and only root can start one"
    install_engine
    export DOCKER_HOST=unix://$work/docker.sock
    # shellcheck disable=SC2016  # the inner shell expands them
    unshare --net --pid --mount --fork --kill-child --mount-proc sh -c '
        ip link set lo up
        exec dockerd --host "$1" --data-root "$2/data" --exec-root "$2/exec" \
            --pidfile "$2/dockerd.pid" --cgroup-parent "/$3"
        ' sh "$DOCKER_HOST" "$work" "$COMPOSE_PROJECT_NAME" >"$work/dockerd.log" 2>&1 </dev/null &
    engine_pid=$!
    for _ in $(seq 150); do
        docker info >/dev/null 2>&1 && { say "engine started in its own namespaces"; return; }
        kill -0 "$engine_pid" 2>/dev/null || break
        sleep 0.2
    done
    skip "dockerd does not start here: $(grep -v level=info "$work/dockerd.log" | tail -n 1)"
}

# ------------------------------------------------------------------ base image

find_base() {
    local wanted=${BASE:-python:3.12-slim}
    if [ -z "$engine_pid" ]; then # an engine of our own reaches no registry
        if docker image inspect "$wanted" >/dev/null 2>&1 || logged timeout 60 docker pull "$wanted"; then
            export BASE=$wanted
            return
        fi
        say "$wanted cannot be pulled"
    fi
    export BASE=$own_base
    if [ -s "$cache/base.tar.gz" ] && logged docker load -i "$cache/base.tar.gz"; then
        say "base image loaded from $cache"
        return
    fi
    if base_of_packages; then
        say "base image made of Debian packages"
        [ -d "$cache" ] && docker save "$BASE" | gzip -1 >"$cache/base.tmp" && mv "$cache/base.tmp" "$cache/base.tar.gz"
    else
        base_of_this_machine || die "no base image can be made"
        say "base image made of this machine's own files"
    fi
    return 0
}

base_of_packages() {
    have debootstrap && [ "$(id -u)" -eq 0 ] || return 1
    local root=$work/root suite mirror
    suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    mirror=$(sed -nE 's/^(deb|URIs:)[ \t]+(\[[^]]*\] )?(https?:\/\/[^ ]+\/(debian|ubuntu)\/?)([ \t].*)?$/\3/p' \
        /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | head -n 1)
    [ -n "$suite" ] && [ -n "$mirror" ] || return 1
    logged timeout 180 debootstrap --variant=minbase \
        --include=ca-certificates,python3,python3-venv,openssh-server,openssh-client \
        "$suite" "$root" "$mirror" \
        || { say "debootstrap: $(tail -n 1 "$log")"; rm -rf "$root"; return 1; }
    rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/etc/ssh/ssh_host_* \
        "$root"/usr/share/{doc,man,locale}/*
    tar -C "$root" -c . | docker import - "$BASE" >/dev/null
    rm -rf "$root"
}

# The programs that the Dockerfile and the entry point call, Python, the libraries of both, and those
# that manylinux wheels may count on.
base_of_this_machine() {
    local root=$work/root home stdlib programs libraries program
    have sshd || PATH=$PATH:/usr/sbin:/sbin
    read -r home stdlib < <("$python" -c 'import sys, sysconfig; print(sys.base_prefix, sysconfig.get_path("stdlib"))')
    programs=(/bin/sh "$home"/bin/python3*[0-9])
    for program in cat chmod cp cut date env find getent grep groupadd head hostname id install ls \
        mkdir mv rm sed sleep sort ssh ssh-keygen sshd tail useradd; do
        programs+=("$(command -v "$program")") || { say "$program is not installed here"; return 1; }
    done
    programs+=($(ls /usr/lib/openssh/sshd-* 2>/dev/null)) # sshd is in parts since OpenSSH 9.8
    libraries=$(ldd "${programs[@]}" "$stdlib"/lib-dynload/*.so 2>/dev/null | grep -oE '/[^ )]+' | grep '\.so' \
        ; ldconfig -p | grep -oE '/[^ ]*/lib(nss_dns|nss_files|c|m|dl|rt|util|pthread|resolv|mvec|stdc\+\+|gcc_s|gomp|atomic|z)\.so[^ ]*$')
    mkdir -p "$root"/{tmp,etc,root} && chmod 1777 "$root/tmp"
    # shellcheck disable=SC2086  # one word each
    cp -L --parents "${programs[@]}" $(sort -u <<<"$libraries") /etc/nsswitch.conf /etc/login.defs "$root" 2>"$log"
    mkdir -p "$root$stdlib"
    tar -C "$stdlib" --exclude=./site-packages --exclude=./test --exclude=__pycache__ -c . | tar -C "$root$stdlib" -x
    ln -sf "$(basename "$(readlink -f "$home/bin/python3")")" "$root$home/bin/python3"
    echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
    echo 'root:x:0:' >"$root/etc/group"
    tar -C "$root" -c . | docker import \
        -c "ENV PATH=$home/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" - "$BASE" >"$log" || return 1
    rm -rf "$root"
}

# ------------------------------------------------------------------ image

# A copy of what the image is made of, with the wheels that fit its Python: the build needs no index.
make_context() {
    local version machine platforms=() tag
    mkdir -p "$context/launch/wheels"
    cp -r docker-compose.yml .dockerignore pyproject.toml README.md LICENSE distgrad "$context" || return 1
    cp launch/{Dockerfile,entrypoint.sh,ssh_config,sshd_config} "$context/launch" || return 1
    version=$(docker run --rm --entrypoint python3 "$BASE" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || return 1
    machine=$(uname -m)
    for tag in 2014 _2_17 _2_27 _2_28 _2_31 _2_34; do platforms+=(--platform "manylinux${tag}_$machine"); done
    logged "$python" -m pip wheel --no-deps -w "$context/launch/wheels" "$repository" || return 1
    logged "$python" -m pip download --only-binary=:all: --python-version "$version" "${platforms[@]}" \
        -d "$context/launch/wheels" "$(ls "$context"/launch/wheels/distgrad-*.whl)[$MPI]" || return 1
    say "wheels for Python $version"
}

# ------------------------------------------------------------------ checks

export -f compose
export context

composed() { # composed FILE ARGUMENTS...: compose with a deadline, its output in FILE
    local file=$1
    shift
    timeout -k 10 "$limit_s" bash -c 'compose "$@"' compose "$@" >"$file" 2>&1 </dev/null
}
weights() { grep -ao 'weights sha256 [0-9a-f]*' "$1" | tail -n 1; }
show() { # what the job said, without compose's prefix and the sample of text
    sed -E 's/^launcher[-_]1 +\| //' "$1" | grep -aE '^(world|run directory|goes on|lost|step|eval|done|weights|expected|killed|distgrad)' \
        | cut -c 1-150 | sed 's/^/    | /'
}
worker() { compose ps -q worker | while read -r id; do docker inspect -f '{{.Name}} {{.Id}}' "$id"; done | sort | sed -n "$1s/.* //p"; }

alone() {
    composed "$work/alone" run --rm --no-deps -T launcher \
        python -m distgrad.launch -n 2 "${settings[@]}" --run-dir /runs/alone
    expect "two ranks in one container, undisturbed" $? 0
    show "$work/alone" | tail -n 2
}

verdict() {
    TRAIN="--run-dir /runs/up --resume never ${settings[*]}" \
        composed "$work/up" up --no-color --build --exit-code-from launcher
    expect "up --build --exit-code-from launcher" $? 0
    show "$work/up"
    expect "the same weights as undisturbed" "$(weights "$work/up")" "$(weights "$work/alone")"
    TRAIN="--run-dir /runs/missed --steps 5 --expect val_loss<1" \
        composed "$work/missed" up --no-color --exit-code-from launcher
    expect "a missed expectation is the verdict of up" $? 3
}

wait_for_step() { # wait_for_step STEP FILE PID
    for _ in $(seq $((limit_s * 10))); do
        grep -aqE "^step $1/" "$2" 2>/dev/null && return
        kill -0 "$3" 2>/dev/null || return 1
        sleep 0.1
    done
    return 1
}

lose_workers() {
    logged compose up -d --no-build worker || { fail "workers do not start"; return; }
    local file=$work/lost pid first last
    composed "$file" run --rm -T launcher launch --run-dir /runs/lost --max-restarts 5 "${settings[@]}" &
    pid=$!
    first=$(worker 1) last=$(worker 3)
    wait_for_step 20 "$file" "$pid" && docker kill "$last" >/dev/null && say "killed the last worker"
    wait_for_step 50 "$file" "$pid" && docker kill "$first" >/dev/null && say "killed the first worker, rank 0 with it"
    wait "$pid"
    expect "a job that lost two of three workers" $? 0
    show "$file"
    expect "the same weights as undisturbed" "$(weights "$file")" "$(weights "$work/alone")"
    expect "the last world is of one rank" "$(grep -aoE '^world [0-9]+' "$file" | tail -n 1)" "world 1"
}

# Where ranks die and their hosts do not, those that are left go on without a new start.
shrink_in_place() {
    local file=$work/shrunk pid
    logged compose up -d --no-build worker || { fail "workers do not start"; return; }
    composed "$file" run --rm -T launcher launch --run-dir /runs/shrunk --max-restarts 1 --min-ranks 1 "${settings[@]}" &
    pid=$!
    wait_for_step 20 "$file" "$pid" && kill_rank 3 && say "killed the rank of the last worker"
    wait_for_step 50 "$file" "$pid" && kill_rank 1 && say "killed that of the first worker, rank 0"
    wait "$pid"
    expect "a job that lost two of three ranks" $? 0
    show "$file"
    expect "the same weights as undisturbed" "$(weights "$file")" "$(weights "$work/alone")"
    expect "no rank was started again" "$(grep -acE '^world|restart' "$file")" 1
    expect "one rank is left" "$(grep -aoE '^lost .* ranks? goe?s? on' "$file" | tail -n 1 | grep -o '1 of 2')" "1 of 2"
}

kill_rank() { # kill_rank WORKER: its only process that trains
    docker exec "$(worker "$1")" sh -c \
        'for p in /proc/[0-9]*; do case $(tr "\0" " " <"$p/cmdline" 2>/dev/null) in
            /opt/distgrad/bin/python*distgrad.launch*) kill -9 "${p#/proc/}"; found=1 ;; esac; done; [ -n "$found" ]'
}

inside() { compose exec -T worker sh -c "$1" 2>&1 </dev/null; }

secure() {
    local me='"$(hostname)"'
    expect "a worker's processes are not root's" "$(inside 'cat /proc/[0-9]*/status' | awk '/^Uid:/ { print $2 }' | sort -u)" 10001
    expect "ssh with the key" "$(inside "ssh $me echo yes")" yes
    expect "ssh with a password is refused" \
        "$(inside "ssh -o LogLevel=INFO -o BatchMode=no -o PubkeyAuthentication=no -o PreferredAuthentications=password,keyboard-interactive $me true" | grep -c 'Permission denied (publickey)')" 1
    expect "an unknown host key is refused" "$(inside "ssh -o HostKeyAlias=other $me true" | grep -c 'Host key verification failed')" 1
    expect "sshd listens on the cluster's address alone" \
        "$(inside 'cat /proc/net/tcp /proc/net/tcp6' | awk '$4 == "0A" && $2 ~ /:08AE$/ { print ($2 ~ /^0+:/) ? "all" : "one" }')" one
    expect "no program runs from /tmp, and none needs to" \
        "$(inside 'printf "#!/bin/sh\n" >/tmp/x; chmod 700 /tmp/x; /tmp/x; rm /tmp/x' | grep -c 'Permission denied')" 1
    expect "no port is published" "$(docker port "$(worker 1)")" ""
    expect "the image has no keys" "$(docker run --rm --user 0 --entrypoint find "distgrad:$MPI" / -xdev -type f \
        '(' -name 'ssh_host_*' -o -name 'id_*' -o -name authorized_keys -o -name known_hosts ')' \
        -not -path '*/site-packages/*' -not -path '*/bin/*')" ""
    expect "the cluster's network is internal" "$(docker network inspect -f '{{.Internal}}' "${COMPOSE_PROJECT_NAME}_cluster")" true
}

start_engine
find_base
make_context || die "the build context cannot be made"
composed "$log" build launcher || die "the image cannot be built"
say "image built from $BASE: $(docker image inspect -f '{{.Size}}' "distgrad:$MPI" | awk '{ printf "%.0f MB", $1 / 1e6 }')"
alone
verdict
logged compose up -d --no-build worker && sleep 2
secure
[ "$MPI" = mpich ] || shrink_in_place
lose_workers
if [ "$failures" -gt 0 ]; then
    say "$failures checks failed"
    exit 1
fi
say "all checks passed"
