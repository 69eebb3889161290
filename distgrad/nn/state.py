"""Loading a state dict into a tree of modules, with PyTorch's messages."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

from distgrad.backend.device import device_of, to_device, working_on
from distgrad.errors import ArgumentTypeError, CheckpointError
from distgrad.nn.parameter import Parameter, is_lazy
from distgrad.tensor import Tensor, shared_of

EXTRA_STATE = "_extra_state"


class IncompatibleKeys(NamedTuple):
    """The keys that a state dict lacks, and those that nothing takes."""

    missing_keys: list[str]
    unexpected_keys: list[str]

    def __repr__(self) -> str:
        if not self.missing_keys and not self.unexpected_keys:
            return "<All keys matched successfully>"
        return (
            f"_IncompatibleKeys(missing_keys={self.missing_keys}, "
            f"unexpected_keys={self.unexpected_keys})"
        )


def load(module: Any, state_dict: Any, strict: bool, assign: bool) -> IncompatibleKeys:
    """Copy ``state_dict`` into ``module`` and its descendants; see ``Module.load_state_dict``."""
    if not isinstance(state_dict, Mapping):
        raise ArgumentTypeError(f"Expected state_dict to be dict-like, got {type(state_dict)}.")
    metadata = getattr(state_dict, "_metadata", None) or {}
    found = IncompatibleKeys([], [])
    errors: list[str] = []
    _load_tree(module, OrderedDict(state_dict), "", metadata, assign, found, errors)
    if strict:
        if found.missing_keys:
            errors.insert(0, f"Missing key(s) in state_dict: {_quoted(found.missing_keys)}. ")
        if found.unexpected_keys:
            place = 1 if found.missing_keys else 0
            text = f"Unexpected key(s) in state_dict: {_quoted(found.unexpected_keys)}. "
            errors.insert(place, text)
    if errors:
        raise CheckpointError(
            f"Error(s) in loading state_dict for {type(module).__name__}:\n\t" + "\n\t".join(errors)
        )
    return found


def _quoted(keys: list[str]) -> str:
    return ", ".join(f'"{key}"' for key in keys)


def _load_tree(
    module: Any,
    state: dict[str, Any],
    prefix: str,
    metadata: Mapping[str, Any],
    assign: bool,
    found: IncompatibleKeys,
    errors: list[str],
) -> None:
    local = dict(metadata.get(prefix[:-1], {}))
    if assign:
        local["assign_to_params_buffers"] = True
    module._load_from_state_dict(
        state, prefix, local, True, found.missing_keys, found.unexpected_keys, errors
    )
    for name, child in module._modules.items():
        if child is not None:
            below = prefix + name + "."
            part = {k: v for k, v in state.items() if k.startswith(below)}
            _load_tree(child, part, below, metadata, assign, found, errors)
    for hook in module._load_state_dict_post_hooks.values():
        hook(module, found)


def load_own(
    module: Any,
    state: dict[str, Any],
    prefix: str,
    metadata: Mapping[str, Any],
    strict: bool,
    found: IncompatibleKeys,
    errors: list[str],
) -> None:
    """Copy the entries of one module, without its children."""
    assign = bool(metadata.get("assign_to_params_buffers", False))
    own = dict(module._own_state())
    for name, target in own.items():
        key = prefix + name
        if key in state:
            problem = _load_one(module, name, target, state[key], assign)
            if problem:
                errors.append(problem.format(key=key))
        elif strict:
            found.missing_keys.append(key)
    extra = prefix + EXTRA_STATE
    if module._takes_extra_state():
        if extra in state:
            module.set_extra_state(state[extra])
        elif strict:
            found.missing_keys.append(extra)
    elif strict and extra in state:
        found.unexpected_keys.append(extra)
    if strict:
        unknown = (k for k in state if k.startswith(prefix) and k != extra)
        found.unexpected_keys.extend(
            k for k in unknown if not _known(module, own, k[len(prefix) :])
        )


def _known(module: Any, own: dict[str, Tensor], key: str) -> bool:
    name, dot, _ = key.partition(".")
    return name in module._modules if dot else name in own


def _load_one(module: Any, name: str, target: Tensor, value: Any, assign: bool) -> str:
    """Copy ``value`` into ``target``, or put it in its place; return what is wrong, or ''."""
    if not isinstance(value, Tensor):
        return (
            'While copying the parameter named "{key}", expected Tensor '
            f"object from checkpoint but received {type(value)}"
        )
    if is_lazy(target) or is_lazy(value):
        return _load_lazy(target, value)
    array = value.array
    if target.array.ndim == 0 and array.shape == (1,):
        array = array.reshape(())
    if array.shape != target.array.shape:
        return (
            "size mismatch for {key}: copying a param with shape "
            f"{value.shape} from checkpoint, the shape in current model is {target.shape}."
        )
    if not assign:
        with working_on(target.array):
            target.array[...] = to_device(array, device_of(target.array))
        shared_of(target).bump()
    elif isinstance(target, Parameter) and not isinstance(value, Parameter):
        setattr(module, name, Parameter(value, requires_grad=target.requires_grad))
    else:
        value.requires_grad_(target.requires_grad)
        setattr(module, name, value)
    return ""


def _load_lazy(target: Tensor, value: Tensor) -> str:
    """Load what has no shape: only into what has none either."""
    known = [t.shape for t in (target, value) if not (is_lazy(target) and is_lazy(value))]
    assert not known  # the one without a shape has refused to tell it
    return ""
