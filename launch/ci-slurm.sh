#!/usr/bin/env bash
# Runs launch/slurm.sbatch under a real Slurm on this machine: slurmctld, two slurmd and munge on the
# loopback of namespaces of their own, so that no process, mount or address outlives this script.
# A job is preempted, a rank is killed, a node is lost, and the final weights must be those of an
# undisturbed run; a wrong --mpi must be refused.
#
# Installs Debian's packages where Slurm is missing and this is root.
# Exit status: 0 all checks passed, or skipped with a loud line because Slurm cannot run here.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
repository=$PWD script=$PWD/launch/ci-slurm.sh
python=$(command -v "${PYTHON:-python3}")
limit_s=120 # for each thing that is waited for
failures=0
first=''
address=10.213.0.1 # in a namespace of its own

say() { printf '[%4d s] %s\n' "$SECONDS" "$*"; }
skip() {
    local line
    line=$(printf '!%.0s' {1..80})
    printf '\n%s\n!!! ci-slurm: SKIPPED, nothing was tested: %s\n%s\n\n' "$line" "$*" "$line"
    exit 0
}
expect() { # expect WHAT FOUND WANTED
    if [ "$2" = "$3" ]; then say "ok: $1"; else
        say "FAILED: $1: found '$2', wanted '$3'"
        failures=$((failures + 1))
    fi
}
have() { command -v "$1" >/dev/null 2>&1; }
until_true() { # until_true COMMAND...: false after the limit
    local end=$((SECONDS + limit_s))
    until "$@"; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.1
    done
}

# ------------------------------------------------------------------ outside of the namespaces

install_slurm() {
    have slurmctld && have slurmd && have srun && have munged && return
    have apt-get || skip "Slurm is missing and there is no apt-get to install it"
    say "installs slurmctld, slurmd, slurm-client and munge"
    export DEBIAN_FRONTEND=noninteractive
    local packages=(slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge) log=$work/apt.log
    apt-get install -y --no-install-recommends "${packages[@]}" >"$log" 2>&1 \
        || { apt-get update && apt-get install -y --no-install-recommends "${packages[@]}"; } >"$log" 2>&1 \
        || skip "Slurm cannot be installed: $(tail -n 1 "$log")"
}

outside() {
    "$python" -c 'import distgrad, mpi4py' || { say "FAILED: $python has no distgrad with an MPI"; exit 1; }
    [ "$(id -u)" -eq 0 ] || skip "only root can start Slurm's daemons for this test"
    local namespaces=(unshare --net --pid --mount --uts --ipc --fork --kill-child --mount-proc)
    "${namespaces[@]}" true 2>/dev/null || skip "namespaces cannot be made here"
    work=$(mktemp -d)
    # with the first process of the namespaces all others end
    trap '[ -z "$first" ] || kill -9 "$first" 2>/dev/null; rm -rf "$work"' EXIT
    trap 'exit 130' INT TERM
    install_slurm
    "${namespaces[@]}" "$script" inside "$work" &
    first=$!
    wait "$first"
    exit $?
}

# ------------------------------------------------------------------ Slurm

configure() {
    cat >"$SLURM_CONF" <<C
ClusterName=distgrad
SlurmctldHost=slurm($address)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$work/munge/socket
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmctldPort=16817
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool/%n
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.%n.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.%n.log
TmpFS=$work/tmp/%n
SlurmdTimeout=5
KillWait=10
JobRequeue=1
SlurmdParameters=config_overrides
NodeName=n[1-2] NodeHostname=slurm NodeAddr=$address Port=[17001-17002] CPUs=2 RealMemory=1000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
C
}

start_slurm() {
    ip link set lo up
    ip address add "$address/32" dev lo # names are not resolved where 127.0.0.1 is the only address
    hostname slurm
    printf '127.0.0.1 localhost\n%s slurm n1 n2\n' "$address" >"$work/hosts"
    mount --bind "$work/hosts" /etc/hosts
    export SLURM_CONF=$work/slurm.conf
    mkdir -p "$work"/{state,munge,jobs} "$work"/{spool,tmp}/n{1,2}
    chmod 755 "$work" "$work/munge"
    dd if=/dev/urandom of="$work/munge/key" bs=1024 count=1 status=none
    chmod 400 "$work/munge/key"
    chown -R munge: "$work/munge"
    runuser -u munge -- "$(command -v munged)" --key-file="$work/munge/key" --socket="$work/munge/socket" \
        --pid-file="$work/munge/pid" --log-file="$work/munge/log" --seed-file="$work/munge/seed" || return 1
    configure
    slurmctld -c || return 1
    slurmd -N n1 && slurmd -N n2 || return 1
    until_true nodes_are "idle" || return 1
    say "$(slurmctld -V) with $(sinfo -h -o '%D nodes, %T')"
}
nodes_are() { [ "$(sinfo -h -N -o %T | sort -u)" = "$1" ]; }

submit() { # submit OPTIONS... -- ARGUMENTS: prints the number of the job
    RETRY_PAUSE=1 PYTHON=$python sbatch --parsable --output="$work/jobs/%j" "$@"
}
state() { scontrol show job "$1" | grep -o 'JobState=[A-Z_]*' | cut -d = -f 2; }
is_over() { [[ $(state "$1") =~ ^(COMPLETED|FAILED|CANCELLED|TIMEOUT|NODE_FAIL)$ ]]; }
reached() { grep -qs "^step $2/" "$work/jobs/$1" || is_over "$1"; }
is_pending() { [ "$(state "$1")" = PENDING ]; }
has_started() { [ "$(grep -c 'slurm.sbatch: job' "$work/jobs/$1")" -ge "$2" ]; }
start_again() { # a job that was queued again waits for two minutes if one lets it
    until_true is_pending "$1" && until_true nodes_are idle || say "job $1 is $(state "$1"), $(sinfo -h -N -o '%N %T' | tr '\n' ' ')"
    sleep 3 # or its old credential is still being revoked, and with it the new one
    scontrol update jobid="$1" StartTime=now
    until_true has_started "$1" 2 || say "job $1 does not start again: $(state "$1")"
}
weights() { grep -o 'weights sha256 [0-9a-f]*' "$1" | tail -n 1; }
show() { # what the job said, without the sample of text and the tracebacks of ranks that lost others
    grep -aE '^(slurm.sbatch|srun|slurmstepd|world|run directory|goes on|SIG|stopped|step|eval|done|weights|expected|distgrad)' "$1" \
        | cut -c 1-150 | sed 's/^/    | /'
}

finish() { # finish JOB WHAT: it ends well, with the weights of the undisturbed run
    until_true is_over "$1"
    expect "$2: ends" "$(state "$1")" COMPLETED
    expect "$2: the weights of an undisturbed run" "$(weights "$work/jobs/$1")" "$(weights "$work/alone")"
    show "$work/jobs/$1"
}

# ------------------------------------------------------------------ checks

settings=(--steps 80 --save-every 5 --log-every 10 --eval-every -1 --expect "val_loss<3.2")

alone() {
    "$python" -m distgrad.launch -n 2 "${settings[@]}" --run-dir "$work/alone.run" >"$work/alone" 2>&1
    expect "two ranks without Slurm, undisturbed" $? 0
}

preempted() {
    local job
    job=$(submit "$repository/launch/slurm.sbatch" "${settings[@]}")
    until_true reached "$job" 20
    scancel --batch --signal=USR1 "$job" # what --signal=B:USR1@120 does before the time limit
    start_again "$job"
    finish "$job" "preempted by USR1"
    expect "preempted by USR1: the ranks saved" "$(grep -c '^stopped: saved step' "$work/jobs/$job")" 1
}

# The processes of node $1: each rank has its name in its environment, and its slurmstepd as parent.
ranks_on() { grep -lsz "^SLURMD_NODENAME=$1$" /proc/[0-9]*/environ | cut -d / -f 3; }
python_on() {
    local pid
    for pid in $(ranks_on "$1"); do
        grep -qz '^distgrad.launch$' "/proc/$pid/cmdline" 2>/dev/null && [[ $(readlink "/proc/$pid/exe") == *python* ]] && echo "$pid"
    done
}
parents() { local pid; for pid; do awk '/^PPid:/ { print $2 }' "/proc/$pid/status"; done | sort -u; }

rank_lost() {
    local job
    job=$(submit "$repository/launch/slurm.sbatch" "${settings[@]}")
    until_true reached "$job" 20
    kill -9 "$(python_on n2 | head -n 1)"
    finish "$job" "a rank killed"
    expect "a rank killed: started again in the same allocation" "$(grep -c 'starts the ranks again (1 of 3)' "$work/jobs/$job")" 1
}

node_lost() {
    local job
    job=$(submit "$repository/launch/slurm.sbatch" "${settings[@]}")
    until_true reached "$job" 20
    # shellcheck disable=SC2046  # numbers
    kill -9 "$(cat "$work/slurmd.n2.pid")" $(parents $(python_on n2)) $(python_on n2)
    say "node n2 lost"
    until_true node_is_down || say "n2 is not down: $(sinfo -h -N -o '%N %T')"
    slurmd -N n2
    start_again "$job"
    finish "$job" "a node lost"
}

cancelled() {
    local job
    job=$(submit "$repository/launch/slurm.sbatch" "${settings[@]}")
    until_true reached "$job" 20
    scancel "$job"
    until_true is_over "$job"
    until_true nodes_are idle
    expect "scancel: the ranks saved" "$(grep -c '^stopped: saved step' "$work/jobs/$job")" 1
    expect "scancel: the job is not queued again" "$(state "$job")" CANCELLED
}

node_is_down() { sinfo -h -n n2 -o %T | grep -q down; }

wrong_mpi() {
    local file=$work/jobs/wrong status
    timeout -k 5 60 srun --mpi=none --kill-on-bad-exit=1 -N2 -n4 "$python" -m distgrad.launch "${settings[@]}" \
        --run-dir "$work/wrong" >"$file" 2>&1
    status=$?
    expect "srun --mpi=none is refused" $((status != 0)) 1
    expect "srun --mpi=none: one sentence says why" "$(grep -c 'Slurm started 4 ranks' "$file")" 1
    show "$file"
    expect "srun --mpi=none: nothing was trained" "$(ls "$work/wrong" 2>/dev/null)" ""
}

inside() {
    work=$1
    cd "$work" || exit 1
    export DISTGRAD_DETERMINISM=world
    start_slurm || skip "Slurm does not start here: $(tail -qn 1 "$work"/*.log "$work/munge/log" 2>/dev/null | tail -n 1)"
    alone
    wrong_mpi
    preempted
    rank_lost
    node_lost
    cancelled
    [ "$failures" -eq 0 ] || { say "$failures checks failed"; exit 1; }
    say "all checks passed"
}

if [ "${1:-}" = inside ]; then inside "$2"; else outside; fi
