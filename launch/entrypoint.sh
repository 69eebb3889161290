#!/bin/sh
# A node of a cluster of containers:
#   worker              sshd, until the container is stopped
#   launch OPTIONS      waits for the workers, then trains: python -m distgrad.launch OPTIONS
#   anything else       is run as it stands
#
# Workers are found in $HOSTFILE if that is set, else as the addresses of the name $WORKER_SERVICE;
# $WORKERS of them are waited for, $SLOTS ranks run on each.
set -eu
umask 077

keys=${KEYS:-/keys}             # a volume that all nodes share, or the operator's secret
own=${HOME:-/run/distgrad/home} # of this container alone
wait_s=${WAIT_S:-60}

say() { echo "distgrad-node: $*" >&2; }
give_up() { say "$*"; exit 69; }

# The first node makes the cluster's keys: the user's and the one that all sshd show. mkdir is the
# lock: it succeeds once.
make_keys() {
    if mkdir "$keys/lock" 2>/dev/null; then
        ssh-keygen -q -t ed25519 -N '' -C distgrad -f "$keys/user"
        ssh-keygen -q -t ed25519 -N '' -C distgrad -f "$keys/host"
        : >"$keys/complete"
    fi
    deadline=$(($(date +%s) + wait_s))
    until [ -e "$keys/complete" ]; do
        [ "$(date +%s)" -lt "$deadline" ] || give_up "$keys: another node began to make keys and" \
            "did not end; remove the volume (docker compose down -v) and start again"
        sleep 0.1
    done
    user=$keys/user host=$keys/host
}

# Copies that belong to this account alone, as ssh demands; the volume may be a read-only secret.
take_keys() {
    if [ -e "$keys/id_rsa" ]; then # Kubernetes' mpi-operator gives one key for all
        user=$keys/id_rsa host=$keys/id_rsa
    else
        make_keys
    fi
    # sshd trusts a home that no one else can write to, wherever it lies
    [ -d "$own" ] || mkdir -m 700 "$own"
    cat "$user" >"$own/id"
    cat "$user.pub" >"$own/authorized_keys"
    cat "$host" >"$own/host"
    echo "distgrad $(cat "$host.pub")" >"$own/known_hosts"
}

# sshd listens on this container's address in the cluster, on no other.
serve() {
    set --
    for address in $(hostname -i); do set -- "$@" -o "ListenAddress=$address"; done
    [ $# -gt 0 ] || give_up "this container has no address; it needs a network"
    exec "$(command -v sshd)" -D -e -f /etc/distgrad/sshd_config "$@"
}

# One name a line. Names of containers where the network's DNS knows them, for messages; addresses
# otherwise.
find_hosts() {
    if [ -n "${HOSTFILE:-}" ]; then
        sed -e 's/#.*//' -e 's/[: \t].*//' -e '/^$/d' "$HOSTFILE"
        return
    fi
    for address in $(getent ahostsv4 "${WORKER_SERVICE:-worker}" | cut -d ' ' -f 1 | sort -u); do
        name=$(getent hosts "$address" | sed -e 's/^[^ ]* *//' -e 's/[. ].*//')
        [ -n "$name" ] && getent hosts "$name" >/dev/null || name=$address
        echo "$name"
    done | sort
}

wait_for_hosts() {
    want=${WORKERS:-1} deadline=$(($(date +%s) + wait_s))
    while :; do
        hosts=$(find_hosts) ready='' missing=''
        for host in $hosts; do
            if ssh -n "$host" true 2>/dev/null; then ready="$ready $host"; else missing="$missing $host"; fi
        done
        # shellcheck disable=SC2086  # names, one word each
        set -- $ready
        [ $# -ge "$want" ] && [ -z "$missing" ] && return
        [ "$(date +%s)" -lt "$deadline" ] || give_up "after $wait_s s $# of $want workers answer by" \
            "ssh (answer:${ready:- none}; do not:${missing:- none seen}); see the workers' logs"
        sleep 0.5
    done
}

launch() {
    wait_for_hosts
    slots=${SLOTS:-1} list='' count=0
    for host in $hosts; do
        list=$list${list:+,}$host:$slots count=$((count + slots))
    done
    exec python -m distgrad.launch --nproc "$count" --hosts "$list" "$@"
}

role=${1:-worker}
case $role in
worker) take_keys; serve ;;
launch) shift; take_keys; launch "$@" ;;
*) exec "$@" ;;
esac
