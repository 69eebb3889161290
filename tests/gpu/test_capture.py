"""The checks of tests/test_gpu_capture.py on a real device."""

import numpy as np
import pytest

from distgrad.backend.device import cuda_device_count, device
from distgrad.distributed import run_ranks
from distgrad.testing import device_capture as checks

PLACE = device("cuda:0")
pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("optimizer", checks.OPTIMIZERS)
@pytest.mark.parametrize("model", ["perceptron", "images", "text"])
def test_replayed_steps_are_those_that_run(model, optimizer):
    checks.check_step(model, optimizer, PLACE)


@pytest.mark.parametrize(
    "check",
    [
        checks.check_memory,
        checks.check_learning_rate,
        checks.check_keys,
        checks.check_dropout,
        checks.check_callables,
        checks.check_errors_pass,
        checks.check_refusals,
    ],
)
def test_captures(check):
    check(PLACE)


def test_graphs_have_pools_and_streams_take_part(tmp_path):
    checks.check_graph(PLACE, tmp_path)


def test_a_scaler_leaves_steps_out_in_replays_too():
    eager, captured = (checks.scaled(PLACE, way) for way in (False, True))
    assert eager[1] == captured[1]
    np.testing.assert_allclose(captured[0], eager[0], rtol=1e-4)


@pytest.mark.parametrize("accumulate", [False, True])
def test_a_captured_step_holds_the_all_reduce(accumulate):
    ranks = cuda_device_count()
    if ranks < 2:
        pytest.skip("NCCL needs a GPU for each rank")
    runs = [run_ranks(2, checks.parallel, ranks, way, accumulate, True) for way in (False, True)]
    for eager, captured in zip(*runs, strict=True):
        np.testing.assert_allclose(captured, eager, rtol=1e-4, atol=1e-5)
