"""Process groups over MPI.

MPI starts when the first group is made, never by importing this module. Every collective is the
library's non-blocking one and is tested until it is complete, so that each wait can end with an
error in words, and so that four ranks on two cores leave each other room.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from distgrad.distributed.env import find_mpirun, world_from_env
from distgrad.distributed.group import (
    DEFAULT_TIMEOUT_S,
    HostArray,
    ProcessGroup,
    Transfer,
    Work,
    check_same,
    is_bfloat16,
    link_channels,
)
from distgrad.distributed.progress import nap_s
from distgrad.errors import DistributedError, MissingExtra

if TYPE_CHECKING:
    from types import ModuleType

    from mpi4py import MPI

# Transfers that were dropped before their end: MPI may still write to their buffers.
_abandoned: list[tuple[object, object]] = []

_SPIN_S = 2e-4  # small collectives are over by then; a nap would cost them more


class MpiGroup(ProcessGroup):
    """One channel of this rank of an MPI job; `mpi_group` makes the whole group.

    A collective of the user and control channels is preceded by a comparison of the call, 16 bytes
    from each rank, because MPI itself adds up mismatched calls or hangs. Works of the buckets
    channel are not compared one by one: their user calls `check_same` once.
    """

    backend = "mpi"

    def __init__(
        self, comm: MPI.Intracomm, place: tuple[int, int], name: str, timeout_s: float
    ) -> None:
        super().__init__(comm.rank, comm.size, *place, name, timeout_s)
        self.comm = comm
        self._mpi = _import_mpi()
        self.thread_safe = self._mpi.Query_thread() >= self._mpi.THREAD_MULTIPLE

    def abort(self, code: int, reason: str) -> NoReturn:
        """End all processes of the job with exit status ``code``, saying ``reason`` on stderr."""
        print(f"[rank {self.rank}] abort({code}): {reason}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        self._mpi.COMM_WORLD.Abort(code)
        os._exit(code)  # MPICH's Abort may return before the process is killed

    def close(self) -> None:
        """Release the communicators. A message still under way keeps its own alive."""
        if self.closed:
            return
        super().close()
        for sibling in self.siblings.values():
            if isinstance(sibling, MpiGroup) and not self._mpi.Is_finalized():
                sibling.comm.Free()

    def _agree(self, call: str) -> None:
        check_same(self, call, b"")

    def _start(self, transfer: Transfer) -> Work:
        starter = _STARTERS[transfer.collective]
        try:
            return MpiWork(self, transfer.call, *starter(self._mpi, self.comm, transfer))
        except self._mpi.Exception as error:
            raise self._failed(transfer.call, error) from error

    def _failed(self, call: str, error: Exception) -> DistributedError:
        return DistributedError(
            f"{call} on channel {self.name!r}: rank {self.rank} of {self.size}: MPI says {error}; "
            "a rank has made another call, or has ended"
        )


class MpiWork(Work):
    """An MPI request and what is left to do when it is complete."""

    __slots__ = ("_buffers", "_finish", "_group", "_request", "_status")

    def __init__(
        self,
        group: MpiGroup,
        call: str,
        request: MPI.Request,
        buffers: tuple[HostArray, ...],
        finish: _Finish | None = None,
    ) -> None:
        super().__init__(call, group.sequence)
        self._buffers = buffers  # MPI writes there, and mpi4py does not keep them alive
        self._group = group
        self._request: MPI.Request | None = request
        self._status: MPI.Status = group._mpi.Status()
        self._finish = finish

    def is_completed(self) -> bool:
        """Return whether a test or wait has seen the transfer complete."""
        return self._request is None

    def test(self) -> bool:
        """Return whether the transfer is complete; MPI moves data during the call."""
        if self._request is None:
            return True
        try:
            complete = self._request.Test(self._status)
        except self._group._mpi.Exception as error:
            raise self._group._failed(self.call, error) from error
        if complete:
            self._request, self._buffers = None, ()
            if self._finish is not None:
                self._finish(self._status)
        return complete

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when the transfer is complete."""
        group = self._group
        limit = group.timeout_s if timeout_s is None else timeout_s
        started = time.monotonic()
        while not self.test():
            waited = time.monotonic() - started
            if waited > limit:
                raise DistributedError(
                    f"{self.call} on channel {group.name!r}: rank {group.rank} of {group.size} "
                    f"waited {limit} s for the other ranks; look where those are, or allow more "
                    "time"
                )
            time.sleep(0.0 if waited < _SPIN_S else nap_s(waited))

    def __del__(self) -> None:
        if getattr(self, "_request", None) is not None:
            _abandoned.append((self._request, self._buffers))


def mpi_group(comm: MPI.Intracomm | None = None, timeout_s: float = DEFAULT_TIMEOUT_S) -> MpiGroup:
    """Return a group of the ranks of ``comm``, with communicators of its own.

    Args:
        comm: any mpi4py intracommunicator; None stands for all ranks of the job.
        timeout_s: seconds that any one wait may take.

    Raises:
        MissingExtra: mpi4py is not installed.
        DistributedError: the launcher belongs to another MPI.

    Ranks: all ranks of ``comm``.
    """
    mpi = _import_mpi()
    if comm is None:
        check_launcher(mpi)
        comm = mpi.COMM_WORLD
    base = comm
    host = base.Split_type(mpi.COMM_TYPE_SHARED, key=base.rank)
    place = (host.rank, host.size)
    host.Free()
    return link_channels(lambda name: MpiGroup(base.Dup(), place, name, timeout_s))


def check_launcher(mpi: ModuleType) -> None:
    """Raise if the launcher announced several ranks and MPI sees one.

    That is what happens when mpi4py is linked to another MPI than mpirun belongs to: without this
    check every rank would train alone, and report success.
    """
    hint = world_from_env()
    announced = hint.size or 1
    if announced == 1 or mpi.COMM_WORLD.size > 1:
        return
    library = " ".join(mpi.Get_library_version().split("\n")[0].split())
    raise DistributedError(
        f'init_process_group("mpi"): {hint.launcher} started {announced} ranks, but the MPI '
        f"library of mpi4py sees a world of 1. The library is {library!r}; the launcher speaks for "
        f"{hint.launcher}, and mpirun on PATH is {_on_path()}. {_launcher_fix()}"
    )


def _on_path() -> str:
    return next(
        (
            os.path.join(folder, "mpirun")
            for folder in os.environ.get("PATH", "").split(os.pathsep)
            if os.access(os.path.join(folder, "mpirun"), os.X_OK)
        ),
        "missing",
    )


def _launcher_fix() -> str:
    beside = find_mpirun()
    if beside and os.path.dirname(beside) == os.path.dirname(sys.executable):
        return f"Start the job with {beside}, which belongs to this Python"
    return (
        "Start the job with the mpirun of that library, or build mpi4py for this mpirun: "
        "pip install --no-cache-dir --no-binary=mpi4py --force-reinstall mpi4py"
    )


def _import_mpi() -> Any:
    try:
        # Here and not at the top: importing mpi4py.MPI starts MPI.
        import mpi4py

        mpi4py.rc.thread_level = "multiple"
        from mpi4py import MPI
    except ImportError as error:
        raise MissingExtra(
            f'init_process_group("mpi"): mpi4py cannot be imported ({error}); '
            "pip install 'distgrad[mpich]' brings an MPI along, 'distgrad[mpi]' uses the site's"
        ) from error
    return MPI


# What follows turns a transfer into an MPI request and what is left to do when it is complete.

_Finish = Callable[[Any], None]  # takes the MPI status
_Buffers = tuple[HostArray, ...]
_Started = tuple[Any, _Buffers] | tuple[Any, _Buffers, _Finish | None]
_MPI_OPS = {
    "sum": "SUM",
    "avg": "SUM",
    "prod": "PROD",
    "min": "MIN",
    "max": "MAX",
    "band": "BAND",
    "bor": "BOR",
}


def _all_reduce(mpi: Any, comm: Any, t: Transfer) -> _Started:
    wire = _reducible(mpi, t.target)
    request = comm.Iallreduce(mpi.IN_PLACE, wire, op=getattr(mpi, _MPI_OPS[t.op]))
    return request, (wire,), _finisher(wire, t, comm.size)


def _reduce_scatter(mpi: Any, comm: Any, t: Transfer) -> _Started:
    source, wire = _reducible(mpi, t.source), _reducible(mpi, t.target)
    request = comm.Ireduce_scatter_block(source, wire, op=getattr(mpi, _MPI_OPS[t.op]))
    return request, (source, wire), _finisher(wire, t, comm.size)


def _broadcast(mpi: Any, comm: Any, t: Transfer) -> _Started:
    words = _words(t.target)
    return comm.Ibcast(words, root=t.peer), (words,)


def _all_gather(mpi: Any, comm: Any, t: Transfer) -> _Started:
    source, target = _words(t.source), _words(t.target)
    return comm.Iallgather(source, target), (source, target)


def _gather(mpi: Any, comm: Any, t: Transfer) -> _Started:
    source, target = _words(t.source), _words(t.target)
    into = target if comm.rank == t.peer else None
    return comm.Igather(source, into, root=t.peer), (source, target)


def _barrier(mpi: Any, comm: Any, t: Transfer) -> _Started:
    return comm.Ibarrier(), ()


def _send(mpi: Any, comm: Any, t: Transfer) -> _Started:
    words = _words(t.source)
    return comm.Isend(words, dest=t.peer, tag=t.tag), (words,)


def _recv(mpi: Any, comm: Any, t: Transfer) -> _Started:
    def check(status: Any) -> None:
        got = status.Get_count(mpi.BYTE)
        if got != t.target.nbytes:
            raise DistributedError(
                f"{t.call}: rank {t.peer} sent {got} bytes, not {t.target.nbytes}; send and "
                "receive the same dtype and shape"
            )

    words = _words(t.target)
    return comm.Irecv(words, source=t.peer, tag=t.tag), (words,), check


_STARTERS: dict[str, Callable[[Any, Any, Transfer], _Started]] = {
    "all_reduce": _all_reduce,
    "reduce_scatter": _reduce_scatter,
    "broadcast": _broadcast,
    "all_gather": _all_gather,
    "gather": _gather,
    "barrier": _barrier,
    "send": _send,
    "recv": _recv,
}


def _reducible(mpi: Any, array: HostArray) -> HostArray:
    """The array as MPI can reduce it: bool as bytes, floats that MPI does not know as float32."""
    if array.dtype == np.bool_:
        return array.view(np.uint8)
    no_half = array.dtype == np.float16 and mpi.FLOAT16_T == mpi.DATATYPE_NULL
    return array.astype(np.float32) if no_half or is_bfloat16(array.dtype) else array


def _finisher(wire: HostArray, t: Transfer, size: int) -> _Finish | None:
    """What turns the sum on the wire into the result, if they differ."""
    staged = wire.itemsize != t.target.itemsize
    if t.op != "avg" and not staged:
        return None

    def finish(status: Any) -> None:
        with np.errstate(all="ignore"):  # inf and nan are results here, as on the wire
            if t.op == "avg":
                np.divide(wire, size, out=wire)
            if staged:
                np.copyto(t.target, wire, casting="unsafe")

    return finish


def _words(array: HostArray) -> HostArray:
    """The bytes of the array as the widest integers, which MPI moves whatever they mean."""
    flat = array.reshape(-1)
    width = next(n for n in (8, 4, 2, 1) if array.itemsize % n == 0)
    return flat.view(f"u{width}")
