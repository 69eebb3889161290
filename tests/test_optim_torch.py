"""Optimizers against PyTorch: 20 steps of every configuration, and state dicts both ways."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from distgrad import optim
from distgrad.optim.wolfe import Point, strong_wolfe
from distgrad.tensor import Tensor, wrap

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

SHAPES = [(3, 4), (4,), (), (2, 3, 2)]
MATRICES = [(3, 4), (8, 5), (6, 6)]
CASES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.1, "maximize": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "foreach": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "fused": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.5, "nesterov": True, "weight_decay": 0.1, "maximize": True}),
    ("Adam", {}),
    ("Adam", {"lr": 0.05, "betas": (0.4, 0.95), "eps": 1e-6, "weight_decay": 0.1}),
    ("Adam", {"lr": 0.05, "amsgrad": True, "maximize": True, "foreach": True}),
    ("Adam", {"weight_decay": 0.1, "decoupled_weight_decay": True, "fused": True}),
    ("AdamW", {}),
    ("AdamW", {"lr": 0.05, "weight_decay": 0.2, "amsgrad": True}),
    ("AdamW", {"lr": 0.05, "weight_decay": 0, "maximize": True}),
    ("NAdam", {}),
    ("NAdam", {"weight_decay": 0.1, "momentum_decay": 0.1, "betas": (0.8, 0.9)}),
    ("NAdam", {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True}),
    ("RAdam", {}),
    ("RAdam", {"lr": 0.05, "weight_decay": 0.1, "betas": (0.8, 0.9)}),
    ("RAdam", {"lr": 0.05, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("Adamax", {"weight_decay": 0.1}),
    ("Adamax", {"lr": 0.05, "betas": (0.5, 0.9), "eps": 1e-3, "maximize": True}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.01, "weight_decay": 0.1}),
    ("Adagrad", {"initial_accumulator_value": 0.5, "maximize": True, "eps": 1e-3}),
    ("Adadelta", {"weight_decay": 0.1}),
    ("Adadelta", {"lr": 2.0, "rho": 0.5, "eps": 1e-3, "maximize": True}),
    ("RMSprop", {"weight_decay": 0.1}),
    ("RMSprop", {"momentum": 0.9, "centered": True}),
    ("RMSprop", {"momentum": 0.9, "maximize": True, "alpha": 0.5}),
    ("Rprop", {}),
    ("Rprop", {"etas": (0.3, 1.5), "step_sizes": (1e-3, 0.1), "maximize": True}),
    ("ASGD", {}),
    ("ASGD", {"lambd": 0.1, "t0": 3, "lr": 0.1, "alpha": 0.5, "weight_decay": 0.1}),
    ("ASGD", {"t0": 0, "maximize": True}),
    ("Adafactor", {}),
    ("Adafactor", {"lr": 0.5, "weight_decay": 0.1, "d": 1.5, "beta2_decay": -0.5}),
    ("Adafactor", {"eps": (1e-3, 0.1), "maximize": True}),
    ("Muon", {}),
    ("Muon", {"nesterov": False, "adjust_lr_fn": "match_rms_adamw", "momentum": 0.8}),
    ("Muon", {"lr": 1e-2, "weight_decay": 0, "ns_steps": 3, "adjust_lr_fn": "original"}),
]


def _values(dtype: str, seed: int, shapes: list[tuple[int, ...]]) -> list[Any]:
    numbers = np.random.default_rng(seed)
    parts = [numbers.standard_normal((2, *s)) for s in shapes]
    if "complex" in dtype:
        return [np.asarray(re + 1j * im, dtype=dtype) for re, im in parts]
    return [np.asarray(a[0], dtype=dtype) for a in parts]


def _shapes(name: str) -> list[tuple[int, ...]]:
    return MATRICES if name == "Muon" else SHAPES


def _pair(
    name: str, options: dict[str, Any], dtype: str
) -> tuple[Any, Any, list[Tensor], list[Any]]:
    """Return our optimizer and PyTorch's, with the same parameters."""
    values = _values(dtype, 0, _shapes(name))
    p = [wrap(a.copy()).requires_grad_() for a in values]
    q = [torch.tensor(a, requires_grad=True) for a in values]
    return getattr(optim, name)(p, **options), getattr(torch.optim, name)(q, **options), p, q


def _steps(ours: Any, theirs: Any, p: list[Tensor], q: list[Any], steps: range) -> None:
    for step in steps:
        grads = _values(str(p[0].array.dtype), step + 1, [a.array.shape for a in p])
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


def _tolerance(name: str, options: dict[str, Any], dtype: str) -> float:
    if name == "Muon":  # its numbers are bfloat16's: rarely the last bit of one differs
        return 0.01 * options.get("lr", 1e-3)
    return {"float64": 1e-10, "complex128": 1e-10}.get(dtype, 1e-6)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_twenty_steps_equal_those_of_torch(name: str, options: dict[str, Any], dtype: str) -> None:
    ours, theirs, p, q = _pair(name, options, dtype)
    _steps(ours, theirs, p, q, range(20))
    _assert_close(p, q, _tolerance(name, options, dtype))
    for a, b in zip(p, q, strict=True):  # Adagrad's sums and ASGD's averages are looked at
        mine, kept = ours.state[a], theirs.state[b]
        close = 1e-6 if dtype == "float32" else 1e-10
        for key in mine:
            np.testing.assert_allclose(mine[key].array, kept[key].numpy(), close, 10 * close)


@pytest.mark.parametrize(
    ("name", "options"), [c for c in CASES if c[0] not in ("Adafactor", "Muon")]
)
def test_complex_parameters_move_as_those_of_torch(name: str, options: dict[str, Any]) -> None:
    if options.get("fused"):
        options = {**options, "fused": False}  # not for complex numbers there
    ours, theirs, p, q = _pair(name, options, "complex128")
    p[0].array = np.asfortranarray(p[0].array)  # memory in another order
    _steps(ours, theirs, p, q, range(8))
    _assert_close(p, q, 1e-10)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_options_defaults_and_printed_form_are_those_of_torch(
    name: str, options: dict[str, Any]
) -> None:
    ours, theirs, _, _ = _pair(name, options, "float32")
    assert ours.state_dict()["param_groups"] == theirs.state_dict()["param_groups"]
    assert list(ours.param_groups[0]) == list(theirs.param_groups[0])
    assert ours.defaults == theirs.defaults
    assert repr(ours) == repr(theirs)


def _convert(value: Any, leaf: Callable[[Any], Any]) -> Any:
    """Return nested containers with ``leaf`` of every tensor."""
    if isinstance(value, dict):
        return {k: _convert(v, leaf) for k, v in value.items()}
    if isinstance(value, list):
        return [_convert(v, leaf) for v in value]
    return leaf(value) if isinstance(value, Tensor | torch.Tensor) else value


def _to_torch(state: Any) -> Any:
    return _convert(state, lambda t: torch.tensor(t.detach().numpy()))


def _from_torch(state: Any) -> Any:
    return _convert(state, lambda t: wrap(t.detach().numpy().copy()))


@pytest.mark.parametrize("before", [0, 4])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_training_goes_on_from_the_state_of_torch_and_back(
    name: str, options: dict[str, Any], before: int
) -> None:
    ours, theirs, p, q = _pair(name, options, "float64")
    _steps(ours, theirs, p, q, range(before))
    mine, other = _to_torch(ours.state_dict()), theirs.state_dict()
    assert mine["state"].keys() == other["state"].keys()
    for number, entry in other["state"].items():
        kept = {k: v for k, v in entry.items() if v is not None}
        assert list(mine["state"][number]) == list(kept)
        for key, value in kept.items():
            assert mine["state"][number][key].dtype == value.dtype
            assert mine["state"][number][key].shape == value.shape
    again, there = getattr(optim, name)(p), getattr(torch.optim, name)(q)
    again.load_state_dict(_from_torch(other))
    there.load_state_dict(mine)
    _steps(again, there, p, q, range(before, 10))
    _assert_close(p, q, _tolerance(name, options, "float64"))


@pytest.mark.parametrize(("name", "options"), CASES[::3])
def test_an_unpickled_state_goes_on_with_the_same_bits(name: str, options: dict[str, Any]) -> None:
    ours, theirs, p, q = _pair(name, options, "float32")
    again, _, r, _ = _pair(name, options, "float32")
    _steps(ours, theirs, p, q, range(3))
    again.load_state_dict(pickle.loads(pickle.dumps(ours.state_dict())))
    for a, b in zip(p, r, strict=True):
        b.array[...] = a.array
    _steps(ours, theirs, p, q, range(3, 6))
    _steps(again, theirs, r, q, range(3, 6))
    for a, b in zip(p, r, strict=True):
        np.testing.assert_array_equal(a.array, b.array)


def test_groups_tensor_rates_and_added_groups_equal_those_of_torch() -> None:
    values = _values("float64", 0, [(3,), (2, 2), (4,)])
    p = [wrap(a.copy()).requires_grad_() for a in values]
    q = [torch.tensor(a, requires_grad=True) for a in values]
    ours = optim.Adam(
        [{"params": [p[0]]}, {"params": p[1], "lr": 0.3, "weight_decay": 0.1}],
        lr=wrap(np.array(0.1, "float32")),
    )
    theirs = torch.optim.Adam(
        [{"params": [q[0]]}, {"params": q[1], "lr": 0.3, "weight_decay": 0.1}],
        lr=torch.tensor(0.1),
    )
    _steps(ours, theirs, p, q, range(3))
    ours.add_param_group({"params": [p[2]], "amsgrad": True, "lr": 0.2})
    theirs.add_param_group({"params": [q[2]], "amsgrad": True, "lr": 0.2})
    _steps(ours, theirs, p, q, range(3, 9))
    _assert_close(p, q, 1e-7)  # PyTorch computes with the tensor's float32


# ---------------------------------------------------------------------- L-BFGS
LBFGS_CASES: list[dict[str, Any]] = [
    {"line_search_fn": "strong_wolfe"},
    {"line_search_fn": "strong_wolfe", "history_size": 3, "max_iter": 5},
    {"line_search_fn": "strong_wolfe", "max_eval": 6, "lr": 0.3},
    {"lr": 1e-3},
    {"lr": 1e-2, "max_iter": 4, "history_size": 2},
    {"lr": 1e-2, "tolerance_grad": 10.0},
    {"lr": 1e-2, "tolerance_change": 1.0},
]


def _valley(params: list[Any]) -> Any:
    """A curved valley and a matrix that wants to be its own inverse."""
    x, m = params
    return (
        ((1 - x[:-1]) ** 2).sum()
        + 100 * ((x[1:] - x[:-1] ** 2) ** 2).sum()
        + ((m @ m - 1) ** 2).sum()
    )


def _kinks(params: list[Any]) -> Any:
    return (params[0].abs() ** 1.5).sum() + params[1].cos().sum()


def _hill(params: list[Any]) -> Any:
    """From near a top, where curvature is below 0, down into a ripple."""
    return (params[0] ** 4 / 4 - params[0] ** 2 + (3 * params[0]).cos()).sum() + params[
        1
    ].square().sum()


def _lbfgs_pair(options: dict[str, Any], dtype: str) -> tuple[Any, Any, list[Tensor], list[Any]]:
    values = [
        np.array([-1.2, 1.0, 0.5], dtype),
        np.array([[0.3, 0.1], [0.2, 0.5]], dtype),
    ]
    p = [wrap(v.copy()).requires_grad_() for v in values]
    q = [torch.tensor(v, requires_grad=True) for v in values]
    return optim.LBFGS(p, **options), torch.optim.LBFGS(q, **options), p, q


def _closure(optimizer: Any, params: list[Any], function: Any, calls: list[float]) -> Any:
    def closure() -> Any:
        optimizer.zero_grad()
        loss = function(params)
        loss.backward()
        calls.append(loss.item())
        return loss

    return closure


@pytest.mark.parametrize("function", [_valley, _kinks, _hill])
@pytest.mark.parametrize("options", LBFGS_CASES)
def test_lbfgs_takes_the_steps_of_torch(options: dict[str, Any], function: Any) -> None:
    ours, theirs, p, q = _lbfgs_pair(options, "float64")
    mine: list[float] = []
    other: list[float] = []
    for _ in range(4):
        first = ours.step(_closure(ours, p, function, mine))
        assert first.item() == pytest.approx(
            theirs.step(_closure(theirs, q, function, other)).item()
        )
    assert len(mine) == len(other)
    np.testing.assert_allclose(mine, other, rtol=1e-7, atol=1e-7)  # a long chain of searches
    _assert_close(p, q, 1e-9)


@pytest.mark.parametrize("options", LBFGS_CASES[1:2] + LBFGS_CASES[4:5])
def test_lbfgs_in_float32_takes_the_steps_of_torch(options: dict[str, Any]) -> None:
    ours, theirs, p, q = _lbfgs_pair(options, "float32")
    for _ in range(2):
        ours.step(_closure(ours, p, _valley, []))
        theirs.step(_closure(theirs, q, _valley, []))
    _assert_close(p, q, 1e-6)


@pytest.mark.parametrize("options", LBFGS_CASES[:5])
def test_lbfgs_goes_on_from_the_state_of_torch_and_back(options: dict[str, Any]) -> None:
    ours, theirs, p, q = _lbfgs_pair(options, "float64")
    ours.step(_closure(ours, p, _valley, []))
    theirs.step(_closure(theirs, q, _valley, []))
    assert repr(ours) == repr(theirs)
    mine, other = _to_torch(ours.state_dict()), theirs.state_dict()
    assert mine["state"][0].keys() == other["state"][0].keys() - {"al"}  # scratch of PyTorch
    again, there = optim.LBFGS(p), torch.optim.LBFGS(q)
    again.load_state_dict(_from_torch(other))
    there.load_state_dict(mine)
    again.step(_closure(again, p, _valley, []))
    there.step(_closure(there, q, _valley, []))
    assert again.state[p[0]]["n_iter"] == there.state[q[0]]["n_iter"]
    _assert_close(p, q, 1e-9)


def test_lbfgs_takes_complex_parameters_as_pairs() -> None:
    value = np.array([1 + 2j, -0.5j], "complex128")
    p, q = wrap(value.copy()).requires_grad_(), torch.tensor(value, requires_grad=True)
    ours, theirs = optim.LBFGS([p], lr=0.1), torch.optim.LBFGS([q], lr=0.1)

    def distance(params: list[Any]) -> Any:
        return ((params[0].real - 1) ** 4 + params[0].imag ** 2).sum()

    ours.step(_closure(ours, [p], distance, []))
    theirs.step(_closure(theirs, [q], distance, []))
    _assert_close([p], [q], 1e-10)


@pytest.mark.parametrize("seed", [*range(25), 651, 1693])  # these rise again from the third look
def test_a_search_along_a_rough_line_looks_where_torch_looks(seed: int) -> None:
    from torch.optim.lbfgs import _strong_wolfe  # the search alone, for lines that are hard

    numbers = np.random.default_rng(seed)
    waves, sizes, first = (
        numbers.uniform(1, 30, 4),
        numbers.normal(0, 0.3, 4),
        numbers.uniform(0.01, 3),
    )

    def value(t: float) -> tuple[float, float]:
        x = waves * t
        return float(sizes @ np.sin(x)) - t + 0.1 * t * t, float(
            sizes @ (waves * np.cos(x))
        ) - 1 + 0.2 * t

    mine: list[float] = []
    other: list[float] = []

    def look(t: float) -> Point:
        mine.append(t)
        loss, slope = value(t)
        return Point(t, loss, np.array([slope]), slope)

    def theirs(x: Any, t: float, d: Any) -> Any:
        other.append(float(t))
        loss, slope = value(float(t))
        return loss, torch.tensor([slope], dtype=torch.float64)

    loss, slope = value(0.0)
    slope = -abs(slope)
    one = torch.ones(1, dtype=torch.float64)
    found = _strong_wolfe(theirs, one * 0, first, one, loss, one * slope, one[0] * slope)
    end, looks = strong_wolfe(look, Point(0.0, loss, np.array([slope]), slope), first, 1.0, 1e-9)
    np.testing.assert_allclose(mine, other, rtol=1e-9)
    assert (end.t, looks) == (pytest.approx(float(found[2])), found[3])
