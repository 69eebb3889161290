"""The stand-in's ``cupy.cuda.nccl``: NCCL between the threads of one process, or processes.

Arguments, their order and the errors are CuPy's.  A call here returns when all ranks have made it;
NCCL's returns at once.  What NCCL leaves undefined or would wait for without end is an error: ranks
that disagree about a call, a rank that does not come, a message that nobody takes.
"""

from __future__ import annotations

import functools
import os
import pickle
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from distgrad.testing.standin.ledger import ledger
from distgrad.testing.standin.streams import (
    LOCK,
    Stream,
    _bytes,
    here,
    machine,
    memory_at,
    note,
    null_stream,
)

PATIENCE_S = 20.0
ID_BYTES = 128
_TYPES = {
    "INT8": 0, "CHAR": 0, "UINT8": 1, "INT32": 2, "INT": 2, "UINT32": 3, "INT64": 4, "UINT64": 5,
    "FLOAT16": 6, "HALF": 6, "FLOAT32": 7, "FLOAT": 7, "FLOAT64": 8, "DOUBLE": 8, "BFLOAT16": 9,
}  # fmt: skip
_OPS = {"SUM": 0, "PROD": 1, "MAX": 2, "MIN": 3, "AVG": 4}
_DTYPES = {
    0: np.int8, 1: np.uint8, 2: np.int32, 3: np.uint32, 4: np.int64, 5: np.uint64, 6: np.float16,
    7: np.float32, 8: np.float64,
}  # fmt: skip
_UFUNCS = {0: np.add, 1: np.multiply, 2: np.maximum, 3: np.minimum, 4: np.add}
_NAMES = {
    1: "NCCL_ERROR_UNHANDLED_CUDA_ERROR: unhandled cuda error (run with NCCL_DEBUG=INFO for "
       "details)",
    2: "NCCL_ERROR_SYSTEM_ERROR: unhandled system error (run with NCCL_DEBUG=INFO for details)",
    4: "NCCL_ERROR_INVALID_ARGUMENT: invalid argument (run with NCCL_DEBUG=WARN for details)",
    5: "NCCL_ERROR_INVALID_USAGE: invalid usage (run with NCCL_DEBUG=WARN for details)",
    6: "NCCL_ERROR_REMOTE_ERROR: remote process exited or there was a network error",
}  # fmt: skip
Numbers = np.ndarray[Any, Any]


class NcclError(RuntimeError):
    """What CuPy raises for an error of NCCL."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(_NAMES[status])


class _Meeting:
    """Where the ranks of a communicator meet: a round for each call, and messages.

    Ranks are threads.  What they bring is copied, so that they may go on.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.changed = threading.Condition()
        self.rounds: dict[int, dict[int, Any]] = {}
        self.mail: dict[tuple[int, int], list[Any]] = {}

    def exchange(self, number: int, rank: int, value: Any) -> list[Any]:
        """Return what all ranks bring to a round."""
        with self.changed:
            brought = self.rounds.setdefault(number, {})
            brought[rank] = value
            self.changed.notify_all()
            self._wait(lambda: len(brought) == self.size, f"only {sorted(brought)} came: {value}")
            self.rounds.pop(number - 2, None)  # all have left it, or nobody would be here
            return [brought[place] for place in range(self.size)]

    def post(self, source: int, target: int, message: Any) -> Callable[[], None]:
        """Send a message; returns what waits until it is taken."""
        with self.changed:
            box = self.mail.setdefault((source, target), [])
            box.append(message)
            self.changed.notify_all()

        def taken() -> None:
            with self.changed:
                self._wait(
                    lambda: all(m is not message for m in box), f"rank {target} takes no message"
                )

        return taken

    def take(self, source: int, target: int) -> Any:
        """Return the next message."""
        with self.changed:
            box = self.mail.setdefault((source, target), [])
            self._wait(lambda: box, f"no message from rank {source}")
            self.changed.notify_all()
            return box.pop(0)

    def _wait(self, ready: Callable[[], Any], otherwise: str) -> None:
        if not self.changed.wait_for(ready, PATIENCE_S):
            ledger.hazard(f"NCCL: {otherwise}")


class _Folder:
    """The same between processes, by files in a folder."""

    def __init__(self, size: int, folder: Path) -> None:
        self.size, self._folder = size, folder
        self._numbers: dict[tuple[str, int, int], int] = {}
        folder.mkdir(exist_ok=True)

    def exchange(self, number: int, rank: int, value: Any) -> list[Any]:
        """Return what all ranks bring to a round."""
        self._write(f"round{number}-{rank}", value)
        found = [self._read(f"round{number}-{place}") for place in range(self.size)]
        (self._folder / f"round{number - 2}-{rank}").unlink(missing_ok=True)
        return found

    def post(self, source: int, target: int, message: Any) -> Callable[[], None]:
        """Send a message; returns what waits until it is taken."""
        path = self._folder / self._next("sent", source, target)
        self._write(path.name, message)
        return lambda: self._until(lambda: not path.exists(), f"rank {target} takes no message")

    def take(self, source: int, target: int) -> Any:
        """Return the next message."""
        name = self._next("taken", source, target)
        message = self._read(name)
        (self._folder / name).unlink()
        return message

    def _next(self, end: str, source: int, target: int) -> str:
        number = self._numbers[end, source, target] = (
            self._numbers.get((end, source, target), 0) + 1
        )
        return f"message{number}-{source}-{target}"

    def _write(self, name: str, value: Any) -> None:
        fresh = self._folder / f".{name}"
        fresh.write_bytes(pickle.dumps(value))
        fresh.rename(self._folder / name)

    def _read(self, name: str) -> Any:
        path = self._folder / name
        self._until(path.exists, f"nobody writes {name}")
        return pickle.loads(path.read_bytes())

    def _until(self, ready: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not ready():
            if time.monotonic() > deadline:
                ledger.hazard(f"NCCL: {otherwise}")
            time.sleep(1e-4)


_meetings: dict[bytes, _Meeting | _Folder] = {}
between_processes: list[Path] = []  # the folder in which processes meet; none for threads


def _meeting(key: bytes, size: int) -> _Meeting | _Folder:
    """Return where the ranks with this unique id meet."""
    with LOCK:
        if key not in _meetings:
            folder = between_processes[0] / key.hex()[:32] if between_processes else None
            _meetings[key] = _Folder(size, folder) if folder else _Meeting(size)
        return _meetings[key]


def get_version() -> int:
    """Return the version of NCCL."""
    return 22809


def get_unique_id() -> bytes:
    """Return bytes by which the ranks of a new communicator find each other."""
    return os.urandom(ID_BYTES)


class _Group(threading.local):
    """The calls of a thread between groupStart and groupEnd."""

    depth = 0

    def __init__(self) -> None:
        self.calls: list[_Call] = []


_group = _Group()


def groupStart() -> None:
    """Gather the calls that follow into one."""
    _group.depth += 1


def groupEnd() -> None:
    """Make the gathered calls."""
    if not _group.depth:
        raise NcclError(5)
    _group.depth -= 1
    if _group.depth == 0:
        calls, _group.calls = _group.calls, []
        _run(calls)


@dataclass
class _Call:
    """One call of one rank."""

    comm: NcclCommunicator
    name: str
    words: tuple[Any, ...]  # what all ranks must say alike
    source: Numbers | None
    target: Numbers | None
    stream: Stream
    memories: list[Any]
    peer: int = -1


def _run(calls: Sequence[_Call]) -> None:
    """Make calls; messages of one group need no order among themselves."""
    for call in calls:
        with LOCK:
            for memory in {id(m): m for m in call.memories}.values():
                memory.use(call.stream)
            call.memories = []  # a graph knows addresses only
            ledger.trace.append(f"nccl {call.name} on {call.stream.ptr}")
    _communicate(calls)
    if calls:
        note(functools.partial(_communicate, calls), calls[0].stream)


def _communicate(calls: Sequence[_Call]) -> None:
    """Exchange what the calls say."""
    waits = []
    for call in calls:
        if call.name == "send":
            waits.append(call.comm._post(call))
        elif call.name != "recv":
            _MOVES[call.name](call, call.comm._meet(call))
    for call in calls:
        if call.name == "recv":
            call.comm._take(call)
    for wait in waits:
        wait()


class NcclConfig:
    """Settings of a communicator."""


class NcclCommunicator:
    """One rank's end of a communicator."""

    def __init__(self, ndev: int, commId: bytes, rank: int, config: Any = None) -> None:
        if not isinstance(commId, bytes):
            raise TypeError(
                "Argument 'commId' has incorrect type (expected bytes, got "
                f"{type(commId).__name__})"
            )
        if len(commId) != ID_BYTES:
            raise AssertionError
        if not 0 <= rank < ndev:
            raise NcclError(4)
        self._rank, self._size, self._device = rank, ndev, here.device
        self.comm, self._number, self._failure = id(self), 0, 0
        self._meeting = _meeting(commId, ndev)
        if len(set(self._meeting.exchange(0, rank, here.device))) < ndev:
            raise NcclError(5)  # Duplicate GPU detected
        ledger.trace.append("nccl init")

    # ------------------------------------------------------------------ what it is
    def device_id(self) -> int:
        """Return the device it was made on."""
        return self._device

    def rank_id(self) -> int:
        """Return the rank."""
        return self._rank

    def size(self) -> int:
        """Return the number of ranks."""
        return self._size

    def destroy(self) -> None:
        """Release it."""
        self.comm = 0

    def abort(self) -> None:
        """Release it and end what is under way."""
        self.comm = 0
        ledger.trace.append("nccl abort")

    def check_async_error(self) -> None:
        """Raise what went wrong beside the host's calls."""
        if self._failure:
            raise NcclError(self._failure)

    # ------------------------------------------------------------------ calls
    def allReduce(
        self, sendbuf: int, recvbuf: int, count: int, datatype: int, op: int, stream: int
    ) -> None:
        """Reduce over the ranks, for all of them."""
        self._call("allReduce", (count, datatype, op), sendbuf, count, recvbuf, count, stream)

    def reduce(
        self, sendbuf: int, recvbuf: int, count: int, datatype: int, op: int, root: int,
        stream: int,
    ) -> None:  # fmt: skip
        """Reduce over the ranks, for one of them."""
        into = recvbuf if root == self._rank else 0
        words = (count, datatype, op, root)
        self._call("reduce", words, sendbuf, count, into, count, stream, root)

    def broadcast(
        self, sendbuff: int, recvbuff: int, count: int, datatype: int, root: int, stream: int
    ) -> None:
        """Give all ranks what one has."""
        source = sendbuff if root == self._rank else 0
        words = (count, datatype, root)
        self._call("broadcast", words, source, count, recvbuff, count, stream, root)

    def bcast(self, buff: int, count: int, datatype: int, root: int, stream: int) -> None:
        """Give all ranks what one has, in place."""
        self.broadcast(buff, buff, count, datatype, root, stream)

    def reduceScatter(
        self, sendbuf: int, recvbuf: int, recvcount: int, datatype: int, op: int, stream: int
    ) -> None:
        """Reduce over the ranks; each gets its part."""
        words = (recvcount, datatype, op)
        whole = recvcount * self._size
        self._call("reduceScatter", words, sendbuf, whole, recvbuf, recvcount, stream)

    def allGather(self, sendbuf: int, recvbuf: int, count: int, datatype: int, stream: int) -> None:
        """Give all ranks what all have."""
        words = (count, datatype)
        self._call("allGather", words, sendbuf, count, recvbuf, count * self._size, stream)

    def send(self, sendbuf: int, count: int, datatype: int, peer: int, stream: int) -> None:
        """Send to a rank."""
        self._call("send", (count, datatype), sendbuf, count, 0, 0, stream, peer)

    def recv(self, recvbuf: int, count: int, datatype: int, peer: int, stream: int) -> None:
        """Receive from a rank."""
        self._call("recv", (count, datatype), 0, 0, recvbuf, count, stream, peer)

    # ------------------------------------------------------------------ inside
    def _call(
        self, name: str, words: tuple[Any, ...], source: int, sends: int, target: int, takes: int,
        stream: int, peer: int = -1,
    ) -> None:  # fmt: skip
        if not self.comm:
            raise NcclError(4)
        datatype = words[1]
        memories = [
            memory_at(address, count * _dtype(datatype).itemsize)
            for address, count in ((source, sends), (target, takes))
            if address
        ]
        if any(memory.device != self._device for memory in memories):
            raise NcclError(4)
        call = _Call(
            self, name, words, _numbers(source, sends, datatype), _numbers(target, takes, datatype),
            self._stream(stream), memories, peer,
        )  # fmt: skip
        if _group.depth:
            _group.calls.append(call)
        else:
            _run([call])

    def _stream(self, ptr: int) -> Stream:
        if not ptr:
            return null_stream(self._device)
        return next(s for s in list(machine.streams) if s.ptr == ptr)

    def _meet(self, call: _Call) -> list[Numbers]:
        """Return copies of what all ranks bring to the same call, when they have made it."""
        number = self._number = self._number + 1
        brings = None if call.source is None else call.source.copy()
        all_ = self._meeting.exchange(number, self._rank, (call.name, call.words, brings))
        said = {(name, words) for name, words, _ in all_}
        if len(said) > 1:
            ledger.hazard(f"NCCL: ranks make different calls: {sorted(map(str, said))}")
        return [numbers for _, _, numbers in all_ if numbers is not None]

    def _post(self, call: _Call) -> Callable[[], None]:
        assert call.source is not None
        return self._meeting.post(self._rank, call.peer, (call.words, call.source.copy()))

    def _take(self, call: _Call) -> None:
        words, numbers = self._meeting.take(call.peer, self._rank)
        if words != call.words:
            ledger.hazard(f"NCCL: rank {call.peer} sends {words}, rank {self._rank} {call.words}")
        assert call.target is not None
        call.target[...] = numbers


def fail(comm: NcclCommunicator, status: int = 6) -> None:
    """Let a communicator have failed, as when another process has ended."""
    comm._failure = status


def _dtype(datatype: int) -> np.dtype[Any]:
    if datatype == _TYPES["BFLOAT16"]:
        import ml_dtypes  # comes with bfloat16 arrays only

        found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return found
    if datatype not in _DTYPES:
        raise NcclError(4)
    return np.dtype(_DTYPES[datatype])


def _numbers(address: int, count: int, datatype: int) -> Numbers | None:
    dtype = _dtype(datatype)
    return _bytes(address, count * dtype.itemsize).view(dtype) if address else None


# Every rank does its own part, from copies of what all brought.


def _total(copies: list[Numbers], op: int) -> Numbers:
    """Return the reduction around the ring, which begins with the last rank."""
    wide = copies[-1].dtype.name == "bfloat16"
    parts = [c.astype(np.float32) if wide else c for c in copies]
    total = parts[-1].copy()
    with np.errstate(all="ignore"):
        for part in parts[:-1]:
            total = _UFUNCS[op](total, part)
        if op == _OPS["AVG"]:
            total = (total / len(parts)).astype(total.dtype)
    return total.astype(copies[0].dtype)


def _all_reduce(me: _Call, copies: list[Numbers]) -> None:
    assert me.target is not None
    me.target[...] = _total(copies, me.words[2])


def _reduce(me: _Call, copies: list[Numbers]) -> None:
    total = _total(copies, me.words[2])
    if me.target is not None:
        me.target[...] = total


def _reduce_scatter(me: _Call, copies: list[Numbers]) -> None:
    assert me.target is not None
    total = _total(copies, me.words[2])
    me.target[...] = np.split(total, len(copies))[me.comm._rank]


def _all_gather(me: _Call, copies: list[Numbers]) -> None:
    assert me.target is not None
    me.target[...] = np.concatenate(copies)


def _broadcast(me: _Call, copies: list[Numbers]) -> None:
    (numbers,) = copies
    if me.target is not None:
        me.target[...] = numbers


_MOVES: dict[str, Callable[[_Call, list[Numbers]], None]] = {
    "allReduce": _all_reduce,
    "reduce": _reduce,
    "reduceScatter": _reduce_scatter,
    "allGather": _all_gather,
    "broadcast": _broadcast,
}


def make_module(available: bool) -> ModuleType:
    """Return ``cupy.cuda.nccl``, of a wheel with NCCL or without."""
    module = ModuleType("cupy.cuda.nccl", "A stand-in that needs no GPU.")
    vars(module)["available"] = available
    if available:
        constants = {f"NCCL_{n}": v for n, v in (_TYPES | _OPS).items()}
        own = (NcclCommunicator, NcclConfig, NcclError, get_unique_id, get_version,
               groupStart, groupEnd)  # fmt: skip
        vars(module).update(constants, **{each.__name__: each for each in own})
        vars(module)["get_build_version"] = get_version
    return module
