"""Modules as functions of their parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distgrad.errors import GradError
from distgrad.nn.module import Module
from distgrad.nn.utils.stateless import functional_call
from distgrad.ops.join import stack
from distgrad.tensor import Tensor

__all__ = ["functional_call", "stack_module_state"]


def stack_module_state(
    models: Sequence[Module],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the parameters and the buffers of several like modules, stacked by name.

    With ``vmap`` over ``functional_call`` they run as one ensemble.

    Raises:
        GradError: there are no models, or they differ in mode or class.
    """
    many = list(models)
    if not many:
        raise GradError("stack_module_state: Expected at least one model, got 0.")
    if any(m.training != many[0].training for m in many):
        raise GradError(
            "stack_module_state: Expected all models to have the same training/eval mode."
        )
    if any(type(m) is not type(many[0]) for m in many):
        raise GradError("stack_module_state: Expected all models to be of the same class.")
    parameters = {
        name: _stacked([dict(m.named_parameters())[name] for m in many])
        for name, _ in many[0].named_parameters()
    }
    buffers = {
        name: _stacked([dict(m.named_buffers())[name] for m in many])
        for name, _ in many[0].named_buffers()
    }
    return parameters, buffers


def _stacked(tensors: list[Any]) -> Tensor:
    tracked = [t.requires_grad for t in tensors]
    if any(tracked) != all(tracked):
        raise GradError(
            "Expected parameters from different models to have the same `.requires_grad`"
        )
    out = stack([t.detach() for t in tensors])
    return out.requires_grad_() if all(tracked) else out
