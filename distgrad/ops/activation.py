"""Activations: functions between layers, the forms of ``torch.nn.functional``."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec

from distgrad.autograd.declare import as_method, op, recover
from distgrad.autograd.inplace import in_place
from distgrad.autograd.samples import apart, between, case, distinct, real, unary
from distgrad.autograd.traced import innermost
from distgrad.backend.device import device_of, namespace_of, to_device, where_it_is
from distgrad.backend.dtype import float64
from distgrad.backend.forms import device_form
from distgrad.backend.random import current_generator
from distgrad.errors import ArgumentError, DtypeError, DtypeNotImplemented, ShapeError
from distgrad.ops.checks import refuse_kinds
from distgrad.ops.elementwise import add, div, is_complex, mul, neg, sub, tanh
from distgrad.ops.shape import reshape, wrap_dim
from distgrad.tensor import Tensor, wrap
from distgrad.typing import Array, Namespace

__all__ = [
    "celu", "celu_", "elu", "elu_", "gelu", "glu", "gumbel_softmax", "hardshrink", "hardsigmoid",
    "hardswish", "hardtanh", "hardtanh_", "leaky_relu", "leaky_relu_", "log_softmax", "logsigmoid",
    "mish", "prelu", "relu", "relu6", "relu_", "rrelu", "rrelu_", "selu", "selu_", "silu",
    "softmax", "softmin", "softplus", "softshrink", "softsign", "tanhshrink", "threshold",
    "threshold_",
]  # fmt: skip

P = ParamSpec("P")


def inplace_option(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Give meaning to the argument ``inplace`` of a function that itself ignores it.

    With ``inplace=True`` the result is written into the input, which is returned.
    """
    place = list(inspect.signature(function).parameters).index("inplace")
    writing = in_place(function, f"{function.__name__}_")

    @functools.wraps(function)
    def form(*args: P.args, **options: P.kwargs) -> Tensor:
        if options.get("inplace") or (len(args) > place and args[place]):
            return writing(*args, **options)
        return function(*args, **options)

    return form


def _floating(input: Any, kinds: str = "fV") -> None:
    """Refuse integers, for which PyTorch has no such function, and complex numbers."""
    if input.dtype.kind not in kinds:
        raise DtypeNotImplemented(
            f"not implemented for {input.dtype}; convert it with .float() first"
        )


def _number(input: Any, value: float) -> Any:
    """Return ``value`` in the dtype of ``input``."""
    return input.dtype.type(value)


# ---------------------------------------------------------------------- piecewise linear
@op(samples=[case(real(3, 4), real(3, 4))], view=True, method=False,
    reference=lambda torch, x, other: x + 0 * other,
    d_input=lambda g: g, d_other=lambda F, g: F.zero(g))  # fmt: skip
def flat_in(xp: Namespace, input: Tensor, other: Tensor) -> Array:
    """Return ``input``, as a function of ``other`` too: its derivative there is 0, not absent.

    Gradients of piecewise linear functions can be differentiated again, as in PyTorch.
    """
    array: Array = input
    return array[...]


@op("elementwise", samples=[case(real(3, 4), distinct(3, 4)), case(real(20, 20), distinct(20, 20))],
    method=False, reference=lambda torch, g, x: torch.ops.aten.threshold_backward(g, x, 0),
    d_grad=lambda F, g, input: F.relu_backward(g, input),
    d_input=lambda F, g: F.zero(g))  # fmt: skip
def relu_backward(xp: Namespace, grad: Tensor, input: Tensor) -> Array:
    """Return ``grad`` where ``input`` is positive, else 0."""
    return xp.where_positive(input, grad)


@inplace_option
@op("elementwise", samples=[*unary(apart), case(apart(40, 40))], inplace=True,
    d_input=lambda F, g, out: F.relu_backward(g, out))  # fmt: skip
def relu(xp: Namespace, input: Tensor, inplace: bool = False) -> Array:
    """Return ``max(input, 0)``."""
    _floating(input, "fViu")
    return xp.at_least(input, 0)


@inplace_option
@op(
    "elementwise",
    samples=[*unary(apart), case(apart(3), negative_slope=0.0), case(apart(3), negative_slope=2.0),
             case(apart(3), negative_slope=-0.5)],
    method=False,
    d_input=lambda F, g, input, negative_slope: F.flat_in(
        F.where(input > 0, g, g * negative_slope), input
    ),
)  # fmt: skip
def leaky_relu(
    xp: Namespace, input: Tensor, negative_slope: float = 0.01, inplace: bool = False
) -> Array:
    """Return ``input`` where it is positive, else ``negative_slope * input``."""
    _floating(input)
    if negative_slope == 0:
        return xp.at_least(input, 0)
    out = xp.asarray(xp.multiply(input, _number(input, negative_slope)))
    return (xp.maximum if negative_slope <= 1 else xp.minimum)(input, out, out=out)


@inplace_option
@op(
    "elementwise",
    samples=[*unary(apart), case(apart(40, 40), min_val=-1.05, max_val=0.05)],
    method=False,
    d_input=lambda F, g, input, min_val, max_val: F.flat_in(
        F.where((input > min_val) & (input < max_val), g, 0.0), input
    ),
)
def hardtanh(
    xp: Namespace,
    input: Tensor,
    min_val: float = -1.0,
    max_val: float = 1.0,
    inplace: bool = False,
) -> Array:
    """Return ``input`` limited to [``min_val``, ``max_val``]; no gradient at the limits."""
    if min_val > max_val:
        raise ArgumentError(f"min_val={min_val} is above max_val={max_val}; swap them")
    _floating(input, "fViu")
    out = xp.at_least(input, min_val)
    return xp.at_most(out, max_val, out)


@inplace_option
def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """Return ``input`` limited to [0, 6]."""
    return hardtanh(input, 0.0, 6.0)


@inplace_option
@op(
    "elementwise",
    samples=[*unary(apart), case(between(-5, 5, 20))],
    method=False,
    d_input=lambda F, g, input: F.where((input > -3) & (input < 3), g * (1 / 6), 0.0),
)
def hardsigmoid(xp: Namespace, input: Tensor, inplace: bool = False) -> Array:
    """Return ``input / 6 + 1 / 2`` limited to [0, 1]."""
    return _hardsigmoid(xp, input)


def _hardsigmoid(xp: Namespace, x: Array) -> Array:
    _floating(x)
    out = xp.asarray(x + _number(x, 3))
    xp.at_least(out, 0, out)
    xp.at_most(out, 6, out)
    out *= 1 / 6
    return out


@inplace_option
@op(
    "elementwise",
    samples=[*unary(apart), case(between(-5, 5, 20))],
    method=False,
    d_input=lambda F, g, input: F.where(
        input <= -3, 0.0, F.where(input < 3, g * (input * (1 / 3) + 0.5), g)
    ),
)
def hardswish(xp: Namespace, input: Tensor, inplace: bool = False) -> Array:
    """Return ``input * hardsigmoid(input)``.

    Source:
        Howard et al., "Searching for MobileNetV3" (2019).
    """
    out = _hardsigmoid(xp, input)
    out *= input
    return out


@op(
    "elementwise",
    samples=[*unary(apart), case(apart(3, 4), lambd=1.05)],
    d_input=lambda F, g, input, lambd: F.flat_in(
        F.where((input >= -lambd) & (input <= lambd), 0.0, g), input
    ),
)
def hardshrink(xp: Namespace, input: Tensor, lambd: float = 0.5) -> Array:
    """Return ``input`` with 0 where it lies in [-``lambd``, ``lambd``]."""
    _floating(input)
    inside = xp.greater_equal(input, -lambd) & xp.less_equal(input, lambd)
    return xp.where(inside, _number(input, 0), input)


@op(
    "elementwise",
    samples=[*unary(apart), case(apart(3, 4), lambd=1.05)],
    method=False,
    d_input=lambda F, g, input, lambd: F.flat_in(
        F.where((input >= -lambd) & (input <= lambd), 0.0, g), input
    ),
)
def softshrink(xp: Namespace, input: Tensor, lambd: float = 0.5) -> Array:
    """Return ``input`` moved towards 0 by ``lambd``, and 0 where it would pass it."""
    _floating(input)
    if not lambd >= 0:
        raise ShapeError(f"lambda must be greater or equal to 0, but found to be {lambd}")
    out = xp.at_least(input, -lambd)
    xp.at_most(out, lambd, out)
    return xp.subtract(input, out, out=out)


@op(
    "elementwise",
    samples=[
        case(apart(3, 4), threshold=0.05, value=2.0),
        case(apart(), threshold=-1.05, value=0.0),
    ],
    method=False,
    node="ThresholdBackward0",
    reference="threshold",
    d_input=lambda F, g, input, threshold: F.flat_in(F.where(input <= threshold, 0.0, g), input),
)
def threshold_number(xp: Namespace, input: Tensor, threshold: float, value: float) -> Array:
    """Return ``input`` where it is above ``threshold``, else ``value``."""
    _floating(input, "fViu")
    return xp.where(xp.less_equal(input, threshold), _number(input, value), input)


@inplace_option
def threshold(input: Tensor, threshold: float, value: float, inplace: bool = False) -> Tensor:
    """Return ``input`` where it is above ``threshold``, else ``value``."""
    return threshold_number(input, threshold, value)


@op(
    "elementwise",
    samples=[case(apart(3, 4), real(4)), case(apart(3, 4), real(1))],
    method=False,
    reference=lambda torch, x, w: torch._prelu_kernel(x, w.expand(x.shape)),
    d_input=lambda F, g, input, weight: F.flat_in(F.where(input > 0, g, g * weight), input),
    d_weight=lambda F, g, input: F.where(input > 0, 0.0, g * input),
)
def prelu_kernel(xp: Namespace, input: Tensor, weight: Tensor) -> Array:
    """Return ``input`` where it is positive, else ``weight * input``; both broadcast."""
    _floating(input)
    return xp.where(xp.greater(input, 0), input, xp.multiply(input, weight))


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """Return ``input`` where it is positive, else ``weight * input``.

    Shape:
        weight: ``(1,)``, or ``(C,)`` for an input ``(N, C, *)``.
    Source:
        He et al., "Delving Deep into Rectifiers" (2015).
    """
    shape = input.array.shape
    channels = shape[1] if len(shape) > 1 else 1
    if weight.array.size not in (1, channels) or weight.array.ndim > 1:
        error = ShapeError(
            f"Mismatch of parameter numbers and input channel size. Found parameter numbers = "
            f"{weight.array.size} and channel size = {channels}; use one weight or one per channel"
        )
        recover("prelu", error, {"input": input, "weight": weight}, {})
    if weight.array.ndim and len(shape) != 2:
        spread = (-1, *(1,) * (len(shape) - 2)) if len(shape) > 1 else (1,) * len(shape)
        weight = reshape(weight, spread)
    return prelu_kernel(input, weight)


@inplace_option
@where_it_is
def rrelu(
    input: Tensor,
    lower: float = 1.0 / 8,
    upper: float = 1.0 / 3,
    training: bool = False,
    inplace: bool = False,
) -> Tensor:
    """Return ``leaky_relu`` with slopes drawn at random from [``lower``, ``upper``].

    Args:
        training: False uses the mean slope.
    Source:
        Xu et al., "Empirical Evaluation of Rectified Activations in Convolutional Network" (2015).
    """
    if lower > upper:
        error = ShapeError(
            f"lower={lower} should be less than or equal to upper={upper}; swap them"
        )
        recover("rrelu", error, {"input": input}, {"lower": lower, "upper": upper})
    half = (
        training and input.array.dtype.kind == "f"
    )  # where PyTorch has no kernel; bfloat16 is "V"
    refuse_kinds("rrelu", "biucn" if half else "biuc", input)
    if not training:
        return leaky_relu(input, (lower + upper) / 2)
    whole = innermost(input.array)  # slopes are fixed numbers: forward mode goes through mul
    array = whole if whole.shape == input.array.shape else input.array
    negative, place = array <= 0, device_of(array)
    xp, source = namespace_of(place), current_generator().on(place)
    if place.type != "cpu":  # how many there are only the device knows
        slopes = xp.where(negative, source.uniform(array.shape, array.dtype, lower, upper), 1)
        return mul(input, wrap(slopes.astype(array.dtype, copy=False)))
    slopes = xp.ones(array.shape, array.dtype)
    slopes[negative] = source.uniform((int(negative.sum()),), float64.numpy, lower, upper)
    return mul(input, wrap(slopes))


# ---------------------------------------------------------------------- exponential units
@op(
    "elementwise",
    samples=[*unary(apart), case(apart(3, 4), alpha=0.5, scale=2.0, input_scale=0.8)],
    method=False,
    node="EluBackward0",
    reference=lambda torch, x, alpha=1.0, scale=1.0, input_scale=1.0:
        torch.ops.aten.elu(x, alpha, scale, input_scale),
    d_input=lambda F, g, input, alpha, scale, input_scale: g * F.where(
        input > 0,
        scale,
        F.exp(F.where(input > 0, 0.0, input) * input_scale) * (alpha * scale * input_scale),
    ),
)  # fmt: skip
def scaled_elu(
    xp: Namespace, input: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0
) -> Array:
    """Return ``scale * input`` if positive, else ``scale * alpha * expm1(input_scale * input)``."""
    _floating(input)
    out = xp.at_most(input, 0)
    if input_scale != 1:
        out *= input_scale
    xp.expm1(out, out=out)
    if alpha != 1:
        out *= alpha
    out += xp.at_least(input, 0)
    if scale != 1:
        out *= scale
    return out


@inplace_option
def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """Return ``input`` where it is positive, else ``alpha * (exp(input) - 1)``.

    Source:
        Clevert et al., "Fast and Accurate Deep Network Learning by Exponential Linear Units
        (ELUs)" (2016).
    """
    return scaled_elu(input, alpha)


@inplace_option
def selu(input: Tensor, inplace: bool = False) -> Tensor:
    """Return ``scale * elu(input, alpha)`` with the constants that keep mean 0 and variance 1.

    Source:
        Klambauer et al., "Self-Normalizing Neural Networks" (2017).
    """
    return scaled_elu(input, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946)


@inplace_option
def celu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """Return ``input`` where it is positive, else ``alpha * (exp(input / alpha) - 1)``.

    Source:
        Barron, "Continuously Differentiable Exponential Linear Units" (2017).
    """
    if alpha == 0:
        error = ShapeError("ZeroDivisionError: alpha cannot be 0 for CELU; use relu()")
        recover("celu", error, {"input": input}, {"alpha": alpha})
    return scaled_elu(input, alpha, 1.0, 1.0 / alpha)


# ---------------------------------------------------------------------- smooth units
def _blocks(xp: Namespace, *arrays: Array) -> Iterator[tuple[Array, ...]]:
    """Return the same parts of contiguous arrays, small enough for the cache."""
    flat = [a.reshape(-1) for a in arrays]
    for part in xp.row_blocks(flat[0].size, 1):
        yield tuple([a[part] for a in flat])


def _working(xp: Namespace, x: Array) -> Array:
    """Return ``x`` contiguous, half precision in float32."""
    return xp.ascontiguousarray(x, xp.float32 if x.dtype.itemsize == 2 else x.dtype).reshape(
        x.shape
    )


_K = math.sqrt(2 / math.pi)


def _gelu_tanh(xp: Namespace, x: Array, out: Array) -> None:
    """x/2 · (1 + tanh(K·(x + 0.044715·x³)))."""
    xp.multiply(x, x, out=out)
    out *= 0.044715 * _K
    out += _K
    out *= x
    xp.tanh(out, out=out)
    out += 1
    out *= x
    out *= 0.5


def _d_gelu_tanh(xp: Namespace, g: Array, x: Array, out: Array) -> None:
    """g · ((1 + t)/2 + x/2 · (1 − t²) · K·(1 + 3·0.044715·x²)), with t from above.

    As g · (1 + t)/2 · (1 + (1 − t)·x·K·(…)), which needs no third array.
    """
    square = xp.multiply(x, x)
    xp.multiply(square, 0.044715 * _K, out=out)
    out += _K
    out *= x
    xp.tanh(out, out=out)
    square *= 3 * 0.044715 * _K
    square += _K
    square *= x
    square *= 1 - out
    square += 1
    out += 1
    out *= square
    out *= g
    out *= 0.5


# (1 + tanh(x·q(x²)))/2 is within 1e-7 of the normal distribution function; lowest power first.
# PyTorch's own gelu in float32 is off by up to 1.2e-6, x times this by 6e-7.
_NORMAL = (
    7.97884941e-1, 3.63330846e-2, -3.25949790e-5, -5.53061923e-5, 3.96474417e-6, -1.32263320e-7,
    1.75617021e-9,
)  # fmt: skip


def _twice_normal(xp: Namespace, x: Array, out: Array) -> None:
    """1 + erf(x/√2), twice the distribution function of the standard normal law."""
    if out.dtype.itemsize > 4:
        xp.multiply(x, math.sqrt(0.5), out=out)
        out[...] = xp.erf(out)
    else:
        square = xp.multiply(x, x)
        xp.multiply(square, _NORMAL[-1], out=out)
        for coefficient in _NORMAL[-2:0:-1]:
            out += coefficient
            out *= square
        out += _NORMAL[0]
        out *= x
        xp.tanh(out, out=out)
    out += 1


def _gelu_erf(xp: Namespace, x: Array, out: Array) -> None:
    """x/2 · (1 + erf(x/√2))."""
    _twice_normal(xp, x, out)
    out *= x
    out *= 0.5


def _d_gelu_erf(xp: Namespace, g: Array, x: Array, out: Array) -> None:
    """g · ((1 + erf(x/√2))/2 + x·exp(−x²/2)/√(2π))."""
    density = xp.multiply(x, x)
    density *= -0.5
    xp.exp(density, out=density)
    density *= x
    density *= math.sqrt(2 / math.pi)
    _twice_normal(xp, x, out)
    out += density
    out *= g
    out *= 0.5


@device_form
def _d_gelu(xp: Namespace, g: Array, input: Array, approximate: str) -> Array:
    x = _working(xp, input)
    out = xp.empty_like(x)
    derivative = _d_gelu_tanh if approximate == "tanh" else _d_gelu_erf
    for parts in _blocks(xp, _working(xp, g), x, out):
        derivative(xp, *parts)
    return out.astype(input.dtype, copy=False)


def _gelu_formula(F: Any, input: Any, approximate: str) -> Any:
    if approximate == "tanh":
        inner = _K * (input + 0.044715 * input * input * input)
        return 0.5 * input * (F.tanh(inner) + 1)
    return 0.5 * input * (F.erf(input * math.sqrt(0.5)) + 1)


@op(
    samples=[*unary(), case(real(3, 4), approximate="tanh"), case(real(), approximate="tanh"),
             case(between(-9, 9, 30)), case(between(-9, 9, 30), approximate="tanh")],
    method=False,
    formula=_gelu_formula,
    d_input=_d_gelu,
)  # fmt: skip
def gelu(xp: Namespace, input: Tensor, *, approximate: str = "none") -> Array:
    """Return ``input`` times the standard normal distribution function of ``input``.

    Args:
        approximate: "none", or "tanh" for the approximation by a hyperbolic tangent.
    Source:
        Hendrycks, Gimpel, "Gaussian Error Linear Units" (2016).
    """
    _floating(input)
    if approximate not in ("none", "tanh"):
        raise ShapeError("approximate argument must be either none or tanh.")
    return _gelu(xp, input, approximate)


@device_form
def _gelu(xp: Namespace, input: Array, approximate: str) -> Array:
    x = _working(xp, input)
    out = xp.empty_like(x)
    function = _gelu_tanh if approximate == "tanh" else _gelu_erf
    for parts in _blocks(xp, x, out):
        function(xp, *parts)
    return out.astype(input.dtype, copy=False)


@device_form
def _d_silu(xp: Namespace, g: Array, input: Array) -> Array:
    """g · s · (1 + x·(1 − s))."""
    s = xp.asarray(xp.sigmoid(input))
    slope = xp.asarray(1 - s)
    slope *= input
    slope += 1
    slope *= s
    slope *= g
    return slope


@inplace_option
@op(samples=[*unary(), case(between(-40, 40, 9))], method=False,
    formula=lambda F, input: input * F.sigmoid(input), d_input=_d_silu)  # fmt: skip
def silu(xp: Namespace, input: Tensor, inplace: bool = False) -> Array:
    """Return ``input * sigmoid(input)``, also called swish.

    Source:
        Elfwing et al., "Sigmoid-Weighted Linear Units" (2017).
    """
    _floating(input, "fVc")
    return _silu(xp, input)


@device_form
def _silu(xp: Namespace, input: Array) -> Array:
    out = xp.asarray(xp.sigmoid(input))
    out *= input
    return out


def _mish_ratio(xp: Namespace, x: Array) -> Array:
    """Return tanh(softplus(x)) = n / (n + 2) with n = e·(e + 2), e = exp(x)."""
    e = xp.at_most(x, 20)  # beyond it the ratio is 1
    xp.exp(e, out=e)
    n = xp.asarray(e + 2)
    n *= e
    xp.add(n, 2, out=e)
    n /= e
    return n


@device_form
def _d_mish(xp: Namespace, g: Array, input: Array) -> Array:
    """g · (t + x·s·(1 − t²)), t = tanh(softplus(x)), s = sigmoid(x)."""
    x = _working(xp, input)
    t = _mish_ratio(xp, x)
    slope = xp.asarray(1 - t * t)
    slope *= xp.sigmoid(x)
    slope *= x
    slope += t
    slope *= g
    return slope.astype(input.dtype, copy=False)


@inplace_option
@op(samples=[*unary(), case(between(-40, 40, 9))], method=False,
    formula=lambda F, input: input * F.tanh(F.softplus(input)), d_input=_d_mish)  # fmt: skip
def mish(xp: Namespace, input: Tensor, inplace: bool = False) -> Array:
    """Return ``input * tanh(softplus(input))``.

    Source:
        Misra, "Mish: A Self Regularized Non-Monotonic Activation Function" (2019).
    """
    _floating(input)
    return _mish(xp, input)


@device_form
def _mish(xp: Namespace, input: Array) -> Array:
    x = _working(xp, input)
    out = _mish_ratio(xp, x)
    out *= x
    return out.astype(input.dtype, copy=False)


@op(
    "elementwise",
    samples=[*unary(), case(between(-5, 5, 20), beta=2.0, threshold=3.0),
             case(between(-50, 50, 9))],
    method=False,
    d_input=lambda F, g, input, beta, threshold: F.where(
        input * beta > threshold, g, g * F.sigmoid(input * beta)
    ),
)  # fmt: skip
def softplus(xp: Namespace, input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Array:
    """Return ``log(1 + exp(beta * input)) / beta``.

    Args:
        threshold: where ``beta * input`` is above it, the result is ``input`` itself.
    """
    _floating(input)
    scaled = xp.asarray(input if beta == 1 else xp.multiply(input, _number(input, beta)))
    out = _log1p_exp(xp, xp.asarray(xp.negative(xp.abs(scaled))))
    out += xp.at_least(scaled, 0)
    if beta != 1:
        out /= beta
    return xp.where(scaled > threshold, input, out)


def _log1p_exp(xp: Namespace, x: Array) -> Array:
    """Replace ``x`` by log(1 + exp(x))."""
    xp.exp(x, out=x)
    xp.log1p(x, out=x)
    return x


@op("elementwise", samples=[*unary(), case(between(-90, 90, 9))], method=False,
    node="LogSigmoidBackward0", d_input=lambda F, g, input: g * F.sigmoid(-input))  # fmt: skip
def logsigmoid(xp: Namespace, input: Tensor) -> Array:
    """Return ``log(sigmoid(input))``."""
    _floating(input)
    small = _log1p_exp(xp, xp.asarray(xp.negative(xp.abs(input))))
    return xp.subtract(xp.at_most(input, 0), small, out=small)


@op("elementwise", samples=unary(apart), floats=True, method=False,
    check=lambda input: refuse_kinds("", "b", input),
    jvp=lambda F, t_input, input: _softsign_along(F, t_input, input),
    d_input=lambda F, g, input: F.conj(_softsign_along(F, F.conj(g), input)))  # fmt: skip
def softsign(xp: Namespace, input: Tensor) -> Array:
    """Return ``input / (1 + |input|)``."""
    out = xp.asarray(xp.abs(input))
    out += 1
    return xp.divide(input, out, out=None if is_complex(input) else out)


def _softsign_along(F: Any, t: Any, input: Any) -> Any:
    """Return the change of softsign in direction ``t``; as a real-linear map it is symmetric."""
    size = F.abs(input) + 1
    if not is_complex(input):
        return t / (size * size)
    return t / size - input * (F.real(t * F.conj(F.sgn(input))) / (size * size))


def tanhshrink(input: Tensor) -> Tensor:
    """Return ``input - tanh(input)``."""
    if input.array.dtype.kind == "b":
        recover("tanhshrink", DtypeError("not for bool tensors"), {"input": input}, {})
    return sub(input, tanh(input))


# ---------------------------------------------------------------------- gates
def _halves(xp: Namespace, x: Array, dim: int) -> tuple[Array, Array]:
    place = wrap_dim(dim, x.ndim)
    if not x.ndim or x.shape[place] % 2:
        size = x.shape[place] if x.ndim else 0
        raise ShapeError(f"Halving dimension must be even, but dimension {dim} is size {size}")
    half, lead = x.shape[place] // 2, (slice(None),) * place
    return x[(*lead, slice(half))], x[(*lead, slice(half, None))]


def _d_glu(xp: Namespace, g: Array, input: Array, dim: int) -> Array:
    out = xp.empty(input.shape, input.dtype)
    (a, b), (da, db) = _halves(xp, input, dim), _halves(xp, out, dim)
    s = xp.asarray(xp.sigmoid(b))
    xp.multiply(g, s, out=da)
    xp.subtract(1, s, out=s)
    s *= da
    xp.multiply(s, a, out=db)
    return out


def _glu_formula(F: Any, input: Any, dim: int) -> Any:
    half = input.shape[dim] // 2
    return F.narrow(input, dim, 0, half) * F.sigmoid(F.narrow(input, dim, half, half))


@op(samples=[case(real(3, 4)), case(real(2, 3, 2), dim=0), case(real(2, 4, 3), dim=-2)],
    method=False, formula=_glu_formula, d_input=_d_glu)  # fmt: skip
def glu(xp: Namespace, input: Tensor, dim: int = -1) -> Array:
    """Return the first half of ``input`` along ``dim`` times the sigmoid of the second half.

    Source:
        Dauphin et al., "Language Modeling with Gated Convolutional Networks" (2017).
    """
    _floating(input)
    a, b = _halves(xp, input, dim)
    out = xp.asarray(xp.sigmoid(b))
    out *= a
    return out


# ---------------------------------------------------------------------- softmax
def _sum_along(xp: Namespace, a: Array, b: Array, dim: int) -> Array:
    """Return the sums of ``a * b`` along ``dim``, kept with length 1."""
    if dim in (-1, a.ndim - 1):
        return xp.row_dots(a, b)[..., None] if a.ndim else a * b
    return xp.add.reduce(a * b, axis=dim, keepdims=True)


@op(
    samples=[case(real(3, 4), real(3, 4), dim=1), case(real(2, 3, 4), real(2, 3, 4), dim=0),
             case(real(), real(), dim=0)],
    method=False,
    reference=lambda torch, g, out, dim: torch._softmax_backward_data(g, out, dim, torch.float64),
    d_grad=lambda F, g, output, dim: F.softmax_backward(g, output, dim),
    d_output=lambda F, g, grad, output, dim:
        g * (grad - F.sum(grad * output, dim, True)) - grad * F.sum(g * output, dim, True),
)  # fmt: skip
def softmax_backward(xp: Namespace, grad: Tensor, output: Tensor, dim: int) -> Array:
    """Return ``output * (grad - sum(grad * output))``, the sum along ``dim``."""
    return _softmax_backward(xp, grad, output, dim)


@device_form
def _softmax_backward(xp: Namespace, grad: Array, output: Array, dim: int) -> Array:
    out = xp.asarray(xp.subtract(grad, _sum_along(xp, grad, output, dim)))
    out *= output
    return out


@op(
    samples=[case(real(3, 4), dim=1), case(real(3, 40), dim=-1), case(real(2, 3, 4), dim=0),
             case(real(), dim=0), case(real(0, 3), dim=1)],
    casts=True,
    d_input=lambda F, g, out, dim: F.softmax_backward(g, out, dim),
)  # fmt: skip
def softmax(xp: Namespace, input: Tensor, dim: int, dtype: Any = None) -> Array:
    """Return exp(``input``) divided by its sums along ``dim``.

    Args:
        dtype: convert ``input`` to it first.
    """
    _floating(input)
    place = wrap_dim(dim, input.ndim)
    if not input.ndim:
        return xp.exp(xp.subtract(input, input))
    return _softmax(xp, input, place)


@device_form
def _softmax(xp: Namespace, x: Array, dim: int) -> Array:
    return xp.softmax_(xp.array(x, copy=True), dim)


@op(
    samples=[case(real(3, 4), real(3, 4), dim=1), case(real(2, 3, 4), real(2, 3, 4), dim=0),
             case(real(), real(), dim=0)],
    method=False,
    reference=lambda torch, g, out, dim:
        torch._log_softmax_backward_data(g, out, dim, torch.float64),
    d_grad=lambda F, g, output, dim: g - F.sum(g * F.exp(output), dim, True),
    d_output=lambda F, g, grad, output, dim: -g * F.exp(output) * F.sum(grad, dim, True),
)  # fmt: skip
def log_softmax_backward(xp: Namespace, grad: Tensor, output: Tensor, dim: int) -> Array:
    """Return ``grad - exp(output) * sum(grad)``, the sum along ``dim``."""
    return _log_softmax_backward(xp, grad, output, dim)


@device_form
def _log_softmax_backward(xp: Namespace, grad: Array, output: Array, dim: int) -> Array:
    out = xp.asarray(xp.exp(output))
    if dim in (-1, out.ndim - 1) and out.ndim:
        out *= xp.matmul(grad, xp.ones(out.shape[-1], out.dtype))[..., None]
    else:
        out *= xp.add.reduce(grad, axis=dim, keepdims=True) if out.ndim else grad
    return xp.subtract(grad, out, out=out)


@op(
    samples=[case(real(3, 4), dim=1), case(real(3, 40), dim=-1), case(real(2, 3, 4), dim=0),
             case(real(), dim=0), case(real(0, 3), dim=1)],
    casts=True,
    d_input=lambda F, g, out, dim: F.log_softmax_backward(g, out, dim),
)  # fmt: skip
def log_softmax(xp: Namespace, input: Tensor, dim: int, dtype: Any = None) -> Array:
    """Return the logarithm of ``softmax(input, dim)``, without its rounding.

    Args:
        dtype: convert ``input`` to it first.
    """
    _floating(input)
    place = wrap_dim(dim, input.ndim)
    return _log_softmax(xp, input, place) if input.ndim else xp.subtract(input, input)


@device_form
def _log_softmax(xp: Namespace, x: Array, dim: int) -> Array:
    return xp.log_softmax(x, dim)


def softmin(input: Tensor, dim: int, dtype: Any = None) -> Tensor:
    """Return ``softmax(-input, dim)``."""
    return softmax(neg(input), dim, dtype)


@where_it_is
def gumbel_softmax(
    logits: Tensor, tau: float = 1, hard: bool = False, eps: float = 1e-10, dim: int = -1
) -> Tensor:
    """Return samples of the Gumbel-softmax distribution along ``dim``.

    Args:
        tau: temperature: the lower, the closer to one-hot.
        hard: return one-hot vectors with the gradient of the soft samples.
        eps: has no effect, as in PyTorch.
    Source:
        Jang et al., "Categorical Reparameterization with Gumbel-Softmax" (2017).
    """
    array = logits.array
    place = device_of(array)
    xp = namespace_of(place)
    drawn = current_generator().on(place).exponential(array.shape, array.dtype)
    noise = to_device(drawn, place)
    xp.log(noise, out=noise)
    soft = softmax(div(sub(logits, wrap(noise)), tau), dim)
    if not hard:
        return soft
    best = xp.argmax(soft.array, dim, keepdims=True) if array.ndim else xp.zeros((), int)
    shape = [1] * max(array.ndim, 1)
    shape[dim] = -1
    one_hot = xp.arange(array.shape[dim] if array.ndim else 1).reshape(shape) == best
    one_hot = one_hot.reshape(array.shape).astype(array.dtype)
    return add(sub(wrap(one_hot), soft.detach()), soft)


# ---------------------------------------------------------------------- names in place
as_method(prelu)
relu_ = in_place(relu, "relu_")
leaky_relu_ = in_place(leaky_relu, "leaky_relu_")
hardtanh_ = in_place(hardtanh, "hardtanh_")
threshold_ = in_place(threshold, "threshold_")
rrelu_ = in_place(rrelu, "rrelu_")
elu_ = in_place(elu, "elu_")
selu_ = in_place(selu, "selu_")
celu_ = in_place(celu, "celu_")
