"""The test plugin inside a rank: reports to the parent, and leaves every test with the others.

A rank that fails while the others sit in a collective would leave them there. So after each test
body all ranks agree on having finished it; a failed rank whose fellows do not come ends the job.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Generator
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from distgrad.distributed.mpi import start_mpi
from distgrad.distributed.waiting import nap_s
from distgrad.testing.stacks import Stacks
from distgrad.testing.worlds import drop_foreign_skip, world_of

ABORTED = 86  # exit status of a job that a failed rank ended
STACKS_PER_LIMIT = 5  # times within a limit that a rank writes down where it is


class MpiRank:
    """Hooks of one rank."""

    def __init__(self, config: pytest.Config) -> None:
        self._mpi = start_mpi()
        self._comm = self._mpi.COMM_WORLD.Dup()
        self._config = config
        self._limit: float = config.getoption("mpi_timeout")
        self._grace: float = config.getoption("mpi_grace")
        folder = config.getoption("mpi_report")
        self._folder = None if folder is None else Path(folder)
        self._agreed = False
        self._stacks: Stacks | None = None
        self._events: IO[str] | None = None
        if self._folder is not None:
            every_s = min(self._grace / 2, self._limit / STACKS_PER_LIMIT)
            file = (self._folder / f"{self._comm.rank}.stacks").open("w")
            self._stacks = Stacks(file, every_s, self._limit)
            self._events = (self._folder / f"{self._comm.rank}.jsonl").open("w")
        self._tell(event="started", pid=os.getpid())

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Keep the tests of this number of ranks, and of those the ones the parent asks for."""
        drop_foreign_skip(items)
        wanted: set[str] | None = None
        if self._folder is not None:
            wanted = set(json.loads((self._folder / "tests.json").read_text()))
        kept: list[pytest.Item] = []
        dropped: list[pytest.Item] = []
        for item in items:
            world = world_of(item)
            here = world is None or (world.backend == "mpi" and world.size == self._comm.size)
            asked = wanted is None or item.nodeid in wanted
            (kept if here and asked else dropped).append(item)
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Report the start and end of a test."""
        self._agreed = False
        self._tell(event="begin", test=item.nodeid)
        self._watch()
        result = yield
        if self._stacks is not None:
            self._stacks.stop()
        self._tell(event="end", test=item.nodeid)
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Report an outcome, and meet the other ranks before anything is torn down."""
        report = yield
        if report.when == "call" or report.outcome != "passed":
            self._tell(
                event="report",
                test=item.nodeid,
                when=report.when,
                outcome="xfailed" if hasattr(report, "wasxfail") else report.outcome,
                text=_text(report),
            )
        if report.failed and self._folder is None:  # at once, as the job may be ended
            self._print(f"{item.nodeid}\n{_text(report)}")
        self._watch()
        last = report.when == "call" or (report.when == "setup" and report.outcome != "passed")
        if last and not self._agreed:
            self._agreed = True
            self._agree(report.failed, item.nodeid)
        return report

    def _watch(self) -> None:
        """Write down now and then where this rank is."""
        if self._stacks is not None:
            self._stacks.start()

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """End the job if this rank stops early, on an error at collection for one."""
        early = (
            pytest.ExitCode.INTERRUPTED,
            pytest.ExitCode.INTERNAL_ERROR,
            pytest.ExitCode.USAGE_ERROR,
        )
        if exitstatus in early:
            self._abort(f"pytest ends with status {int(exitstatus)}")

    def _agree(self, failed: bool, test: str) -> None:
        """Return when all ranks are here; end the job if they do not come."""
        mine, worst = np.array([failed], np.int32), np.zeros(1, np.int32)
        request = self._comm.Iallreduce(mine, worst, op=self._mpi.MAX)
        limit = self._grace if failed else self._limit
        started = time.monotonic()
        while not request.Test():
            waited = time.monotonic() - started
            if waited > limit:
                state = "failed in" if failed else "finished"
                self._abort(f"{state} {test} and the other ranks did not follow in {limit} s")
            time.sleep(nap_s(waited))

    def _abort(self, why: str) -> None:
        self._print(f"{why}: the job is ended")
        self._tell(event="abort", why=why)
        self._mpi.COMM_WORLD.Abort(ABORTED)
        os._exit(ABORTED)  # MPICH's Abort may return before the process is killed

    def _print(self, text: str) -> None:
        """Print past pytest's capture, which would be lost with the job."""
        capture = self._config.pluginmanager.get_plugin("capturemanager")
        with capture.global_and_fixture_disabled() if capture else nullcontext():
            print(f"\n[rank {self._comm.rank}] {text}", file=sys.stderr, flush=True)

    def _tell(self, **event: Any) -> None:
        if self._events is not None:
            self._events.write(json.dumps(event) + "\n")
            self._events.flush()


def _text(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):  # a skip: file, line, reason
        return str(report.longrepr[2])
    printed = "".join(f"\n{title}\n{text}" for title, text in report.sections if text.strip())
    return report.longreprtext + printed
