"""Modules that learn the sizes of their parameters from their first input."""

from __future__ import annotations

from typing import Any

from distgrad.errors import CheckpointError
from distgrad.nn.module import Module
from distgrad.nn.parameter import is_lazy

__all__ = ["LazyModuleMixin"]


class LazyModuleMixin(Module):
    """Makes a module lazy: its parameters get their shapes in the first forward.

    A class that is derived from this and a layer makes ``UninitializedParameter`` attributes and
    defines ``initialize_parameters``, which is called with the arguments of the first forward;
    then the module becomes one of class ``cls_to_become``.

    Example:
        >>> import distgrad as dg
        >>> from distgrad import nn
        >>> layer = nn.LazyLinear(2)
        >>> layer
        LazyLinear(in_features=0, out_features=2, bias=True)
        >>> _ = layer(dg.ones(3, 5))
        >>> layer
        Linear(in_features=5, out_features=2, bias=True)
    """

    cls_to_become: type[Any] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Make the layer, and register the hooks that finish it."""
        super().__init__(*args, **kwargs)
        self._load_hook = self._register_load_state_dict_pre_hook(
            _materialize_from_state, with_module=True
        )
        self._initialize_hook = self.register_forward_pre_hook(_infer_parameters, with_kwargs=True)

    def has_uninitialized_params(self) -> bool:
        """Return whether a parameter or buffer has no shape yet."""
        held = [*self._parameters.values(), *self._buffers.values()]
        return any(is_lazy(value) for value in held)

    def initialize_parameters(self, *args: Any, **kwargs: Any) -> None:
        """Give the parameters their shapes; ``args`` and ``kwargs`` are those of ``forward``."""
        raise NotImplementedError(
            f"initialize_parameters is not implemented for {type(self).__name__}"
        )


def _infer_parameters(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Before the first forward: give the parameters their shapes, and the module its class."""
    module.initialize_parameters(*args, **kwargs)
    if module.has_uninitialized_params():
        raise CheckpointError(
            f"module {type(module).__name__} has not been fully initialized; its "
            "initialize_parameters must materialize all of them"
        )
    module._initialize_hook.remove()
    module._load_hook.remove()
    del module._initialize_hook, module._load_hook
    if module.cls_to_become is not None:
        module.__class__ = module.cls_to_become


def _materialize_from_state(
    module: Any,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: dict[str, Any],
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """Take the shapes from a state dict that is loaded before the first forward."""
    for name, value in [*module._parameters.items(), *module._buffers.items()]:
        given = state_dict.get(prefix + name)
        if is_lazy(value) and given is not None and not is_lazy(given):
            value.materialize(given.shape)
