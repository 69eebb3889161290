"""Go on without ranks that have ended: the others make a group of their own and train on.

Note [The protocol]
    Every rank that is left calls `shrink`, sooner or later: what one of them learns makes the calls
    of all others fail (`ulfm`). MPI makes a communicator of those that are there; the group on it
    is made as at the start of the job. More ranks may end meanwhile: a rank that notices revokes
    what there is of the new group. At the end all agree whether every one of them has the whole
    group, by the one call of ULFM that gives all the same answer whoever dies in it; if not, they
    shrink again. So no rank ever goes on in a group that another one does not have.

Note [Steps are done by all or by none]
    Before an update all ranks vote, by any collective: who has come through it knows that all have
    the gradients of this step. A rank that was still in the vote when another one died may not
    know, so after `shrink` all compare how far they are: those behind make the update too, from the
    gradients that they have, and the step after it is done anew from there. No rank ever has to go
    back, so nobody keeps old weights.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from distgrad.backend.device import choose_gpu_by
from distgrad.distributed import ulfm
from distgrad.distributed.default import get_group, set_process_group
from distgrad.distributed.failure import install_failure_hooks, leaving_status
from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.mpi import MpiGroup, group_of, start_mpi
from distgrad.errors import ArgumentError, DistributedError, JobLost, RankLost

LOST = 76  # exit status of a job whose ranks are lost
_last: list[Any] = []  # the communicator of the ranks that are left
_status: list[int] = []  # of the process, if it was told


def why_not_shrinkable(group: ProcessGroup) -> str:
    """Return why the ranks of ``group`` could not go on without one of them; empty if they could.

    Example:
        >>> from distgrad.distributed import local_group
        >>> why_not_shrinkable(local_group())
        'shrinking in place needs ranks under MPI, and the backend is local'
    """
    if not isinstance(group, MpiGroup):
        return f"shrinking in place needs ranks under MPI, and the backend is {group.backend}"
    return ulfm.missing(start_mpi())


def shrink(min_ranks: int = 1) -> ProcessGroup:
    """Make a new default group of the ranks that are left, and return it.

    Call it where `RankLost` was raised. Ranks keep their order and get new numbers; ``origins`` of
    the group says which ones they had when the job began. Groups made by `new_group` end with the
    old group. ``rebuild`` of DistributedDataParallel and of ZeroRedundancyOptimizer bring both to
    the new group, that of ``SpareParts`` what `fully_shard` has made.

    Args:
        min_ranks: fewer shall not go on.

    Raises:
        JobLost: there are fewer.
        DistributedError: this MPI does not survive the end of a rank; see the message.

    Ranks: all that are left; the process of one that does not come within the stall limit is not
        dead, and ends the job.
    """
    old = get_group()
    if min_ranks < 1:
        raise ArgumentError(f"shrink(min_ranks={min_ranks}): a number of ranks is 1 or more")
    reason = why_not_shrinkable(old)
    if reason or not isinstance(old, MpiGroup):
        raise DistributedError(
            f"shrink(): {reason}; start again from a checkpoint, as --max-restarts does"
        )
    old.leave()
    with within(old, "shrink()"):
        made = _made_of_the_rest(old, min_ranks)
    for name, sibling in made.siblings.items():
        before = old.siblings[name]
        sibling.description, sibling.nccl_wanted = before.description, before.nccl_wanted
    set_process_group(made)
    install_failure_hooks(made)
    atexit.unregister(_leave)
    atexit.register(_leave)
    choose_gpu_by(lambda: made.local_rank)
    return made


def _made_of_the_rest(old: MpiGroup, min_ranks: int) -> MpiGroup:
    """Return the new group; see Note [The protocol]."""
    mpi, family = start_mpi(), old.family
    comm: Any = old.comm
    assert family is not None
    while True:
        family.revoke()
        comm = comm.Shrink()
        if comm.size < min_ranks:
            raise JobLost(_too_few(ulfm.members(mpi, comm), old, min_ranks))
        family = ulfm.Family(mpi)
        family.add(comm)
        made = None
        try:
            made = group_of(comm, old.timeout_s, family)
        except (mpi.Exception, RankLost):
            family.revoke()  # others may wait for this rank in the making
        if _agreed(comm, made is not None):
            assert made is not None
            _last[:] = [comm]
            return made
        if made is not None:
            made.leave()


def _agreed(comm: Any, ok: bool) -> bool:
    """Return the flag that all have; False, on all, if some rank has ended."""
    with suppress(start_mpi().Exception):
        return bool(comm.Agree(int(ok)))
    return False


def _leave() -> None:
    """End the process without MPI's own end, which waits for ever now and then after a loss.

    In one of ten jobs some rank stayed in MPI_Finalize, with one of the ranks lost before.
    """
    atexit.unregister(_leave)
    atexit._run_exitfuncs()  # what the program has registered comes first
    for comm in _last:
        _agreed(comm, True)  # or the first one to leave would be a loss to the others
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(_status[0] if _status else leaving_status())


def end_with(status: int) -> None:
    """Let a process that has lost ranks end with ``status``, where ``sys.exit`` is not used."""
    _status[:] = [status]


def _too_few(left: tuple[int, ...], old: MpiGroup, min_ranks: int) -> str:
    gone = [str(rank) for rank in old.origins if rank not in left]
    what = f"rank{'s' * (len(gone) > 1)} {', '.join(gone)}"
    verb = "have" if len(gone) > 1 else "has"
    return (
        f"shrink(): {what} {verb} ended; {len(left)} of {old.size} ranks are left, fewer than "
        f"min_ranks={min_ranks}; start again from a checkpoint, as --max-restarts does"
    )


@contextmanager
def within(group: ProcessGroup, call: str) -> Iterator[None]:
    """End this process if the block, in which MPI blocks, takes longer than ranks may stall."""
    limit = group.timeout_s
    if group.watch is not None and group.watch.stall_s:
        limit = min(limit, group.watch.stall_s)
    timer = threading.Timer(limit, _give_up, (group, call, limit))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _give_up(group: ProcessGroup, call: str, limit: float) -> None:
    text = (
        f"[rank {group.rank}] {call}: a rank has not come within {limit:.0f} s (DISTGRAD_STALL_S): "
        "it is stopped, cut off, or has ended without a sign to MPI; so the job ends, and can "
        "start again from a checkpoint, as --max-restarts does"
    )
    with suppress(Exception):
        print(text, file=sys.stderr, flush=True)
        sys.stdout.flush()
    os._exit(LOST)
