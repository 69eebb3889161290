"""The launcher as users call it: scripts, modules, jobs, on one rank and under mpirun."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distgrad.launch import signals, spawn
from distgrad.launch.rundir import read_metrics

ROOT = Path(__file__).parent.parent
STRIPPED = ("DISTGRAD_", "_DISTGRAD_", "PMI_", "PMIX_", "OMPI_COMM", "MPI_LOCAL", "HYDI_", "SLURM_")

JOB = """
import os, signal, time
from dataclasses import dataclass, field
from distgrad.errors import ConfigError
from distgrad.launch.jobs import Preempted
from distgrad.launch.rundir import Metrics, write_text

@dataclass(frozen=True)
class Model:
    width: int = 8

@dataclass(frozen=True)
class Config:
    steps: int = 4
    fail_at: int = -1
    signal_at: int = -1
    wrong: bool = False
    model: Model = field(default_factory=Model)

DEFAULTS = Config()

def run(config, context):
    group, rundir = context.group, context.rundir
    if config.wrong:
        raise ConfigError("--global-batch 3: is wrong")
    metrics = Metrics(rundir.metrics if group.rank == 0 else None)
    first = 0
    if context.resume_from:
        first = int(context.resume_from.name[5:])
    metrics.keep_until(first)
    for step in range(first + 1, config.steps + 1):
        if step == config.fail_at and group.rank == group.size - 1:
            raise RuntimeError(f"step {step} went wrong")
        if step == config.signal_at:
            os.kill(os.getpid(), signal.SIGTERM)
        metrics.write({"step": step, "loss": 1 / step})
        context.say(f"step {step}")
        if context.stop_requested():
            if group.rank == 0:
                (rundir.checkpoints / f"step_{step:08d}").mkdir(parents=True)
            group.barrier()
            raise Preempted(f"saved step {step}")
    return {"val_loss": 1 / config.steps}
"""


@pytest.fixture
def place(tmp_path):
    """An empty directory with a few programs."""
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "__init__.py").write_text("")
    (tmp_path / "demo" / "job.py").write_text(JOB)
    (tmp_path / "exits.py").write_text("import sys\nsys.exit(int(sys.argv[1]))\n")
    (tmp_path / "raises.py").write_text("print('before')\nraise ValueError('no luck')\n")
    return tmp_path


def environment(**extra: str) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(STRIPPED)}
    threads = [k for k in clean if k.endswith("_NUM_THREADS")]
    for name in threads:
        del clean[name]
    return {**clean, "PYTHONPATH": str(ROOT), **extra}


def python(place: Path, *words: str, **extra: str) -> subprocess.CompletedProcess[str]:
    return execute([sys.executable, *words], place, **extra)


def launch(place: Path, *words: str, **extra: str) -> subprocess.CompletedProcess[str]:
    return python(place, "-m", "distgrad.launch", *words, **extra)


def execute(words: list[str], place: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        cwd=place,
        env=environment(**extra),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def mpirun(place):
    """Runs the launcher under mpirun."""
    pytest.importorskip("mpi4py")
    found = spawn.matching_mpirun()

    def start(size: int, *words: str, **extra: str) -> subprocess.CompletedProcess[str]:
        program = [sys.executable, "-m", "distgrad.launch", *words]
        return execute([*spawn.command(found, size, None, None), *program], place, **extra)

    return start


# ------------------------------------------------------------------ one process


def test_a_script_runs_as_python_would_run_it(place):
    program = "import sys; print(__name__, sys.argv, sys.path[0])\n"
    (place / "sub").mkdir()
    (place / "sub" / "script.py").write_text(program)
    done = launch(place, "sub/script.py", "--fast", "-n", "3")
    plain = python(place, "sub/script.py", "--fast", "-n", "3")
    assert done.stdout == plain.stdout
    assert "__main__ ['sub/script.py', '--fast', '-n', '3']" in done.stdout


def test_a_module_runs_as_python_would_run_it(place):
    (place / "demo" / "tool.py").write_text(
        "import sys; print(__name__, sys.argv[1:], __package__)\n"
    )
    done = launch(place, "-m", "demo.tool", "x")
    assert done.stdout == python(place, "-m", "demo.tool", "x").stdout == "__main__ ['x'] demo\n"


def test_one_process_needs_no_mpi_and_leaves_no_files(place):
    (place / "script.py").write_text("import sys; print('mpi4py' in sys.modules)\n")
    assert launch(place, "script.py").stdout == "False\n"
    assert not (place / "runs").exists()


@pytest.mark.parametrize("status", [0, 1, 7])
def test_the_exit_status_of_a_script_is_passed_on(place, status):
    assert launch(place, "exits.py", str(status)).returncode == status


def test_the_traceback_of_a_script_shows_the_script_alone(place):
    done = launch(place, "raises.py")
    assert done.returncode == 1
    assert done.stdout == "before\n"
    assert done.stderr.count("Traceback") == 1
    assert "runpy" not in done.stderr
    assert "distgrad" not in done.stderr
    assert done.stderr.endswith("ValueError: no luck\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stpes", "3"], "did you mean --steps?"),
        (["none.py"], "none.py: there is no such script"),
        (["--job", "textgtp"], "did you mean textgpt?"),
        (["--nproc", "0", "exits.py"], "--nproc: '0' is below 1"),
        (["--hostfile", "hosts", "exits.py", "0"], "add --nproc N"),
    ],
)
def test_a_usage_error_is_one_line_and_exit_2(place, words, message):
    done = launch(place, *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (place / "runs").exists()


def test_help_jobs_and_version_are_printed(place):
    assert "usage: python -m distgrad.launch" in launch(place, "--help").stdout
    assert "textgpt" in launch(place, "--list-jobs").stdout
    assert launch(place, "--version").stdout.startswith("distgrad 0.")


def test_print_config_shows_value_and_origin(place):
    words = ["--job", "demo.job", "--set", "model.width=16", "--print-config"]
    text = launch(place, *words, DISTGRAD_STEPS="9").stdout
    assert re.search(r"^steps = 9 +# DISTGRAD_STEPS$", text, re.M)
    assert re.search(r"^model.width = 16 +# --set model.width$", text, re.M)
    assert re.search(r"^fail_at = -1 +# default$", text, re.M)
    assert not (place / "runs").exists()


def test_a_job_fills_its_run_directory(place):
    done = launch(place, "--job", "demo.job", "--steps", "3", DISTGRAD_STPES="1")
    assert done.returncode == 0, done.stderr
    assert "warning: DISTGRAD_STPES is not a switch of distgrad" in done.stderr
    run = place / "runs" / "latest"
    assert run.resolve().name.endswith("-job")
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl")] == [1, 2, 3]
    config = json.loads((run / "config.json").read_text())
    assert config["steps"] == {"value": 3, "origin": "--steps"}
    assert json.loads((run / "env.json").read_text())["mpi"] is None
    log = (run / "logs" / "rank_0000.log").read_text()
    assert done.stdout in log
    assert "step 3" in done.stdout


@pytest.mark.parametrize(
    ("expected", "status", "word"),
    [("val_loss<0.3", 0, "met"), ("val_loss<0.2", 3, "missed")],
)
def test_an_expectation_decides_the_exit_status(place, expected, status, word):
    done = launch(place, "--job", "demo.job", "--expect", expected)
    assert done.returncode == status
    assert f"expected {expected}: {word} with 0.25\n" in done.stdout


def test_an_expectation_of_an_unknown_metric_is_an_error(place):
    done = launch(place, "--job", "demo.job", "--expect", "loss<1")
    assert done.returncode == 2
    assert "the run has no metric 'loss'; it has val_loss" in done.stderr


def test_a_wrong_setting_that_the_job_finds_leaves_no_run_directory(place, mpirun):
    words = ["--job", "demo.job", "--set", "wrong=yes"]
    for done in (launch(place, *words), mpirun(2, *words)):
        assert done.returncode == 2
        assert done.stderr.count("--global-batch 3: is wrong") == 1
        assert "Traceback" not in done.stderr
        assert list((place / "runs").iterdir()) == []


def test_a_dry_run_leaves_nothing(place):
    done = launch(place, "--job", "demo.job", "--dry-run")
    assert done.returncode == 0
    assert "dry run passed" in done.stdout
    assert list((place / "runs").iterdir()) == []
    assert launch(place, "--job", "demo.job", "--dry-run", "--set", "fail_at=1").returncode == 1
    assert list((place / "runs").iterdir()) == []


def test_a_signal_saves_and_exits_75_and_the_run_goes_on(place):
    words = ["--job", "demo.job", "--run-dir", "runs/a"]
    done = launch(place, *words, "--set", "signal_at=2")
    assert done.returncode == 75
    assert "stopped: saved step 2; go on with --run-dir runs/a" in done.stdout
    done = launch(place, *words)
    assert done.returncode == 0
    assert "goes on from step_00000002" in done.stdout
    rows = read_metrics(place / "runs" / "a" / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    done = launch(place, *words, "--resume", "never")
    assert done.returncode == 2
    assert "holds an earlier run" in done.stderr


def test_the_second_signal_ends_at_once(place):
    (place / "waits.py").write_text(
        "import os, signal, time\n"
        "from distgrad.launch.signals import SAME_S, stop_requested, stop_signal\n"
        "assert not stop_requested()\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "assert stop_requested() and stop_signal() == signal.SIGTERM\n"
        "for again in (signal.SIGCONT, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):\n"
        "    os.kill(os.getpid(), again)\n"  # all of them at once are one request
        "time.sleep(SAME_S)\n"
        "print('still there', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
        "time.sleep(30)\n"
    )
    started = time.monotonic()
    done = launch(place, "waits.py")
    assert done.returncode == 128 + signal.SIGUSR1
    assert done.stdout == "still there\n"
    assert done.stderr.count("SIGTERM: stops after this step; once more ends at once") == 1
    assert time.monotonic() - started < 10


USR1, TERM, INT = signal.SIGUSR1, signal.SIGTERM, signal.SIGINT


@pytest.mark.parametrize(
    ("sent", "ends"),
    [
        ([(TERM, 0.0)], []),
        ([(INT, 0.0), (TERM, 0.1)], []),  # a terminal, and mpirun that passes it on
        ([(USR1, 0.0), (TERM, 0.1), (TERM, 0.9)], []),  # Slurm's warning, then scancel
        ([(USR1, 0.0), (TERM, 120.0)], []),  # Slurm's warning, then the limit
        ([(USR1, 0.0), (USR1, 0.5), (USR1, 9.0)], [9.0]),
        ([(USR1, 0.0), (TERM, 120.0), (TERM, 120.5), (TERM, 150.0)], [150.0]),
        ([(TERM, 0.0), (USR1, 5.0), (TERM, 60.0)], [5.0, 60.0]),
        ([(INT, 0.0), (INT, 0.5), (INT, 0.9), (INT, 1.1)], [1.1]),  # somebody who means it
    ],
)
def test_what_schedulers_send_is_one_request_and_who_insists_is_heard(sent, ends):
    requests = signals.Requests()
    assert [when for number, when in sent if requests.ends(number, when)] == ends
    assert requests.first == sent[0][0]


def test_a_script_that_never_asks_keeps_pythons_own_signals(place):
    (place / "killed.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGTERM)\n")
    assert launch(place, "killed.py").returncode == -signal.SIGTERM


# ------------------------------------------------------------------ several ranks


def test_a_rank_that_raises_ends_the_job_with_one_prefixed_traceback(place, mpirun):
    (place / "boom.py").write_text(
        "import sys, time\n"
        "from mpi4py import MPI\n"
        "comm = MPI.COMM_WORLD\n"
        "comm.Barrier()\n"
        "if comm.rank == 1:\n"
        "    print('raised at', time.time(), file=sys.stderr)\n"
        "    raise ValueError('no luck')\n"
        "comm.Barrier()\n"
    )
    done = mpirun(2, "boom.py")
    ended = time.time()
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert "[rank 1] Traceback (most recent call last):\n" in done.stderr
    assert "[rank 1] ValueError: no luck\n" in done.stderr
    assert ended - float(re.search(r"raised at ([\d.]+)", done.stderr)[1]) < 1
    log = (place / "runs" / "latest" / "logs" / "rank_0001.log").read_text()
    assert "ValueError: no luck" in log


def test_a_mistake_of_all_ranks_is_shown_once(place, mpirun):
    done = mpirun(3, "raises.py")
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1


def test_a_job_that_fails_on_one_rank_ends_on_all(place, mpirun):
    done = mpirun(2, "--job", "demo.job", "--set", "fail_at=2")
    assert done.returncode == 1
    assert "[rank 1] RuntimeError: step 2 went wrong" in done.stderr
    assert done.stderr.count("Traceback") == 1


def test_a_rank_that_exits_non_zero_ends_the_job_with_its_status(place, mpirun):
    (place / "leaves.py").write_text(
        "import sys\n"
        "from mpi4py import MPI\n"
        "if MPI.COMM_WORLD.rank == 1:\n"
        "    sys.exit(7)\n"
        "MPI.COMM_WORLD.Barrier()\n"
    )
    assert mpirun(2, "leaves.py").returncode == 7


def test_a_script_may_make_the_default_group_itself(place, mpirun):
    (place / "own.py").write_text(
        "import distgrad.distributed as dist\n"
        "group = dist.init_process_group()\n"
        "print(group.size)\n"
        "dist.destroy_process_group()\n"
    )
    done = mpirun(2, "own.py")
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr
    assert launch(place, "own.py").stdout == "1\n"


def test_rank_0_prints_and_every_rank_has_its_log(place, mpirun):
    (place / "says.py").write_text(
        "import os, sys\n"
        "from mpi4py import MPI\n"
        "rank = MPI.COMM_WORLD.rank\n"
        "print('out of', rank)\n"
        "print('err of', rank, file=sys.stderr)\n"
        "os.system(f'echo child of {rank}')\n"
    )
    done = mpirun(3, "--run-dir", "here", "says.py")
    assert done.returncode == 0
    assert "out of 0" in done.stdout
    assert not re.search(r"of [12]", done.stdout)
    errors = sorted(done.stderr.splitlines())
    assert errors == [f"[rank {r}] err of {r}" for r in (0, 1, 2)]
    logs = sorted((place / "here" / "logs").glob("rank_*.log"))
    assert [log.name for log in logs] == [f"rank_{r:04d}.log" for r in (0, 1, 2)]
    for rank, log in enumerate(logs):
        assert f"out of {rank}\n" in log.read_text()
        assert f"err of {rank}\n" in log.read_text()
    assert "child of 2\n" in logs[2].read_text()


def test_ranks_share_the_cores(place, mpirun):
    (place / "threads.py").write_text(
        "from os import environ as e\n"
        "print(e.get('OPENBLAS_NUM_THREADS'), e.get('MKL_NUM_THREADS'))\n"
    )
    cores = len(os.sched_getaffinity(0))
    for start in (
        lambda **e: mpirun(2, "threads.py", **e),
        lambda **e: launch(place, "-n2", "threads.py", **e),
    ):
        share = str(max(1, cores // 2))
        assert start().stdout == f"{share} {share}\n"
        assert start(OMP_NUM_THREADS="3").stdout == "3 3\n"
        assert start(MKL_NUM_THREADS="5").stdout == f"{share} 5\n"


def test_blas_really_has_its_share_of_threads(place, mpirun):
    pytest.importorskip("threadpoolctl")
    (place / "pools.py").write_text(
        "import numpy, threadpoolctl\n"
        "pools = threadpoolctl.threadpool_info()\n"
        "print({p['num_threads'] for p in pools if p['user_api'] == 'blas'})\n"
    )
    share = max(1, len(os.sched_getaffinity(0)) // 2)
    assert mpirun(2, "pools.py").stdout == f"{{{share}}}\n"


def test_nproc_starts_the_matching_mpirun(place, mpirun):
    (place / "size.py").write_text(
        "import sys\nfrom mpi4py import MPI\nprint(MPI.COMM_WORLD.size, repr(sys.stdin.read()))\n"
    )
    assert launch(place, "--nproc", "2", "size.py").stdout == "2 ''\n"
    assert launch(place, "--nproc", "3", "exits.py", "7").returncode == 7


def test_nproc_that_contradicts_mpirun_is_an_error(mpirun):
    done = mpirun(2, "-n", "3", "exits.py", "0")
    assert done.returncode == 2
    assert done.stderr.count("has already started 2 ranks") == 1


def test_the_wrong_mpirun_is_an_error_that_names_both(place):
    pytest.importorskip("mpi4py")
    library = spawn.loaded_library()
    other, rank, size = "Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"
    if library.family == "Open MPI":
        other, rank, size = "MPICH", "PMI_RANK", "PMI_SIZE"
    done = launch(place, "exits.py", "0", **{rank: "0", size: "4"})
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"{other} started 4 ranks, but" in done.stderr
    assert f"{library.family} " in done.stderr
    assert str(Path(sys.executable).parent) in done.stderr
    # the other ranks find the same, and rank 0 has said it
    done = launch(place, "exits.py", "0", **{rank: "1", size: "4"})
    assert (done.returncode, done.stderr) == (1, "")


def test_an_expectation_missed_is_exit_3_on_all_ranks_without_an_abort(mpirun):
    done = mpirun(2, "--job", "demo.job", "--expect", "val_loss<0.2")
    assert done.returncode == 3
    assert "abort" not in done.stderr.lower()


def test_a_signal_to_all_ranks_is_exit_75(mpirun):
    done = mpirun(2, "--job", "demo.job", "--set", "signal_at=2")
    assert done.returncode == 75
    assert "abort" not in done.stderr.lower()
    assert done.stdout.count("stopped: saved step 2") == 1


def test_a_dry_run_of_several_ranks_leaves_nothing(place, mpirun):
    assert mpirun(2, "--job", "demo.job", "--dry-run").returncode == 0
    assert list((place / "runs").iterdir()) == []
