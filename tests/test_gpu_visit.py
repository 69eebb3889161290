"""The two programs for a machine with a GPU, without one: they get through whatever happens."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

SITE = """
import os
if "DISTGRAD_GPU_RESULTS" in os.environ:
    from distgrad.testing import device_products, standin
    kept = standin.installed()
    kept.__enter__()
    device_products.check_scalars = lambda place: os.abort()
    device_products.check_kept_gradients = lambda place: 1 / 0
"""


def run(*words, path=""):
    environ = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(path)])}
    words = [sys.executable, *map(str, words)]
    return subprocess.run(words, capture_output=True, text=True, env=environ, timeout=300)


def rows(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_tests_behind_one_that_ends_its_process_run_all_the_same(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SITE)
    out = tmp_path / "results.jsonl"
    done = run(ROOT / "tests/gpu", "--sections", "gemm", "--out", out, path=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    *failures, last = done.stdout.splitlines()
    summary = json.loads(last)
    assert summary["failed"] == 1 and "division by zero" in failures[0]
    (silent,) = summary["without result"]
    assert "alpha_and_beta" in silent
    found = rows(out)
    assert len(found) == summary["passed"] + 1 > 100
    assert [row["outcome"] for row in found].count("passed") == summary["passed"]


def test_a_budget_ends_a_section_and_no_more(tmp_path):
    out = tmp_path / "results.jsonl"
    done = run(ROOT / "tests/gpu", "--sections", "gemm", "optim", "--out", out, "--total", "5")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["section"] for line in lines] == ["gemm", "optim"] and done.returncode == 1
    assert lines[1]["ended"] == "no time was left" or "skipped" in lines[1]["log"]


def test_a_measurement_that_fails_is_a_row_like_others(tmp_path):
    out = tmp_path / "results.jsonl"
    flags = ["--tiny", "--device", "cpu", "--repeats", "1", "--out", out]
    sides = ["--sides", "distgrad captured", "distgrad"]
    done = run(ROOT / "benchmarks/gpu.py", "--works", "mlp", "overhead", *sides, *flags)
    assert not done.returncode, done.stderr
    captured, plain, overhead = rows(out)
    assert "DeviceError" in captured["error"] and captured["side"] == "distgrad captured"
    assert plain["step_us"] > 0 and plain["loss"] > 0 and overhead["record_us"] > 0
    assert "failed" in done.stdout
