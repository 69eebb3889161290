"""What occupies memory: asked when an allocation fails, so that the message can say it."""

from __future__ import annotations

import gc
import math
from collections import Counter
from typing import Any

_SHOWN = 4


def largest_tensors() -> str:
    """Return the kinds of tensors that hold most memory, those that share it counted once.

    Tensors are told by the array that they have; those alive only inside a graph count too.
    """
    homes: dict[int, Any] = {}
    for thing in gc.get_objects():
        if type(thing).__name__ in ("Tensor", "Parameter"):
            array = getattr(thing, "array", None)
            if hasattr(array, "nbytes") and hasattr(array, "strides"):
                homes.setdefault(_address(array), array)
    kinds: Counter[str] = Counter()
    nbytes: Counter[str] = Counter()
    for array in homes.values():
        name = f"{array.dtype}{list(array.shape)}"
        kinds[name] += 1
        nbytes[name] += array.nbytes
    parts = [
        f"{kinds[name]} x {name} ({in_units(size)})" for name, size in nbytes.most_common(_SHOWN)
    ]
    return ", ".join(parts)


def _address(array: Any) -> int:
    """Return where the memory begins that an array is a view of."""
    data: Any = getattr(array, "data", None)
    if hasattr(data, "ptr"):
        return int(getattr(data.mem, "ptr", data.ptr))
    while array.base is not None and hasattr(array.base, "nbytes"):
        array = array.base
    return id(array)


def in_units(nbytes: float) -> str:
    """Return a number of bytes for people.

    Example:
        >>> in_units(512), in_units(3 << 20), in_units(1.5 * 2**40)
        ('512 B', '3.0 MiB', '1.5 TiB')
    """
    power = min(4, max(0, int(math.log2(max(1, nbytes)) // 10)))
    number = nbytes / 2 ** (10 * power)
    return f"{number:.0f} B" if not power else f"{number:.1f} {' KMGT'[power]}iB"
