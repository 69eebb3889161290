"""A learning rate of its own for each element: Adagrad, Adadelta, RMSprop, Rprop."""

from __future__ import annotations

from distgrad.optim import rules
from distgrad.optim.checks import at_least_0, checked
from distgrad.optim.optimizer import Group, Optimizer, Params
from distgrad.optim.runs import fill
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
        foreach, fused: accepted; updates are as flat as the parameters' memory allows.
        maximize: go up instead of down.
        differentiable: must be False.
    """

    _update = staticmethod(rules.adagrad)

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
        options = {
            "lr": lr,
            "lr_decay": lr_decay,
            "eps": eps,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(params, checked("Adagrad", options))
        for group in self.param_groups:  # PyTorch has it from the beginning too
            fill(group["params"], self.state, self._slots(group), self._numbers(group))

    def _slots(self, group: Group) -> dict[str, float]:
        return {"sum": group["initial_accumulator_value"]}


class Adadelta(Optimizer):
    """Steps in the ratio of earlier steps to earlier gradients (Zeiler 2012).

    v ← ρ v + (1 - ρ) g²;  Δ ← √(u + eps) / √(v + eps) · g;  u ← ρ u + (1 - ρ) Δ²;  p ← p - lr Δ

    Args:
        params: tensors, pairs of name and tensor, or dicts of groups.
        lr: factor of the step.
        rho: decay of the averages.
        eps: added under the roots.
        weight_decay: factor of the penalty on squared weights.
        foreach: accepted; updates are as flat as the parameters' memory allows.
        capturable: count steps on the GPU, as captured steps do by themselves.
        maximize: go up instead of down.
        differentiable: must be False.
    """

    _update = staticmethod(rules.adadelta)

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
        options = {
            "lr": lr,
            "rho": rho,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "capturable": capturable,
            "foreach": foreach,
            "differentiable": differentiable,
        }
        super().__init__(params, checked("Adadelta", options))

    def _slots(self, group: Group) -> dict[str, float]:
        return {"square_avg": 0.0, "acc_delta": 0.0}


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
        foreach: accepted; updates are as flat as the parameters' memory allows.
        capturable: count steps on the GPU, as captured steps do by themselves.
        maximize: go up instead of down.
        differentiable: must be False.
    """

    _update = staticmethod(rules.rmsprop)

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
        options = {
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
        }
        at_least_0("Invalid alpha value: {}", alpha)
        super().__init__(params, checked("RMSprop", options))

    def _slots(self, group: Group) -> dict[str, float]:
        slots = {"square_avg": 0.0}
        if group["momentum"] > 0:
            slots["momentum_buffer"] = 0.0
        if group["centered"]:
            slots["grad_avg"] = 0.0
        return slots


class Rprop(Optimizer):
    """Steps that look at the sign of the gradient only (Riedmiller & Braun 1993).

    size ← size · η₊ where g kept its sign, · η₋ where it changed;  p ← p - size · sign(g)

    Where the sign changed, the element stays for one step. For gradients of whole data sets.

    Args:
        params: tensors, pairs of name and tensor, or dicts of groups.
        lr: first size of the steps.
        etas: factors of the size, below and above 1.
        step_sizes: the least and the largest size.
        foreach, capturable: accepted; updates are as flat as the parameters' memory allows.
        maximize: go up instead of down.
        differentiable: must be False.
    """

    _update = staticmethod(rules.rprop)

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-2,
        etas: tuple[float, float] = (0.5, 1.2),
        step_sizes: tuple[float, float] = (1e-6, 50),
        *,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
    ) -> None:
        """Take the parameters and their options."""
        options = {
            "lr": lr,
            "etas": etas,
            "step_sizes": step_sizes,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "capturable": capturable,
        }
        super().__init__(params, checked("Rprop", options))

    def _slots(self, group: Group) -> dict[str, float]:
        return {"prev": 0.0, "step_size": float(group["lr"])}
