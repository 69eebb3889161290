"""``biject_to`` and ``transform_to``: transforms from all real numbers to a constraint.

``biject_to`` gives bijections, for densities; ``transform_to`` gives maps onto the region, which
may have more inputs than needed, for optimisation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distgrad.distributions import constraints, transforms
from distgrad.distributions.constraints import Constraint
from distgrad.distributions.transforms import Transform
from distgrad.errors import ArgumentTypeError

__all__ = ["ConstraintRegistry", "biject_to", "transform_to"]

Factory = Callable[[Any], Transform]


class ConstraintRegistry:
    """A table from classes of constraints to functions that make their transforms."""

    def __init__(self) -> None:
        self._registry: dict[type[Constraint], Factory] = {}

    def register(self, constraint: Any, factory: Factory | None = None) -> Any:
        """Register a function of a constraint, for its class; also as a decorator.

        Raises:
            ArgumentTypeError: what is given is neither a constraint nor a class of them.
        """
        if factory is None:
            return lambda factory: self.register(constraint, factory)
        kind = type(constraint) if isinstance(constraint, Constraint) else constraint
        if not isinstance(kind, type) or not issubclass(kind, Constraint):
            raise ArgumentTypeError(
                "register(): Expected constraint to be either a Constraint subclass or instance, "
                f"but got {constraint}"
            )
        self._registry[kind] = factory
        return factory

    def __call__(self, constraint: Constraint) -> Transform:
        """Return the transform to a constraint."""
        try:
            factory = self._registry[type(constraint)]
        except KeyError:
            raise NotImplementedError(
                f"Cannot transform {type(constraint).__name__} constraints"
            ) from None
        return factory(constraint)


biject_to = ConstraintRegistry()
transform_to = ConstraintRegistry()


def _register(constraint: Any, *registries: ConstraintRegistry) -> Callable[[Factory], Factory]:
    def decorate(factory: Factory) -> Factory:
        for registry in registries or (biject_to, transform_to):
            registry.register(constraint, factory)
        return factory

    return decorate


@_register(constraints.real)
def _to_real(constraint: Any) -> Transform:
    return transforms.identity_transform


def _register_composed(registry: ConstraintRegistry) -> None:
    """Register what is made of other constraints, whose transforms come from the same registry."""

    @_register(constraints.independent, registry)
    def _to_independent(constraint: Any) -> Transform:
        base = registry(constraint.base_constraint)
        return transforms.IndependentTransform(base, constraint.reinterpreted_batch_ndims)

    @_register(constraints.cat, registry)
    def _to_cat(constraint: Any) -> Transform:
        each = [registry(c) for c in constraint.cseq]
        return transforms.CatTransform(each, constraint.dim, constraint.lengths)

    @_register(constraints.stack, registry)
    def _to_stack(constraint: Any) -> Transform:
        each = [registry(c) for c in constraint.cseq]
        return transforms.StackTransform(each, constraint.dim)


_register_composed(biject_to)
_register_composed(transform_to)


@_register(constraints.greater_than_eq)
@_register(constraints.greater_than)
def _to_above(constraint: Any) -> Transform:
    shift = transforms.AffineTransform(constraint.lower_bound, 1)
    return transforms.ComposeTransform([transforms.ExpTransform(), shift])


@_register(constraints.less_than)
def _to_below(constraint: Any) -> Transform:
    turn = transforms.AffineTransform(constraint.upper_bound, -1)
    return transforms.ComposeTransform([transforms.ExpTransform(), turn])


@_register(constraints.half_open_interval)
@_register(constraints.interval)
def _to_interval(constraint: Any) -> Transform:
    low, high = constraint.lower_bound, constraint.upper_bound
    if isinstance(low, int | float) and isinstance(high, int | float) and (low, high) == (0, 1):
        return transforms.SigmoidTransform()
    stretch = transforms.AffineTransform(low, high - low)
    return transforms.ComposeTransform([transforms.SigmoidTransform(), stretch])


@_register(constraints.simplex, biject_to)
def _by_stick(constraint: Any) -> Transform:
    return transforms.StickBreakingTransform()


@_register(constraints.simplex, transform_to)
def _by_softmax(constraint: Any) -> Transform:
    return transforms.SoftmaxTransform()


@_register(constraints.lower_cholesky, transform_to)
def _to_lower_cholesky(constraint: Any) -> Transform:
    return transforms.LowerCholeskyTransform()


@_register(constraints.positive_definite, transform_to)
@_register(constraints.positive_semidefinite, transform_to)
def _to_positive_definite(constraint: Any) -> Transform:
    return transforms.PositiveDefiniteTransform()


@_register(constraints.corr_cholesky)
def _to_corr_cholesky(constraint: Any) -> Transform:
    return transforms.CorrCholeskyTransform()
