"""Operations on float16 and bfloat16 in host memory: computed in float32, rounded once.

NumPy would round every intermediate result, and gives float32 for bfloat16 times a Python float.
The operands become float32, the operation runs on them, and its float32 results become what the
operands were: three recorded operations, so gradients are computed in float32 and rounded once too.
The wrapper of an operation asks only where its first operand is not float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy

from distgrad.autograd import engine
from distgrad.autograd.traced import map_operand
from distgrad.backend import numpy_backend
from distgrad.backend.device import array_namespace
from distgrad.errors import DistgradError
from distgrad.tensor import Tensor, tensors_in, wrap

_FLOAT32 = numpy.dtype("float32")


def is_narrow(*operands: Any) -> bool:
    """Return True where all floating point operands have one 16-bit type, in host memory."""
    kinds = {t.array.dtype for t in tensors_in(operands) if t.array.dtype.kind in "fcV"}
    if len(kinds) != 1 or kinds.pop().itemsize != 2:
        return False
    return array_namespace(tensors_in(operands)[0].array) is numpy_backend


def widened(
    function: Callable[..., Any], operands: dict[str, Any], options: dict[str, Any], casts: bool
) -> Any:
    """Return ``function(**operands, **options)``, computed in float32 and rounded at the end.

    Args:
        function: an operation.
        operands: its operands, for which ``is_narrow`` is true.
        options: its options.
        casts: the option ``dtype`` was obeyed already.
    """
    narrow = next(t.array.dtype for t in tensors_in(operands.values()) if _is_float(t))
    wide = {name: map_operand(_wide, operand) for name, operand in operands.items()}
    try:
        found = function(**wide, **(options | {"dtype": None} if casts else options))
    except DistgradError as error:
        error.args = (str(error).replace("float32", narrow.name),)  # what the caller brought
        raise
    if isinstance(found, Tensor):
        return _rounded(found, narrow)
    results = [_rounded(x, narrow) for x in found]
    return type(found)(*results) if hasattr(found, "_fields") else type(found)(results)


def _is_float(tensor: Tensor) -> bool:
    return bool(tensor.array.dtype.kind in "fV")


def _wide(tensor: Tensor) -> Tensor:
    exact = tensor.__dict__.get("_exact")
    if exact is not None:
        return wrap(numpy.asarray(exact, _FLOAT32))
    return _cast(tensor, _FLOAT32) if _is_float(tensor) else tensor


def _rounded(result: Tensor, narrow: Any) -> Tensor:
    return _cast(result, narrow) if result.array.dtype is _FLOAT32 else result


def _cast(tensor: Tensor, dtype: Any) -> Tensor:
    out: Tensor = engine.tensor_functions.to_dtype(tensor, dtype)  # type: ignore[attr-defined]
    return out


def remember(number: Tensor, value: object) -> None:
    """Note on ``number`` the Python number: a bool, or what 16-bit operands would round."""
    kind = number.array.dtype
    if type(value) is bool or (kind.itemsize == 2 and kind.kind in "fV"):
        number._exact = value  # type: ignore[attr-defined]
