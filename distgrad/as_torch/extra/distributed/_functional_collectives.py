"""Collectives that return a new tensor, as PyTorch's compiler wants them."""

from __future__ import annotations

from typing import Any

from distgrad.distributed import collectives
from distgrad.distributed.nn import functional as differentiable
from distgrad.ops.create import empty
from distgrad.ops.join import cat
from distgrad.tensor import Tensor

__all__ = [
    "AsyncCollectiveTensor",
    "all_gather_tensor",
    "all_reduce",
    "all_to_all_single_autograd",
    "wait_tensor",
]


class AsyncCollectiveTensor(Tensor):
    """A result that is not there yet; nothing here is one, as each call waits."""


def wait_tensor(tensor: Tensor) -> Tensor:
    """Return ``tensor``, which is complete."""
    return tensor


def all_reduce(self: Tensor, reduceOp: Any, group: Any, tag: str = "") -> Tensor:
    """Return the reduction over all ranks."""
    out: Tensor = self.detach().clone()
    collectives.all_reduce(out, reduceOp, group=group)
    return out


def all_to_all_single_autograd(
    self: Tensor,
    output_split_sizes: list[int] | None,
    input_split_sizes: list[int] | None,
    group: Any,
    tag: str = "",
) -> Tensor:
    """Return the parts that all ranks have for this one; gradients go the way back."""
    size = sum(output_split_sizes) if output_split_sizes else self.shape[0]
    out = empty((size, *self.shape[1:]), dtype=self.dtype)
    return differentiable.all_to_all_single(
        out, self, output_split_sizes, input_split_sizes, group=group
    )


def all_gather_tensor(self: Tensor, gather_dim: int, group: Any, tag: str = "") -> Tensor:
    """Return the tensors of all ranks joined along ``gather_dim``."""
    from distgrad.distributed import get_world_size  # asked when called: the group may be new

    parts = [empty(self.shape, dtype=self.dtype) for _ in range(get_world_size(group))]
    collectives.all_gather(parts, self, group=group)
    return cat(parts, gather_dim)
