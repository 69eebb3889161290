"""Checks of options, with PyTorch's messages."""

from __future__ import annotations

from typing import Any

from distgrad.errors import ArgumentError
from distgrad.tensor import Tensor


def check_lr(lr: Any) -> None:
    """Raise unless ``lr`` is a number or one-element tensor of 0 or more."""
    if isinstance(lr, Tensor) and lr.array.size != 1:
        raise ArgumentError("Tensor lr must be 1-element")
    at_least_0("learning rate", lr)


def at_least_0(what: str, value: Any) -> None:
    """Raise unless ``value`` is 0 or more (NaN is not)."""
    if not float(value) >= 0.0:
        raise ArgumentError(f"Invalid {what}: {value}")


def below_1(what: str, value: float) -> None:
    """Raise unless ``value`` lies in [0, 1)."""
    if not 0.0 <= value < 1.0:
        raise ArgumentError(f"Invalid {what}: {value}")


def check_betas(betas: tuple[float, float]) -> None:
    """Raise unless both decay rates lie in [0, 1)."""
    for index, beta in enumerate(betas):
        below_1(f"beta parameter at index {index}", float(beta))


def refuse_differentiable(name: str, differentiable: bool) -> None:
    """Raise for ``differentiable=True``: steps are not recorded."""
    if differentiable:
        raise ArgumentError(
            f"{name}(differentiable=True): steps are not recorded by autograd; use False"
        )
