"""Averages of weights: against PyTorch, and what they do to models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distgrad import nn, no_grad
from distgrad.optim import swa_utils
from distgrad.tensor import Tensor, wrap

FUNCTIONS: dict[str, Any] = {
    "mean": lambda s: {},
    "mean of one": lambda s: {"avg_fn": s.get_swa_avg_fn()},
    "mean of many": lambda s: {"multi_avg_fn": s.get_swa_multi_avg_fn()},
    "ema of one": lambda s: {"avg_fn": s.get_ema_avg_fn(0.9)},
    "ema of many": lambda s: {"multi_avg_fn": s.get_ema_multi_avg_fn(0.9)},
    "own": lambda s: {"avg_fn": lambda average, new, n: average * n / (n + 2) + new},
    "mean with buffers": lambda s: {"use_buffers": True},
    "ema with buffers": lambda s: {
        "use_buffers": True,
        "multi_avg_fn": s.get_ema_multi_avg_fn(0.5),
    },
}


def _fill(model: Any, step: int, make: Any) -> None:
    numbers = np.random.default_rng(step)
    for tensor in (*model.parameters(), model[1].running_mean, model[1].running_var):
        tensor.copy_(make(numbers.standard_normal(tuple(tensor.shape)).astype("float32")))
    model[1].num_batches_tracked += 3


@pytest.mark.torch
@pytest.mark.parametrize("name", FUNCTIONS)
def test_averages_equal_those_of_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    from torch.optim import swa_utils as theirs

    ours = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    other = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    one = swa_utils.AveragedModel(ours, **FUNCTIONS[name](swa_utils))
    two = theirs.AveragedModel(other, **FUNCTIONS[name](theirs))
    with no_grad(), torch.no_grad():
        for step in range(6):
            _fill(ours, step, wrap)
            _fill(other, step, torch.tensor)
            one.update_parameters(ours)
            two.update_parameters(other)
    mine, state = one.state_dict(), two.state_dict()
    assert list(mine) == list(state)
    for key, value in state.items():
        np.testing.assert_allclose(mine[key].numpy(), value.numpy(), 1e-6, 1e-6, err_msg=key)
        assert mine[key].numpy().dtype == value.numpy().dtype
    assert repr(one) == repr(two)


def test_the_averaged_model_is_a_copy_that_runs() -> None:
    model = nn.Linear(2, 1)
    averaged = swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    x = wrap(np.ones((3, 2), "float32"))
    np.testing.assert_array_equal(averaged(x).numpy(force=True), model(x).numpy(force=True))
    assert averaged.module.weight is not model.weight
    with no_grad():
        model.weight.add_(1)
    assert (averaged.module.weight != model.weight).all()


def test_batch_norms_get_the_statistics_of_the_data() -> None:
    numbers = np.random.default_rng(0)
    data = [numbers.standard_normal((8, 3)).astype("float32") * 2 + 5 for _ in range(4)]
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1), nn.BatchNorm1d(1, momentum=0.3))
    model.eval()
    swa_utils.update_bn([(wrap(d), "label") for d in data], model)
    mean = np.mean([d.mean(0) for d in data], axis=0)
    np.testing.assert_allclose(model[0].running_mean.numpy(), mean, rtol=1e-5)
    assert (model[0].momentum, model[2].momentum, model.training) == (0.1, 0.3, False)
    assert model[2].num_batches_tracked.item() == 4


def test_a_model_without_batch_norm_is_not_run() -> None:
    swa_utils.update_bn([1, 2], nn.Linear(1, 1))


def test_bad_arguments_are_refused() -> None:
    for make in (swa_utils.get_ema_avg_fn, swa_utils.get_ema_multi_avg_fn):
        with pytest.raises(ValueError, match="Invalid decay value 2 provided"):
            make(2)
    with pytest.raises(AssertionError, match="Only one of avg_fn and multi_avg_fn"):

        def one(a: Tensor, b: Tensor, n: Any) -> Tensor:
            return a

        swa_utils.AveragedModel(
            nn.Linear(1, 1), avg_fn=one, multi_avg_fn=swa_utils.get_swa_multi_avg_fn()
        )
