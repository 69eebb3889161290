"""Optimizers, norms and scales of gradients: one launch for many arrays (``kernels/optim.cu``).

Note [Tables]
    A launch finds its arrays in a table of addresses that it is given by value, as CUDA passes all
    parameters of a kernel: no copy to the device, whatever gradients a step brings, and a graph
    keeps the table that it was captured with.

Note [Numbers of a step]
    The kernel ``prepare`` counts the step and works out what the rule multiplies by, in float64 as
    Python would; the kernel of the rule reads that.  Options and counts can lie on the device.
    CUDA's ``pow`` may differ from the host's in its last bit, and a factor then in its last of
    float32; all else has the bits of optim/rules.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cupy
import numpy as np

from distgrad.backend.cuda.module import kernel, type_name
from distgrad.backend.layout import is_dense
from distgrad.typing import Array

__all__ = ["KERNELS", "RULES", "Update"]

_FILE = "optim.cu"
_MOST, _PLACES, _CHUNK, _NUMBERS = 48, 5, 8192, 8  # as in the kernels
_TABLE = np.dtype([
    ("count", "i8"), ("sizes", "i8", (_MOST,)), ("first", "i8", (_MOST + 1,)),
    ("places", "u8", (_MOST, _PLACES)),
])  # fmt: skip
_HYPER = np.dtype([(name, "f8") for name in ("lr", "decay", "a", "b", "eps", "c", "d", "e")])
_NORMS = {np.inf: 0, 0.0: 1, 1.0: 2, 2.0: 3}  # others: 4

RULES = {
    "sgd": 0, "adam": 1, "adamax": 2, "adagrad": 3, "adadelta": 4, "rmsprop": 5, "radam": 6,
}  # fmt: skip
"""The rules that have a kernel, by their names in optim/rules.py."""

MAXIMIZE, DECOUPLED, NESTEROV, FIRST = (1 << i for i in range(4))


class _Tables:
    """Addresses of arrays, in as many tables as it takes.

    Args:
        rows: arrays of one size each, of which some may be None.
    """

    def __init__(self, rows: Sequence[Sequence[Array | None]]) -> None:
        self._rows = [row for row in rows if row[0].size]  # type: ignore[union-attr]
        starts = range(0, len(self._rows), _MOST)
        self.tables = [_table(self._rows[start : start + _MOST]) for start in starts]

    def put(self, place: int, arrays: Sequence[Array]) -> None:
        """Give all rows another array in one place."""
        given = [a.data.ptr for a in arrays if a.size]
        for number, (table, _) in enumerate(self.tables):
            part = given[number * _MOST : (number + 1) * _MOST]
            table["places"][0, : len(part), place] = part

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        return iter(self.tables)

    @property
    def blocks(self) -> int:
        """How many blocks all launches have."""
        return sum(blocks for _, blocks in self.tables)


def _table(rows: Sequence[Sequence[Array | None]]) -> tuple[Any, int]:
    table = np.zeros(1, _TABLE)  # a size of one is what CuPy passes by value
    sizes = np.array([row[0].size for row in rows])  # type: ignore[union-attr]
    first = np.concatenate([[0], np.cumsum(-(-sizes // _CHUNK))])
    table["count"] = len(rows)
    table["sizes"][0, : len(rows)] = sizes
    table["first"][0, : len(first)] = first
    for number, row in enumerate(rows):
        table["places"][0, number, : len(row)] = [0 if a is None else a.data.ptr for a in row]
    return table, int(first[-1])


class Update:
    """A rule over many parameters of one dtype, which are updated in one launch for every 48.

    Args:
        rule: its name.
        params: contiguous arrays.
        state: the arrays of state of each, up to three, None for what the rule does without.
    """

    def __init__(
        self, rule: str, params: Sequence[Array], state: Sequence[Sequence[Array | None]]
    ) -> None:
        kind = str(type_name(params[0].dtype))
        self._rule = RULES[rule]
        self._kernel = kernel(_FILE, rule, T=kind)
        self._prepare = kernel(_FILE, "prepare", T=kind)
        self._tables = _Tables([(p, None, *s) for p, s in zip(params, state, strict=True)])
        self._kept = params, state
        self._numbers = cupy.empty(_NUMBERS, np.float64)

    def __call__(
        self,
        grads: Sequence[Array],
        options: Array | Sequence[float],
        flags: int,
        step: Array | int,
        found: Array | None = None,
    ) -> None:
        """Make a step.

        Args:
            grads: contiguous, like the parameters.
            options: lr, decay, and what else the rule asks for; on the device or not.
            flags: MAXIMIZE and so on.
            step: its number, or counts on the device (float32), which become one more.
            found: a float32 on the device; if it is not 0, nothing is done.
        """
        given, device = np.zeros(1, _HYPER), options
        if not isinstance(options, cupy.ndarray):
            given.view("f8")[: len(options)], device = options, 0
        counts, number = (step, 0.0) if isinstance(step, cupy.ndarray) else (None, float(step))
        found_ = 0 if found is None else found
        self._prepare(
            (1,), (32,),
            (device, given, self._rule, flags, 0 if counts is None else counts,
             0 if counts is None else counts.size, number, found_, self._numbers),
        )  # fmt: skip
        self._tables.put(1, grads)
        for table, blocks in self._tables:
            self._kernel((blocks,), (256,), (table, self._numbers, found_, flags))


def takes(arrays: Sequence[Array]) -> bool:
    """Return whether kernels here take such arrays: without gaps, of one floating point type."""
    kind = arrays[0].dtype
    return type_name(kind) is not None and all(a.dtype == kind and is_dense(a) for a in arrays)


def gradient_norm(arrays: Sequence[Array], norm_type: float, most: float) -> Any:
    """Return the norm of all arrays together, and what brings it to ``most``; both on the device.

    Returns:
        The norm, without dimensions, and a float64 for `scale_arrays`.
    """
    if not takes(arrays):
        return NotImplemented
    name, kind = str(type_name(arrays[0].dtype)), _NORMS.get(norm_type, 4)
    tables = _Tables([(a,) for a in arrays])
    parts = cupy.empty(max(tables.blocks, 1), np.float64)
    norm, factor = cupy.empty((), arrays[0].dtype), cupy.empty((), np.float64)
    done, part = 0, kernel(_FILE, "norm_parts", T=name)
    for table, blocks in tables:
        part((blocks,), (256,), (table, kind, float(norm_type), parts[done:]))
        done += blocks
    last = (parts, done, kind, float(norm_type), float(most), norm, factor)
    kernel(_FILE, "norm_total", T=name)((1,), (256,), last)
    return norm, factor


def scale_arrays(arrays: Sequence[Array], factor: Array) -> Any:
    """Multiply arrays in place by a float64 on the device."""
    if not takes(arrays):
        return NotImplemented
    name = str(type_name(arrays[0].dtype))
    for table, blocks in _Tables([(a,) for a in arrays]):
        kernel(_FILE, "scale_all", T=name)((blocks,), (256,), (table, factor))
    return None


def unscale_arrays(arrays: Sequence[Array], inverse: Array, found: Array) -> Any:
    """Multiply arrays in place by a float32 on the device; ``found`` is 1 if any is not finite."""
    if not takes(arrays):
        return NotImplemented
    name = str(type_name(arrays[0].dtype))
    for table, blocks in _Tables([(a,) for a in arrays]):
        kernel(_FILE, "unscale_all", T=name)((blocks,), (256,), (table, inverse, found))
    return None


def adapt_scale(state: Array, found: Array, growth: float, backoff: float, interval: int) -> None:
    """Let the loss scale in ``state`` (itself, its inverse, steps since it grew) change.

    Args:
        state: three float32.
        found: what each optimizer's unscaling found.
        growth, backoff: what the scale is multiplied by.
        interval: steps after which it grows.
    """
    numbers = (found.size, float(growth), float(backoff), float(interval))
    kernel(_FILE, "adapt_scale", T="float")((1,), (32,), (state, found, *numbers))


KERNELS: dict[str, Callable[..., Any]] = {
    "adapt_scale": adapt_scale,
    "gradient_norm": gradient_norm,
    "scale_arrays": scale_arrays,
    "unscale_arrays": unscale_arrays,
    "update": Update,
}
