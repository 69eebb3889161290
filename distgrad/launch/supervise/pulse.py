"""The heartbeat of a rank: a thread that tells the supervisor where the rank is.

Twice a second it sends the step, the phase, the call that the main thread waits in, and its Python
stack.  The main thread only stores numbers (`at`, `counted`), so telling costs nothing.
The supervisor may ask for the stack, or for a signal: the thread sends it to its own process, where
it arrives as if mpirun had forwarded it.

Note [A supervisor that is gone]: if it was killed, nobody would end this rank when others hang.
The rank asks its program to stop, as a signal would, so that all ranks save the same step, and ends
after `MERCY_S` at the latest.  A network that is dead is another matter: the supervisor may have
started the job anew, so the rank ends at once.  With ``--orphans finish`` it goes on in both cases.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from distgrad.distributed.default import default_group
from distgrad.distributed.group import ProcessGroup
from distgrad.errors import DistributedError
from distgrad.launch.supervise.wire import (
    SUPERVISOR,
    TOKEN,
    Address,
    Lines,
    WireError,
    clip,
    pack,
)

PERIOD_S = 0.5
RANKS_A_PERIOD = 1000  # with more, each beats less often: one process hears them all
STACKS_OF = 64  # ranks; with more, not every beat has the stack
STACK_EVERY = 4  # beats, then
CONNECT_S = 5.0
SILENT_S = 15  # data that the other end has not acknowledged for so long: the network is dead
MERCY_S = 30.0
SCRIPT = "script"  # the phase of a program that says nothing of phases
_DEPTH = 12
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_OWN = ("<frozen runpy>", "<frozen importlib")


class Place:
    """Where this rank is.  Plain numbers: the thread that computes stores, the heartbeat reads."""

    def __init__(self) -> None:
        self.step = 0  # begun or done, as `at` and `counted` say
        self.size = 0  # of the world as it began
        self.moves = 0  # grows with everything that is progress
        self.phase = "starts"
        self.group: ProcessGroup | None = None


place = Place()


def at(step: int, phase: str) -> None:
    """Note that this rank begins ``phase`` of ``step``."""
    place.step, place.phase = step, phase
    place.moves += 1


def counted(*_: object) -> None:
    """Note one more step of an optimizer; made to be a hook of optimizers."""
    place.step += 1
    place.moves += 1


class Pulse:
    """The connection to the supervisor; without one, every call does nothing.

    Args:
        hello: what the supervisor learns first.
        orphans: "end" or "finish", what to do when the supervisor is gone.
    """

    def __init__(self, hello: Mapping[str, Any], orphans: str) -> None:
        self._socket = _connected(Address.parse(os.environ[SUPERVISOR]))
        self._orphans = orphans
        self._lock = threading.Lock()
        self._lines = Lines()
        self._over = threading.Event()
        place.size = int(hello["size"])
        self._period_s = PERIOD_S * max(1.0, place.size / RANKS_A_PERIOD)
        # children of this process are no ranks; the supervisor finds them by the mark of the job
        self._send({"token": os.environ.pop(TOKEN, ""), "pid": os.getpid(), **hello})
        os.register_at_fork(after_in_child=self._socket.close)
        threading.Thread(target=self._serve, name="distgrad-pulse", daemon=True).start()

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send ``message`` now, after the place as it is."""
        self._send(_beat(stack=False))
        if message:
            self._send(message)

    def close(self) -> None:
        """Beat no more.  The connection ends with the process, which the supervisor waits for."""
        self._over.set()

    def _send(self, message: Mapping[str, Any]) -> None:
        with self._lock, suppress(OSError):  # reading finds out that nobody listens
            self._socket.sendall(pack(message))

    # ------------------------------------------------------------------ the thread
    def _serve(self) -> None:
        count, every = 0, 1 if place.size <= STACKS_OF else STACK_EVERY
        while not self._over.is_set():
            self._send(_beat(stack=count % every == 0))
            count += 1
            due = time.monotonic() + self._period_s
            while (left := due - time.monotonic()) > 0:
                if select.select([self._socket], [], [], left)[0] and not self._read():
                    return

    def _read(self) -> bool:
        """Do what the supervisor asks for; return whether it is still there."""
        try:
            data = self._socket.recv(1 << 12)
            asked = self._lines.feed(data)
        except (OSError, WireError) as error:
            self._orphaned(dead=isinstance(error, TimeoutError))
            return False
        if not data:
            self._orphaned(dead=False)
            return False
        for message in asked:
            self._obey(message)
        return True

    def _obey(self, message: Mapping[str, Any]) -> None:
        if message.get("do") == "stack":
            self._send({**_beat(stack=True), "asked": True})
        elif message.get("do") == "signal" and message.get("number") in _SIGNALS:
            os.kill(os.getpid(), int(message["number"]))

    def _orphaned(self, dead: bool) -> None:
        """See Note [A supervisor that is gone]."""
        if self._over.is_set() or self._orphans == "finish":
            return
        what = "cannot be reached any more" if dead else "is gone"
        _say(f"the supervisor {what}, so this rank ends (--orphans finish lets it go on)")
        if not dead:
            os.kill(os.getpid(), signal.SIGTERM)
            self._over.wait(MERCY_S)
        os.kill(os.getpid(), signal.SIGKILL)


def _connected(address: Address) -> socket.socket:
    """Return a connection to ``address``.

    Raises:
        DistributedError: nobody answers there.
    """
    try:
        connection = socket.create_connection((address.host, address.port), CONNECT_S)
    except OSError as error:
        raise DistributedError(
            f"the supervisor at {address} cannot be reached from {socket.gethostname()} "
            f"({error.strerror or error}); let hosts connect to any port of the one that starts "
            f"the job, or start without --max-restarts"
        ) from None
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENT_S * 1000)
    return connection


def _beat(stack: bool) -> dict[str, Any]:
    """Return where this rank is."""
    call, moved = _waits()
    beat: dict[str, Any] = {
        "step": place.step, "phase": place.phase, "moves": place.moves + moved, "call": call,
    }  # fmt: skip
    group = default_group()
    if group is not None and place.size > group.size and len(group.origins) == group.size:
        beat["members"] = group.origins
    if stack:
        beat["stack"] = clip(main_stack())
    return beat


def _waits() -> tuple[str, int]:
    """Return the call that the main thread waits in, and how many were made."""
    call, made = "", 0
    # the script's own group, where the launcher's does not see the traffic
    for group in {id(g): g for g in (default_group(), place.group) if g is not None}.values():
        made += sum(sibling.sequence for sibling in group.siblings.values())
        if group.watch is not None:
            call = call or group.watch.call_of(threading.main_thread().ident)
    return call, made


def main_stack() -> str:
    """Return where the main thread is, outermost call first, without Python's own starter."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    frames = traceback.extract_stack(frame)
    shown = [frame for frame in frames if not frame.filename.startswith(_OWN)]
    return "".join(traceback.format_list(shown[-_DEPTH:]))


def _say(text: str) -> None:
    with suppress(OSError, ValueError):  # the log keeps it, if nobody reads what mpirun prints
        print(f"distgrad.launch: {text}", file=sys.stderr, flush=True)
