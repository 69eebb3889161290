"""Samples of the gamma, Dirichlet and binomial distributions, and the slopes of the first two.

See Note [Implicit gradients].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import numpy

from distgrad.autograd.declare import op
from distgrad.autograd.function import Function
from distgrad.autograd.samples import between, case, positive
from distgrad.backend import rejection
from distgrad.backend.device import array_namespace, device_of, to_device
from distgrad.backend.random import Generator, current_generator
from distgrad.errors import DtypeError, DtypeNotImplemented, GradError, ShapeError, signature
from distgrad.ops.checks import is_floating
from distgrad.ops.create import checked
from distgrad.ops.elementwise import add
from distgrad.ops.shape import zero
from distgrad.tensor import Tensor, wrap
from distgrad.typing import Array, Namespace

__all__ = ["binomial"]

# Note [Implicit gradients]
# ~~~~~~~~~~~~~~~~~~~~~~~~~
# A sample x is the quantile of a hidden uniform number: F(x; a) stays fixed when a changes, so
# dx/da = -(dF/da) / p(x) (Figurnov, Mohamed, Mnih 2018).  Here dF/da is the integral of
# p(t) d log p(t)/da up to x, or minus the integral from x on, since both sides together give 0.
# In the variables log t (gamma) and logit t (beta) the integrand falls off from x in the direction
# away from the mode, so that side is taken.  A double exponential rule (Takahasi and Mori 1974),
# s = scale * exp(u - exp(-u)), reaches ten digits for all parameters, very small and large ones
# too.  PyTorch has approximations of about three digits in places.
_U = numpy.arange(-3.6, 6.4, 0.0625)
_NODES = numpy.exp(_U - numpy.exp(-_U))
_WEIGHTS = _NODES * (1 + numpy.exp(-_U)) * 0.0625
_BLOCK = 1 << 12  # elements at once


def _by_blocks(xp: Namespace, slope: Callable[..., Array], x: Array, *parameters: Array) -> Array:
    """Return ``slope(xp, x, *parameters)`` of the elements, worked out in float64."""
    arrays = xp.broadcast_arrays(x, *parameters)
    flat = [xp.astype(a, xp.float64).reshape(-1, 1) for a in arrays]
    parts = [
        slope(xp, *(a[start : start + _BLOCK] for a in flat))
        for start in range(0, arrays[0].size, _BLOCK)
    ]
    found = xp.concatenate(parts) if parts else flat[0][:, 0]
    return xp.astype(found.reshape(arrays[0].shape), x.dtype)


def _integral(xp: Namespace, scale: Array, integrand: Callable[[Array], Array]) -> Array:
    """Return the integrals of ``integrand(s)`` for s > 0, which falls off at this scale."""
    values = integrand(scale * xp.asarray(_NODES)) * xp.asarray(_WEIGHTS)
    return scale[:, 0] * xp.add.reduce(values, -1)


def _gamma_slope(xp: Namespace, x: Array, a: Array) -> Array:
    right = x >= a
    side = xp.where(right, 1.0, -1.0)
    steep = xp.maximum(xp.abs(x - a), xp.where(right, xp.sqrt(x), xp.minimum(a, xp.sqrt(a))))
    scale = xp.where(right, xp.log1p(1 / steep), 1 / steep)
    log_x, mean_log = xp.log(x), xp.digamma(a)

    def integrand(s: Array) -> Array:
        t = side * s
        return xp.exp(a * t - x * xp.expm1(t)) * (log_x + t - mean_log)

    return (side * x)[:, 0] * _integral(xp, scale, integrand)


def _dirichlet_slope(xp: Namespace, x: Array, a: Array, total: Array) -> Array:
    """Return the slope of a sample of the beta distribution (a, total - a), over 1 - x."""
    b, rest = total - a, 1 - x
    right = x * total >= a
    side = xp.where(right, 1.0, -1.0)
    tail = xp.where(right, b, a)
    steep = xp.maximum(xp.abs(a - total * x), xp.minimum(tail, xp.sqrt(total * x * rest)))
    log_x, log_rest = xp.log(x), xp.log(rest)
    mean_log = xp.digamma(a) - xp.digamma(total)

    def integrand(s: Array) -> Array:
        y = log_x - log_rest + side * s
        log_t, log_left = -xp.logaddexp(0.0, -y), -xp.logaddexp(0.0, y)
        weight = xp.exp(a * (log_t - log_x) + b * (log_left - log_rest))
        return weight * (log_t - mean_log)

    return (side * x)[:, 0] * _integral(xp, 1 / steep, integrand)


@op("elementwise", samples=[case(positive(3, 2), positive(3, 2))], method=False, reference="none")
def _standard_gamma_grad(xp: Namespace, input: Tensor, output: Tensor) -> Array:
    """Return the derivative of the samples ``output`` of the gamma distribution by its shape."""
    x: Array = output
    return _by_blocks(xp, _gamma_slope, x, input)


@op("elementwise", method=False, reference="none",
    samples=[case(between(0.1, 0.9, 3), positive(3), between(3, 4, 3))])  # fmt: skip
def _dirichlet_grad(xp: Namespace, x: Tensor, alpha: Tensor, total: Tensor) -> Array:
    """Return how much of the rest ``1 - x`` a sample gains when its ``alpha`` grows."""
    at: Array = x
    return _by_blocks(xp, _dirichlet_slope, at, alpha, total)


class OnceOnly(Function):
    """Slopes that have no derivatives by the parameters themselves."""

    @staticmethod
    def forward(ctx: Any, slope: Tensor, input: Tensor) -> Tensor:
        """Return the slopes."""
        return slope.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> NoReturn:
        """Raise: there is no second derivative."""
        raise GradError(
            "_standard_gamma or _sample_dirichlet: samples have first derivatives by their "
            "parameters only; do not differentiate their gradient, or take log_prob instead"
        )


class StandardGamma(Function):
    """Samples that depend on their shape parameter as quantiles do."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, drawn: Tensor) -> Tensor:
        """Return the samples."""
        ctx.save_for_backward(input, drawn)
        return drawn.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of the shape parameter."""
        input, x = ctx.saved_tensors
        return g * OnceOnly.apply(_standard_gamma_grad(input, x), input), None


class SampleDirichlet(Function):
    """Samples that depend on their concentrations as quantiles of their margins do."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, drawn: Tensor) -> Tensor:
        """Return the samples."""
        ctx.save_for_backward(input, drawn)
        return drawn.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        """Return the gradient of the concentrations: what one gains, the others lose in shares."""
        input, x = ctx.saved_tensors
        total = input.sum(-1, keepdim=True)
        slope = OnceOnly.apply(_dirichlet_grad(x, input, total), input)
        return slope * (g - (g * x).sum(-1, keepdim=True)), None


def _on_host(name: str, input: Tensor) -> Any:
    array = checked(name, input).array
    if not is_floating(array) or array.dtype.itemsize == 2:
        raise DtypeNotImplemented(f"{name}({input._brief()}): not implemented; use .float()")
    return array_namespace(array).to_numpy(array)


def _standard_gamma(input: Tensor, generator: Generator | None = None) -> Tensor:
    """Return samples of the gamma distributions with the shapes ``input`` and rate 1.

    Gradient: that of quantiles, see Note [Implicit gradients].
    """
    shapes = _on_host("_standard_gamma", input)
    source, kind = generator or current_generator(), shapes.dtype.type
    drawn = source.one_by_one(lambda s, a: rejection.gamma(s, a, kind), shapes).astype(kind)
    numpy.maximum(drawn, numpy.finfo(kind).tiny, out=drawn)
    sample: Tensor = StandardGamma.apply(input, wrap(to_device(drawn, device_of(input.array))))
    return sample


def _sample_dirichlet(input: Tensor, generator: Generator | None = None) -> Tensor:
    """Return samples of the Dirichlet distributions with the concentrations in the last dimension.

    Gradient: that of the quantiles of each margin, see Note [Implicit gradients].
    """
    shapes = _on_host("_sample_dirichlet", input)
    source, kind = generator or current_generator(), shapes.dtype.type
    parts = source.one_by_one(rejection.gamma, shapes)
    drawn = (parts / parts.sum(-1, keepdims=True)).astype(kind)
    numpy.clip(drawn, numpy.finfo(kind).tiny, numpy.nextafter(kind(1), kind(0)), out=drawn)
    sample: Tensor = SampleDirichlet.apply(input, wrap(to_device(drawn, device_of(input.array))))
    return sample


def binomial(count: Tensor, prob: Tensor, generator: Generator | None = None) -> Tensor:
    """Return the numbers of successes in ``count`` trials with the probabilities ``prob``.

    Shape:
        The operands broadcast; the result has the dtype of ``count``.
    Gradient: zero.
    Raises:
        DtypeError: the operands are not of one floating point type.
    Example:
        >>> import distgrad as dg
        >>> _ = dg.manual_seed(0)
        >>> dg.binomial(dg.tensor([10.0, 100.0]), dg.tensor([0.5, 0.2]))
        tensor([ 7., 21.])
    """
    counts, probs = _on_host("binomial", count), _on_host("binomial", prob)
    head = signature("binomial", {"count": count, "prob": prob}, {})
    if counts.dtype != probs.dtype:
        raise DtypeError(f"{head}: expected one dtype; convert one with .to(dtype)")
    try:
        numpy.broadcast_shapes(counts.shape, probs.shape)
    except ValueError as error:
        raise ShapeError(f"{head}: the shapes do not broadcast; reshape one of them") from error
    source = generator or current_generator()
    drawn = source.one_by_one(rejection.binomial, counts, probs).astype(counts.dtype)
    sample = wrap(to_device(drawn, device_of(count.array)))
    return add(sample, zero(prob)) if prob.requires_grad else sample
