"""ONNX files, which are not written here; what is registered for them is not used."""

from __future__ import annotations

from typing import Any


def register_custom_op_symbolic(symbolic_name: str, symbolic_fn: Any, opset_version: int) -> None:
    """Do nothing: no ONNX file is written."""
