"""Clipping of gradients and parameters as one vector."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import distgrad as dg
from distgrad.nn import utils

SHAPES = [(100, 90), (5,), (), (64, 2, 64)]


def _grads(seed: int = 0, dtype: str = "float32") -> list[Any]:
    numbers = np.random.default_rng(seed)
    return [np.asarray(numbers.standard_normal(s), dtype=dtype) for s in SHAPES]


def _params(grads: list[Any]) -> list[Any]:
    params = [dg.zeros(g.shape, dtype=dg.dtype(g.dtype), requires_grad=True) for g in grads]
    for p, g in zip(params, grads, strict=True):
        p.grad = dg.from_numpy(g.copy()) if g.ndim else dg.tensor(g)
    return params


@pytest.mark.torch
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.0, math.inf])
def test_clipping_equals_that_of_torch(norm_type: float, max_norm: float) -> None:
    torch = pytest.importorskip("torch")
    ours = [*_params(_grads()), dg.zeros(2, requires_grad=True)]
    theirs = [torch.zeros(s, requires_grad=True) for s in [*SHAPES, (2,)]]
    for p, g in zip(theirs, _grads(), strict=False):
        p.grad = torch.tensor(g)
    a = utils.clip_grad_norm_(iter(ours), max_norm, norm_type, foreach=True)
    b = torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)
    np.testing.assert_allclose(a.item(), b.item(), rtol=1e-5)
    assert a.dtype is dg.float32 and a.shape == ()
    for p, q in zip(ours[:-1], theirs, strict=False):
        np.testing.assert_allclose(p.grad.array, q.grad.numpy(), rtol=2e-5, strict=True)
    assert ours[-1].grad is None


def test_the_norm_of_many_float32_numbers_is_exact_to_the_last_bits() -> None:
    grads = [np.full(3_000_001, 1e-3, "float32"), np.full((7, 5), 1e-3, "float32").T]
    norm = utils.get_total_norm([dg.from_numpy(g) for g in grads])
    exact = math.sqrt(sum(float(np.sum(g.astype("float64") ** 2)) for g in grads))
    assert abs(norm.item() / exact - 1) < 1e-7


def test_a_gradient_that_is_small_enough_is_left_as_it_is() -> None:
    (p,) = _params([np.ones(4, "float32")])
    before = p.grad
    utils.clip_grad_norm_([p], 10.0)
    assert p.grad is before and p.grad.tolist() == [1.0] * 4


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_is_an_error_when_asked_for(bad: float) -> None:
    params = _params([np.array([1.0, bad], "float32")])
    with pytest.raises(RuntimeError, match=r"The total norm of order 2\.0 for gradients"):
        utils.clip_grad_norm_(params, 1.0, error_if_nonfinite=True)
    assert params[0].grad.tolist()[0] == 1.0
    utils.clip_grad_norm_(params, 1.0)
    assert params[0].grad.tolist()[0] != 1.0


def test_half_precision_and_complex_gradients_are_measured_in_float32() -> None:
    half = dg.from_numpy(np.full(1000, 100, "float16"))
    assert utils.get_total_norm(half).item() == pytest.approx(3162, rel=1e-3)
    assert utils.get_total_norm(dg.tensor([3 + 4j])).item() == 5.0


def test_nothing_to_clip_gives_zero() -> None:
    assert utils.clip_grad_norm_([], 1.0).item() == 0.0
    with pytest.warns(UserWarning, match="empty generator"):
        utils.clip_grad_norm_(iter(()), 1.0)
    with pytest.warns(FutureWarning, match="deprecated"):
        utils.clip_grad_norm([], 1.0)


def test_values_are_clipped() -> None:
    (p,) = _params([np.array([-3.0, 0.5, 2.0], "float32")])
    utils.clip_grad_value_(p, 1.0)
    assert p.grad.tolist() == [-1.0, 0.5, 1.0]


def test_parameters_become_a_vector_and_back() -> None:
    params = [dg.rand(2, 3, requires_grad=True), dg.rand(4, requires_grad=True)]
    vector = utils.parameters_to_vector(params)
    vector.sum().backward()
    assert params[1].grad is not None and params[1].grad.tolist() == [1.0] * 4
    utils.vector_to_parameters(vector.detach() * 2, params)
    np.testing.assert_allclose(
        utils.parameters_to_vector(params).detach().array, vector.detach().array * 2
    )
    with pytest.raises(RuntimeError, match="the parameters have 10 elements"):
        utils.vector_to_parameters(dg.ones(9), params)
