"""Layers, losses, their parameters, and helpers for training."""

from distgrad.nn import attention, common_types, functional, grad, init, modules, parallel, utils
from distgrad.nn.module import Module
from distgrad.nn.modules import *  # noqa: F403  (one list of layers, in nn.modules)
from distgrad.nn.parallel.data_parallel import DataParallel
from distgrad.nn.parameter import (
    Buffer,
    Parameter,
    UninitializedBuffer,
    UninitializedParameter,
)

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
