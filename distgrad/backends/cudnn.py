"""Switches of cuDNN, which computes convolution and attention on a GPU where it is installed.

``enabled``: whether it is used.  ``benchmark``: time the algorithms of a convolution when its
shapes are met first, ``benchmark_limit`` of them (0: all).  ``deterministic``: only algorithms that
give the same bits each time.  ``allow_tf32``: round operands of float32 convolutions to 10 bits of
mantissa, as PyTorch does by default.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from distgrad.backend.device import is_cuda_available
from distgrad.backend.switches import cudnn as switches

enabled: bool
benchmark: bool
benchmark_limit: int | None
deterministic: bool
allow_tf32: bool

_NAMES = ("enabled", "benchmark", "benchmark_limit", "deterministic", "allow_tf32")


def is_available() -> bool:
    """Return whether there is a GPU, and cuDNN with NVIDIA's frontend for Python."""
    return version() is not None


def version() -> int | None:
    """Return cuDNN's version, 91900 for 9.19.0; None where it cannot be used."""
    if not is_cuda_available():
        return None
    from distgrad.backend.cuda import cudnn  # it imports CuPy

    return cudnn.version()


@contextmanager
def flags(
    enabled: bool = False,
    benchmark: bool = False,
    benchmark_limit: int | None = 10,
    deterministic: bool = False,
    allow_tf32: bool = True,
    fp32_precision: str = "none",
) -> Iterator[None]:
    """Have these values inside a ``with`` block.

    Args:
        fp32_precision: PyTorch's other word for ``allow_tf32``: "tf32" or "ieee"; "none" leaves it.
    """
    before = {name: getattr(switches, name) for name in _NAMES}
    tf32 = allow_tf32 if fp32_precision == "none" else fp32_precision == "tf32"
    given = (enabled, benchmark, benchmark_limit, deterministic, tf32)
    try:
        for name, value in zip(_NAMES, given, strict=True):
            setattr(switches, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(switches, name, value)


class _Switches(ModuleType):
    """The module's class, by which assigning to the module's switches changes what they switch."""


def _switch(name: str) -> property:
    def read(self: ModuleType) -> Any:
        return getattr(switches, name)

    def write(self: ModuleType, value: Any) -> None:
        setattr(switches, name, value)

    return property(read, write)


for _name in _NAMES:
    setattr(_Switches, _name, _switch(_name))
sys.modules[__name__].__class__ = _Switches
