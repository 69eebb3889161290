"""Lost ranks: what Open MPI with ULFM tells about them, and how all others learn of it.

ULFM (User-Level Failure Mitigation) is the part of MPI that lets a job go on without a rank whose
process has died. It has three words: *revoke* a communicator, and every call on it fails on all
ranks; *shrink* it to the ranks that are left; *agree* on a flag whoever dies meanwhile.

Note [Who learns of a death]
    MPI tells only ranks that communicate with the dead one. Another one may wait for a rank that
    has just learnt of it and left; and ranks of a host wait for signals in common memory, of which
    MPI knows nothing. So whoever learns of a death first revokes all communicators of the family:
    every transfer fails then, and so does the look at MPI in the loop that waits for a signal.
    On one host that took 7 to 27 ms from the end of the process, and 1 ms from rank to rank.

Note [What ULFM does not notice]
    A rank that is stopped, or that ends by ``os._exit`` with a status other than 0, is no dead one
    to MPI: its own detector would find them, but takes ranks for dead that compute for long, and
    keeps MPI from ending. Such a rank is found by its silence (`watch`, `shrink.within`), and ends
    the job, as a lost host does: it is for a new start to go on.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from distgrad.errors import RankLost

_OLDEST = (5, 0)
_SWITCH = "OMPI_MCA_mpi_ft_enable"  # set by mpirun --with-ft ulfm
_ON = ("1", "true", "yes")


def missing(mpi: Any) -> str:
    """Return why ranks that are left cannot go on in place here; empty if they can.

    Args:
        mpi: mpi4py's module, started.
    """
    name, version = mpi.get_vendor()
    if name != "Open MPI" or version[:2] < _OLDEST:
        found = f"{name} {'.'.join(map(str, version))}"
        return f"shrinking in place needs Open MPI 5 or later with ULFM, and this is {found}"
    if os.environ.get(_SWITCH, "").lower() not in _ON:
        return "shrinking in place needs ULFM, which mpirun --with-ft ulfm turns on"
    return ""


class Family:
    """The communicators of a group, of its channels, and of the groups made of it.

    Args:
        mpi: mpi4py's module, started.
    """

    def __init__(self, mpi: Any) -> None:
        self._mpi = mpi
        self._members: list[Any] = []
        self._kinds = (mpi.ERR_PROC_FAILED, mpi.ERR_PROC_FAILED_PENDING, mpi.ERR_REVOKED)
        self.revoked = False

    def add(self, comm: Any) -> Any:
        """Let ``comm`` belong to the family, and return it."""
        self._members.append(comm)
        return comm

    def tells(self, error: BaseException, comm: Any) -> bool:
        """Return whether ``error``, of a call on ``comm``, says that a rank has ended."""
        if not isinstance(error, self._mpi.Exception):
            return False
        # inside a collective the same turns up as an internal error
        return error.Get_error_class() in self._kinds or self.revoked or bool(comm.Is_revoked())

    def lost(self, call: str, comm: Any) -> RankLost:
        """Return the error of ``call``, which a rank that has ended keeps from its end.

        All other ranks learn of it.
        """
        self.revoke()
        ranks = self._failed(comm)
        who = f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}" if ranks else "a rank"
        return RankLost(
            f"{call}: {who} of {comm.size} ha{'ve' if len(ranks) > 1 else 's'} ended; "
            "distgrad.distributed.shrink() lets the others go on"
        )

    def revoke(self) -> None:
        """Make every call on these communicators fail, on all ranks."""
        self.revoked = True
        for comm in list(self._members):
            with suppress(self._mpi.Exception):
                comm.Revoke()

    def _failed(self, comm: Any) -> list[int]:
        """Return the ranks of ``comm`` that are known here to have ended."""
        failed, everyone = comm.Get_failed(), comm.Get_group()
        try:
            places = failed.Translate_ranks(None, everyone)
        finally:
            failed.Free()
            everyone.Free()
        return sorted(places)


def members(mpi: Any, comm: Any) -> tuple[int, ...]:
    """Return the numbers that the ranks of ``comm`` had when the job began."""
    mine, everyone = comm.Get_group(), mpi.COMM_WORLD.Get_group()
    try:
        return tuple(mine.Translate_ranks(None, everyone))
    finally:
        mine.Free()
        everyone.Free()
