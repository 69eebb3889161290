"""The supervisor and hosts that are lost: network namespaces as hosts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_launch_supervise import JOB, LIMIT_S, environment

from distgrad.testing import hosts as machines

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("ip") is None or not machines.possible(),
        reason="network namespaces need root and the program ip",
    ),
]


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("mpi4py")
    with machines.Hosts(3) as cluster:
        yield cluster


@pytest.fixture
def place(tmp_path, cluster):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "__init__.py").write_text("")
    (tmp_path / "demo" / "job.py").write_text(JOB)
    return tmp_path


def begun(cluster: machines.Hosts, place: Path, *more: str) -> subprocess.Popen[str]:
    """A job on three hosts, one rank each, that has done a step."""
    with (place / "errors").open("w") as errors:
        process = subprocess.Popen(
            [
                *cluster.outside, sys.executable, "-m", "distgrad.launch", "--run-dir", "run",
                "--hosts", ",".join(cluster.addresses), "--ssh", cluster.ssh, "--job", "demo.job",
                "--set", "slow=0.05", "--set", "steps=200", "--max-restarts", "2", *more,
            ],
            cwd=place, env=environment(**cluster.environ), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 3 "):
            break
    return process


def test_a_host_whose_network_is_cut_is_left_out(cluster, place):
    process = begun(cluster, place)
    cut = f"{cluster.mark}h2"
    subprocess.run(["ip", "-n", cut, "link", "set", "eth0", "down"], check=True)
    started = time.monotonic()
    again = 0.0
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            if " of 2 ranks" in line and not again:
                again = time.monotonic() - started
    subprocess.run(["ip", "-n", cut, "link", "set", "eth0", "up"], check=True)
    assert process.returncode == 0, (place / "errors").read_text()
    errors = (place / "errors").read_text()
    lost = cluster.addresses[1]
    assert re.search(rf"rank 1 \(.*\) is on a host that does not answer: {lost}", errors)
    assert f"host {lost}: it cannot be reached over the network" in errors
    assert re.search(r"restart 1 of 2 with 2 ranks on .*, from step \d+", errors)
    assert 0 < again < 30  # 15 on a machine that does nothing else


def test_too_few_hosts_end_the_job_with_the_reason(cluster, place):
    done = subprocess.run(
        [
            *cluster.outside, sys.executable, "-m", "distgrad.launch", "--run-dir", "run",
            "--hosts", f"{cluster.addresses[0]},no-such-host", "--ssh", cluster.ssh,
            "--job", "demo.job", "--max-restarts", "1",
        ],
        cwd=place, env=environment(**cluster.environ), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert done.returncode == 69
    assert "the hosts that answer have room for 1 of 2 ranks" in done.stderr
