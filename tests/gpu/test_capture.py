"""The checks of tests/test_gpu_capture.py on a real device."""

import numpy as np
import pytest

from distgrad.backend.device import cuda_device_count, device
from distgrad.distributed import run_ranks
from distgrad.testing import device_capture as checks

PLACE = device("cuda:0")
pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(("model", "optimizer"), checks.TRAININGS)
def test_replayed_steps_are_those_that_run(model, optimizer):
    checks.check_step(model, optimizer, PLACE)


@pytest.mark.parametrize("check", [*checks.CHECKS, checks.check_refusals])
def test_captures(check):
    check(PLACE)


def test_graphs_have_pools_and_streams_take_part(tmp_path):
    checks.check_graph(PLACE, tmp_path)


def test_a_scaler_leaves_steps_out_in_replays_too():
    checks.check_scaled(PLACE, rtol=1e-4)


@pytest.fixture
def gpus():
    """How many there are, if that is enough for NCCL."""
    if cuda_device_count() < 2:
        pytest.skip("NCCL needs a GPU for each rank")
    return cuda_device_count()


@pytest.mark.parametrize("accumulate", [False, True])
def test_a_captured_step_holds_the_all_reduce(gpus, accumulate):
    runs = [run_ranks(2, checks.parallel, gpus, way, accumulate, True) for way in (False, True)]
    for eager, captured in zip(*runs, strict=True):
        np.testing.assert_allclose(captured, eager, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_captured_step_holds_a_shared_optimizer(gpus, stage):
    how = stage, "AdamW", False
    runs = [run_ranks(2, checks.sharded, gpus, way, *how) for way in (False, True)]
    for eager, captured in zip(*runs, strict=True):
        np.testing.assert_allclose(captured[:10], eager[:10], rtol=1e-4, atol=1e-5)
