"""The watch: says who is missing when ranks wait too long, and ends waits that cannot end.

Every rank has a thread that listens on a communicator of its own. A rank that has waited for
``stall_s`` seconds asks all others what they do. Each answers with the call it waits in, if it
waits, and with the Python stack of its main thread. The report names who waits for what, who is
missing, and where those are. Then

    a rank does not answer          it has ended or is stopped: the waiting ranks raise
    all wait, in different calls    none of them will go on: they raise
    a rank computes                 the others go on waiting, up to their time limit

Ranks raise only when two reports in a row say the same, so that slow transfers are not mistaken.

Note [One report]: all waiting ranks get impatient at about the same time. Rank r waits r tenths of
a second longer, 5 s at most, and a rank that a lower one asks leaves the report to it.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from typing import Any

from distgrad.errors import DistributedError

PERIOD_S = 0.1  # between two looks
ANSWER_S = 3.0  # a live rank answers in this time, whatever it computes
AGAIN_S = 5.0  # between two reports that say that somebody is stuck
_DEPTH = 8  # frames of a stack that the report shows
_QUERY, _STATUS, _REPORT = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Status:
    """What one rank does."""

    rank: int
    call: str  # that it waits in; empty while it computes
    detail: str  # of the call, which may differ between ranks
    waited_s: float
    stack: str


class Watch:
    """Listens for the other ranks and to this one's own patience.

    Args:
        comm: a communicator that nobody else uses.
        stall_s: seconds of waiting after which ranks are asked; 0 never asks.
    """

    def __init__(self, comm: Any, mpi: Any, stall_s: float) -> None:
        self.comm, self.stall_s = comm, stall_s
        self.alarm = ""  # why waiting is of no use
        self._mpi = mpi
        self._waits: dict[int, tuple[str, str, float]] = {}  # of each thread
        self._patience = time.monotonic()  # waits are counted from here, or from their own begin
        self._answers: dict[int, Status] | None = None  # of the question under way
        self._asked = 0.0
        self._last: object = None  # what the report before said
        self._sent: list[Any] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="distgrad-watch", daemon=True)
        self._thread.start()

    def enter(self, call: str, detail: str, since: float) -> bool:
        """Note that this thread waits in ``call``, unless it does so for a larger one already."""
        ident = threading.get_ident()
        if ident in self._waits:
            return False
        self._waits[ident] = call, detail, since
        return True

    def leave(self) -> None:
        """Note that this thread no longer waits."""
        self._waits.pop(threading.get_ident(), None)

    def call_of(self, thread: int | None) -> str:
        """Return the call that ``thread`` waits in; empty if it does not wait."""
        wait = self._waits.get(thread or 0)
        return wait[0] if wait is not None else ""

    def check(self) -> None:
        """Raise if waiting is of no use.

        Raises:
            DistributedError: the report.
        """
        if self.alarm:
            raise DistributedError(self.alarm)

    def close(self) -> None:
        """End the thread."""
        self._over.set()
        self._thread.join(ANSWER_S)

    def leave_alone(self) -> None:
        """End the thread when it looks next, without waiting for it."""
        self._over.set()

    # ------------------------------------------------------------------ the thread
    def _serve(self) -> None:
        while not self._over.wait(PERIOD_S):
            try:
                self._listen()
                self._ask()
                self._conclude()
            except self._mpi.Exception:  # the job is ending
                return

    def _listen(self) -> None:
        status = self._mpi.Status()
        while True:
            message = self.comm.Improbe(self._mpi.ANY_SOURCE, self._mpi.ANY_TAG, status)
            if message is None:
                return
            data = bytearray(status.Get_count(self._mpi.BYTE))
            message.Recv(data)
            kind, source = status.Get_tag(), status.Get_source()
            if kind == _QUERY:
                self._send(source, _STATUS, self.status())
                if source < self.comm.rank:  # that one will report
                    self._patience, self._answers = time.monotonic(), None
            elif kind == _STATUS and self._answers is not None:
                self._answers[source] = pickle.loads(data)
            elif kind == _REPORT:
                self._patience = time.monotonic()
                self.alarm = self.alarm or pickle.loads(data)

    def _send(self, rank: int, kind: int, content: object) -> None:
        self._sent = [pair for pair in self._sent if not pair[0].Test()]
        data = pickle.dumps(content)
        self._sent.append((self.comm.Isend(data, rank, kind), data))

    def status(self) -> Status:
        """Return what this rank does."""
        now = time.monotonic()
        waits = sorted(self._waits.copy().values(), key=lambda wait: wait[2])
        call, detail, since = waits[0] if waits else ("", "", now)
        return Status(self.comm.rank, call, detail, now - since, _stack())

    def _ask(self) -> None:
        """Ask all ranks if this one has waited too long."""
        waits = list(self._waits.copy().values())
        if self._answers is not None or not waits or not self.stall_s or self.alarm:
            return
        begin = max(self._patience, min(since for *_, since in waits))
        again = min(self.stall_s, AGAIN_S) if self._last else self.stall_s
        patience = again + min(0.1 * self.comm.rank, 5.0)
        if time.monotonic() - begin > patience:
            self._answers, self._asked = {self.comm.rank: self.status()}, time.monotonic()
            for rank in range(self.comm.size):
                if rank != self.comm.rank:
                    self._send(rank, _QUERY, None)

    def _conclude(self) -> None:
        """Report once all have answered, or had the time to."""
        if self._answers is None:
            return
        late = time.monotonic() - self._asked > ANSWER_S
        if len(self._answers) < self.comm.size and not late:
            return
        answers, self._answers = self._answers, None
        self._patience = time.monotonic()
        if not self._waits:  # it came after all
            self._last = None
            return
        text, stuck = report(answers, self.comm.size)
        hopeless = bool(stuck) and stuck == self._last
        self._last = stuck
        if not stuck:  # else the error says it
            print(f"[rank {self.comm.rank}] {text}", file=sys.stderr, flush=True)
        for rank in range(self.comm.size):
            if rank != self.comm.rank:
                self._send(rank, _REPORT, text if hopeless else "")
        if hopeless:
            self.alarm = text


def _stack() -> str:
    """Return where the user's program is in the main thread, without the frames of this package."""
    frames = traceback.extract_stack(sys._current_frames()[threading.main_thread().ident or 0])
    own = (os.path.dirname(os.path.dirname(__file__)), threading.__file__, "<frozen runpy>")
    theirs = [frame for frame in frames if not frame.filename.startswith(own)]
    return "".join(traceback.format_list((theirs or frames)[-_DEPTH:]))


def report(answers: dict[int, Status], size: int) -> tuple[str, object]:
    """Return the report, and what is stuck: nothing if somebody computes and all answer.

    Example:
        >>> waits = Status(0, "barrier()", "", 60.0, "")
        >>> computes = Status(1, "", "", 0.0, "  line 7")
        >>> print(report({0: waits, 1: computes}, 2)[0])
        stalled for 60 s: rank 0 waits in barrier(); rank 1 computes
        rank 1 is here:
          line 7
    """
    silent = [rank for rank in range(size) if rank not in answers]
    busy = [rank for rank, s in sorted(answers.items()) if not s.call]
    calls: dict[str, list[int]] = {}
    for rank, s in sorted(answers.items()):
        if s.call:
            calls.setdefault(s.call, []).append(rank)
    parts = [_waiting(call, who, answers) for call, who in calls.items()]
    if busy:
        parts.append(_ranks(busy, "compute"))
    if silent:
        parts.append(f"{_ranks(silent, 'do')} not answer: ended, or stopped")
    mixed = not busy and not silent and len(calls) > 1
    if mixed:
        parts.append("make the same calls in the same order on every rank")
    longest = max(s.waited_s for s in answers.values())
    lines = [f"stalled for {longest:.0f} s: " + "; ".join(parts)]
    shown = busy or [who[0] for who in calls.values()]
    lines += [f"rank {rank} is here:\n{answers[rank].stack.rstrip()}" for rank in shown[:4]]
    stuck = (tuple(silent), tuple(calls)) if silent or mixed else None
    return "\n".join(lines), stuck


def _waiting(call: str, ranks: list[int], answers: dict[int, Status]) -> str:
    detail = answers[ranks[0]].detail
    return f"{_ranks(ranks, 'wait')} in {call}" + (f", {detail}" if detail else "")


def _ranks(ranks: list[int], verb: str) -> str:
    """Return ``"ranks 1, 2 wait"`` or ``"rank 1 waits"``."""
    names = ", ".join(map(str, ranks[:16])) + (", …" if len(ranks) > 16 else "")
    if len(ranks) > 1:
        return f"ranks {names} {verb}"
    return f"rank {names} {'does' if verb == 'do' else verb + 's'}"
