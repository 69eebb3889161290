"""``torch.onnx``: models are not exported here; packages that register rules for it may do so."""

from __future__ import annotations

from typing import Any, NoReturn

from distgrad.errors import ArgumentError

__all__ = [
    "export", "is_in_onnx_export", "register_custom_op_symbolic", "unregister_custom_op_symbolic",
]  # fmt: skip


def export(model: Any, args: Any = (), f: Any = None, **options: Any) -> NoReturn:
    """Raise: there is no exporter.

    Raises:
        ArgumentError: always.
    """
    raise ArgumentError(
        "torch.onnx.export(): distgrad exports no ONNX; save the state dict with torch.save, load "
        "it in PyTorch and export there"
    )


def is_in_onnx_export() -> bool:
    """Return False: nothing is exported."""
    return False


def register_custom_op_symbolic(symbolic_name: str, symbolic_fn: Any, opset_version: int) -> None:
    """Do nothing: there is no exporter that would use the rule."""


def unregister_custom_op_symbolic(symbolic_name: str, opset_version: int) -> None:
    """Do nothing: there is no exporter."""
