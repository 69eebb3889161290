"""All parameters as one vector, and back."""

from __future__ import annotations

from collections.abc import Iterable

from distgrad.errors import DeviceError, ShapeError
from distgrad.ops.join import cat
from distgrad.ops.shape import reshape
from distgrad.tensor import Tensor


def parameters_to_vector(parameters: Iterable[Tensor]) -> Tensor:
    """Return all parameters flattened and joined; recorded."""
    members = list(parameters)
    if len({p.device for p in members}) > 1:
        raise DeviceError(
            "parameters_to_vector(): Found two parameters on different devices, this is currently "
            "not supported; move the module to one device first"
        )
    return cat([reshape(p, (-1,)) for p in members])


def vector_to_parameters(vec: Tensor, parameters: Iterable[Tensor]) -> None:
    """Give the parameters, one after the other, the elements of ``vec`` as their memory."""
    members = list(parameters)
    needed = sum(p.array.size for p in members)
    if vec.array.ndim != 1 or vec.array.size < needed:
        raise ShapeError(
            f"vector_to_parameters(vec: {vec._brief()}): the parameters have {needed} elements; "
            "pass a vector of as many"
        )
    start = 0
    for p in members:
        end = start + p.array.size
        p.array = vec.array[start:end].reshape(p.array.shape)
        start = end
