"""The plugin for tests on several ranks: what it shows, and that no failure makes it hang."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distgrad.distributed import find_mpirun

CONFTEST = 'pytest_plugins = ["distgrad.testing.mpi_plugin"]\n'
HEAD = """
import os, signal, time
import pytest

pytestmark = pytest.mark.mpi(sizes=(2,))

def on(group, rank):
    return group.backend == "mpi" and group.rank == rank

def test_before(group):
    assert group.all_gather_object(group.rank) == list(range(group.size))

"""
TAIL = """
def test_after(group):
    group.barrier()
"""


def run(folder: Path, body: str, *options: str, prefix: tuple[str, ...] = ()) -> tuple[str, float]:
    """The output of pytest over a file with ``body`` between two good tests, and its seconds."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(HEAD + body + TAIL)
    (folder / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--color=no"]
    environ = {
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": "node:oversubscribe",
    }
    started = time.monotonic()
    done = subprocess.run(
        [*prefix, *command, "--mpi-grace=1", *options],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=120,
        env={**os.environ, **environ},
    )
    return done.stdout, time.monotonic() - started


def outcomes(output: str) -> dict[str, str]:
    return dict(re.findall(r"^test_it.py::(\S+) (PASSED|FAILED|SKIPPED|XFAIL)", output, re.M))


needs_mpirun = pytest.mark.skipif(
    find_mpirun() is None, reason="mpirun missing; pip install 'distgrad[mpich]'"
)


def test_a_body_with_a_group_runs_in_every_world(tmp_path: Path) -> None:
    output, _ = run(tmp_path, "")
    worlds = ["local", "threads-2", "threads-3", "threads-4", "mpi-2"]
    want = {f"test_{name}[{world}]": "PASSED" for name in ("before", "after") for world in worlds}
    assert outcomes(output) == want


FAILURES = {
    "assertion on one rank": (
        "assert not on(group, 1), 'one is wrong'\n    group.barrier()",
        ["--- rank 1 of 2 (call)", "AssertionError: one is wrong", "in barrier", "did not finish"],
    ),
    "all ranks": (
        "print('printed by', group.rank)\n    assert group.backend != 'mpi'",
        ["--- rank 0 of 2 (call)", "--- rank 1 of 2 (call)", "printed by 1"],
    ),
    "kill": (
        "if on(group, 1): os.kill(os.getpid(), signal.SIGKILL)\n    group.barrier()",
        ["rank 1 of 2 (process", "did not finish"],
    ),
    "exit": (
        "if on(group, 1): os._exit(0)\n    group.barrier()",
        ["rank 1 of 2 (process", "did not finish"],
    ),
    "sleep": (
        "if on(group, 0): time.sleep(100)\n    group.barrier()",
        ["barrier() on channel 'user': rank 1 of 2 waited 4.0 s", "in test_it"],
    ),
    "endless loop of all ranks": (
        "while group.backend == 'mpi': time.sleep(0.01)",
        ["nothing happened for 8.0 s", "rank 0 of 2 (process", "in test_it"],
    ),
}


@needs_mpirun
@pytest.mark.parametrize("what", list(FAILURES))
def test_a_failing_rank_is_shown_and_the_rest_goes_on(what: str, tmp_path: Path) -> None:
    body, shown = FAILURES[what]
    output, seconds = run(
        tmp_path, f"def test_it(group):\n    {body}\n", "--mpi-timeout=8", "-k", "mpi-2"
    )
    assert outcomes(output) == {
        "test_before[mpi-2]": "PASSED",
        "test_it[mpi-2]": "FAILED",
        "test_after[mpi-2]": "PASSED",
    }
    for text in shown:
        assert text in output
    assert seconds < 40


@needs_mpirun
def test_a_fixture_that_fails_on_one_rank_does_not_hang(tmp_path: Path) -> None:
    body = """
@pytest.fixture
def bad(rank_world):
    from mpi4py import MPI
    assert MPI.COMM_WORLD.rank == 1, "no fixture on rank 0"

def test_it(bad, group):
    group.barrier()
"""
    output, _ = run(tmp_path, body, "-k", "mpi-2")
    assert outcomes(output)["test_it[mpi-2]"] == "FAILED"
    assert outcomes(output)["test_after[mpi-2]"] == "PASSED"
    assert "--- rank 0 of 2 (setup)" in output
    assert "no fixture on rank 0" in output


@needs_mpirun
def test_skips_and_expected_failures_come_through(tmp_path: Path) -> None:
    body = """
def test_skip(group):
    pytest.skip("not here")

@pytest.mark.xfail(reason="known")
def test_it():
    assert False
"""
    output, _ = run(tmp_path, body, "-k", "mpi-2")
    assert outcomes(output)["test_skip[mpi-2]"] == "SKIPPED"
    assert outcomes(output)["test_it[mpi-2]"] == "XFAIL"
    assert "not here" in output


@needs_mpirun
def test_mpirun_pytest_works_directly(tmp_path: Path) -> None:
    pytest.importorskip("pytest_mpi")
    prefix = (find_mpirun() or "", "-n", "2")
    output, _ = run(tmp_path, "", "--with-mpi", prefix=prefix)
    assert output.count("2 passed") == 2
    output, _ = run(
        tmp_path, "def test_it(group):\n    assert group.rank\n    group.barrier()", prefix=prefix
    )
    assert "[rank 0] test_it.py::test_it[mpi-2]" in output
    assert "the other ranks did not follow in 1.0 s: the job is ended" in output


def test_without_mpirun_the_tests_are_skipped_with_the_fix(tmp_path: Path) -> None:
    body = "import distgrad.testing.mpi_parent as p; p.find_mpirun = lambda: None\n"
    output, _ = run(tmp_path, body, "-k", "mpi-2", "-rs")
    assert set(outcomes(output).values()) == {"SKIPPED"}
    assert "mpirun missing; pip install 'distgrad[mpich]'" in output
