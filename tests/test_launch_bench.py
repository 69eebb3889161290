"""The jobs that measure communication, and the model of scaling."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from distgrad.distributed.env import find_mpirun
from distgrad.distributed.reduction import SMALL_BYTES
from distgrad.distributed.threads import run_ranks
from distgrad.errors import ConfigError
from distgrad.launch.jobs.allreduce_bench import BenchConfig, sizes
from distgrad.launch.jobs.scaling import (
    Network,
    Step,
    all_reduce_cost,
    alone_s,
    crowded,
    exposed_s,
    measure_crowding,
    predicted_s,
)
from distgrad.launch.plot import Axis, LogAxis, curves_svg

ROOT = Path(__file__).parents[1]
BYTES = 8_000_000
NETWORK = Network(alpha=1e-3, gap=1e-5, beta=1e-8, gamma=1e-9)


def launch(run: Path, *options: str, ranks: int = 2) -> tuple[int, str, list[dict]]:
    command = [sys.executable, "-m", "distgrad.launch", "--run-dir", str(run), *options]
    if ranks > 1:
        command = [str(find_mpirun()), "-n", str(ranks), *command]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return done.returncode, done.stdout + done.stderr, [json.loads(line) for line in lines]


def test_the_bench_measures_every_method_and_size(tmp_path):
    options = ["--job", "allreduce-bench", "--set", "most_kb=16", "--set", "repeats=3"]
    code, out, rows = launch(tmp_path / "run", *options, "--expect", "bus_gb_s>0")
    assert code == 0, out
    measured = {(row["method"], row["bytes"]) for row in rows}
    names = ("all_reduce", "bucket", "library", "memcpy")
    assert measured == {(name, size) for name in names for size in (1024, 4096, 16384)}
    assert all(0 < row["fastest_s"] <= row["median_s"] for row in rows)
    assert "16 KB" in out
    picture = ElementTree.parse(tmp_path / "run" / "allreduce.svg").getroot()
    assert len(list(picture.iter("{http://www.w3.org/2000/svg}polyline"))) == len(names)


def test_the_scaling_job_predicts_up_to_ten_thousand_ranks(tmp_path):
    small = ["--set", "width=16", "--set", "layers=1", "--set", "context=8", "--steps", "2"]
    code, out, rows = launch(tmp_path / "run", "--job", "scaling", *small)
    assert code == 0, out
    first, *predicted = rows
    assert first["measured_s"] > 0
    assert [row["ranks"] for row in predicted][-2:] == [8192, 10_000]
    assert predicted[0]["efficiency"] == 1.0
    assert all(0 < row["efficiency"] <= 1 for row in predicted)
    assert "predicted" in out
    assert (tmp_path / "run" / "scaling.svg").exists()


def test_one_rank_cannot_measure_a_network(tmp_path):
    code, out, _ = launch(tmp_path / "run", "--job", "scaling", ranks=1)
    assert code == 2
    assert "--nproc" in out
    assert "Traceback" not in out


@pytest.mark.parametrize("wrong", [{"factor": 1}, {"least_kb": 0}, {"most_kb": 0.5}])
def test_sizes_that_lead_nowhere_are_refused(wrong):
    with pytest.raises(ConfigError, match="least_kb <= most_kb"):
        sizes(BenchConfig(**wrong))


@pytest.mark.parametrize("ranks", [2, 3, 8, 16])
def test_few_ranks_exchange_slices_directly(ranks):
    others = ranks - 1
    cost = all_reduce_cost(NETWORK, BYTES, ranks)
    assert cost.latency == pytest.approx(2e-3)
    wire = 2 * others / ranks * BYTES * 1e-8
    assert cost.busy == pytest.approx(2 * others * 1e-5 + wire + others / ranks * BYTES * 1e-9)


def test_many_ranks_halve_and_odd_numbers_of_them_make_a_grid():
    assert all_reduce_cost(NETWORK, BYTES, 1024).latency == pytest.approx(20e-3)
    grid = all_reduce_cost(NETWORK, BYTES, 10_000)  # blocks of 100, and those of 10
    assert grid.latency == pytest.approx(6e-3)
    wire = 2 * (1 - 1e-4) * BYTES * 1e-8 + (1 - 1e-4) * BYTES * 1e-9
    assert grid.busy == pytest.approx((2 * 99 + 4 * 9) * 1e-5 + wire)


def test_small_arrays_take_one_round():
    assert all_reduce_cost(NETWORK, SMALL_BYTES, 4).latency == pytest.approx(1e-3)
    assert all_reduce_cost(NETWORK, SMALL_BYTES + 1, 4).latency == pytest.approx(2e-3)


def test_ranks_that_share_memory_send_a_slice_each():
    network = Network(alpha=1e-3, gap=0.0, beta=1e-8, gamma=0.0, sharing=4)
    assert all_reduce_cost(network, BYTES, 4).busy == 0.0
    shared = all_reduce_cost(network, BYTES, 8)
    alone = all_reduce_cost(Network(1e-3, 0.0, 1e-8, 0.0), BYTES // 4, 2)
    assert (shared.busy, shared.latency) == pytest.approx((alone.busy, alone.latency))


def test_a_bucket_waits_for_its_gradients_and_for_the_wire():
    network = Network(alpha=0.5, gap=0.0, beta=1e-6, gamma=0.0)  # a megabyte takes a second
    step = Step(10.0, 8.0, ((7.0, 10**6), (2.0, 10**6), (2.5, 2 * 10**6)))
    # busy 2 to 3, 3 to 5, 7 to 8; two rounds of latency behind the last one
    assert exposed_s(network, step, 2) == pytest.approx(1.0)
    assert predicted_s(network, step, 2) == pytest.approx(11.0)
    assert alone_s(network, step, 2) == pytest.approx(10.0 + 4.0 + 1.0)
    assert predicted_s(network, step, 1) == 10.0


def test_equal_ratios_are_equally_far_apart_and_points_outside_are_left_out():
    x, y = LogAxis("ranks", 1, 10_000), Axis("efficiency", 0, 1)
    text = curves_svg({"a": [(1, 1.0), (100, 0.5), (10_000, 0.0), (5, 7.0)]}, {}, "x", x, y)
    line = ElementTree.fromstring(text).find("{http://www.w3.org/2000/svg}polyline")
    points = [tuple(map(float, p.split(","))) for p in line.attrib["points"].split()]
    assert len(points) == 3
    assert points[1][0] - points[0][0] == pytest.approx(points[2][0] - points[1][0], abs=0.2)


def test_ranks_that_share_cores_pay_more_for_messages_and_not_for_the_wire():
    there = crowded(replace(NETWORK, crowding=1.5), 3.0)
    assert there == Network(2e-3, 2e-5, 1e-8, 2e-9, crowding=3.0)
    step = Step(0.1, 0.1, ((0.1, BYTES),))
    assert predicted_s(there, step, 4) > predicted_s(NETWORK, step, 4)


def test_crowding_is_measured_by_all_ranks_alike():
    found = run_ranks(2, lambda group: measure_crowding(group, 3))
    assert found[0] == found[1] >= 1.0
