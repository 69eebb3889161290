"""Distributions made of others: independent events, transforms and mixtures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distgrad.autograd.mode import no_grad
from distgrad.distributions import constraints
from distgrad.distributions.categorical import Categorical
from distgrad.distributions.distribution import Distribution
from distgrad.distributions.transforms import ComposeTransform, Transform
from distgrad.errors import ArgumentError
from distgrad.ops.activation import log_softmax
from distgrad.ops.scatter import gather
from distgrad.tensor import Size, Tensor

__all__ = ["Independent", "MixtureSameFamily", "TransformedDistribution"]


def sum_last(value: Tensor, dims: int) -> Tensor:
    """Return the sum over the last dimensions."""
    return value.flatten(value.ndim - dims).sum(-1) if dims else value


class Independent(Distribution):
    """A distribution of whose batch dimensions the last belong to the event.

    Args:
        reinterpreted_batch_ndims: how many.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    base_dist: Distribution

    def __init__(
        self, base_distribution: Distribution, reinterpreted_batch_ndims: int,
        validate_args: bool | None = None,
    ) -> None:  # fmt: skip
        batch = base_distribution.batch_shape
        if reinterpreted_batch_ndims > len(batch):
            raise ArgumentError(
                "Expected reinterpreted_batch_ndims <= len(base_distribution.batch_shape), actual "
                f"{reinterpreted_batch_ndims} vs {len(batch)}"
            )
        cut = len(batch) - reinterpreted_batch_ndims
        self.base_dist = base_distribution
        self.reinterpreted_batch_ndims = reinterpreted_batch_ndims
        event = batch[cut:] + base_distribution.event_shape
        super().__init__(batch[:cut], event, validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Any:
        inner = self._event_shape[: self.reinterpreted_batch_ndims]
        base = self.base_dist.expand(Size(batch_shape) + inner)
        new = type(self).__new__(type(self)) if _instance is None else _instance
        new.__dict__.update(self.__dict__)
        new.base_dist, new._batch_shape = base, Size(batch_shape)
        return new

    @property
    def has_rsample(self) -> Any:
        return self.base_dist.has_rsample

    @property
    def has_enumerate_support(self) -> Any:
        return not self.reinterpreted_batch_ndims and self.base_dist.has_enumerate_support

    @constraints.dependent_property
    def support(self) -> Any:
        """Return the support of the base, of more dimensions."""
        support, more = self.base_dist.support, self.reinterpreted_batch_ndims
        return constraints.independent(support, more) if more else support

    @property
    def mean(self) -> Tensor:
        return self.base_dist.mean

    @property
    def mode(self) -> Tensor:
        return self.base_dist.mode

    @property
    def variance(self) -> Tensor:
        return self.base_dist.variance

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.base_dist.sample(sample_shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.base_dist.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return sum_last(self.base_dist.log_prob(value), self.reinterpreted_batch_ndims)

    def entropy(self) -> Tensor:
        return sum_last(self.base_dist.entropy(), self.reinterpreted_batch_ndims)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        if self.reinterpreted_batch_ndims:
            raise NotImplementedError("Enumeration over cartesian product is not implemented")
        return self.base_dist.enumerate_support(expand)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_dist}, {self.reinterpreted_batch_ndims})"


class TransformedDistribution(Distribution):
    """The distribution of ``t(x)`` for ``x`` of a base distribution and transforms ``t``."""

    arg_constraints: dict[str, constraints.Constraint] = {}
    base_dist: Distribution
    transforms: list[Transform]

    def __init__(
        self, base_distribution: Distribution, transforms: Transform | Sequence[Transform],
        validate_args: bool | None = None,
    ) -> None:  # fmt: skip
        parts = [transforms] if isinstance(transforms, Transform) else transforms
        if not isinstance(parts, list | tuple) or not all(isinstance(t, Transform) for t in parts):
            raise ArgumentError(f"transforms must be a Transform or list, but was {transforms}")
        self.transforms = list(parts)
        whole, base = ComposeTransform(self.transforms), base_distribution
        shape, events = base.batch_shape + base.event_shape, len(base.event_shape)
        if len(shape) < whole.domain.event_dim:
            raise ArgumentError(
                "base_distribution needs to have shape with size at least "
                f"{whole.domain.event_dim}, but got {shape}."
            )
        after = whole.forward_shape(shape)
        before = whole.inverse_shape(after)
        if before != shape:
            base = base.expand(before[: len(before) - events])
        more = whole.domain.event_dim - events
        self.base_dist = Independent(base, more) if more > 0 else base
        grown = events + whole.codomain.event_dim - whole.domain.event_dim
        cut = len(after) - max(whole.codomain.event_dim, grown)
        super().__init__(after[:cut], after[cut:], validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Any:
        shape = ComposeTransform(self.transforms).inverse_shape(
            Size(batch_shape) + self._event_shape
        )
        cut = len(shape) - len(self.base_dist.event_shape)
        new = type(self).__new__(type(self)) if _instance is None else _instance
        new.__dict__.update(self.__dict__)
        new.base_dist, new._batch_shape = self.base_dist.expand(shape[:cut]), Size(batch_shape)
        return new

    @property
    def has_rsample(self) -> Any:
        return self.base_dist.has_rsample

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:
        """Return the codomain of the last transform."""
        if not self.transforms:
            return self.base_dist.support
        support = self.transforms[-1].codomain
        more = len(self._event_shape) - support.event_dim
        return constraints.independent(support, more) if more > 0 else support

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with no_grad():
            return self._mapped(self.base_dist.sample(sample_shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self._mapped(self.base_dist.rsample(sample_shape))

    def _mapped(self, value: Tensor) -> Tensor:
        for transform in self.transforms:
            value = transform(value)
        return value

    def _unmapped(self, value: Tensor) -> Tensor:
        for transform in reversed(self.transforms):
            value = transform.inv(value)
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        y, dims = self._checked(value), len(self._event_shape)
        total: Tensor | float = 0.0
        for transform in reversed(self.transforms):
            x = transform.inv(y)
            dims += transform.domain.event_dim - transform.codomain.event_dim
            change = transform.log_abs_det_jacobian(x, y)
            total = total - sum_last(change, dims - transform.domain.event_dim)
            y = x
        inner = self.base_dist.log_prob(y)
        return total + sum_last(inner, dims - len(self.base_dist.event_shape))

    def _upwards(self, probability: Tensor) -> Tensor:
        """Return probabilities from the other end, where the transforms turn the line around."""
        sign = ComposeTransform(self.transforms).sign
        if isinstance(sign, int) and sign == 1:
            return probability
        turned: Tensor = sign * (probability - 0.5) + 0.5
        return turned

    def cdf(self, value: Tensor) -> Tensor:
        value = self._unmapped(self._checked(value))
        return self._upwards(self.base_dist.cdf(value))

    def icdf(self, value: Tensor) -> Tensor:
        return self._mapped(self.base_dist.icdf(self._upwards(value)))


class MixtureSameFamily(Distribution):
    """A mixture of distributions of one family, which lie along its last batch dimension.

    Args:
        mixture_distribution: how likely each component is.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}

    def __init__(
        self, mixture_distribution: Categorical, component_distribution: Distribution,
        validate_args: bool | None = None,
    ) -> None:  # fmt: skip
        self._mixture_distribution = mixture_distribution
        self._component_distribution = component_distribution
        _check_mixture(mixture_distribution, component_distribution)
        self._num_component = component_distribution.batch_shape[-1]
        self._event_ndims = len(component_distribution.event_shape)
        batch = component_distribution.batch_shape[:-1]
        super().__init__(batch, component_distribution.event_shape, validate_args)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Any:
        batch = Size(batch_shape)
        new = type(self).__new__(type(self)) if _instance is None else _instance
        new.__dict__.update(self.__dict__)
        new._batch_shape = batch
        new._mixture_distribution = self._mixture_distribution.expand(batch)
        components = (*batch, self._num_component)
        new._component_distribution = self._component_distribution.expand(components)
        return new

    @constraints.dependent_property
    def support(self) -> Any:
        """Return the values that all components allow."""
        return constraints.MixtureSameFamilyConstraint(self._component_distribution.support)

    @property
    def mixture_distribution(self) -> Categorical:
        """Return how likely each component is."""
        return self._mixture_distribution

    @property
    def component_distribution(self) -> Distribution:
        """Return the components."""
        return self._component_distribution

    @property
    def _weights(self) -> Tensor:
        """Return the probabilities of the components, with dimensions for the event."""
        probs = self._mixture_distribution.probs
        return probs.reshape(*probs.shape, *[1] * self._event_ndims)

    @property
    def mean(self) -> Tensor:
        return (self._weights * self._component_distribution.mean).sum(-1 - self._event_ndims)

    @property
    def variance(self) -> Tensor:
        """Return the mean of the variances and the variance of the means."""
        dim, parts = -1 - self._event_ndims, self._component_distribution
        away = parts.mean - self.mean.unsqueeze(dim)
        return (self._weights * (parts.variance + away.pow(2))).sum(dim)

    def cdf(self, value: Tensor) -> Tensor:
        each = self._component_distribution.cdf(value.unsqueeze(-1 - self._event_ndims))
        return (each * self._mixture_distribution.probs).sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        value = self._checked(value).unsqueeze(-1 - self._event_ndims)
        each = self._component_distribution.log_prob(value)
        return (each + log_softmax(self._mixture_distribution.logits, -1)).logsumexp(-1)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with no_grad():
            chosen = self._mixture_distribution.expand(self._batch_shape).sample(sample_shape)
            drawn = self._component_distribution.sample(sample_shape)
            dim = len(sample_shape) + len(self._batch_shape)
            index = chosen.reshape(*chosen.shape, *[1] * (self._event_ndims + 1))
            index = index.expand(*chosen.shape, 1, *self._event_shape)
            return gather(drawn, dim, index).squeeze(dim)

    def __repr__(self) -> str:
        return (
            f"MixtureSameFamily(\n  {self._mixture_distribution!r},\n"
            f"  {self._component_distribution!r})"
        )


def _check_mixture(mixture: Any, components: Any) -> None:
    if not isinstance(mixture, Categorical):
        raise ArgumentError(
            " The Mixture distribution needs to be an instance of distributions.Categorical"
        )
    if not isinstance(components, Distribution):
        raise ArgumentError(
            "The Component distribution need to be an instance of distributions.Distribution"
        )
    batch, inner = mixture.batch_shape, components.batch_shape[:-1]
    pairs = zip(reversed(batch), reversed(inner), strict=False)
    if any(1 not in (a, b) and a != b for a, b in pairs):
        raise ArgumentError(
            f"`mixture_distribution.batch_shape` ({batch}) is not compatible with "
            f"`component_distribution.batch_shape`({inner})"
        )
    weights, count = mixture._num_events, components.batch_shape[-1]
    if weights != count:
        raise ArgumentError(
            f"`mixture_distribution component` ({weights}) does not equal "
            f"`component_distribution.batch_shape[-1]` ({count})"
        )
