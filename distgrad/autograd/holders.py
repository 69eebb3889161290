"""Who holds an array: counted, so that memory is written again only where nobody can see it.

Note [Counting who holds it]
    Python counts references, so ownership is no guess.  From a tensor or an array everything is
    gathered that leads to its memory: the tensors that it is a view of, their arrays, what these
    are views of, and on a GPU the pointers and the memory.  If each of them is held exactly as
    often as they hold each other, plus once by who asks, then nobody else does: no variable, no
    view, no ``detach()``, no other node, no NumPy array, no DLPack capsule, no graph of CUDA's.
    Whatever else holds one of them makes a count too high, and the answer is no.
"""

from __future__ import annotations

import sys
import weakref
from typing import Any

import numpy

from distgrad.backend.layout import is_dense
from distgrad.tensor import Tensor

WORTH = 1 << 16  # bytes from which on counting pays
_Entry = list[Any]  # a thing, and how often the others hold it


def is_held_once(holder: Any, key: Any) -> bool:
    """Return whether the memory of ``holder[key]``, a tensor or an array, is held by that alone.

    No number of it serves twice, as in an expanded tensor.  Of small memory the answer is no:
    counting takes ten microseconds, and a new piece is as good.
    """
    if holder[key].nbytes < WORTH:
        return False
    entries = _census(holder[key])
    return bool(entries) and all([_held(entry) == entry[1] for entry in entries])


def _count(entry: _Entry) -> int:
    return sys.getrefcount(entry[0])


_UNHELD = _count([object()])  # the entry and the call itself count too


def _held(entry: _Entry) -> int:
    """Return by how many others the thing in ``entry`` is held."""
    return _count(entry) - _UNHELD


def _census(thing: Any) -> list[_Entry]:
    """Return all that leads to the memory of ``thing``; nothing where that is not to be told."""
    found = _Census()
    known = found.tensor(thing) if isinstance(thing, Tensor) else found.array(thing)
    dense = known and is_dense(thing.array if isinstance(thing, Tensor) else thing)
    return list(found.entries.values()) if dense else []


class _Census:
    """Counts the references among what leads to one memory.  Methods: whether all is known."""

    def __init__(self) -> None:
        self.entries: dict[int, _Entry] = {}

    def _first(self, thing: Any) -> bool:
        entry = self.entries.setdefault(id(thing), [thing, 0])
        entry[1] += 1
        return bool(entry[1] == 1)

    def tensor(self, tensor: Tensor) -> bool:
        """Count a tensor, its array, and the tensors that it is a view of."""
        if not self._first(tensor):
            return True
        if type(tensor) is not Tensor or not self.array(tensor.array):
            return False
        base = tensor._base
        if base is None:  # views are known to their base by such references
            return not weakref.getweakrefcount(tensor)
        return self.tensor(base) and self.tensor(tensor._view[0])  # type: ignore[attr-defined]

    def array(self, array: Any) -> bool:
        """Count an array, what it is a view of, and on a GPU its pointer and its memory."""
        if not self._first(array):
            return True
        if type(array) is not numpy.ndarray:
            if not hasattr(array, "data") or not hasattr(array.data, "mem"):
                return False
            if self._first(array.data):
                self._first(array.data.mem)
        base = array.base
        return base is None or (type(base) is type(array) and self.array(base))
