"""The supervisor: starts the ranks, watches them, and starts them again from the last checkpoint.

It is outside of MPI, so whatever happens to the ranks does not happen to it.  ``--max-restarts`` or
``--stall-timeout`` puts it there; without them the launcher becomes mpirun.

Note [Signals]: the first TERM, INT or USR1 is passed on to every rank over the connection of its
heartbeat, because Open MPI's mpirun ends its ranks a quarter of a second after it gets a TERM.  The
ranks save the same step and end with status 75.  One that insists (`signals.Requests`) ends
everything at once.
"""

from __future__ import annotations

import json
import os
import resource
import secrets
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

from distgrad.launch import blas, rundir, spawn
from distgrad.launch.rundir import RunDir
from distgrad.launch.signals import SIGNALS, Requests, told
from distgrad.launch.supervise import hosts
from distgrad.launch.supervise.attempt import Attempt, Limits
from distgrad.launch.supervise.child import Child, new_folder, program
from distgrad.launch.supervise.hosts import Host, Remote
from distgrad.launch.supervise.listener import Listener
from distgrad.launch.supervise.outcome import (
    NO_HOSTS,
    OK,
    PREEMPTED,
    Outcome,
    pause_s,
    why_not_again,
)
from distgrad.launch.supervise.wire import ATTEMPT, JOB, SUPERVISOR, TOKEN

_OTHER_FILES = 512
_FIRST_HOSTS_S = 10.0  # hosts that are about to come up have so long before the first attempt


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be run, where, and how often.

    Args:
        ssh: the words that reach a host.
        threads: of BLAS on a rank.
    """

    nproc: int
    hosts: tuple[Host, ...]
    min_ranks: int | None
    max_restarts: int
    limits: Limits
    ssh: str
    threads: int
    run: RunDir


class Supervisor:
    """Runs a job to its end."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.outcomes: list[Outcome] = []
        self._remote = Remote(plan.ssh)
        self._requests = Requests()
        self._signals: list[int] = []  # the first, and one that insists
        self._name = secrets.token_hex(6)

    def run(self) -> int:
        """Return the exit status of the job."""
        with self._handling():
            try:
                return self._attempts()
            finally:
                self._remote.close()

    def _attempts(self) -> int:
        while True:
            live = self._reach()
            if self._signals:
                return self._stopped("before the ranks were started")
            ranks = hosts.placed(live, self.plan.hosts, self.plan.nproc)
            if ranks < self._least():
                return self._too_few(ranks)
            status = self._attempt(live, ranks)
            if status is not None:
                return status
            self._pause(pause_s(self.outcomes))

    def _least(self) -> int:
        """Return how many ranks must be left: all at first, if ``--min-ranks`` does not say."""
        first = self.plan.nproc if not self.outcomes else 1
        return first if self.plan.min_ranks is None else min(self.plan.min_ranks, self.plan.nproc)

    # ------------------------------------------------------------------ hosts
    def _reach(self) -> list[Host]:
        """Return the hosts that answer; waits a little for those that the first attempt lacks."""
        plan = self.plan
        if not plan.hosts:
            return []
        until = time.monotonic() + (_FIRST_HOSTS_S if not self.outcomes else 0.0)
        told: set[str] = set()
        while True:
            answers = self._remote.ask_all([host.name for host in plan.hosts], "true")
            for answer in answers.values():
                if not answer.ok and answer.reason not in told:
                    self._say(answer.reason)
                    told.add(answer.reason)
            live = [host for host in plan.hosts if answers[host.name].ok]
            if len(live) == len(plan.hosts) or time.monotonic() > until or self._signals:
                return live
            self._pause(1.0)

    def _too_few(self, ranks: int) -> int:
        least, asked = self._least(), self.plan.nproc
        hint = "" if self.plan.min_ranks else f"; --min-ranks N lets less than {asked} begin"
        return self._end(
            NO_HOSTS, f"the hosts that answer have room for {ranks} of {least} ranks{hint}"
        )

    # ------------------------------------------------------------------ one attempt
    def _attempt(self, live: Sequence[Host], ranks: int) -> int | None:
        """Run the ranks once; return the exit status of the job, or None if it is to go on."""
        number = len(self.outcomes)
        before = _step_of(self.plan.run)
        attempt = self._start(live, ranks, number)
        attempt.step_before = before
        self._note("start", attempt=number, ranks=ranks, hosts=[h.name for h in live], step=before)
        if number:
            where = f" on {', '.join(host.name for host in live)}" if live else ""
            source = f"from step {before}" if before else "from the beginning"
            count = f"{ranks} rank{'s' * (ranks > 1)}"
            limit = self.plan.max_restarts
            self._say(f"restart {number} of {limit} with {count}{where}, {source}")
        try:
            outcome = self._watch(attempt)
            if outcome is None:
                return self._at_once(attempt)
            return self._judge(attempt, outcome)
        finally:
            attempt.end()
            attempt.close()

    def _start(self, live: Sequence[Host], ranks: int, number: int) -> Attempt:
        plan = self.plan
        job = f"{self._name}-{number}"
        _open_files(ranks)
        listener = Listener(hosts.address_for([h for h in live if not hosts.is_here(h.name)]))
        environment = os.environ | {
            SUPERVISOR: str(listener.address), TOKEN: listener.token, ATTEMPT: str(number),
            JOB: job, spawn.STARTED: "1", "DISTGRAD_RUN_DIR": str(plan.run.path.absolute()),
        }  # fmt: skip
        if not live:
            environment |= blas.missing(plan.threads)
        words, folder = program(), new_folder()
        mpirun = spawn.matching_mpirun() if ranks > 1 or live else None
        if mpirun is not None:
            given = ",".join(map(str, live)) or None
            ssh = self._remote.options() if live else []
            apart, more = spawn.kept_apart(mpirun, folder, ssh, listener.address.host)
            start = spawn.command(mpirun, ranks, given, None, environment, plan.min_ranks)
            words = [*start, *apart, *words]
            environment |= more
        sys.stdout.flush()
        child = Child(words, environment, folder)
        return Attempt(child, listener, self._remote, job, ranks, live, plan.limits)

    def _watch(self, attempt: Attempt) -> Outcome | None:
        """Return how the attempt ended, or None if a second signal is to end all at once."""
        passed_on, noted, ranks = False, False, attempt.size
        while True:
            outcome = attempt.poll()
            if attempt.moving_at is not None and not noted:
                noted = True
                self._note("trains", attempt=len(self.outcomes), step=attempt.step())
            if outcome is not None:
                return outcome
            if attempt.running_at is not None and len(attempt.members()) < ranks:
                ranks = len(attempt.members())
                self._note("shrunk", attempt=len(self.outcomes), ranks=ranks, step=attempt.step())
            if len(self._signals) > 1:
                return None
            if self._signals and not passed_on:
                passed_on = True
                if attempt.running_at is None:
                    return Outcome("stopped", OK, "the ranks had not begun")
                self._say(told(self._signals[0], "the ranks save and stop"))
                attempt.tell_signal(self._signals[0])

    def _at_once(self, attempt: Attempt) -> int:
        number = self._signals[-1]
        return self._end(128 + number, f"{signal.Signals(number).name} again: ended at once")

    def _judge(self, attempt: Attempt, outcome: Outcome) -> int | None:
        """Return the exit status of the job, or None if another attempt is to follow."""
        self.outcomes.append(outcome)
        self._note(
            "end", kind=outcome.kind, status=outcome.status, reason=outcome.reason,
            step=outcome.step, attempt=len(self.outcomes) - 1,
        )  # fmt: skip
        if outcome.kind == "done" or (outcome.kind == "stopped" and outcome.status):
            late = attempt.leave()
            if late:
                self._say(late)
            return outcome.status
        if self._signals or outcome.kind == "stopped":
            return self._stopped(outcome.reason)
        where = f", at step {outcome.step}" if outcome.step else ""
        self._say(outcome.reason + where)
        if outcome.detail:
            print(outcome.detail, file=sys.stderr, flush=True)
        why = why_not_again(self.outcomes, self.plan.max_restarts)
        if why is None:
            return None
        return self._end(outcome.status, f"{why}: {outcome.reason}")

    # ------------------------------------------------------------------ the end
    def _stopped(self, reason: str) -> int:
        """Return the status of a job that a signal has ended without a common last step."""
        number = self._signals[0] if self._signals else signal.SIGTERM
        name, step = signal.Signals(number).name, _step_of(self.plan.run)
        if step:
            return self._end(PREEMPTED, f"stopped by {name} ({reason}); goes on from step {step}")
        return self._end(128 + number, f"stopped by {name} ({reason}); there is no checkpoint")

    def _end(self, status: int, why: str) -> int:
        self._say(f"ends with status {status}: {why}")
        self._note("over", status=status, reason=why)
        return status

    def _say(self, text: str) -> None:
        with suppress(OSError):
            print(f"distgrad.launch: {text}", file=sys.stderr, flush=True)

    def _note(self, event: str, **values: Any) -> None:
        """Append a line to the supervisor's record in the run directory."""
        row = {"time": round(time.time(), 3), "event": event, **values}
        with suppress(OSError), (self.plan.run.path / "supervisor.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    # ------------------------------------------------------------------ signals
    @contextmanager
    def _handling(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._requests.ends(number, time.monotonic()) or not self._signals:
            self._signals.append(number)

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._signals:
            time.sleep(min(0.1, seconds))


def _open_files(ranks: int) -> None:
    """Let this process have a connection to each of ``ranks`` ranks."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ranks + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _step_of(run: RunDir) -> int:
    """Return the step of the newest checkpoint of ``run``; 0 if there is none."""
    newest = rundir.latest_checkpoint(run)
    digits = newest.name.removeprefix("step_") if newest is not None else ""
    return int(digits) if digits.isdigit() else 0
