"""Process groups over sockets: for processes that no MPI launcher started, such as ``mp.spawn``'s.

Every rank has one connection to a hub, which is a thread beside rank 0 at MASTER_ADDR:MASTER_PORT.
The hub has a group of `threads` with one stand-in for each rank: what a rank starts, its stand-in
starts there, so calls are compared and data moved as on threads, and the answer goes back.  All
data pass through one process: right for a few ranks on a host, slow for many, which belong under
MPI.

A message is the lengths of its two parts, a header in JSON and the bytes of an array.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.util import Finalize
from typing import Any, NoReturn

import numpy as np

from distgrad.backend.dtype import as_numpy, dtype
from distgrad.distributed.group import ProcessGroup, link_channels
from distgrad.distributed.threads import ThreadGroup, ThreadWorld, thread_group
from distgrad.distributed.work import HostArray, Transfer, Work
from distgrad.errors import DistgradError, DistributedError

_LENGTHS = struct.Struct("!IQ")
_RETRY_S = 0.05  # until the hub of rank 0 is there
_LINGER_S = 30.0  # rank 0 waits so long for the others at its end, as the hub ends with it
_UNANSWERED = ("send", "barrier")  # their targets do not change

Header = dict[str, Any]


# ---------------------------------------------------------------------- messages
def _send(to: socket.socket, header: Header, data: HostArray | None = None) -> None:
    head = json.dumps(header).encode()
    body = b"" if data is None else data.reshape(-1).view(np.uint8).data
    to.sendall(_LENGTHS.pack(len(head), len(body)) + head)
    if len(body):
        to.sendall(body)


def _receive(source: socket.socket) -> tuple[Header, bytearray]:
    head, body = _LENGTHS.unpack(_exactly(source, _LENGTHS.size))
    header: Header = json.loads(_exactly(source, head))
    return header, _exactly(source, body)


def _exactly(source: socket.socket, count: int) -> bytearray:
    data = bytearray(count)
    view = memoryview(data)
    while count:
        got = source.recv_into(view, count)
        if not got:
            raise ConnectionResetError
        view, count = view[got:], count - got
    return data


def _form(array: HostArray) -> list[Any]:
    return [array.dtype.name, list(array.shape)]


def _array(form: list[Any], data: bytearray | None = None) -> HostArray:
    name, shape = form
    kind = as_numpy(dtype(name)) if name == "bfloat16" else np.dtype(name)
    if data is None:
        return np.empty(shape, kind)
    return np.frombuffer(data, kind).reshape(shape)


# ---------------------------------------------------------------------- beside rank 0
class _Hub:
    """Where the ranks meet."""

    def __init__(self, address: tuple[str, int], size: int, timeout_s: float) -> None:
        self.world = ThreadWorld([[rank] for rank in range(size)])
        self.timeout_s = timeout_s
        self.pending: list[tuple[_StandIn, int, Transfer, Work]] = []
        self.here: set[int] = set()
        self.listener = socket.create_server(address, reuse_port=False)
        for run in (self._accept, self._answer):
            threading.Thread(target=run, name=f"hub: {run.__name__}", daemon=True).start()

    def _accept(self) -> None:
        for _ in range(self.world.size):
            try:
                connection = self.listener.accept()[0]
            except OSError:  # closed
                return
            _without_delay(connection)
            rank = int(_receive(connection)[0]["rank"])
            stand_in = _StandIn(self, rank, connection)
            self.here.add(rank)
            threading.Thread(target=stand_in.serve, name=f"hub: {rank}", daemon=True).start()
        self.listener.close()

    def _answer(self) -> None:
        """Answer what is complete, rank 0 last: the hub may end with its answer."""
        changed = self.world.changed
        while True:
            with changed:
                changed.wait(0.2)
                waiting, self.pending = self.pending, []
            states = [_state(work) for *_, work in waiting]
            with changed:
                self.pending += [w for w, s in zip(waiting, states, strict=True) if s is False]
            done = [(*w, s) for w, s in zip(waiting, states, strict=True) if s is not False]
            for stand_in, number, transfer, _, state in sorted(done, key=lambda d: -d[0].rank):
                stand_in.answer(number, transfer, state)

    def start(self, stand_in: _StandIn, number: int, transfer: Transfer, work: Work) -> None:
        """Wait for a transfer in place of the rank."""
        with self.world.changed:
            self.pending.append((stand_in, number, transfer, work))
            self.world.changed.notify_all()

    def linger(self) -> None:
        """Return when all other ranks have left, or will not."""
        deadline = time.monotonic() + _LINGER_S
        others = self.here - {0}
        with self.world.changed:
            while not others <= self.world.left and time.monotonic() < deadline:
                self.world.changed.wait(0.1)


def _state(work: Work) -> bool | Exception:
    try:
        return work.test()
    except DistgradError as error:
        return error


class _StandIn:
    """One rank as the hub sees it: its connection, and its groups among the threads."""

    def __init__(self, hub: _Hub, rank: int, connection: socket.socket) -> None:
        self.hub, self.rank, self.connection = hub, rank, connection
        self._asked: dict[str, Callable[..., None]] = {
            "start": self._start,
            "part": self._part,
            "fail": self._fail,
        }
        self.groups: dict[int, ThreadGroup] = {0: thread_group(hub.world, rank, hub.timeout_s)}

    def serve(self) -> None:
        """Do what the rank asks for until it leaves."""
        with suppress(OSError):  # its process has ended
            while True:
                header, data = _receive(self.connection)
                self._asked[header.pop("ask")](data=data, **header)
        self.hub.world.leave(self.rank)

    def _part(self, data: bytearray, group: int, new: int, places: list[int]) -> None:
        """Make a sub-group."""
        self.groups[new] = self.groups[group]._part(places, self.hub.timeout_s)

    def _fail(self, data: bytearray, reason: str) -> None:
        """Stop all ranks."""
        self.hub.world.fail(self.rank, DistributedError(reason))

    def _start(
        self,
        data: bytearray,
        number: int,
        group: int,
        channel: str,
        source: list[Any],
        target: list[Any] | None,
        **fields: Any,
    ) -> None:
        """Start a transfer."""
        brought = _array(source, data if data else None)
        into = brought if target is None else _array(target)
        senders: list[int] = []
        transfer = Transfer(source=brought, target=into, senders=senders, **fields)
        there = self.groups[group].channel(channel)
        try:
            work = there._launch(transfer)
        except DistgradError as error:
            self.answer(number, transfer, error)
        else:
            self.hub.start(self, number, transfer, work)

    def answer(self, number: int, transfer: Transfer, state: bool | Exception) -> None:
        """Tell the rank how a transfer went, with what it brought."""
        header: Header = {"number": number, "senders": transfer.senders, "error": None}
        if isinstance(state, Exception):
            header["error"] = str(state)
        bare = state is not True or transfer.collective in _UNANSWERED
        with suppress(OSError):  # its process has ended
            _send(self.connection, header, None if bare else np.ascontiguousarray(transfer.target))


# ---------------------------------------------------------------------- each rank
class _Line:
    """This rank's connection to the hub, shared by all its groups and their channels."""

    def __init__(self, address: tuple[str, int], rank: int, timeout_s: float) -> None:
        self.connection = _connect(address, timeout_s)
        self.lock = threading.Lock()
        self.works: dict[int, SocketWork] = {}
        self.numbers = self.groups = 0
        self.lost = ""
        _send(self.connection, {"rank": rank})
        threading.Thread(target=self._read, name="answers of the hub", daemon=True).start()

    def ask(self, header: Header, data: HostArray | None = None) -> None:
        """Send a request."""
        try:
            _send(self.connection, header, data)
        except OSError:
            self._lose()

    def start(self, work: SocketWork, header: Header, data: HostArray | None) -> None:
        """Send the request for a transfer."""
        with self.lock:
            self.numbers += 1
            self.works[self.numbers] = work
            self.ask({"ask": "start", "number": self.numbers, **header}, data)

    def new_group(self) -> int:
        """Return the number of a new group."""
        with self.lock:
            self.groups += 1
            return self.groups

    def _read(self) -> None:
        try:
            while True:
                header, data = _receive(self.connection)
                self.works.pop(header["number"]).finish(header, data)
        except OSError:
            self._lose()

    def _lose(self) -> None:
        self.lost = "rank 0, where the ranks meet, has ended or closed the group"
        for number in list(self.works):
            work = self.works.pop(number, None)
            if work is not None:
                work.finish({"error": f"{work.call}: {self.lost}"}, bytearray())


def _connect(address: tuple[str, int], timeout_s: float) -> socket.socket:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            connection = socket.create_connection(address, timeout=5.0)
        except OSError as error:
            if time.monotonic() < deadline:
                time.sleep(_RETRY_S)
                continue
            raise DistributedError(
                f"init_process_group(): rank 0 does not answer at {address[0]}:{address[1]} within "
                f"{timeout_s} s ({error}); MASTER_ADDR and MASTER_PORT must be the same on all "
                "ranks, and rank 0 must call init_process_group too"
            ) from None
        connection.settimeout(None)
        _without_delay(connection)
        return connection


def _without_delay(connection: socket.socket) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class SocketWork(Work):
    """A transfer that the hub answers for."""

    __slots__ = ("_done", "_error", "_group", "_transfer")

    def __init__(self, transfer: Transfer, group: SocketGroup) -> None:
        super().__init__(transfer.call, group.sequence)
        self._transfer, self._group = transfer, group
        self._done, self._error = threading.Event(), ""

    def finish(self, header: Header, data: bytearray) -> None:
        """Take the hub's answer."""
        if header["error"]:
            self._error = header["error"]
        else:
            if data:
                target = self._transfer.target
                np.copyto(target, np.frombuffer(data, target.dtype).reshape(target.shape))
            if self._transfer.senders is not None:
                self._transfer.senders.extend(header["senders"])
        self._done.set()

    def test(self) -> bool:
        """Return whether the transfer is complete."""
        self._group.agenda.push()
        if self._done.is_set() and self._error:
            raise DistributedError(self._error)
        return self._done.is_set()

    def is_completed(self) -> bool:
        """Return whether the answer is there."""
        return self._done.is_set()

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when the transfer is complete."""
        group = self._group
        limit = group.timeout_s if timeout_s is None else timeout_s
        if not self._done.wait(limit):
            raise DistributedError(
                f"{self.call} on channel {group.name!r}: rank {group.rank} of {group.size} waited "
                f"{limit} s for the other ranks; look where those are, or allow more time"
            )
        self.test()


class SocketGroup(ProcessGroup):
    """One channel of a rank whose processes meet over sockets; `socket_group` makes the group."""

    backend = "sockets"
    compares_calls = True

    def __init__(
        self, line: _Line, number: int, rank: int, size: int, name: str, timeout_s: float
    ) -> None:
        local_rank = int(os.environ.get("LOCAL_RANK") or rank)
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE") or size)
        super().__init__(rank, size, local_rank, local_size, name, timeout_s)
        self.line, self.number, self.hub = line, number, None  # type: Any, int, _Hub | None

    def _part(self, places: Sequence[int], timeout_s: float) -> SocketGroup:
        number = self.line.new_group()
        self.line.ask({"ask": "part", "group": self.number, "new": number, "places": list(places)})
        rank = places.index(self.rank)
        return _linked(self.line, number, rank, len(places), timeout_s)

    def abort(self, code: int, reason: str) -> NoReturn:
        """Stop every rank: they raise DistributedError at their next collective, this one now."""
        text = f"abort({code}) by rank {self.rank} of {self.size}: {reason}"
        self.line.ask({"ask": "fail", "reason": text})
        raise DistributedError(text)

    def close(self) -> None:
        """Leave the group; rank 0 waits for the others, as the hub ends with it."""
        if self.closed:
            return
        super().close()
        if self.number == 0:
            hub = self.siblings["user"].hub  # type: ignore[attr-defined]
            if hub is not None:
                hub.linger()
            self.line.connection.shutdown(socket.SHUT_RDWR)
            self.line.connection.close()

    def _start(self, transfer: Transfer) -> Work:
        work = SocketWork(transfer, self)
        in_place = transfer.target is transfer.source
        header = {
            "group": self.number,
            "channel": self.name,
            "collective": transfer.collective,
            "call": transfer.call,
            "op": transfer.op,
            "peer": transfer.peer,
            "tag": transfer.tag,
            "sends": [int(n) for n in transfer.sends],
            "receives": [int(n) for n in transfer.receives],
            "source": _form(transfer.source),
            "target": None if in_place else _form(transfer.target),
        }
        data = None if transfer.collective == "recv" else np.ascontiguousarray(transfer.source)
        self.line.start(work, header, data)
        return work


def _linked(line: _Line, number: int, rank: int, size: int, timeout_s: float) -> SocketGroup:
    return link_channels(lambda name: SocketGroup(line, number, rank, size, name, timeout_s))


def socket_group(
    address: str, port: int, rank: int, size: int, timeout_s: float = 1800.0
) -> SocketGroup:
    """Return the group of the processes that name this address.

    Args:
        address, port: of rank 0, the same for all.
        rank: of this process.
        size: how many there are.
        timeout_s: seconds that any one wait may take.

    Raises:
        DistributedError: rank 0 is not there, or the port is taken.

    Ranks: all.
    """
    hub = None
    if rank == 0:
        try:
            hub = _Hub((address, port), size, timeout_s)
        except OSError as error:
            raise DistributedError(
                f"init_process_group(): rank 0 cannot listen at {address}:{port} ({error}); choose "
                "another MASTER_PORT"
            ) from None
    group = _linked(_Line((address, port), rank, timeout_s), 0, rank, size, timeout_s)
    group.hub = hub
    if hub is not None:
        Finalize(None, hub.linger, exitpriority=10)
    group.barrier()  # all are here
    return group
