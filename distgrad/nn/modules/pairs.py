"""Two modules as one operation on a GPU: a linear layer and the activation after it.

They are one where nobody can tell: both are the library's own, without hooks, so the tensor
between them is seen by nobody else.  On the host every module is called for itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import numpy

from distgrad.config import switch
from distgrad.nn import functional as F
from distgrad.nn.hooks import everywhere
from distgrad.nn.module import Module
from distgrad.nn.modules.activation import GELU, ReLU
from distgrad.nn.modules.linear import Linear
from distgrad.ops.fused_linear import Activation, linear_activation
from distgrad.tensor import Tensor


def on_device(x: Any) -> bool:
    """Return whether ``x`` is a tensor on a GPU, and no tool such as ``vmap`` stands between."""
    array = getattr(x, "array", None)
    return not (array is None or type(array) is numpy.ndarray or hasattr(array, "below"))


def _alone(module: Any, kind: type[Module]) -> bool:
    """Return whether a module is of exactly this class, and its call is its forward."""
    plain = type(module) is kind and not module._hooked and "forward" not in module.__dict__
    return plain and not (everywhere.used and everywhere.active())


def _named(activation: Any) -> Activation | None:
    """Return what `linear_activation` calls an activation, if it knows it.

    cuBLASLt's ReLU makes 0 of nan, which would hide that a model has diverged: it is only taken if
    DISTGRAD_RELU_EPILOGUE asks for it.
    """
    if activation is F.relu or _alone(activation, ReLU):
        return "relu" if switch("relu_epilogue") else None
    if _alone(activation, GELU) and activation.approximate == "tanh":
        return "gelu_tanh"
    return None


def activated(layer: Linear, activation: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return ``activation(layer(x))``."""
    name = _named(activation) if on_device(x) and _alone(layer, Linear) else None
    if name is None:
        return activation(layer(x))
    return linear_activation(x, layer.weight, layer.bias, name)


def in_turn(modules: Iterable[Module], x: Any) -> Any:
    """Return what modules make of ``x``, one after the other, with pairs that are one operation."""
    rest = deque(modules)
    while rest:
        module = rest.popleft()
        if rest and on_device(x) and _alone(module, Linear) and _named(rest[0]) is not None:
            x = activated(module, rest.popleft(), x)  # type: ignore[arg-type]
        else:
            x = module(x)
    return x
