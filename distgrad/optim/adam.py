"""Adam and its relatives."""

from __future__ import annotations

from functools import partial
from typing import Any

from distgrad.optim import rules
from distgrad.optim.checks import at_least_0, check_betas, check_lr, refuse_differentiable
from distgrad.optim.optimizer import Group, Optimizer, Params
from distgrad.optim.runs import Rule
from distgrad.tensor import Tensor

Betas = tuple[float, float]


def _check(
    name: str,
    lr: float | Tensor,
    betas: Betas,
    eps: float,
    weight_decay: float,
    differentiable: bool,
) -> None:
    check_lr(lr)
    at_least_0("epsilon value", eps)
    check_betas(betas)
    at_least_0("weight_decay value", weight_decay)
    refuse_differentiable(name, differentiable)


class Adam(Optimizer):
    """Steps scaled by averages of the gradient and of its square (Kingma & Ba 2015).

    m ← β₁ m + (1 - β₁) g;  v ← β₂ v + (1 - β₂) g²
    p ← p - lr · m / (1 - β₁ᵗ) / (√(v / (1 - β₂ᵗ)) + eps)

    Args:
        params: tensors, pairs of name and tensor, or dicts of groups.
        lr: learning rate.
        betas: decay of the averages of the gradient and of its square.
        eps: added to the root.
        weight_decay: factor of the penalty on squared weights.
        amsgrad: divide by the largest average so far.
        foreach: accepted; all parameters are updated as flat as their memory allows.
        maximize: go up instead of down.
        capturable: accepted.
        differentiable: must be False.
        fused: accepted.
        decoupled_weight_decay: decay the weights themselves, as ``AdamW``.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
    ) -> None:
        """Take the parameters and their options."""
        _check(type(self).__name__, lr, betas, eps, weight_decay, differentiable)
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "amsgrad": amsgrad,
                "maximize": maximize,
                "foreach": foreach,
                "capturable": capturable,
                "differentiable": differentiable,
                "fused": fused,
                "decoupled_weight_decay": decoupled_weight_decay,
            },
        )

    def _slots(self, group: Group) -> dict[str, float]:
        slots = {"exp_avg": 0.0, "exp_avg_sq": 0.0}
        return slots | {"max_exp_avg_sq": 0.0} if group["amsgrad"] else slots

    def _rule(self, group: Group, step: int, scalars: dict[str, Any]) -> Rule:
        return partial(
            rules.adamw if group.get("decoupled_weight_decay") else rules.adam,
            step=step,
            lr=float(group["lr"]),
            betas=_floats(group["betas"]),
            eps=group["eps"],
            weight_decay=group["weight_decay"],
        )


def _floats(betas: Any) -> Betas:
    first, second = betas
    return float(first), float(second)


class AdamW(Adam):
    """Adam with the weights themselves decayed (Loshchilov & Hutter 2019).

    p ← p - lr · weight_decay · p, then Adam's step.  The arguments are those of ``Adam``.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        """Take the parameters and their options."""
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=True,
        )


def _decay(group: Group) -> rules.WeightDecay:
    """Return the rule of weight decay of the optimizers that know both kinds."""
    return rules.shrunk if group["decoupled_weight_decay"] else rules.penalised


class NAdam(Optimizer):
    """Adam with Nesterov momentum (Dozat 2016).

    Args:
        params: tensors, pairs of name and tensor, or dicts of groups.
        lr: learning rate.
        betas: decay of the averages of the gradient and of its square.
        eps: added to the root.
        weight_decay: factor of the penalty on squared weights.
        momentum_decay: how fast the momentum approaches its limit.
        decoupled_weight_decay: decay the weights themselves.
        foreach: accepted.
        maximize: go up instead of down.
        capturable: accepted.
        differentiable: must be False.
    """

    _scalars = {"step": 0.0, "mu_product": 1.0}  # noqa: RUF012  (never changed)

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 2e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        momentum_decay: float = 4e-3,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        """Take the parameters and their options."""
        _check("NAdam", lr, betas, eps, weight_decay, differentiable)
        at_least_0("momentum_decay value", momentum_decay)
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "momentum_decay": momentum_decay,
                "decoupled_weight_decay": decoupled_weight_decay,
                "maximize": maximize,
                "foreach": foreach,
                "capturable": capturable,
                "differentiable": differentiable,
            },
        )

    def _slots(self, group: Group) -> dict[str, float]:
        return {"exp_avg": 0.0, "exp_avg_sq": 0.0}

    def _rule(self, group: Group, step: int, scalars: dict[str, Any]) -> Rule:
        beta1, decay = float(group["betas"][0]), group["momentum_decay"]
        mu, mu_next = (beta1 * (1.0 - 0.5 * 0.96 ** (t * decay)) for t in (step, step + 1))
        scalars["mu_product"] *= mu
        return partial(
            rules.nadam,
            step=step,
            lr=float(group["lr"]),
            betas=_floats(group["betas"]),
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            decay=_decay(group),
            mu=mu,
            mu_next=mu_next,
            mu_product=float(scalars["mu_product"][0]),
        )


class RAdam(Optimizer):
    """Adam that waits until the variance of its denominator is known (Liu et al. 2020).

    Args:
        params: tensors, pairs of name and tensor, or dicts of groups.
        lr: learning rate.
        betas: decay of the averages of the gradient and of its square.
        eps: added to the root.
        weight_decay: factor of the penalty on squared weights.
        decoupled_weight_decay: decay the weights themselves.
        foreach: accepted.
        maximize: go up instead of down.
        capturable: accepted.
        differentiable: must be False.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        """Take the parameters and their options."""
        _check("RAdam", lr, betas, eps, weight_decay, differentiable)
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "maximize": maximize,
                "foreach": foreach,
                "capturable": capturable,
                "decoupled_weight_decay": decoupled_weight_decay,
                "differentiable": differentiable,
            },
        )

    def _slots(self, group: Group) -> dict[str, float]:
        return {"exp_avg": 0.0, "exp_avg_sq": 0.0}

    def _rule(self, group: Group, step: int, scalars: dict[str, Any]) -> Rule:
        return partial(
            rules.radam,
            step=step,
            lr=float(group["lr"]),
            betas=_floats(group["betas"]),
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            decay=_decay(group),
        )


class Adamax(Optimizer):
    """Adam with the infinity norm (Kingma & Ba 2015).

    u ← max(β₂ u, |g| + eps);  p ← p - lr / (1 - β₁ᵗ) · m / u

    Args:
        params: tensors, pairs of name and tensor, or dicts of groups.
        lr: learning rate.
        betas: decay of the average of the gradient and of the largest gradient.
        eps: added to the gradient's size.
        weight_decay: factor of the penalty on squared weights.
        foreach: accepted.
        maximize: go up instead of down.
        differentiable: must be False.
        capturable: accepted.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 2e-3,
        betas: Betas = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
    ) -> None:
        """Take the parameters and their options."""
        _check("Adamax", lr, betas, eps, weight_decay, differentiable)
        super().__init__(
            params,
            {
                "lr": lr,
                "betas": betas,
                "eps": eps,
                "weight_decay": weight_decay,
                "foreach": foreach,
                "maximize": maximize,
                "differentiable": differentiable,
                "capturable": capturable,
            },
        )

    def _slots(self, group: Group) -> dict[str, float]:
        return {"exp_avg": 0.0, "exp_inf": 0.0}

    def _rule(self, group: Group, step: int, scalars: dict[str, Any]) -> Rule:
        return partial(
            rules.adamax,
            step=step,
            lr=float(group["lr"]),
            betas=_floats(group["betas"]),
            eps=group["eps"],
            weight_decay=group["weight_decay"],
        )
