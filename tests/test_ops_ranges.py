"""Factories against PyTorch: ``out``, ``layout``, integer ranges, memory orders, and mistakes."""

import numpy as np
import pytest

import distgrad as dg
from distgrad.errors import ArgumentError, ArgumentTypeError, DtypeError, ShapeError


def test_out_decides_the_dtype():
    out = dg.empty(0, dtype=dg.int32)
    assert dg.arange(3, out=out) is out
    assert out.dtype is dg.int32
    assert out.tolist() == [0, 1, 2]
    assert dg.full((2,), 3.7, out=dg.empty(2, dtype=dg.int64)).tolist() == [3, 3]
    with pytest.raises(DtypeError, match="does not match dtype of out"):
        dg.zeros(2, dtype=dg.float64, out=dg.empty(2))


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["uint8", "int32", "int64", "float16", "float32"])
@pytest.mark.parametrize(
    "form", [("arange", 3.1), ("arange", 2.1, -2.9, -1.0), ("arange", 0.0, -8.1, -4.0),
             ("linspace", 4.3, 0, 7), ("linspace", -2.5, 2.5, 1), ("logspace", 2.7, 0.2, 3, 2.0)],
)  # fmt: skip
def test_ranges_end_where_those_of_torch_end(form, kind):
    torch = pytest.importorskip("torch")
    if kind == "uint8" and form[1] != 4.3:
        form = (form[0], abs(form[1]), *form[2:])
    name, *args = form
    try:
        want = getattr(torch, name)(*args, dtype=getattr(torch, kind))
    except RuntimeError:
        with pytest.raises(RuntimeError):
            getattr(dg, name)(*args, dtype=getattr(dg, kind))
        return
    found = getattr(dg, name)(*args, dtype=getattr(dg, kind))
    assert str(found.dtype).split(".")[1] == kind
    np.testing.assert_allclose(found.double(), want.double().numpy(), 1e-3)


def test_strides_are_those_that_were_asked_for():
    assert dg.empty_strided((2, 3), (1, 2)).stride() == (1, 2)
    assert dg.empty_permuted((2, 3, 5), (2, 0, 1)).stride() == (3, 1, 6)
    assert dg.ones(1).double().new_empty_strided((2, 3), (1, 2)).dtype is dg.float64
    image = dg.ones(2, 3, 4, 5)
    assert dg.zeros_like(image, memory_format=dg.channels_last).stride() == (60, 1, 15, 3)
    assert dg.zeros_like(dg.ones(2, 3).t()).stride() == (1, 3)


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: dg.arange(0, 64, 0.5, dtype=dg.int64), ArgumentError, "step must be nonzero"),
        (lambda: dg.arange(3, 0), ShapeError, "inconsistent with step sign"),
        (lambda: dg.arange(1j), DtypeError, "cannot be converted"),
        (lambda: dg.arange(2, dtype=dg.bool), NotImplementedError, "not implemented for bool"),
        (lambda: dg.linspace(0, 1, 2.0), ArgumentTypeError, "'steps' must be int, not float"),
        (lambda: dg.linspace(dg.ones(1), 1, 2), ShapeError, "0-dimensional start and end"),
        (lambda: dg.linspace(0, 1j, 3, dtype=dg.float32), DtypeError, "can't be safely cast"),
        (lambda: dg.eye(2, 3.5), ArgumentTypeError, "'m' must be int, not float"),
        (lambda: dg.full(2, 3.0), ArgumentTypeError, "must be tuple of ints, not int"),
        (lambda: dg.full((2,), dg.ones(1)), ArgumentTypeError, "must be Number, not Tensor"),
        (lambda: dg.full((2,), 1e6, dtype=dg.float16), DtypeError, "without overflow"),
        (lambda: dg.zeros(True), ArgumentTypeError, "not bool"),
        (lambda: dg.zeros(2, layout="sparse"), ShapeError, "layout strided only"),
        (lambda: dg.empty_strided((2, 3), (1,)), ShapeError, "dimensionality of strides"),
        (lambda: dg.empty_permuted((2, 3), (0, 0)), ShapeError, "duplicate dim"),
        (lambda: dg.tril_indices(2, 2, dtype=dg.float32), NotImplementedError, "float32"),
    ],
)
def test_wrong_arguments_are_named(call, kind, text):
    with pytest.raises(kind, match=text):
        call()


@pytest.mark.torch
def test_linspace_has_the_bits_of_pytorch():
    torch = pytest.importorskip("torch")
    for steps in (2, 7, 28, 101):
        for ends in ((-1, 1), (0.1, 7.3), (-3.7, -0.2)):
            assert dg.linspace(*ends, steps).tolist() == torch.linspace(*ends, steps).tolist()
