"""Arrays as text, in PyTorch's layout: columns of equal width, summaries, suffixes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from distgrad.backend.device import array_namespace, device_of
from distgrad.backend.dtype import bool_, from_numpy, get_default_dtype, int64
from distgrad.errors import ArgumentError
from distgrad.typing import Array

Profile = Literal["default", "short", "full"]


@dataclass(frozen=True, slots=True)
class _Options:
    precision: int = 4
    threshold: float = 1000
    edgeitems: int = 3
    linewidth: int = 80
    sci_mode: bool | None = None


_PROFILES: dict[str, _Options] = {
    "default": _Options(),
    "short": _Options(precision=2, edgeitems=2),
    "full": _Options(threshold=math.inf),
}
_options = _Options()


def set_printoptions(
    precision: int | None = None,
    threshold: float | None = None,
    edgeitems: int | None = None,
    linewidth: int | None = None,
    profile: Profile | None = None,
    sci_mode: bool | None = None,
) -> None:
    """Sets how tensors are printed; what is ``None`` stays, but ``sci_mode`` becomes automatic.

    Args:
        precision: digits after the point (4).
        threshold: number of elements above which the middle is left out (1000).
        edgeitems: elements shown at both ends of an axis in a summary (3).
        linewidth: characters in a line (80).
        profile: ``"default"``, ``"short"`` or ``"full"``, to start from.
        sci_mode: scientific notation always, never, or (``None``) when the numbers need it.
    """
    global _options
    if profile is not None and profile not in _PROFILES:
        raise ArgumentError(
            f"set_printoptions(profile={profile!r}): no such profile; use one of "
            + ", ".join(map(repr, _PROFILES))
        )
    base = _options if profile is None else _PROFILES[profile]
    given = {
        "precision": precision,
        "threshold": threshold,
        "edgeitems": edgeitems,
        "linewidth": linewidth,
    }
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    _options = replace(base, **changes, sci_mode=sci_mode)


def get_printoptions() -> dict[str, Any]:
    """The print options, by the names that `set_printoptions` takes."""
    return asdict(_options)


@contextlib.contextmanager
def printoptions(
    precision: int | None = None,
    threshold: float | None = None,
    edgeitems: int | None = None,
    linewidth: int | None = None,
    profile: Profile | None = None,
    sci_mode: bool | None = None,
) -> Iterator[None]:
    """Sets the print options inside the block, as `set_printoptions` does."""
    global _options
    before = _options
    set_printoptions(precision, threshold, edgeitems, linewidth, profile, sci_mode)
    try:
        yield
    finally:
        _options = before


@dataclass(frozen=True, slots=True)
class _Column:
    """How every number of an array is written."""

    width: int
    kind: Literal["plain", "whole", "fixed", "science"]

    def write(self, value: Any) -> str:
        text = self._text(value)
        return " " * (self.width - len(text)) + text

    def _text(self, value: Any) -> str:
        if self.kind == "plain":
            return str(value)
        if self.kind == "science":
            return f"{value:.{_options.precision}e}"
        if self.kind == "fixed":
            return f"{value:.{_options.precision}f}"
        return f"{value:.0f}." if math.isfinite(value) else f"{value:.0f}"


def _column(shown: np.ndarray[Any, Any]) -> _Column:
    """The narrowest column for the numbers that will be shown."""
    if shown.dtype.kind != "f":
        return _Column(max([len(str(value)) for value in shown.ravel().tolist()] + [1]), "plain")
    values = shown[np.isfinite(shown) & (shown != 0)]
    if not values.size:
        return _Column(1, "whole")
    size = np.abs(values)
    low, high = float(size.min()), float(size.max())
    science = _options.sci_mode
    if science is None:
        science = high / 1000 > low or high > 1e8 or low < 1e-4
    whole = bool((values == np.ceil(values)).all())
    bare = _Column(1, "science" if science else "whole" if whole else "fixed")
    return _Column(max(len(bare.write(value)) for value in values.tolist()), bare.kind)


def _shown(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The elements that a summary shows."""
    edge = _options.edgeitems
    for axis, n in enumerate(array.shape):
        if n > 2 * edge:
            ends = [*range(edge), *range(n - edge, n)]
            array = array.take(ends, axis)
    return array


def _vector(
    array: np.ndarray[Any, Any], indent: int, summarize: bool, columns: Sequence[_Column]
) -> str:
    length = sum(column.width for column in columns) + len(columns) + 1
    per_line = max(1, (_options.linewidth - indent) // length)
    edge = _options.edgeitems
    if summarize and not edge:
        words = ["..."]
    elif summarize and len(array) > 2 * edge:
        words = [_number(value, columns) for value in array[:edge].tolist()]
        words.append(" ...")
        words += [_number(value, columns) for value in array[-edge:].tolist()]
    else:
        words = [_number(value, columns) for value in array.tolist()]
    lines = [", ".join(words[i : i + per_line]) for i in range(0, len(words), per_line)]
    return "[" + (",\n" + " " * (indent + 1)).join(lines) + "]"


def _number(value: Any, columns: Sequence[_Column]) -> str:
    if len(columns) == 1:
        return columns[0].write(value)
    imaginary = (columns[1].write(value.imag) + "j").lstrip()
    sign = "" if imaginary[0] in "+-" else "+"
    return columns[0].write(value.real) + sign + imaginary


def _rows(
    array: np.ndarray[Any, Any], indent: int, summarize: bool, columns: Sequence[_Column]
) -> str:
    if array.ndim == 0:
        return _number(array.item(), columns)
    if array.ndim == 1:
        return _vector(array, indent, summarize, columns)
    n, edge = len(array), _options.edgeitems
    left_out = summarize and n > 2 * edge
    places = [*range(edge), *range(n - edge, n)] if left_out else range(n)
    parts = [_rows(array[i], indent + 1, summarize, columns) for i in places]
    if left_out:
        parts.insert(edge, "...")
    return "[" + ("," + "\n" * (array.ndim - 1) + " " * (indent + 1)).join(parts) + "]"


def format_values(array: Array, indent: int = 0) -> str:
    """The elements of ``array`` in brackets, as they stand after ``indent`` characters.

    Example:
        >>> print(format_values(np.array([[1.5, -2.0], [0.25, 3.0]])))
        [[ 1.5000, -2.0000],
         [ 0.2500,  3.0000]]
    """
    if array.size == 0:
        return "[]"
    summarize = array.size > _options.threshold
    host = array_namespace(array).to_numpy(array)
    if host.dtype.kind == "c":
        host = host.astype(np.complex128)
        parts = [host.real, host.imag]
    else:
        if from_numpy(host.dtype).is_floating_point:
            host = host.astype(np.float64)
        parts = [host]
    columns = [_column(_shown(part) if summarize else part) for part in parts]
    return _rows(host, indent, summarize, columns)


def _own_suffixes(array: Array) -> list[str]:
    """Where the array is, how large and of what type, as far as it is not evident."""
    kind, default = from_numpy(array.dtype), get_default_dtype()
    place = device_of(array)
    suffixes = [] if place.type == "cpu" else [f"device='{place}'"]
    if array.size == 0:
        evident = kind is default
        sized = array.ndim != 1
    else:
        evident = kind in (default, default.to_complex(), int64, bool_)
        sized = not _options.edgeitems
    if sized:
        suffixes.append(f"size={tuple(array.shape)}")
    if not evident:
        suffixes.append(f"dtype={kind!r}")
    return suffixes


def format_array(array: Array, prefix: str = "tensor(", suffixes: Sequence[str] = ()) -> str:
    """``array`` as PyTorch prints a tensor.

    Args:
        prefix: what stands before the elements; they are indented by its length.
        suffixes: what stands after device, size and dtype, such as ``"requires_grad=True"``.

    Example:
        >>> print(format_array(np.array([1, 2], np.int32), suffixes=["requires_grad=True"]))
        tensor([1, 2], dtype=distgrad.int32, requires_grad=True)
    """
    indent = len(prefix)
    text = prefix + format_values(array, indent)
    width = len(text) - text.rfind("\n") + 1
    for suffix in (*_own_suffixes(array), *suffixes):
        if width + len(suffix) + 2 > _options.linewidth:
            text += ",\n" + " " * indent + suffix
            width = indent + len(suffix)
        else:
            text += ", " + suffix
            width += len(suffix) + 2
    return text + ")"
