"""The exceptions of distgrad and the one place where errors of operations are worded.

Every message has one form: *operation(operands with dtype and shape): what is wrong; what to do.*
Each class also inherits the builtin exception that PyTorch raises for the same mistake.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy

from distgrad.alive import largest_tensors


class DistgradError(Exception):
    """Base of every error that distgrad raises on purpose."""

    placed = False  # True once the message names the operation and its operands


class ShapeError(DistgradError, RuntimeError):
    """Sizes that do not fit each other or the operation."""


class DtypeError(DistgradError, RuntimeError):
    """A dtype that the operation does not take or cannot produce."""


class DtypeNotImplemented(DtypeError, NotImplementedError):
    """A dtype for which there is no such function, where PyTorch's kernel is missing too."""


class DeviceError(DistgradError, RuntimeError):
    """A device that is missing, or operands on different devices."""


class AcceleratorError(DistgradError, RuntimeError):
    """A failure of a GPU."""


class OutOfMemoryError(AcceleratorError, MemoryError):
    """An array that the memory of its device has no room for."""


class CaptureError(AcceleratorError):
    """Work that cannot be part of a CUDA graph, or a graph in the wrong state."""


class GradError(DistgradError, RuntimeError):
    """A use of autograd that has no meaning, such as a second pass through a freed graph."""


class ArgumentError(DistgradError, ValueError):
    """An argument of the right type with a value that is not allowed."""


class EmptyListError(ShapeError, ArgumentError):
    """No tensor where one at least is needed."""


class ConflictError(ArgumentError, RuntimeError):
    """Arguments that do not go together, where PyTorch raises RuntimeError."""


class ArgumentTypeError(DistgradError, TypeError):
    """An argument of the wrong type."""


class IndexOutOfRange(DistgradError, IndexError):
    """An index or dimension outside its range."""


class DistributedError(DistgradError, RuntimeError):
    """A failure or a disagreement between ranks."""


class RankLost(DistributedError):
    """Another rank has ended; where MPI survives that, `shrink` lets the others go on."""


class JobLost(DistributedError):
    """Ranks have ended, and those that are left cannot go on."""


class CheckpointError(DistgradError, RuntimeError):
    """A checkpoint that is missing, torn, or of another model."""


class ConfigError(DistgradError, ValueError):
    """A configuration value that is unknown or not allowed."""


class MissingExtra(DistgradError, ImportError):
    """An optional package that a feature needs and that is not installed."""


def describe(value: object) -> str:
    """Return ``value`` as error messages show it: a tensor by dtype, shape and device, else repr.

    Example:
        >>> describe((4, 2))
        '(4, 2)'
    """
    array = getattr(value, "array", value)
    if hasattr(array, "dtype") and hasattr(array, "shape"):
        place = getattr(array, "device", "cpu")
        where = "" if str(place) == "cpu" else f" on cuda:{getattr(place, 'id', 0)}"
        return f"{array.dtype}{list(array.shape)}{where}"
    if isinstance(value, list | tuple) and any(hasattr(v, "array") for v in value):
        return "[" + ", ".join(describe(v) for v in value) + "]"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def signature(op: str, operands: Mapping[str, object], options: Mapping[str, object]) -> str:
    """Return ``op(operand: dtype[shape], option=value)`` as it stands at the head of a message."""
    tensors = [f"{name}: {describe(value)}" for name, value in operands.items()]
    rest = [f"{name}={describe(value)}" for name, value in options.items()]
    return f"{op}({', '.join(tensors + rest)})"


def explain(
    op: str, error: Exception, operands: Mapping[str, object], options: Mapping[str, object]
) -> Exception:
    """Return the exception to raise for ``error``, raised while ``op`` ran on these operands."""
    if isinstance(error, DistgradError) and error.placed:
        return error
    kind, what = _reason(op, error, operands)
    placed = kind(f"{signature(op, operands, options)}: {what}")
    placed.placed = True
    return placed


def _reason(
    op: str, error: Exception, operands: Mapping[str, object]
) -> tuple[type[DistgradError], str]:
    """Return the class and the second half of the message for ``error``."""
    if isinstance(error, DistgradError):
        return type(error), str(error)
    text = str(error)
    wrong = {
        ArgumentTypeError: _not_tensor(operands, "'NoneType' object has no attribute" in text),
        DeviceError: _mixed_devices(operands),
        EmptyListError: _empty_list(op, operands) if isinstance(error, IndexError) else "",
    }
    for kind, what in wrong.items():
        if what:
            return kind, what
    if type(error).__name__ == "AxisError":
        return IndexOutOfRange, _axis_text(error, operands)
    if isinstance(error, MemoryError):
        return OutOfMemoryError, _out_of_memory(text)
    if "broadcast" in text or "core dimension" in text or "aligned" in text:
        return ShapeError, _broadcast_text(op, operands, text)
    if "not supported for the input types" in text:
        dtypes = _dtypes(operands)
        return DtypeNotImplemented, f"not implemented for {dtypes}; convert with .to(dtype)"
    for kind in (IndexOutOfRange, ArgumentTypeError):
        if isinstance(error, kind.__mro__[2]):
            return kind, text
    return ShapeError, text or type(error).__name__


def _out_of_memory(text: str) -> str:
    """Return what failed, what holds memory, and what helps."""
    held = largest_tensors()
    return (
        f"out of memory ({text or 'the system gives no more'})"
        + (f"; the largest tensors alive are {held}" if held else "")
        + "; use a smaller batch with more accumulation steps, drop tensors that are not needed, "
        "or recompute activations with utils.checkpoint"
    )


def _dtypes(operands: Mapping[str, object]) -> str:
    return ", ".join(str(v.array.dtype) for v in operands.values() if hasattr(v, "array"))


def _not_tensor(operands: Mapping[str, object], none_is_wrong: bool) -> str:
    for place, (name, value) in enumerate(operands.items(), 1):
        if hasattr(value, "array"):
            continue
        if isinstance(value, list | tuple) and not _plain(value):
            wrong = [i for i, v in enumerate(value) if not hasattr(v, "array")]
            if not wrong:
                continue
            return (
                f"expected Tensor as element {wrong[0]} in argument {place - 1}, but got "
                f"{type(value[wrong[0]]).__name__}"
            )
        if value is None and not none_is_wrong:
            continue
        return (
            f"argument '{name}' (position {place}) must be Tensor, not {type(value).__name__}; "
            f"make one with distgrad.tensor(...) or distgrad.from_numpy(...)"
        )
    return ""


def _empty_list(op: str, operands: Mapping[str, object]) -> str:
    empty = any(isinstance(v, list | tuple) and not v for v in operands.values())
    return f"{op} expects a non-empty list of Tensors" if empty else ""


def _plain(value: Sequence[Any]) -> bool:
    return bool(value) and not any(hasattr(v, "array") for v in value)


def _mixed_devices(operands: Mapping[str, object]) -> str:
    arrays = {}
    for name, value in operands.items():
        many = value if isinstance(value, list | tuple) else [value]
        for place, v in enumerate(many):
            if hasattr(v, "array") and not isinstance(v.array, numpy.generic):  # a plain number
                arrays[name if value is v else f"{name}[{place}]"] = v.array
    gpus = {_gpu_of(a) for a in arrays.values()} - {""}
    if len({type(a) for a in arrays.values()}) < 2 and len(gpus) < 2:
        return ""
    number = "" if len(gpus) < 2 else ":{}"
    each = ", ".join(
        f"{n} is on {'cpu' if _on_host(a) else 'cuda' + number.format(_gpu_of(a))}"
        for n, a in arrays.items()
    )
    return f"expected all tensors to be on the same device, but {each}; move one with .to(device)"


def _gpu_of(array: object) -> str:
    """Return the number of the GPU that an array is on; nothing for others."""
    return "" if _on_host(array) else str(getattr(getattr(array, "device", None), "id", ""))


def _on_host(array: object) -> bool:
    return type(array).__module__.startswith("numpy")


def _axis_text(error: Exception, operands: Mapping[str, object]) -> str:
    ndim = getattr(error, "ndim", None)
    if ndim is None:
        return f"Dimension out of range ({error})"
    low, high = -max(ndim, 1), max(ndim, 1) - 1
    return (
        f"Dimension out of range (expected to be in range of [{low}, {high}], "
        f"but got {getattr(error, 'axis', '?')})"
    )


def _broadcast_text(op: str, operands: Mapping[str, object], text: str) -> str:
    shapes = {n: tuple(v.array.shape) for n, v in operands.items() if hasattr(v, "array")}
    (a, sa), (b, sb) = (*shapes.items(), ("", ()), ("", ()))[:2]
    if "core dimension" in text or op in ("matmul", "mm", "bmm", "mv", "dot"):
        inner = sb[-2] if len(sb) > 1 else sb[-1] if sb else 1
        return (
            f"mat1 and mat2 shapes cannot be multiplied ({'x'.join(map(str, sa))} and "
            f"{'x'.join(map(str, sb))}): the last size of {a}, {sa[-1] if sa else 1}, must equal "
            f"{inner} of {b}; transpose one of them or change the layer's size"
        )
    for back in range(1, min(len(sa), len(sb)) + 1):
        if sa[-back] != sb[-back] and 1 not in (sa[-back], sb[-back]):
            return (
                f"The size of tensor a ({sa[-back]}) must match the size of tensor b ({sb[-back]}) "
                f"at non-singleton dimension {max(len(sa), len(sb)) - back}; shapes broadcast from "
                f"the last dimension, so reshape or unsqueeze {a} {list(sa)} or {b} {list(sb)}"
            )
    return text
