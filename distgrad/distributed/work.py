"""A transfer under way, as all of `distributed` sees it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, TypeAlias

import numpy as np

HostArray: TypeAlias = np.ndarray[Any, np.dtype[Any]]


class Work(ABC):
    """A transfer under way.

    ``call`` says which, ``sequence`` is its number on its channel, counted alike by every rank.
    """

    __slots__ = ("call", "sequence")

    def __init__(self, call: str, sequence: int) -> None:
        self.call = call
        self.sequence = sequence

    @abstractmethod
    def test(self) -> bool:
        """Return whether the transfer is complete, after giving it a push; never blocks.

        Raises:
            DistributedError: the ranks disagree about the call, or another rank has failed.
        """

    @abstractmethod
    def wait(self, timeout_s: float | None = None) -> None:
        """Return when the transfer is complete.

        Args:
            timeout_s: seconds to wait at most; None takes the group's ``timeout_s``.

        Raises:
            DistributedError: as for `test`, or the time is over.
        """

    @abstractmethod
    def is_completed(self) -> bool:
        """Return whether the transfer is known to be over, without pushing it."""
