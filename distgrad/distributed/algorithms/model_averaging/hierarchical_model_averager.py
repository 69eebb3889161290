"""Averages within small groups often, within large ones seldom."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from distgrad.distributed.algorithms.model_averaging.averagers import ModelAverager
from distgrad.distributed.algorithms.model_averaging.utils import (
    average_parameters_or_parameter_groups,
)
from distgrad.distributed.default import get_group
from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.subgroups import new_subgroups
from distgrad.errors import ArgumentError


class HierarchicalModelAverager(ModelAverager):
    """Averages parameters in groups of several sizes, each with a period of its own.

    In a step that several periods divide, the largest group averages; the others need not then.

    Args:
        period_group_size_dict: sizes of groups by period, both growing; the last size is the
            number of ranks, and each size divides the next. Groups are ranks that follow each
            other.
        warmup_steps: steps without an average at the beginning.
        process_group: the ranks; None is the default group.

    Ranks: all of the default group.

    Example:
        >>> import distgrad as dg
        >>> group = dg.distributed.local_group()
        >>> HierarchicalModelAverager({4: 1}, process_group=group).step
        0
    """

    def __init__(
        self,
        period_group_size_dict: Mapping[int, int],
        warmup_steps: int = 0,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(get_group() if process_group is None else process_group)
        assert self.process_group is not None
        self.warmup_steps = warmup_steps
        _check(period_group_size_dict, warmup_steps, self.process_group.size)
        self.period_process_group_dict = {
            period: _groups_of(size, self.process_group)
            for period, size in period_group_size_dict.items()
        }

    def average_parameters(self, params: Iterable[Any]) -> None:
        """Count a step, and average ``params`` in the largest group whose time it is.

        Args:
            params: parameters, or the ``param_groups`` of an optimizer.
        """
        after = self.step - self.warmup_steps
        self.step += 1
        if after < 0:
            return
        due = [
            group for period, group in self.period_process_group_dict.items() if not after % period
        ]
        if due:
            average_parameters_or_parameter_groups(params, due[-1])


def _groups_of(size: int, group: ProcessGroup) -> ProcessGroup:
    """Return this rank's group of ``size`` of the ranks of ``group``."""
    if size == group.size:
        return group
    mine, _ = new_subgroups(size, group)
    assert isinstance(mine, ProcessGroup)
    return mine


def _check(sizes: Mapping[int, int], warmup_steps: int, ranks: int) -> None:
    """Raise unless periods and sizes fit each other and the ranks."""
    head = f"HierarchicalModelAverager({dict(sizes)}, warmup_steps={warmup_steps})"
    if not sizes or min(sizes) < 1 or min(sizes.values()) < 1 or warmup_steps < 0:
        raise ArgumentError(f"{head}: takes periods and sizes of 1 or more, and steps of 0 or more")
    for (period, size), (later, larger) in pairwise(sizes.items()):
        if period >= later or size >= larger or larger % size:
            raise ArgumentError(
                f"{head}: period {later} with groups of {larger} after period {period} with groups "
                f"of {size}: periods and sizes must grow, and each size divide the next"
            )
    last = list(sizes.values())[-1]
    if last != ranks:
        raise ArgumentError(
            f"{head}: the last size is {last}, and there are {ranks} ranks; the largest group must "
            "be all of them"
        )
