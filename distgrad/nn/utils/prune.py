"""Pruning: parameters times masks of zeros and ones.

The parameter ``name`` becomes ``name_orig``, the mask the buffer ``name_mask``, and a hook computes
their product before each forward.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from distgrad.backend.device import CPU, to_device
from distgrad.backend.random import current_generator
from distgrad.errors import ArgumentError, ArgumentTypeError, IndexOutOfRange
from distgrad.nn.module import Module
from distgrad.ops.create import ones_like
from distgrad.ops.elementwise import mul
from distgrad.ops.join import cat, split
from distgrad.ops.norms import vector_norm
from distgrad.ops.shape import reshape
from distgrad.tensor import Tensor, wrap

__all__ = [
    "BasePruningMethod",
    "CustomFromMask",
    "Identity",
    "L1Unstructured",
    "LnStructured",
    "PruningContainer",
    "RandomStructured",
    "RandomUnstructured",
    "custom_from_mask",
    "global_unstructured",
    "identity",
    "is_pruned",
    "l1_unstructured",
    "ln_structured",
    "random_structured",
    "random_unstructured",
    "remove",
]


class BasePruningMethod(ABC):
    """A way to choose what is pruned: define ``compute_mask`` and ``PRUNING_TYPE``."""

    PRUNING_TYPE = "unstructured"  # or "structured", "global"
    _tensor_name: str

    def __call__(self, module: Module, inputs: Any) -> None:
        setattr(module, self._tensor_name, self.apply_mask(module))

    @abstractmethod
    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """Return the mask for ``t`` on top of ``default_mask``."""

    def apply_mask(self, module: Module) -> Tensor:
        """Return the pruned tensor."""
        mask = getattr(module, self._tensor_name + "_mask")
        original = getattr(module, self._tensor_name + "_orig")
        return mul(mask.to(original.dtype), original)

    @classmethod
    def apply(
        cls,
        module: Module,
        name: str,
        *args: Any,
        importance_scores: Tensor | None = None,
        **kwargs: Any,
    ) -> BasePruningMethod:
        """Prune a parameter by a method made of the arguments, on top of earlier pruning."""
        old = _method_of(module, name)
        method: BasePruningMethod = cls(*args, **kwargs)
        method._tensor_name = name
        if old is not None:
            method = _joined(old[1], method, module, name)
        original = getattr(module, name if old is None else name + "_orig")
        scores = original if importance_scores is None else importance_scores
        if scores.shape != original.shape:
            raise ArgumentError(
                "importance_scores should have the same shape as parameter "
                f"{name} of {type(module).__name__}"
            )
        if old is None:
            delattr(module, name)
            module.register_parameter(name + "_orig", original)
            default = ones_like(original)
        else:
            default = getattr(module, name + "_mask").detach().clone()
        mask = method.compute_mask(scores.detach(), default)
        module.register_buffer(name + "_mask", mask)
        setattr(module, name, method.apply_mask(module))
        module.register_forward_pre_hook(method)
        return method

    def prune(
        self,
        t: Tensor,
        default_mask: Tensor | None = None,
        importance_scores: Tensor | None = None,
    ) -> Tensor:
        """Return ``t`` pruned, without a module."""
        scores = t if importance_scores is None else importance_scores
        if scores.shape != t.shape:
            raise ArgumentError("importance_scores should have the same shape as tensor t")
        default = ones_like(t) if default_mask is None else default_mask
        return mul(t, self.compute_mask(scores.detach(), default))

    def remove(self, module: Module) -> None:
        """Make the pruned tensor the parameter again."""
        name = self._tensor_name
        weight = self.apply_mask(module)
        if hasattr(module, name):
            delattr(module, name)
        original = getattr(module, name + "_orig")
        original.array = weight.array
        delattr(module, name + "_orig")
        delattr(module, name + "_mask")
        module.register_parameter(name, original)


def _method_of(module: Any, name: str) -> tuple[int, BasePruningMethod] | None:
    for key, hook in module._forward_pre_hooks.items():
        if isinstance(hook, BasePruningMethod) and hook._tensor_name == name:
            return key, hook
    return None


def _joined(
    old: BasePruningMethod, new: BasePruningMethod, module: Any, name: str
) -> PruningContainer:
    """Return a container of the earlier methods and ``new``, in the place of their hook."""
    found = _method_of(module, name)
    assert found is not None
    del module._forward_pre_hooks[found[0]]
    container = old if isinstance(old, PruningContainer) else PruningContainer(old)
    container._tensor_name = name
    container.add_pruning_method(new)
    return container


class PruningContainer(BasePruningMethod):
    """Several methods, each pruning what those before it left."""

    def __init__(self, *args: BasePruningMethod) -> None:
        """Hold the methods."""
        self._pruning_methods: list[BasePruningMethod] = []
        if args:
            self._tensor_name = args[0]._tensor_name
        for method in args:
            self.add_pruning_method(method)

    def add_pruning_method(self, method: BasePruningMethod) -> None:
        """Add one more for the same parameter."""
        if not isinstance(method, BasePruningMethod):
            raise ArgumentTypeError(f"{type(method)} is not a BasePruningMethod subclass")
        if method._tensor_name != self._tensor_name:
            raise ArgumentError(
                "Can only add pruning methods acting on the parameter named "
                f"'{self._tensor_name}' to PruningContainer. Found '{method._tensor_name}'"
            )
        self._pruning_methods.append(method)

    def __len__(self) -> int:
        return len(self._pruning_methods)

    def __iter__(self) -> Any:
        return iter(self._pruning_methods)

    def __getitem__(self, idx: int) -> BasePruningMethod:
        return self._pruning_methods[idx]

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """Return the mask of the newest method on what ``default_mask`` leaves."""
        method = self._pruning_methods[-1]
        mask = to_device(default_mask.array, CPU)
        left = _left_of(mask, method)
        out = mask.copy()
        values = to_device(t.array, CPU)[left]
        inner = method.compute_mask(wrap(values), wrap(mask[left]))
        out[left] = to_device(inner.array, CPU)
        return wrap(to_device(out, default_mask.device))


def _left_of(mask: Any, method: BasePruningMethod) -> Any:
    """Return an index of what is not pruned: elements, or whole channels of ``method.dim``."""
    if method.PRUNING_TYPE == "unstructured":
        return mask == 1
    if method.PRUNING_TYPE == "global":
        return slice(None)
    if method.PRUNING_TYPE != "structured":
        raise ArgumentError(f"Unrecognized PRUNING_TYPE {method.PRUNING_TYPE}")
    dim = method.dim % mask.ndim  # type: ignore[attr-defined]
    others = tuple(d for d in range(mask.ndim) if d != dim)
    return (slice(None),) * dim + (mask.any(axis=others),)


# ---------------------------------------------------------------------- how much
def _check_amount(amount: Any) -> None:
    if isinstance(amount, bool) or not isinstance(amount, int | float):
        raise ArgumentTypeError(f"Invalid type for amount: {amount}. Must be int or float.")
    if amount < 0 or (isinstance(amount, float) and amount > 1):
        raise ArgumentError(
            f"amount={amount} should either be a float in the range [0, 1] or a non-negative "
            "integer"
        )


def _count(amount: float, size: int) -> int:
    """Return how many of ``size`` are pruned."""
    if isinstance(amount, int) and amount > size:
        raise ArgumentError(
            f"amount={amount} should be smaller than the number of parameters to prune={size}"
        )
    return amount if isinstance(amount, int) else round(amount * size)


def _channels(t: Tensor, dim: int) -> int:
    """Return the number of channels along ``dim``, refusing what has none."""
    if t.ndim <= 1:
        raise ArgumentError(
            "Structured pruning can only be applied to multidimensional tensors. Found tensor of "
            f"shape {t.shape} with {t.ndim} dims"
        )
    if dim >= t.ndim:
        raise IndexOutOfRange(f"Invalid index {dim} for tensor of size {t.shape}")
    return int(t.array.shape[dim])


def _without(default_mask: Tensor, places: Any, dim: int | None = None) -> Tensor:
    """Return the mask with zeros at flat ``places``, or at channels ``places`` along ``dim``."""
    mask = to_device(default_mask.array, CPU).copy()
    if dim is None:
        mask.reshape(-1)[places] = 0
    else:
        mask[(slice(None),) * (dim % mask.ndim) + (places,)] = 0
    return wrap(to_device(mask, default_mask.device))


# ---------------------------------------------------------------------- methods
class Identity(BasePruningMethod):
    """Prunes nothing, but makes mask and hook."""

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """Return ``default_mask``."""
        return default_mask


class RandomUnstructured(BasePruningMethod):
    """Prunes elements at random.

    Args:
        amount: how many, or which fraction.
    """

    def __init__(self, amount: float) -> None:
        """Take the amount."""
        _check_amount(amount)
        self.amount = amount

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """Return the mask."""
        size = t.numel()
        count = _count(self.amount, size)
        if not count:
            return default_mask.detach().clone()
        drawn = current_generator().uniform((size,), to_device(t.array, CPU).dtype)
        return _without(default_mask, (-drawn).argsort(kind="stable")[:count])


class L1Unstructured(RandomUnstructured):
    """Prunes the elements of the smallest size.

    Args:
        amount: how many, or which fraction.
    """

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """Return the mask."""
        count = _count(self.amount, t.numel())
        if not count:
            return default_mask.detach().clone()
        sizes = abs(to_device(t.array, CPU)).reshape(-1)
        return _without(default_mask, sizes.argsort(kind="stable")[:count])


class RandomStructured(BasePruningMethod):
    """Prunes channels at random.

    Args:
        amount: how many, or which fraction.
        dim: of the channels.
    """

    PRUNING_TYPE = "structured"

    def __init__(self, amount: float, dim: int = -1) -> None:
        """Take amount and dimension."""
        _check_amount(amount)
        self.amount, self.dim = amount, dim

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """Return the mask."""
        size = _channels(t, self.dim)
        count = _count(self.amount, size)
        drawn = current_generator().uniform((size,), to_device(t.array, CPU).dtype)
        return _without(default_mask, drawn.argsort(kind="stable")[:count], self.dim)


class LnStructured(BasePruningMethod):
    """Prunes the channels of the smallest norm.

    Args:
        amount: how many, or which fraction.
        n: the order of the norm.
        dim: of the channels.
    """

    PRUNING_TYPE = "structured"

    def __init__(self, amount: float, n: Any, dim: int = -1) -> None:
        """Take amount, order and dimension."""
        _check_amount(amount)
        self.amount, self.n, self.dim = amount, n, dim

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """Return the mask."""
        size = _channels(t, self.dim)
        count = _count(self.amount, size)
        others = tuple(d for d in range(t.ndim) if d != self.dim % t.ndim)
        order = 2 if self.n == "fro" else self.n
        norms = to_device(vector_norm(t, order, others).array, CPU)
        return _without(default_mask, norms.argsort(kind="stable")[:count], self.dim)


class CustomFromMask(BasePruningMethod):
    """Prunes where a given mask is 0.

    Args:
        mask: zeros and ones.
    """

    PRUNING_TYPE = "global"

    def __init__(self, mask: Tensor) -> None:
        """Take the mask."""
        self.mask = mask

    def compute_mask(self, t: Tensor, default_mask: Tensor) -> Tensor:
        """Return the product of both masks."""
        return mul(default_mask, self.mask.to(default_mask.dtype))


# ---------------------------------------------------------------------- functions
def identity(module: Module, name: str) -> Module:
    """Give the parameter mask and hook without pruning it; return the module."""
    Identity.apply(module, name)
    return module


def random_unstructured(module: Module, name: str, amount: float) -> Module:
    """Prune elements at random; return the module."""
    RandomUnstructured.apply(module, name, amount)
    return module


def l1_unstructured(
    module: Module, name: str, amount: float, importance_scores: Tensor | None = None
) -> Module:
    """Prune the elements of the smallest size, or score; return the module.

    Example:
        >>> import distgrad as dg
        >>> from distgrad import nn
        >>> layer = l1_unstructured(nn.Linear(2, 2), "weight", 0.5)
        >>> int((layer.weight == 0).sum())
        2
    """
    L1Unstructured.apply(module, name, amount=amount, importance_scores=importance_scores)
    return module


def random_structured(module: Module, name: str, amount: float, dim: int) -> Module:
    """Prune channels along ``dim`` at random; return the module."""
    RandomStructured.apply(module, name, amount, dim)
    return module


def ln_structured(
    module: Module,
    name: str,
    amount: float,
    n: Any,
    dim: int,
    importance_scores: Tensor | None = None,
) -> Module:
    """Prune the channels along ``dim`` of the smallest n-norm; return the module."""
    LnStructured.apply(module, name, amount, n, dim, importance_scores=importance_scores)
    return module


def custom_from_mask(module: Module, name: str, mask: Tensor) -> Module:
    """Prune where ``mask`` is 0; return the module."""
    CustomFromMask.apply(module, name, mask)
    return module


def global_unstructured(
    parameters: Iterable[tuple[Module, str]],
    pruning_method: type[BasePruningMethod],
    importance_scores: dict[tuple[Module, str], Tensor] | None = None,
    **kwargs: Any,
) -> None:
    """Prune elements of several parameters as if they were one.

    Args:
        parameters: pairs of a module and the name of its parameter.
        pruning_method: an unstructured one; ``kwargs`` are its arguments.
        importance_scores: by such pairs, in the place of the values.
    """
    pairs = list(parameters)
    scores = importance_scores or {}
    values = [scores.get((m, n), getattr(m, n)).detach() for m, n in pairs]
    masks = [getattr(m, n + "_mask", ones_like(getattr(m, n))) for m, n in pairs]
    method: Any = PruningContainer()
    method._tensor_name = "temp"
    new = pruning_method(**kwargs)
    new._tensor_name = "temp"
    if new.PRUNING_TYPE != "unstructured":
        raise ArgumentTypeError(
            'Only "unstructured" PRUNING_TYPE supported for the `pruning_method`. Found method '
            f"{pruning_method} of type {new.PRUNING_TYPE}"
        )
    method.add_pruning_method(new)
    flat = cat([reshape(v, (-1,)) for v in values])
    mask = method.compute_mask(flat, cat([reshape(m, (-1,)) for m in masks]))
    parts = split(mask, [v.numel() for v in values])
    for (module, name), part, value in zip(pairs, parts, values, strict=True):
        custom_from_mask(module, name, reshape(part, value.array.shape))


def remove(module: Module, name: str) -> Module:
    """Make the pruned tensor the parameter again, zeros included; return the module."""
    found = _method_of(module, name)
    if found is None:
        raise ArgumentError(
            f"Parameter '{name}' of module {module} has to be pruned before pruning can be removed"
        )
    found[1].remove(module)
    del module._forward_pre_hooks[found[0]]
    return module


def is_pruned(module: Module) -> bool:
    """Return whether a parameter of the module, or of one inside it, is pruned."""
    hooks = (h for m in module.modules() for h in m._forward_pre_hooks.values())
    return any(isinstance(hook, BasePruningMethod) for hook in hooks)
