"""Stores: keys and values that processes share, in one process, in a file, or over TCP.

Ranks here meet through their launcher and need none. Programs written for PyTorch use stores of
their own all the same: to count, to wait for each other, to pass an address on.

Every kind applies the same operations to a `_Table`, which never waits; who waits asks again. A
file is the list of operations that changed it. Values travel as bytes and are never unpickled.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta

from distgrad.errors import ArgumentError, ArgumentTypeError, DistributedError

DEFAULT_TIMEOUT = timedelta(seconds=300)
_NAP_S = 2e-3
_CHANGING = ("set", "add", "append", "compare", "delete", "push", "pop")
_WORKERS = "init/"  # the key by which the processes of a TCPStore are counted


class DistStoreError(DistributedError):
    """A store did not get what was asked for in time."""


class QueueEmptyError(DistStoreError):
    """Nothing is in the queue."""


class DistNetworkError(DistributedError):
    """The server of a store cannot be reached."""


class _Table:
    """Keys and values, and what can be done to them without waiting."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.queues: dict[str, deque[bytes]] = {}
        self.lock = threading.Lock()

    def do(self, what: str, key: str, given: Sequence[bytes]) -> list[bytes]:
        """Return the answer to one operation; an empty list where nothing is there.

        Raises:
            ArgumentError: a number was to be added to something else.
        """
        with self.lock:
            return _OPERATIONS[what](self, key, *given)

    def _set(self, key: str, value: bytes) -> list[bytes]:
        self.values[key] = value
        return []

    def _get(self, key: str) -> list[bytes]:
        return [self.values[key]] if key in self.values else []

    def _add(self, key: str, amount: bytes) -> list[bytes]:
        present = self.values.get(key, b"0")
        try:
            total = b"%d" % (int(present) + int(amount))
        except ValueError:
            raise ArgumentError(
                f"add({key!r}, {int(amount)}): the value is {present!r} and no number; use "
                "another key"
            ) from None
        self.values[key] = total
        return [total]

    def _append(self, key: str, value: bytes) -> list[bytes]:
        self.values[key] = self.values.get(key, b"") + value
        return []

    def _compare(self, key: str, expected: bytes, desired: bytes) -> list[bytes]:
        if key not in self.values and expected:
            return [expected]
        if self.values.get(key, b"") == expected:
            self.values[key] = desired
        return [self.values[key]]

    def _delete(self, key: str) -> list[bytes]:
        return [b"1"] if self.values.pop(key, None) is not None else []

    def _keys(self, key: str) -> list[bytes]:
        return [known.encode() for known in self.values if known.startswith(key)]

    def _push(self, key: str, value: bytes) -> list[bytes]:
        self.queues.setdefault(key, deque()).append(value)
        return []

    def _pop(self, key: str) -> list[bytes]:
        queue = self.queues.get(key)
        return [queue.popleft()] if queue else []

    def _length(self, key: str) -> list[bytes]:
        return [b"%d" % len(self.queues.get(key, ()))]


_OPERATIONS: dict[str, Callable[..., list[bytes]]] = {
    "set": _Table._set,
    "get": _Table._get,
    "add": _Table._add,
    "append": _Table._append,
    "compare": _Table._compare,
    "delete": _Table._delete,
    "keys": _Table._keys,
    "push": _Table._push,
    "pop": _Table._pop,
    "length": _Table._length,
}


class Store(ABC):
    """Keys and values that processes share; the kinds differ in where these are.

    Example:
        >>> store = HashStore()
        >>> store.set("color", "green")
        >>> store.get("color"), store.add("count", 2), store.add("count", 3)
        (b'green', 2, 5)
    """

    def __init__(self, timeout: timedelta = DEFAULT_TIMEOUT) -> None:
        self._timeout = timeout

    @abstractmethod
    def _do(self, what: str, key: str, *given: bytes) -> list[bytes]:
        """Return what `_Table.do` does."""

    @property
    def timeout(self) -> timedelta:
        """How long `get` and `wait` wait."""
        return self._timeout

    def set_timeout(self, timeout: timedelta) -> None:
        """Set how long `get` and `wait` wait."""
        if not isinstance(timeout, timedelta):
            raise ArgumentTypeError(f"set_timeout({timeout!r}): must be a datetime.timedelta")
        self._timeout = timeout

    def set(self, key: str, value: str | bytes) -> None:
        """Let ``key`` have ``value``."""
        self._do("set", key, _bytes("set", value))

    def get(self, key: str) -> bytes:
        """Return the value of ``key``, as soon as it has one.

        Raises:
            DistStoreError: it had none in time.
        """
        return self._await("get", key, "get", self._timeout)

    def add(self, key: str, amount: int) -> int:
        """Add ``amount`` to the number at ``key``, 0 at first, and return the sum."""
        return int(self._do("add", key, b"%d" % amount)[0])

    def append(self, key: str, value: str | bytes) -> None:
        """Put ``value`` behind that of ``key``."""
        self._do("append", key, _bytes("append", value))

    def compare_set(
        self, key: str, expected_value: str | bytes, desired_value: str | bytes
    ) -> bytes:
        """Set ``key`` if it has the value expected; return its value then.

        A key without a value is set if ``expected_value`` is empty, and else that is returned.
        """
        pair = _bytes("compare_set", expected_value), _bytes("compare_set", desired_value)
        return self._do("compare", key, *pair)[0]

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Return when all ``keys`` have a value.

        Raises:
            DistStoreError: names those that had none in time.
        """
        for key in keys:
            self._await("get", key, "wait", self._timeout if timeout is None else timeout)

    def check(self, keys: Sequence[str]) -> bool:
        """Return whether all ``keys`` have a value."""
        return all(self._do("get", key) for key in keys)

    def delete_key(self, key: str) -> bool:
        """Remove ``key``; return whether it was there."""
        return bool(self._do("delete", key))

    def num_keys(self) -> int:
        """Return the number of keys, with the one that a TCPStore counts its processes by."""
        return len(self._do("keys", ""))

    def list_keys(self) -> list[str]:
        """Return all keys."""
        return [key.decode() for key in self._do("keys", "")]

    def multi_set(self, keys: Sequence[str], values: Sequence[str | bytes]) -> None:
        """Let each of ``keys`` have its value."""
        for key, value in zip(keys, values, strict=True):
            self.set(key, value)

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        """Return the values of ``keys``, as soon as all have one."""
        return [self.get(key) for key in keys]

    def queue_push(self, key: str, value: str | bytes) -> None:
        """Put ``value`` at the end of a queue."""
        self._do("push", key, _bytes("queue_push", value))

    def queue_pop(self, key: str, block: bool = True) -> bytes:
        """Remove and return the first value of a queue.

        Args:
            block: wait for one.

        Raises:
            QueueEmptyError: there is none, and ``block`` is False.
            DistStoreError: none came in time.
        """
        if block:
            return self._await("pop", key, "queue_pop", self._timeout)
        found = self._do("pop", key)
        if not found:
            raise QueueEmptyError(f"queue_pop({key!r}, block=False): queue is empty")
        return found[0]

    def queue_len(self, key: str) -> int:
        """Return how many values a queue has."""
        return int(self._do("length", key)[0])

    def barrier(self, key: str, world_size: int, timeout: timedelta | None = None) -> None:
        """Return when ``world_size`` processes have called it with this ``key``."""
        here = self.add(f"{key}/count", 1)
        round_ = (here - 1) // world_size
        if here == (round_ + 1) * world_size:
            self.set(f"{key}/round {round_}", "1")
        self.wait([f"{key}/round {round_}"], timeout)

    def has_extended_api(self) -> bool:
        """Return True: `append`, `multi_get` and `multi_set` are there."""
        return True

    def _await(self, what: str, key: str, function: str, timeout: timedelta) -> bytes:
        deadline = time.monotonic() + timeout.total_seconds()
        while not (found := self._do(what, key)):
            if time.monotonic() > deadline:
                raise DistStoreError(
                    f"{function}({key!r}): wait timeout after {timeout.total_seconds():g} s; look "
                    "whether the process that sets it is alive, or allow more with set_timeout"
                )
            time.sleep(_NAP_S)
        return found[0]


class HashStore(Store):
    """A store of the threads of this process."""

    def __init__(self) -> None:
        super().__init__()
        self._table = _Table()

    def _do(self, what: str, key: str, *given: bytes) -> list[bytes]:
        return self._table.do(what, key, given)

    def clone(self) -> HashStore:
        """Return another store with the same content, now and later."""
        other = HashStore()
        other._table = self._table
        return other


class PrefixStore(Store):
    """A store in another one, whose keys begin with ``prefix/``.

    Args:
        prefix: of the keys.
        store: the other one.
    """

    def __init__(self, prefix: str, store: Store) -> None:
        super().__init__(store.timeout)
        self.underlying_store, self.prefix = store, prefix

    def _do(self, what: str, key: str, *given: bytes) -> list[bytes]:
        found = self.underlying_store._do(what, f"{self.prefix}/{key}", *given)
        if what != "keys":
            return found
        return [name[len(self.prefix.encode()) + 1 :] for name in found]

    def clone(self) -> PrefixStore:
        """Return another store with the same content, now and later."""
        return PrefixStore(self.prefix, self.underlying_store)


class FileStore(Store):
    """A store of the processes that see a file, which is made if it is not there.

    Args:
        file_name: its path; users remove it.
        world_size: PyTorch's; nothing waits for the others here.

    Differs from PyTorch: the file stays when the last store is gone. It has queues.
    """

    def __init__(self, file_name: str, world_size: int = -1) -> None:
        super().__init__()
        self.path = os.fspath(file_name)
        self._table, self._read = _Table(), 0
        with open(self.path, "ab"):
            pass

    def _do(self, what: str, key: str, *given: bytes) -> list[bytes]:
        import fcntl  # not on every system

        with open(self.path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(self._read)
            while fields := _taken(file.read):
                self._table.do(fields[0].decode(), fields[1].decode(), fields[2:])
            found = self._table.do(what, key, given)
            if what in _CHANGING:
                file.write(_packed([what.encode(), key.encode(), *given]))
            self._read = file.tell()
        return found

    def clone(self) -> FileStore:
        """Return another store with the same content, now and later."""
        return FileStore(self.path)


class TCPStore(Store):
    """A store that one process serves to all that reach it over TCP.

    Whoever reaches the port can read and write: use it among machines that trust each other.

    Args:
        host_name: of the server.
        port: that it listens on; with 0 the server takes a free one, see ``port``.
        world_size: processes that use it; the server waits for all of them.
        is_master: be the server.
        timeout: for connecting, `get` and `wait`.
        wait_for_workers: False does not wait.
        multi_tenant: several servers of this process may share the port: the first one serves.
        master_listen_fd: a listening socket to serve on.
        use_libuv: PyTorch's; a thread for each process serves here.
    """

    def __init__(
        self,
        host_name: str,
        port: int,
        world_size: int | None = None,
        is_master: bool = False,
        timeout: timedelta = DEFAULT_TIMEOUT,
        wait_for_workers: bool = True,
        multi_tenant: bool = False,
        master_listen_fd: int | None = None,
        use_libuv: bool = True,
    ) -> None:
        super().__init__(timeout)
        self.host = host_name
        self._server: _Server | None = None
        if is_master:
            self._server = _server_on(port, multi_tenant, master_listen_fd)
        self.port = port if self._server is None else self._server.port
        self._line = _connected(host_name, self.port, timeout.total_seconds())
        self._lock = threading.Lock()
        weakref.finalize(self, self._line.close)
        here = self.add(_WORKERS, 1)
        if is_master and wait_for_workers and world_size:
            deadline = time.monotonic() + timeout.total_seconds()
            while (here := self.add(_WORKERS, 0)) < world_size:
                if time.monotonic() > deadline:
                    raise DistStoreError(
                        f"TCPStore({host_name!r}, {self.port}): {here} of {world_size} processes "
                        f"came within {timeout.total_seconds():g} s; start the others"
                    )
                time.sleep(_NAP_S)

    def __repr__(self) -> str:
        return f"TCPStore({self.host!r}, {self.port})"

    def _do(self, what: str, key: str, *given: bytes) -> list[bytes]:
        try:
            with self._lock:
                self._line.sendall(_packed([what.encode(), key.encode(), *given]))
                answer = _taken(lambda n: _received(self._line, n))
        except OSError as error:
            raise DistNetworkError(f"{self!r}: {error}; is its server alive?") from error
        if not answer:
            raise DistNetworkError(f"{self!r}: its server has ended")
        if answer[0]:
            raise ArgumentError(answer[0].decode())
        return answer[1:]

    def clone(self) -> TCPStore:
        """Return another store with the same content, now and later."""
        return TCPStore(self.host, self.port, timeout=self.timeout)


class _Server:
    """Serves a table to whoever connects, a thread for each."""

    def __init__(self, listener: socket.socket) -> None:
        self.port: int = listener.getsockname()[1]
        table = _Table()
        threading.Thread(target=_serve, args=(listener, table), daemon=True).start()
        weakref.finalize(self, _end, listener)


_servers: weakref.WeakValueDictionary[int, _Server] = weakref.WeakValueDictionary()


def _server_on(port: int, shared: bool, handle: int | None) -> _Server:
    if shared and port in _servers:
        return _servers[port]
    try:
        if handle is not None:
            listener = socket.socket(fileno=handle)
        else:
            listener = socket.create_server(("", port), backlog=1024)
    except OSError as error:
        raise DistNetworkError(
            f"TCPStore(port={port}, is_master=True): cannot listen there ({error}); take another "
            "port, or 0 for a free one"
        ) from error
    server = _servers[listener.getsockname()[1]] = _Server(listener)
    return server


def _serve(listener: socket.socket, table: _Table) -> None:
    while True:
        try:
            line, _ = listener.accept()
        except OSError:  # the server has ended
            return
        threading.Thread(target=_answer, args=(line, table), daemon=True).start()


def _answer(line: socket.socket, table: _Table) -> None:
    with line:
        try:
            while fields := _taken(lambda n: _received(line, n)):
                try:
                    found = [b"", *table.do(fields[0].decode(), fields[1].decode(), fields[2:])]
                except Exception as error:  # the one who asked is to hear of it
                    found = [str(error).encode()]
                line.sendall(_packed(found))
        except OSError:  # that process has ended
            return


def _end(listener: socket.socket) -> None:
    with suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
    listener.close()


def _connected(host: str, port: int, limit_s: float) -> socket.socket:
    """Return a connection, as soon as the server listens."""
    deadline = time.monotonic() + limit_s
    while True:
        try:
            line = socket.create_connection((host, port), timeout=max(0.1, limit_s))
        except OSError as error:
            if time.monotonic() > deadline:
                raise DistNetworkError(
                    f"TCPStore({host!r}, {port}): no server within {limit_s:g} s ({error}); start "
                    "the process with is_master=True, and check host and port"
                ) from error
            time.sleep(10 * _NAP_S)
        else:
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            line.settimeout(None)
            return line


# Lists of bytes on the wire and in a file: their number, then each with its length.


def _packed(fields: Sequence[bytes]) -> bytes:
    parts = [struct.pack("<I", len(fields))]
    for field in fields:
        parts += [struct.pack("<Q", len(field)), field]
    return b"".join(parts)


def _taken(read: Callable[[int], bytes]) -> list[bytes]:
    """Return the next list, empty at the end."""
    head = read(4)
    if len(head) < 4:
        return []
    count = struct.unpack("<I", head)[0]
    return [read(struct.unpack("<Q", read(8))[0]) for _ in range(count)]


def _received(line: socket.socket, count: int) -> bytes:
    """Return ``count`` bytes, fewer at the end."""
    parts: list[bytes] = []
    while count:
        part = line.recv(min(count, 1 << 20))
        if not part:
            break
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _bytes(function: str, value: str | bytes) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    raise ArgumentTypeError(
        f"{function}(value={value!r}): must be str or bytes, not {type(value).__name__}"
    )
