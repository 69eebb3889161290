"""The group of one process: every collective is the identity, and nothing is imported for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from distgrad.distributed.group import (
    DEFAULT_TIMEOUT_S,
    CompletedWork,
    ProcessGroup,
    link_channels,
)
from distgrad.distributed.work import Transfer, Work
from distgrad.errors import DistributedError


class LocalGroup(ProcessGroup):
    """One channel of a rank that is alone; `local_group` makes the whole group."""

    backend = "local"
    compares_calls = True

    def __init__(self, name: str, timeout_s: float) -> None:
        super().__init__(0, 1, 0, 1, name, timeout_s)

    def _start(self, transfer: Transfer) -> Work:
        if transfer.target is not transfer.source:
            np.copyto(transfer.target.reshape(transfer.source.shape), transfer.source)
        return CompletedWork(transfer.call, self.sequence)

    def _part(self, places: Sequence[int], timeout_s: float) -> LocalGroup:
        return local_group(timeout_s)

    def abort(self, code: int, reason: str) -> NoReturn:
        """Raise DistributedError: one process has nobody to take along."""
        raise DistributedError(f"abort({code}): {reason}")


def local_group(timeout_s: float = DEFAULT_TIMEOUT_S) -> LocalGroup:
    """Return a group of this process alone.

    Example:
        >>> local_group()
        ProcessGroup(local, rank 0 of 1, 'user')
    """
    return link_channels(lambda name: LocalGroup(name, timeout_s))
