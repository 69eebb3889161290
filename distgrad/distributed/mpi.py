"""Process groups over MPI.

MPI starts when the first group is made, never by importing this module. Every collective is the
library's non-blocking one and is tested until it is complete, so that each wait can end with an
error in words, and so that four ranks on two cores leave each other room.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from distgrad.config import switch
from distgrad.distributed import board, shared, ulfm
from distgrad.distributed.cuda_aware import takes_gpu_memory
from distgrad.distributed.env import WorldHint, find_mpirun, world_from_env
from distgrad.distributed.group import (
    ANY_RANK,
    CHANNELS,
    DEFAULT_TIMEOUT_S,
    ProcessGroup,
    check_same,
    is_bfloat16,
    link_channels,
)
from distgrad.distributed.shared import Slab
from distgrad.distributed.waiting import wait_for
from distgrad.distributed.watch import Watch
from distgrad.distributed.work import HostArray, Transfer, Work
from distgrad.errors import DistributedError, MissingExtra

if TYPE_CHECKING:
    from mpi4py import MPI

# Transfers that were dropped before their end: MPI may still write to their buffers.
_abandoned: list[tuple[object, object]] = []

_SECOND_S = 0.5
_DRAIN_S = 0.1  # Hydra drops what it has not forwarded when a rank aborts
_IN_TURN_S = 0.05
_TAGS = 0x3FFF  # MPI grants 15 bits at least


class MpiGroup(ProcessGroup):
    """One channel of this rank of an MPI job; `mpi_group` makes the whole group.

    A collective of the user and control channels is preceded by a comparison of the call, 16 bytes
    from each rank, because MPI itself adds up mismatched calls or hangs. Works of the buckets
    channel are not compared one by one: their user calls `check_same` once.
    """

    backend = "mpi"

    def __init__(
        self,
        comm: MPI.Intracomm,
        host: MPI.Comm,
        name: str,
        timeout_s: float,
        family: ulfm.Family | None,
    ) -> None:
        super().__init__(comm.rank, comm.size, host.rank, host.size, name, timeout_s)
        self.comm, self.host, self.family = comm, host, family
        self._mpi = start_mpi()
        self.thread_safe = self._mpi.Query_thread() >= self._mpi.THREAD_MULTIPLE

    def abort(self, code: int, reason: str) -> NoReturn:
        """End all processes of the job with exit status ``code``, saying ``reason`` on stderr."""
        print(f"[rank {self.rank}] abort({code}): {reason}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        if self.size > 1:
            time.sleep(_DRAIN_S)
        if self.family is not None and not self._is_last():
            os.kill(os.getpid(), signal.SIGKILL)  # Abort ends nobody, and nobody notices an exit
        if self.family is None:
            self._mpi.COMM_WORLD.Abort(code)
        os._exit(code)  # MPICH's Abort may return before the process is killed

    def _is_last(self) -> bool:
        """Return whether all other ranks have ended.

        Ranks that end at the same time do so in turn, as the last one has to say with which status:
        mpirun takes the end of ranks that were all killed for a success.
        """
        time.sleep(min(_IN_TURN_S * self.rank, _SECOND_S))
        failed = self.comm.Get_failed()
        count = int(failed.size)
        failed.Free()
        return count == self.size - 1

    def close(self) -> None:
        """Release the communicators. A message still under way keeps its own alive."""
        if self.closed:
            return
        super().close()
        if self._mpi.Is_finalized():
            return
        if self.family is not None and self.family.revoked:
            self.leave()
            return
        if self.watch is not None:
            self.watch.close()
            self.watch.comm.Free()
        for sibling in self.siblings.values():
            assert isinstance(sibling, MpiGroup)
            sibling.comm.Free()
        self.host.Free()

    def leave(self) -> None:
        """Let go of a group of which a rank has ended; waits for nobody.

        Its communicators stay: to free one takes all of its ranks.
        """
        super().close()
        if self.watch is not None:
            self.watch.leave_alone()

    def _share(self, nbytes: int, signals: int) -> Slab | None:
        self.barrier()  # MPI blocks below, so all must be here before
        with self._blocking("shared_memory()"):
            return self._shared(nbytes, signals)

    def _shared(self, nbytes: int, signals: int) -> Slab | None:
        host, (part, row) = self.host, shared.room_of(nbytes, signals)
        path = host.bcast(shared.new_file(part * host.size) if host.rank == 0 else "")
        memory = shared.attached(path, part, host.rank, host.size)
        everywhere = np.array([memory is not None], np.int32)
        self.comm.Allreduce(self._mpi.IN_PLACE, everywhere, op=self._mpi.MIN)
        if host.rank == 0 and path:
            os.unlink(path)
        if memory is None or not everywhere[0]:
            return None
        return shared.slab_in(memory, part, row, host.rank, self._poll)

    def _part(self, places: Sequence[int], timeout_s: float) -> MpiGroup:
        # MPI blocks while it makes a communicator, so all must be here before.
        control = self.channel("control")
        assert isinstance(control, MpiGroup)
        _meet(control, places)
        with self._blocking(f"new_group({list(places)})"):
            everyone = control.comm.Get_group()
            chosen = everyone.Incl(list(places))
            made = control.comm.Create_group(chosen, zlib.crc32(repr(places).encode()) & _TAGS)
            group = group_of(made, timeout_s, self.family)
            for handle in (chosen, everyone, made):
                handle.Free()
        return group

    def takes_gpu_memory(self) -> bool:
        """Return whether the MPI library is known to take memory of a GPU."""
        return takes_gpu_memory(self._mpi)

    def _poll(self) -> None:
        """Give transfers a push while this rank waits for a signal in common memory.

        Raises:
            RankLost: a rank has ended, which the memory does not tell.
        """
        try:
            self.comm.Iprobe()
        except self._mpi.Exception as error:
            raise self._failed("wait for a rank of this host", error) from error
        self.agenda.push()

    @contextmanager
    def _blocking(self, call: str) -> Iterator[None]:
        """Put errors of MPI into words."""
        try:
            yield
        except self._mpi.Exception as error:
            raise self._failed(call, error) from error

    def _agree(self, call: str) -> None:
        check_same(self, call, b"")

    def _start(self, transfer: Transfer) -> Work:
        starter = _STARTERS[transfer.collective]
        try:
            return MpiWork(self, transfer.call, *starter(self._mpi, self.comm, transfer))
        except self._mpi.Exception as error:
            raise self._failed(transfer.call, error) from error

    def _failed(self, call: str, error: Exception) -> DistributedError:
        if self.family is not None and self.family.tells(error, self.comm):
            return self.family.lost(f"{call} on channel {self.name!r}", self.comm)
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
        self._group.agenda.push()
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
        limit = self._group.timeout_s if timeout_s is None else timeout_s
        wait_for(self, self._group, limit)

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
    mpi = start_mpi()
    base = mpi.COMM_WORLD if comm is None else comm
    return group_of(base, timeout_s, None if ulfm.missing(mpi) else ulfm.Family(mpi))


def group_of(base: MPI.Intracomm, timeout_s: float, family: ulfm.Family | None) -> MpiGroup:
    """Return a group of the ranks of ``base``, whose communicators belong to ``family``."""
    mpi = start_mpi()

    def adopt(comm: Any) -> Any:
        return comm if family is None else family.add(comm)

    host = adopt(base.Split_type(mpi.COMM_TYPE_SHARED, key=base.rank))
    hosts: dict[int, list[int]] = {}
    for rank, leader in enumerate(base.allgather(host.bcast(base.rank))):
        hosts.setdefault(leader, []).append(rank)

    origins = ulfm.members(mpi, base)

    def make(name: str) -> MpiGroup:
        group = MpiGroup(adopt(base.Dup()), host, name, timeout_s, family)
        group.hosts, group.origins = list(hosts.values()), origins
        return group

    group = link_channels(make)
    if len(hosts) == 1:
        _give_boards(group)
    if group.thread_safe and group.size > 1:
        watch = Watch(adopt(base.Dup()), group._mpi, switch("stall_s"))
        for sibling in group.siblings.values():
            sibling.watch = watch
    return group


def _give_boards(group: MpiGroup) -> None:
    """Let each channel have a board, if there is common memory for all."""
    halves = [board.SMALL_HALF_BYTES] * len(CHANNELS)
    halves[CHANNELS.index("user")] = board.HALF_BYTES
    slab = group.shared_memory(2 * sum(halves), len(CHANNELS) * board.SIGNALS)
    if slab is not None:
        for name, half in zip(CHANNELS, halves, strict=True):
            group.siblings[name].board = board.Board(group.siblings[name], slab, half)


def _meet(group: ProcessGroup, places: Sequence[int]) -> None:
    """Return when all of ``places`` are here."""
    call = f"new_group({list(places)})"
    tag, sign = zlib.crc32(call.encode()) & _TAGS, np.zeros(1, np.uint8)
    leader, others = places[0], places[1:]
    if group.rank != leader:
        group.start_send(sign, leader, tag, call).wait()
        group.start_recv(np.empty(1, np.uint8), leader, tag, call).wait()
        return
    for rank in others:
        group.start_recv(np.empty(1, np.uint8), rank, tag, call).wait()
    for rank in others:
        group.start_send(sign, rank, tag, call).wait()


def start_mpi() -> Any:
    """Return mpi4py's MPI, started with all thread rights it grants.

    Raises:
        MissingExtra: mpi4py is not installed.
        DistributedError: the launcher belongs to another MPI.
    """
    try:
        # Here and not at the top: a process that imports it is part of an MPI job from then on.
        import mpi4py

        if "mpi4py.MPI" not in sys.modules:
            # MPICH ends a process that Open MPI has launched as soon as it is started, so the
            # launcher is looked at before.
            mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
        from mpi4py import MPI
    except ImportError as error:
        raise MissingExtra(
            f'init_process_group("mpi"): mpi4py cannot be imported ({error}); '
            "pip install 'distgrad[mpich]' brings an MPI along, 'distgrad[mpi]' uses the site's"
        ) from error
    if not MPI.Is_initialized():
        hint = world_from_env()
        if hint.launcher == "Open MPI" and _library(MPI).startswith(("MPICH", "Intel")):
            raise _wrong_launcher(MPI, hint, "cannot start under it")
        # Open MPI asks UCX first for windows and complains on every rank when it has none to give.
        os.environ.setdefault("OMPI_MCA_osc", "^ucx")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # mpi4py's about what is raised below
            MPI.Init_thread(MPI.THREAD_MULTIPLE)
    if MPI.COMM_WORLD.size == 1 and (world_from_env().size or 1) > 1:
        raise _wrong_launcher(MPI, world_from_env(), "sees a world of 1")
    return MPI


def _wrong_launcher(mpi: Any, hint: WorldHint, what: str) -> DistributedError:
    """The error for a launcher of another MPI than mpi4py is linked to.

    Without it every rank would train alone, and report success.
    """
    if hint.rank:
        time.sleep(_SECOND_S)  # rank 0 speaks and ends the job meanwhile
    return DistributedError(
        f'init_process_group("mpi"): {hint.launcher} started {hint.size} ranks, but the MPI '
        f"library of mpi4py {what}. The library is {_library(mpi)!r}; the launcher speaks for "
        f"{hint.launcher}, and mpirun on PATH is {_on_path()}. {_launcher_fix(hint)}"
    )


def _library(mpi: Any) -> str:
    return " ".join(mpi.Get_library_version().split("\n")[0].strip("\0").split())


def _on_path() -> str:
    return next(
        (
            os.path.join(folder, "mpirun")
            for folder in os.environ.get("PATH", "").split(os.pathsep)
            if os.access(os.path.join(folder, "mpirun"), os.X_OK)
        ),
        "missing",
    )


def _launcher_fix(hint: WorldHint) -> str:
    if hint.launcher == "Slurm":
        return (
            "Start the job with srun --mpi=pmi2 for an MPICH, --mpi=pmix for an Open MPI "
            "(srun --mpi=list says what this Slurm has), or with mpirun in its allocation"
        )
    beside = find_mpirun()
    if beside and os.path.dirname(beside) == os.path.dirname(sys.executable):
        return f"Start the job with {beside}, which belongs to this Python"
    return (
        "Start the job with the mpirun of that library, or build mpi4py for this mpirun: "
        "pip install --no-cache-dir --no-binary=mpi4py --force-reinstall mpi4py"
    )


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
    "bxor": "BXOR",
}


def _all_reduce(mpi: Any, comm: Any, t: Transfer) -> _Started:
    wire = _reducible(mpi, t.target)
    request = comm.Iallreduce(mpi.IN_PLACE, wire, op=getattr(mpi, _MPI_OPS[t.op]))
    return request, (wire,), _finisher(wire, t, comm.size)


def _reduce_scatter(mpi: Any, comm: Any, t: Transfer) -> _Started:
    source, wire = _reducible(mpi, t.source), _reducible(mpi, t.target)
    request = comm.Ireduce_scatter_block(source, wire, op=getattr(mpi, _MPI_OPS[t.op]))
    return request, (source, wire), _finisher(wire, t, comm.size)


def _reduce(mpi: Any, comm: Any, t: Transfer) -> _Started:
    wire, op = _reducible(mpi, t.source), getattr(mpi, _MPI_OPS[t.op])
    if comm.rank != t.peer:
        return comm.Ireduce(wire, None, op=op, root=t.peer), (wire,)
    request = comm.Ireduce(mpi.IN_PLACE, wire, op=op, root=t.peer)
    return request, (wire,), _finisher(wire, t, comm.size)


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


def _scatter(mpi: Any, comm: Any, t: Transfer) -> _Started:
    source, target = _words(t.source), _words(t.target)
    whole = source if comm.rank == t.peer else None
    return comm.Iscatter(whole, target, root=t.peer), (source, target)


def _all_to_all(mpi: Any, comm: Any, t: Transfer) -> _Started:
    source, target = _words(t.source), _words(t.target)
    words = t.source.itemsize // source.itemsize
    request = comm.Ialltoallv(
        (source, [words * n for n in t.sends]), (target, [words * n for n in t.receives])
    )
    return request, (source, target)


def _barrier(mpi: Any, comm: Any, t: Transfer) -> _Started:
    return comm.Ibarrier(), ()


def _send(mpi: Any, comm: Any, t: Transfer) -> _Started:
    words = _words(t.source)
    return comm.Isend(words, dest=t.peer, tag=t.tag), (words,)


def _recv(mpi: Any, comm: Any, t: Transfer) -> _Started:
    def check(status: Any) -> None:
        got, sender = status.Get_count(mpi.BYTE), status.Get_source()
        if got != t.target.nbytes:
            raise DistributedError(
                f"{t.call}: rank {sender} sent {got} bytes, not {t.target.nbytes}; send and "
                "receive the same dtype and shape"
            )
        if t.senders is not None:
            t.senders.append(sender)

    words = _words(t.target)
    source = mpi.ANY_SOURCE if t.peer == ANY_RANK else t.peer
    return comm.Irecv(words, source=source, tag=t.tag), (words,), check


_STARTERS: dict[str, Callable[[Any, Any, Transfer], _Started]] = {
    "all_reduce": _all_reduce,
    "reduce": _reduce,
    "reduce_scatter": _reduce_scatter,
    "broadcast": _broadcast,
    "all_gather": _all_gather,
    "gather": _gather,
    "scatter": _scatter,
    "all_to_all": _all_to_all,
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
