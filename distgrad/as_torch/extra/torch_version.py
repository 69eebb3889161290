"""The version of PyTorch whose interface this is, as text that compares as a version."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from distgrad.version import __version__ as own

TORCH = "2.13.0"  # the interface that distgrad is built to


class TorchVersion(str):
    """A version that compares by its numbers: with texts, with tuples and with its kind.

    Example:
        >>> TorchVersion("2.13.0+distgrad") >= "2.9", TorchVersion("2.13.0") < (3, 0)
        (True, True)
    """

    __slots__ = ()

    def _key(self, other: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        mine, theirs = _numbers(self), _numbers(other)
        length = max(len(mine), len(theirs))
        return _padded(mine, length), _padded(theirs, length)

    def __lt__(self, other: Any) -> bool:
        mine, theirs = self._key(other)
        return mine < theirs

    def __le__(self, other: Any) -> bool:
        mine, theirs = self._key(other)
        return mine <= theirs

    def __gt__(self, other: Any) -> bool:
        return not self <= other

    def __ge__(self, other: Any) -> bool:
        return not self < other

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, str | tuple | list):
            return NotImplemented
        if isinstance(other, str) and str.__eq__(self, other):
            return True
        mine, theirs = self._key(other)
        return mine == theirs and "+" not in str(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


def _numbers(version: Any) -> tuple[int, ...]:
    if isinstance(version, str):
        release = re.match(r"v?(\d+(?:\.\d+)*)", version)
        return tuple(map(int, release[1].split("."))) if release else ()
    if isinstance(version, Iterable):
        return tuple(n for n in version if isinstance(n, int))
    return tuple(map(int, str(version).split(".")))


def _padded(numbers: tuple[int, ...], length: int) -> tuple[int, ...]:
    return numbers + (0,) * (length - len(numbers))


__version__ = TorchVersion(f"{TORCH}+distgrad{own}")
