"""Wrong operands that only the device sees, such as a label that is no class.

To look at them the host would have to wait.  Instead a kernel writes the first one down, with nan
for a result, and the host raises the error when it reads numbers of that device anyway.
"""

from __future__ import annotations

import functools
from typing import Any

import cupy

from distgrad.backend import capture
from distgrad.errors import IndexOutOfRange
from distgrad.typing import Array

__all__ = ["check", "place_for"]

_places: dict[int, Array] = {}
_asked: set[int] = set()  # devices where a kernel that may find something ran since the last look


def place_for() -> Array:
    """Return the current device's memory for what a kernel finds, and look at it some time."""
    device = cupy.cuda.runtime.getDevice()
    if device not in _places:
        with capture.outside():
            _places[device] = cupy.zeros(3, cupy.int64)
    _asked.add(device)
    graph = capture.current()
    if graph is not None:
        graph.before_replay(_asks(device))
    return _places[device]


@functools.cache
def _asks(device: int) -> Any:
    return functools.partial(_asked.add, device)


def check(array: Array) -> None:
    """Raise what kernels found on the device of ``array``, for which the host is waiting anyway.

    Raises:
        IndexOutOfRange: a label is no class, or an index no row of a table.
    """
    device = int(array.device.id)
    if device not in _asked:
        return
    _asked.discard(device)
    with array.device:  # it need not be the current one
        kind, value, limit = _places[device].get().tolist()
        if kind:
            _places[device].fill(0)
    if kind:
        raise IndexOutOfRange(
            _WORDS[kind].format(value=value, limit=limit, last=limit - 1)
            + " (noticed now that the host reads a number of the GPU; an earlier operation has it)"
        )


_WORDS = {
    1: "Target {value} is out of bounds: classes are 0 … {last}; give the model more outputs or "
    "correct the targets",
    2: "index out of range in self: {value} is not in [0, {limit}), the rows of weight; enlarge "
    "num_embeddings or correct the indices",
}
