"""Join: ranks with fewer batches shadow the collectives of those that still train.

Note [The protocol]
    Before its collectives each joinable says so in an all-reduce (`Join.notify_join_context`): 1
    for this rank, and the joinable's place in the block. A rank that has left the block brings
    zeros, and as long as the count is not 0 the ``main_hook`` of the joinable that was named makes
    the same collectives. When it is 0 every rank has left, and ``post_hook`` runs everywhere.

    As each joinable speaks for itself, an iteration may have one forward and no step, or three
    forwards and one step. Ranks that name different joinables are told apart by the square of the
    place, as the sum of squares is the square of the sum only for equal numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from distgrad.backend.device import device
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
    """How a joinable takes part in the block that it is in.

    ``place`` is its number in the block, and ``together`` says what all of the block are.
    """

    enable: bool = False
    throw_on_early_termination: bool = False
    place: int = 0
    together: tuple[str, ...] = ()


class Joinable(ABC):
    """Something with collectives in each iteration, such as a model or an optimizer.

    It calls ``Join.notify_join_context(self)`` before those that its ``main_hook`` shadows.
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
    def join_device(self) -> device:
        """Where the tensors of the collectives are; what Join says itself stays on the host."""

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
        self._names = tuple(type(joinable).__name__ for joinable in joinables)
        self._hooks = [joinable.join_hook(**options) for joinable in joinables] if enable else []

    def __enter__(self) -> Join:
        for place, joinable in enumerate(self._joinables):
            joinable._join_config = JoinConfig(self._enable, self._throw, place, self._names)
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
        while (said := _said(self._group, None, self._names)).present:
            if self._throw:
                raise _early(self._group)
            is_last_joiner = False
            self._hooks[said.place].main_hook()
        for hook in self._hooks:
            hook.post_hook(is_last_joiner)

    @staticmethod
    def notify_join_context(joinable: Joinable) -> None:
        """Tell the ranks that have left the block what this joinable is about to do.

        Outside of a block nothing happens.

        Raises:
            DistributedError: on all ranks, if one has left and the block is to end then, or if
                they are at different joinables.
        """
        config = joinable._join_config
        if not config.enable:
            return
        group = joinable.join_process_group
        said = _said(group, config.place, config.together)
        if said.present < group.size and config.throw_on_early_termination:
            raise _early(group)


class _Said(NamedTuple):
    """How many ranks are still in the block, and at which joinable."""

    present: int
    place: int


def _said(group: ProcessGroup, place: int | None, names: Sequence[str]) -> _Said:
    """Return what the ranks say together; ``place`` None is for one that has left."""
    control = group.channel("control")
    here = [0, 0, 0] if place is None else [1, place, place**2]
    sums = np.array(here, np.int64)
    control.all_reduce(sums)
    present, total, squares = map(int, sums)
    if squares * present != total**2:
        where = control.all_gather_object(-1 if place is None else place)
        each = ", ".join(
            f"rank {rank}: {f'{names[at]} [{at}]' if at >= 0 else 'none, it has left the block'}"
            for rank, at in enumerate(where)
        )
        raise DistributedError(
            f"Join(): ranks are at different joinables: {each}; let all ranks that have batches "
            "call forward, backward and step of the same objects in the same order"
        )
    return _Said(present, total // max(present, 1))


def _early(group: ProcessGroup) -> DistributedError:
    return DistributedError(
        f"Join(): Detected at least one rank that exhausted inputs. Throwing across all ranks. "
        f"(rank {group.rank} of {group.size})"
    )
