"""Weight normalisation by a hook, PyTorch's older form; see ``parametrizations.weight_norm``."""

from __future__ import annotations

import warnings
from typing import Any

from distgrad.errors import ArgumentError, CheckpointError
from distgrad.nn.module import Module
from distgrad.nn.parameter import Parameter
from distgrad.ops.elementwise import div, mul
from distgrad.ops.norms import vector_norm
from distgrad.tensor import Tensor

__all__ = ["WeightNorm", "norm_except_dim", "remove_weight_norm", "weight_norm"]


def norm_except_dim(v: Tensor, pow: int = 2, dim: int = 0) -> Tensor:
    """Return the norm of ``v`` over all dimensions but ``dim``; over all with ``dim`` -1.

    Example:
        >>> import distgrad as dg
        >>> norm_except_dim(dg.tensor([[3.0, 4.0], [0.0, 2.0]])).tolist()
        [[5.0], [2.0]]
    """
    if dim == -1:
        return vector_norm(v, pow)
    others = tuple(d for d in range(v.ndim) if d != dim % v.ndim)
    if not others:
        return vector_norm(v, pow, (), True) if v.ndim == 0 else v.abs()
    return vector_norm(v, pow, others, True)


def scaled(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """Return ``v`` with the norms ``g`` over all dimensions but ``dim``."""
    return mul(v, div(g, norm_except_dim(v, 2, dim)))


class WeightNorm:
    """The hook: computes the weight from its direction and its size before each forward."""

    def __init__(self, name: str, dim: int | None) -> None:
        """Note which parameter it is."""
        self.name, self.dim = name, -1 if dim is None else dim

    def compute_weight(self, module: Module) -> Any:
        """Return the weight."""
        g, v = getattr(module, self.name + "_g"), getattr(module, self.name + "_v")
        return scaled(v, g, self.dim)

    @staticmethod
    def apply(module: Module, name: str, dim: int | None) -> WeightNorm:
        """Replace the parameter by direction and size, and register the hook."""
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm) and hook.name == name:
                raise CheckpointError(
                    f"Cannot register two weight_norm hooks on the same parameter {name}"
                )
        made = WeightNorm(name, dim)
        weight = getattr(module, name)
        delattr(module, name)
        size = norm_except_dim(weight.detach(), 2, made.dim)
        module.register_parameter(name + "_g", Parameter(size))
        module.register_parameter(name + "_v", Parameter(weight.detach()))
        setattr(module, name, made.compute_weight(module))
        module.register_forward_pre_hook(made)
        return made

    def remove(self, module: Module) -> None:
        """Make the weight a parameter again."""
        weight = self.compute_weight(module)
        delattr(module, self.name)
        for suffix in ("_g", "_v"):
            delattr(module, self.name + suffix)
        module.register_parameter(self.name, Parameter(weight.detach()))

    def __call__(self, module: Module, inputs: Any) -> None:
        setattr(module, self.name, self.compute_weight(module))


def weight_norm(module: Module, name: str = "weight", dim: int | None = 0) -> Module:
    """Replace a parameter by its direction ``<name>_v`` and its size ``<name>_g``.

    Args:
        module: holds the parameter; it is returned.
        name: of the parameter.
        dim: each entry along it has a size of its own; None: one size for all.

    Source: Salimans & Kingma 2016.
    """
    warnings.warn(
        "`nn.utils.weight_norm` is deprecated in favor of `nn.utils.parametrizations.weight_norm`.",
        FutureWarning,
        stacklevel=2,
    )
    WeightNorm.apply(module, name, dim)
    return module


def remove_weight_norm(module: Module, name: str = "weight") -> Module:
    """Undo ``weight_norm`` and return the module; the weight keeps its values."""
    for key, hook in module._forward_pre_hooks.items():
        if isinstance(hook, WeightNorm) and hook.name == name:
            hook.remove(module)
            del module._forward_pre_hooks[key]
            return module
    raise ArgumentError(f"weight_norm of '{name}' not found in {module}")
