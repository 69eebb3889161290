"""Checks of options, with PyTorch's messages: one for each name that an option may have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distgrad.errors import ArgumentError, ConflictError
from distgrad.tensor import Tensor


def checked(owner: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return ``options`` of the optimizer ``owner`` after a check of each.

    Raises:
        ArgumentError: a value has no meaning.
        ConflictError: ``fused`` together with ``foreach`` or ``differentiable``.
    """
    for name, value in options.items():
        check = _CHECKS.get(name)
        if check is not None:
            check(value)
    if options.get("differentiable"):
        if options.get("fused"):
            raise ConflictError("`fused` does not support `differentiable`")
        raise ArgumentError(
            f"{owner}(differentiable=True): steps are not recorded by autograd; use False"
        )
    if options.get("fused") and options.get("foreach"):
        raise ConflictError("`fused` and `foreach` cannot be `True` together.")
    return options


def check_lr(lr: Any) -> None:
    """Raise unless ``lr`` is a number or one-element tensor of 0 or more."""
    one_element(lr)
    at_least_0("Invalid learning rate: {}", lr)


def one_element(lr: Any) -> None:
    """Raise for a tensor of several elements."""
    if isinstance(lr, Tensor) and lr.array.size != 1:
        raise ArgumentError("Tensor lr must be 1-element")


def at_least_0(message: str, value: Any) -> None:
    """Raise ``message`` unless ``value`` is 0 or more (NaN is not)."""
    if not float(value) >= 0.0:
        raise ArgumentError(message.format(value))


def _not_negative(what: str) -> Callable[[Any], None]:
    return lambda value: at_least_0(f"Invalid {what} value: {{}}", value)


def _check_betas(betas: tuple[Any, Any]) -> None:
    for index, beta in enumerate(betas):
        if not 0.0 <= float(beta) < 1.0:
            raise ArgumentError(f"Invalid beta parameter at index {index}: {beta}")


def _check_rho(rho: float) -> None:
    if not 0.0 <= rho <= 1.0:
        raise ArgumentError(f"Invalid rho value: {rho}")


def _check_etas(etas: tuple[float, float]) -> None:
    if not 0.0 < etas[0] < 1.0 < etas[1]:
        raise ArgumentError(f"Invalid eta values: {etas[0]}, {etas[1]}")


_CHECKS: dict[str, Callable[[Any], None]] = {
    "lr": check_lr,
    "betas": _check_betas,
    "rho": _check_rho,
    "etas": _check_etas,
    "eps": _not_negative("epsilon"),
    **{
        name: _not_negative(name)
        for name in (
            "initial_accumulator_value",
            "lr_decay",
            "momentum",
            "momentum_decay",
            "trust_coefficient",
            "weight_decay",
        )
    },
}
