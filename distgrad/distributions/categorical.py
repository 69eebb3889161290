"""Distributions over categories, and counts of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from distgrad.autograd.mode import no_grad
from distgrad.backend.dtype import finfo
from distgrad.distributions import constraints
from distgrad.distributions.discrete import Binomial, ByProbs, _listed
from distgrad.ops.compare import where
from distgrad.ops.create import full, ones_like, zeros
from distgrad.ops.embed import one_hot
from distgrad.ops.random import multinomial
from distgrad.ops.ranges import eye
from distgrad.ops.scatter import gather, scatter_add
from distgrad.ops.shape import broadcast_tensors
from distgrad.tensor import Size, Tensor

__all__ = [
    "Categorical", "Multinomial", "OneHotCategorical", "OneHotCategoricalStraightThrough",
]  # fmt: skip


class ByCategory(ByProbs):
    """Distributions given by the probabilities of categories in the last dimension."""

    arg_constraints = {"probs": constraints.simplex, "logits": constraints.real_vector}
    _is_binary = False
    _event_dims = {"probs": 1, "logits": 1}

    def _take_categories(self, probs: Any, logits: Any, validate_args: bool | None) -> None:
        """Keep what is given, normalised."""
        for name, value in (("probs", probs), ("logits", logits)):
            if value is not None:
                self._demand_dims(f"`{name}` parameter", name, value)
        if probs is not None:
            probs = probs / probs.sum(-1, keepdim=True)
        if logits is not None:
            logits = logits - logits.logsumexp(-1, keepdim=True)
        self._take_one(probs, logits, validate_args)

    @property
    def _num_events(self) -> int:
        return int(self._param.shape[-1])


class Categorical(ByCategory):
    """The distribution of the number of a category, from 0 on.

    Example:
        >>> import distgrad as dg
        >>> Categorical(dg.tensor([1.0, 3.0])).probs
        tensor([0.2500, 0.7500])
    """

    has_enumerate_support = True

    def __init__(
        self, probs: Tensor | None = None, logits: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:  # fmt: skip
        self._take_categories(probs, logits, validate_args)
        self._event_shape = Size()

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        """Return the numbers of the categories."""
        return constraints.integer_interval(0, self._num_events - 1)

    @property
    def mean(self) -> Tensor:
        return full(self.batch_shape, math.nan, dtype=self.probs.dtype, device=self.probs.device)

    @property
    def mode(self) -> Tensor:
        return self.probs.argmax(-1)

    @property
    def variance(self) -> Tensor:
        return self.mean

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = Size(sample_shape)
        with no_grad():
            rows = self.probs.reshape(-1, self._num_events)
            return multinomial(rows, shape.numel(), True).T.reshape(self._extended_shape(shape))

    def log_prob(self, value: Tensor) -> Tensor:
        number = self._checked(value).long().unsqueeze(-1)
        number, logits = broadcast_tensors(number, self.logits)
        return gather(logits, -1, number[..., :1]).squeeze(-1)

    def entropy(self) -> Tensor:
        logits = self.logits.clamp(min=finfo(self.logits.dtype).min)
        return -(logits * self.probs).sum(-1)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        return _listed(self, self._num_events, self._param.long(), expand)


class OneHotCategorical(ByCategory):
    """The distribution of a category as a vector with 1 at its place and 0 elsewhere."""

    support = constraints.one_hot
    has_enumerate_support = True

    def __init__(
        self, probs: Tensor | None = None, logits: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:  # fmt: skip
        self._take_categories(probs, logits, validate_args)

    @property
    def _categorical(self) -> Categorical:
        given = {name: self.__dict__[name] for name in ("probs", "logits") if name in self.__dict__}
        return Categorical(**dict([given.popitem()]), validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.probs

    @property
    def mode(self) -> Tensor:
        return self._hot(self.probs.argmax(-1))

    @property
    def variance(self) -> Tensor:
        return self.probs * (1 - self.probs)

    def _hot(self, number: Tensor) -> Tensor:
        return one_hot(number, self._num_events).to(self._param.dtype)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self._hot(self._categorical.sample(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return self._categorical.log_prob(self._checked(value).argmax(-1))

    def entropy(self) -> Tensor:
        return self._categorical.entropy()

    def enumerate_support(self, expand: bool = True) -> Tensor:
        n = self._num_events
        values = eye(n, dtype=self._param.dtype, device=self._param.device)
        values = values.reshape(n, *[1] * len(self.batch_shape), n)
        return values.expand(n, *self.batch_shape, n) if expand else values


class OneHotCategoricalStraightThrough(OneHotCategorical):
    """The same, with samples whose gradient is that of the probabilities (Bengio et al. 2013)."""

    has_rsample = True

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.sample(sample_shape) + (self.probs - self.probs.detach())


class Multinomial(ByCategory):
    """The numbers of times that each category is drawn in ``total_count`` draws."""

    def __init__(
        self, total_count: int = 1, probs: Tensor | None = None, logits: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:  # fmt: skip
        if not isinstance(total_count, int):
            raise NotImplementedError("inhomogeneous total_count is not supported")
        self.total_count = total_count
        self._take_categories(probs, logits, validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> Any:
        """Return the counts that sum to the number of draws at most."""
        return constraints.multinomial(self.total_count)

    @property
    def mean(self) -> Tensor:
        return self.probs * self.total_count

    @property
    def variance(self) -> Tensor:
        return self.total_count * self.probs * (1 - self.probs)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        with no_grad():
            drawn = Categorical(self.probs, validate_args=False).sample(
                (self.total_count, *sample_shape)
            )
            drawn = drawn.movedim(0, -1)
            blank = zeros(shape, dtype=self.probs.dtype, device=self.probs.device)
            return scatter_add(blank, -1, drawn, ones_like(drawn, dtype=blank.dtype))

    def log_prob(self, value: Tensor) -> Tensor:
        value = self._checked(value)
        impossible = (value == 0) & (self.logits == -math.inf)
        powers = (where(impossible, 0.0, self.logits) * value).sum(-1)
        return (value.sum(-1) + 1).lgamma() - (value + 1).lgamma().sum(-1) + powers

    def entropy(self) -> Tensor:
        n = self.total_count
        trials = Binomial(n, self.probs, validate_args=False)
        counts = trials.enumerate_support(expand=False)[1:]
        ways = (trials.log_prob(counts).exp() * (counts + 1).lgamma()).sum((0, -1))
        return (
            n * Categorical(self.probs, validate_args=False).entropy() + ways - math.lgamma(n + 1)
        )
