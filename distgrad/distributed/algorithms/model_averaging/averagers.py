"""Averages of the parameters after every so many steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

from distgrad.distributed.algorithms.model_averaging.utils import (
    average_parameters_or_parameter_groups,
)
from distgrad.distributed.group import ProcessGroup
from distgrad.errors import ArgumentError


class ModelAverager(ABC):
    """Averages parameters when it is time to.

    Args:
        process_group: the ranks; None is the default group.
    """

    def __init__(self, process_group: ProcessGroup | None = None) -> None:
        self.process_group = process_group
        self.step = 0

    @abstractmethod
    def average_parameters(self, params: Iterable[Any]) -> None:
        """Count a step, and average ``params`` if it is time to.

        Args:
            params: parameters, or the ``param_groups`` of an optimizer.
        """


class PeriodicModelAverager(ModelAverager):
    """Averages parameters in every ``period``-th step from ``warmup_steps`` on.

    With `post_localSGD_hook`, ``warmup_steps`` is its ``start_localSGD_iter``: until then the
    parameters are alike anyway.

    Args:
        period: of the steps.
        warmup_steps: steps without an average at the beginning.
        process_group: the ranks; None is the default group.

    Ranks: all of the group.

    Example:
        >>> import distgrad as dg
        >>> averager = PeriodicModelAverager(4, 100, dg.distributed.local_group())
        >>> averager.average_parameters(dg.nn.Linear(2, 1).parameters())
        >>> averager.step
        1
    """

    def __init__(
        self, period: int, warmup_steps: int = 0, process_group: ProcessGroup | None = None
    ) -> None:
        super().__init__(process_group)
        if warmup_steps < 0:
            raise ArgumentError(
                f"PeriodicModelAverager(warmup_steps={warmup_steps}): a number of steps is 0 or "
                "more"
            )
        if period < 1:
            raise ArgumentError(
                f"PeriodicModelAverager(period={period}): a period is 1 step or more; with 1, "
                "averaging gradients costs the same bytes"
            )
        self.period, self.warmup_steps = period, warmup_steps

    def average_parameters(self, params: Iterable[Any]) -> None:
        """Count a step, and average ``params`` if it is time to.

        Args:
            params: parameters, or the ``param_groups`` of an optimizer.
        """
        after = self.step - self.warmup_steps
        self.step += 1
        if after >= 0 and after % self.period == 0:
            average_parameters_or_parameter_groups(params, self.process_group)
