"""A transfer under way, as all of `distributed` sees it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Transfer:
    """One rank's part of a collective or of a message, as a backend gets it.

    ``call`` is the call in words, without anything that may differ between ranks; ranks whose words
    differ have lost step. ``source`` and ``target`` are C-contiguous; in-place collectives have the
    same array in both, and so has the receiving rank of a reduce.
    """

    collective: str
    call: str
    source: HostArray
    target: HostArray
    op: str = ""
    peer: int = -1
    tag: int = 0
    sends: Sequence[int] = ()  # all_to_all: elements of the flat source for each rank
    receives: Sequence[int] = ()  # and elements of the flat target from each
    senders: list[int] | None = None  # gets the rank whose message was received
