"""Arrays as text: PyTorch's layout to the letter."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import distgrad as dg
from distgrad.backend import dtype as dt
from distgrad.backend.format import (
    format_array,
    format_values,
    get_printoptions,
    printoptions,
    set_printoptions,
)
from distgrad.errors import ArgumentError

SHAPES = [(), (1,), (7,), (40,), (2, 3), (0,), (0, 3), (3, 2, 2), (2, 1, 3, 2), (1100,), (40, 30)]
OPTIONS = [
    {},
    {"precision": 2},
    {"threshold": 5, "edgeitems": 2},
    {"threshold": 5, "edgeitems": 0},
    {"linewidth": 40},
    {"sci_mode": True},
    {"sci_mode": False},
    {"profile": "short"},
    {"profile": "full"},
]
NAN, INF = float("nan"), float("inf")


def test_the_form_of_a_float_tensor():
    assert format_array(np.array([6.0, 8.0], "f4")) == "tensor([6., 8.])"
    assert format_array(np.array([1.5, NAN, -INF], "f4")) == "tensor([1.5000,    nan,   -inf])"


def test_type_and_size_are_printed_when_they_are_not_evident():
    assert format_array(np.ones(1)) == "tensor([1.], dtype=distgrad.float64)"
    assert format_array(np.ones(0, "f4")) == "tensor([])"
    assert format_array(np.ones((0, 3), "i8")) == "tensor([], size=(0, 3), dtype=distgrad.int64)"
    dt.set_default_dtype(dt.float64)
    try:
        assert format_array(np.ones(1)) == "tensor([1.])"
        assert format_array(np.ones(1, "f4")) == "tensor([1.], dtype=distgrad.float32)"
    finally:
        dt.set_default_dtype(dt.float32)


def test_suffixes_follow_and_wrap_at_the_end_of_the_line():
    text = format_array(np.ones((2, 2), "f4"), "Parameter(", ["requires_grad=True"])
    assert text == "Parameter([[1., 1.],\n           [1., 1.]], requires_grad=True)"
    with printoptions(linewidth=20):
        assert format_array(np.ones(2, "f4"), suffixes=["grad_fn=<MulBackward0>"]) == (
            "tensor([1., 1.],\n       grad_fn=<MulBackward0>)"
        )
    with printoptions(linewidth=30):
        text = format_array(np.ones(2), suffixes=["a=1"])
        assert text == "tensor([1., 1.],\n       dtype=distgrad.float64,\n       a=1)"


def test_print_options_are_set_and_restored():
    before = get_printoptions()
    with printoptions(precision=2, sci_mode=True):
        assert format_values(np.array([1234.5])) == "[1.23e+03]"
        assert get_printoptions() == {**before, "precision": 2, "sci_mode": True}
    assert get_printoptions() == before
    set_printoptions(profile="short")
    try:
        assert get_printoptions()["edgeitems"] == 2
    finally:
        set_printoptions(profile="default")
    assert get_printoptions() == before


def test_an_unknown_profile_is_refused_with_the_known():
    with pytest.raises(ArgumentError, match="'default', 'short', 'full'"):
        set_printoptions(profile="long")  # type: ignore[arg-type]


def numbers(rng: np.random.Generator, shape, kind: int) -> np.ndarray:
    x = rng.standard_normal(shape) * 10 ** rng.uniform(-8, 8)
    if kind == 1:
        x = np.round(rng.standard_normal(shape) * 30)
    elif kind == 2:
        x = rng.standard_normal(shape) * 3
    elif kind == 3:
        holes = rng.choice([NAN, INF, -INF, 0.0, -0.0], shape)
        x = np.where(rng.random(shape) < 0.3, holes, rng.standard_normal(shape))
    return np.asarray(x)


@pytest.mark.torch
@pytest.mark.parametrize("d", dt.ALL_DTYPES, ids=lambda d: d.name)
def test_random_arrays_print_as_in_pytorch(d, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(dt, "MODULE_PREFIX", "torch")  # lines wrap by the length of the prefix
    rng = np.random.default_rng(d.itemsize)
    for shape, kind in itertools.product(SHAPES, range(4)):
        theirs = torch.from_numpy(numbers(rng, shape, kind))
        if d.is_complex:
            theirs = torch.complex(theirs, theirs.flip(0) if shape else theirs * -2)
        elif not d.is_floating_point:
            theirs = theirs.nan_to_num(3, 5, 0).clamp(-100, 100)
            theirs = theirs if d.is_signed else theirs.abs()
        theirs = theirs.to(getattr(torch, d.name))
        ours = theirs.float().numpy().astype(d) if d is dt.bfloat16 else theirs.numpy()
        options = OPTIONS[rng.integers(len(OPTIONS))]
        torch.set_printoptions(**options)
        try:
            want = str(theirs)
        finally:
            torch.set_printoptions(profile="default")
        with printoptions(**options):
            assert format_array(ours) == want, (shape, kind, options)


def test_a_number_in_an_f_string_is_its_value():
    loss = dg.tensor(2.5, requires_grad=True)
    assert f"{loss} {loss:.3f} {dg.tensor(True)} {dg.tensor(7):>3d}" == "2.5 2.500 True   7"
    assert f"{dg.tensor([1.0])}" == "tensor([1.])"
    assert f"{dg.nn.Parameter(dg.tensor(1.0))}".startswith("Parameter containing:\ntensor(1.")
    with pytest.raises(TypeError, match="unsupported format string"):
        f"{dg.tensor([1.0, 2.0]):.2f}"
