"""The watch: who is missing is named, and waits that cannot end are ended."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from distgrad.distributed.env import find_mpirun
from distgrad.distributed.watch import Status, report

ROOT = str(Path(__file__).parent.parent)
SCRIPT = textwrap.dedent("""
    import os, signal, sys, time
    import numpy as np
    import distgrad as dg
    from distgrad import distributed as dist

    group = dist.init_process_group("mpi")
    print("started", flush=True)

    def compute(seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            sum(range(1000))

    def train():
        net = dg.nn.Linear(3, 2)
        ddp = dg.nn.parallel.DistributedDataParallel(net, process_group=group)
        if group.rank == 1:
            group.recv(np.zeros(3), 0)  # the call of a careless program
        else:
            ddp(dg.ones(1, 3)).sum().backward()

    case = sys.argv[1]
    if case == "computes":
        if group.rank == 1:
            compute(3.0)
        group.barrier()
    elif case == "stopped":
        if group.rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        group.barrier()
    elif case == "mixed":
        train()
    print("finished", flush=True)
""")


def run(case, tmp_path, ranks=3):
    mpirun = find_mpirun()
    if mpirun is None:
        pytest.skip("no mpirun")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    return subprocess.run(
        [mpirun, "-n", str(ranks), sys.executable, str(script), case], capture_output=True,
        text=True, timeout=120, stdin=subprocess.DEVNULL,
        env={**os.environ, "DISTGRAD_STALL_S": "1", "PYTHONPATH": ROOT}, check=False,
    )  # fmt: skip


def test_a_rank_that_computes_is_named_with_its_line_and_waited_for(tmp_path):
    done = run("computes", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished") == 3
    waits = r"ranks 0, 2 wait in barrier\(\), call \d+ on user; rank 1 computes"
    assert re.search(waits, done.stderr)
    assert "    compute(3.0)" in done.stderr
    assert "[rank 2] stalled" not in done.stderr  # one report is enough


def test_a_rank_that_is_stopped_ends_the_job(tmp_path):
    done = run("stopped", tmp_path)
    assert done.returncode != 0
    assert "finished" not in done.stdout
    assert "rank 1 does not answer: ended, or stopped" in done.stderr
    assert "DistributedError: stalled for" in done.stderr


def test_ranks_in_different_calls_are_named_and_end_the_job(tmp_path):
    done = run("mixed", tmp_path)
    assert done.returncode != 0
    assert "ranks 0, 2 wait in all_reduce of the gradients, reduction 0, bucket 0" in done.stderr
    assert "weight)" in done.stderr
    assert "rank 1 waits in recv(array: float64[3], src=0, tag=0)" in done.stderr
    assert "make the same calls in the same order on every rank" in done.stderr
    assert "    ddp(dg.ones(1, 3)).sum().backward()" in done.stderr


def test_slow_transfers_of_the_same_call_are_no_reason_to_stop():
    same = {r: Status(r, "barrier(), call 3 on user", "", 61.0, "") for r in range(3)}
    text, stuck = report(same, 3)
    assert text.startswith("stalled for 61 s: ranks 0, 1, 2 wait in barrier(), call 3 on user")
    assert stuck is None


def test_what_is_stuck_is_told_apart():
    waits = Status(0, "a", "", 60.0, "")
    assert report({0: waits}, 2)[1] == ((1,), ("a",))
    assert report({0: waits, 1: Status(1, "b", "", 60.0, "")}, 2)[1] == ((), ("a", "b"))
    assert report({0: waits, 1: Status(1, "", "", 0.0, "")}, 2)[1] is None
