"""Spectral normalisation by a hook, PyTorch's older form; see ``parametrizations``."""

from __future__ import annotations

import functools
from typing import Any

from distgrad.autograd.mode import no_grad
from distgrad.errors import ArgumentError, CheckpointError
from distgrad.nn.functional import normalize
from distgrad.nn.module import Module
from distgrad.nn.modules.conv import _ConvTranspose
from distgrad.nn.parameter import Parameter
from distgrad.ops.create import empty
from distgrad.ops.shape import permute, reshape

__all__ = ["SpectralNorm", "remove_spectral_norm", "spectral_norm"]


def _note_version(
    name: str, module: Module, state: Any, prefix: str, metadata: dict[str, Any]
) -> None:
    """Say in the state dict's metadata that it holds both vectors of the estimate."""
    metadata.setdefault("spectral_norm", {})[name + ".version"] = 1


class SpectralNorm:
    """The hook: divides the weight by its largest singular value before each forward."""

    def __init__(self, name: str, n_power_iterations: int, dim: int, eps: float) -> None:
        """Note which parameter it is."""
        if n_power_iterations <= 0:
            raise ArgumentError(
                "Expected n_power_iterations to be positive, but got "
                f"n_power_iterations={n_power_iterations}"
            )
        self.name, self.dim, self.eps = name, dim, eps
        self.n_power_iterations = n_power_iterations

    def reshape_weight_to_matrix(self, weight: Any) -> Any:
        """Return the weight as a matrix with a row for each entry along ``dim``."""
        rest = [d for d in range(weight.ndim) if d != self.dim]
        rows = weight.array.shape[self.dim]
        return reshape(permute(weight, (self.dim, *rest)), (rows, -1))

    def compute_weight(self, module: Any, do_power_iteration: bool) -> Any:
        """Return the normalised weight."""
        weight = getattr(module, self.name + "_orig")
        u, v = getattr(module, self.name + "_u"), getattr(module, self.name + "_v")
        matrix = self.reshape_weight_to_matrix(weight)
        if do_power_iteration:
            with no_grad():
                fixed = matrix.detach()
                for _ in range(self.n_power_iterations):
                    v.copy_(normalize(fixed.mT @ u, dim=0, eps=self.eps))
                    u.copy_(normalize(fixed @ v, dim=0, eps=self.eps))
            u, v = u.clone(), v.clone()  # the next iteration writes into the buffers
        return weight / u.dot(matrix @ v)

    @staticmethod
    def apply(
        module: Module, name: str, n_power_iterations: int, dim: int, eps: float
    ) -> SpectralNorm:
        """Replace the parameter and register the hook."""
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm) and hook.name == name:
                raise CheckpointError(
                    f"Cannot register two spectral_norm hooks on the same parameter {name}"
                )
        made = SpectralNorm(name, n_power_iterations, dim, eps)
        weight = module._parameters.get(name)
        if weight is None:
            raise ArgumentError(
                f"`SpectralNorm` cannot be applied as parameter `{name}` is None or missing"
            )
        delattr(module, name)
        module.register_parameter(name + "_orig", weight)
        setattr(module, name, weight.detach())
        matrix = made.reshape_weight_to_matrix(weight.detach())
        for suffix, size in zip(("_u", "_v"), matrix.array.shape, strict=True):
            drawn: Any = empty(size, dtype=weight.dtype, device=weight.device)
            module.register_buffer(name + suffix, normalize(drawn.normal_(0, 1), dim=0, eps=eps))
        module.register_forward_pre_hook(made)
        module._register_state_dict_hook(functools.partial(_note_version, name))
        return made

    def remove(self, module: Module) -> None:
        """Make the normalised weight a parameter again."""
        with no_grad():
            weight = self.compute_weight(module, False)
        delattr(module, self.name)
        for suffix in ("_u", "_v", "_orig"):
            delattr(module, self.name + suffix)
        module.register_parameter(self.name, Parameter(weight.detach()))

    def __call__(self, module: Module, inputs: Any) -> None:
        setattr(module, self.name, self.compute_weight(module, module.training))


def spectral_norm(
    module: Module,
    name: str = "weight",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    dim: int | None = None,
) -> Module:
    """Divide a parameter by its largest singular value; it is kept as ``<name>_orig``.

    The arguments are those of ``parametrizations.spectral_norm``.
    """
    if dim is None:
        dim = 1 if isinstance(module, _ConvTranspose) else 0
    SpectralNorm.apply(module, name, n_power_iterations, dim, eps)
    return module


def remove_spectral_norm(module: Module, name: str = "weight") -> Module:
    """Undo ``spectral_norm`` and return the module; the weight keeps its normalised values."""
    for key, hook in module._forward_pre_hooks.items():
        if isinstance(hook, SpectralNorm) and hook.name == name:
            hook.remove(module)
            del module._forward_pre_hooks[key]
            return module
    raise ArgumentError(f"spectral_norm of '{name}' not found in {module}")
