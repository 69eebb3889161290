"""Optimizers with a learning rate of its own for each element: Adagrad, Adadelta, RMSprop."""

from __future__ import annotations

from functools import partial
from typing import Any

from distgrad.errors import ArgumentError
from distgrad.optim import rules
from distgrad.optim.checks import at_least_0, check_lr, refuse_differentiable
from distgrad.optim.optimizer import Group, Optimizer, Params
from distgrad.optim.runs import Rule
from distgrad.tensor import Tensor


class Adagrad(Optimizer):
    """Steps divided by the root of the sum of all squared gradients (Duchi et al. 2011).

    sum ← sum + g²;  p ← p - lr / (1 + (t - 1) lr_decay) · g / (√sum + eps)

    Args:
        params: tensors, pairs of name and tensor, or dicts of groups.
        lr: learning rate.
        lr_decay: how fast the learning rate falls.
        weight_decay: factor of the penalty on squared weights.
        initial_accumulator_value: first value of the sum.
        eps: added to the root.
        foreach: accepted.
        maximize: go up instead of down.
        differentiable: must be False.
        fused: accepted.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0,
        weight_decay: float = 0,
        initial_accumulator_value: float = 0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        """Take the parameters and their options."""
        check_lr(lr)
        at_least_0("lr_decay value", lr_decay)
        at_least_0("weight_decay value", weight_decay)
        at_least_0("initial_accumulator_value value", initial_accumulator_value)
        at_least_0("epsilon value", eps)
        refuse_differentiable("Adagrad", differentiable)
        super().__init__(
            params,
            {
                "lr": lr,
                "lr_decay": lr_decay,
                "eps": eps,
                "weight_decay": weight_decay,
                "initial_accumulator_value": initial_accumulator_value,
                "foreach": foreach,
                "maximize": maximize,
                "differentiable": differentiable,
                "fused": fused,
            },
        )

    def _slots(self, group: Group) -> dict[str, float]:
        return {"sum": group["initial_accumulator_value"]}

    def _rule(self, group: Group, step: int, scalars: dict[str, Any]) -> Rule:
        return partial(
            rules.adagrad,
            step=step,
            lr=float(group["lr"]),
            lr_decay=group["lr_decay"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
        )


class Adadelta(Optimizer):
    """Steps in the ratio of earlier steps to earlier gradients (Zeiler 2012).

    v ← ρ v + (1 - ρ) g²;  Δ ← √(u + eps) / √(v + eps) · g;  u ← ρ u + (1 - ρ) Δ²;  p ← p - lr Δ

    Args:
        params: tensors, pairs of name and tensor, or dicts of groups.
        lr: factor of the step.
        rho: decay of the averages.
        eps: added under the roots.
        weight_decay: factor of the penalty on squared weights.
        foreach: accepted.
        capturable: accepted.
        maximize: go up instead of down.
        differentiable: must be False.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        capturable: bool = False,
        maximize: bool = False,
        differentiable: bool = False,
    ) -> None:
        """Take the parameters and their options."""
        check_lr(lr)
        if not 0.0 <= rho <= 1.0:
            raise ArgumentError(f"Invalid rho value: {rho}")
        at_least_0("epsilon value", eps)
        at_least_0("weight_decay value", weight_decay)
        refuse_differentiable("Adadelta", differentiable)
        super().__init__(
            params,
            {
                "lr": lr,
                "rho": rho,
                "eps": eps,
                "weight_decay": weight_decay,
                "maximize": maximize,
                "capturable": capturable,
                "foreach": foreach,
                "differentiable": differentiable,
            },
        )

    def _slots(self, group: Group) -> dict[str, float]:
        return {"square_avg": 0.0, "acc_delta": 0.0}

    def _rule(self, group: Group, step: int, scalars: dict[str, Any]) -> Rule:
        return partial(
            rules.adadelta,
            step=step,
            lr=float(group["lr"]),
            rho=group["rho"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
        )


class RMSprop(Optimizer):
    """Steps divided by the root of an average of squared gradients (Hinton's lecture 6e).

    v ← α v + (1 - α) g²;  p ← p - lr · g / (√v + eps)

    Args:
        params: tensors, pairs of name and tensor, or dicts of groups.
        lr: learning rate.
        alpha: decay of the average.
        eps: added to the root.
        weight_decay: factor of the penalty on squared weights.
        momentum: what is kept of earlier steps.
        centered: divide by the estimated standard deviation instead.
        capturable: accepted.
        foreach: accepted.
        maximize: go up instead of down.
        differentiable: must be False.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum: float = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
    ) -> None:
        """Take the parameters and their options."""
        check_lr(lr)
        at_least_0("epsilon value", eps)
        at_least_0("momentum value", momentum)
        at_least_0("weight_decay value", weight_decay)
        at_least_0("alpha value", alpha)
        refuse_differentiable("RMSprop", differentiable)
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "alpha": alpha,
                "eps": eps,
                "centered": centered,
                "weight_decay": weight_decay,
                "capturable": capturable,
                "foreach": foreach,
                "maximize": maximize,
                "differentiable": differentiable,
            },
        )

    def _slots(self, group: Group) -> dict[str, float]:
        slots = {"square_avg": 0.0}
        if group["momentum"] > 0:
            slots["momentum_buffer"] = 0.0
        if group["centered"]:
            slots["grad_avg"] = 0.0
        return slots

    def _rule(self, group: Group, step: int, scalars: dict[str, Any]) -> Rule:
        return partial(
            rules.rmsprop,
            step=step,
            lr=float(group["lr"]),
            alpha=group["alpha"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            centered=group["centered"],
        )
