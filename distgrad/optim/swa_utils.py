"""Averages of weights along the way: stochastic weight averaging and moving averages.

Source: Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and Better Generalization".
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy

from distgrad.autograd.mode import no_grad
from distgrad.errors import ArgumentError
from distgrad.nn.module import Module
from distgrad.optim.lr_scheduler.base import LRScheduler, check_optimizer, for_each_group
from distgrad.optim.optimizer import Optimizer
from distgrad.optim.runs import plain
from distgrad.tensor import Tensor, wrap

AverageOne = Callable[[Tensor, Tensor, Any], Tensor]
AverageAll = Callable[[Sequence[Tensor], Sequence[Tensor], Any], None]


def _check_decay(decay: float) -> None:
    if not 0.0 <= decay <= 1.0:
        raise ArgumentError(
            f"Invalid decay value {decay} provided. Please provide a value in [0,1] range."
        )


def get_ema_avg_fn(decay: float = 0.999) -> AverageOne:
    """Return ``avg_fn`` of the moving average ``decay * average + (1 - decay) * new``."""
    _check_decay(decay)

    def ema_update(ema_param: Tensor, current_param: Tensor, num_averaged: Any) -> Tensor:
        return decay * ema_param + (1 - decay) * current_param

    return ema_update


def get_swa_avg_fn() -> AverageOne:
    """Return ``avg_fn`` of the mean of all that was seen."""

    def swa_update(averaged_param: Tensor, current_param: Tensor, num_averaged: Any) -> Tensor:
        step: Tensor = (current_param - averaged_param) / (plain(num_averaged) + 1)
        return averaged_param + step

    return swa_update


def get_ema_multi_avg_fn(decay: float = 0.999) -> AverageAll:
    """Return ``multi_avg_fn`` of the moving average: it changes a whole list in place."""
    _check_decay(decay)

    def ema_update(
        ema_param_list: Sequence[Tensor], current_param_list: Sequence[Tensor], _: Any
    ) -> None:
        _lerp(ema_param_list, current_param_list, 1 - decay)

    return ema_update


def get_swa_multi_avg_fn() -> AverageAll:
    """Return ``multi_avg_fn`` of the mean: it changes a whole list in place."""

    def swa_update(
        averaged_param_list: Sequence[Tensor],
        current_param_list: Sequence[Tensor],
        num_averaged: Any,
    ) -> None:
        _lerp(averaged_param_list, current_param_list, 1 / (plain(num_averaged) + 1))

    return swa_update


def _lerp(averages: Sequence[Tensor], news: Sequence[Tensor], part: float) -> None:
    """Move ``averages`` by ``part`` of the way to ``news``; whole numbers are cut off."""
    with no_grad():
        for average, new in zip(averages, news, strict=True):
            if average.is_floating_point() or average.is_complex():
                average.add_(new - average, alpha=part)
            else:
                average.copy_(average + (new - average) * part)


class AveragedModel(Module):
    """A copy of a model with the average of its weights.

    Args:
        model: copied.
        device: where the averages are kept; default is where the model is.
        avg_fn: gives the new average of one tensor from (average, new, number averaged).
        multi_avg_fn: changes a list of averages, given (averages, news, number averaged).
        use_buffers: average buffers too; otherwise they are those of the last model.

    Without either function the average is the mean.

    Example:
        >>> import distgrad as dg
        >>> model = dg.nn.Linear(1, 1, bias=False)
        >>> averaged = AveragedModel(model)
        >>> for value in (1.0, 2.0, 6.0):
        ...     with dg.no_grad():
        ...         _ = model.weight.fill_(value)
        ...     averaged.update_parameters(model)
        >>> averaged.module.weight.item()
        3.0
    """

    n_averaged: Tensor

    def __init__(
        self,
        model: Module,
        device: Any = None,
        avg_fn: AverageOne | None = None,
        multi_avg_fn: AverageAll | None = None,
        use_buffers: bool = False,
    ) -> None:
        """Copy the model."""
        super().__init__()
        if avg_fn is not None and multi_avg_fn is not None:
            raise AssertionError("Only one of avg_fn and multi_avg_fn should be provided")
        self.module = copy.deepcopy(model)
        self.register_buffer("n_averaged", wrap(numpy.zeros((), numpy.int64)))
        if device is not None:
            self.to(device)
        self.avg_fn, self.multi_avg_fn, self.use_buffers = avg_fn, multi_avg_fn, use_buffers

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the averaged model returns."""
        return self.module(*args, **kwargs)

    def update_parameters(self, model: Module) -> None:
        """Take the weights of ``model`` into the average."""
        averages, news = self._pairs(model)
        with no_grad():
            count = int(self.n_averaged.item())
            if count == 0:
                for average, new in zip(averages, news, strict=True):
                    average.copy_(new)
            elif self.avg_fn is not None:
                for average, new in zip(averages, news, strict=True):
                    average.copy_(self.avg_fn(average, new, self.n_averaged))
            else:
                update = self.multi_avg_fn or get_swa_multi_avg_fn()
                update(averages, news, self.n_averaged)
            if not self.use_buffers:
                for mine, other in zip(self.module.buffers(), model.buffers(), strict=True):
                    mine.copy_(other.to(mine.device))
            self.n_averaged += 1

    def _pairs(self, model: Module) -> tuple[list[Tensor], list[Tensor]]:
        """Return the averages, and the model's tensors on their device."""
        lists = []
        for part in (self.module, model):
            buffers = part.buffers() if self.use_buffers else ()
            lists.append([t.detach() for t in (*part.parameters(), *buffers)])
        averages, news = lists
        return averages, [n.to(a.device) for a, n in zip(averages, news, strict=True)]


def update_bn(loader: Iterable[Any], model: Module, device: Any = None) -> None:
    """Compute the running statistics of batch norms anew, by one pass over the data.

    Args:
        loader: gives batches, or lists and tuples that begin with one.
        model: is run in training mode, and left in the mode it had.
        device: where batches are moved first.
    """
    momenta = {
        module: module.momentum
        for module in model.modules()
        if hasattr(module, "running_mean") and hasattr(module, "reset_running_stats")
    }
    if not momenta:
        return
    for module in momenta:
        module.reset_running_stats()
        module.momentum = None  # the mean over all batches
    was_training = model.training
    model.train()
    with no_grad():
        for batch in loader:
            first = batch[0] if isinstance(batch, list | tuple) else batch
            model(first if device is None else first.to(device))
    for module, momentum in momenta.items():
        module.momentum = momentum
    model.train(was_training)


class SWALR(LRScheduler):
    """Moves the rate to ``swa_lr`` and keeps it there.

    Args:
        optimizer: the optimizer.
        swa_lr: the last rate, or one for each group.
        anneal_epochs: epochs on the way.
        anneal_strategy: "cos" or "linear".
        last_epoch: the last epoch that was done; -1 starts anew.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        swa_lr: float | list[float],
        anneal_epochs: int = 10,
        anneal_strategy: str = "cos",
        last_epoch: int = -1,
    ) -> None:
        """Take where to go, and how."""
        check_optimizer(optimizer)
        for group, last in zip(
            optimizer.param_groups, for_each_group("swa_lr", optimizer, swa_lr), strict=True
        ):
            group["swa_lr"] = last
        if anneal_strategy not in ("cos", "linear"):
            raise ArgumentError(
                f"anneal_strategy must be one of 'cos' or 'linear', instead got {anneal_strategy}"
            )
        if not isinstance(anneal_epochs, int) or anneal_epochs < 0:
            raise ArgumentError(
                f"anneal_epochs must be equal or greater than 0, got {anneal_epochs}"
            )
        self._anneal_strategy, self.anneal_epochs = anneal_strategy, anneal_epochs
        super().__init__(optimizer, last_epoch)

    def _part(self, epoch: int) -> float:
        """Return which part of the way is done after ``epoch`` epochs."""
        done = max(0.0, min(1.0, epoch / max(1, self.anneal_epochs)))
        return done if self._anneal_strategy == "linear" else (1 - math.cos(math.pi * done)) / 2

    def get_lr(self) -> list[Any]:
        """Return the rates of epoch ``last_epoch``."""
        step = max(1, self._step_count - 1) if self.anneal_epochs == 0 else self._step_count - 1
        before, now = self._part(step - 1), self._part(step)
        rates = []
        for group, lr in zip(self.optimizer.param_groups, self._current(), strict=True):
            last = group["swa_lr"]
            first = last if before == 1 else (lr - before * last) / (1 - before)
            rates.append(last * now + first * (1 - now))
        return rates


__all__ = [
    "SWALR",
    "AveragedModel",
    "get_ema_avg_fn",
    "get_ema_multi_avg_fn",
    "get_swa_avg_fn",
    "get_swa_multi_avg_fn",
    "update_bn",
]
