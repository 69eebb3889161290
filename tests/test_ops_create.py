"""Tensors from data, sizes and ranges: dtypes, memory, errors, and what is written in place."""

import math

import numpy as np
import pytest

import distgrad as dg
from distgrad.errors import (
    ArgumentError,
    ArgumentTypeError,
    DeviceError,
    DtypeError,
    GradError,
    ShapeError,
)


def same(torch, text):
    """Evaluate ``text`` with ``lib`` = torch and = distgrad; assert equal values and dtypes."""
    want, got = (eval(text, {"lib": lib, "np": np, "math": math}) for lib in (torch, dg))
    assert str(got.dtype).removeprefix("distgrad.") == str(want.dtype).removeprefix("torch."), text
    assert tuple(got.shape) == tuple(want.shape), text
    np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=1e-6, atol=1e-6, err_msg=text)


# ---------------------------------------------------------------------- from data
@pytest.mark.torch
@pytest.mark.parametrize("data", [
    "1", "1.5", "True", "1j", "1e60", "[]", "[[], []]", "[1, 2.5]", "[True, 2]", "[True, False]",
    "[[1, 2], [3, 4]]", "(1, 2)", "range(3)", "np.ones(2)", "np.ones(2, 'int8')", "np.float64(1)",
    "[np.float64(1)]", "[np.int8(1)]", "[lib.tensor(1.5), lib.tensor(2.)]", "np.float32(3)",
    "[1.7, -1.7], dtype=lib.int64", "[2., 0.], dtype=lib.bool", "[-1], dtype=lib.uint8",
    "[1, 2], dtype=lib.float64", "np.ones(2)[::-1].copy()", "[[1.0], [math.nan]]", "2**62",
    "np.array(3, 'uint8')", "[1 + 2j, 3]",
])  # fmt: skip
def test_data_has_torchs_dtype_and_values(data):
    same(pytest.importorskip("torch"), f"lib.tensor({data})")


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        ([[1, 2], [3]], ArgumentError, r"length 2 at dim 1 \(got 1\)"),
        ([[[1], [2]], [[3], [4, 5]]], ArgumentError, r"length 1 at dim 2 \(got 2\)"),
        ([[1, 2], 3], ArgumentTypeError, "not a sequence"),
        ([1, [2, 3]], ArgumentTypeError, "'list' object"),
        ("a", ArgumentTypeError, "invalid data type 'str'"),
        (["a"], ArgumentError, "too many dimensions 'str'"),
        (None, DtypeError, "Could not infer dtype of NoneType"),
        ([1, None], DtypeError, "Could not infer dtype of NoneType"),
        ({1: 2}, DtypeError, "Could not infer dtype of dict"),
        (2**64, ArgumentError, "Overflow"),
        ([1, 2**63], ArgumentError, "Overflow"),
        ([dg.ones(2), dg.ones(2)], ArgumentError, "only one element tensors"),
    ],
)
def test_data_that_is_no_array_of_numbers_is_refused(data, kind, message):
    with pytest.raises(kind, match=message):
        dg.tensor(data)


@pytest.mark.parametrize("data", [[300], [-300], [1.0, math.nan]])
def test_numbers_beyond_the_dtype_are_refused(data):
    with pytest.raises(DtypeError, match="without overflow"):
        dg.tensor(data, dtype=dg.uint8)


def test_complex_data_does_not_become_real():
    with pytest.raises(ArgumentTypeError, match="must be real number"):
        dg.tensor([1j], dtype=dg.float32)


def test_tensor_copies_and_as_tensor_shares():
    array = np.zeros(3, "float32")
    copied, shared = dg.tensor(array), dg.as_tensor(array)
    array[0] = 5
    assert (copied[0].item(), shared[0].item()) == (0.0, 5.0)
    assert dg.as_tensor(shared) is shared
    assert dg.as_tensor(shared, dtype=dg.float64).dtype is dg.float64


def test_as_tensor_lets_gradients_through_a_conversion():
    x = dg.ones(2, requires_grad=True)
    dg.as_tensor(x, dtype=dg.float64).sum().backward()
    assert x.grad.tolist() == [1.0, 1.0]


def test_tensor_of_a_tensor_warns_and_copies():
    x = dg.ones(2)
    with pytest.warns(UserWarning, match="recommended to use"):
        y = dg.tensor(x)
    y.fill_(3)
    assert x.tolist() == [1.0, 1.0]


def test_from_numpy_shares_memory_both_ways():
    array = np.arange(6.0).reshape(2, 3)
    x = dg.from_numpy(array)
    x.add_(1)
    assert array[0, 0] == 1.0
    array[1] = 7
    assert x[1].tolist() == [7.0, 7.0, 7.0]


def test_from_numpy_of_read_only_memory_warns():
    with pytest.warns(UserWarning, match="not writable"):
        dg.from_numpy(np.broadcast_to(np.ones(1), (2,)))


@pytest.mark.parametrize("value", [[1, 2], np.array("a"), np.array([object()])])
def test_from_numpy_takes_arrays_of_numbers_only(value):
    with pytest.raises(ArgumentTypeError, match="from_numpy"):
        dg.from_numpy(value)


def test_asarray_copies_when_asked_and_refuses_when_it_must_not():
    array = np.zeros(2)
    assert not np.shares_memory(dg.asarray(array, copy=True).numpy(), array)
    assert np.shares_memory(dg.asarray(array, copy=False).numpy(), array)
    with pytest.raises(ArgumentError, match="cannot alias"):
        dg.asarray([1, 2], copy=False)


def test_from_dlpack_shares_memory():
    array = np.arange(3.0)
    dg.from_dlpack(array)[0] = 9.0
    assert array[0] == 9.0


def test_integers_do_not_require_grad():
    for make in (
        lambda: dg.tensor([1], requires_grad=True),
        lambda: dg.arange(3, requires_grad=True),
        lambda: dg.zeros_like(dg.tensor([1]), requires_grad=True),
    ):
        with pytest.raises(GradError, match="floating point"):
            make()


# ---------------------------------------------------------------------- from sizes
@pytest.mark.torch
@pytest.mark.parametrize("call", [
    "zeros(2, 3)", "zeros((2, 3))", "zeros([2, 3])", "zeros(())", "zeros(size=(2,))", "zeros(0, 2)",
    "ones(2, dtype=lib.int8)", "full((2,), 1)", "full((2,), 1.5)", "full((2,), True)",
    "full((2,), 1j)", "full((2,), lib.tensor(3.))", "full((2,), 1.5, dtype=lib.int32)",
    "full((), math.nan)", "zeros(lib.tensor(2))", "scalar_tensor(3)", "eye(3)", "eye(2, 3)",
    "ones_like(lib.tensor([1, 2]))", "zeros_like(lib.tensor([1]), dtype=lib.float64)",
    "full_like(lib.tensor([1, 2]), 3.7)", "tensor([1.]).new_zeros(2, 3)",
    "tensor([1.]).new_full((2,), 1)", "tensor([1]).new_full((2,), 1.5)",
    "tensor([1.]).new_tensor([1, 2])", "tensor([1.]).new_ones((2, 1), dtype=lib.int8)",
    "tril_indices(3, 3)", "tril_indices(4, 2, 1)", "triu_indices(2, 4, 1)",
    "triu_indices(3, 3, -1, dtype=lib.int32)",
])  # fmt: skip
def test_sizes_and_fills_have_torchs_dtype_and_values(call):
    same(pytest.importorskip("torch"), f"lib.{call}")


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: dg.zeros(2.0), ArgumentTypeError, "must be tuple of ints, not float"),
        (lambda: dg.zeros(-1), ShapeError, "non-negative"),
        (lambda: dg.zeros(), ArgumentTypeError, "size"),
        (lambda: dg.ones(2, dtype="float32"), ArgumentTypeError, "must be a dtype, not str"),
        (lambda: dg.zeros(2, device="tpu"), DeviceError, "tpu"),
        (lambda: dg.eye(-1), ShapeError, "n must be greater or equal to 0"),
        (lambda: dg.ones_like([1.0]), ArgumentTypeError, "must be Tensor, not list"),
    ],
)
def test_sizes_that_are_none_are_refused(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


# ---------------------------------------------------------------------- ranges
@pytest.mark.torch
@pytest.mark.parametrize("call", [
    "arange(5)", "arange(5.)", "arange(1, 2, 0.5)", "arange(1, 5, True)", "arange(0)",
    "arange(5, 0, -2)", "arange(end=3)", "arange(start=1, end=3)", "arange(lib.tensor(3))",
    "arange(0, 1, 0.1)", "arange(3, dtype=lib.float64)", "arange(1, 2.1, 0.1)",
    "arange(2.7, dtype=lib.int64)", "arange(0.5, 5, 1, dtype=lib.float16)", "arange(-5, 5)",
    "linspace(0, 1, 3)", "linspace(0, 1, 1)", "linspace(0, 1, 0)", "linspace(-3, 7, 101)",
    "linspace(0, 10, 4, dtype=lib.int64)", "linspace(lib.tensor(1.), 2, 5)",
    "logspace(0, 2, 3)", "logspace(0, 2, 5, base=2)", "logspace(-1, 1, 1)",
])  # fmt: skip
def test_ranges_have_torchs_dtype_and_values(call):
    same(pytest.importorskip("torch"), f"lib.{call}")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dg.arange(0, 1, 0), "step must be nonzero"),
        (lambda: dg.arange(1, 0), "inconsistent with step sign"),
        (lambda: dg.arange(math.inf), "unsupported range"),
        (lambda: dg.linspace(0, 1, -1), "non-negative"),
    ],
)
def test_ranges_that_lead_nowhere_are_refused(call, message):
    with pytest.raises(ShapeError, match=message):
        call()


def test_linspace_ends_exactly():
    for steps in range(2, 100):
        assert dg.linspace(0.1, 0.7, steps, dtype=dg.float64)[-1].item() == 0.7


# ---------------------------------------------------------------------- over what stands there
def test_fill_and_zero_write_into_shared_memory():
    array = np.ones((2, 2))
    x = dg.from_numpy(array)
    assert x.fill_(3) is x
    assert array.tolist() == [[3.0, 3.0], [3.0, 3.0]]
    x[0].zero_()
    assert array.tolist() == [[0.0, 0.0], [3.0, 3.0]]


@pytest.mark.parametrize("write", [lambda y: y.zero_(), lambda y: y.fill_(2.0),
                                   lambda y: y.copy_(dg.ones(3))])  # fmt: skip
def test_what_is_overwritten_gets_zero_gradient(write):
    x = dg.ones(3, requires_grad=True)
    y = x * 2
    write(y)
    y.sum().backward()
    assert x.grad.tolist() == [0.0, 0.0, 0.0]


def test_copy_broadcasts_converts_and_sends_the_gradient_to_its_source():
    x = dg.zeros(2, 3, dtype=dg.float64)
    source = dg.tensor([1.0, 2.0, 3.0], requires_grad=True)
    x.copy_(source)
    (x * 2).sum().backward()
    assert x.tolist() == [[1.0, 2.0, 3.0]] * 2
    assert source.grad.tolist() == [4.0, 4.0, 4.0]
    assert source.grad.dtype is dg.float32


def test_fill_with_a_tensor_sends_it_the_sum_of_the_gradient():
    value = dg.tensor(2.0, requires_grad=True)
    (dg.zeros(3).fill_(value) * 5).sum().backward()
    assert value.grad.item() == 15.0


def test_overwriting_a_leaf_that_requires_grad_is_refused_but_for_no_grad():
    x = dg.ones(2, requires_grad=True)
    for write in (lambda: x.zero_(), lambda: x.fill_(1), lambda: x.copy_(dg.ones(2))):
        with pytest.raises(GradError, match="leaf Variable"):
            write()
    with dg.no_grad():
        x.fill_(4.0)
    assert x.tolist() == [4.0, 4.0]
    assert x.requires_grad


def test_overwriting_a_saved_tensor_is_noticed_in_backward():
    x, w = dg.ones(2, requires_grad=True), dg.ones(2)
    y = x * w
    w.zero_()
    with pytest.raises(GradError, match="modified by an inplace operation"):
        y.sum().backward()


def test_copy_of_a_shape_that_does_not_broadcast_is_refused():
    with pytest.raises(ShapeError, match="does not broadcast"):
        dg.ones(2).copy_(dg.ones(3))
    with pytest.raises(ArgumentTypeError, match="must be Tensor"):
        dg.ones(2).copy_([1, 2])
