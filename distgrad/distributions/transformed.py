"""Distributions that are a simpler one under transforms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from distgrad.backend.dtype import finfo
from distgrad.distributions import constraints
from distgrad.distributions.composed import TransformedDistribution
from distgrad.distributions.distribution import Distribution
from distgrad.distributions.positive import Exponential, Gamma
from distgrad.distributions.real import Cauchy, Normal, Uniform
from distgrad.distributions.transforms import (
    AbsTransform,
    AffineTransform,
    ExpTransform,
    PowerTransform,
    StickBreakingTransform,
    Transform,
)
from distgrad.ops.compare import where
from distgrad.ops.create import full_like, ones_like, zeros_like
from distgrad.tensor import Tensor

__all__ = [
    "Gumbel", "HalfCauchy", "HalfNormal", "InverseGamma", "Kumaraswamy", "LogNormal",
    "LogisticNormal", "Pareto", "Weibull",
]  # fmt: skip

_EULER = 0.57721566490153286060  # the Euler-Mascheroni constant
Parts = tuple[Distribution, list[Transform]]


class OfParameters(TransformedDistribution):
    """Transformed distributions whose base and transforms follow from their own parameters."""

    has_rsample = True

    def _parts(self) -> Parts:
        """Return base and transforms."""
        raise NotImplementedError

    def _take(self, validate_args: bool | None, **parameters: Any) -> None:
        super()._take(validate_args, **parameters)
        self.base_dist, self.transforms = self._parts()

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Any:
        new = Distribution.expand(self, batch_shape, _instance)
        new.base_dist, new.transforms = new._parts()
        return new


class Gumbel(OfParameters):
    """The Gumbel distribution: -log(-log u) of uniform u, moved and scaled."""

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}
    support = constraints.real
    loc: Tensor
    scale: Tensor

    def __init__(
        self, loc: Tensor | float, scale: Tensor | float, validate_args: bool | None = None
    ) -> None:
        self._take(validate_args, loc=loc, scale=scale)

    def _parts(self) -> Parts:
        limits = finfo(self.loc.dtype)
        low, high = full_like(self.loc, limits.tiny), full_like(self.loc, 1 - limits.eps)
        turn = AffineTransform(0, -ones_like(self.scale))
        log, place = ExpTransform().inv, AffineTransform(self.loc, -self.scale)
        return Uniform(low, high, validate_args=False), [log, turn, log, place]

    def log_prob(self, value: Tensor) -> Tensor:
        y = (self.loc - self._checked(value)) / self.scale
        return y - y.exp() - self.scale.log()

    @property
    def mean(self) -> Tensor:
        return self.loc + self.scale * _EULER

    @property
    def mode(self) -> Tensor:
        return self.loc

    @property
    def stddev(self) -> Tensor:
        return math.pi / math.sqrt(6) * self.scale

    @property
    def variance(self) -> Tensor:
        return self.stddev.pow(2)

    def entropy(self) -> Tensor:
        return self.scale.log() + (1 + _EULER)


class _Folded(OfParameters):
    """What a symmetric distribution around 0 is on the positive half."""

    arg_constraints = {"scale": constraints.positive}
    support = constraints.nonnegative
    scale: Tensor

    def __init__(self, scale: Tensor | float, validate_args: bool | None = None) -> None:
        self._take(validate_args, scale=scale)

    @property
    def mode(self) -> Tensor:
        return zeros_like(self.scale)

    def log_prob(self, value: Tensor) -> Tensor:
        value = self._checked(value)
        return where(value >= 0, self.base_dist.log_prob(value) + math.log(2), -math.inf)

    def cdf(self, value: Tensor) -> Tensor:
        return 2 * self.base_dist.cdf(self._checked(value)) - 1

    def icdf(self, value: Tensor) -> Tensor:
        return self.base_dist.icdf((value + 1) / 2)

    def entropy(self) -> Tensor:
        return self.base_dist.entropy() - math.log(2)


class HalfNormal(_Folded):
    """The distribution of the absolute value of a normal number with mean 0."""

    def _parts(self) -> Parts:
        return Normal(zeros_like(self.scale), self.scale, validate_args=False), [AbsTransform()]

    @property
    def mean(self) -> Tensor:
        return self.scale * math.sqrt(2 / math.pi)

    @property
    def variance(self) -> Tensor:
        return self.scale.pow(2) * (1 - 2 / math.pi)


class HalfCauchy(_Folded):
    """The distribution of the absolute value of a Cauchy number with median 0."""

    def _parts(self) -> Parts:
        return Cauchy(zeros_like(self.scale), self.scale, validate_args=False), [AbsTransform()]

    @property
    def mean(self) -> Tensor:
        return full_like(self.scale, math.inf)

    @property
    def variance(self) -> Tensor:
        return self.base_dist.variance


class LogNormal(OfParameters):
    """The distribution of ``exp(x)`` of a normal ``x``."""

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}
    support = constraints.positive
    loc: Tensor
    scale: Tensor

    def __init__(
        self, loc: Tensor | float, scale: Tensor | float, validate_args: bool | None = None
    ) -> None:
        self._take(validate_args, loc=loc, scale=scale)

    def _parts(self) -> Parts:
        return Normal(self.loc, self.scale, validate_args=False), [ExpTransform()]

    @property
    def mean(self) -> Tensor:
        return (self.loc + self.scale.pow(2) / 2).exp()

    @property
    def mode(self) -> Tensor:
        return (self.loc - self.scale.square()).exp()

    @property
    def variance(self) -> Tensor:
        square = self.scale.pow(2)
        return square.expm1() * (2 * self.loc + square).exp()

    def entropy(self) -> Tensor:
        return self.base_dist.entropy() + self.loc


class LogisticNormal(TransformedDistribution):
    """The distribution of proportions that stick breaking makes of normal numbers."""

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}
    support = constraints.simplex
    has_rsample = True

    def __init__(
        self, loc: Tensor | float, scale: Tensor | float, validate_args: bool | None = None
    ) -> None:
        base = Normal(loc, scale, validate_args=validate_args)
        base = base if base.batch_shape else base.expand((1,))
        super().__init__(base, StickBreakingTransform(), validate_args=validate_args)

    @property
    def loc(self) -> Tensor:
        """Return the means of the normal numbers."""
        base: Any = self.base_dist
        loc: Tensor = base.base_dist.loc
        return loc

    @property
    def scale(self) -> Tensor:
        """Return the standard deviations of the normal numbers."""
        base: Any = self.base_dist
        scale: Tensor = base.base_dist.scale
        return scale


class Pareto(OfParameters):
    """The Pareto distribution of numbers from ``scale`` on, with the power ``-alpha - 1``."""

    arg_constraints = {"alpha": constraints.positive, "scale": constraints.positive}
    scale: Tensor
    alpha: Tensor

    def __init__(
        self, scale: Tensor | float, alpha: Tensor | float, validate_args: bool | None = None
    ) -> None:
        self._take(validate_args, scale=scale, alpha=alpha)

    def _parts(self) -> Parts:
        steps = [ExpTransform(), AffineTransform(0, self.scale)]
        return Exponential(self.alpha, validate_args=False), steps

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> Any:
        """Return the numbers from scale on."""
        return constraints.greater_than_eq(self.scale)

    @property
    def mean(self) -> Tensor:
        a = self.alpha.clamp(min=1)
        return a * self.scale / (a - 1)

    @property
    def mode(self) -> Tensor:
        return self.scale

    @property
    def variance(self) -> Tensor:
        a = self.alpha.clamp(min=2)
        return self.scale.pow(2) * a / ((a - 1).pow(2) * (a - 2))

    def entropy(self) -> Tensor:
        return (self.scale / self.alpha).log() + 1 + self.alpha.reciprocal()


class Weibull(OfParameters):
    """The Weibull distribution: powers of exponential numbers."""

    arg_constraints = {"scale": constraints.positive, "concentration": constraints.positive}
    support = constraints.positive
    scale: Tensor
    concentration: Tensor

    def __init__(
        self, scale: Tensor | float, concentration: Tensor | float,
        validate_args: bool | None = None,
    ) -> None:  # fmt: skip
        self._take(validate_args, scale=scale, concentration=concentration)

    def _parts(self) -> Parts:
        power = PowerTransform(self.concentration.reciprocal())
        steps = [power, AffineTransform(0, self.scale)]
        return Exponential(ones_like(self.scale), validate_args=False), steps

    def _moment(self, n: int) -> Tensor:
        return self.scale**n * (1 + n / self.concentration).lgamma().exp()

    @property
    def mean(self) -> Tensor:
        return self._moment(1)

    @property
    def mode(self) -> Tensor:
        k = self.concentration
        return self.scale * ((k - 1) / k) ** k.reciprocal()

    @property
    def variance(self) -> Tensor:
        return self._moment(2) - self._moment(1).pow(2)

    def entropy(self) -> Tensor:
        k = self.concentration
        return _EULER * (1 - k.reciprocal()) + (self.scale / k).log() + 1


class Kumaraswamy(OfParameters):
    """The Kumaraswamy distribution: ``(1 - u^(1/c0))^(1/c1)`` of uniform u, much like Beta."""

    arg_constraints = {
        "concentration1": constraints.positive, "concentration0": constraints.positive,
    }  # fmt: skip
    support = constraints.unit_interval
    concentration1: Tensor
    concentration0: Tensor

    def __init__(
        self, concentration1: Tensor | float, concentration0: Tensor | float,
        validate_args: bool | None = None,
    ) -> None:  # fmt: skip
        self._take(validate_args, concentration1=concentration1, concentration0=concentration0)

    def _parts(self) -> Parts:
        a, b = self.concentration1, self.concentration0
        turn = AffineTransform(1.0, -1.0)
        steps = [PowerTransform(b.reciprocal()), turn, PowerTransform(a.reciprocal())]
        return Uniform(zeros_like(a), ones_like(a), validate_args=False), steps

    def _moment(self, n: int) -> Tensor:
        b, at = self.concentration0, 1 + n / self.concentration1
        return b * (at.lgamma() + b.lgamma() - (at + b).lgamma()).exp()

    @property
    def mean(self) -> Tensor:
        return self._moment(1)

    @property
    def mode(self) -> Tensor:
        """Return the place of the density's maximum, nan where it has none inside."""
        a, b = self.concentration1, self.concentration0
        mode = ((a - 1) / (a * b - 1)) ** a.reciprocal()
        return where((a < 1) | (b < 1), math.nan, mode)

    @property
    def variance(self) -> Tensor:
        return self._moment(2) - self._moment(1).pow(2)

    def entropy(self) -> Tensor:
        a, b = self.concentration1, self.concentration0
        harmonic = (b + 1).digamma() + _EULER
        return (1 - b.reciprocal()) + (1 - a.reciprocal()) * harmonic - a.log() - b.log()


class InverseGamma(OfParameters):
    """The distribution of ``1 / x`` of a gamma number ``x``."""

    arg_constraints = {"concentration": constraints.positive, "rate": constraints.positive}
    support = constraints.positive
    concentration: Tensor
    rate: Tensor

    def __init__(
        self, concentration: Tensor | float, rate: Tensor | float,
        validate_args: bool | None = None,
    ) -> None:  # fmt: skip
        self._take(validate_args, concentration=concentration, rate=rate)

    def _parts(self) -> Parts:
        base = Gamma(self.concentration, self.rate, validate_args=False)
        return base, [PowerTransform(-ones_like(self.rate))]

    @property
    def mean(self) -> Tensor:
        finite = self.concentration > 1
        return where(finite, self.rate / (where(finite, self.concentration, 2.0) - 1), math.inf)

    @property
    def mode(self) -> Tensor:
        return self.rate / (self.concentration + 1)

    @property
    def variance(self) -> Tensor:
        finite = self.concentration > 2
        a = where(finite, self.concentration, 3.0)
        return where(finite, self.rate.square() / ((a - 1).square() * (a - 2)), math.inf)

    def entropy(self) -> Tensor:
        a = self.concentration
        return a + self.rate.log() + a.lgamma() - (1 + a) * a.digamma()
