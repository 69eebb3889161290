"""What is special to a backend: threads that fail, MPI jobs that end, launchers that do not fit."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from distgrad.distributed import (
    CommunicationThread,
    InlineProgress,
    ProcessGroup,
    WorldHint,
    abort_on_failure,
    default,
    destroy_process_group,
    find_mpirun,
    get_group,
    get_rank,
    init_process_group,
    is_initialized,
    local_group,
    run_ranks,
    start_progress,
    world_from_env,
)
from distgrad.distributed.group import tree_reduce
from distgrad.distributed.waiting import nap_s
from distgrad.errors import ArgumentError, DistributedError

# Environments


@pytest.mark.parametrize(
    ("environ", "hint"),
    [
        ({}, WorldHint()),
        (
            {
                "OMPI_COMM_WORLD_RANK": "3",
                "OMPI_COMM_WORLD_SIZE": "8",
                "OMPI_COMM_WORLD_LOCAL_RANK": "1",
                "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
                "PMIX_RANK": "3",
            },
            WorldHint(3, 8, 1, 2, "Open MPI"),
        ),
        (
            {
                "PMI_RANK": "0",
                "PMI_SIZE": "4",
                "MPI_LOCALRANKID": "0",
                "MPI_LOCALNRANKS": "4",
                "OMPI_ALLOW_RUN_AS_ROOT": "1",
            },
            WorldHint(0, 4, 0, 4, "MPICH"),
        ),
        (
            {
                "MV2_COMM_WORLD_RANK": "1",
                "MV2_COMM_WORLD_SIZE": "2",
                "MV2_COMM_WORLD_LOCAL_RANK": "0",
                "PMI_RANK": "1",
                "PMI_SIZE": "2",
            },
            WorldHint(1, 2, 0, None, "MVAPICH"),
        ),
        (
            {
                "PALS_RANKID": "5",
                "PALS_LOCAL_RANKID": "1",
                "PMI_SIZE": "8",
                "PMI_LOCAL_SIZE": "4",
                "PMI_RANK": "5",
            },
            WorldHint(5, 8, 1, 4, "PALS"),
        ),
        (
            {
                "SLURM_STEP_ID": "0",
                "SLURM_PROCID": "5",
                "SLURM_STEP_NUM_TASKS": "7",
                "SLURM_LOCALID": "1",
                "SLURM_NODEID": "1",
                "SLURM_STEP_TASKS_PER_NODE": "4,3",
                "PMIX_RANK": "5",
            },
            WorldHint(5, 7, 1, 3, "Slurm"),
        ),
        (
            {
                "SLURM_STEP_ID": "0",
                "SLURM_PROCID": "9",
                "SLURM_NTASKS": "11",
                "SLURM_LOCALID": "1",
                "SLURM_NODEID": "2",
                "SLURM_STEP_TASKS_PER_NODE": "4(x2),3",
                "PMI_RANK": "9",
                "PMI_SIZE": "11",
            },
            WorldHint(9, 11, 1, 3, "MPICH"),
        ),
        # a batch script is one process, whatever its allocation
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}, WorldHint()),
        ({"PMIX_RANK": "2"}, WorldHint(rank=2, launcher="PMIx")),
        ({"PMI_RANK": "zero", "PMI_SIZE": "4"}, WorldHint()),
    ],
)
def test_world_is_read_from_every_launcher(environ: dict[str, str], hint: WorldHint) -> None:
    assert world_from_env(environ) == hint


def test_mpirun_beside_python_comes_before_the_one_on_path(tmp_path, monkeypatch) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
        (folder / "mpirun").write_text("#!/bin/sh\n")
        (folder / "mpirun").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(here / "python"))
    environ = {"PATH": str(there)}
    assert find_mpirun(environ) == str(here / "mpirun")
    (here / "mpirun").unlink()
    assert find_mpirun(environ) == str(there / "mpirun")
    assert find_mpirun({"PATH": ""}) is None


# The default group


@pytest.fixture
def no_launcher(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("PMI", "OMPI_COMM", "SLURM_", "MV2_", "PALS_")):
            monkeypatch.delenv(name)


@pytest.fixture
def nothing_initialized(no_launcher):
    yield
    destroy_process_group()


def test_default_group_is_local_without_a_launcher(nothing_initialized) -> None:
    assert not is_initialized()
    group = init_process_group()
    assert (group.backend, group.rank, group.size) == ("local", 0, 1)
    assert get_group() is group
    destroy_process_group()
    assert not is_initialized()
    destroy_process_group()


def test_asking_for_a_missing_group_says_what_to_call(nothing_initialized) -> None:
    with pytest.raises(DistributedError, match=r"call init_process_group\(\) first"):
        get_rank()


def test_a_second_default_group_is_refused(nothing_initialized) -> None:
    init_process_group("local")
    with pytest.raises(DistributedError, match="destroy_process_group"):
        init_process_group("local")


def test_wrong_backends_and_sizes_are_refused_and_leave_nothing(nothing_initialized) -> None:
    with pytest.raises(ArgumentError, match="did you mean mpi"):
        init_process_group("mpii")
    with pytest.raises(DistributedError, match="run_ranks"):
        init_process_group("threads")
    with pytest.raises(DistributedError, match="1 ranks and not world_size=4"):
        init_process_group("local", world_size=4)
    assert not is_initialized()


def test_each_thread_of_run_ranks_has_its_own_default_group() -> None:
    def body(group: ProcessGroup) -> tuple[int, int]:
        assert init_process_group() is group
        assert init_process_group("threads", world_size=3) is group
        with pytest.raises(DistributedError, match=r"rank \d of run_ranks"):
            init_process_group("local")
        return get_rank(), get_group().size

    assert run_ranks(3, body) == [(0, 3), (1, 3), (2, 3)]
    assert default.default_group() is None


# Threads that fail


def test_run_ranks_passes_arguments_and_collects_results_in_rank_order() -> None:
    assert run_ranks(4, lambda group, base: base + group.rank, 10) == [10, 11, 12, 13]


def test_the_first_exception_stops_the_other_ranks_and_comes_out() -> None:
    seen: list[str] = []

    def body(group: ProcessGroup) -> None:
        if group.rank == 1:
            raise ValueError("bad luck")
        try:
            group.barrier()
        except DistributedError as error:
            seen.append(str(error))
            raise

    started = time.monotonic()
    with pytest.raises(ValueError, match="bad luck") as caught:
        run_ranks(3, body)
    assert time.monotonic() - started < 2
    assert caught.value.__notes__ == ["rank 1 of 3"]
    assert len(seen) == 2
    assert all("because rank 1 failed with ValueError: bad luck" in text for text in seen)


def test_abort_stops_every_rank_with_its_reason() -> None:
    def body(group: ProcessGroup) -> None:
        if group.rank == 2:
            group.abort(7, "no disk")
        group.barrier()

    with pytest.raises(DistributedError, match=r"abort\(7\) by rank 2 of 3: no disk"):
        run_ranks(3, body)


def test_waiting_for_a_rank_that_has_returned_is_an_error_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(DistributedError, match="waits for rank 1, which has returned"):
        run_ranks(2, lambda group: group.barrier() if group.rank == 0 else None)
    with pytest.raises(DistributedError, match=r"recv.*waits for rank 1, which has returned"):
        run_ranks(2, lambda group: group.recv(np.ones(1), 1) if group.rank == 0 else None)
    assert time.monotonic() - started < 2


def test_run_ranks_past_its_time_says_where_each_rank_is() -> None:
    stop = threading.Event()

    def never_comes_back(group: ProcessGroup) -> None:
        if group.rank == 1:
            stop.wait(20)

    with pytest.raises(DistributedError, match=r"rank 1 not done after 0.2 s") as caught:
        run_ranks(2, never_comes_back, timeout_s=0.2)
    stop.set()
    assert "never_comes_back" in str(caught.value)


def test_threads_compare_started_works_too() -> None:
    def body(group: ProcessGroup) -> str:
        array = np.full(3, 1.0)
        work = group.channel("buckets").start_all_reduce(array, tag=f"bucket {group.rank}")
        with pytest.raises(DistributedError) as caught:
            work.wait()
        assert (array == 1).all()
        return str(caught.value)

    texts = run_ranks(2, body)
    assert texts[0] == texts[1]
    assert "channel 'buckets'" in texts[0]
    assert "bucket 0" in texts[0]
    assert "bucket 1" in texts[0]


def test_no_ranks_are_refused() -> None:
    with pytest.raises(ArgumentError, match="one rank or more"):
        run_ranks(0, lambda group: None)


@pytest.mark.parametrize("n", range(1, 9))
def test_tree_of_the_ranks_is_aligned(n: int) -> None:
    arrays = list(np.random.default_rng(0).standard_normal((n, 50)).astype(np.float32))

    def tree(lo: int, hi: int) -> np.ndarray:
        if hi - lo == 1:
            return arrays[lo]
        half = 1 << ((hi - lo - 1).bit_length() - 1)  # largest power of two below the width
        return tree(lo, lo + half) + tree(lo + half, hi)

    np.testing.assert_array_equal(tree_reduce("sum", arrays), tree(0, n))


# Progress


class _Later:
    """Work that is complete after some tests."""

    call, sequence = "later", 1

    def __init__(self, tests: int, error: Exception | None = None) -> None:
        self.left, self.error = tests, error

    def test(self) -> bool:
        self.left -= 1
        if self.left <= 0 and self.error is not None:
            raise self.error
        return self.left <= 0


def _fail() -> _Later:
    raise KeyError("at the start")


PROGRESS = [CommunicationThread, InlineProgress]


@pytest.mark.parametrize("kind", PROGRESS)
def test_errors_of_a_job_reach_the_one_who_waits(kind) -> None:
    progress = kind(timeout_s=10)
    bad = progress.submit(lambda: _Later(5, ValueError("in the middle")))
    worse = progress.submit(_fail)
    good = progress.submit(lambda: _Later(5))
    with pytest.raises(ValueError, match="in the middle"):
        bad.wait()
    with pytest.raises(KeyError, match="at the start"):
        worse.wait()
    good.wait()
    assert bad.is_completed()
    progress.close()


@pytest.mark.parametrize("kind", PROGRESS)
def test_switch_interval_is_short_only_while_jobs_are_open(kind) -> None:
    usual = sys.getswitchinterval()
    progress = kind(timeout_s=10)
    jobs = [progress.submit(lambda: _Later(50)), progress.submit(_fail)]
    assert sys.getswitchinterval() == pytest.approx(1e-4)
    jobs[0].wait()
    with pytest.raises(KeyError):
        jobs[1].wait()
    assert sys.getswitchinterval() == pytest.approx(usual)
    progress.close()


@pytest.mark.parametrize("kind", PROGRESS)
def test_jobs_that_never_end_time_out_and_are_given_up_at_close(kind) -> None:
    usual = sys.getswitchinterval()
    progress = kind(timeout_s=0.05)
    job = progress.submit(lambda: _Later(10**9))
    with pytest.raises(DistributedError, match=r"later: not complete after 0.05 s"):
        job.wait()
    progress.close(0.05)
    with pytest.raises(DistributedError, match="later: given up"):
        job.wait()
    with pytest.raises(DistributedError, match="submit before close"):
        progress.submit(lambda: _Later(1))
    assert sys.getswitchinterval() == pytest.approx(usual)
    progress.close()


@pytest.mark.parametrize("kind", PROGRESS)
def test_close_sees_open_jobs_through(kind) -> None:
    progress = kind(timeout_s=10)
    jobs = [progress.submit(lambda: _Later(20)) for _ in range(9)]
    progress.close()
    for job in jobs:
        job.wait()


def test_the_thread_ends_with_its_owner() -> None:
    before = threading.active_count()
    progress = CommunicationThread()
    assert threading.active_count() == before + 1
    del progress
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_the_thread_works_while_python_computes() -> None:
    progress = CommunicationThread(timeout_s=10)

    def seconds() -> float:
        started = time.monotonic()
        job = progress.submit(lambda: _Later(10))
        while not job.is_completed() and time.monotonic() - started < 10:
            sum(range(50))  # never lets go of the interpreter by itself
        return time.monotonic() - started

    assert min(seconds() for _ in range(10)) < 0.03  # ten tests, each after 5 ms, would be 0.05
    progress.close()


def test_a_group_of_one_thread_only_is_moved_inline() -> None:
    group = local_group()
    group.thread_safe = False
    assert isinstance(start_progress(group), InlineProgress)


def test_naps_grow_with_the_wait() -> None:
    naps = [nap_s(waited) for waited in (0.0, 1e-3, 1e-2, 60.0)]
    assert naps == sorted(naps) == [5e-5, 2e-4, 2e-4, 1e-3]


def test_failures_of_one_process_go_on_as_usual() -> None:
    with pytest.raises(SystemExit), abort_on_failure(local_group()):
        sys.exit(3)


# MPI jobs that end

SCRIPT = """
import os, signal, sys, threading
import numpy as np
import distgrad.distributed as dist

def fail():
    raise ValueError("bad luck")

group = dist.init_process_group()
progress = dist.start_progress(group)
buckets = group.channel("buckets")
progress.submit(lambda: buckets.start_all_reduce(np.ones(1000))).wait()
if group.rank == 1:
    {body}
group.barrier()
print("the end", flush=True)
"""

BODIES = {
    "exception": ("fail()", 1, "[rank 1] ValueError: bad luck"),
    "exit": ("sys.exit(3)", 3, "[rank 1] abort(3)"),
    "exit with a message": ("sys.exit('a message')", 1, "a message"),
    "thread": (
        "\n    thread = threading.Thread(target=fail); thread.start(); thread.join()",
        1,
        "[rank 1] ValueError: bad luck",
    ),
    "guarded exit": (
        "\n    with dist.abort_on_failure(group): raise SystemExit(5)",
        5,
        "[rank 1] abort(5)",
    ),
    "after destroy": (
        "\n    try: fail()\n    finally: dist.destroy_process_group()",
        1,
        "[rank 1] ValueError: bad luck",
    ),
    "open jobs": (
        "\n    jobs = [progress.submit(lambda: buckets.start_all_reduce(np.ones(10)))]; fail()",
        1,
        "[rank 1] ValueError: bad luck",
    ),
    "kill": ("os.kill(os.getpid(), signal.SIGKILL)", None, ""),
}


def mpirun(n: int, script: Path, **environ: str) -> tuple[subprocess.CompletedProcess[str], float]:
    command = find_mpirun()
    if command is None:
        pytest.skip("mpirun missing; pip install 'distgrad[mpich]'")
    environ = {
        "PYTHONPATH": str(Path(__file__).parent.parent),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": "node:oversubscribe",
        "OMP_NUM_THREADS": "1",
        **environ,
    }
    started = time.monotonic()
    done = subprocess.run(
        [command, "-n", str(n), sys.executable, str(script)],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
        env={**os.environ, **environ},
    )
    return done, time.monotonic() - started


@pytest.mark.parametrize("what", list(BODIES))
def test_a_failing_rank_ends_the_job(what: str, tmp_path: Path) -> None:
    body, status, message = BODIES[what]
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("{body}", body))
    done, seconds = mpirun(3, script)
    assert done.returncode == status if status is not None else done.returncode != 0
    assert message in done.stderr + done.stdout
    assert (done.stderr + done.stdout).count("Traceback (most recent call last)") <= 1
    assert seconds < 15  # starting three interpreters included; a hang would take 60


def test_a_failure_of_all_ranks_is_shown_once(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("if group.rank == 1:", "if True:").format(body="fail()"))
    done, _ = mpirun(3, script)
    assert done.returncode == 1
    assert done.stderr.count("[rank 0] Traceback") == 1
    assert done.stderr.count("Traceback") == 1


@pytest.mark.parametrize(
    "body",
    [
        "pass",
        "\n    try: sys.exit(2)\n    except SystemExit: pass",
    ],
)
def test_a_good_job_ends_with_0_and_without_a_hang(body: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("{body}", body))
    done, _ = mpirun(2, script)
    assert (done.returncode, done.stdout.count("the end")) == (0, 2)


def test_jobs_open_at_exit_are_seen_through(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    many = "[progress.submit(lambda: buckets.start_all_reduce(np.ones(1 << 18))) for _ in range(9)]"
    script.write_text(SCRIPT.replace("if group.rank == 1:", "if True:").format(body=many))
    done, _ = mpirun(2, script)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_mpirun_of_another_mpi_is_an_error_with_the_fix(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(body="pass"))
    environ = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0"}
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    assert done.returncode == 1
    for part in ("DistributedError", "Open MPI started 4 ranks", "The library is", "Start the job"):
        assert part in done.stderr
    assert "sees a world of 1" in done.stderr or "cannot start under it" in done.stderr


def test_importing_starts_no_mpi() -> None:
    code = (
        "import sys, distgrad.distributed, distgrad.testing.mpi_parent; "
        "sys.exit('mpi4py' in sys.modules)"
    )
    root = str(Path(__file__).parent.parent)
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root})
    assert done.returncode == 0
