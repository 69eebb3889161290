"""Samples of operands, from which every operation is tested.

A Sample says shapes and value ranges, no arrays, so that declaring costs nothing at import.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Spec(NamedTuple):
    """One operand: its shape and how its values are drawn."""

    shape: tuple[int, ...]
    low: float = -2.0
    high: float = 2.0
    kind: str = "uniform"  # uniform | distinct | int | bool | apart (no value near an integer)
    value: Any = None  # kind "given": nested lists

    def draw(self, rng: np.random.Generator) -> Any:
        """Return a float64, int64 or bool array of this description."""
        if self.kind == "given":
            return np.array(self.value)
        if self.kind == "int":
            return rng.integers(int(self.low), int(self.high), self.shape)
        if self.kind == "bool":
            return rng.integers(0, 2, self.shape).astype(bool)
        size = int(np.prod(self.shape))
        if self.kind == "distinct":  # no two values closer than a finite difference can see
            values = np.linspace(self.low, self.high, size) if size > 1 else np.full(size, 0.5)
            return rng.permutation(values).reshape(self.shape)
        x = rng.uniform(self.low, self.high, self.shape)
        if self.kind == "apart":
            frac = x - np.floor(x)
            x = np.floor(x) + np.clip(frac, 0.1, 0.9)
        return np.asarray(x)


def real(*shape: int) -> Spec:
    """Return an operand of any sign."""
    return Spec(shape)


def positive(*shape: int) -> Spec:
    """Return an operand in [0.5, 2]."""
    return Spec(shape, 0.5, 2.0)


def unit(*shape: int) -> Spec:
    """Return an operand in [-0.9, 0.9]."""
    return Spec(shape, -0.9, 0.9)


def between(low: float, high: float, *shape: int) -> Spec:
    """Return an operand in [low, high]."""
    return Spec(shape, low, high)


def distinct(*shape: int) -> Spec:
    """Return an operand without ties, and without values near zero for even sizes."""
    return Spec(shape, -2.0, 2.0, "distinct")


def apart(*shape: int) -> Spec:
    """Return an operand away from integers, where functions such as floor jump."""
    return Spec(shape, -2.9, 2.9, "apart")


def integers(high: int, *shape: int, low: int = 0) -> Spec:
    """Return an int64 operand in [low, high)."""
    return Spec(shape, low, high, "int")


def booleans(*shape: int) -> Spec:
    """Return a bool operand."""
    return Spec(shape, kind="bool")


def given(value: Any) -> Spec:
    """Return exactly this operand."""
    return Spec(np.shape(value), kind="given", value=value)


class Sample(NamedTuple):
    """The operands (None for an absent one, a list for a sequence) and options of one call."""

    operands: tuple[Spec | Sequence[Spec] | None, ...]
    options: dict[str, Any] = {}  # noqa: RUF012  (never written)


def case(*operands: Spec | Sequence[Spec] | None, **options: Any) -> Sample:
    """Return one sample."""
    return Sample(operands, options)


def unary(spec: Any = real) -> list[Sample]:
    """Return samples of one operand: a matrix, a scalar, an empty one."""
    return [case(spec(3, 4)), case(spec()), case(spec(0, 2))]


def broadcast_pairs(first: Any = real, second: Any = real) -> list[Sample]:
    """Return samples of two operands that broadcast."""
    shapes = [((3, 4), (3, 4)), ((3, 4), (4,)), ((2, 1), (1, 3)), ((), (2,)), ((), ())]
    return [case(first(*a), second(*b)) for a, b in shapes]


def reductions(spec: Any = real, **options: Any) -> list[Sample]:
    """Return samples with ``dim`` and ``keepdim`` in all their forms."""
    return [
        case(spec(3, 4), **options),
        case(spec(3, 4), dim=0, **options),
        case(spec(2, 3, 4), dim=(0, -1), **options),
        case(spec(2, 3, 4), dim=1, keepdim=True, **options),
        case(spec(), **options),
    ]


def along(spec: Any = real, **options: Any) -> list[Sample]:
    """Return samples with one ``dim``."""
    return [
        case(spec(3, 4), dim=1, **options),
        case(spec(2, 3, 4), dim=0, **options),
        case(spec(2, 3, 4), dim=-2, **options),
        case(spec(), dim=0, **options),
    ]
