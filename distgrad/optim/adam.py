"""Adam and its relatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distgrad.errors import ArgumentError
from distgrad.optim import rules
from distgrad.optim.checks import checked
from distgrad.optim.optimizer import Group, Optimizer, Params
from distgrad.tensor import Tensor
from distgrad.typing import Array

Betas = tuple[float | Tensor, float | Tensor]


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
        foreach, fused: accepted; updates are as flat as the parameters' memory allows.
        capturable: count steps on the GPU, as captured steps do by themselves.
        maximize: go up instead of down.
        differentiable: must be False.
        decoupled_weight_decay: decay the weights themselves, as ``AdamW``.
    """

    _update = staticmethod(rules.adam)

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
        _check_tensors(lr, betas, foreach and not capturable)
        options = {
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
        }
        super().__init__(params, checked(type(self).__name__, options))

    def _slots(self, group: Group) -> dict[str, float]:
        slots = {"exp_avg": 0.0, "exp_avg_sq": 0.0}
        return slots | {"max_exp_avg_sq": 0.0} if group["amsgrad"] else slots

    def _decay(self, group: Group) -> Callable[..., Array]:
        return _either_decay(group)


def _check_tensors(lr: float | Tensor, betas: Betas, foreach: bool | None) -> None:
    """Raise where PyTorch takes no tensors as options."""
    if isinstance(lr, Tensor) and foreach:
        raise ArgumentError("lr as a Tensor is not supported for capturable=False and foreach=True")
    if isinstance(betas[0], Tensor) != isinstance(betas[1], Tensor):
        raise ArgumentError("betas must be either both floats or both Tensors")


def _either_decay(group: Group) -> Callable[..., Array]:
    """Return the weight decay of the optimizers that know both kinds."""
    return rules.shrunk if group.get("decoupled_weight_decay") else rules.penalised


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

    def __setstate__(self, saved: dict[str, Any]) -> None:
        super().__setstate__(saved)
        for group in self.param_groups:  # also those that Adam saved
            group["decoupled_weight_decay"] = True


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
        foreach, capturable: accepted; updates are as flat as the parameters' memory allows.
        maximize: go up instead of down.
        differentiable: must be False.
    """

    _update = staticmethod(rules.nadam)

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
        options = {
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
        }
        super().__init__(params, checked("NAdam", options))

    def _slots(self, group: Group) -> dict[str, float]:
        return {"exp_avg": 0.0, "exp_avg_sq": 0.0}

    def _numbers(self, group: Group) -> dict[str, float]:
        return {"step": 0.0, "mu_product": 1.0}

    def _decay(self, group: Group) -> Callable[..., Array]:
        return _either_decay(group)

    def _factors(self, options: Group, step: int, numbers: dict[str, Array]) -> dict[str, float]:
        lr, decay, (beta1, beta2) = options["lr"], options["momentum_decay"], options["betas"]
        mu, mu_next = (beta1 * (1.0 - 0.5 * 0.96 ** (t * decay)) for t in (step, step + 1))
        numbers["mu_product"] *= mu
        product = float(numbers["mu_product"][0])
        return {
            "unbias": 1 / (1 - beta2**step),
            "by_gradient": lr * (1 - mu) / (1 - product),
            "by_average": lr * mu_next / (1 - product * mu_next),
        }


class RAdam(Optimizer):
    """Adam that waits until the variance of its denominator is known (Liu et al. 2020).

    Args:
        params: tensors, pairs of name and tensor, or dicts of groups.
        lr: learning rate.
        betas: decay of the averages of the gradient and of its square.
        eps: added to the root.
        weight_decay: factor of the penalty on squared weights.
        decoupled_weight_decay: decay the weights themselves.
        foreach: accepted; updates are as flat as the parameters' memory allows.
        capturable: count steps on the GPU, as captured steps do by themselves.
        maximize: go up instead of down.
        differentiable: must be False.
    """

    _update = staticmethod(rules.radam)

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
        options = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "decoupled_weight_decay": decoupled_weight_decay,
            "differentiable": differentiable,
        }
        super().__init__(params, checked("RAdam", options))

    def _slots(self, group: Group) -> dict[str, float]:
        return {"exp_avg": 0.0, "exp_avg_sq": 0.0}

    def _decay(self, group: Group) -> Callable[..., Array]:
        return _either_decay(group)


class Adamax(Optimizer):
    """Adam with the infinity norm (Kingma & Ba 2015).

    u ← max(β₂ u, |g| + eps);  p ← p - lr / (1 - β₁ᵗ) · m / u

    Args:
        params: tensors, pairs of name and tensor, or dicts of groups.
        lr: learning rate.
        betas: decay of the average of the gradient and of the largest gradient.
        eps: added to the gradient's size.
        weight_decay: factor of the penalty on squared weights.
        foreach: accepted; updates are as flat as the parameters' memory allows.
        capturable: count steps on the GPU, as captured steps do by themselves.
        maximize: go up instead of down.
        differentiable: must be False.
    """

    _update = staticmethod(rules.adamax)

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
        options = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "capturable": capturable,
        }
        super().__init__(params, checked("Adamax", options))

    def _slots(self, group: Group) -> dict[str, float]:
        return {"exp_avg": 0.0, "exp_inf": 0.0}
