"""What only PyTorch's programs ask of ``torch`` itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from distgrad.as_torch.extra.absent import *  # noqa: F403
from distgrad.as_torch.extra.torch_version import __version__
from distgrad.backend.device import device as Device
from distgrad.backend.layout import contiguous_format as legacy_contiguous_format
from distgrad.backend.layout import layout
from distgrad.cuda.streams import Event, Stream
from distgrad.errors import ArgumentError, DtypeError
from distgrad.ops.coo import sparse_coo_tensor
from distgrad.ops.matmul import mm
from distgrad.ops.storage import UntypedStorage
from distgrad.tensor import Tensor

__all__ = [
    "Event", "Stream", "UntypedStorage", "__version__", "compile", "compiled_with_cxx11_abi",
    "get_device_module", "is_distributed", "is_vulkan_available", "layout",
    "legacy_contiguous_format", "newaxis", "sparse_coo_tensor", "sparse_csr_tensor", "spmm",
]  # fmt: skip

newaxis = None
_told: list[str] = []


def tell_once(text: str) -> None:
    """Warn with ``text`` at its first time in this process."""
    if text not in _told:
        _told.append(text)
        warnings.warn(text, stacklevel=3)


def compile(
    model: Callable[..., Any] | None = None,
    *,
    fullgraph: bool = False,
    dynamic: bool | None = None,
    backend: Any = "inductor",
    mode: str | None = None,
    options: dict[str, Any] | None = None,
    disable: bool = False,
) -> Any:
    """Return ``model`` itself: operations run one by one here; says so once.

    Args:
        model: a module or function; None returns a decorator.
        fullgraph, dynamic, backend, mode, options, disable: of the compiler, which is not there.
    """
    if mode is not None and options is not None:
        raise ArgumentError("compile(): Either mode or options can be specified, but not both")
    if not disable:
        tell_once("torch.compile returns the model as it is: distgrad has no compiler")
    return (lambda function: function) if model is None else model


def _assert(condition: Any, message: str) -> None:
    """Raise AssertionError with ``message`` unless ``condition`` is true."""
    assert condition, message


def compiled_with_cxx11_abi() -> bool:
    """Return True, as nothing is compiled with another one."""
    return True


def is_vulkan_available() -> bool:
    """Return False: arrays live on the CPU or on CUDA."""
    return False


def is_distributed(input: Tensor) -> bool:
    """Return False: a tensor belongs to one process."""
    return False


def get_device_module(device: Any = None) -> Any:
    """Return the module of a type of device: ``torch.cuda`` or ``torch.cpu``.

    Args:
        device: a device or its name (default: the accelerator if there is one).
    """
    from importlib import import_module  # torch's modules exist once the import hook does

    from distgrad.accelerator import current_accelerator

    kind = (current_accelerator() or Device("cpu")).type if device is None else Device(device).type
    return import_module(f"torch.{kind}")


def sparse_csr_tensor(*args: Any, **options: Any) -> Any:
    """Raise: sparse tensors are kept by places here.

    Raises:
        DtypeError: always.
    """
    raise DtypeError("sparse_csr_tensor(): distgrad has no such layout; use sparse_coo_tensor")


spmm = mm


def __getattr__(name: str) -> Any:
    """Return what PyTorch has here of ``torch.jit``, which itself needs this module."""
    if name in ("ScriptModule", "ScriptFunction"):
        from importlib import import_module  # not before this module is complete

        return getattr(import_module("distgrad.as_torch.extra.jit"), name)
    raise AttributeError(name)
