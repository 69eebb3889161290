"""Ranks of one host that read each other's GPU memory, where NCCL will not connect them.

NCCL refuses two ranks on one GPU. These exchange numbers on the GPU all the same: each rank has a
window of its memory, which the others of its host read through a handle of CUDA's (processes) or
at its address (threads of one process). Not yet run on a GPU.

Note [Turns]
    An array goes through the windows piece by piece. In a turn each rank lets its stream copy its
    part into its window and record an event ``full``; then it says so, by a number in memory that
    all ranks of the host see. Who has heard it from all lets its stream wait for all these events
    and read the windows. An event that is waited for before it is
    recorded is no wait at all, hence the number. A window has two halves for turns in turn: the
    ``full`` event of the turn in between lies behind the reading of a half on every rank's stream,
    so a half is filled again when nobody reads it. Hosts wait for hosts, and never for a GPU.

Note [Same bits as by the host]
    Every rank adds what is in the windows in the order in which the host adds: pairs of ranks,
    pairs of pairs, or the tree of virtual shards that a `Turn` has. Narrow floats are added in
    float32 and rounded once, but in a tree of shards after each addition. One kernel reads all
    windows, in an order that is compiled into it; no product is fused into an addition, and small
    numbers are not flushed to zero, so the bits are the host's. Integers go by CuPy's calls.

Note [Who drives]
    A turn needs someone who listens. That is a thread, which lives while transfers are open, and
    whoever waits for one. Transfers take the windows one after the other, in the order of calls,
    which is the same on all ranks; each turn says which call it belongs to, and is compared.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
import time
import weakref
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from distgrad.backend import capture as captures
from distgrad.backend.device import array_namespace
from distgrad.backend.forms import device_form
from distgrad.distributed.late import Watched
from distgrad.distributed.shared import fence
from distgrad.distributed.staging import cupy
from distgrad.distributed.tree import Order, Subtree, order_of
from distgrad.distributed.waiting import nap_s, wait_for
from distgrad.distributed.work import Work
from distgrad.errors import RankLost

if TYPE_CHECKING:
    from distgrad.distributed.group import ProcessGroup
    from distgrad.distributed.nccl import Turn
    from distgrad.distributed.shared import Slab

SIGNALS = 4  # the turn, what it is for (odd and even ones), and whether the rank has ended
_TURN, _PURPOSE, _END = 0, 1, 3
_ENDED, _FAILED = 1, 2
_ROUND_BITS = 24
ALIGNMENT = 256  # bytes, of a part of a half; a half has one for each rank at least
_LEAVE_S = 2.0  # for the others to close their handles
_SPEAK_S = 0.5  # for a rank that has failed to raise its own error
_COMBINE = {"sum": "add", "avg": "add", "prod": "multiply", "min": "minimum", "max": "maximum"}
_KINDS = "iuf"


class PeerError(RuntimeError):
    """Another rank has ended or failed."""


# ---------------------------------------------------------------------- windows
class Window:
    """One rank's window: two halves of raw memory, and for each the event of Note [Turns].

    Args:
        nbytes: of both halves.
    """

    def __init__(self, nbytes: int) -> None:
        cuda = cupy().cuda
        half = max(nbytes // 2 // ALIGNMENT, 1) * ALIGNMENT
        self.half_bytes, self.number = half, next(_numbers)
        # Not of the pool: a handle is one of a whole piece that cudaMalloc gave.
        self.memory = [cuda.Memory(half) for _ in range(2)]
        self.full = [cuda.Event(disable_timing=True, interprocess=True) for _ in range(2)]
        _windows[self.number] = self

    def offer(self) -> Offer:
        """Return what other ranks need to read it."""
        runtime = cupy().cuda.runtime
        memory = [bytes(runtime.ipcGetMemHandle(m.ptr)) for m in self.memory]
        events = [bytes(runtime.ipcGetEventHandle(e.ptr)) for e in self.full]
        device = int(runtime.getDevice())
        return Offer(_process(), self.number, device, self.half_bytes, memory, events)


class Offer(NamedTuple):
    """Handles of a window, as they travel between ranks."""

    process: object
    number: int
    device: int
    half_bytes: int
    memory: list[bytes]
    events: list[bytes]


_numbers = itertools.count(1)
_windows: weakref.WeakValueDictionary[int, Window] = weakref.WeakValueDictionary()
_left: list[Window] = []  # that others may still have open


_SALT = os.urandom(8)  # containers of one host may give the same number to two processes


def _process() -> object:
    """Return what tells the processes of a host apart."""
    return os.getpid(), _SALT


class Opened:
    """A rank's window as another one sees it.

    Args:
        offer: what the rank gave.
        index: this rank's GPU.

    Raises:
        CUDARuntimeError: CUDA does not open the handles.
        PeerError: the GPUs cannot read each other's memory.
    """

    def __init__(self, offer: Offer, index: int) -> None:
        runtime = self._runtime = cupy().cuda.runtime
        self.half_bytes, self._index = offer.half_bytes, index
        self._foreign = offer.process != _process()
        self._keeps = None if self._foreign else _windows[offer.number]
        self._addresses: list[int] = []
        self._events: list[int] = []
        if self._keeps is None:
            try:
                for handle in offer.memory:
                    self._addresses.append(runtime.ipcOpenMemHandle(handle))
                for handle in offer.events:
                    self._events.append(runtime.ipcOpenEventHandle(handle))
            except runtime.CUDARuntimeError:
                self.close()
                raise
        else:
            _reach(index, offer.device)
            self._addresses = [memory.ptr for memory in self._keeps.memory]
            self._events = [event.ptr for event in self._keeps.full]

    def part(self, half: int, begin: int, count: int, dtype: Any) -> Any:
        """Return a part of a half as an array to read."""
        address = self._addresses[half] + begin
        return array_at(address, count, dtype, self, self._index)

    def wait(self, half: int, stream: Any) -> None:
        """Let a stream wait until a half is full."""
        cupy().cuda.runtime.streamWaitEvent(stream.ptr, self._events[half])

    def close(self) -> None:
        """Give the handles back."""
        if self._foreign:
            for address in self._addresses:
                self._runtime.ipcCloseMemHandle(address)
            for event in self._events:
                self._runtime.eventDestroy(event)
        self._addresses, self._events, self._keeps = [], [], None


def _reach(here: int, there: int) -> None:
    """Let this GPU read the memory of another one, which the same process has."""
    runtime = cupy().cuda.runtime
    if here == there:
        return
    if not runtime.deviceCanAccessPeer(here, there):
        raise PeerError(f"cuda:{here} cannot read the memory of cuda:{there}")
    try:
        runtime.deviceEnablePeerAccess(there)
    except runtime.CUDARuntimeError as error:
        if "AlreadyEnabled" not in str(error):
            raise


def array_at(address: int, count: int, dtype: Any, owner: object, index: int) -> Any:
    """Return an array of ``count`` elements that lie at an address of a GPU."""
    module, kind = cupy(), np.dtype(dtype)
    memory = module.cuda.UnownedMemory(address, max(count, 1) * kind.itemsize, owner, index)
    return module.ndarray((count,), kind, module.cuda.MemoryPointer(memory, 0))


# ---------------------------------------------------------------------- calls
class Call(NamedTuple):
    """One call as NCCL has it: addresses, a count of elements, and to or from whom."""

    name: str
    source: int
    target: int
    size: int
    dtype: Any
    op: str = ""
    peer: int = -1


class Round(NamedTuple):
    """What a rank does in one turn: pieces to write, and how to read what all have written."""

    writes: Sequence[tuple[int, int, int]]  # address, bytes, place in the half
    read: Callable[[int], None]  # takes the half


class Communicator:
    """Takes calls as `cupy.cuda.nccl.NcclCommunicator` does, and keeps them for `Link`."""

    def __init__(self, slab: Slab, window: Window) -> None:
        self._slab, self._window = slab, window
        self._failed_at = math.inf  # when another rank was first seen to have failed
        self.calls: list[Call] = []
        self.close: Callable[[], None] = lambda: None

    def allReduce(self, a: int, b: int, count: int, dtype: Any, op: Any, stream: int) -> None:
        """Reduce over the ranks, for all of them."""
        self.calls.append(Call("reduce", a, b, count, dtype, op))

    def reduce(
        self, a: int, b: int, count: int, dtype: Any, op: Any, root: int, stream: int
    ) -> None:
        """Reduce over the ranks, for one of them."""
        self.calls.append(Call("reduce", a, b, count, dtype, op, root))

    def reduceScatter(self, a: int, b: int, count: int, dtype: Any, op: Any, stream: int) -> None:
        """Reduce over the ranks; each gets its part."""
        self.calls.append(Call("reduce_scatter", a, b, count, dtype, op))

    def broadcast(self, a: int, b: int, count: int, dtype: Any, root: int, stream: int) -> None:
        """Give all ranks what one has."""
        self.calls.append(Call("broadcast", a, b, count, dtype, "", root))

    def allGather(self, a: int, b: int, count: int, dtype: Any, stream: int) -> None:
        """Give all ranks what all have."""
        self.calls.append(Call("all_gather", a, b, count, dtype))

    def send(self, a: int, count: int, dtype: Any, peer: int, stream: int) -> None:
        """Send to a rank."""
        self.calls.append(Call("send", a, 0, count, dtype, "", peer))

    def recv(self, b: int, count: int, dtype: Any, peer: int, stream: int) -> None:
        """Receive from a rank."""
        self.calls.append(Call("recv", 0, b, count, dtype, "", peer))

    def groupStart(self) -> None:
        """Do nothing: calls are gathered anyway."""

    groupEnd = groupStart

    def check_async_error(self) -> None:
        """Raise if another rank has failed."""
        for rank, row in enumerate(self._slab.signals):
            if row[_END] == _FAILED and self.had_its_say():
                raise PeerError(f"rank {rank} has failed")

    def had_its_say(self) -> bool:
        """Return whether a rank that failed had time to say why, which is worth more than that."""
        self._failed_at = min(self._failed_at, time.monotonic())
        return time.monotonic() - self._failed_at > _SPEAK_S

    def abort(self) -> None:
        """Tell the others that nothing will come; they may be reading what came before."""
        _left.append(self._window)
        self._slab.say(_END, _FAILED)

    def destroy(self) -> None:
        """Release the windows."""
        self.close()


class Rounds:
    """Cuts calls into pieces that fit into a half of the windows.

    Args:
        opened: the windows of all ranks.
        rank: whose rounds they are.
        index: its GPU.
    """

    def __init__(self, opened: Sequence[Opened], rank: int, index: int) -> None:
        self._opened, self._rank, self._index = opened, rank, index
        self._half = min(window.half_bytes for window in opened)
        self._room = self._half // len(opened) // ALIGNMENT * ALIGNMENT  # of a part for each rank

    def of(self, calls: Sequence[Call], parts: Sequence[Subtree]) -> list[Round]:
        """Return the rounds of calls; sums are in the order of ``parts``, as by `reduce_into`."""
        sends = [call for call in calls if call.name in ("send", "recv")]
        found = list(self._messages(sends)) if sends else []
        for call in calls:
            if call.name == "reduce_scatter":
                found += self._reduce_scatter(call, parts)
            elif call.name == "reduce":
                found += self._reduce(call, parts)
            elif call not in sends:
                found += self._gather(call)
        return found

    def _at(self, address: int, count: int, dtype: Any) -> Any:
        return array_at(address, count, dtype, self, self._index)

    def _pieces(self, count: int, most: int) -> Iterator[tuple[int, int]]:
        """Yield begin and length of pieces of at most so many elements."""
        for begin in range(0, count, most):
            yield begin, min(most, count - begin)

    def _reduce(self, call: Call, parts: Sequence[Subtree]) -> Iterator[Round]:
        width = np.dtype(call.dtype).itemsize
        for begin, n in self._pieces(call.size, self._half // width):
            here = call.target + begin * width

            def read(half: int, here: int = here, n: int = n) -> None:
                if call.peer in (-1, self._rank):
                    arrays = [w.part(half, 0, n, call.dtype) for w in self._opened]
                    reduce_into(call.op, parts, arrays, self._at(here, n, call.dtype))

            yield Round([(call.source + begin * width, n * width, 0)], read)

    def _reduce_scatter(self, call: Call, parts: Sequence[Subtree]) -> Iterator[Round]:
        width, ranks = np.dtype(call.dtype).itemsize, range(len(self._opened))
        room = self._room  # for each rank's part
        for begin, n in self._pieces(call.size, room // width):
            writes = [
                (call.source + (rank * call.size + begin) * width, n * width, rank * room)
                for rank in ranks
            ]
            here = call.target + begin * width

            def read(half: int, here: int = here, n: int = n) -> None:
                arrays = [w.part(half, self._rank * room, n, call.dtype) for w in self._opened]
                reduce_into(call.op, parts, arrays, self._at(here, n, call.dtype))

            yield Round(writes, read)

    def _gather(self, call: Call) -> Iterator[Round]:
        """Yield the rounds of an all-gather or a broadcast."""
        width, all_ = np.dtype(call.dtype).itemsize, call.peer < 0
        nbytes = call.size * width
        for begin, n in self._pieces(nbytes, self._half):
            source = call.source + begin
            writes = [(source, n, 0)] if all_ or call.peer == self._rank else []

            def read(half: int, begin: int = begin, n: int = n) -> None:
                for rank, window in enumerate(self._opened):
                    if all_ or rank == call.peer != self._rank:
                        here = call.target + begin + rank * nbytes * all_
                        self._copy(window.part(half, 0, n, np.uint8), here)

            yield Round(writes, read)

    def _messages(self, calls: Sequence[Call]) -> Iterator[Round]:
        """Yield the rounds in which each rank writes a part for each other one."""
        slot = self._room
        sizes = [call.size * np.dtype(call.dtype).itemsize for call in calls]
        for begin in range(0, max(sizes), slot):
            pieces = [
                (call, min(slot, size - begin))
                for call, size in zip(calls, sizes, strict=True)
                if size > begin
            ]
            writes = [
                (call.source + begin, n, call.peer * slot)
                for call, n in pieces
                if call.name == "send"
            ]
            takes = [(call, n) for call, n in pieces if call.name == "recv"]

            def read(
                half: int, begin: int = begin, takes: Sequence[tuple[Call, int]] = takes
            ) -> None:
                for call, n in takes:
                    part = self._opened[call.peer].part(half, self._rank * slot, n, np.uint8)
                    self._copy(part, call.target + begin)

            yield Round(writes, read)

    def _copy(self, part: Any, address: int) -> None:
        cupy().copyto(self._at(address, part.size, np.uint8), part)


def reduce_into(op: str, parts: Sequence[Subtree], arrays: Sequence[Any], out: Any) -> None:
    """Leave the reduction of ``arrays``, which stay as they are, in ``out``, on this stream.

    Args:
        op: the reduction.
        parts: the shards that each array is of; none for pairs of ranks.
        arrays: one for each rank.
        out: another array.
    """
    order = order_of(tuple(parts) or tuple([Subtree(rank, 1) for rank in range(len(arrays))]))
    reduce_windows(array_namespace(out), op, order, arrays, out, bool(parts))


@device_form
def reduce_windows(
    xp: Any, op: str, order: Order, arrays: Sequence[Any], out: Any, rounds: bool
) -> None:
    """Leave the reduction of ``arrays`` in ``out``, where one kernel does not do it.

    Args:
        op: the reduction.
        order: of the operations.
        arrays: one for each rank.
        out: another array.
        rounds: round 16-bit floats after each operation, and not at last.
    """
    module = cupy()
    narrow = not rounds and out.dtype.itemsize == 2 and out.dtype.kind not in "iu"
    wide = [a.astype(np.float32) for a in arrays] if narrow else list(arrays)
    total = _folded(getattr(module, _COMBINE[op]), order, wide)
    if op == "avg":
        total = module.divide(total, len(arrays))
    module.copyto(out, total, casting="unsafe")


def _folded(combine: Any, order: Order, arrays: Sequence[Any]) -> Any:
    """Return the reduction in an order, made in new arrays."""
    if isinstance(order, int):
        return arrays[order]
    return combine(_folded(combine, order[0], arrays), _folded(combine, order[1], arrays))


# ---------------------------------------------------------------------- transfers
class Moving(Work):
    """A transfer that is put on the stream turn by turn."""

    __slots__ = ("_link", "arrays", "over", "rounds", "turn")

    def __init__(
        self, link: Link, turn: Turn, call: str, rounds: Sequence[Round], arrays: Sequence[Any]
    ) -> None:
        super().__init__(call, link.group.sequence)
        self._link, self.turn, self.rounds, self.arrays = link, turn, rounds, arrays
        self.over = False

    def test(self) -> bool:
        """Return whether all of it is on the stream; never waits for the GPU."""
        if not self.over:
            self._link.push()
            self._link.check()
        return self.over

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when all of it is on the stream."""
        group = self._link.group
        wait_for(self, group, group.timeout_s if timeout_s is None else timeout_s)

    def is_completed(self) -> bool:
        """Return whether a push has put the last turn on the stream."""
        return self.over


class Link(Watched):
    """The windows of the ranks of a host, and the stream that fills and reads them.

    It has what `distgrad.distributed.nccl.Link` has.

    Args:
        channel: whose ranks are connected.
        index: the GPU of this rank.
        window: this rank's.
        opened: those of all ranks.
        slab: memory that they all see, for `SIGNALS`.
    """

    way = "CUDA IPC"

    def __init__(
        self, channel: ProcessGroup, index: int, window: Window, opened: Sequence[Opened],
        slab: Slab,
    ) -> None:  # fmt: skip
        self.nccl = Communicator(slab, window)
        super().__init__(channel, index, self.nccl, PeerError)
        self._window, self._opened, self._slab = window, opened, slab
        self._cutter = Rounds(opened, channel.rank, index)
        self._queue: deque[Moving] = deque()
        self._steps: Iterator[None] | None = None  # of the first in the queue
        self._turn = 0
        # Who listens pushes other transfers of its channel meanwhile, and they may come back here:
        # to queue a transfer is allowed then, to go on with the one that listens is not.
        self._queueing, self._stepping = threading.Lock(), threading.Lock()
        self._thread = _Driver(self)
        self.comm.close = _Release(window, opened, slab, self.stream, index)

    def takes(self, dtype: Any, op: str) -> bool:
        """Return whether windows are reduced by this operation in this dtype."""
        kind = np.dtype(dtype)
        return op in _COMBINE and (kind.kind in _KINDS or kind.name == "bfloat16")

    def kind(self, dtype: Any) -> Any:
        """Return a dtype as calls take it."""
        return np.dtype(dtype)

    def op(self, name: str) -> Any:
        """Return a reduction as calls take it."""
        return name

    def run(self, turn: Turn, call: str, launch: Callable[[], None], arrays: Sequence[Any]) -> None:
        """Put calls in the queue for the stream, behind ``turn.ready``, before ``turn.done``."""
        captures.refuse(
            call,
            "these ranks read each other's memory turn by turn",
            'give each rank a GPU of its own, and take determinism "run" or "off"',
        )
        self.check()
        with self._queueing:
            launch()
            calls, self.comm.calls = self.comm.calls, []
            moving = Moving(self, turn, call, self._cutter.of(calls, turn.parts), arrays)
            self._queue.append(moving)
        turn.launched, turn.work = True, moving
        self.group.sequence += 1
        self.push()
        if not moving.over:
            self._thread.wake()

    def push(self) -> bool:
        """Go on as far as the other ranks let; return whether transfers are open. Never raises."""
        if not self._queue or not self._stepping.acquire(blocking=False):
            return bool(self._queue)
        try:
            while self._queue and self._watch.error is None:
                if not self._step(self._queue[0]):
                    return True
            if self._watch.error is not None:
                self._queue.clear()
            return False
        finally:
            self._stepping.release()

    def _step(self, moving: Moving) -> bool:
        """Push the first transfer; return whether it is over."""
        if self._steps is None:
            self._steps = self._turns(moving)
        try:
            with cupy().cuda.Device(self.index), self.stream:
                for _ in self._steps:
                    return False
        except RankLost as error:  # that another channel was told of, and `shrink` can mend
            self._watch.lose(error)
            return True
        except Exception as error:  # belongs to who waits for it, whatever it is
            self._watch.fail(moving.call, str(error))
            return True
        self._steps = None
        self._queue.popleft()
        self._watch.add(moving.turn.done, moving.call, self.group.timeout_s, moving.arrays)
        moving.over = True
        return True

    def _turns(self, moving: Moving) -> Iterator[None]:
        """Put a transfer on the stream; yields where it waits for other ranks' hosts."""
        stream, done, total = self.stream, 0, max(1, len(moving.rounds))
        stream.wait_event(moving.turn.ready)
        while done < total:
            self._turn += 1
            half = self._turn & 1
            mine = moving.rounds[done] if done < len(moving.rounds) else None
            self._fill(half, mine.writes if mine is not None else ())
            self._say(half, moving.call, len(moving.rounds))
            while not self._heard():
                yield
            total = max(total, self._agreed(half, moving.call))
            for window in self._opened:
                window.wait(half, stream)
            if mine is not None:
                mine.read(half)
            done += 1
        moving.turn.done.record(stream)

    def _fill(self, half: int, writes: Sequence[tuple[int, int, int]]) -> None:
        """Copy pieces to a half that nobody reads any more."""
        cuda, memory = cupy().cuda, self._window.memory[half]
        for address, nbytes, place in writes:
            room = cupy().ndarray((nbytes,), np.uint8, cuda.MemoryPointer(memory, place))
            cupy().copyto(room, array_at(address, nbytes, np.uint8, self, self.index))
        self._window.full[half].record(self.stream)

    # What ranks say: the turn they are at, and what it is for

    def _say(self, half: int, call: str, rounds: int) -> None:
        row = self._slab.signals[self._slab.place]
        row[_PURPOSE + half] = _purpose(call) << _ROUND_BITS | rounds
        self._slab.say(_TURN, self._turn)

    def _heard(self) -> bool:
        """Return whether all ranks have recorded this turn.

        Raises:
            PeerError: a rank will not.
        """
        rows, turn = self._slab.signals, self._turn
        late = [rank for rank, row in enumerate(rows) if row[_TURN] < turn]
        for rank in late:
            end = rows[rank][_END]
            fence()
            never = end == _ENDED or (end and self.nccl.had_its_say())
            if never and rows[rank][_TURN] < turn:
                raise PeerError(f"rank {rank} has ended, and will not come")
        fence()  # what they said for this turn is there
        if late:
            self._slab.poll()
        return not late

    def _agreed(self, half: int, call: str) -> int:
        """Return how many rounds the rank with the most of them has.

        Raises:
            PeerError: ranks make different calls.
        """
        said = [row[_PURPOSE + half] for row in self._slab.signals]
        for rank, word in enumerate(said):
            if word >> _ROUND_BITS != _purpose(call):
                raise PeerError(f"rank {rank} makes another call; make the same ones in one order")
        return max(word & ((1 << _ROUND_BITS) - 1) for word in said)


def _purpose(call: str) -> int:
    return zlib.crc32(call.encode())


class _Driver:
    """The thread that pushes a link's transfers; see Note [Who drives]."""

    def __init__(self, link: Link) -> None:
        self._link = weakref.ref(link)  # the thread must not keep it
        self._lock = threading.Lock()
        self._runs = False

    def wake(self) -> None:
        """See to it that the thread runs."""
        with self._lock:
            if not self._runs:
                self._runs = True
                threading.Thread(target=self._serve, name="distgrad-ipc", daemon=True).start()

    def _serve(self) -> None:
        began = time.monotonic()
        while True:
            link = self._link()
            with self._lock:
                if link is None or not link.push():
                    self._runs = False
                    return
            del link
            time.sleep(nap_s(time.monotonic() - began))


class _Release:
    """Gives windows back: this rank's only when the others have closed their handles."""

    def __init__(
        self, window: Window, opened: Sequence[Opened], slab: Slab, stream: Any, index: int
    ) -> None:
        self._window, self._opened, self._slab = window, opened, slab
        self._stream, self._device = stream, cupy().cuda.Device(index)

    def __call__(self) -> None:
        """Close the handles, say so, and wait a little for the others to do the same."""
        with self._device:
            foreign = any(window._foreign for window in self._opened)
            self._stream.synchronize()
            for window in self._opened:
                window.close()
        self._slab.say(_END, _ENDED)
        deadline = time.monotonic() + _LEAVE_S
        while foreign and not all(row[_END] for row in self._slab.signals):
            if time.monotonic() > deadline:
                _left.append(self._window)  # the driver takes it back when the process ends
                return
            time.sleep(1e-3)
