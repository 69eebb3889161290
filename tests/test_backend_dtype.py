"""Element types: names, conversions, promotion, Python numbers as operands, limits."""

from __future__ import annotations

import copy
import itertools
import pickle
import sys

import numpy as np
import pytest

from distgrad.backend import dtype as dt
from distgrad.errors import ArgumentTypeError, DtypeError, MissingExtra

DTYPES = list(dt.ALL_DTYPES)
UNSIGNED = {dt.uint16, dt.uint32, dt.uint64}


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def shaped(d: dt.dtype, ndim: int) -> np.ndarray:
    return np.zeros((2,) * ndim, d)


def ours_or_error(function, *args):
    try:
        return function(*args).name
    except DtypeError:
        return "error"


def theirs_or_error(function, *args):
    try:
        name = str(function(*args)).removeprefix("torch.")
    except RuntimeError:
        return "error"
    return "complex64" if name == "complex32" else name  # NumPy has no complex32


def test_a_dtype_prints_with_the_module_name():
    assert repr(dt.float32) == "distgrad.float32"
    assert repr(dt.bool_) == "distgrad.bool"


def test_numpy_accepts_a_dtype_wherever_it_takes_one():
    assert np.zeros(3, dt.float16).dtype == np.float16
    assert np.zeros(3).astype(dt.complex64).dtype == np.complex64


@pytest.mark.parametrize("d", DTYPES, ids=lambda d: d.name)
def test_a_dtype_is_one_object_through_pickle_copy_and_numpy(d):
    assert pickle.loads(pickle.dumps(d)) is d
    assert copy.deepcopy(d) is d
    assert dt.from_numpy(d.numpy) is d
    assert dt.dtype(d.name) is d
    assert d.numpy.itemsize == d.itemsize


def test_python_types_and_names_are_found():
    assert dt.as_numpy(float) == np.float64
    assert dt.as_numpy("bool") == np.bool_
    assert dt.dtype(int) is dt.int64


@pytest.mark.parametrize("bad", ["flaot32", "M8[s]", object, np.dtype("S3")])
def test_an_unknown_type_is_refused_and_the_known_are_named(bad):
    with pytest.raises(ArgumentTypeError, match="float32"):
        dt.dtype(bad)


def test_foreign_byte_order_is_refused_with_the_conversion():
    with pytest.raises(ArgumentTypeError, match=r"astype\('float32'\)"):
        dt.from_numpy(np.dtype(">f4"))


def test_bfloat16_without_ml_dtypes_names_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    monkeypatch.setattr(dt.bfloat16, "_numpy", None)
    with pytest.raises(MissingExtra, match="pip install ml_dtypes"):
        np.zeros(2, dt.bfloat16)


def test_the_default_float_type_changes_promotion_and_scalars():
    whole = np.ones(2, "int64")
    assert dt.scalar(0.5, whole).dtype == np.float32
    dt.set_default_dtype(dt.float64)
    try:
        assert dt.default_float() == np.float64
        assert dt.scalar(0.5, whole).dtype == np.float64
        assert dt.result_type(whole, 1j) is dt.complex128
    finally:
        dt.set_default_dtype(dt.float32)
    assert dt.scalar(0.5, whole).dtype == np.float32


def test_only_a_float_type_can_be_the_default():
    with pytest.raises(ArgumentTypeError, match="floating point"):
        dt.set_default_dtype(dt.int32)


def test_a_scalar_keeps_the_sign_of_zero_and_the_kind_of_one():
    like = np.ones(2, "float32")
    for _ in range(2):
        assert not np.signbit(dt.scalar(0.0, like))
        assert np.signbit(dt.scalar(-0.0, like))
        flags = np.ones(2, "bool")
        kinds = [dt.scalar(one, flags).dtype.name for one in (True, 1, 1.0)]
        assert kinds == ["bool", "int64", "float32"]
        assert np.isnan(dt.scalar(float("nan"), like))
        assert np.signbit(dt.scalar(complex(1, -0.0), like).imag)
        assert not np.signbit(dt.scalar(complex(1, 0.0), like).imag)


def test_a_scalar_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        dt.scalar(3, np.ones(2))[...] = 4


def test_the_scalar_cache_is_bounded():
    like = np.ones(2)
    for value in range(3 * dt._SCALARS_LIMIT):
        dt.scalar(value, like)
    assert len(dt._SCALARS) <= dt._SCALARS_LIMIT


@pytest.mark.parametrize("bad", ["1", None, [1]])
def test_a_scalar_must_be_a_number(bad):
    with pytest.raises(ArgumentTypeError, match="not a number"):
        dt.scalar(bad, np.ones(2))


def test_an_integer_beyond_64_bits_overflows():
    with pytest.raises(OverflowError, match="64 bits"):
        dt.scalar(2**64, np.ones(2))


@pytest.mark.torch
def test_promotion_of_pairs_is_pytorchs(torch):
    for a, b in itertools.product(DTYPES, DTYPES):
        ta, tb = getattr(torch, a.name), getattr(torch, b.name)
        want = theirs_or_error(torch.promote_types, ta, tb)
        assert ours_or_error(dt.promote_types, a, b) == want, (a, b)
        assert dt.can_cast(a, b) == torch.can_cast(ta, tb), (a, b)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_promotion_of_arrays_with_and_without_dimensions_is_pytorchs(torch):
    for a, b, m, n in itertools.product(DTYPES, DTYPES, (0, 1), (0, 1)):
        x, y = shaped(a, m), shaped(b, n)
        tx = torch.zeros((2,) * m, dtype=getattr(torch, a.name))
        ty = torch.zeros((2,) * n, dtype=getattr(torch, b.name))
        want = theirs_or_error(torch.result_type, tx, ty)
        assert ours_or_error(lambda x=x, y=y: dt.result_type(x, y)) == want, (a, b, m, n)
        got = ours_or_error(lambda x=x, y=y: dt.from_numpy(dt.promote_arrays(x, y)))
        assert got == want, (a, b, m, n)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_promotion_with_python_numbers_is_pytorchs(torch):
    for a, n, value in itertools.product(DTYPES, (0, 1), (True, 3, 0.5, 2j)):
        tx = torch.zeros((2,) * n, dtype=getattr(torch, a.name))
        want = theirs_or_error(torch.result_type, tx, value)
        x = shaped(a, n)
        assert ours_or_error(lambda x=x, v=value: dt.result_type(x, v)) == want
        assert ours_or_error(lambda x=x, v=value: dt.from_numpy(dt.scalar(v, x).dtype)) == want


@pytest.mark.torch
@pytest.mark.parametrize("value", [300, -1, 200, 2**40, 2**63, -(2**63), True, 7])
def test_integers_wrap_around_as_in_pytorch(torch, value):
    for d in (dt.int8, dt.int16, dt.int32, dt.int64, dt.uint8):
        want = (torch.zeros(1, dtype=getattr(torch, d.name)) + value).item()
        assert dt.scalar(value, np.zeros(1, d)).item() == want


@pytest.mark.torch
def test_limits_print_as_in_pytorch(torch):
    for d in DTYPES:
        theirs = getattr(torch, d.name)
        if d.is_floating_point or d.is_complex:
            ours, want = dt.finfo(d), torch.finfo(theirs)
            assert repr(ours) == repr(want)
            assert (ours.bits, ours.eps, ours.max, ours.tiny) == (
                (want.bits, want.eps, want.max, want.tiny)
            )
        elif d is not dt.bool_:
            ours_i, want_i = dt.iinfo(d), torch.iinfo(theirs)
            assert (ours_i.bits, ours_i.max) == (want_i.bits, want_i.max) or d is dt.uint64
            assert ours_i.min == want_i.min


@pytest.mark.torch
def test_attributes_are_pytorchs(torch):
    for d in DTYPES:
        theirs = getattr(torch, d.name)
        for name in ("is_floating_point", "is_complex", "is_signed", "itemsize"):
            assert getattr(d, name) == getattr(theirs, name), (d, name)
        assert d.to_real().name == str(theirs.to_real()).removeprefix("torch.")


def test_limits_of_the_wrong_kind_name_the_right_function():
    with pytest.raises(ArgumentTypeError, match="use iinfo"):
        dt.finfo(dt.int32)
    with pytest.raises(ArgumentTypeError, match="use finfo"):
        dt.iinfo(dt.float32)


@pytest.mark.parametrize(
    ("value", "name", "want"),
    [
        (-3, "uint8", 253), (2.7, "int32", 2), (-2.7, "int8", -2), (5, "bool", True),
        (1 + 0j, "float32", 1.0), (float("inf"), "float16", float("inf")), (-200, "uint8", 56),
    ],
)  # fmt: skip
def test_a_number_that_fills_is_converted_as_pytorch_does(value, name, want):
    assert dt.checked_number(value, np.dtype(name)) == want


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (300, "uint8"), (-300, "uint8"), (-2.7, "uint8"), (200, "int8"), (70000, "float16"),
        (1e60, "float32"), (1e60, "complex64"), (float("nan"), "int32"), (2j, "float64"),
    ],
)  # fmt: skip
def test_a_number_that_does_not_fit_is_refused(value, name):
    with pytest.raises(RuntimeError, match="without overflow"):
        dt.checked_number(value, np.dtype(name))


def test_names_in_place_of_types_are_refused():
    with pytest.raises(TypeError, match=r"argument 2 must be .*, not str"):
        dt.can_cast(dt.float32, "int64")
    with pytest.raises(TypeError, match=r"argument 2 must be .*, not int"):
        dt.promote_types(dt.float32, 3)
