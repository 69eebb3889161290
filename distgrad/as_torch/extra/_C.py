"""What public packages take from PyTorch's compiled core, as far as it means something here."""

from __future__ import annotations

import enum
from contextlib import nullcontext
from typing import Any

from distgrad.autograd.traced import running_levels
from distgrad.backend.device import device
from distgrad.backend.dtype import dtype
from distgrad.backend.layout import layout, memory_format
from distgrad.backend.random import Generator, default_generator
from distgrad.ops.methods import _read as read_target
from distgrad.tensor import Size

__all__ = [
    "DisableTorchFunction",
    "DisableTorchFunctionSubclass",
    "DispatchKey",
    "DispatchKeySet",
    "Generator",
    "Size",
    "Value",
    "_ExcludeDispatchKeyGuard",
    "_TensorMeta",
    "_are_functorch_transforms_active",
    "_disabled_torch_function_impl",
    "_get_tracing_state",
    "_log_api_usage_once", "_nn",
    "default_generator",
    "device",
    "dtype",
    "layout",
    "memory_format",
]  # fmt: skip


class Value:
    """A value of TorchScript; nothing here is one."""


class _TensorMeta(type):
    """The class of PyTorch's class of tensors."""


class _nn:
    """Functions behind ``torch.nn``."""

    @staticmethod
    def _parse_to(*args: Any, **kwargs: Any) -> tuple[Any, Any, bool, Any]:
        """Return device, dtype, non_blocking and memory_format from the arguments of ``to``."""
        place, kind = kwargs.get("device"), kwargs.get("dtype")
        flags: tuple[Any, ...] = ()
        if args:
            place, kind, flags = read_target(args, place, kind)
        waits = kwargs.get("non_blocking", flags[0] if flags else False)
        return (
            None if place is None else device(place),
            None if kind is None else dtype(kind),
            bool(waits),
            kwargs.get("memory_format"),
        )


class DispatchKey(enum.Enum):
    """Keys of PyTorch's dispatcher, by name; distgrad has no dispatcher."""

    CPU = 1
    CUDA = 2
    Meta = 3
    Autograd = 4
    AutocastCPU = 5
    AutocastCUDA = 6
    AutocastXPU = 7
    Python = 8
    FuncTorchBatched = 9
    CompositeExplicitAutograd = 10
    CompositeImplicitAutograd = 11


class DispatchKeySet:
    """A set of such keys."""

    def __init__(self, *keys: DispatchKey) -> None:
        self.keys = frozenset(keys)

    def __or__(self, other: DispatchKeySet) -> DispatchKeySet:
        return DispatchKeySet(*self.keys | other.keys)

    def has(self, key: DispatchKey) -> bool:
        """Return whether ``key`` is in the set."""
        return key in self.keys


def _ExcludeDispatchKeyGuard(keys: DispatchKeySet) -> Any:
    """Return a context that changes nothing: there is no dispatcher."""
    return nullcontext()


def DisableTorchFunctionSubclass() -> Any:
    """Return a context that changes nothing: no class answers for operations."""
    return nullcontext()


DisableTorchFunction = DisableTorchFunctionSubclass


def _disabled_torch_function_impl(
    func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
) -> Any:
    """Return ``func(*args, **kwargs)``."""
    return func(*args, **(kwargs or {}))


def _log_api_usage_once(event: str) -> None:
    """Do nothing: nothing is reported to anybody."""


def _get_tracing_state() -> None:
    """Return None: nothing is traced."""


def _are_functorch_transforms_active() -> bool:
    """Return whether `vmap`, `grad` or `jvp` is at work."""
    return bool(running_levels())
