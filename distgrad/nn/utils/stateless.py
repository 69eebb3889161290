"""Modules as functions of their parameters: the call; ``distgrad.func`` has it too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distgrad.errors import ArgumentError, ArgumentTypeError, GradError
from distgrad.nn.module import Module
from distgrad.tensor import Tensor

__all__ = ["functional_call"]


def functional_call(
    module: Module,
    parameter_and_buffer_dicts: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]],
    args: Any = None,
    kwargs: dict[str, Any] | None = None,
    *,
    tie_weights: bool = True,
    strict: bool = False,
) -> Any:
    """Return ``module(*args, **kwargs)`` with other parameters and buffers than its own.

    Args:
        module: what to call; it has its own parameters again afterwards.
        parameter_and_buffer_dicts: tensors by name, or several such dicts; what they leave out
            stays the module's own.
        args: the positional arguments: a tuple, or one argument.
        kwargs: the named arguments.
        tie_weights: names that share one parameter of the module share the new one.
        strict: raise unless the dicts name all parameters and buffers, and nothing else.
    """
    given = _joined(parameter_and_buffer_dicts)
    own: dict[str, Tensor] = {}
    own |= module.named_parameters(remove_duplicate=False)
    own |= module.named_buffers(remove_duplicate=False)
    if strict:
        _check_names(own, given)
    unknown = [n for n in given if n not in own]
    if tie_weights:
        _tie(own, given)
    arguments = () if args is None else args if isinstance(args, tuple) else (args,)
    places = [(*_place(module, n), given[n]) for n in given if n not in unknown]
    before = [(holder, key, holder[key]) for holder, key, _ in places]
    try:
        for holder, key, tensor in places:
            holder[key] = tensor
        return module(*arguments, **(kwargs or {}))
    finally:
        for holder, key, tensor in before:
            holder[key] = tensor


def _joined(dicts: Any) -> dict[str, Tensor]:
    if isinstance(dicts, Mapping):
        return dict(dicts)
    if not isinstance(dicts, Sequence):
        raise ArgumentError(
            "functional_call(): Expected parameter_and_buffer_dicts to be a dict, or a list/tuple "
            f"of dicts, but got {type(dicts)}"
        )
    joint: dict[str, Tensor] = {}
    for one in dicts:
        twice = set(one) & set(joint)
        if twice:
            raise ArgumentError(
                f"functional_call(): {sorted(twice)} appeared in multiple dictionaries; behavior "
                "of functional call is ambiguous"
            )
        joint |= one
    return joint


def _check_names(own: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    missing, unexpected = sorted(set(own) - set(given)), sorted(set(given) - set(own))
    if missing or unexpected:
        raise GradError(
            "functional_call(): Error(s) in loading state: "
            + (f"Missing key(s): {', '.join(missing)}. " if missing else "")
            + (f"Unexpected key(s): {', '.join(unexpected)}." if unexpected else "")
        )


def _tie(own: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    """Give the names that share a tensor of the module with a given one the same new tensor."""
    by_tensor: dict[int, list[str]] = {}
    for name, tensor in own.items():
        by_tensor.setdefault(id(tensor), []).append(name)
    for names in by_tensor.values():
        new = [given[n] for n in names if n in given]
        if len(names) > 1 and new:
            if any(t is not new[0] for t in new):
                raise ArgumentError(
                    f"functional_call(): Passed in dictionary has a tied tensor: {names} with "
                    "different values; use tie_weights=False"
                )
            given |= dict.fromkeys(names, new[0])


def _place(module: Module, name: str) -> tuple[dict[str, Any], str]:
    """Return the dict of the module, or of one inside it, that holds a parameter or buffer."""
    path, _, key = name.rpartition(".")
    owner: Any = module.get_submodule(path) if path else module
    for holder in (owner._parameters, owner._buffers):
        if key in holder:
            return holder, key
    raise ArgumentTypeError(f"functional_call(): the module has no parameter or buffer {name!r}")
