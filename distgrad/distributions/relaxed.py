"""Continuous relaxations of categories (Maddison et al. 2017; Jang et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence

from distgrad.distributions import constraints
from distgrad.distributions.categorical import ByCategory
from distgrad.distributions.composed import TransformedDistribution
from distgrad.distributions.discrete import ByProbs
from distgrad.distributions.transforms import ExpTransform, SigmoidTransform
from distgrad.distributions.utils import as_tensors, clamp_probs, random_uniform
from distgrad.ops.activation import logsigmoid
from distgrad.ops.create import full_like
from distgrad.tensor import Tensor

__all__ = [
    "ExpRelaxedCategorical", "LogitRelaxedBernoulli", "RelaxedBernoulli",
    "RelaxedOneHotCategorical",
]  # fmt: skip


class LogitRelaxedBernoulli(ByProbs):
    """The distribution of the log odds of a relaxed trial."""

    arg_constraints = {"probs": constraints.unit_interval, "logits": constraints.real}
    support = constraints.real
    has_rsample = True

    def __init__(
        self, temperature: Tensor | float, probs: Tensor | float | None = None,
        logits: Tensor | float | None = None, validate_args: bool | None = None,
    ) -> None:  # fmt: skip
        (self.temperature,) = as_tensors(temperature)
        self._take_one(probs, logits, validate_args)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        p = clamp_probs(self.probs.expand(shape))
        u = clamp_probs(random_uniform(p, shape))
        return (u.log() - (-u).log1p() + p.log() - (-p).log1p()) / self.temperature

    def log_prob(self, value: Tensor) -> Tensor:
        away = self.logits - self._checked(value) * self.temperature
        return self.temperature.log() + away + 2 * logsigmoid(-away)


class ExpRelaxedCategorical(ByCategory):
    """The distribution of the logarithms of a relaxed one-hot vector."""

    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self, temperature: Tensor | float, probs: Tensor | None = None,
        logits: Tensor | None = None, validate_args: bool | None = None,
    ) -> None:  # fmt: skip
        (self.temperature,) = as_tensors(temperature)
        self._take_categories(probs, logits, validate_args)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        u = clamp_probs(random_uniform(self.logits, self._extended_shape(sample_shape)))
        scores = (self.logits - (-u.log()).log()) / self.temperature
        return scores - scores.logsumexp(-1, keepdim=True)

    def log_prob(self, value: Tensor) -> Tensor:
        k, t = self._num_events, self.temperature
        norm = full_like(t, float(k)).lgamma() + (k - 1) * t.log()
        score = self.logits - self._checked(value) * t
        return (score - score.logsumexp(-1, keepdim=True)).sum(-1) + norm


class RelaxedBernoulli(TransformedDistribution):
    """The distribution on (0, 1) of a trial that has not quite been decided.

    Args:
        temperature: towards 0 the samples approach 0 and 1.
    """

    arg_constraints = {"probs": constraints.unit_interval, "logits": constraints.real}
    support = constraints.unit_interval
    has_rsample = True
    base_dist: LogitRelaxedBernoulli

    def __init__(
        self, temperature: Tensor | float, probs: Tensor | float | None = None,
        logits: Tensor | float | None = None, validate_args: bool | None = None,
    ) -> None:  # fmt: skip
        base = LogitRelaxedBernoulli(temperature, probs, logits)
        super().__init__(base, SigmoidTransform(), validate_args=validate_args)

    @property
    def temperature(self) -> Tensor:
        """Return how undecided the samples are."""
        return self.base_dist.temperature

    @property
    def probs(self) -> Tensor:
        """Return the probabilities."""
        return self.base_dist.probs

    @property
    def logits(self) -> Tensor:
        """Return the log odds."""
        return self.base_dist.logits


class RelaxedOneHotCategorical(TransformedDistribution):
    """The distribution of one-hot vectors that have not quite been decided.

    Args:
        temperature: towards 0 the samples approach one-hot vectors.
    """

    arg_constraints = {"probs": constraints.simplex, "logits": constraints.real_vector}
    support = constraints.simplex
    has_rsample = True
    base_dist: ExpRelaxedCategorical

    def __init__(
        self, temperature: Tensor | float, probs: Tensor | None = None,
        logits: Tensor | None = None, validate_args: bool | None = None,
    ) -> None:  # fmt: skip
        base = ExpRelaxedCategorical(temperature, probs, logits, validate_args=validate_args)
        super().__init__(base, ExpTransform(), validate_args=validate_args)

    @property
    def temperature(self) -> Tensor:
        """Return how undecided the samples are."""
        return self.base_dist.temperature

    @property
    def probs(self) -> Tensor:
        """Return the probabilities of the categories."""
        return self.base_dist.probs

    @property
    def logits(self) -> Tensor:
        """Return the logarithms of the probabilities."""
        return self.base_dist.logits
