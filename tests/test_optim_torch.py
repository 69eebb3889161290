"""Optimizers against PyTorch: 20 steps of every configuration, and state dicts both ways."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distgrad import optim
from distgrad.tensor import Tensor, wrap

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

CASES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.1, "maximize": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    ("Adam", {}),
    ("Adam", {"lr": 0.05, "betas": (0.4, 0.95), "eps": 1e-6, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.05, "amsgrad": True, "maximize": True}),
    ("Adam", {"weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("AdamW", {}),
    ("AdamW", {"lr": 0.05, "weight_decay": 0.2, "amsgrad": True}),
    ("NAdam", {}),
    ("NAdam", {"weight_decay": 0.1}),
    ("NAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True}),
    ("RAdam", {}),
    ("RAdam", {"lr": 0.05, "weight_decay": 0.1}),
    ("RAdam", {"lr": 0.05, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("Adamax", {"weight_decay": 0.1}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.01, "weight_decay": 0.1}),
    ("Adagrad", {"initial_accumulator_value": 0.5, "maximize": True}),
    ("Adadelta", {"weight_decay": 0.1}),
    ("RMSprop", {"weight_decay": 0.1}),
    ("RMSprop", {"momentum": 0.9, "centered": True}),
    ("RMSprop", {"momentum": 0.9, "maximize": True}),
]
SHAPES = [(3, 4), (4,), (), (2, 3, 2)]


def _values(dtype: str, seed: int) -> list[Any]:
    numbers = np.random.default_rng(seed)
    return [np.asarray(numbers.standard_normal(s), dtype=dtype) for s in SHAPES]


def _ours(dtype: str) -> list[Tensor]:
    return [wrap(a.copy()).requires_grad_() for a in _values(dtype, 0)]


def _theirs(dtype: str) -> list[Any]:
    return [torch.tensor(a, requires_grad=True) for a in _values(dtype, 0)]


def _steps(ours: Any, theirs: Any, p: list[Tensor], q: list[Any], steps: range) -> None:
    for step in steps:
        grads = _values(str(p[0].array.dtype), step + 1)
        for i, (a, b, g) in enumerate(zip(p, q, grads, strict=True)):
            some = i != 1 or step != 5  # a parameter that gets no gradient once
            a.grad = wrap(g.copy()) if some else None
            b.grad = torch.tensor(g) if some else None
        ours.step()
        theirs.step()


def _assert_close(p: list[Tensor], q: list[Any], tolerance: float) -> None:
    for a, b in zip(p, q, strict=True):
        np.testing.assert_allclose(
            a.array, b.detach().numpy(), rtol=tolerance, atol=tolerance, strict=True
        )


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 2e-5)])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_twenty_steps_equal_those_of_torch(
    name: str, options: dict[str, Any], dtype: str, tolerance: float
) -> None:
    p, q = _ours(dtype), _theirs(dtype)
    ours = getattr(optim, name)(p, **options)
    theirs = getattr(torch.optim, name)(q, **options)
    _steps(ours, theirs, p, q, range(20))
    _assert_close(p, q, tolerance)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_options_defaults_and_printed_form_are_those_of_torch(
    name: str, options: dict[str, Any]
) -> None:
    ours = getattr(optim, name)(_ours("float32"), **options)
    theirs = getattr(torch.optim, name)(_theirs("float32"), **options)
    assert ours.state_dict()["param_groups"] == theirs.state_dict()["param_groups"]
    assert list(ours.param_groups[0]) == list(theirs.param_groups[0])
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_training_goes_on_from_the_state_of_torch_and_back(
    name: str, options: dict[str, Any]
) -> None:
    p, q = _ours("float64"), _theirs("float64")
    ours = getattr(optim, name)(p, **options)
    theirs = getattr(torch.optim, name)(q, **options)
    _steps(ours, theirs, p, q, range(4))
    state = theirs.state_dict()
    state["state"] = {
        i: {k: wrap(v.numpy()) if torch.is_tensor(v) else v for k, v in entry.items()}
        for i, entry in state["state"].items()
    }
    again = getattr(optim, name)(p, lr=1.0)
    again.load_state_dict(state)
    back = ours.state_dict()
    back["state"] = {
        i: {k: torch.tensor(v.numpy()) for k, v in entry.items()}
        for i, entry in back["state"].items()
    }
    assert back["state"].keys() == theirs.state_dict()["state"].keys()
    for i, entry in theirs.state_dict()["state"].items():
        kept = {k: v for k, v in entry.items() if v is not None}
        ours_entry = {k: v for k, v in back["state"][i].items() if k != "step" or "step" in kept}
        assert ours_entry.keys() == kept.keys()
        assert all(ours_entry[k].dtype == v.dtype for k, v in kept.items())
    there = getattr(torch.optim, name)(q, lr=1.0)
    there.load_state_dict(back)
    _steps(again, there, p, q, range(4, 10))
    _assert_close(p, q, 1e-12)
