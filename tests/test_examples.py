"""The examples run as their first lines say."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distgrad.distributed.env import find_mpirun

ROOT = Path(__file__).parents[1]


def run(name, ranks=1):
    command = [sys.executable, str(ROOT / "examples" / name)]
    if ranks > 1:
        command = [find_mpirun(), "-n", str(ranks), *command]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_regression_learns_the_same_on_one_rank_and_on_three():
    alone = run("regression.py")
    assert float(alone.split()[-1]) < 0.1
    assert run("regression.py", ranks=3) == alone


def test_images_learns_the_digits():
    pytest.importorskip("sklearn")
    last = run("images.py").splitlines()[-1]
    assert float(last.split()[-1].rstrip("%")) > 97
