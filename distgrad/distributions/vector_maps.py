"""Transforms to proportions and to matrices, and transforms side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from distgrad.backend.dtype import finfo
from distgrad.distributions import constraints
from distgrad.distributions.maps import Transform
from distgrad.distributions.utils import tril_matrix_to_vec, vec_to_tril_matrix
from distgrad.errors import ArgumentError
from distgrad.ops.activation import logsigmoid, softmax, softplus
from distgrad.ops.arrange import diag_embed, pad
from distgrad.ops.join import cat, stack
from distgrad.ops.ranges import arange, eye
from distgrad.ops.shape import diagonal
from distgrad.ops.triangular import cholesky
from distgrad.tensor import Size

__all__ = [
    "CatTransform", "CorrCholeskyTransform", "LowerCholeskyTransform",
    "PositiveDefiniteTransform", "SoftmaxTransform", "StackTransform", "StickBreakingTransform",
]  # fmt: skip


class SoftmaxTransform(Transform):
    """Softmax over the last dimension; its inverse is the logarithm."""

    domain, codomain = constraints.real_vector, constraints.simplex

    def _call(self, x: Any) -> Any:
        return softmax(x, -1)

    def _inverse(self, y: Any) -> Any:
        return y.log()

    def forward_shape(self, shape: Sequence[int]) -> Size:
        return _demand(shape, 1)

    def inverse_shape(self, shape: Sequence[int]) -> Size:
        return _demand(shape, 1)


def _demand(shape: Sequence[int], dims: int) -> Size:
    if len(shape) < dims:
        raise ArgumentError("Too few dimensions on input")
    return Size(shape)


class StickBreakingTransform(Transform):
    """Proportions by breaking off parts of what is left of a stick, from n - 1 numbers to n."""

    domain, codomain = constraints.real_vector, constraints.simplex
    bijective = True

    def _parts_after(self, n: int, like: Any) -> Any:
        """Return how many parts each break leaves: n, …, 2, 1."""
        return arange(n, 0, -1, dtype=like.dtype, device=like.device)

    def _call(self, x: Any) -> Any:
        broken = (x - self._parts_after(x.shape[-1], x).log()).sigmoid()
        left = (1 - broken).cumprod(-1)
        return pad(broken, [0, 1], value=1) * pad(left, [1, 0], value=1)

    def _inverse(self, y: Any) -> Any:
        first = y[..., :-1]
        left = (1 - first.cumsum(-1)).clamp(min=finfo(y.dtype).tiny)
        return first.log() - left.log() + self._parts_after(first.shape[-1], y).log()

    def log_abs_det_jacobian(self, x: Any, y: Any) -> Any:
        x = x - self._parts_after(x.shape[-1], x).log()
        return (logsigmoid(x) - x + y[..., :-1].log()).sum(-1)

    def forward_shape(self, shape: Sequence[int]) -> Size:
        shape = _demand(shape, 1)
        return Size((*shape[:-1], shape[-1] + 1))

    def inverse_shape(self, shape: Sequence[int]) -> Size:
        shape = _demand(shape, 1)
        return Size((*shape[:-1], shape[-1] - 1))


class CorrCholeskyTransform(Transform):
    """Cholesky factors of correlation matrices, from n (n - 1) / 2 numbers to n × n.

    Each row is broken off the unit ball, as a stick whose parts have signs, in tanh of the numbers.
    """

    domain, codomain = constraints.real_vector, constraints.corr_cholesky
    bijective = True

    def _call(self, x: Any) -> Any:
        eps = finfo(x.dtype).eps
        r = vec_to_tril_matrix(x.tanh().clamp(min=-1 + eps, max=1 - eps), diag=-1)
        left = (1 - r**2).sqrt().cumprod(-1)
        r = r + eye(r.shape[-1], dtype=r.dtype, device=r.device)
        return r * pad(left[..., :-1], [1, 0], value=1)

    def _inverse(self, y: Any) -> Any:
        left = (1 - (y * y).cumsum(-1))[..., :-1]
        row = tril_matrix_to_vec(y, diag=-1)
        left = tril_matrix_to_vec(pad(left, [1, 0], value=1), diag=-1)
        return (row / left.sqrt()).atanh()

    def log_abs_det_jacobian(self, x: Any, y: Any) -> Any:
        # Row i has the slopes of tanh times the square roots of what was left before each element.
        left = 1 - (y * y).cumsum(-1)
        stick = tril_matrix_to_vec(left, diag=-2)
        slopes = -2 * (x + softplus(-2 * x) - math.log(2))
        return 0.5 * stick.log().sum(-1) + slopes.sum(-1)

    def forward_shape(self, shape: Sequence[int]) -> Size:
        count = _demand(shape, 1)[-1]
        n = round((0.25 + 2 * count) ** 0.5 + 0.5)
        if n * (n - 1) // 2 != count:
            raise ArgumentError("Input is not a flattened lower-diagonal number")
        return Size((*shape[:-1], n, n))

    def inverse_shape(self, shape: Sequence[int]) -> Size:
        n = _demand(shape, 2)[-1]
        if shape[-2] != n:
            raise ArgumentError("Input is not square")
        return Size((*shape[:-2], n * (n - 1) // 2))


class LowerCholeskyTransform(Transform):
    """Lower triangles with positive diagonals, from matrices: exp of the diagonal."""

    domain, codomain = constraints.independent(constraints.real, 2), constraints.lower_cholesky

    def _call(self, x: Any) -> Any:
        return x.tril(-1) + diag_embed(diagonal(x, 0, -2, -1).exp())

    def _inverse(self, y: Any) -> Any:
        return y.tril(-1) + diag_embed(diagonal(y, 0, -2, -1).log())


class PositiveDefiniteTransform(Transform):
    """Positive definite matrices, from matrices: the product of a lower Cholesky factor."""

    domain, codomain = constraints.independent(constraints.real, 2), constraints.positive_definite

    def _call(self, x: Any) -> Any:
        factor = LowerCholeskyTransform()(x)
        return factor @ factor.mT

    def _inverse(self, y: Any) -> Any:
        return LowerCholeskyTransform().inv(cholesky(y))


class _SideBySide(Transform):
    """Transforms of parts along a dimension."""

    transforms: list[Transform]
    dim: int

    @property
    def bijective(self) -> Any:
        return all(t.bijective for t in self.transforms)

    def _same(self) -> tuple[Any, ...]:
        return self.transforms, self.dim


class CatTransform(_SideBySide):
    """Transforms of parts of given lengths along a dimension."""

    def __init__(
        self, tseq: Sequence[Transform], dim: int = 0, lengths: Sequence[int] | None = None,
        cache_size: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(cache_size)
        self.transforms = [t.with_cache(cache_size) for t in tseq]
        self.dim = dim
        self.lengths = [1] * len(self.transforms) if lengths is None else list(lengths)
        if len(self.lengths) != len(self.transforms):
            raise AssertionError(
                f"CatTransform: {len(self.transforms)} transforms, {len(self.lengths)} lengths"
            )

    @property
    def event_dim(self) -> int:
        return max(int(t.event_dim) for t in self.transforms)

    @property
    def length(self) -> int:
        """Return the length of all parts together."""
        return sum(self.lengths)

    @property
    def domain(self) -> Any:
        return constraints.cat([t.domain for t in self.transforms], self.dim, self.lengths)

    @property
    def codomain(self) -> Any:
        return constraints.cat([t.codomain for t in self.transforms], self.dim, self.lengths)

    def with_cache(self, cache_size: int = 1) -> Transform:
        if self._cache_size == cache_size:
            return self
        return CatTransform(self.transforms, self.dim, self.lengths, cache_size)

    def _split(self, x: Any) -> Sequence[Any]:
        if not -x.dim() <= self.dim < x.dim() or x.shape[self.dim] != self.length:
            raise AssertionError(
                f"CatTransform: {tuple(x.shape)} has not {self.length} elements along {self.dim}"
            )
        parts: Sequence[Any] = x.split(self.lengths, self.dim)
        return parts

    def _call(self, x: Any) -> Any:
        pairs = zip(self.transforms, self._split(x), strict=True)
        return cat([t(part) for t, part in pairs], self.dim)

    def _inverse(self, y: Any) -> Any:
        pairs = zip(self.transforms, self._split(y), strict=True)
        return cat([t.inv(part) for t, part in pairs], self.dim)

    def log_abs_det_jacobian(self, x: Any, y: Any) -> Any:
        changes = []
        for t, before, after in zip(self.transforms, self._split(x), self._split(y), strict=True):
            change = t.log_abs_det_jacobian(before, after)
            more = self.event_dim - t.event_dim
            changes.append(change.flatten(change.ndim - more).sum(-1) if more else change)
        dim = self.dim if self.dim < 0 else self.dim - x.dim()
        if dim + self.event_dim < 0:
            return cat(changes, dim + self.event_dim)
        return sum(changes)


class StackTransform(_SideBySide):
    """A transform for each element of a dimension."""

    def __init__(self, tseq: Sequence[Transform], dim: int = 0, cache_size: int = 0) -> None:
        super().__init__(cache_size)
        self.transforms = [t.with_cache(cache_size) for t in tseq]
        self.dim = dim

    @property
    def domain(self) -> Any:
        return constraints.stack([t.domain for t in self.transforms], self.dim)

    @property
    def codomain(self) -> Any:
        return constraints.stack([t.codomain for t in self.transforms], self.dim)

    def with_cache(self, cache_size: int = 1) -> Transform:
        if self._cache_size == cache_size:
            return self
        return StackTransform(self.transforms, self.dim, cache_size)

    def _split(self, x: Any) -> Sequence[Any]:
        if not -x.dim() <= self.dim < x.dim() or x.shape[self.dim] != len(self.transforms):
            raise AssertionError(
                f"StackTransform: {tuple(x.shape)} has not {len(self.transforms)} elements along "
                f"{self.dim}"
            )
        parts: Sequence[Any] = x.unbind(self.dim)
        return parts

    def _call(self, x: Any) -> Any:
        pairs = zip(self.transforms, self._split(x), strict=True)
        return stack([t(part) for t, part in pairs], self.dim)

    def _inverse(self, y: Any) -> Any:
        pairs = zip(self.transforms, self._split(y), strict=True)
        return stack([t.inv(part) for t, part in pairs], self.dim)

    def log_abs_det_jacobian(self, x: Any, y: Any) -> Any:
        parts = zip(self.transforms, self._split(x), self._split(y), strict=True)
        return stack([t.log_abs_det_jacobian(a, b) for t, a, b in parts], self.dim)
