"""Stochastic gradient descent."""

from __future__ import annotations

from functools import partial
from typing import Any

from distgrad.errors import ArgumentError
from distgrad.optim import rules
from distgrad.optim.checks import at_least_0, check_lr, refuse_differentiable
from distgrad.optim.optimizer import Group, Optimizer, Params
from distgrad.optim.runs import Rule
from distgrad.tensor import Tensor


class SGD(Optimizer):
    """Gradient descent with momentum.

    buffer ← momentum · buffer + (1 - dampening) · (g + weight_decay · p), g alone at the first step
    p ← p - lr · (buffer, or with nesterov: g + momentum · buffer)

    Args:
        params: tensors, pairs of name and tensor, or dicts of groups.
        lr: learning rate.
        momentum: what is kept of the buffer; 0 does without one.
        dampening: what a new gradient loses on its way into the buffer.
        weight_decay: factor of the penalty on squared weights.
        nesterov: look ahead along the buffer.
        maximize: go up instead of down.
        foreach: accepted; all parameters are updated as flat as their memory allows.
        differentiable: must be False.
        fused: accepted.

    Example:
        >>> import distgrad as dg
        >>> p = dg.tensor([1.0], requires_grad=True)
        >>> optimizer = SGD([p], lr=0.1)
        >>> (p * p).sum().backward()
        >>> optimizer.step()
        >>> p.detach()
        tensor([0.8000])
    """

    _scalars: dict[str, float] = {}  # noqa: RUF012  (never changed)

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        """Take the parameters and their options."""
        check_lr(lr)
        at_least_0("momentum value", momentum)
        at_least_0("weight_decay value", weight_decay)
        refuse_differentiable("SGD", differentiable)
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ArgumentError("Nesterov momentum requires a momentum and zero dampening")
        super().__init__(
            params,
            {
                "lr": lr,
                "momentum": momentum,
                "dampening": dampening,
                "weight_decay": weight_decay,
                "nesterov": nesterov,
                "maximize": maximize,
                "foreach": foreach,
                "differentiable": differentiable,
                "fused": fused,
            },
        )

    def _slots(self, group: Group) -> dict[str, float]:
        return {"momentum_buffer": 0.0} if group["momentum"] else {}

    def _rule(self, group: Group, step: int, scalars: dict[str, Any]) -> Rule:
        return partial(
            rules.sgd,
            step=step,
            lr=float(group["lr"]),
            momentum=group["momentum"],
            dampening=group["dampening"],
            weight_decay=group["weight_decay"],
            nesterov=group["nesterov"],
        )
