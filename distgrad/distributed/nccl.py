"""NCCL between ranks that have a GPU each, through CuPy, on a stream beside the one that computes.

Note [Which way]
    Ranks whose tensors lie on GPUs tell each other once, per group and channel, where these are.
    If all have one of their own and CuPy finds NCCL, tensors go from GPU to GPU. Otherwise, as with
    ranks that share a GPU, which NCCL refuses, ranks of one host read each other's memory; see
    `ipc`. Where CUDA does not let them, or they are on several hosts, tensors go by way of the
    host; see `staging`.

Note [Nobody waits for the GPU]
    A transfer waits, on its stream, for an event of the stream that computes; who uses the result
    lets its stream wait for the event of the transfer. A thread looks at these events and at NCCL's
    own reports meanwhile. A transfer that fails, or is not complete in time, is aborted, so that
    nothing on the GPU waits for it for ever, and the next call raises the reason.

Note [Bits of NCCL]
    The order of additions is NCCL's: the same bits for the same ranks and wires, which is
    determinism "run". "world" takes another way, whose order is that of `tree`.
"""

from __future__ import annotations

import platform
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from distgrad.backend import capture as captures
from distgrad.backend.device import device_of
from distgrad.config import switch
from distgrad.distributed import ipc
from distgrad.distributed.collective import Steps, agreed, exchanged
from distgrad.distributed.late import Watched
from distgrad.distributed.staging import cupy
from distgrad.distributed.tree import Subtree, Tree
from distgrad.distributed.work import Work
from distgrad.errors import DeviceError, DistributedError
from distgrad.tensor import Tensor
from distgrad.typing import Array

if TYPE_CHECKING:
    from distgrad.distributed.group import ProcessGroup

_BOOT = Path("/proc/sys/kernel/random/boot_id")
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
        link: NCCL or windows, None where tensors go by way of the host.
        why: it is not NCCL, or there is none.
    """

    __slots__ = ("index", "link", "why")

    def __init__(self, index: int, link: AnyLink | None, why: str) -> None:
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
        link: AnyLink | None = None
        if why and channel.size > 1:
            link, more = _windows(channel, index, [place for place, _ in said])
            why += more
        elif channel.size > 1:
            link = Link(channel, index, said[0][1])
        gpus = channel.gpus = Gpus(index, link, why)
        if why and link is None and channel.nccl_wanted and channel.rank == 0:
            warnings.warn(
                f'init_process_group("nccl"): {why}; tensors go by way of the host instead',
                stacklevel=2,
            )
    if gpus.link is not None and gpus.index != index:
        raise DeviceError(
            f"{what} on cuda:{index}: this rank communicates with cuda:{gpus.index}, and "
            f"{gpus.link.way} connects one GPU of each rank; move the tensor to cuda:{gpus.index}"
        )
    return gpus


def _windows(
    channel: ProcessGroup, index: int, places: Sequence[Place]
) -> tuple[ipc.Link | None, str]:
    """Return windows between ranks of one host that NCCL does not connect; or why there are none.

    Ranks: all of the channel.
    """
    mebibytes = switch("gpu_window")
    if len({place.host for place in places}) > 1:
        return None, ", and the ranks are on several hosts"
    said: list[Any] = []
    call = "windows of GPU memory"
    slab = channel.shared_memory(0, ipc.SIGNALS)
    with cupy().cuda.Device(index):
        least = 2 * ipc.ALIGNMENT * channel.size
        wanted = mebibytes > 0 and slab is not None
        window, offer = _offered(max(int(mebibytes * 2**20), least) if wanted else 0)
        channel.submit(call, _telling(channel, call, offer, said)).wait()
        opened, wrong = _opened(said, index)
        heard: list[Any] = []
        channel.submit(call, _telling(channel, call, wrong, heard)).wait()
        why = next((f", and rank {r} has {text}" for r, text in enumerate(heard) if text), "")
        if why or window is None or slab is None:
            for each in opened:
                each.close()
            # Nobody's memory may go before the others have closed their handles of it.
            channel.submit(call, _telling(channel, call, "", [])).wait()
            return None, why
    return ipc.Link(channel, index, window, opened, slab), ""


def _offered(nbytes: int) -> tuple[ipc.Window | None, ipc.Offer | str]:
    """Return a window and its handles, or why there is none."""
    if not nbytes:
        return None, "no window of its GPU's memory"
    try:
        window = ipc.Window(nbytes)
        return window, window.offer()
    except (cupy().cuda.runtime.CUDARuntimeError, MemoryError) as error:
        return None, f"no handles of its GPU's memory: {error}"


def _opened(offers: Sequence[Any], index: int) -> tuple[list[ipc.Opened], str]:
    """Return the windows of all ranks, and what went wrong."""
    opened: list[ipc.Opened] = []
    for rank, offer in enumerate(offers):
        if isinstance(offer, str):
            return opened, f"no window of rank {rank}, which has {offer}"
        try:
            opened.append(ipc.Opened(offer, index))
        except (cupy().cuda.runtime.CUDARuntimeError, ipc.PeerError) as error:
            return opened, f"no access to the GPU memory of rank {rank}: {error}"
    return opened, ""


def _telling(channel: ProcessGroup, call: str, value: object, into: list[Any]) -> Steps:
    yield from agreed(channel, call)
    yield from exchanged(channel, call, value, into)


def link_of(channel: ProcessGroup, array: Array, what: str) -> AnyLink | None:
    """Return what connects the GPUs of such arrays; None for arrays of the host, or where is none.

    Ranks: all of the channel, the first time.
    """
    if channel.size == 1 or isinstance(array, np.ndarray):
        return None
    return meet(channel, device_of(array).index or 0, what).link


def link_between(
    channel: ProcessGroup, tensors: Sequence[Tensor], determinism: str, tree: Tree
) -> AnyLink | None:
    """Return what connects the GPUs of the tensors, if its order of additions will do.

    Args:
        channel: of the ranks.
        tensors: any of them on GPUs.
        determinism: "world" asks for the order of ``tree``.
        tree: NCCL has an order of its own; windows have this one if each rank brings one sum.

    Ranks: all of the channel, with tensors on the same kinds of devices.
    """
    indices = [device_of(t.array).index for t in tensors if t.is_cuda]
    if not indices or channel.size == 1:
        return None
    link = meet(channel, indices[0] or 0, "parameters").link
    if determinism == "world":
        whole = all(len(part) == 1 for part in tree.parts)
        return link if isinstance(link, ipc.Link) and whole else None
    return link


def _meeting(channel: ProcessGroup, call: str, index: int, said: list[Any]) -> Steps:
    place = place_of(index)
    key = nccl_module().get_unique_id() if channel.rank == 0 and not place.lacks else None
    yield from agreed(channel, call)
    yield from exchanged(channel, call, (place, key), said)


class Link(Watched):
    """A communicator of NCCL and its stream.

    Args:
        channel: whose ranks are connected.
        index: the GPU of this rank.
        key: rank 0's unique id.

    Ranks: all of the channel.
    """

    way = "NCCL"

    def __init__(self, channel: ProcessGroup, index: int, key: bytes) -> None:
        nccl = self.nccl = nccl_module()
        with cupy().cuda.Device(index):
            try:
                comm = nccl.NcclCommunicator(channel.size, key, channel.rank)
            except nccl.NcclError as error:
                raise DistributedError(
                    f"NCCL on cuda:{index}, rank {channel.rank} of {channel.size}: {error}; run "
                    "with NCCL_DEBUG=INFO to see what it tried, and NCCL_SOCKET_IFNAME to choose "
                    "a network interface"
                ) from error
        super().__init__(channel, index, comm, nccl.NcclError)
        self._lock = threading.Lock()

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
        capture = captures.current()
        if capture is None:
            self._watch.add(turn.done, call, self.group.timeout_s, arrays)
        else:  # the event is only recorded: each replay is watched instead
            capture.keep((self, turn, arrays))
            capture.before_replay(self.check)
            capture.after_replay(self.watch_replay)

    def watch_replay(self) -> None:
        """Look after the transfers of a graph that was launched on the current stream."""
        with cupy().cuda.Device(self.index):
            done = cupy().cuda.get_current_stream().record(cupy().cuda.Event(disable_timing=True))
        self._watch.add(done, "a captured step", self.group.timeout_s, ())


class Turn:
    """One call's place on a link: behind what the caller's stream has done, before what follows.

    Args:
        link: NCCL, or windows.
        parts: the shards whose sum each rank brings; windows add in the order of their tree.
    """

    __slots__ = ("done", "launched", "link", "parts", "ready", "work")

    def __init__(self, link: AnyLink, parts: Sequence[Subtree] = ()) -> None:
        self.link, self.parts, self.launched = link, parts, False
        self.work: Work | None = None  # until all of the transfer is on the stream
        self._make_events()

    def _make_events(self) -> None:
        cuda = cupy().cuda
        with cuda.Device(self.link.index):
            self.ready = cuda.Event(disable_timing=True)
            self.done = cuda.Event(disable_timing=True)

    def take(self) -> None:
        """Come after what the current stream has done until now."""
        if captures.current() is not None:  # the thread of `late` may not ask recorded events
            self._make_events()
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
            if self.work is not None:
                self.work.wait()
                self.work = None
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
        """Start the transfer; the host waits for no GPU after that, at most for other hosts."""
        self.run(collective, call, source, target, op, peer, sends, receives)
        if self.work is not None:
            yield self.work

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
        self, link: AnyLink, source: Any, target: Any, op: str, peer: int,
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


AnyLink: TypeAlias = Link | ipc.Link


def _at(array: Any) -> int:
    return int(array.data.ptr)
