"""Join: ranks with fewer batches shadow the collectives of those that still train.

Note [The protocol]
    At the start of each iteration every rank that still trains adds 1 in an all-reduce
    (`Join.notify_join_context`). A rank that has left the block adds 0 there, and as long as the
    sum is not 0 its joinables' ``main_hook`` make the collectives of one iteration. When the sum
    is 0 every rank has left the block, and ``post_hook`` runs everywhere.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from distgrad.distributed.group import ProcessGroup
from distgrad.errors import ArgumentError, DistributedError


class JoinHook:
    """What a joinable does on a rank that has left the block."""

    def main_hook(self) -> None:
        """Make the collectives of one iteration of the others."""

    def post_hook(self, is_last_joiner: bool) -> None:
        """Run once when all ranks have left the block.

        Args:
            is_last_joiner: this rank is among the last that trained.
        """


class JoinConfig(NamedTuple):
    """How a joinable takes part in the block that it is in."""

    enable: bool = False
    throw_on_early_termination: bool = False
    is_first_joinable: bool = False


class Joinable(ABC):
    """Something with collectives in each iteration, such as a model or an optimizer.

    It calls ``Join.notify_join_context(self)`` before the first of them.
    """

    _join_config = JoinConfig()

    @abstractmethod
    def join_hook(self, **options: Any) -> JoinHook:
        """Return what shadows the collectives of this object.

        Args:
            options: what Join was given beyond its own arguments.
        """

    @property
    @abstractmethod
    def join_process_group(self) -> ProcessGroup:
        """The ranks of the collectives."""


class Join:
    """A block in which ranks may make different numbers of iterations.

    Args:
        joinables: what communicates in each iteration, in the order in which it does.
        enable: False makes the block a plain one, for inputs that are known to be even.
        throw_on_early_termination: raise on all ranks as soon as one has left the block.
        options: go to each ``join_hook``.

    An exception inside leaves the block without another collective, and ends the job.

    Ranks: all of the group.
    """

    def __init__(
        self,
        joinables: Sequence[Joinable],
        enable: bool = True,
        throw_on_early_termination: bool = False,
        **options: Any,
    ) -> None:
        if not joinables:
            raise ArgumentError("Join([]): expects at least one joinable")
        self._joinables = list(joinables)
        self._enable, self._throw = enable, throw_on_early_termination
        self._group = joinables[0].join_process_group
        if any(other.join_process_group is not self._group for other in joinables[1:]):
            raise ArgumentError(
                "Join(): Using join context manager with multiple process groups: all joinables "
                "must have the same ranks"
            )
        self._hooks = [joinable.join_hook(**options) for joinable in joinables] if enable else []

    def __enter__(self) -> Join:
        for place, joinable in enumerate(self._joinables):
            joinable._join_config = JoinConfig(self._enable, self._throw, place == 0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for joinable in self._joinables:
            joinable._join_config = JoinConfig()
        if not self._enable or error is not None:
            return
        is_last_joiner = True
        while _present(self._group, 0):
            if self._throw:
                raise _early(self._group)
            is_last_joiner = False
            for hook in self._hooks:
                hook.main_hook()
        for hook in self._hooks:
            hook.post_hook(is_last_joiner)

    @staticmethod
    def notify_join_context(joinable: Joinable) -> None:
        """Tell the ranks that have left the block that this one begins an iteration.

        Only the first joinable of a block does; elsewhere nothing happens.

        Raises:
            DistributedError: a rank has left, and the block is to end then; on all ranks.
        """
        config = joinable._join_config
        if not config.enable or not config.is_first_joinable:
            return
        group = joinable.join_process_group
        if _present(group, 1) < group.size and config.throw_on_early_termination:
            raise _early(group)


def _present(group: ProcessGroup, here: int) -> int:
    """Return how many ranks begin an iteration."""
    count = np.array([here], np.int64)
    group.channel("control").all_reduce(count)
    return int(count[0])


def _early(group: ProcessGroup) -> DistributedError:
    return DistributedError(
        f"Join(): Detected at least one rank that exhausted inputs. Throwing across all ranks. "
        f"(rank {group.rank} of {group.size})"
    )
