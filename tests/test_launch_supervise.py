"""The supervisor with real ranks: what it does about each way in which a job can die."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from distgrad.launch.supervise import hosts
from distgrad.launch.supervise.wire import JOB as MARK

ROOT = Path(__file__).parent.parent
STRIPPED = ("DISTGRAD_", "_DISTGRAD_", "PMI_", "PMIX_", "OMPI_COMM", "MPI_LOCAL", "HYDI_", "SLURM_")
LIMIT_S = 100

JOB = """
import atexit, ctypes, os, signal, threading, time
from dataclasses import dataclass
import numpy as np
from distgrad.errors import ConfigError
from distgrad.launch.jobs import Preempted
from distgrad.launch.supervise import pulse

ATTEMPT = int(os.environ.get("_DISTGRAD_ATTEMPT", "0"))
RANK = int(os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK", "0")))
if os.environ.get("LATE") == str(RANK) and ATTEMPT == 0:
    time.sleep(90)

@dataclass(frozen=True)
class Config:
    steps: int = 6
    fault: str = "none"
    rank: int = 1
    step: int = 3
    always: bool = False
    slow: float = 0.0

DEFAULTS = Config()

def usage():
    raise ConfigError("--global-batch 3: is wrong")

def error():
    raise ValueError("no luck")

def never_ends():
    while True:
        pass

FAULTS = {
    "none": lambda: None,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "leave": lambda: os._exit(0),
    "raise": error,
    "usage": usage,
    "wait": lambda: threading.Event().wait(),
    "loop": never_ends,
    "hold": lambda: ctypes.PyDLL(None).sleep(1000),
    "linger": lambda: atexit.register(time.sleep, 60),
}

def run(config, context):
    group, folder = context.group, context.rundir.checkpoints
    first = int(context.resume_from.name[5:]) if context.resume_from else 0
    for step in range(first + 1, config.steps + 1):
        pulse.at(step, "training")
        if group.rank == config.rank and step == config.step and (config.always or not ATTEMPT):
            FAULTS[config.fault]()
        time.sleep(config.slow)
        stop = np.array([float(context.stop_requested())])
        group.all_reduce(stop)
        if group.rank == 0:
            (folder / f"step_{step:08d}").mkdir(parents=True, exist_ok=True)
            print("step", step, "of", group.size, "ranks", flush=True)
        group.barrier()
        if stop[0]:
            raise Preempted(f"saved step {step}")
    return {"val_loss": float(config.steps)}
"""


@pytest.fixture
def place(tmp_path):
    """An empty directory with a job."""
    pytest.importorskip("mpi4py")
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "__init__.py").write_text("")
    (tmp_path / "demo" / "job.py").write_text(JOB)
    return tmp_path


def environment(**extra: str) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(STRIPPED)}
    return {**clean, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **extra}


def words(*more: str) -> list[str]:
    return [sys.executable, "-m", "distgrad.launch", "--run-dir", "run", *more]


def launch(place: Path, *more: str, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words(*more), cwd=place, env=environment(**extra), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip


def train(place: Path, fault: str, *more: str, **extra: str) -> subprocess.CompletedProcess[str]:
    settings = ["-n", "2", "--job", "demo.job", "--set", f"fault={fault}", "--max-restarts", "2"]
    return launch(place, *settings, *more, **extra)


def record(place: Path) -> list[dict[str, Any]]:
    lines = (place / "run" / "supervisor.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def left_over(place: Path) -> list[str]:
    """The processes that still belong to a job in ``place``."""
    found = []
    for pid in (int(p.name) for p in Path("/proc").glob("[0-9]*")):
        if hosts.mark_of(pid, "PWD") == str(place) or hosts.mark_of(pid, "PLACE") == str(place):
            found.append(hosts.mark_of(pid, MARK) and str(pid))
    return [pid for pid in found if pid]


# ------------------------------------------------------------------ ranks that are lost


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("kill", r"rank 1 \(.*\) has ended without a word \(SIGKILL"),
        ("leave", r"rank 1 \(.*\) has ended without a word"),
        ("stop", r"rank 1 \(.*\) is stopped \(SIGSTOP\), silent for \d+ s"),
        ("raise", r"rank 1 \(.*\): ValueError: no luck, at step 3"),
    ],
)
def test_a_lost_rank_is_named_and_the_job_goes_on_from_its_checkpoint(place, fault, said):
    done = train(place, fault, PLACE=str(place))
    assert done.returncode == 0, done.stderr
    assert re.search(said, done.stderr)
    assert done.stderr.count("Traceback") == (fault == "raise")
    assert "restart 1 of 2 with 2 ranks, from step 2" in done.stderr
    steps = [int(step) for step in re.findall(r"step (\d) of 2 ranks", done.stdout)]
    assert steps == [1, 2, 3, 4, 5, 6]
    end = json.loads((place / "run" / "done.json").read_text())
    assert (end["status"], end["step"], end["ranks"]) == (0, 6, 2)
    lost, trains = (next(r for r in record(place)[1:] if r["event"] == e) for e in ("end", "start"))
    assert trains["time"] - lost["time"] < 5
    assert not left_over(place)


def test_the_undisturbed_job_is_started_once(place):
    done = train(place, "none")
    assert done.returncode == 0, done.stderr
    assert [row["event"] for row in record(place)] == ["start", "trains", "end"]
    assert "restart" not in done.stderr


def test_a_single_process_is_supervised_without_mpirun(place):
    done = launch(
        place, "--job", "demo.job", "--max-restarts", "1", "--set", "rank=0", "--set", "fault=kill"
    )
    assert done.returncode == 0, done.stderr
    assert "restart 1 of 1 with 1 rank, from step 2" in done.stderr


# ------------------------------------------------------------------ ends that are no faults


def test_the_same_exception_twice_ends_the_job_with_its_status(place):
    done = train(place, "raise", "--set", "always=yes")
    assert done.returncode == 1
    assert done.stderr.count("restart ") == 2  # the one that is made, and the word in the end
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("distgrad.launch: ends with status 1: the same failure twice at step 3")
    assert "ValueError: no luck" in last


def test_wrong_settings_and_missed_expectations_are_not_tried_again(place):
    done = train(place, "usage")
    assert done.returncode == 2
    assert "--global-batch 3: is wrong" in done.stderr
    assert "restart 1" not in done.stderr
    done = train(place, "none", "--expect", "val_loss<1")
    assert done.returncode == 3
    assert [row["event"] for row in record(place)][-3:] == ["start", "trains", "end"]


def test_restarts_are_counted(place):
    done = train(place, "kill", "--set", "always=yes", "--max-restarts", "0")
    assert done.returncode == 76
    end = next(line for line in done.stderr.splitlines() if "ends with status 76" in line)
    assert "no restart is allowed: rank " in end
    assert "rank 1 (" in end  # beside rank 0, if mpirun has killed that before the next look


def test_a_supervisor_needs_to_start_the_ranks_itself(place):
    done = launch(place, "--job", "demo.job", "--max-restarts", "1", PMI_RANK="0", PMI_SIZE="2")
    assert done.returncode == 2
    assert "--max-restarts 1: MPICH has already started the ranks" in done.stderr


# ------------------------------------------------------------------ stalls and deadlines


@pytest.mark.parametrize(
    ("fault", "said", "stack"),
    [
        ("wait", "rank 1 computes or waits outside of collectives", "threading.Event().wait()"),
        ("loop", "rank 1 computes or waits outside of collectives", "never_ends"),
        ("hold", "rank 1 sleeps without letting other Python threads run", "run"),
    ],
)
def test_a_rank_that_hangs_is_named_with_its_stack(place, fault, said, stack):
    started = time.monotonic()
    done = train(place, fault, "--stall-timeout", "4")
    assert done.returncode == 0, done.stderr
    assert re.search(r"nothing has moved for \d+ s \(--stall-timeout\): .*" + re.escape(said),
                     done.stderr)  # fmt: skip
    assert "rank 0 waits in all_reduce" in done.stderr
    report = done.stderr[done.stderr.index("nothing has moved") :]
    assert stack in report
    assert ("was here last" if fault == "hold" else "in training of step 3") in report
    assert "restart 1 of 2" in done.stderr
    assert time.monotonic() - started < 45


def test_ranks_that_never_report_are_named_at_the_deadline(place):
    done = train(place, "none", "--start-timeout", "20", LATE="1")
    assert done.returncode == 0, done.stderr
    assert "have not begun within 20 s (--start-timeout): rank 1 never reported" in done.stderr
    assert "restart 1 of 2" in done.stderr


def test_without_a_supervisor_the_ranks_that_wait_for_others_say_so(place):
    done = launch(place, "-n", "3", "--job", "demo.job", "--start-timeout", "8", LATE="1")
    assert done.returncode != 0
    for rank in (0, 2):
        said = rf"rank {rank} of 3 \(\S+, process \d+\) has waited 8 s \(--start-timeout\)"
        assert len(re.findall(said, done.stderr)) == 1, done.stderr
    assert "rank 1 of 3" not in done.stderr
    assert "start_mpi" in done.stderr  # the stack


def test_ranks_that_do_not_exit_do_not_keep_a_job_that_is_done(place):
    done = train(place, "linger", "--exit-timeout", "2")
    assert done.returncode == 0, done.stderr
    assert "rank 1 did not exit within 2 s of the end (--exit-timeout)" in done.stderr


# ------------------------------------------------------------------ signals


def begun(place: Path, *more: str, **extra: str) -> subprocess.Popen[str]:
    """A supervised job that has done a step."""
    settings = ["-n", "2", "--job", "demo.job", "--set", "steps=1000", "--set", "slow=0.05"]
    process = subprocess.Popen(
        words(*settings, "--max-restarts", "2", *more), cwd=place,
        env=environment(PLACE=str(place), **extra), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 2 "):
            break
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_the_same_step_on_all_ranks(place, number):
    process = begun(place)
    process.send_signal(number)
    out, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 75, err
    saved = re.search(r"stopped: saved step (\d+); go on with --run-dir run", out)
    assert saved is not None
    assert json.loads((place / "run" / "done.json").read_text())["status"] == 75
    assert not left_over(place)


def test_the_second_signal_ends_everything_at_once(place):
    process = begun(place, "--set", "fault=wait")
    for number in (signal.SIGUSR1, signal.SIGCONT, signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)  # at once they are one request
    time.sleep(1.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    _, err = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "SIGTERM again: ended at once" in err
    assert time.monotonic() - started < 5
    assert not left_over(place)


def test_ranks_whose_supervisor_was_killed_save_and_end(place):
    process = begun(place)
    process.kill()
    process.communicate(timeout=LIMIT_S)
    until = time.monotonic() + 20
    while left_over(place) and time.monotonic() < until:
        time.sleep(0.2)
    assert not left_over(place)
    log = (place / "run" / "logs" / "rank_0001.log").read_text()
    assert "the supervisor is gone, so this rank ends" in log
    assert json.loads((place / "run" / "done.json").read_text())["status"] == 75


def test_ranks_may_finish_without_their_supervisor(place):
    process = begun(place, "--orphans", "finish", "--set", "steps=60")
    process.kill()
    process.communicate(timeout=LIMIT_S)
    until = time.monotonic() + 40
    while left_over(place) and time.monotonic() < until:
        time.sleep(0.2)
    assert json.loads((place / "run" / "done.json").read_text())["step"] == 60


# ------------------------------------------------------------------ scripts


def test_a_script_is_supervised_and_its_steps_are_counted(place):
    (place / "script.py").write_text(
        "import os, time\n"
        "import distgrad as dg\n"
        "import distgrad.distributed as dist\n"
        "from distgrad import nn, optim\n"
        "group = dist.init_process_group()\n"
        "model = nn.Linear(2, 2)\n"
        "optimizer = optim.SGD(model.parameters(), lr=0.1)\n"
        "for step in range(12):\n"
        "    if step == 8 and group.rank == 1 and os.environ['_DISTGRAD_ATTEMPT'] == '0':\n"
        "        while True:\n"
        "            time.sleep(0.1)\n"
        "    model(dg.ones(1, 2)).sum().backward()\n"
        "    optimizer.step()\n"
        "    group.barrier()\n"
        "    time.sleep(0.1)\n"
        "print('through', dist.get_world_size())\n"
        "dist.destroy_process_group()\n"
    )
    done = launch(place, "-n", "2", "--max-restarts", "1", "--stall-timeout", "4", "script.py")
    assert done.returncode == 0, done.stderr
    assert "through 2\n" in done.stdout
    assert "rank 1 computes or waits outside of collectives" in done.stderr
    assert 'script.py", line 11' in done.stderr
    assert re.search("at step [89]", done.stderr)


def test_a_script_that_leaves_early_is_no_success(place):
    (place / "script.py").write_text(
        "import os\nfrom mpi4py import MPI\nif MPI.COMM_WORLD.rank == 0:\n    os._exit(0)\n"
    )
    done = launch(place, "-n", "2", "--max-restarts", "0", "script.py")
    assert done.returncode == 76
    assert "has ended without a word" in done.stderr
