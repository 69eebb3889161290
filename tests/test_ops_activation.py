"""Activations: what samples cannot say."""

import numpy as np
import pytest

import distgrad as dg
from distgrad.errors import ArgumentError, DtypeError, GradError, ShapeError
from distgrad.ops import activation
from distgrad.testing.torch_pairs import agree, draw, tensor

UNARY = [
    "celu", "elu", "gelu", "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu",
    "logsigmoid", "mish", "relu", "relu6", "rrelu", "selu", "silu", "softplus", "softshrink",
    "softsign", "tanhshrink",
]  # fmt: skip
IN_PLACE = [
    "celu", "elu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "mish", "relu", "relu6",
    "rrelu", "selu", "silu",
]  # fmt: skip
FAR = np.array([0.0, -0.0, 1e-30, 0.5, -0.5, 1, -1, 3, -3, 6, 20, -20, 50, -50, 1e3, -1e3])


# ---------------------------------------------------------------------- values and gradients
@pytest.mark.torch
@pytest.mark.parametrize("name", UNARY)
@pytest.mark.parametrize("values", [FAR, draw(70, 600)], ids=["far", "blocks"])
def test_values_and_gradients_agree_with_torch_far_out_and_over_several_blocks(name, values):
    torch = pytest.importorskip("torch")
    agree(getattr(activation, name), getattr(torch.nn.functional, name), values)


@pytest.mark.torch
@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_in_float32_is_as_exact_as_torch(approximate):
    torch = pytest.importorskip("torch")
    x = draw(300, 301).astype(np.float32) * 3
    agree(
        lambda a: activation.gelu(a.mT, approximate=approximate),
        lambda a: torch.nn.functional.gelu(a.mT, approximate=approximate),
        x, rtol=3e-6, atol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize("name", UNARY)
def test_nan_stays_nan(name):
    out = getattr(activation, name)(tensor(np.full(2000, np.nan)))
    assert np.isnan(out.array).all()


@pytest.mark.parametrize("size", [3, 2000])
def test_relu_passes_no_gradient_at_zeros_of_either_sign(size):
    x = tensor(np.array([-0.0, 0.0, 2.0] * size)).requires_grad_()
    dg.relu(x).sum().backward()
    np.testing.assert_array_equal(x.grad.array, [0.0, 0.0, 1.0] * size)


def test_the_gradient_of_relu_takes_minus_zero_for_zero():
    x = tensor(np.array([-0.0, 0.0, 2.0, -2.0, np.inf]))
    out = activation.relu_backward(tensor(np.full(5, 7.0)), x)
    np.testing.assert_array_equal(out.array, [0.0, 0.0, 7.0, 0.0, 7.0])


@pytest.mark.torch
@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 4, 3), (2, 4, 3, 2)])
@pytest.mark.parametrize("one", [True, False])
def test_prelu_agrees_with_torch(shape, one):
    torch = pytest.importorskip("torch")
    channels = 1 if one or len(shape) == 1 else shape[1]
    agree(activation.prelu, torch.nn.functional.prelu, draw(*shape), draw(channels))


def test_prelu_refuses_a_weight_that_does_not_fit():
    with pytest.raises(ShapeError, match="parameter numbers = 3 and channel size = 2"):
        activation.prelu(tensor(draw(5, 2)), tensor(draw(3)))


# ---------------------------------------------------------------------- softmax
@pytest.mark.torch
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "softmin"])
@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("scale", [1, 100])
def test_softmax_agrees_with_torch_for_small_and_large_numbers(name, dim, scale):
    torch = pytest.importorskip("torch")
    ours, theirs = getattr(activation, name), getattr(torch.nn.functional, name)
    x = draw(20, 30, 4) * scale
    agree(lambda a: ours(a, dim), lambda a: theirs(a, dim), x)


@pytest.mark.parametrize("far", [-1000.0, 1000.0])
def test_softmax_of_large_equal_numbers_is_uniform(far):
    x = tensor(np.full((40, 50), far))
    np.testing.assert_allclose(dg.softmax(x, -1).array, 1 / 50)
    np.testing.assert_allclose(dg.log_softmax(x, 0).array, -np.log(40))


def test_softmax_ignores_minus_infinity_and_keeps_its_input():
    x = tensor(np.array([[1.0, -np.inf, 1.0], [0.0, 0.0, -np.inf]]))
    before = x.array.copy()
    np.testing.assert_array_equal(dg.softmax(x, 1).array, [[0.5, 0, 0.5], [0.5, 0.5, 0]])
    np.testing.assert_array_equal(x.array, before)


def test_softmax_converts_to_dtype_first():
    x = dg.tensor([1.0, 2.0], requires_grad=True)
    out = x.softmax(0, dtype=dg.float64)
    assert out.dtype == dg.float64
    out.backward(dg.tensor([1.0, 0.0], dtype=dg.float64))
    assert x.grad.dtype == dg.float32
    assert dg.log_softmax(dg.tensor([1, 2]), 0, dtype=dg.float32).dtype == dg.float32


# ---------------------------------------------------------------------- in place
@pytest.mark.parametrize("name", IN_PLACE)
def test_inplace_writes_into_the_input_and_keeps_its_gradient(name):
    function, values = getattr(activation, name), draw(6)
    leaf, other = tensor(values).requires_grad_(), tensor(values).requires_grad_()
    x = leaf * 2
    memory = x.array
    assert function(x, inplace=True) is x
    assert x.array is memory
    function(other * 2).sum().backward()
    x.sum().backward()
    np.testing.assert_allclose(x.array, function(tensor(values * 2)).array)
    np.testing.assert_allclose(leaf.grad.array, other.grad.array)


def test_inplace_may_be_given_by_place():
    x = tensor(np.array([-2.0, 3.0]))
    assert activation.leaky_relu(x, 0.5, True) is x
    assert activation.leaky_relu(x, 0.5, False) is not x
    np.testing.assert_array_equal(x.array, [-1.0, 3.0])
    assert activation.elu_(x) is x


def test_inplace_refuses_a_leaf_that_requires_grad():
    with pytest.raises(GradError, match="leaf"):
        activation.relu(tensor(draw(3)).requires_grad_(), inplace=True)


# ---------------------------------------------------------------------- random activations
def test_rrelu_draws_slopes_between_its_bounds_for_negative_elements():
    x = tensor(np.array([-1.0, 2.0] * 500)).requires_grad_()
    out = activation.rrelu(x, 0.1, 0.3, training=True)
    slopes = -out.array[::2]
    assert 0.1 <= slopes.min() < 0.12 and 0.28 < slopes.max() < 0.3
    np.testing.assert_array_equal(out.array[1::2], 2.0)
    out.sum().backward()
    np.testing.assert_allclose(x.grad.array[::2], slopes)


@pytest.mark.torch
@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("dim", [0, -1])
def test_gumbel_softmax_draws_the_samples_of_torch(hard, dim):
    torch = pytest.importorskip("torch")
    x = draw(4, 5)
    dg.manual_seed(3)
    torch.manual_seed(3)
    agree(
        lambda a: activation.gumbel_softmax(a, 0.7, hard, dim=dim),
        lambda a: torch.nn.functional.gumbel_softmax(a, 0.7, hard, dim=dim),
        x,
    )


# ---------------------------------------------------------------------- errors
@pytest.mark.parametrize("name", ["elu", "gelu", "leaky_relu", "mish", "silu", "softplus"])
def test_integers_are_refused_where_torch_refuses_them(name):
    with pytest.raises(DtypeError, match=name if name != "elu" else "scaled_elu"):
        getattr(activation, name)(dg.tensor([1, 2]))


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda x: activation.glu(x), ShapeError, "dimension -1 is size 3"),
        (lambda x: activation.hardtanh(x, 2, 1), ArgumentError, "swap"),
        (lambda x: activation.gelu(x, approximate="fast"), ShapeError, "none or tanh"),
        (lambda x: activation.softshrink(x, -1), ShapeError, "found to be -1"),
        (lambda x: activation.celu(x, 0.0), ShapeError, "alpha cannot be 0"),
    ],
)
def test_wrong_arguments_are_named(call, kind, words):
    with pytest.raises(kind, match=words):
        call(tensor(draw(3)))
