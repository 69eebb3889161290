"""Policies of `fully_shard`: the types that whole parameters, messages and results have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distgrad.backend.dtype import dtype
from distgrad.errors import ArgumentError
from distgrad.tensor import Tensor


@dataclass(frozen=True)
class MixedPrecisionPolicy:
    """Says in which types a group computes; its parts, gradients and state keep their own.

    Args:
        param_dtype: of the whole parameters, and so of what travels when they are gathered.
        reduce_dtype: of the gradients on their way to the owners, and of their sum; by default
            that of the whole parameters.
        output_dtype: of the floating point results of the module's forward.
        cast_forward_inputs: bring floating point arguments of forward to ``param_dtype``.
    """

    param_dtype: dtype | None = None
    reduce_dtype: dtype | None = None
    output_dtype: dtype | None = None
    cast_forward_inputs: bool = True


@dataclass
class OffloadPolicy:
    """Leaves parts, gradients and state on the device of the parameters."""


@dataclass
class CPUOffloadPolicy(OffloadPolicy):
    """Would keep parts on the host beside a GPU; `fully_shard` refuses it."""

    pin_memory: bool = True


def check_offload(policy: OffloadPolicy) -> None:
    """Raise for a policy that is not offered."""
    if isinstance(policy, CPUOffloadPolicy):
        raise ArgumentError(
            f"fully_shard(offload_policy={policy}): parts stay on the device of the parameters; "
            "leave it OffloadPolicy(), or move the model to the CPU before fully_shard"
        )


def casted(value: Any, to: dtype) -> Any:
    """Return ``value`` with its floating point tensors in the type ``to``."""

    def cast(tensor: Any) -> Any:
        return tensor.to(to) if tensor.is_floating_point() and tensor.dtype != to else tensor

    return mapped(value, cast)


def mapped(value: Any, fn: Callable[[Tensor], Any]) -> Any:
    """Return ``value`` with ``fn`` of each tensor in its tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, dict):
        return type(value)((k, mapped(v, fn)) for k, v in value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(v, fn) for v in value))
    if isinstance(value, list | tuple):
        return type(value)(mapped(v, fn) for v in value)
    return value
