"""Local SGD: an optimizer whose ranks step by themselves and average their parameters at times."""

from __future__ import annotations

from typing import Any

from distgrad.distributed.algorithms.model_averaging.averagers import ModelAverager
from distgrad.optim.optimizer import Closure, Group, Optimizer


class PostLocalSGDOptimizer(Optimizer):
    """Lets ``optim`` step, and ``averager`` average its parameters when it is time to.

    With DistributedDataParallel, `post_localSGD_hook` keeps the gradients within subgroups, and
    the averager brings their parameters together.

    Args:
        optim: the optimizer of each rank.
        averager: a `PeriodicModelAverager` or `HierarchicalModelAverager`.

    Ranks: all of the averager's group make the same steps.

    Example:
        >>> import distgrad as dg
        >>> from distgrad.distributed.algorithms.model_averaging.averagers import (
        ...     PeriodicModelAverager)
        >>> model, alone = dg.nn.Linear(2, 1), dg.distributed.local_group()
        >>> optimizer = PostLocalSGDOptimizer(
        ...     dg.optim.SGD(model.parameters(), lr=0.1),
        ...     PeriodicModelAverager(period=4, process_group=alone))
        >>> model(dg.ones(3, 2)).sum().backward()
        >>> optimizer.step()
        >>> optimizer.state_dict()["step"]
        1
    """

    def __init__(self, optim: Optimizer, averager: ModelAverager) -> None:
        """Have the groups and the state of ``optim``."""
        self.optim, self.averager, self.defaults = optim, averager, optim.defaults
        self._start()  # and no groups of its own, as Optimizer.__init__ would make them
        self._share()

    def _share(self) -> None:
        """Take the groups and the state from ``optim``, the same objects."""
        self.param_groups, self.state = self.optim.param_groups, self.optim.state

    def step(self, closure: Closure | None = None) -> Any:
        """Step, and average the parameters if it is time to.

        Args:
            closure: computes the loss anew, with gradients; called first.

        Returns:
            What ``closure`` returned.
        """
        loss = self.optim.step(closure)
        self.averager.average_parameters(self.param_groups)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of all parameters, or fill them with zeros."""
        self.optim.zero_grad(set_to_none)

    def add_param_group(self, param_group: Group) -> None:
        """Add parameters with options of their own.

        Args:
            param_group: a dict with "params" and any options that differ from the defaults.
        """
        self.optim.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of ``optim``, and in "step" that of the averager."""
        return {**self.optim.state_dict(), "step": self.averager.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a state; one without "step", of the optimizer alone, starts the averager at 0."""
        rest = {k: v for k, v in state_dict.items() if k != "step"}
        self.optim.load_state_dict(rest)
        self._share()
        self.averager.step = state_dict.get("step", 0)
