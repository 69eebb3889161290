"""Operations that PyTorch has under names of its own use, as they stand in exported programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from distgrad.autograd.declare import as_method
from distgrad.autograd.outputs import takes_out
from distgrad.errors import ShapeError
from distgrad.ops.activation import gelu, relu
from distgrad.ops.arrange import pad
from distgrad.ops.checks import widened
from distgrad.ops.compare import clamp
from distgrad.ops.fused_linear import linear_activation
from distgrad.ops.index import index_put
from distgrad.ops.join import cat
from distgrad.ops.masks import masked_fill
from distgrad.ops.matmul import addmm, is_layer
from distgrad.ops.norm import native_batch_norm
from distgrad.ops.shape import permute, reshape, wrap_dim
from distgrad.tensor import Tensor
from distgrad.typing import Number

__all__ = [
    "_addmm_activation", "_chunk_cat", "_native_batch_norm_legit", "_softmax_backward_data",
    "_unsafe_masked_index", "_unsafe_masked_index_put_accumulate",
]  # fmt: skip


@takes_out
def _addmm_activation(
    input: Tensor, mat1: Tensor, mat2: Tensor, *,
    beta: Number = 1, alpha: Number = 1, use_gelu: bool = False,
) -> Tensor:  # fmt: skip
    """Return ``relu(addmm(...))``, or ``gelu`` of it; with ReLU by one matrix product on a GPU.

    Differs from PyTorch:
        There are gradients.  GELU is the exact one on GPUs too, where PyTorch's is approximate.

    Example:
        >>> import distgrad as dg
        >>> _addmm_activation(dg.tensor([1.0, -5.0]), dg.ones(1, 3), dg.ones(3, 2))
        tensor([[4., 0.]])
    """
    if use_gelu:
        return gelu(addmm(input, mat1, mat2, beta=beta, alpha=alpha))
    if mat1.array.ndim == mat2.array.ndim == 2 and (beta, alpha) == (1, 1):
        if is_layer(input, mat1, mat2):
            return linear_activation(mat1, permute(mat2, (1, 0)), input, "relu")
    return relu(addmm(input, mat1, mat2, beta=beta, alpha=alpha))


as_method(_addmm_activation)


def _softmax_backward_data(
    grad_output: Tensor, output: Tensor, dim: int, input_dtype: Any
) -> Tensor:
    """Return the gradient of softmax's input, from those of its output and from the output."""
    grad_output, output = widened(grad_output), widened(output)
    product = grad_output * output
    return (product - output * product.sum(dim, keepdim=True)).to(input_dtype)


@takes_out
def _native_batch_norm_legit(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``native_batch_norm``.

    Args:
        settings: running_mean, running_var, training, momentum and eps, or the last three alone.
    """
    running = settings[:-3] or (None, None)
    return native_batch_norm(input, weight, bias, *running, *settings[-3:])


@takes_out
def _chunk_cat(tensors: Sequence[Tensor], dim: int, num_chunks: int) -> Tensor:
    """Return the tensors cut into chunks along ``dim``: the first of all, then the second, …

    Each is filled up with zeros to equal chunks, and these are laid flat from ``dim`` on.
    """
    if not tensors or num_chunks < 1:
        raise ShapeError(
            "_chunk_cat expects a non-empty input tensor list and positive num_chunks, but got "
            f"{len(tensors)} tensors and num_chunks={num_chunks}"
        )
    flat = []
    for tensor in tensors:
        if dim >= tensor.ndim or not tensor.numel():
            raise ShapeError(
                "_chunk_cat expects non-empty tensors and dim < ndim for all input tensors, but "
                f"got {tensor._brief()} and dim={dim}"
            )
        place, shape = wrap_dim(dim, tensor.ndim), list(tensor.array.shape)
        missing = -shape[place] % num_chunks
        whole = pad(tensor, [0, 0] * (tensor.ndim - place - 1) + [0, missing])
        rest = math.prod(whole.array.shape[place:]) // num_chunks
        flat.append(reshape(whole, (*shape[:place], num_chunks, rest)))
    return cat(flat, place + 1)


def _within(input: Tensor, indices: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Return indices brought into the range of their dimensions."""
    sizes = input.array.shape
    return tuple(
        i if i is None else clamp(i, -n, n - 1) for i, n in zip(indices, sizes, strict=False)
    )


def _unsafe_masked_index(
    input: Tensor, mask: Tensor, indices: Sequence[Tensor | None], fill: float
) -> Tensor:
    """Return ``input[indices]`` where the mask is true, else ``fill``; no index is refused."""
    places = tuple(slice(None) if i is None else i for i in _within(input, indices))
    return masked_fill(input[places], ~mask, fill)


def _unsafe_masked_index_put_accumulate(
    input: Tensor, mask: Tensor, indices: Sequence[Tensor | None], values: Tensor
) -> Tensor:
    """Return ``input`` with values added at ``indices`` where the mask is true."""
    return index_put(input, _within(input, indices), masked_fill(values, ~mask, 0), True)
