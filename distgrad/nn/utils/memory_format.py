"""The order in memory of the weights of convolutions."""

from __future__ import annotations

from typing import Any, TypeVar

from distgrad.nn.module import Module
from distgrad.nn.modules.conv import Conv2d, Conv3d, ConvTranspose2d, ConvTranspose3d

__all__ = ["convert_conv2d_weight_memory_format", "convert_conv3d_weight_memory_format"]

M = TypeVar("M", bound=Module)


def _convert(module: Module, kinds: tuple[type[Module], ...], memory_format: Any) -> None:
    for one in module.modules():
        if isinstance(one, kinds):
            weight: Any = one.weight
            weight.array = weight.detach().contiguous(memory_format=memory_format).array


def convert_conv2d_weight_memory_format(module: M, memory_format: Any) -> M:
    """Lay out the weights of all 2-D convolutions in ``memory_format``; return the module."""
    _convert(module, (Conv2d, ConvTranspose2d), memory_format)
    return module


def convert_conv3d_weight_memory_format(module: M, memory_format: Any) -> M:
    """Lay out the weights of all 3-D convolutions in ``memory_format``; return the module."""
    _convert(module, (Conv3d, ConvTranspose3d), memory_format)
    return module
