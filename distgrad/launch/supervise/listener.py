"""The supervisor's ear: what the ranks of one attempt have said."""

from __future__ import annotations

import hmac
import secrets
import selectors
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from distgrad.launch.supervise.pulse import SCRIPT
from distgrad.launch.supervise.wire import Address, Lines, WireError, pack

HELLO_S = 5.0  # a connection that has not shown the token by then is closed
STRANGERS = 1024  # connections that have not shown it yet
_PHASES_BEFORE_MPI = ("starts",)


@dataclass(slots=True)
class Rank:
    """One rank, as far as the supervisor knows."""

    rank: int
    size: int
    pid: int
    host: str
    hello: Mapping[str, Any]
    peer: str  # the address that it speaks from
    heard: float  # when it said anything last
    moved: float  # when it made progress last
    step: int = 0
    phase: str = _PHASES_BEFORE_MPI[0]
    moves: int = -1
    call: str = ""  # that it waits in
    stack: str = ""
    asked: bool = False  # whether the stack is the answer to the last question
    members: tuple[int, ...] | None = None
    failed: Mapping[str, Any] | None = None
    failed_at: float = 0.0
    ended: int | None = None  # the status with which its program ended
    left: bool = False  # only MPI is left to end, which waits for all ranks
    lost: float | None = None  # when its connection broke

    @property
    def named(self) -> str:
        """The rank in words."""
        return f"rank {self.rank} ({self.host}, process {self.pid})"

    @property
    def runs(self) -> bool:
        """Whether its program has begun."""
        return self.phase not in _PHASES_BEFORE_MPI

    @property
    def paced(self) -> bool:
        """Whether it is known to make steps: a script does so from its first one on."""
        return self.runs and (self.phase != SCRIPT or self.step > 0)


@dataclass(slots=True)
class _Stranger:
    """A connection, and the rank behind it once that has said who it is."""

    since: float
    lines: Lines = field(default_factory=Lines)
    rank: Rank | None = None


class Listener:
    """Hears the ranks of one attempt.

    Args:
        address: of this host, one that the ranks reach.
    """

    def __init__(self, address: str) -> None:
        self.token = secrets.token_hex(16)
        self.ranks: dict[int, Rank] = {}
        self.agreed: Mapping[str, Any] | None = None  # rank 0's last word
        self.refused: list[str] = []  # why connections were closed
        self._links: dict[int, socket.socket] = {}  # of each rank
        self._strangers: dict[socket.socket, _Stranger] = {}  # connections that may become ranks
        self._selector = selectors.DefaultSelector()
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._door = socket.create_server((address, 0), family=family, backlog=1024)
        self._door.setblocking(False)
        self._selector.register(self._door, selectors.EVENT_READ, None)
        self.address = Address(address, self._door.getsockname()[1])

    def poll(self, timeout_s: float) -> None:
        """Take in what has come, waiting for ``timeout_s`` at most."""
        now = time.monotonic()
        for key, _ in self._selector.select(timeout_s):
            if key.data is None:
                self._welcome()
            else:
                assert isinstance(key.fileobj, socket.socket)
                self._read(key.fileobj, key.data)
        for link, stranger in list(self._strangers.items()):
            if now - stranger.since > HELLO_S:
                self._drop(link, stranger, "did not say who it is")

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send ``message`` to all ranks that can still hear."""
        for link in list(self._links.values()):
            with suppress(OSError):  # a rank that does not read finds out otherwise
                link.send(pack(message))

    def close(self) -> None:
        """Hear no more."""
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()

    # ------------------------------------------------------------------ connections
    def _welcome(self) -> None:
        with suppress(OSError):
            link, _ = self._door.accept()
            link.setblocking(False)
            if len(self._strangers) >= STRANGERS:
                link.close()
                return
            self._strangers[link] = stranger = _Stranger(time.monotonic())
            self._selector.register(link, selectors.EVENT_READ, stranger)

    def _read(self, link: socket.socket, stranger: _Stranger) -> None:
        try:
            data = link.recv(1 << 16)
            messages = stranger.lines.feed(data)
        except BlockingIOError:
            return
        except (OSError, WireError) as error:
            self._drop(link, stranger, str(error))
            return
        for message in messages:
            try:
                self._take(link, stranger, message)
            except (TypeError, ValueError, KeyError, WireError) as error:
                self._drop(link, stranger, f"{type(error).__name__}: {error}")
                return
        if not data:
            self._drop(link, stranger, "")

    def _drop(self, link: socket.socket, stranger: _Stranger, why: str) -> None:
        self._selector.unregister(link)
        self._strangers.pop(link, None)
        link.close()
        rank = stranger.rank
        if rank is None:
            self.refused.append(why)
        elif self._links.get(rank.rank) is link:
            del self._links[rank.rank]
            rank.lost = time.monotonic()

    # ------------------------------------------------------------------ messages
    def _take(self, link: socket.socket, stranger: _Stranger, message: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if stranger.rank is None:
            stranger.rank = self._known(message, str(link.getpeername()[0]), now)
            self._links[stranger.rank.rank] = link
            self._strangers.pop(link, None)
            return
        rank = stranger.rank
        rank.heard = now
        if "agreed" in message and rank.rank == _first(self.ranks):
            self.agreed = {**message, "agreed": int(message["agreed"])}
        if "ended" in message:
            rank.ended = int(message["ended"])
        elif "left" in message:
            rank.left = True
        elif "failed" in message and rank.failed is None:
            rank.failed, rank.failed_at = message, now
        elif "step" in message:
            _move(rank, message, now)

    def _known(self, hello: Mapping[str, Any], peer: str, now: float) -> Rank:
        token = hello.get("token")
        if not isinstance(token, str) or not hmac.compare_digest(
            token.encode(), self.token.encode()
        ):
            raise WireError("does not know the token")
        number, size = int(hello["rank"]), int(hello["size"])
        if not 0 <= number < size or number in self._links:
            raise WireError(f"says that it is rank {number} of {size}")
        rest = {key: value for key, value in hello.items() if key != "token"}
        rank = Rank(number, size, int(hello["pid"]), str(hello["host"]), rest, peer, now, now)
        self.ranks[number] = rank
        return rank


def _first(ranks: Mapping[int, Rank]) -> int:
    """Return the first rank that goes on: rank 0, or its heir if the world has shrunk."""
    members = [m for r in ranks.values() if r.lost is None and (m := r.members) is not None]
    return min(members[0]) if members else 0


def _move(rank: Rank, beat: Mapping[str, Any], now: float) -> None:
    moves = int(beat["moves"])
    if moves != rank.moves:
        rank.moves, rank.moved = moves, now
    rank.step, rank.phase, rank.call = int(beat["step"]), str(beat["phase"]), str(beat["call"])
    if "members" in beat:
        rank.members = tuple(int(member) for member in beat["members"])
    if "stack" in beat:
        rank.stack = str(beat["stack"])
    if beat.get("asked"):
        rank.asked = True
