"""Places for quantisation in a model, which do nothing until it is quantised; that is not here."""

from __future__ import annotations

from typing import Any, NoReturn

from distgrad.errors import ArgumentError
from distgrad.nn import Module
from distgrad.nn.functional import relu
from distgrad.ops.join import cat
from distgrad.tensor import Tensor

__all__ = [
    "DeQuantStub", "FloatFunctional", "QuantStub", "convert", "fuse_modules", "fuse_modules_qat",
    "get_default_qat_qconfig", "get_default_qconfig", "prepare", "prepare_qat", "quantize_dynamic",
]  # fmt: skip


class QuantStub(Module):
    """Returns its input: nothing is quantised."""

    def __init__(self, qconfig: Any = None) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``."""
        return x


class DeQuantStub(QuantStub):
    """Returns its input: nothing is quantised."""


class FloatFunctional(Module):
    """Arithmetic as a module, so that a quantiser could watch it."""

    def forward(self, x: Any) -> NoReturn:
        """Raise: its methods are called instead.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("FloatFunctional is not intended to use the 'forward'; call a method")

    def add(self, x: Tensor, y: Any) -> Any:
        """Return ``x + y``."""
        return x + y

    def mul(self, x: Tensor, y: Any) -> Any:
        """Return ``x * y``."""
        return x * y

    add_scalar, mul_scalar = add, mul

    def cat(self, x: list[Tensor], dim: int = 0) -> Tensor:
        """Return the tensors joined along ``dim``."""
        joined: Tensor = cat(x, dim)
        return joined

    def add_relu(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``relu(x + y)``."""
        positive: Tensor = relu(x + y)
        return positive

    def matmul(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``x @ y``."""
        return x @ y


def _refuse(*args: Any, **options: Any) -> NoReturn:
    """Raise: models are not quantised here.

    Raises:
        ArgumentError: always.
    """
    raise ArgumentError(
        "torch.ao.quantization: distgrad quantises no models; train in float32 or bfloat16, save "
        "the state dict, and quantise in PyTorch"
    )


prepare = prepare_qat = convert = fuse_modules = fuse_modules_qat = quantize_dynamic = _refuse
get_default_qconfig = get_default_qat_qconfig = _refuse
