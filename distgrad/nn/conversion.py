"""What conversions of modules are made of: arguments of ``to``, parameters and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from distgrad.backend import dtype as dtypes
from distgrad.backend.device import device as Device
from distgrad.errors import ArgumentTypeError, DeviceError
from distgrad.nn.parameter import Parameter, UninitializedTensorMixin
from distgrad.tensor import Tensor, wrap

__all__ = ["convert_parameter", "no_device", "parse_to", "zero_gradient"]


def convert_parameter(param: Parameter, fn: Callable[[Tensor], Tensor]) -> None:
    """Replace the memory of ``param`` and of its gradient by ``fn`` of it."""
    if isinstance(param, UninitializedTensorMixin):
        param.convert(fn)
        return
    before = param.array
    param.array = fn(wrap(before)).array
    if param.array is before:
        return
    param.__dict__.pop("_grad_buffer", None)  # it lies in the old memory
    if param.grad is not None:
        param.grad = fn(param.grad.detach())


def zero_gradient(param: Tensor, set_to_none: bool) -> None:
    """Drop ``param.grad``, or fill it with zeros."""
    grad = param.grad
    if grad is None:
        return
    if set_to_none:
        param.grad = None
        return
    if grad._node is not None or grad.requires_grad:
        grad = param.grad = grad.detach()
    grad.array[...] = 0


class Target(NamedTuple):
    """What the arguments of ``Module.to`` name."""

    device: Device | None
    dtype: dtypes.dtype | None
    layout: Any
    non_blocking: bool


def parse_to(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Target:
    """Return what the arguments of ``to`` name; the first of them that is a bool: non_blocking."""
    device, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
    other = kwargs.pop("tensor", None) or kwargs.pop("other", None)
    unknown = set(kwargs) - {"non_blocking", "memory_format"}
    if unknown:
        raise ArgumentTypeError(f"to() got an unexpected keyword argument '{unknown.pop()}'")
    for value in (other, *args):
        if isinstance(value, Tensor):
            device, dtype = value.device, value.dtype
        elif isinstance(value, dtypes.dtype):
            dtype = value
        elif isinstance(value, str | Device) or type(value) is int:
            device = value
        elif value is not None and not isinstance(value, bool):
            raise ArgumentTypeError(
                f"to({value!r}): takes a device, a dtype or a tensor, not {type(value).__name__}"
            )
    flags = [value for value in args if isinstance(value, bool)]
    beside = bool(kwargs.get("non_blocking", flags[0] if flags else False))
    place = None if device is None else Device(device)
    return Target(place, dtype, kwargs.get("memory_format"), beside)


def no_device(kind: str) -> DeviceError:
    """Return the error for a kind of device that is not there."""
    return DeviceError(f"{kind}(): distgrad runs on the host and on CUDA devices; use cuda()")
