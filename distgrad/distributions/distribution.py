"""``Distribution``: what all probability distributions have in common."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from distgrad.autograd.gradients import grad
from distgrad.autograd.mode import no_grad
from distgrad.distributions.constraints import Constraint, is_dependent
from distgrad.distributions.utils import as_tensors, lazy_property
from distgrad.errors import ArgumentError
from distgrad.ops.shape import broadcast_shapes
from distgrad.tensor import Size, Tensor

__all__ = ["Distribution", "ExponentialFamily"]


class Distribution:
    """A batch of probability distributions of events.

    A subclass names its parameters in ``arg_constraints`` and gives the region of samples as
    ``support``; from these come the checks, ``repr`` and ``expand``.

    Args:
        batch_shape: the shape of the batch of independent distributions.
        event_shape: the shape of one sample of one distribution.
        validate_args: check parameters and values against their constraints (default: yes, but
            not under ``python -O``).
    Attributes:
        has_rsample: samples have a gradient: `rsample` draws them.
        has_enumerate_support: `enumerate_support` lists all values.
    """

    has_rsample: Any = False
    has_enumerate_support: Any = False
    _validate_args: Any = __debug__
    #: Dimensions at the end of each parameter that belong to the event; 0 where not named.
    _event_dims: dict[str, int] = {}
    _batch_shape: Size
    _event_shape: Size

    @staticmethod
    def set_default_validate_args(value: bool) -> None:
        """Set whether distributions made from now on check their arguments."""
        if value not in (True, False):
            raise ArgumentError(f"set_default_validate_args({value!r}): pass True or False")
        Distribution._validate_args = value

    def __init__(
        self,
        batch_shape: Sequence[int] = (),
        event_shape: Sequence[int] = (),
        validate_args: bool | None = None,
    ) -> None:
        self._batch_shape, self._event_shape = Size(batch_shape), Size(event_shape)
        if validate_args is not None:
            self._validate_args = validate_args
        if self._validate_args:
            self._check_parameters()

    def _take(self, validate_args: bool | None, **parameters: Any) -> None:
        """Broadcast parameters, keep them as attributes, and finish the distribution.

        The event has the dimensions that ``_event_dims`` names of the first parameter.
        """
        tensors = as_tensors(*parameters.values())
        split = []
        for name, value in zip(parameters, tensors, strict=True):
            self._demand_dims(name, name, value)
            split.append(value.ndim - self._event_dims.get(name, 0))
        shapes = [t.shape[:at] for t, at in zip(tensors, split, strict=True)]
        batch = Size(broadcast_shapes(*shapes))
        for name, value, at in zip(parameters, tensors, split, strict=True):
            setattr(self, name, value.expand(*batch, *value.shape[at:]))
        Distribution.__init__(self, batch, tensors[0].shape[split[0] :], validate_args)

    def _demand_dims(self, title: str, name: str, value: Tensor) -> None:
        least = self._event_dims.get(name, 0)
        if value.ndim < least:
            words = {1: "one", 2: "two"}[least]
            raise ArgumentError(
                f"{type(self).__name__}({name}: {value._brief()}): {title} must be at least "
                f"{words}-dimensional"
            )

    def _check_parameters(self) -> None:
        try:
            constraints = self.arg_constraints
        except NotImplementedError:
            warnings.warn(
                f"{type(self)} does not define `arg_constraints`. Please set `arg_constraints = "
                "{}` or initialize the distribution with `validate_args=False` to turn off "
                "validation.",
                stacklevel=4,
            )
            return
        for name, constraint in constraints.items():
            lazy = isinstance(getattr(type(self), name, None), lazy_property)
            if is_dependent(constraint) or (lazy and name not in self.__dict__):
                continue
            value = getattr(self, name)
            if not bool(constraint.check(value).all()):
                raise ArgumentError(
                    f"Expected parameter {name} ({type(value).__name__} of shape "
                    f"{tuple(value.shape)}) of distribution {self!r} to satisfy the constraint "
                    f"{constraint!r}, but found invalid values:\n{value}"
                )

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> Any:
        """Return the distribution with its parameters expanded to a larger batch.

        Args:
            _instance: an object of a subclass to fill, in place of a new one.
        """
        batch = Size(batch_shape)
        new = type(self).__new__(type(self)) if _instance is None else _instance
        for name, value in self.__dict__.items():
            if isinstance(value, Distribution):
                value = value.expand(batch)
            elif isinstance(value, Tensor) and name in self.arg_constraints:
                at = value.ndim - self._event_dims.get(name, 0)
                value = value.expand(*batch, *value.shape[at:])
            new.__dict__[name] = value
        new._batch_shape = batch
        return new

    # ------------------------------------------------------------------ shapes
    @property
    def batch_shape(self) -> Size:
        """Return the shape of the batch of independent distributions."""
        return self._batch_shape

    @property
    def event_shape(self) -> Size:
        """Return the shape of one sample of one distribution."""
        return self._event_shape

    @property
    def _event_size(self) -> int:
        """Return the size of the last dimension of an event."""
        return int(self._event_shape[-1])

    def _extended_shape(self, sample_shape: Sequence[int] = ()) -> Size:
        return Size((*sample_shape, *self._batch_shape, *self._event_shape))

    # ------------------------------------------------------------------ what subclasses define
    def _missing(self, name: str) -> NoReturn:
        raise NotImplementedError(f"{type(self).__name__}.{name}: not defined for it")

    @property
    def arg_constraints(self) -> Any:
        """Return the constraints of the parameters by name."""
        self._missing("arg_constraints")

    @property
    def support(self) -> Any:
        """Return the constraint that samples satisfy."""
        self._missing("support")

    @property
    def mean(self) -> Tensor:
        """Return the expected value."""
        self._missing("mean")

    @property
    def mode(self) -> Tensor:
        """Return the most likely value."""
        self._missing("mode")

    @property
    def variance(self) -> Tensor:
        """Return the variance."""
        self._missing("variance")

    @property
    def stddev(self) -> Tensor:
        """Return the standard deviation."""
        return self.variance.sqrt()

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Return samples without gradient, of ``sample_shape + batch_shape + event_shape``."""
        with no_grad():
            return self.rsample(sample_shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Return samples that are differentiable by the parameters."""
        self._missing("rsample")

    def sample_n(self, n: int) -> Tensor:
        """Return ``n`` samples; ``sample((n,))`` is the newer form."""
        warnings.warn(
            "`sample_n(n)` will be deprecated. Use `sample((n,))` instead.",
            FutureWarning,
            stacklevel=2,
        )
        return self.sample((n,))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the logarithm of the density, or of the probability, of values."""
        self._missing("log_prob")

    def cdf(self, value: Tensor) -> Tensor:
        """Return the probability of at most ``value``."""
        self._missing("cdf")

    def icdf(self, value: Tensor) -> Tensor:
        """Return the quantiles of probabilities."""
        self._missing("icdf")

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Return all values of a discrete distribution along a new first dimension.

        Args:
            expand: repeat them over the batch; else its dimensions have size 1.
        """
        self._missing("enumerate_support")

    def entropy(self) -> Tensor:
        """Return the entropy in nats, one per distribution of the batch."""
        self._missing("entropy")

    def perplexity(self) -> Tensor:
        """Return ``exp(entropy)``."""
        return self.entropy().exp()

    # ------------------------------------------------------------------ help for subclasses
    def _validate_sample(self, value: Tensor) -> None:
        """Refuse values that are no events of this distribution."""
        if not isinstance(value, Tensor):
            raise ArgumentError("The value argument to log_prob must be a Tensor")
        shape, events = value.shape, len(self._event_shape)
        if shape[len(shape) - events :] != self._event_shape:
            raise ArgumentError(
                f"The right-most size of value must match event_shape: {shape} vs "
                f"{self._event_shape}."
            )
        expected = self._batch_shape + self._event_shape
        pairs = zip(reversed(shape), reversed(expected), strict=False)
        if any(i != j and 1 not in (i, j) for i, j in pairs):
            raise ArgumentError(
                f"Value is not broadcastable with batch_shape+event_shape: {shape} vs {expected}."
            )
        try:
            support: Constraint = self.support
        except NotImplementedError:
            warnings.warn(
                f"{type(self)} does not define `support` to enable sample validation. Please "
                "initialize the distribution with `validate_args=False` to turn off validation.",
                stacklevel=3,
            )
            return
        if not bool(support.check(value).all()):
            raise ArgumentError(
                f"Expected value argument ({type(value).__name__} of shape {tuple(shape)}) to be "
                f"within the support ({support!r}) of the distribution {self!r}, but found "
                f"invalid values:\n{value}"
            )

    def _checked(self, value: Tensor) -> Tensor:
        """Return ``value`` after validation, where it is on."""
        if self._validate_args:
            self._validate_sample(value)
        return value

    def __repr__(self) -> str:
        parts = []
        for name in self.arg_constraints:
            if name in self.__dict__:
                value = self.__dict__[name]
                parts.append(f"{name}: {value if value.numel() == 1 else value.shape}")
        return f"{type(self).__name__}({', '.join(parts)})"


class ExponentialFamily(Distribution):
    """Distributions with densities ``h(x) exp(<t(x), η> - A(η))`` of natural parameters η."""

    @property
    def _mean_carrier_measure(self) -> Any:
        """Return the expected value of log h(x)."""
        self._missing("entropy")

    @property
    def _natural_params(self) -> tuple[Tensor, ...]:
        self._missing("_natural_params")

    def _log_normalizer(self, *natural_params: Tensor) -> Tensor:
        self._missing("_log_normalizer")

    def entropy(self) -> Tensor:
        """Return the entropy ``A(η) - <η, A'(η)> - E[log h]``, with A' by differentiation."""
        natural = [p.detach().requires_grad_() for p in self._natural_params]
        log_normalizer = self._log_normalizer(*natural)
        slopes = grad(log_normalizer.sum(), natural, create_graph=True)
        result: Tensor = log_normalizer - self._mean_carrier_measure
        for parameter, slope in zip(natural, slopes, strict=True):
            inner = parameter * slope
            result = result - inner.reshape(*self._batch_shape, -1).sum(-1)
        return result
