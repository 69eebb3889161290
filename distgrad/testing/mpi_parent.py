"""The test plugin outside of mpirun: starts one job per number of ranks and serves its results."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from distgrad.distributed.env import find_mpirun
from distgrad.testing.worlds import World, drop_foreign_skip, world_of

_POLL_S = 0.02
_TERMINATE_S = 3.0
_LOG_TAIL = 3000  # characters
_STACK_LINES = 30
_PYTEST_FRAME = re.compile(r"[/\\](_pytest|pluggy|pytest)[/\\]|<frozen runpy>")

# Open MPI refuses root and more ranks than cores unless told; other MPIs ignore these.
_ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_mpi_yield_when_idle": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": "node:oversubscribe",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


@dataclass(slots=True)
class RankReport:
    """What one rank has said about one test."""

    told: bool = False  # an outcome
    ended: bool = False  # the whole test, tear-down included
    failures: list[str] = field(default_factory=list)
    skipped: str | None = None
    xfailed: str | None = None


class MpiParent:
    """Hooks of the process that the user started."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._suites: dict[int, Suite] = {}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Put the tests for each number of ranks last and together: one job at a time."""
        drop_foreign_skip(items)
        items.sort(key=lambda item: _size(item))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Plan the jobs, once it is known which tests are selected."""
        plan: dict[int, list[pytest.Item]] = {}
        for item in session.items:
            if size := _size(item):
                plan.setdefault(size, []).append(item)
        self._suites = {size: Suite(self._config, size, items) for size, items in plan.items()}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Leave the fixtures of an ``mpi`` test to its ranks."""
        if not _size(item):
            return
        item.fixturenames[:] = []  # type: ignore[attr-defined]
        missing = [name for name in ("mpi4py",) if importlib.util.find_spec(name) is None]
        if _mpirun(self._config) is None:
            missing.append("mpirun")
        if missing:
            pytest.skip(f"{' and '.join(missing)} missing; pip install 'distgrad[mpich]'")

    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> object | None:
        """Take the outcome of an ``mpi`` test from its ranks."""
        size = _size(pyfuncitem)
        if not size:
            return None
        _judge(self._suites[size].reports(pyfuncitem.nodeid))
        return True

    def pytest_sessionfinish(self) -> None:
        """End the jobs of a session that was cut short."""
        for suite in self._suites.values():
            suite.close()


class Suite:
    """The tests for one number of ranks: one job, and another one after each that was ended."""

    def __init__(self, config: pytest.Config, size: int, items: list[pytest.Item]) -> None:
        self.size = size
        self._config = config
        self._paths = {item.nodeid: str(item.path) for item in items}
        self._todo = list(self._paths)
        self._limit: float = config.getoption("mpi_timeout")
        self._job: Job | None = None

    def reports(self, test: str) -> Outcome:
        """Return what the ranks say about ``test``, as soon as they are through with it."""
        job = self._job or self._start()
        why = ""
        while not job.finished(test):
            over = job.over()  # asked first, so that nothing written before the end is missed
            job.read()
            if over and not job.finished(test):
                if test in job.seen or job.first == test:
                    return self._unfinished(job, test, why)
                job = self._start()  # an earlier test ended the job
            elif time.monotonic() - job.last_event > self._limit:
                why = f"; nothing happened for {self._limit} s"
                job.kill()
            time.sleep(_POLL_S)
        self._todo.remove(test)
        return Outcome(self.size, job.seen[test])

    def close(self) -> None:
        """End the job, if one is still running."""
        if self._job is not None:
            self._job.close()
            self._job = None

    def _start(self) -> Job:
        self.close()
        paths = list(dict.fromkeys(self._paths[test] for test in self._todo))
        self._job = Job(self._config, self.size, self._todo, paths)
        return self._job

    def _unfinished(self, job: Job, test: str, why: str) -> Outcome:
        self._todo.remove(test)
        seen = job.seen.get(test, {})
        late = [rank for rank in range(self.size) if rank not in seen or not seen[rank].told]
        text = f"mpirun ended with status {job.status()}{why}"
        text += "".join(f"\n{told}" for told in job.aborts)
        text += "".join(f"\n--- {job.place(rank)}" for rank in late)
        if not any(report.failures for report in seen.values()):
            text += f"\n--- printed\n{job.log()}"
        return Outcome(self.size, seen, text)


@dataclass(slots=True)
class Outcome:
    """What is known of a test: the reports of the ranks, and what kept some from reporting."""

    size: int
    ranks: dict[int, RankReport]
    trouble: str = ""


class Job:
    """One mpirun and what its ranks have reported so far."""

    def __init__(
        self, config: pytest.Config, size: int, tests: list[str], paths: list[str]
    ) -> None:
        self.size = size
        self.first = tests[0]
        self.seen: dict[str, dict[int, RankReport]] = {}
        self.aborts: list[str] = []
        self.last_event = time.monotonic()
        self._pids: dict[int, int] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="distgrad-mpi-"))
        self._offsets = [0] * size
        (self._folder / "tests.json").write_text(json.dumps(tests))
        environment = {**os.environ, **_ENVIRONMENT}
        environment.pop("PYTEST_ADDOPTS", None)
        with open(self._folder / "log", "w") as log:
            self._process = subprocess.Popen(
                _command(config, size, self._folder, paths),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=config.invocation_params.dir,
                start_new_session=True,
            )

    def over(self) -> bool:
        """Return whether mpirun has ended."""
        return self._process.poll() is not None

    def status(self) -> int | None:
        """Return the exit status of mpirun."""
        return self._process.poll()

    def finished(self, test: str) -> bool:
        """Return whether every rank is through with ``test``."""
        ranks = self.seen.get(test, {})
        return len(ranks) == self.size and all(report.ended for report in ranks.values())

    def read(self) -> None:
        """Take in what the ranks have written since the last time."""
        for rank in range(self.size):
            for event in self._lines(rank):
                self.last_event = time.monotonic()
                self._take(rank, event)

    def _lines(self, rank: int) -> Iterator[dict[str, str]]:
        path = self._folder / f"{rank}.jsonl"
        if not path.exists():
            return
        with open(path) as file:
            file.seek(self._offsets[rank])
            text = file.read()
        whole = text[: text.rfind("\n") + 1]
        self._offsets[rank] += len(whole.encode())
        for line in whole.splitlines():
            yield json.loads(line)

    def _take(self, rank: int, event: dict[str, str]) -> None:
        if event["event"] == "started":
            self._pids[rank] = int(event["pid"])
        elif event["event"] == "abort":
            self.aborts.append(f"rank {rank} {event['why']}, and ended the job")
        else:
            reports = self.seen.setdefault(event["test"], {})
            _note(reports.setdefault(rank, RankReport()), event)

    def kill(self) -> None:
        """End mpirun and the ranks, politely first."""
        if not self.over():
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_TERMINATE_S)
        if not self.over():
            for pid in self._pids.values():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """End the job and remove its files; a job whose ranks are through may end by itself."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_TERMINATE_S)
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def place(self, rank: int) -> str:
        """Return where ``rank`` was when it was last heard of."""
        text = f"rank {rank} of {self.size} (process {self._pids.get(rank)}) did not finish"
        path = self._folder / f"{rank}.stacks"
        stacks = path.read_text().split("Timeout (") if path.exists() else []
        if len(stacks) < 2:
            return text
        lines = [ln for ln in stacks[-1].splitlines()[1:] if not _PYTEST_FRAME.search(ln)]
        return "\n".join([text + "; it was here, innermost call first", *lines[:_STACK_LINES]])

    def log(self) -> str:
        """Return the end of what mpirun and the ranks have printed."""
        return (self._folder / "log").read_text(errors="replace")[-_LOG_TAIL:]


def _size(item: pytest.Item) -> int:
    """The number of ranks under mpirun that a test needs; 0 for a test that needs no mpirun."""
    world: World | None = world_of(item)
    return world.size if world is not None and world.backend == "mpi" else 0


def _mpirun(config: pytest.Config) -> str | None:
    given: str | None = config.getoption("mpirun")
    return given or find_mpirun()


def _command(config: pytest.Config, size: int, folder: Path, paths: list[str]) -> list[str]:
    command = [*shlex.split(_mpirun(config) or "mpirun"), "-n", str(size)]
    command += [sys.executable, "-m", "pytest", "-q", "--no-header", "--no-summary"]
    command += ["-p", "no:cacheprovider", "-p", "distgrad.testing.mpi_plugin"]
    command += [f"--rootdir={config.rootpath}", f"--mpi-report={folder}"]
    command += [f"--mpi-timeout={config.getoption('mpi_timeout')}"]
    command += [f"--mpi-grace={config.getoption('mpi_grace')}"]
    if config.inipath is not None:
        command += ["-c", str(config.inipath)]
    if hasattr(config.option, "with_mpi"):  # pytest-mpi is there and would skip the tests
        command.append("--with-mpi")
    return command + paths


def _note(report: RankReport, event: dict[str, str]) -> None:
    report.ended |= event["event"] == "end"
    report.told |= event["event"] == "report"
    if event.get("outcome") == "failed":
        report.failures.append(f"({event['when']})\n{event['text']}")
    elif event.get("outcome") == "skipped":
        report.skipped = event["text"]
    elif event.get("outcome") == "xfailed":
        report.xfailed = event["text"]


def _judge(outcome: Outcome) -> None:
    """Give the test of this process the outcome that its ranks had."""
    __tracebackhide__ = True
    failures = [
        f"--- rank {rank} of {outcome.size} {text}"
        for rank, report in sorted(outcome.ranks.items())
        for text in report.failures
    ]
    if outcome.trouble:
        failures.append(f"--- {outcome.trouble}")
    if failures:
        pytest.fail("\n".join(failures), pytrace=False)
    for report in outcome.ranks.values():
        if report.xfailed is not None:
            pytest.xfail(report.xfailed)
        if report.skipped is not None:
            pytest.skip(report.skipped)
