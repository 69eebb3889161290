"""Optimizers that look at whole parameters: LAMB, LARS, Adafactor, Muon."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distgrad import optim
from distgrad.distributed.fsdp import fully_shard
from distgrad.errors import ArgumentError, DtypeError
from distgrad.nn import Linear
from distgrad.optim.zero import ZeroRedundancyOptimizer
from distgrad.tensor import Tensor, wrap

SHAPES = [(3, 4), (4,), (), (2, 3, 2)]


def _run(name: str, options: dict[str, Any], dtype: str, steps: int = 20) -> list[Any]:
    numbers = np.random.default_rng(0)
    params = [wrap(np.asarray(numbers.standard_normal(s), dtype)).requires_grad_() for s in SHAPES]
    optimizer = getattr(optim, name)(params, **options)
    for _ in range(steps):
        for p in params:
            p.grad = wrap(np.asarray(numbers.standard_normal(p.array.shape), dtype))
        optimizer.step()
    return [p.array for p in params]


def _reference(rule: Any, steps: int = 20) -> list[Any]:
    """Do the same as `_run` with a rule (p, g, memory of this parameter) -> p in float64."""
    numbers = np.random.default_rng(0)
    params = [np.asarray(numbers.standard_normal(s)) for s in SHAPES]
    memories: list[dict[str, Any]] = [{} for _ in params]
    for _ in range(steps):
        for i, memory in enumerate(memories):
            params[i] = rule(params[i], numbers.standard_normal(params[i].shape), memory)
    return params


def _lamb(lr: float, weight_decay: float, adapt: bool = True, sign: float = 1.0) -> Any:
    def rule(p: Any, g: Any, memory: dict[str, Any]) -> Any:
        g, t = sign * g, memory.get("t", 0) + 1
        m = 0.9 * memory.get("m", 0) + 0.1 * g
        v = 0.999 * memory.get("v", 0) + 0.001 * g * g
        memory.update(t=t, m=m, v=v)
        r = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-6) + weight_decay * p
        trust = np.linalg.norm(p) / np.linalg.norm(r) if adapt else 1
        return p - lr * trust * r

    return rule


def _lars(lr: float, weight_decay: float, momentum: float, nesterov: bool) -> Any:
    def rule(p: Any, g: Any, memory: dict[str, Any]) -> Any:
        d = g + weight_decay * p
        d = d * 1e-2 * np.linalg.norm(p) / np.linalg.norm(d)
        memory["buffer"] = momentum * memory.get("buffer", 0) + d
        return p - lr * (d + momentum * memory["buffer"] if nesterov else memory["buffer"])

    return rule


CASES: list[tuple[str, dict[str, Any], Any]] = [
    ("LAMB", {"lr": 0.01}, _lamb(0.01, 0.01)),
    ("LAMB", {"lr": 0.1, "weight_decay": 0}, _lamb(0.1, 0)),
    ("LAMB", {"lr": 0.1, "weight_decay": 0.2, "adapt": False}, _lamb(0.1, 0.2, adapt=False)),
    ("LAMB", {"lr": 0.1, "weight_decay": 0.2, "maximize": True}, _lamb(0.1, 0.2, sign=-1.0)),
    ("LARS", {"trust_coefficient": 1e-2}, _lars(0.1, 0, 0.9, False)),
    (
        "LARS",
        {"lr": 1.0, "trust_coefficient": 1e-2, "weight_decay": 0.1, "nesterov": True},
        _lars(1.0, 0.1, 0.9, True),
    ),
    ("LARS", {"lr": 0.5, "trust_coefficient": 1e-2, "momentum": 0}, _lars(0.5, 0, 0, False)),
]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-6)])
@pytest.mark.parametrize(("name", "options", "rule"), CASES)
def test_twenty_steps_follow_the_formula(
    name: str, options: dict[str, Any], rule: Any, dtype: str, tolerance: float
) -> None:
    for a, b in zip(_run(name, options, dtype), _reference(rule), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
        assert a.dtype == dtype


def test_lars_without_adaption_is_sgd() -> None:
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    plain = _run("SGD", options, "float32")
    for a, b in zip(_run("LARS", {**options, "adapt": False}, "float32"), plain, strict=True):
        np.testing.assert_array_equal(a, b)


def _param(*shape: int, dtype: str = "float32") -> Tensor:
    p = wrap(np.ones(shape, dtype)).requires_grad_()
    p.grad = wrap(np.ones(shape, dtype))
    return p


@pytest.mark.parametrize("name", ["LAMB", "LARS"])
def test_weights_of_zero_move_without_a_ratio(name: str) -> None:
    p = wrap(np.zeros(2, "float32")).requires_grad_()
    p.grad = wrap(np.ones(2, "float32"))
    getattr(optim, name)([p], lr=0.5).step()
    assert np.isfinite(p.array).all() and (p.array < 0).all()


def test_muon_makes_the_singular_values_of_a_step_alike() -> None:
    p = wrap(np.zeros((6, 4), "float32")).requires_grad_()
    p.grad = wrap(np.random.default_rng(0).standard_normal((6, 4)).astype("float32"))
    optim.Muon([p], lr=1.0, adjust_lr_fn="match_rms_adamw").step()
    values = np.linalg.svd(p.array, compute_uv=False) / (0.2 * np.sqrt(6))
    assert ((values > 0.6) & (values < 1.3)).all()


def test_parameters_that_have_no_meaning_are_refused() -> None:
    with pytest.raises(ArgumentError, match="Muon only supports 2D parameters whereas we found"):
        optim.Muon([_param(3)])
    for optimizer in (optim.Muon, optim.Adafactor):
        with pytest.raises(DtypeError, match="does not support complex parameters"):
            optimizer([_param(2, 2, dtype="complex64")]).step()


@pytest.mark.parametrize("name", ["LAMB", "LARS", "Adafactor", "Muon", "LBFGS"])
def test_zero_refuses_what_needs_whole_parameters(name: str) -> None:
    with pytest.raises(ArgumentError, match="whole parameters"):
        ZeroRedundancyOptimizer([_param(2, 2)], getattr(optim, name))


@pytest.mark.parametrize("name", ["LAMB", "LARS", "Adafactor", "LBFGS"])
def test_parts_of_parameters_are_refused(name: str) -> None:
    model = fully_shard(Linear(4, 3))
    with pytest.raises(ArgumentError, match=r"looks at whole parameters, and fully_shard has left"):
        getattr(optim, name)(model.parameters())


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("LAMB", {"lr": -1}, "Invalid learning rate: -1"),
    ("LARS", {"trust_coefficient": -1}, "Invalid trust_coefficient value: -1"),
    ("LARS", {"nesterov": True, "momentum": 0}, "Nesterov momentum requires a momentum"),
    ("Adafactor", {"lr": -1}, "Learning rate should be >= 0 but is: -1"),
    ("Adafactor", {"beta2_decay": 1.0}, r"beta2_decay should be <= 0 but is: 1\.0"),
    ("Adafactor", {"d": 0.5}, r"Clipping threshold d should be >= 1 but is: 0\.5"),
    ("Adafactor", {"eps": (None, -1)}, "epsilon2 should be >= 0 but is: -1"),
    ("Adafactor", {"weight_decay": -1}, "weight_decay should be >= 0 but is: -1"),
    ("Muon", {"momentum": -1}, "momentum should be >= 0 but is: -1"),
    ("Muon", {"weight_decay": -1}, "weight decay should be >= 0 but is: -1"),
    ("Muon", {"adjust_lr_fn": "x"}, "Adjust learning rate function x is not supported"),
    ("Muon", {"ns_steps": 100}, "steps must be less than 100"),
]


@pytest.mark.parametrize(("name", "options", "message"), BAD)
def test_bad_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        getattr(optim, name)([_param(2, 2)], **options)
