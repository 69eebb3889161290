"""Flat parameters: one call of the rule for all of them, with the bits of one call for each."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from distgrad import optim
from distgrad.optim import runs
from distgrad.optim.runs import flatten_parameters
from distgrad.tensor import Tensor, wrap

SHAPES = [(8, 5), (5,), (), (3, 2, 2), (40, 11)]
OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"momentum": 0.9, "weight_decay": 0.1}),
    ("AdamW", {"lr": 0.01, "amsgrad": True}),
    ("NAdam", {}),
    ("RAdam", {}),
    ("Adamax", {}),
    ("Adagrad", {}),
    ("Adadelta", {}),
    ("RMSprop", {"momentum": 0.9, "centered": True}),
    ("Rprop", {}),
    ("ASGD", {"t0": 2, "weight_decay": 0.1}),
    ("Adam", {"weight_decay": 0.1, "maximize": True}),
]
WHOLE: list[tuple[str, dict[str, Any]]] = [
    ("LAMB", {}),
    ("LARS", {"weight_decay": 0.1}),
    ("Adafactor", {"weight_decay": 0.1}),
]


def _params() -> list[Tensor]:
    numbers = np.random.default_rng(0)
    values = [np.asarray(numbers.standard_normal(s), dtype="float32") for s in SHAPES]
    return [wrap(v).requires_grad_() for v in values]


def _give(params: list[Tensor], step: int) -> None:
    """Do what backward does: copy into the bucket where there is one."""
    numbers = np.random.default_rng(100 + step)
    for p in params:
        g = np.asarray(numbers.standard_normal(p.array.shape), dtype="float32")
        if p._grad_buffer is None:
            p.grad = wrap(g)
        else:
            p._grad_buffer.array[...] = g
            p.grad = p._grad_buffer


def _train(optimizer: Any, params: list[Tensor], steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        _give(params, step)
        optimizer.step()


def _state(optimizer: Any) -> list[Any]:
    entries = optimizer.state_dict()["state"]
    return [(i, k, v.array.tolist()) for i, e in entries.items() for k, v in e.items()]


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_one_flat_run_has_the_bits_of_single_parameters(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "BLOCK", 64)  # so that several blocks are needed
    single, flat = _params(), _params()
    flatten_parameters(flat)
    one, other = (getattr(optim, name)(p, **options) for p in (single, flat))
    _train(one, single, range(6))
    _train(other, flat, range(6))
    assert len(one._plans[0].runs) == len(SHAPES)
    assert len(other._plans[0].runs) == 1
    for a, b in zip(single, flat, strict=True):
        np.testing.assert_array_equal(a.array, b.array, strict=True)
    assert _state(one) == _state(other)


@pytest.mark.parametrize(("name", "options"), WHOLE)
def test_rules_for_whole_parameters_have_the_same_bits_in_flat_memory(
    name: str, options: dict[str, Any]
) -> None:
    single, flat = _params(), _params()
    flatten_parameters(flat)
    one, other = (getattr(optim, name)(p, **options) for p in (single, flat))
    _train(one, single, range(6))
    _train(other, flat, range(6))
    for a, b in zip(single, flat, strict=True):
        np.testing.assert_array_equal(a.array, b.array, strict=True)
    assert _state(one) == _state(other)


@pytest.mark.parametrize(("name", "options"), OPTIMIZERS)
def test_training_goes_on_from_a_state_between_flat_and_single(
    name: str, options: dict[str, Any]
) -> None:
    single, flat = _params(), _params()
    one = getattr(optim, name)(single, **options)
    _train(one, single, range(3))
    for a, b in zip(single, flat, strict=True):
        b.array[...] = a.array
    flatten_parameters(flat)
    other = getattr(optim, name)(flat, **options)
    other.load_state_dict(one.state_dict())
    _train(one, single, range(3, 6))
    _train(other, flat, range(3, 6))
    for a, b in zip(single, flat, strict=True):
        np.testing.assert_array_equal(a.array, b.array)


def test_flatten_parameters_keeps_values_tensors_and_gradients() -> None:
    params = _params()
    before = [p.array.copy() for p in params]
    params[1].grad = wrap(np.ones(5, "float32"))
    (flat,) = flatten_parameters([*params, params[0]])
    assert flat.shape == (sum(b.size for b in before),)
    for p, b in zip(params, before, strict=True):
        np.testing.assert_array_equal(p.array, b, strict=True)
        assert p.array.base is flat.array
        assert p._grad_buffer is not None
        assert p._grad_buffer.array.shape == b.shape
    assert params[1].grad is params[1]._grad_buffer
    assert params[1].grad is not None
    np.testing.assert_array_equal(params[1].grad.array, np.ones(5))


def test_flatten_parameters_follows_the_order_of_buckets() -> None:
    params = _params()
    bucket, end = np.zeros(sum(p.numel() for p in params), "float32"), 0
    for p in reversed(params):  # as DistributedDataParallel lays them out
        start, end = end, end + p.numel()
        p._grad_buffer = wrap(bucket[start:end].reshape(p.array.shape))
    flatten_parameters(params)
    optimizer = optim.AdamW(params)
    _train(optimizer, params, range(2))
    assert len(optimizer._plans[0].runs) == 1
    assert optimizer._plans[0].runs[0].params == params[::-1]


def test_a_parameter_without_gradient_leaves_the_others_in_two_runs() -> None:
    params, single = _params(), _params()
    flatten_parameters(params)
    optimizer, other = optim.AdamW(params), optim.AdamW(single)
    _train(optimizer, params, range(2))
    _train(other, single, range(2))
    for step in range(2, 6):
        for members, one in ((params, optimizer), (single, other)):
            one.zero_grad()
            _give(members, step)
            if step == 2:
                members[1].grad = None
            one.step()
    counts = [optimizer.state[p]["step"].item() for p in params]
    assert counts == [6, 5, 6, 6, 6]
    for a, b in zip(params, single, strict=True):
        np.testing.assert_array_equal(a.array, b.array)


def test_two_dtypes_are_two_flat_arrays() -> None:
    params = [wrap(np.ones(3, kind)).requires_grad_() for kind in ("float32", "float64")] * 2
    assert sorted(str(f.array.dtype) for f in flatten_parameters(params)) == ["float32", "float64"]


def test_a_step_is_a_change_in_place_of_every_parameter() -> None:
    params = _params()
    flatten_parameters(params)
    optimizer = optim.SGD(params)
    versions = [p._version for p in params]
    _train(optimizer, params, range(1))
    assert [p._version for p in params] == [v + 1 for v in versions]


def test_a_transposed_parameter_and_gradient_are_updated_in_place() -> None:
    memory = np.arange(6, dtype="float32").reshape(2, 3)
    p = wrap(memory.T).requires_grad_()
    p.grad = wrap(np.ones((2, 3), "float32").T)
    optim.SGD([p], lr=1.0, momentum=0.5).step()
    np.testing.assert_array_equal(memory, np.arange(6).reshape(2, 3) - 1.0)


def test_complex_parameters_move_as_pairs_of_numbers() -> None:
    p = wrap(np.array([1 + 2j, 3 - 1j], "complex64")).requires_grad_()
    pairs = wrap(np.array([1, 2, 3, -1], "float32")).requires_grad_()
    for tensor in (p, pairs):
        optimizer = optim.Adam([tensor], lr=0.1)
        for step in range(3):
            g = np.array([1, -2, 3, step], "float32")
            tensor.grad = wrap(g.view("complex64") if tensor is p else g)
            optimizer.step()
    np.testing.assert_array_equal(p.array.view("float32"), pairs.array)


def test_an_optimizer_copied_with_its_parameters_is_independent() -> None:
    params = _params()
    optimizer = optim.AdamW(params)
    _train(optimizer, params, range(2))
    copied, twins = copy.deepcopy((optimizer, params))
    _train(optimizer, params, range(2, 4))
    before = [p.array.copy() for p in params]
    _train(copied, twins, range(2, 4))
    for p, q, b in zip(params, twins, before, strict=True):
        np.testing.assert_array_equal(p.array, b)
        np.testing.assert_array_equal(q.array, b)
