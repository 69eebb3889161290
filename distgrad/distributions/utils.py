"""What distributions share: parameters that broadcast, lazy properties, probabilities, logits."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from numbers import Number
from typing import Any, Generic, TypeVar

from distgrad.autograd.mode import enable_grad
from distgrad.backend.dtype import finfo, get_default_dtype
from distgrad.errors import ArgumentError
from distgrad.ops.activation import softmax
from distgrad.ops.create import empty, tensor, zeros
from distgrad.ops.random import rand
from distgrad.ops.ranges import arange
from distgrad.ops.shape import broadcast_tensors
from distgrad.tensor import Tensor

__all__ = [
    "broadcast_all", "clamp_probs", "lazy_property", "logits_to_probs", "probs_to_logits",
    "tril_matrix_to_vec", "vec_to_tril_matrix",
]  # fmt: skip


T = TypeVar("T")


class lazy_property(Generic[T]):
    """An attribute that is worked out when it is first asked for, and kept.

    Example:
        >>> class Square:
        ...     side = 3
        ...     area = lazy_property(lambda self: self.side**2)
        >>> Square().area
        9
    """

    def __init__(self, wrapped: Callable[[Any], T]) -> None:
        self.wrapped = wrapped
        self.__doc__ = wrapped.__doc__
        self.name = wrapped.__name__

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, instance: Any, owner: Any = None) -> T:
        if instance is None:
            return self  # type: ignore[return-value]  # on the class: the property itself
        with enable_grad():
            value = self.wrapped(instance)
        setattr(instance, self.name, value)
        return value


def as_tensors(*values: Any) -> tuple[Tensor, ...]:
    """Return tensors and numbers as tensors: numbers in the dtype of the first tensor."""
    if not all(isinstance(v, Tensor | Number) for v in values):
        kinds = ", ".join(type(v).__name__ for v in values)
        raise ArgumentError(
            f"broadcast_all({kinds}): Input arguments must all be instances of Number or Tensor"
        )
    first = next((v for v in values if isinstance(v, Tensor)), None)
    form: dict[str, Any] = {"dtype": get_default_dtype()}
    if first is not None:
        form = {"dtype": first.dtype, "device": first.device}
    return tuple(v if isinstance(v, Tensor) else tensor(v, **form) for v in values)


def broadcast_all(*values: Any) -> tuple[Tensor, ...]:
    """Return tensors and numbers as tensors of one shape.

    Example:
        >>> [t.shape for t in broadcast_all(tensor([1.0, 2.0]), 3)]
        [distgrad.Size([2]), distgrad.Size([2])]
    """
    return tuple(broadcast_tensors(*as_tensors(*values)))


def clamp_probs(probs: Tensor) -> Tensor:
    """Return probabilities at least the precision of their dtype away from 0 and 1."""
    eps = finfo(probs.dtype).eps
    return probs.clamp(min=eps, max=1 - eps)


def logits_to_probs(logits: Tensor, is_binary: bool = False) -> Tensor:
    """Return the probabilities of log odds, or of unnormalised log probabilities."""
    return logits.sigmoid() if is_binary else softmax(logits, -1)


def probs_to_logits(probs: Tensor, is_binary: bool = False) -> Tensor:
    """Return the log odds of probabilities, or their logarithms; finite at 0 and 1."""
    clamped = clamp_probs(probs)
    return clamped.log() - (-clamped).log1p() if is_binary else clamped.log()


def tril_matrix_to_vec(mat: Tensor, diag: int = 0) -> Tensor:
    """Return the elements of lower triangles, row by row, as vectors.

    Args:
        diag: the highest diagonal that is taken.
    """
    n = mat.shape[-1]
    if not -n <= diag < n:
        raise ArgumentError(
            f"tril_matrix_to_vec(diag={diag}): diag ({diag}) provided is outside [{-n}, {n - 1}]."
        )
    return mat[..., _lower(n, diag, mat)]


def vec_to_tril_matrix(vec: Tensor, diag: int = 0) -> Tensor:
    """Return matrices whose lower triangles hold the elements of vectors, row by row."""
    size = next(n for n in itertools.count() if _places(n, diag) >= vec.shape[-1])
    if _places(size, diag) != vec.shape[-1]:
        raise ArgumentError(
            f"vec_to_tril_matrix(diag={diag}): The size of last dimension is {vec.shape[-1]} which "
            "cannot be expressed as the lower triangular part of a square D x D matrix."
        )
    out = zeros(*vec.shape[:-1], size, size, dtype=vec.dtype, device=vec.device)
    out[..., _lower(size, diag, vec)] = vec
    return out


def _places(n: int, diag: int) -> int:
    """Return how many places of a square matrix lie on or below a diagonal."""
    return sum(min(max(row + diag + 1, 0), n) for row in range(n))


def _lower(n: int, diag: int, like: Tensor) -> Tensor:
    """Return which places of a square matrix lie on or below a diagonal."""
    at = arange(n, device=like.device)
    return at <= at.unsqueeze(-1) + diag


def blank(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a new tensor, to be filled with samples."""
    return empty(shape, dtype=like.dtype, device=like.device)


def random_normal(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Return samples of the standard normal distribution."""
    drawn: Tensor = blank(like, shape).normal_()
    return drawn


def random_uniform(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Return samples of the uniform distribution on [0, 1)."""
    return rand(shape, dtype=like.dtype, device=like.device)
