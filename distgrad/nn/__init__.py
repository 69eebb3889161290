"""Layers, losses, their parameters, and helpers for training."""

from typing import TYPE_CHECKING

from distgrad.later import later
from distgrad.nn import attention, common_types, functional, init, modules
from distgrad.nn.module import Module
from distgrad.nn.modules import *  # noqa: F403  (one list of layers, in nn.modules)
from distgrad.nn.parameter import (
    Buffer,
    Parameter,
    UninitializedBuffer,
    UninitializedParameter,
)

if TYPE_CHECKING:
    from distgrad.nn import grad, parallel, utils
    from distgrad.nn.parallel.data_parallel import DataParallel

__all__ = [
    "Buffer",
    "DataParallel",
    "Module",
    "Parameter",
    "UninitializedBuffer",
    "UninitializedParameter",
    "attention",
    "common_types",
    "functional",
    "grad",
    "init",
    "modules",
    "parallel",
    "utils",
]
__all__ += modules.__all__

__getattr__ = later(
    __name__,
    {name: f"distgrad.nn.{name}" for name in ("grad", "parallel", "utils")}
    | {"DataParallel": "distgrad.nn.parallel.data_parallel:"},
)
