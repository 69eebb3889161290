"""Optimizers that look at whole parameters: LAMB, LARS, Adafactor and Muon."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from distgrad.backend import capture as captures
from distgrad.backend.device import array_namespace
from distgrad.errors import ArgumentError, DtypeError
from distgrad.optim import rules, whole_rules
from distgrad.optim.checks import at_least_0, checked, one_element
from distgrad.optim.device_steps import check_first
from distgrad.optim.graph_steps import Row, record_step
from distgrad.optim.optimizer import Group, Optimizer, Params
from distgrad.optim.runs import Plan, as_pairs, options_of, scalar, update
from distgrad.tensor import Tensor, shared_of, wrap
from distgrad.typing import Array


class WholeParameters(Optimizer):
    """Base of the optimizers that update one whole parameter after the other."""

    _elementwise = False
    _in_graphs = True

    def _arrays(self, group: Group, p: Array) -> dict[str, Array]:
        """Return the first state of a parameter; by default an array like it for each slot."""
        return {name: array_namespace(p).zeros_like(p) for name in self._slots(group)}

    def _step_group(self, index: int, group: Group) -> None:
        if index not in self._plans:  # by it a captured step knows when all state is another one
            self._plans[index] = Plan([], self.state, {}, {})
        if captures.current() is not None and group["params"][0].is_cuda:
            self._record_group(index, group)
            return
        options = options_of(group)
        decay, maximize = self._decay_of(options), options.get("maximize", False)
        for p in group["params"]:
            if p.grad is None:
                continue
            entry = self.state[p]
            fresh = not entry
            if fresh:
                entry.update({name: scalar(v) for name, v in self._numbers(group).items()})
                entry.update({n: wrap(a) for n, a in self._arrays(group, p.array).items()})
            step = 1 if fresh else 2  # of rules that keep no count
            if "step" in entry:
                entry["step"].array[...] += 1
                step = int(entry["step"].array)
            rule = self._rule(options, step, {})
            state = [as_pairs(t.array) for n, t in entry.items() if n != "step"]
            g = as_pairs(p.grad.array)
            xp = array_namespace(p.array)
            update(xp, as_pairs(p.array), g, state, rule, decay, maximize)
            shared_of(p).bump()

    def _record_group(self, index: int, group: Group) -> None:
        """Let a capture record a step; parameters with one count of steps share their numbers."""
        capture, rows = captures.current(), dict[Any, list[Tensor]]()
        for p in (p for p in group["params"] if p.grad is not None):
            entry = self.state[p]
            check_first(type(self).__name__, not entry)
            count = int(entry["step"].array) if "step" in entry else 0
            rows.setdefault((count, str(p.array.dtype), p.device), []).append(p)
        assert capture is not None
        capture.keep(self._plans[index])
        record_step(self, group, [self._row(params) for params in rows.values()])

    def _row(self, params: list[Tensor]) -> Row:
        arrays, counts = [], []
        for p in params:
            entry = self.state[p]
            counts += [entry["step"].array] if "step" in entry else []
            state = [as_pairs(t.array) for n, t in entry.items() if n != "step"]
            arrays.append((as_pairs(p.array), as_pairs(p.grad.array), state))  # type: ignore[union-attr]
            shared_of(p).bump()
        return Row(arrays, counts)


class LAMB(WholeParameters):
    """Adam with steps in proportion to the weights, for large batches (You et al. 2020).

    r ← Adam's direction + weight_decay · p;  p ← p - lr · ‖p‖ / ‖r‖ · r

    Args:
        params: tensors, pairs of name and tensor, or dicts of groups.
        lr: learning rate.
        betas: decay of the averages of the gradient and of its square.
        eps: added to the root.
        weight_decay: part of the weights that is added to the direction.
        adapt: multiply by the ratio of norms; often False for the group of biases and norms.
        maximize: go up instead of down.

    Example:
        >>> import distgrad as dg
        >>> p = dg.tensor([3.0, 4.0], requires_grad=True)
        >>> optimizer = LAMB([p], lr=0.1, weight_decay=0)
        >>> p.sum().backward()
        >>> optimizer.step()
        >>> p.detach()
        tensor([2.6464, 3.6464])
    """

    _update = staticmethod(whole_rules.lamb)

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 1e-2,
        *,
        adapt: bool = True,
        maximize: bool = False,
    ) -> None:
        """Take the parameters and their options."""
        options = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "adapt": adapt,
            "maximize": maximize,
        }
        super().__init__(params, checked("LAMB", options))

    def _slots(self, group: Group) -> dict[str, float]:
        return {"exp_avg": 0.0, "exp_avg_sq": 0.0}

    def _factors(self, options: Group, step: int, numbers: dict[str, Array]) -> dict[str, float]:
        beta1, beta2 = options["betas"]
        scale = 1 / math.sqrt(1 - beta2**step)
        return {"lr": options["lr"], "scale": scale, "unbias": 1 / (1 - beta1**step)}


class LARS(WholeParameters):
    """SGD with steps in proportion to the weights, for large batches (You et al. 2017).

    d ← g + weight_decay · p;  SGD's step with trust_coefficient · ‖p‖ / ‖d‖ · d as gradient

    Args:
        params: tensors, pairs of name and tensor, or dicts of groups.
        lr: learning rate.
        momentum: what is kept of the buffer; 0 does without one.
        dampening: what a new gradient loses on its way into the buffer.
        weight_decay: factor of the penalty on squared weights.
        nesterov: look ahead along the buffer.
        trust_coefficient: size of a step as part of the weights' norm.
        adapt: multiply by the ratio of norms; often False for the group of biases and norms.
        maximize: go up instead of down.
    """

    _update = staticmethod(whole_rules.lars)

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 0.1,
        momentum: float = 0.9,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        trust_coefficient: float = 1e-3,
        adapt: bool = True,
        maximize: bool = False,
    ) -> None:
        """Take the parameters and their options."""
        options = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "trust_coefficient": trust_coefficient,
            "adapt": adapt,
            "maximize": maximize,
        }
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ArgumentError("Nesterov momentum requires a momentum and zero dampening")
        super().__init__(params, checked("LARS", options))

    def _slots(self, group: Group) -> dict[str, float]:
        return {"momentum_buffer": 0.0} if group["momentum"] else {}

    def _numbers(self, group: Group) -> dict[str, float]:
        return {}

    def _factors(self, options: Group, step: int, numbers: dict[str, Array]) -> dict[str, float]:
        return {"lr": options["lr"]}


class Adafactor(WholeParameters):
    """Adam with a memory of rows plus columns only (Shazeer & Stern 2018).

    V ← r c / mean(r), of averages r and c of g² along rows and columns;  u ← g / √V
    p ← p - max(eps₂, rms(p)) · min(lr, 1 / √t) · u / max(1, rms(u) / d)

    Args:
        params: tensors, pairs of name and tensor, or dicts of groups.
        lr: the largest step relative to the weights.
        beta2_decay: exponent with which the averages come to keep all.
        eps: the least variance (None: that of the dtype) and the least size of weights.
        d: the largest root mean square of an update.
        weight_decay: decay of the weights themselves.
        foreach: accepted; each parameter is updated by itself.
        maximize: go up instead of down.
    """

    _update = staticmethod(whole_rules.adafactor)

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
    ) -> None:
        """Take the parameters and their options."""
        one_element(lr)
        at_least_0("Learning rate should be >= 0 but is: {}", lr)
        if not beta2_decay <= 0.0:
            raise ArgumentError(f"beta2_decay should be <= 0 but is: {beta2_decay}")
        if eps[0] is not None:
            at_least_0("epsilon1 should be >= 0 but is: {}", eps[0])
        at_least_0("epsilon2 should be >= 0 but is: {}", eps[1])
        if not d >= 1.0:
            raise ArgumentError(f"Clipping threshold d should be >= 1 but is: {d}")
        at_least_0("weight_decay should be >= 0 but is: {}", weight_decay)
        options = {
            "lr": lr,
            "beta2_decay": beta2_decay,
            "eps": eps,
            "d": d,
            "weight_decay": weight_decay,
            "foreach": foreach,
            "maximize": maximize,
        }
        super().__init__(params, options)

    def _factors(self, options: Group, step: int, numbers: dict[str, Array]) -> dict[str, float]:
        lr, memory = options["lr"], 1 - step ** options["beta2_decay"]
        return {
            "kept": 1 - lr * options["weight_decay"],
            "memory": memory,
            "rest": 1 - memory,
            "most": min(lr, 1 / math.sqrt(step)),
        }

    def _arrays(self, group: Group, p: Array) -> dict[str, Array]:
        if p.dtype.kind == "c":
            raise DtypeError("Adafactor does not support complex parameters")
        xp = array_namespace(p)
        if p.ndim < 2:
            return {"variance": xp.zeros_like(p)}
        rows, columns = (*p.shape[:-1], 1), (*p.shape[:-2], 1, p.shape[-1])
        return {"row_var": xp.zeros(rows, p.dtype), "col_var": xp.zeros(columns, p.dtype)}


class Muon(WholeParameters):
    """Momentum made orthogonal, for matrices (Jordan et al. 2024).

    buffer ← momentum · buffer + (1 - momentum) · g;  p ← p - lr · UVᵀ of the buffer's UΣVᵀ

    UVᵀ comes from a Newton-Schulz iteration whose numbers are rounded to those of bfloat16.

    Args:
        params: matrices, pairs of name and matrix, or dicts of groups.
        lr: learning rate, adjusted to the shape.
        weight_decay: decay of the weights themselves.
        momentum: decay of the average of the gradient.
        nesterov: look ahead along the buffer.
        ns_coefficients: of the iteration's polynomial.
        eps: the least norm.
        ns_steps: number of iterations.
        adjust_lr_fn: "original" (or None) takes √max(1, rows / columns), "match_rms_adamw" takes
            0.2 √max(rows, columns).
    """

    _update = staticmethod(whole_rules.muon)

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
    ) -> None:
        """Take the parameters and their options."""
        one_element(lr)
        at_least_0("Learning rate should be >= 0 but is: {}", lr)
        at_least_0("momentum should be >= 0 but is: {}", momentum)
        at_least_0("weight decay should be >= 0 but is: {}", weight_decay)
        if adjust_lr_fn not in (None, "original", "match_rms_adamw"):
            raise ArgumentError(f"Adjust learning rate function {adjust_lr_fn} is not supported")
        if ns_steps >= 100:
            raise ArgumentError(
                "Number of steps must be less than 100 for computational efficiency"
            )
        if len(ns_coefficients) != 3:
            raise ArgumentError("Coefficients must be a tuple of exactly 3 values")
        options: dict[str, Any] = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": ns_coefficients,
            "eps": eps,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
        }
        super().__init__(params, options)

    def add_param_group(self, param_group: Group) -> None:
        """Add matrices with options of their own.

        Args:
            param_group: a dict with "params" and any options that differ from the defaults.
        """
        super().add_param_group(param_group)
        for p in param_group["params"]:
            if p.array.ndim != 2:
                self.param_groups.pop()
                raise ArgumentError(
                    "Muon only supports 2D parameters whereas we found a parameter with size: "
                    f"{p.shape}"
                )

    def _slots(self, group: Group) -> dict[str, float]:
        return {"momentum_buffer": 0.0}

    def _numbers(self, group: Group) -> dict[str, float]:
        return {}

    def _arrays(self, group: Group, p: Array) -> dict[str, Array]:
        if p.dtype.kind == "c":
            raise DtypeError("Muon does not support complex parameters")
        return super()._arrays(group, p)

    def _decay(self, group: Group) -> Callable[..., Array]:
        return rules.shrunk
