"""Stochastic gradient descent, also with an average of the way."""

from __future__ import annotations

from distgrad.errors import ArgumentError
from distgrad.optim import rules
from distgrad.optim.checks import checked
from distgrad.optim.optimizer import Group, Optimizer, Params
from distgrad.optim.runs import scalar
from distgrad.tensor import Tensor
from distgrad.typing import Array


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
        foreach, fused: accepted; updates are as flat as the parameters' memory allows.
        differentiable: must be False.

    Example:
        >>> import distgrad as dg
        >>> p = dg.tensor([1.0], requires_grad=True)
        >>> optimizer = SGD([p], lr=0.1)
        >>> (p * p).sum().backward()
        >>> optimizer.step()
        >>> p.detach()
        tensor([0.8000])
    """

    _update = staticmethod(rules.sgd)

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        """Take the parameters and their options."""
        options = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
        }
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ArgumentError("Nesterov momentum requires a momentum and zero dampening")
        super().__init__(params, checked("SGD", options))

    def _slots(self, group: Group) -> dict[str, float]:
        return {"momentum_buffer": 0.0} if group["momentum"] else {}

    def _numbers(self, group: Group) -> dict[str, float]:
        return {}


class ASGD(Optimizer):
    """Gradient descent that keeps the average of the weights too (Polyak & Juditsky 1992).

    p ← (1 - λ η) p - η g;  ax ← ax + μ (p - ax);  η ← lr / (1 + λ lr t)ᵅ;  μ ← 1 / max(1, t - t0)

    The average is ``optimizer.state[p]["ax"]``.

    Args:
        params: tensors, pairs of name and tensor, or dicts of groups.
        lr: first learning rate.
        lambd: how fast the rate falls, and how much the weights are pulled to 0.
        alpha: power with which the rate falls.
        t0: step at which averaging begins.
        weight_decay: factor of the penalty on squared weights.
        foreach, capturable: accepted; updates are as flat as the parameters' memory allows.
        maximize: go up instead of down.
        differentiable: must be False.
    """

    _update = staticmethod(rules.asgd)

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-2,
        lambd: float = 1e-4,
        alpha: float = 0.75,
        t0: float = 1e6,
        weight_decay: float = 0,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
    ) -> None:
        """Take the parameters and their options."""
        options = {
            "lr": lr,
            "lambd": lambd,
            "alpha": alpha,
            "t0": t0,
            "weight_decay": weight_decay,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "capturable": capturable,
        }
        super().__init__(params, checked("ASGD", options))

    def _slots(self, group: Group) -> dict[str, float]:
        return {"ax": 0.0}

    def _numbers(self, group: Group) -> dict[str, float]:
        return {"step": 0.0, "eta": float(group["lr"]), "mu": 1.0}

    def _factors(self, options: Group, step: int, numbers: dict[str, Array]) -> dict[str, float]:
        eta, mu = (float(numbers[name][0]) for name in ("eta", "mu"))
        lr = options["lr"]
        rate = lr / (1 + options["lambd"] * lr * step) ** options["alpha"]
        numbers["eta"][...] = scalar(rate).array
        numbers["mu"][...] = scalar(1 / max(1, step - options["t0"])).array
        return {"kept": 1 - options["lambd"] * eta, "eta": eta, "mu": mu}
