"""Layers, losses, their parameters, and helpers for training."""

from distgrad.nn import functional, init, modules, parallel, utils
from distgrad.nn.module import Module
from distgrad.nn.modules import *  # noqa: F403  (one list of layers, in nn.modules)
from distgrad.nn.parameter import Buffer, Parameter

__all__ = [
    "Buffer",
    "Module",
    "Parameter",
    "functional",
    "init",
    "modules",
    "parallel",
    "utils",
]
__all__ += modules.__all__
