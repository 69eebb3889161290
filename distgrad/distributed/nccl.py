"""NCCL between ranks that have a GPU each, through CuPy, on a stream beside the one that computes.

Note [Which way]
    Ranks whose tensors lie on GPUs tell each other once, per group and channel, where these are.
    If all have one of their own and CuPy finds NCCL, tensors go from GPU to GPU. Otherwise, as with
    ranks that share a GPU, which NCCL refuses, they go by way of the host; see `staging`.

Note [Nobody waits for the GPU]
    A transfer waits, on its stream, for an event of the stream that computes; who uses the result
    lets its stream wait for the event of the transfer. A thread looks at these events and at NCCL's
    own reports meanwhile. A transfer that fails, or is not complete in time, is aborted, so that
    nothing on the GPU waits for it for ever, and the next call raises the reason.

Note [Bits of NCCL]
    The order of additions is NCCL's: the same bits for the same ranks and wires, which is
    determinism "run". "world" takes the way by the host, whose order is that of `tree`.
"""

from __future__ import annotations

import platform
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from distgrad.backend.device import device_of
from distgrad.distributed.collective import Steps, agreed, exchanged
from distgrad.distributed.staging import cupy
from distgrad.errors import DeviceError, DistributedError
from distgrad.tensor import Tensor
from distgrad.typing import Array

if TYPE_CHECKING:
    from distgrad.distributed.group import ProcessGroup

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_LOOK_S = 0.02  # between two looks at a transfer
_TYPES = {
    "int8": "INT8", "uint8": "UINT8", "int32": "INT32", "uint32": "UINT32", "int64": "INT64",
    "uint64": "UINT64", "float16": "FLOAT16", "float32": "FLOAT32", "float64": "FLOAT64",
    "bfloat16": "BFLOAT16",
}  # fmt: skip
_OPS = ("sum", "prod", "min", "max", "avg")


class Place(NamedTuple):
    """Where a rank's tensors are, and why it has no NCCL, if so."""

    host: str
    gpu: str
    lacks: str


def place_of(index: int) -> Place:
    """Return where GPU ``index`` of this process is."""
    boot = _BOOT.read_text("ascii").strip() if _BOOT.exists() else platform.node()
    return Place(boot, cupy().cuda.Device(index).pci_bus_id, _lacking())


def nccl_module() -> Any:
    """Return CuPy's module of NCCL, which knows whether that is ``available``.

    Raises:
        DeviceError: there is no CuPy, or no GPU.
    """
    cupy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy's own about a missing library: `Place` has the words
        from cupy.cuda import nccl  # CuPy is optional, and loads NCCL only when it is asked to
    return nccl


def _lacking() -> str:
    """Return why CuPy cannot use NCCL here, or nothing."""
    if nccl_module().available:
        return ""
    return (
        f"CuPy {cupy().__version__} finds no NCCL; pip install nvidia-nccl-cu12 (or nvidia-nccl-"
        "cu13), whichever CUDA this CuPy is for"
    )


def why_not(places: Sequence[Place]) -> str:
    """Return why these ranks cannot use NCCL among them, or nothing.

    Example:
        >>> why_not([Place("a", "0000:3B:00.0", ""), Place("a", "0000:3B:00.0", "")])
        'ranks 0 and 1 share the GPU 0000:3B:00.0, which NCCL refuses'
    """
    for rank, place in enumerate(places):
        if place.lacks:
            return f"rank {rank}: {place.lacks}"
    first: dict[tuple[str, str], int] = {}
    for rank, place in enumerate(places):
        other = first.setdefault((place.host, place.gpu), rank)
        if other != rank:
            return f"ranks {other} and {rank} share the GPU {place.gpu}, which NCCL refuses"
    return ""


class Gpus:
    """The GPUs of the ranks of a channel, and what connects them; `meet` makes it.

    Args:
        index: of this rank's.
        link: NCCL, or None where tensors go by way of the host.
        why: there is none.
    """

    __slots__ = ("index", "link", "why")

    def __init__(self, index: int, link: Link | None, why: str) -> None:
        self.index, self.link, self.why = index, link, why

    def close(self) -> None:
        """Release what connects them."""
        if self.link is not None:
            self.link.close()


def meet(channel: ProcessGroup, index: int, what: str) -> Gpus:
    """Return how tensors on GPUs travel in ``channel``; asks the other ranks the first time.

    Args:
        index: the GPU of this rank's tensors.
        what: is about to travel, for messages.

    Raises:
        DistributedError: another rank makes another call, as with tensors of the CPU.
        DeviceError: this rank's tensors were on another GPU before, and NCCL knows that one.

    Ranks: all of the channel, the first time.
    """
    gpus = channel.gpus
    if gpus is None:
        said: list[Any] = []
        call = f"{what} on a GPU, for the first time"
        channel.submit(call, _meeting(channel, call, index, said)).wait()
        why = why_not([place for place, _ in said])
        link = None if why or channel.size == 1 else Link(channel, index, said[0][1])
        gpus = channel.gpus = Gpus(index, link, why)
        if why and channel.nccl_wanted and channel.rank == 0:
            warnings.warn(
                f'init_process_group("nccl"): {why}; tensors go by way of the host instead',
                stacklevel=2,
            )
    if gpus.link is not None and gpus.index != index:
        raise DeviceError(
            f"{what} on cuda:{index}: this rank communicates with cuda:{gpus.index}, and NCCL "
            f"connects one GPU of each rank; move the tensor to cuda:{gpus.index}"
        )
    return gpus


def link_of(channel: ProcessGroup, array: Array, what: str) -> Link | None:
    """Return NCCL between the GPUs of such arrays; None for arrays of the host, or where is none.

    Ranks: all of the channel, the first time.
    """
    if channel.size == 1 or isinstance(array, np.ndarray):
        return None
    return meet(channel, device_of(array).index or 0, what).link


def link_between(channel: ProcessGroup, tensors: Sequence[Tensor], determinism: str) -> Link | None:
    """Return NCCL between the GPUs of the tensors, if its order of additions will do.

    Ranks: all of the channel, with tensors on the same kinds of devices.
    """
    indices = [device_of(t.array).index for t in tensors if t.is_cuda]
    if not indices or channel.size == 1 or determinism == "world":
        return None
    return meet(channel, indices[0] or 0, "parameters").link


def _meeting(channel: ProcessGroup, call: str, index: int, said: list[Any]) -> Steps:
    place = place_of(index)
    key = nccl_module().get_unique_id() if channel.rank == 0 and not place.lacks else None
    yield from agreed(channel, call)
    yield from exchanged(channel, call, (place, key), said)


class Link:
    """A communicator of NCCL and its stream.

    Args:
        channel: whose ranks are connected.
        index: the GPU of this rank.
        key: rank 0's unique id.

    Ranks: all of the channel.
    """

    def __init__(self, channel: ProcessGroup, index: int, key: bytes) -> None:
        cuda = cupy().cuda
        nccl = self.nccl = nccl_module()
        self.group, self.index = channel, index
        with cuda.Device(index):
            try:
                self.comm = nccl.NcclCommunicator(channel.size, key, channel.rank)
            except nccl.NcclError as error:
                raise DistributedError(
                    f"NCCL on cuda:{index}, rank {channel.rank} of {channel.size}: {error}; run "
                    "with NCCL_DEBUG=INFO to see what it tried, and NCCL_SOCKET_IFNAME to choose "
                    "a network interface"
                ) from error
            self.stream = cuda.Stream(non_blocking=True)
        self._lock = threading.Lock()
        self._watch = _Watch(self.comm, index, nccl.NcclError, f"rank {channel.rank}")
        self._end = weakref.finalize(self, self._watch.close)

    def close(self) -> None:
        """Release the communicator."""
        self._end()

    def check(self) -> None:
        """Raise what went wrong since the last call.

        Raises:
            DistributedError: a transfer failed or was late; its result, and all since, are wrong.
        """
        if self._watch.error is not None:
            raise self._watch.error

    def turn(self) -> Turn:
        """Return the place of a call among the transfers."""
        return Turn(self)

    def takes(self, dtype: Any, op: str) -> bool:
        """Return whether NCCL knows the dtype and the operation."""
        return op in _OPS and str(dtype) in _TYPES

    def kind(self, dtype: Any) -> int:
        """Return NCCL's number of a dtype."""
        return int(getattr(self.nccl, f"NCCL_{_TYPES[str(dtype)]}"))

    def op(self, name: str) -> int:
        """Return NCCL's number of a reduction."""
        return int(getattr(self.nccl, f"NCCL_{name.upper()}"))

    def run(self, turn: Turn, call: str, launch: Callable[[], None], arrays: Sequence[Any]) -> None:
        """Put calls of NCCL on the stream, behind ``turn.ready``, and ``turn.done`` behind them."""
        self.check()
        with self._lock, cupy().cuda.Device(self.index):
            self.stream.wait_event(turn.ready)
            try:
                launch()
            except self.nccl.NcclError as error:
                raise self._watch.fail(call, str(error)) from error
            turn.done.record(self.stream)
        turn.launched = True
        self.group.sequence += 1
        self._watch.add(turn.done, call, self.group.timeout_s, arrays)


class Turn:
    """One call's place on a link: behind what the caller's stream has done, before what follows."""

    __slots__ = ("done", "launched", "link", "ready")

    def __init__(self, link: Link) -> None:
        cuda = cupy().cuda
        self.link, self.launched = link, False
        with cuda.Device(link.index):
            self.ready = cuda.Event(disable_timing=True)
            self.done = cuda.Event(disable_timing=True)

    def take(self) -> None:
        """Come after what the current stream has done until now."""
        self.ready.record(cupy().cuda.get_current_stream(self.link.index))

    def all_gathered(self, call: str, array: Array) -> Array:
        """Return the arrays of all ranks, stacked, for the current stream; the host goes on."""
        rows = self.empty((self.link.group.size, *array.shape), array.dtype)
        self.take()
        self.run("all_gather", call, array, rows)
        self.arrive()
        return rows

    def empty(self, shape: Sequence[int], dtype: Any) -> Array:
        """Return a new array of this rank's GPU."""
        module = cupy()
        with module.cuda.Device(self.link.index):
            return module.empty(shape, dtype)

    def arrive(self) -> None:
        """Let the current stream wait for the transfer; the host goes on."""
        self.link.check()
        if self.launched:
            self.launched = False
            cupy().cuda.get_current_stream(self.link.index).wait_event(self.done)

    def run(
        self,
        collective: str,
        call: str,
        source: Any,
        target: Any,
        op: str = "",
        peer: int = -1,
        sends: Sequence[int] = (),
        receives: Sequence[int] = (),
    ) -> None:
        """Start a collective; arguments as of a `Transfer`."""
        if collective not in ("gather", "scatter", "all_to_all") and not source.size:
            return
        move = _Move(self.link, source, target, op, peer, sends, receives)
        self.link.run(self, call, getattr(move, collective), (source, target))

    def steps(
        self,
        group: ProcessGroup,
        collective: str,
        call: str,
        source: Any,
        target: Any,
        op: str = "",
        peer: int = -1,
        sends: Sequence[int] = (),
        receives: Sequence[int] = (),
    ) -> Steps:
        """Start the transfer; the host has nothing to wait for after that."""
        self.run(collective, call, source, target, op, peer, sends, receives)
        yield from ()

    def reduce_slices(self, call: str, flat: Array, owned: Sequence[slice]) -> None:
        """Leave in each rank's slice of ``flat`` the sum over the ranks."""
        link, comm, stream = self.link, self.link.comm, self.link.stream.ptr

        def launch() -> None:
            kind, add = link.kind(flat.dtype), link.op("sum")
            link.nccl.groupStart()
            for rank, part in enumerate(owned):
                if part.stop > part.start:
                    at = flat.data.ptr + part.start * flat.itemsize
                    comm.reduce(at, at, part.stop - part.start, kind, add, rank, stream)
            link.nccl.groupEnd()

        link.run(self, call, launch, (flat,))

    def gather_slices(self, call: str, flat: Array, owned: Sequence[slice]) -> None:
        """Give all ranks the slice of ``flat`` that each has."""
        link, comm, stream = self.link, self.link.comm, self.link.stream.ptr

        def launch() -> None:
            link.nccl.groupStart()
            for rank, part in enumerate(owned):
                if part.stop > part.start:
                    at = flat.data.ptr + part.start * flat.itemsize
                    nbytes = (part.stop - part.start) * flat.itemsize
                    comm.broadcast(at, at, nbytes, link.kind("uint8"), rank, stream)
            link.nccl.groupEnd()

        link.run(self, call, launch, (flat,))


class _Move:
    """The calls of NCCL that make up each collective; what only moves, moves as bytes."""

    def __init__(
        self, link: Link, source: Any, target: Any, op: str, peer: int,
        sends: Sequence[int], receives: Sequence[int],
    ) -> None:  # fmt: skip
        self.link, self.comm, self.stream = link, link.comm, link.stream.ptr
        self.source, self.target, self.peer = source, target, peer
        self.op, self.sends, self.receives = op, sends, receives
        self.size, self.rank = link.group.size, link.group.rank
        self.bytes = link.kind("uint8")

    def all_reduce(self) -> None:
        a = self.target
        kind, op = self.link.kind(a.dtype), self.link.op(self.op)
        self.comm.allReduce(_at(self.source), _at(a), a.size, kind, op, self.stream)

    def reduce(self) -> None:
        a = self.source
        kind, op = self.link.kind(a.dtype), self.link.op(self.op)
        into = _at(self.target) if self.rank == self.peer else _at(a)
        self.comm.reduce(_at(a), into, a.size, kind, op, self.peer, self.stream)

    def reduce_scatter(self) -> None:
        a = self.target
        kind, op = self.link.kind(a.dtype), self.link.op(self.op)
        self.comm.reduceScatter(_at(self.source), _at(a), a.size, kind, op, self.stream)

    def broadcast(self) -> None:
        a = self.target
        self.comm.broadcast(_at(a), _at(a), a.nbytes, self.bytes, self.peer, self.stream)

    def all_gather(self) -> None:
        a = self.source
        self.comm.allGather(_at(a), _at(self.target), a.nbytes, self.bytes, self.stream)

    def all_to_all(self) -> None:
        width = self.source.itemsize
        self._messages([n * width for n in self.sends], [n * width for n in self.receives])

    def gather(self) -> None:
        n, here = self.source.nbytes, self.rank == self.peer
        sends = [n * (rank == self.peer) for rank in range(self.size)]
        self._messages(sends, [n * here] * self.size)

    def scatter(self) -> None:
        n, here = self.target.nbytes, self.rank == self.peer
        receives = [n * (rank == self.peer) for rank in range(self.size)]
        self._messages([n * here] * self.size, receives)

    def _messages(self, sends: Sequence[int], receives: Sequence[int]) -> None:
        """Send and receive so many bytes, one part after the other."""
        given, taken = 0, 0
        self.link.nccl.groupStart()
        for peer, (out, back) in enumerate(zip(sends, receives, strict=True)):
            if out:
                self.comm.send(_at(self.source) + given, out, self.bytes, peer, self.stream)
            if back:
                self.comm.recv(_at(self.target) + taken, back, self.bytes, peer, self.stream)
            given, taken = given + out, taken + back
        self.link.nccl.groupEnd()


def _at(array: Any) -> int:
    return int(array.data.ptr)


class _Watch:
    """Looks at transfers under way, in a thread that lives while there are any.

    It keeps their arrays, so that nothing is freed while NCCL uses it.
    """

    def __init__(self, comm: Any, index: int, kind: type[Exception], who: str) -> None:
        self._comm, self._index, self._kind, self._who = comm, index, kind, who
        self._open: deque[tuple[Any, str, float, Sequence[Any]]] = deque()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.error: DistributedError | None = None
        self._closed = False

    def add(self, done: Any, call: str, timeout_s: float, arrays: Sequence[Any]) -> None:
        """Look after a transfer until the event ``done``."""
        with self._lock:
            self._open.append((done, call, time.monotonic() + timeout_s, arrays))
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._serve, name="distgrad-nccl", daemon=True
                )
                self._thread.start()

    def fail(self, call: str, reason: str) -> DistributedError:
        """Abort everything and return the error that says why; later calls raise it too."""
        self.error = DistributedError(
            f"{call}: NCCL on {self._who}: {reason}; what it was to bring is wrong, so the ranks "
            "must start again from a checkpoint"
        )
        self._comm.abort()
        return self.error

    def close(self) -> None:
        """Release the communicator; what is under way is given up."""
        with self._lock:
            self._closed = True
            self._open.clear()
        if self.error is None:
            self._comm.destroy()

    def _serve(self) -> None:
        cupy().cuda.Device(self._index).use()  # a thread begins with GPU 0
        while self._look():
            time.sleep(_LOOK_S)

    def _look(self) -> bool:
        """Drop transfers that are complete; return whether any is left."""
        with self._lock:
            while self._open and self._open[0][0].done:
                self._open.popleft()
            if not self._open or self._closed or self.error is not None:
                self._open.clear()
                self._thread = None
                return False
            _, call, deadline, _ = min(self._open, key=lambda one: one[2])
        try:
            self._comm.check_async_error()
        except self._kind as error:
            self.fail(call, str(error))
        if time.monotonic() > deadline:
            self.fail(call, "not complete in time, as another rank is late, stuck or has ended")
        return True
