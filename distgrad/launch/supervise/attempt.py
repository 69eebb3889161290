"""One attempt: start the ranks, watch them, say how it ended.

Note [What counts]: nothing that mpirun says counts as success: it returns 0 after lost hosts and
after ranks that left early.  An attempt is done when rank 0 has said that all ranks agreed on the
end, or when every rank has said that its program ended.

Note [Silence]: a rank that has said nothing for `SILENT_S` is looked at, on its own host.  One that
is gone or stopped, or whose host does not answer, is lost.  One that runs may compute in a library
that lets no other Python thread run: it has the time of ``--stall-timeout``.

Note [Shrinking]: where survivors may go on without a rank that died, they have `SHRINK_S` to say
that they do.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from distgrad.launch.supervise import explain, hosts
from distgrad.launch.supervise.child import Child
from distgrad.launch.supervise.hosts import Host, Remote
from distgrad.launch.supervise.listener import Listener, Rank
from distgrad.launch.supervise.outcome import LOST, PREEMPTED, USAGE, Outcome

POLL_S = 0.05
SILENT_S = 2.0
SHRINK_S = 5.0
_ANSWER_S = 1.0  # for stacks
_LAST_WORDS_S = 0.5  # of ranks, once mpirun has ended
_MPIRUN_S = 1.0  # to find out that a rank is lost, or has failed, and show what it has said
_LOST_HOST = "is on a host that does not answer"
_CHECK_S_OF_RANK = 1e-4  # so that looking at 10,000 ranks leaves time to hear them
_CHANGING = re.compile(r"0x[0-9a-f]+|\d+")  # what differs between two reports of one failure
_AT_ONCE_S = 0.01  # mpirun takes longer to end the other ranks
_HOSTS_EVERY_S = 5.0  # while the start takes long


@dataclass(frozen=True, slots=True)
class Limits:
    """How long things may take, in seconds; 0 is for ever."""

    start_s: float
    stall_s: float
    exit_s: float
    shrinks: bool  # whether survivors may go on without a rank


class Attempt:
    """The ranks of one attempt and what the supervisor knows of them.

    Args:
        job: marks all processes of the attempt.
        ranks: how many there are.
        on: the hosts that they are on; none is this host alone.
    """

    def __init__(
        self,
        child: Child,
        listener: Listener,
        remote: Remote,
        job: str,
        ranks: int,
        on: Sequence[Host],
        limits: Limits,
    ) -> None:
        self.child, self.listener, self.remote = child, listener, remote
        self.job, self.size, self.hosts, self.limits = job, ranks, tuple(on), limits
        self.began = time.monotonic()
        self.running_at: float | None = None  # all ranks have begun their program
        self.moving_at: float | None = None  # the first step
        self.signal: int | None = None  # that the ranks have been told of
        self._looks: dict[int, tuple[float, Future[str] | None]] = {}
        self._pool = ThreadPoolExecutor(16, thread_name_prefix="distgrad-look")
        self._probe: Future[str] | None = None
        self._probed = self.began
        self.step_before = 0
        self._checks = (
            self._unlike, self._done, self._failed, self._lost, self._left, self._late,
            self._stalled,
        )  # fmt: skip
        self._checked = 0.0
        self._compared = False  # whether all ranks have the same software
        self._names = {a: host.name for host in self.hosts for a in hosts.addresses(host.name)}

    # ------------------------------------------------------------------ watching
    def poll(self) -> Outcome | None:
        """Take in what has happened; return the outcome once there is one."""
        self.listener.poll(POLL_S)
        now = time.monotonic()
        if now - self._checked < _CHECK_S_OF_RANK * self.size:
            return None
        self._checked = now
        self.child.forward()
        self._note_times()
        for check in self._checks:
            outcome = check()
            if outcome is not None:
                where = tuple(host.name for host in self.hosts)
                return replace(outcome, hosts=where, began=self.step_before)
        return None

    def tell_signal(self, number: int) -> None:
        """Let every rank have this signal."""
        self.signal = number
        self.listener.tell({"do": "signal", "number": number})

    def step(self) -> int:
        """Return the step that the ranks have come to."""
        return max((rank.step for rank in self.listener.ranks.values()), default=0)

    def members(self) -> list[Rank]:
        """Return the ranks that are part of the world as it is now."""
        every = self.listener.ranks
        told = [r.members for r in every.values() if r.lost is None and r.members is not None]
        names = min(told, key=len) if told else tuple(every)
        return [every[name] for name in sorted(names) if name in every]

    def _note_times(self) -> None:
        now, ranks = time.monotonic(), self.listener.ranks
        if self.running_at is None and len(ranks) == self.size:
            if all(rank.runs for rank in ranks.values()):
                self.running_at = now
        if self.running_at is not None and self.moving_at is None:
            if any(rank.step > self.step_before for rank in ranks.values()):
                self.moving_at = now

    # ------------------------------------------------------------------ the end that is wanted
    def _done(self) -> Outcome | None:
        """Return the end on which all ranks agree."""
        said = self.listener.agreed
        if said is None:
            members = self.members()
            if len(members) < self.size and not any(r.members for r in members):
                return None
            if not members or any(rank.ended is None for rank in members):
                return None
            said = {"agreed": max(rank.ended or 0 for rank in members)}
        status = int(said["agreed"])
        if status == PREEMPTED:
            return Outcome("stopped", status, "all ranks saved the same step", self.step())
        return Outcome("done", status, "all ranks agreed on the end", self.step(), final=True)

    def _unlike(self) -> Outcome | None:
        """Return that the hosts have different software, which gives other bits or none at all."""
        if self._compared or len(self.listener.ranks) < self.size:
            return None
        self._compared = True
        first, *others = (self.listener.ranks[number] for number in range(self.size))
        for other in others:
            mine, theirs = first.hello.get("versions"), other.hello.get("versions")
            if mine != theirs:
                text = explain.different(first, other)
                return Outcome("start", USAGE, text, what=text, final=True)
        return None

    # ------------------------------------------------------------------ failures
    def _failed(self) -> Outcome | None:
        """Return the failure that a rank reports, if that came before any rank was lost."""
        failed = [rank for rank in self.listener.ranks.values() if rank.failed is not None]
        if not failed:
            return None
        first = min(failed, key=lambda rank: rank.failed_at)
        lost = [rank.lost or 0.0 for rank in self._missing() if rank.failed is None]
        if lost and min(lost) < first.failed_at:
            return None  # the failure is what that loss led to
        if self.child.status() is None and time.monotonic() - first.failed_at < _MPIRUN_S:
            return None  # its traceback is on its way
        assert first.failed is not None
        status, text = int(first.failed["failed"]), str(first.failed.get("error", ""))
        final = bool(first.failed.get("usage"))
        reason = f"{first.named}: {text}"
        return Outcome(
            "failed", status or 1, reason, first.step, _CHANGING.sub("#", text), final
        )  # fmt: skip

    def _missing(self) -> list[Rank]:
        """Return the members whose connection broke before their program had ended."""
        return [r for r in self.members() if r.lost is not None and r.ended is None]

    def _lost(self) -> Outcome | None:
        """Return that ranks are lost, once their last words, or the survivors', would be here."""
        now = time.monotonic()
        silent = self._silent(now)
        missing = self._missing()
        if not missing and not silent:
            return None
        patience = SHRINK_S if self.limits.shrinks else _MPIRUN_S
        if self.child.status() is not None:
            patience = 0.0
        if not silent and now - max(rank.lost or now for rank in missing) < patience:
            return None
        return self._loss(silent or self._first_to_go(missing))

    def _first_to_go(self, missing: Sequence[Rank]) -> dict[int, str]:
        """Return which of the missing ranks took the others along, and how it ended."""
        said = self.child.said()
        named = explain.first_to_end(said, missing)
        ends = {rank.rank: rank.lost or 0.0 for rank in missing}
        at_once = min(ends.values()) + _AT_ONCE_S
        blamed = [named] if named else [rank for rank in missing if ends[rank.rank] < at_once]
        how = explain.how_ended(said, self.child.status())
        return {rank.rank: f"has ended without a word{how}" for rank in blamed}

    def _loss(self, words: dict[int, str]) -> Outcome:
        ranks = self.listener.ranks
        reason = "; ".join(f"{ranks[n].named} {w}" for n, w in sorted(words.items())[:4])
        if len(words) > 4:
            reason += f"; and {len(words) - 4} more"
        stacks = [
            f"{ranks[n].named} was here last:\n{ranks[n].stack.rstrip()}"
            for n in sorted(words)[:4]
            if ranks[n].stack and words[n].startswith(hosts.STOPPED)
        ]
        what = f"lost {sorted(words)}"
        return Outcome("lost", LOST, reason, self.step(), what, detail="\n".join(stacks))

    def _silent(self, now: float) -> dict[int, str]:
        """Return what is known of ranks that do not beat and will not again."""
        found = {}
        for rank in self.members():
            if rank.lost is not None or rank.ended is not None or not rank.runs:
                continue
            if now - rank.heard < SILENT_S:
                self._looks.pop(rank.rank, None)
                continue
            state = self._look(rank, now)
            if state in hosts.FINAL or state.startswith(_LOST_HOST):
                found[rank.rank] = f"{state}, silent for {now - rank.heard:.0f} s"
        return found

    def _look(self, rank: Rank, now: float) -> str:
        """Return the state of a rank's process as far as it is known; asks again now and then."""
        since, future = self._looks.get(rank.rank, (0.0, None))
        if future is None or (future.done() and now - since > SILENT_S):
            old = future.result() if future is not None else ""
            self._looks[rank.rank] = now, self._pool.submit(self._state, rank)
            return old
        return future.result() if future.done() else ""

    def _state(self, rank: Rank) -> str:
        """Return the state of a rank's process in words; takes as long as its host."""
        name = self._host_of(rank)
        if name is None:
            return hosts.state_here(rank.pid)
        answer = self.remote.ask(name, f"cat /proc/{int(rank.pid)}/stat 2>/dev/null; true")
        return hosts.state_in_words(answer.text) if answer.ok else f"{_LOST_HOST}: {name}"

    def _host_of(self, rank: Rank) -> str | None:
        """Return the name by which a rank's host is reached; None if it is this one."""
        if not self.hosts or rank.peer.startswith("127."):
            return None
        name = self._names.get(rank.peer, rank.host)
        return None if hosts.is_here(name) else name

    # ------------------------------------------------------------------ mpirun ended
    def _left(self) -> Outcome | None:
        """Return why mpirun has ended before the job was done."""
        status = self.child.status()
        if status is None:
            return None
        until = time.monotonic() + _LAST_WORDS_S
        while time.monotonic() < until:  # what the ranks have said is on its way
            self.listener.poll(POLL_S)
            ended = self._done() or self._failed()
            if ended is not None:
                return ended
        self.child.forward()
        said = self.child.said()
        lost = self._missing() or [rank for rank in self.members() if rank.ended is None]
        if any(rank.runs for rank in lost):
            return self._loss(self._first_to_go(lost))
        return self._never_began(explain.why_not_started(said, status, self.listener.refused))

    def _never_began(self, reason: str) -> Outcome:
        here = len(self.listener.ranks)
        if here < self.size:
            reason += f" ({here} of {self.size} ranks had begun)"
        return Outcome("start", LOST, reason, self.step(), reason.partition("(")[0])

    # ------------------------------------------------------------------ deadlines
    def _late(self) -> Outcome | None:
        """Return that the start takes too long, or that a host has died meanwhile."""
        now, limit = time.monotonic(), self.limits.start_s
        if self.running_at is not None:
            return None
        dead = self._dead_host(now)
        if dead:
            return self._never_began(dead)
        if not limit or now - self.began < limit:
            return None
        ranks = self.listener.ranks
        absent = [n for n in range(self.size) if n not in ranks]
        waiting = [rank.rank for rank in ranks.values() if not rank.runs]
        what = f"the ranks have not begun within {limit:g} s (--start-timeout): "
        if absent:
            what += f"{explain.ranks_in_words(absent)} never reported"
        else:
            what += f"{explain.ranks_in_words(waiting)} did not come back from MPI's start"
        hint = "; look for a firewall between the hosts" if len(self.hosts) > 1 else ""
        return self._never_began(what + hint)

    def _dead_host(self, now: float) -> str:
        """Return which host does not answer, asked now and then while the ranks start."""
        if not self.hosts or now - self._probed < _HOSTS_EVERY_S:
            return ""
        if self._probe is None:
            self._probe = self._pool.submit(self._unreachable)
            return ""
        if not self._probe.done():
            return ""
        dead, self._probe, self._probed = self._probe.result(), None, now
        return dead

    def _unreachable(self) -> str:
        answers = self.remote.ask_all([host.name for host in self.hosts], "true")
        return "; ".join(answer.reason for answer in answers.values() if not answer.ok)

    def _stalled(self) -> Outcome | None:
        """Return that no rank has made progress for too long, with the stacks of all."""
        now, limit = time.monotonic(), self.limits.stall_s
        ranks = self.members()
        if not limit or self.running_at is None or not any(rank.paced for rank in ranks):
            return None
        still = now - max(rank.moved for rank in ranks)
        if still < limit:
            return None
        self._ask_for_stacks(ranks)
        if max(rank.moved for rank in ranks) > now:
            return None  # it went on just now
        states = {rank.rank: self._state(rank) for rank in ranks if not rank.asked}
        text, culprits = explain.stall(ranks, states, still)
        what = f"stalled {sorted(culprits)}"
        return Outcome("stalled", LOST, text[0], self.step(), what, detail="\n".join(text[1:]))

    def _ask_for_stacks(self, ranks: Sequence[Rank]) -> None:
        for rank in ranks:
            rank.asked = False
        self.listener.tell({"do": "stack"})
        until = time.monotonic() + _ANSWER_S
        while time.monotonic() < until and not all(rank.asked for rank in ranks):
            self.listener.poll(POLL_S)

    # ------------------------------------------------------------------ the end of the processes
    def leave(self) -> str:
        """Return what is to be said once all processes had time to end by themselves."""
        limit = self.limits.exit_s or float("inf")
        until = time.monotonic() + limit
        while self.child.status() is None and time.monotonic() < until:
            self.listener.poll(POLL_S)
            self.child.forward()
        self.child.forward()
        if self.child.status() is not None:
            return ""
        present = [rank for rank in self.listener.ranks.values() if rank.lost is None]
        there = [rank.rank for rank in present if not rank.left] or [r.rank for r in present]
        who = f"{explain.ranks_in_words(there)} did not exit" if there else "mpirun did not exit"
        return f"{who} within {limit:g} s of the end (--exit-timeout), so the job was ended"

    def end(self) -> None:
        """End every process of the attempt, on all hosts that answer."""
        names = [host.name for host in self.hosts if not hosts.is_here(host.name)]
        sweep = hosts.sweep_command(self.job)
        swept = [self._pool.submit(self.remote.ask, name, sweep) for name in names]
        hosts.end_here([rank.pid for rank in self.listener.ranks.values()], self.job)
        self.child.end()
        hosts.sweep_here(self.job)
        for future in swept:
            future.result()

    def close(self) -> None:
        """Let go of connections and files."""
        self.listener.close()
        self.child.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
