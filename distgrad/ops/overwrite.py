"""Writing over a whole tensor: zeros, one value, another tensor."""

from __future__ import annotations

import numpy

from distgrad.autograd.declare import as_method
from distgrad.autograd.inplace import assign, refuse_leaf
from distgrad.autograd.mode import mode
from distgrad.autograd.traced import Refused, is_traced
from distgrad.backend import pinned
from distgrad.backend.device import several_gpus, working_on
from distgrad.backend.dtype import checked_number
from distgrad.errors import ArgumentTypeError, ShapeError
from distgrad.ops import shape as _shapes
from distgrad.tensor import Tensor, shared_of, wrap
from distgrad.typing import Number, TensorLike

__all__ = ["copy_", "fill_", "zero_"]


def zero_(self: Tensor) -> Tensor:
    """Fill this tensor with zeros and return it."""
    refuse_leaf(self, "zero_")
    if mode.grad and self.requires_grad:
        return assign(self, _shapes.zero(self), "zero_")
    try:
        with working_on(self.array):
            self.array.fill(0)
    except Refused:
        return assign(self, _shapes.zero(self), "zero_")
    shared_of(self).bump()
    return self


def fill_(self: Tensor, value: Tensor | Number) -> Tensor:
    """Fill this tensor with one value (a number or a 0-d tensor) and return it."""
    refuse_leaf(self, "fill_")
    tracked = isinstance(value, Tensor) and value.requires_grad
    traced = is_traced((self,))
    if isinstance(value, Tensor) or traced or (mode.grad and (self.requires_grad or tracked)):
        return assign(self, _shapes.fill(self, value), "fill_")
    with working_on(self.array):
        self.array.fill(checked_number(value, self.array.dtype))
    shared_of(self).bump()
    return self


def copy_(self: Tensor, src: TensorLike, non_blocking: bool = False) -> Tensor:
    """Copy ``src`` into this tensor, with broadcasting and conversion, and return it.

    With ``non_blocking`` a copy between a GPU and page-locked memory, of one shape and dtype and
    contiguous, goes on beside other work; the host must wait for the stream before it reads.
    """
    refuse_leaf(self, "copy_")
    if isinstance(src, int | float | complex):
        src = wrap(numpy.asarray(src))
    if not isinstance(src, Tensor):
        raise ArgumentTypeError(
            f"copy_(): argument 'other' (position 1) must be Tensor, not {type(src).__name__}"
        )
    if mode.grad and (self.requires_grad or src.requires_grad):
        return assign(self, _shapes.copy(self, src), "copy_")
    try:
        same = type(src.array) is type(self.array)
        if non_blocking and not same and pinned.start(self.array, src.array):
            shared_of(self).bump()
            return self
        with working_on(self.array):
            here = same and not several_gpus()
            self.array[...] = src.array if here else src.to(self.device).array
    except Refused:
        return assign(self, _shapes.copy(self, src), "copy_")
    except ValueError as error:
        raise ShapeError(
            f"copy_({self._brief()}, src: {src._brief()}): The size of src does not broadcast to "
            f"{list(self.array.shape)}; reshape or expand it first"
        ) from error
    shared_of(self).bump()
    return self


for _function in (zero_, fill_, copy_):
    as_method(_function)
del _function
