"""Parameters that are functions of others: parametrizations.

A module with one becomes an instance of a class of its own, whose property computes the tensor.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from distgrad.autograd.mode import no_grad
from distgrad.errors import ArgumentError, CheckpointError
from distgrad.nn.module import Module
from distgrad.nn.modules.container import ModuleDict, ModuleList
from distgrad.nn.parameter import Parameter
from distgrad.tensor import Tensor, shared_of

__all__ = [
    "ParametrizationList",
    "cached",
    "is_parametrized",
    "register_parametrization",
    "remove_parametrizations",
    "transfer_parametrizations_and_params",
    "type_before_parametrizations",
]


class _Cache:
    """Computed tensors by module and name, while ``cached`` blocks are open."""

    depth = 0
    values: dict[tuple[int, str], Tensor] = {}  # noqa: RUF012  one for the process


@contextmanager
def cached() -> Iterator[None]:
    """Compute each parametrized tensor once inside the block.

    Example:
        >>> with cached():
        ...     pass
    """
    _Cache.depth += 1
    try:
        yield
    finally:
        _Cache.depth -= 1
        if not _Cache.depth:
            _Cache.values = {}


def _register(module: Module, name: str, tensor: Tensor) -> None:
    if isinstance(tensor, Parameter):
        module.register_parameter(name, tensor)
    else:
        module.register_buffer(name, tensor)


def _take_values(target: Tensor, value: Tensor) -> None:
    """Give ``target`` the memory of ``value``; it stays the tensor that optimizers know."""
    target.array = value.array
    shared_of(target).bump()


def _refuse(what: str) -> None:
    raise ArgumentError(f"register_parametrization(): {what}")


def _check_like(was: Any, now: Any, what: str) -> None:
    if was != now:
        _refuse(
            f"Registering a parametrization may not change the {what} of the tensor, unless "
            f"`unsafe` flag is enabled.\nunparametrized {what}: {was}\nparametrized {what}: {now}"
        )


class ParametrizationList(ModuleList):
    """The parametrizations of one tensor, and what they are applied to.

    Calling it returns the tensor.  The parameters are ``original``, or ``original0``,
    ``original1``, … where ``right_inverse`` of the first returns several.

    Args:
        modules: the parametrizations, applied in this order.
        original: the tensor that is parametrized.
        unsafe: leave out the checks of shape and dtype.
    """

    def __init__(self, modules: Sequence[Module], original: Tensor, unsafe: bool = False) -> None:
        """Find the parameters by the inverses of the parametrizations."""
        if not modules:
            raise ArgumentError("ParametrizationList requires one or more modules.")
        super().__init__(modules)
        self.unsafe = unsafe
        shape, dtype = original.shape, original.dtype
        new = self._inverted(original)
        self.is_tensor = isinstance(new, Tensor)
        self.ntensors = 1 if self.is_tensor else len(new)
        if self.is_tensor:
            if new.dtype != dtype:
                _refuse(
                    "When `right_inverse` outputs one tensor, it may not change the dtype.\n"
                    f"original.dtype: {dtype}\nright_inverse(original).dtype: {new.dtype}"
                )
            if new is not original:
                _take_values(original, new)
            _register(self, "original", original)
        else:
            self._register_several(new, original)
        if not unsafe:
            result = self()
            if not isinstance(result, Tensor):
                _refuse(f"A parametrization must return a tensor. Got {type(result).__name__}.")
            _check_like(dtype, result.dtype, "dtype")
            _check_like(shape, result.shape, "shape")

    def _inverted(self, value: Any) -> Any:
        """Return the parameters for ``value``; a parametrization without inverse keeps it."""
        with no_grad():
            for module in reversed(list(self)):
                if hasattr(module, "right_inverse"):
                    with suppress(NotImplementedError):
                        value = module.right_inverse(value)
        if not isinstance(value, Tensor | Sequence):
            _refuse(
                "'right_inverse' must return a Tensor or a Sequence of tensors (list, tuple...). "
                f"Got {type(value).__name__}"
            )
        return value

    def _register_several(self, values: Sequence[Any], original: Tensor) -> None:
        for place, value in enumerate(values):
            if not isinstance(value, Tensor):
                _refuse(
                    "'right_inverse' must return a Tensor or a Sequence of tensors. Got element "
                    f"{place} of the sequence with type {type(value).__name__}."
                )
            if isinstance(original, Parameter):
                value = Parameter(value, original.requires_grad)
            _register(self, f"original{place}", value)

    def _originals(self) -> list[Tensor]:
        if self.is_tensor:
            return [self.original]
        return [getattr(self, f"original{k}") for k in range(self.ntensors)]

    def right_inverse(self, value: Tensor) -> None:
        """Set the parameters so that the parametrized tensor is ``value``."""
        new: Any = value
        with no_grad():
            for module in reversed(list(self)):
                if not hasattr(module, "right_inverse"):
                    raise CheckpointError(
                        f"parametrization {type(module).__name__} does not implement "
                        "right_inverse; it cannot be assigned to"
                    )
                new = module.right_inverse(new)
        given = [new] if self.is_tensor else list(new)
        if len(given) != self.ntensors:
            _refuse(
                f"'right_inverse' must return a sequence of tensors of length {self.ntensors}. "
                f"Got a sequence of length {len(given)}."
            )
        for target, one in zip(self._originals(), given, strict=True):
            if target.dtype != one.dtype:
                _refuse(f"`right_inverse` changed the dtype from {target.dtype} to {one.dtype}")
            _take_values(target, one)

    def forward(self) -> Tensor:
        """Return the parametrized tensor."""
        first, *rest = self
        x = first(*self._originals())
        for module in rest:
            x = module(x)
        out: Tensor = x
        return out


# ---------------------------------------------------------------------- the class of its own
def _refuse_pickle(self: Any) -> Any:
    raise CheckpointError(
        "Serialization of parametrized modules is only supported through state_dict(); save that"
    )


def _deepcopy(self: Any, memo: dict[int, Any]) -> Any:
    if id(self) not in memo:
        replica = self.__new__(type(self))
        memo[id(self)] = replica
        replica.__dict__.update(copy.deepcopy(self.__dict__, memo))
        _inject_class(replica, type_before_parametrizations(self))
        for name in replica.parametrizations:
            _inject_property(replica, name)
    return memo[id(self)]


def _inject_class(module: Module, base: type[Module]) -> None:
    own: dict[str, Any] = {"__getstate__": _refuse_pickle}
    if not hasattr(base, "__deepcopy__"):
        own["__deepcopy__"] = _deepcopy
    module.__class__ = type(f"Parametrized{base.__name__}", (base,), own)


def _inject_property(module: Module, name: str) -> None:
    """Make attribute ``name`` of the module's class the parametrized tensor."""

    def compute(self: Any) -> Tensor:
        if not _Cache.depth:
            return self.parametrizations[name]()  # type: ignore[no-any-return]
        key = (id(self), name)
        if key not in _Cache.values:
            _Cache.values[key] = self.parametrizations[name]()
        return _Cache.values[key]

    def assign(self: Any, value: Tensor) -> None:
        self.parametrizations[name].right_inverse(value)

    setattr(type(module), name, property(compute, assign))


# ---------------------------------------------------------------------- registration
def register_parametrization(
    module: Module, tensor_name: str, parametrization: Module, *, unsafe: bool = False
) -> Module:
    """Make a parameter or buffer a function of another one, and return the module.

    Args:
        module: holds the parameter.
        tensor_name: of the parameter or buffer.
        parametrization: its ``forward`` computes the tensor; its ``right_inverse``, if it has one,
            finds what to start from.  One more for the same tensor is applied after the others.
        unsafe: allow another shape or dtype.

    Example:
        >>> import distgrad as dg
        >>> from distgrad import nn
        >>> class Symmetric(nn.Module):
        ...     def forward(self, x):
        ...         return x.triu() + x.triu(1).mT
        >>> layer = register_parametrization(nn.Linear(3, 3), "weight", Symmetric())
        >>> dg.equal(layer.weight, layer.weight.mT)
        True
    """
    parametrization.train(module.training)
    if is_parametrized(module, tensor_name):
        _append(module, tensor_name, parametrization, unsafe)
        return module
    if tensor_name not in module._parameters and tensor_name not in module._buffers:
        raise ArgumentError(
            f"Module '{module}' does not have a parameter, a buffer, or a parametrized element "
            f"with name '{tensor_name}'"
        )
    made = ParametrizationList([parametrization], getattr(module, tensor_name), unsafe)
    delattr(module, tensor_name)
    if not is_parametrized(module):
        _inject_class(module, type(module))
        module.parametrizations = ModuleDict()
    _inject_property(module, tensor_name)
    _lists(module)[tensor_name] = made
    return module


def _lists(module: Module) -> Any:
    return module.parametrizations


def _append(module: Module, name: str, parametrization: Module, unsafe: bool) -> None:
    held = _lists(module)[name]
    if not unsafe:
        with no_grad():
            before = getattr(module, name)
            after = parametrization(before)
            if not isinstance(after, Tensor):
                _refuse(f"A parametrization must return a tensor. Got {type(after).__name__}.")
            _check_like(before.dtype, after.dtype, "dtype")
            _check_like(before.shape, after.shape, "shape")
            if hasattr(parametrization, "right_inverse"):
                back = parametrization.right_inverse(after)
                if not isinstance(back, Tensor):
                    _refuse(
                        "parametrization.right_inverse must return a tensor. Got: "
                        f"{type(back).__name__}"
                    )
                _check_like(before.dtype, back.dtype, "dtype")
                _check_like(before.shape, back.shape, "shape")
    held.append(parametrization)
    held.unsafe = held.unsafe or unsafe


def is_parametrized(module: Module, tensor_name: str | None = None) -> bool:
    """Return whether the module has a parametrization, or one of the tensor of this name."""
    held = getattr(module, "parametrizations", None)
    if not isinstance(held, ModuleDict):
        return False
    return len(held) > 0 if tensor_name is None else tensor_name in held


def remove_parametrizations(
    module: Module, tensor_name: str, leave_parametrized: bool = True
) -> Module:
    """Make a parametrized tensor a plain parameter or buffer again, and return the module.

    Args:
        module: holds it.
        tensor_name: its name.
        leave_parametrized: it keeps the values that it has now; False: those before the
            parametrizations.
    """
    if not is_parametrized(module, tensor_name):
        raise ArgumentError(f"Module {module} does not have a parametrization on {tensor_name}")
    held = _lists(module)[tensor_name]
    if not leave_parametrized and not held.is_tensor:
        raise ArgumentError(
            "Cannot leave unparametrized (`leave_parametrized=False`) a tensor that is "
            "parametrized in terms of a sequence of tensors."
        )
    with no_grad():
        now = getattr(module, tensor_name)
    original = held._originals()[0]
    if not held.is_tensor:
        original = Parameter(now) if isinstance(original, Parameter) else now
    elif leave_parametrized:
        _take_values(original, now)
    delattr(type(module), tensor_name)
    del _lists(module)[tensor_name]
    _register(module, tensor_name, original)
    if not is_parametrized(module):
        del module.parametrizations
        module.__class__ = type(module).__bases__[0]
    return module


def type_before_parametrizations(module: Module) -> type[Module]:
    """Return the class that the module had before it was parametrized."""
    return type(module).__bases__[0] if is_parametrized(module) else type(module)


def transfer_parametrizations_and_params(
    from_module: Module, to_module: Module, tensor_name: str | None = None
) -> Module:
    """Give ``to_module`` the parametrizations of ``from_module`` and their parameters.

    Args:
        from_module: has them.
        to_module: gets copies; it must have parameters of these names, or gets them.
        tensor_name: only those of this tensor.
    """
    if not is_parametrized(from_module):
        return to_module
    names = [tensor_name] if tensor_name is not None else list(_lists(from_module))
    for name in names:
        held = _lists(from_module)[name]
        if not hasattr(to_module, name):
            _register(to_module, name, copy.deepcopy(held._originals()[0]))
        for parametrization in held:
            register_parametrization(to_module, name, parametrization, unsafe=held.unsafe)
        own = _lists(to_module)[name]
        for target, value in zip(own._originals(), held._originals(), strict=True):
            _take_values(target, value.detach().clone())
    return to_module
