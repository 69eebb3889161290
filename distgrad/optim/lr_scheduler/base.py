"""The base of all schedules, and how rates are read and written."""

from __future__ import annotations

import warnings
from typing import Any

from distgrad.errors import ArgumentError, ArgumentTypeError
from distgrad.optim.optimizer import Group, Optimizer
from distgrad.tensor import Tensor

EPOCH_DEPRECATION_WARNING = (
    "The epoch parameter in `scheduler.step()` was not necessary and is being deprecated where "
    "possible. Please use `scheduler.step()` to step the scheduler. During the deprecation, if "
    "epoch is different from None, the closed form is used instead of the new chainable form, "
    "where available."
)


def set_lr(group: Group, value: Any) -> None:
    """Set the rate of a group; a tensor stays the same one."""
    if isinstance(group["lr"], Tensor):
        group["lr"].array[...] = float(value)
    else:
        group["lr"] = value


def copied(value: Any) -> Any:
    """Return a rate that stays as it is: of a tensor, a copy."""
    return value.detach().clone() if isinstance(value, Tensor) else value


def for_each_group(name: str, optimizer: Optimizer, value: Any) -> list[Any]:
    """Return ``value`` for each parameter group."""
    count = len(optimizer.param_groups)
    if not isinstance(value, list | tuple):
        return [value] * count
    if len(value) != count:
        raise ArgumentError(
            f"{name} must have the same length as optimizer.param_groups. "
            f"{name} has {len(value)} values, param_groups has {count}."
        )
    return list(value)


def check_optimizer(optimizer: object) -> None:
    """Raise unless ``optimizer`` is one."""
    if not isinstance(optimizer, Optimizer):
        raise ArgumentTypeError(f"{type(optimizer).__name__} is not an Optimizer")


class LRScheduler:
    """Base of all schedules: ``get_lr`` gives the rates for ``last_epoch``.

    Args:
        optimizer: the optimizer whose groups' rates are set.
        last_epoch: the last epoch that was done; -1 starts anew.
    """

    _is_initial = False
    _get_lr_called_within_step = False  # schedules of users ask for it
    base_lrs: list[Any]
    _last_lr: list[Any]

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        """Note the groups' rates and set those of the first epoch."""
        check_optimizer(optimizer)
        self.optimizer = optimizer
        for i, group in enumerate(optimizer.param_groups):
            if last_epoch == -1:
                group.setdefault("initial_lr", copied(group["lr"]))
            elif "initial_lr" not in group:
                raise KeyError(
                    f"param 'initial_lr' is not specified in param_groups[{i}] when resuming "
                    "scheduler with last_epoch >= 0; load the optimizer's state first"
                )
        self.base_lrs = [copied(group["initial_lr"]) for group in optimizer.param_groups]
        self.last_epoch = last_epoch
        _watch(optimizer)
        self._initial_step()
        self._get_lr_called_within_step = False

    def _initial_step(self) -> None:
        self._step_count = 0
        self._is_initial = True
        self.step()
        self._is_initial = False

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the optimizer."""
        return {k: v for k, v in self.__dict__.items() if k != "optimizer"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned."""
        self.__dict__.update(state_dict)

    def get_last_lr(self) -> list[Any]:
        """Return the rates that were set last, one for each group."""
        return self._last_lr

    def get_lr(self) -> list[Any]:
        """Return the rates of epoch ``last_epoch``."""
        raise NotImplementedError

    def _current(self) -> list[Any]:
        """Return the groups' present rates."""
        return [copied(group["lr"]) for group in self.optimizer.param_groups]

    def step(self, epoch: int | None = None) -> None:
        """Go to the next epoch and set its rates.

        Args:
            epoch: go to this epoch instead (older form).
        """
        if self._step_count == 1:
            _check_order(self.optimizer)
        self._step_count += 1
        if epoch is not None:
            warnings.warn(EPOCH_DEPRECATION_WARNING, UserWarning, stacklevel=2)
        self._update_lr(epoch)

    def _update_lr(self, epoch: int | None = None) -> None:
        self._get_lr_called_within_step = True
        if epoch is None:
            self.last_epoch += 1
            values = self.get_lr()
        else:
            self.last_epoch = epoch
            values = getattr(self, "_get_closed_form_lr", self.get_lr)()
        self._get_lr_called_within_step = False
        for group, lr in zip(self.optimizer.param_groups, values, strict=True):
            set_lr(group, lr)
        self._last_lr = self._current()


def _watch(optimizer: Optimizer) -> None:
    """Note from now on whether ``optimizer.step`` is called."""
    if "_watched" not in optimizer.__dict__:
        own = optimizer.__dict__.get("step")  # set on the object: who knows what it calls
        optimizer.__dict__.update(_watched=own, _opt_called=own is not None)


def _check_order(optimizer: Optimizer) -> None:
    """Warn where the first step of a schedule comes before that of the optimizer."""
    if optimizer.__dict__.get("step") is not optimizer.__dict__.get("_watched"):
        text = (
            "Seems like `optimizer.step()` has been overridden after learning rate scheduler "
            "initialization. Please, make sure to call `optimizer.step()` before "
            "`lr_scheduler.step()`."
        )
    elif not optimizer._opt_called:
        text = (
            "Detected call of `lr_scheduler.step()` before `optimizer.step()`. Call them in "
            "the opposite order: `optimizer.step()` before `lr_scheduler.step()`.  Failure to "
            "do this will result in skipping the first value of the learning rate schedule."
        )
    else:
        return
    warnings.warn(text, UserWarning, stacklevel=3)
