"""Distributions of trials and counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from distgrad.autograd.mode import no_grad
from distgrad.backend.dtype import finfo
from distgrad.distributions import constraints
from distgrad.distributions.distribution import Distribution, ExponentialFamily
from distgrad.distributions.positive import Gamma
from distgrad.distributions.utils import (
    blank,
    broadcast_all,
    clamp_probs,
    lazy_property,
    logits_to_probs,
    probs_to_logits,
    random_uniform,
)
from distgrad.errors import ArgumentError
from distgrad.ops.activation import logsigmoid
from distgrad.ops.compare import where
from distgrad.ops.gamma import binomial
from distgrad.ops.loss import binary_cross_entropy_with_logits
from distgrad.ops.random import bernoulli, poisson
from distgrad.ops.ranges import arange
from distgrad.ops.special import xlogy
from distgrad.tensor import Size, Tensor

__all__ = [
    "Bernoulli", "Binomial", "ContinuousBernoulli", "Geometric", "NegativeBinomial", "Poisson",
]  # fmt: skip


class ByProbs(Distribution):
    """Distributions given by probabilities or by logits; the other is worked out when asked for."""

    _is_binary = True

    def _take_one(self, probs: Any, logits: Any, validate_args: bool | None, **others: Any) -> None:
        """Keep ``probs`` or ``logits``, whichever is given."""
        if (probs is None) == (logits is None):
            raise ArgumentError(
                f"{type(self).__name__}(): Either `probs` or `logits` must be specified, but not "
                "both."
            )
        given = {"logits": logits} if probs is None else {"probs": probs}
        self._take(validate_args, **given, **others)

    @lazy_property
    def probs(self) -> Tensor:
        """Return the probabilities."""
        return logits_to_probs(self.logits, self._is_binary)

    @lazy_property
    def logits(self) -> Tensor:
        """Return the log odds, or the logarithms of the probabilities."""
        return probs_to_logits(self.probs, self._is_binary)

    @property
    def _param(self) -> Tensor:
        """Return probabilities or logits as they were given."""
        given: Tensor = self.__dict__["probs" if "probs" in self.__dict__ else "logits"]
        return given

    @property
    def param_shape(self) -> Size:
        """Return the shape of the probabilities."""
        return self._param.shape


_BINARY = {"probs": constraints.unit_interval, "logits": constraints.real}


class Bernoulli(ByProbs, ExponentialFamily):
    """The distribution of one trial: 1 with probability ``probs``, else 0."""

    arg_constraints = _BINARY
    support = constraints.boolean
    has_enumerate_support = True
    _mean_carrier_measure = 0

    def __init__(
        self, probs: Tensor | float | None = None, logits: Tensor | float | None = None,
        validate_args: bool | None = None,
    ) -> None:  # fmt: skip
        self._take_one(probs, logits, validate_args)

    @property
    def mean(self) -> Tensor:
        return self.probs

    @property
    def mode(self) -> Tensor:
        mode = (self.probs >= 0.5).to(self.probs.dtype)
        return where(self.probs == 0.5, math.nan, mode)

    @property
    def variance(self) -> Tensor:
        return self.probs * (1 - self.probs)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with no_grad():
            return bernoulli(self.probs.expand(self._extended_shape(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        return -cross_entropy(self.logits, self._checked(value))

    def entropy(self) -> Tensor:
        return cross_entropy(self.logits, self.probs)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        return _listed(self, 2, self._param, expand)

    @property
    def _natural_params(self) -> tuple[Tensor, ...]:
        return (self.probs.logit(),)

    def _log_normalizer(self, *natural_params: Tensor) -> Tensor:
        return -logsigmoid(-natural_params[0])


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the entropy of trials with probabilities ``target``, as judged by ``logits``."""
    logits, target = broadcast_all(logits, target)
    return binary_cross_entropy_with_logits(logits, target, reduction="none")


def _listed(self: Distribution, count: int, like: Tensor, expand: bool) -> Tensor:
    """Return the numbers from 0 to ``count - 1`` as the support of a batch."""
    values = arange(count, dtype=like.dtype, device=like.device)
    values = values.reshape(-1, *[1] * len(self.batch_shape))
    return values.expand(-1, *self.batch_shape) if expand else values


class ContinuousBernoulli(ByProbs, ExponentialFamily):
    """The distribution on [0, 1] with density proportional to ``probs^x (1 - probs)^(1 - x)``.

    Args:
        lims: between these probabilities formulas lose digits, and Taylor's series at 0.5 serves.
    """

    arg_constraints = _BINARY
    support = constraints.unit_interval
    has_rsample = True
    _mean_carrier_measure = 0

    def __init__(
        self, probs: Tensor | float | None = None, logits: Tensor | float | None = None,
        lims: tuple[float, float] = (0.499, 0.501), validate_args: bool | None = None,
    ) -> None:  # fmt: skip
        self._lims = lims
        self._take_one(probs, logits, validate_args)
        if "probs" in self.__dict__:
            self.probs = clamp_probs(self.probs)

    def _parted(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return where formulas hold, probabilities that suit them, and their log odds, negated."""
        low, high = self._lims
        safe = (self.probs <= low) | (self.probs > high)
        p = where(safe, self.probs, low)
        return safe, p, (-p).log1p() - p.log()

    @property
    def _log_norm(self) -> Tensor:
        safe, p, odds = self._parted()
        square = (self.probs - 0.5) ** 2
        series = math.log(2) + (4 / 3 + 104 / 45 * square) * square
        return where(safe, odds.abs().log() - (1 - 2 * p).abs().log(), series)

    @property
    def mean(self) -> Tensor:
        safe, p, odds = self._parted()
        away = self.probs - 0.5
        return where(safe, p / (2 * p - 1) + 1 / odds, 0.5 + (1 / 3 + 16 / 45 * away**2) * away)

    @property
    def variance(self) -> Tensor:
        safe, p, odds = self._parted()
        square = (self.probs - 0.5) ** 2
        formula = p * (p - 1) / (1 - 2 * p) ** 2 + 1 / odds**2
        return where(safe, formula, 1 / 12 - (1 / 15 - 128 / 945 * square) * square)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with no_grad():
            return self.rsample(sample_shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.icdf(random_uniform(self.probs, self._extended_shape(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        return self._log_norm - cross_entropy(self.logits, self._checked(value))

    def cdf(self, value: Tensor) -> Tensor:
        value = self._checked(value)
        safe, p, _ = self._parted()
        inside = (p**value * (1 - p) ** (1 - value) + p - 1) / (2 * p - 1)
        inside = where(safe, inside, value)
        return where(value <= 0, 0.0, where(value >= 1, 1.0, inside))

    def icdf(self, value: Tensor) -> Tensor:
        safe, p, odds = self._parted()
        formula = ((-p).log1p() - (value * (2 * p - 1) - p).log1p()) / odds
        return where(safe, formula, value)

    def entropy(self) -> Tensor:
        log_failure, log_success = (-self.probs).log1p(), self.probs.log()
        return self.mean * (log_failure - log_success) - self._log_norm - log_failure

    @property
    def _natural_params(self) -> tuple[Tensor, ...]:
        return (self.logits,)

    def _log_normalizer(self, *natural_params: Tensor) -> Tensor:
        (x,) = natural_params
        near = x.abs() < 1e-3
        apart = where(near, 1.0, x)
        return where(near, 0.5 * x + x**2 / 24, (apart.expm1() / apart).log())


class Geometric(ByProbs):
    """The number of failures before the first success in trials of probability ``probs``."""

    arg_constraints = _BINARY
    support = constraints.nonnegative_integer

    def __init__(
        self, probs: Tensor | float | None = None, logits: Tensor | float | None = None,
        validate_args: bool | None = None,
    ) -> None:  # fmt: skip
        self._take_one(probs, logits, validate_args)

    def _check_parameters(self) -> None:
        super()._check_parameters()
        if "probs" in self.__dict__ and not bool((self.probs > 0).all()):
            raise ArgumentError(
                f"Expected parameter probs (Tensor of shape {tuple(self.probs.shape)}) of "
                f"distribution {self!r} to be positive but found invalid values:\n{self.probs}"
            )

    @property
    def mean(self) -> Tensor:
        return 1 / self.probs - 1

    @property
    def mode(self) -> Tensor:
        return self.probs * 0

    @property
    def variance(self) -> Tensor:
        return (1 / self.probs - 1) / self.probs

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        tiny = finfo(self.probs.dtype).tiny
        with no_grad():
            u = blank(self.probs, self._extended_shape(sample_shape)).uniform_(tiny, 1)
            return (u.log() / (-self.probs).log1p()).floor()

    def log_prob(self, value: Tensor) -> Tensor:
        value = self._checked(value)
        sure = (self.probs == 1) & (value == 0)
        return value * (-where(sure, 0.0, self.probs)).log1p() + self.probs.log()

    def entropy(self) -> Tensor:
        return cross_entropy(self.logits, self.probs) / self.probs


class Binomial(ByProbs):
    """The number of successes in ``total_count`` trials of probability ``probs``."""

    arg_constraints = {"total_count": constraints.nonnegative_integer, **_BINARY}
    has_enumerate_support = True
    total_count: Tensor

    def __init__(
        self, total_count: Tensor | int = 1, probs: Tensor | None = None,
        logits: Tensor | None = None, validate_args: bool | None = None,
    ) -> None:  # fmt: skip
        total_count = _in_dtype_of(probs if logits is None else logits, total_count)
        self._take_one(probs, logits, validate_args, total_count=total_count)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        """Return the integers from 0 to the number of trials."""
        return constraints.integer_interval(0, self.total_count)

    @property
    def mean(self) -> Tensor:
        return self.total_count * self.probs

    @property
    def mode(self) -> Tensor:
        return ((self.total_count + 1) * self.probs).floor().minimum(self.total_count)

    @property
    def variance(self) -> Tensor:
        return self.total_count * self.probs * (1 - self.probs)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        with no_grad():
            return binomial(self.total_count.expand(shape), self.probs.expand(shape))

    def log_prob(self, value: Tensor) -> Tensor:
        value, n = self._checked(value), self.total_count
        choices = (n + 1).lgamma() - (value + 1).lgamma() - (n - value + 1).lgamma()
        return value * self.logits + n * logsigmoid(-self.logits) + choices

    def _one_count(self, name: str) -> int:
        count = int(self.total_count.max().item())
        if bool((self.total_count != count).any()):
            raise NotImplementedError(f"Inhomogeneous total count not supported by `{name}`.")
        return count

    def entropy(self) -> Tensor:
        self._one_count("entropy")
        log_probs = self.log_prob(self.enumerate_support(False))
        return -(log_probs.exp() * log_probs).sum(0)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        return _listed(self, 1 + self._one_count("enumerate_support"), self._param, expand)


def _in_dtype_of(like: Any, value: Any) -> Any:
    """Return ``value`` in the dtype of ``like``, where both are tensors."""
    return value.to(like.dtype) if isinstance(like, Tensor) and isinstance(value, Tensor) else value


class NegativeBinomial(ByProbs):
    """The number of successes, each of probability ``probs``, before ``total_count`` failures."""

    arg_constraints = {
        "total_count": constraints.greater_than_eq(0),
        "probs": constraints.half_open_interval(0.0, 1.0), "logits": constraints.real,
    }  # fmt: skip
    support = constraints.nonnegative_integer
    total_count: Tensor

    def __init__(
        self, total_count: Tensor | float, probs: Tensor | None = None,
        logits: Tensor | None = None, validate_args: bool | None = None,
    ) -> None:  # fmt: skip
        total_count = _in_dtype_of(probs if logits is None else logits, total_count)
        self._take_one(probs, logits, validate_args, total_count=total_count)

    @property
    def mean(self) -> Tensor:
        return self.total_count * self.logits.exp()

    @property
    def mode(self) -> Tensor:
        return ((self.total_count - 1) * self.logits.exp()).floor().clamp(min=0)

    @property
    def variance(self) -> Tensor:
        return self.mean / (-self.logits).sigmoid()

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with no_grad():
            rates = Gamma(self.total_count, (-self.logits).exp(), validate_args=False)
            return poisson(rates.sample(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        value, n = self._checked(value), self.total_count
        powers = n * logsigmoid(-self.logits) + value * logsigmoid(self.logits)
        ways = (n + value).lgamma() - (1 + value).lgamma() - n.lgamma()
        return powers + where(n + value == 0, 0.0, ways)


class Poisson(ExponentialFamily):
    """The number of independent events, of which ``rate`` are expected."""

    arg_constraints = {"rate": constraints.nonnegative}
    support = constraints.nonnegative_integer
    rate: Tensor

    def __init__(self, rate: Tensor | float, validate_args: bool | None = None) -> None:
        self._take(validate_args, rate=rate)

    @property
    def mean(self) -> Tensor:
        return self.rate

    @property
    def mode(self) -> Tensor:
        return self.rate.floor()

    @property
    def variance(self) -> Tensor:
        return self.rate

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with no_grad():
            return poisson(self.rate.expand(self._extended_shape(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        value = self._checked(value)
        return xlogy(value, self.rate) - self.rate - (value + 1).lgamma()

    @property
    def _natural_params(self) -> tuple[Tensor, ...]:
        return (self.rate.log(),)

    def _log_normalizer(self, *natural_params: Tensor) -> Tensor:
        return natural_params[0].exp()
