"""Words for what mpirun, ssh and silent ranks leave unsaid."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence

from distgrad.launch.supervise.hosts import why_ssh_failed
from distgrad.launch.supervise.listener import Rank

_SHOWN = 4  # stacks
_FATAL = (
    signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE,
)  # fmt: skip
_START_FAILURES = (
    (r"There are not enough slots", "Open MPI finds fewer slots than ranks; give hosts as "
     "HOST:RANKS with enough room"),
    (r"unable to find the specified executable|could not find .* executable",
     "the program is not at the same place on every host; install the same environment under the "
     "same path everywhere"),
    (r"No such file or directory.*python|python\S*: not found|execvp error.*No such file",
     "Python is not at the same path on every host; install the same environment everywhere"),
    (r"No module named '?distgrad", "distgrad is not installed on every host; install it there"),
    (r"ORTE does not know how to route|failed to report back|unable to (?:start|contact)",
     "Open MPI's daemons do not reach each other; look for a firewall, and for several networks "
     "between the hosts (PRTE_MCA_prte_if_include)"),
    (r"PRTE has lost communication with a remote daemon",
     "a daemon of Open MPI ended on another host before the ranks began, or its network did; is "
     "the same MPI installed there, and is there room in its TMPDIR?"),
    (r"unable to connect to server",
     "the daemons of MPICH do not reach the host that starts the job; let hosts connect to any of "
     "its ports"),
    (r"No space left on device", "a disk is full, perhaps /dev/shm or the one for temporary files"),
)  # fmt: skip


def ranks_in_words(ranks: Sequence[int]) -> str:
    """Return ``"ranks 1, 2"``.

    Example:
        >>> ranks_in_words([3]), ranks_in_words([1, 2])
        ('rank 3', 'ranks 1, 2')
    """
    names = ", ".join(map(str, ranks[:16])) + (", …" if len(ranks) > 16 else "")
    return f"rank{'s' * (len(ranks) > 1)} {names}"


def first_to_end(said: str, ranks: Sequence[Rank]) -> Rank | None:
    """Return the rank that PRRTE says has ended first; Hydra says it where nobody reads it."""
    found = re.search(r"process rank (\d+) with PID", said)
    return next((rank for rank in ranks if found and rank.rank == int(found[1])), None)


def how_ended(said: str, status: int | None) -> str:
    """Return what mpirun knows of the end of a rank, as the end of a sentence.

    Args:
        said: by mpirun.
        status: of mpirun; Hydra's is the number of the signal, others add 128.

    Example:
        >>> how_ended("process rank 1 with PID 7 on node a exited on signal 11 (Segv)", 139)
        ' (SIGSEGV)'
        >>> how_ended("", 9)
        ' (SIGKILL, perhaps for want of memory)'
        >>> how_ended("", 0)
        ' (killed, or left by os._exit)'
    """
    found = re.findall(r"exited on signal (\d+)", said)
    number = int(found[-1]) if found else (status or 0) & 0x7F
    if number not in _FATAL:
        return " (killed, or left by os._exit)"
    why = ", perhaps for want of memory" if number == signal.SIGKILL else ""
    return f" ({signal.Signals(number).name}{why})"


def why_not_started(said: str, status: int, refused: Sequence[str]) -> str:
    """Return why mpirun ended before the ranks had begun."""
    if refused:
        return f"a rank was not let in: it {refused[-1]}"
    for pattern, sentence in _START_FAILURES:
        if re.search(pattern, said):
            return sentence
    ssh = why_ssh_failed("", 0, said)
    if "the command ended" not in ssh:
        name = re.search(r"(?:hostname|connect to host|Permission denied.*@)\s*(\S+)", said)
        return ssh.replace("host :", f"host {name[1].rstrip(':')}:" if name else "a host:", 1)
    last = [line.strip() for line in said.splitlines() if re.search(r"\w", line)]
    tail = f"; the last it said: {last[-1]}" if last else ""
    return f"mpirun ended with status {status} before the ranks had begun{tail}"


def different(one: Rank, other: Rank) -> str:
    """Return what software differs between the hosts of two ranks, with the fix."""
    mine, theirs = (dict(rank.hello.get("versions") or {}) for rank in (one, other))
    names = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
    parts = [f"{name} {mine.get(name)} and {theirs.get(name)}" for name in names]
    return (
        f"{one.named} and {other.named} have different software: {', '.join(parts)}; install the "
        f"same environment on every host"
    )


def stall(
    ranks: Sequence[Rank], states: Mapping[int, str], still_s: float
) -> tuple[list[str], list[int]]:
    """Return a sentence and the stacks of a job in which nothing moves, and who is to blame.

    Args:
        states: of the processes that do not answer.
    """
    waiting = [rank for rank in ranks if rank.rank not in states and rank.call]
    busy = [rank for rank in ranks if rank.rank not in states and not rank.call]
    parts = [f"{ranks_in_words([n])} {state}" for n, state in states.items()]
    if busy:
        verbs = "compute or wait" if len(busy) > 1 else "computes or waits"
        parts.append(f"{ranks_in_words([r.rank for r in busy])} {verbs} outside of collectives")
    for call in dict.fromkeys(rank.call for rank in waiting):
        who = [rank.rank for rank in waiting if rank.call == call]
        parts.append(f"{ranks_in_words(who)} wait{'s' * (len(who) == 1)} in {call}")
    blamed = [rank for rank in ranks if rank.rank in states] + busy or waiting
    lines = [f"nothing has moved for {still_s:.0f} s (--stall-timeout): " + "; ".join(parts)]
    for rank in blamed[:_SHOWN]:
        when = "was here last" if rank.rank in states else "is here"
        lines.append(f"{rank.named} {when}, in {rank.phase} of step {rank.step}:")
        lines.append(rank.stack.rstrip() or "  (no stack was sent)")
    return lines, [rank.rank for rank in blamed]
