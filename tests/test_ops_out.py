"""``out=``: PyTorch's rules for shapes, dtypes and gradients."""

import numpy as np
import pytest

import distgrad as dg


def _float(*values):
    return dg.tensor(values)


@pytest.mark.parametrize(
    ("call", "shape", "dtype"),
    [
        (lambda x, out: dg.add(x, 2, alpha=3, out=out), (2, 3), dg.float32),
        (lambda x, out: dg.exp(x, out=out), (2, 3), dg.float32),
        (lambda x, out: dg.div(x, 2, rounding_mode="floor", out=out), (2, 3), dg.float32),
        (lambda x, out: dg.clamp(x, 0, 1, out=out), (2, 3), dg.float32),
        (lambda x, out: dg.sum(x, 0, out=out), (3,), dg.float32),
        (lambda x, out: dg.mean(x, dim=1, keepdim=True, out=out), (2, 1), dg.float32),
        (lambda x, out: dg.eq(x, 1, out=out), (2, 3), dg.bool),
        (lambda x, out: dg.argmax(x, out=out), (), dg.int64),
        (lambda x, out: dg.matmul(x, x.T, out=out), (2, 2), dg.float32),
        (lambda x, out: dg.mm(x, x.T, out=out), (2, 2), dg.float32),
        (lambda x, out: dg.cat([x, x], dim=1, out=out), (2, 6), dg.float32),
        (lambda x, out: dg.cumsum(x, 1, out=out), (2, 3), dg.float32),
    ],
)
def test_results_are_written_into_out(call, shape, dtype):
    x = dg.arange(6.0).reshape(2, 3)
    out = dg.empty(shape, dtype=dtype)
    memory, version = out.array, out._version
    assert call(x, out) is out and out.array is memory and out._version > version
    np.testing.assert_array_equal(out.array, call(x, None).array)


def test_several_outputs():
    x = dg.tensor([[3.0, 1.0], [0.0, 5.0]])
    values, indices = dg.empty(2), dg.empty(2, dtype=dg.int64)
    found = dg.max(x, 1, out=(values, indices))
    assert found.values is values and found.indices is indices
    assert values.tolist() == [3.0, 5.0] and indices.tolist() == [0, 1]
    ordered, places = dg.sort(x, out=(dg.empty(0), dg.empty(0, dtype=dg.int64)))
    assert ordered.tolist() == [[1.0, 3.0], [0.0, 5.0]] and places.shape == (2, 2)
    with pytest.raises(TypeError, match="sequence of 2"):
        dg.max(x, 1, out=(values,))


def test_an_empty_out_is_resized_and_another_shape_warns():
    out = dg.empty(0)
    assert dg.add(_float(1.0, 2.0), 1, out=out).tolist() == [2.0, 3.0] and out.shape == (2,)
    with pytest.warns(UserWarning, match=r"was resized since it had shape \[2\]"):
        dg.add(_float(1.0, 2.0, 3.0), 1, out=out)
    assert out.tolist() == [2.0, 3.0, 4.0]


def test_out_may_be_an_operand():
    x = _float(1.0, 2.0)
    assert dg.mul(x, x, out=x) is x and x.tolist() == [1.0, 4.0]


def test_dtypes_are_cast_within_a_category_or_upwards():
    out = dg.empty(2, dtype=dg.float64)
    assert dg.add(_float(1.0, 2.0), 1, out=out).dtype == dg.float64
    assert dg.add(dg.tensor([1, 2]), 1, out=out).tolist() == [2.0, 3.0]
    with pytest.raises(RuntimeError, match="can't be cast to the desired output type int64"):
        dg.add(_float(1.0, 2.0), 1, out=dg.empty(2, dtype=dg.int64))


def test_gradients_are_refused():
    x = dg.ones(2, requires_grad=True)
    with pytest.raises(RuntimeError, match="don't support automatic differentiation"):
        dg.exp(x, out=dg.empty(2))
    with pytest.raises(RuntimeError, match="don't support automatic differentiation"):
        dg.exp(dg.ones(2), out=dg.ones(2, requires_grad=True))
    with dg.no_grad():
        assert dg.exp(x, out=dg.empty(2)).requires_grad is False


def test_a_saved_value_that_out_overwrites_is_noticed():
    x = dg.ones(2, requires_grad=True)
    w = dg.full((2,), 3.0)
    y = (x * w).sum()
    dg.add(dg.ones(2), 1, out=w)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_what_is_no_tensor_is_refused():
    with pytest.raises(TypeError, match="argument 'out' must be Tensor"):
        dg.exp(dg.ones(2), out=[1.0, 2.0])


@pytest.mark.parametrize("call", [
    lambda x, out: dg.mm(x, x, out=out), lambda x, out: dg.floor(x, out=out),
    lambda x, out: dg.softmax(x, 0, out=out), lambda x, out: dg.linalg.inv(x, out=out),
    lambda x, out: dg.max(x, 0, out=(out, dg.empty(0, dtype=dg.int64))),
])  # fmt: skip
def test_what_moves_rounds_or_factors_wants_the_dtype_of_its_result(call):
    with pytest.raises(RuntimeError, match="Expected out tensor to have dtype float32"):
        call(dg.eye(2), dg.empty(0, dtype=dg.float64))


def test_joining_refuses_dtypes_by_a_type_error_and_creation_resizes_silently():
    with pytest.raises(TypeError, match="can't be cast"):
        dg.cat([dg.ones(2), dg.ones(2)], out=dg.empty(4, dtype=dg.int64))
    assert dg.arange(3, out=dg.empty(7, dtype=dg.int64)).tolist() == [0, 1, 2]
