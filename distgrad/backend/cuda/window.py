"""Reductions over windows that several ranks have filled, in one launch (``kernels/window.cu``).

The order of the operations is compiled in: a job has one such order, or few.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from distgrad.backend.cuda.module import blocks, kernel, type_name
from distgrad.typing import Array

__all__ = ["KERNELS", "written"]

_MOST = 32  # as in the kernel
_OPS = {"sum": "Sum", "avg": "Sum", "prod": "Product", "max": "Largest", "min": "Least"}
_WINDOWS = np.dtype([("at", "u8", (_MOST,))])


def reduce_windows(op: str, order: Any, arrays: Sequence[Array], out: Array, rounds: bool) -> Any:
    """Leave the reduction of ``arrays`` in ``out``, on the current stream.

    Args:
        op: its name.
        order: numbers of arrays in nested pairs, as `distgrad.distributed.tree.order_of` has it.
        arrays: flat, of one dtype; they are only read.
        out: another one of their size.
        rounds: round 16-bit floats after each operation, and not at last.
    """
    kind = type_name(out.dtype)
    if kind is None or len(arrays) > _MOST:
        return NotImplemented
    table = np.zeros(1, _WINDOWS)
    places = table["at"][0, : len(arrays)] = [a.data.ptr for a in arrays]
    wide = not any(place % 16 for place in (*places, out.data.ptr))
    between = kind if rounds or out.itemsize > 2 else "float"
    divisor = float(len(arrays)) if op == "avg" else 0.0
    launch = kernel(
        "window.cu", "reduce_windows", T=kind, W=between, OP=_OPS[op], ORDER=written(order)
    )
    launch((blocks(out),), (256,), (table, out, out.size, int(wide), divisor))
    return None


@cache
def written(order: Any) -> str:
    """Return an order as the kernel has it: ((0, 1), 2) is f(f(x(0),x(1)),x(2))."""
    if isinstance(order, int):
        return f"x({order})"
    return f"f({written(order[0])},{written(order[1])})"


KERNELS: dict[str, Callable[..., Any]] = {"reduce_windows": reduce_windows}
