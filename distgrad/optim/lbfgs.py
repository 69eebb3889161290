"""L-BFGS: steps by an estimate of the curvature from the last gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distgrad.autograd.mode import enable_grad, no_grad
from distgrad.backend.device import array_namespace
from distgrad.errors import ArgumentError, ConflictError
from distgrad.optim.checks import check_lr
from distgrad.optim.optimizer import Closure, Group, Optimizer, Params
from distgrad.optim.runs import as_pairs, plain
from distgrad.optim.wolfe import Point, strong_wolfe
from distgrad.tensor import Tensor, shared_of, wrap
from distgrad.typing import Array


class Memory:
    """What the optimizer knows of the curvature: the last changes of weights and gradients.

    Args:
        kept: the state of the first parameter, where PyTorch keeps it too.
    """

    direction: Array
    grad: Array

    def __init__(self, kept: dict[str, Any]) -> None:
        self.kept = kept
        self.changes = [t.array for t in kept.get("old_stps", [])]  # s
        self.turns = [t.array for t in kept.get("old_dirs", [])]  # y
        self.ro = [float(t) for t in kept.get("ro", [])]  # 1 / (y · s)
        self.scale = float(kept.get("H_diag", 1))
        self.direction, self.grad = (
            None if kept.get(name) is None else kept[name].array for name in ("d", "prev_flat_grad")
        )
        self.t: float = kept.get("t", 1)
        self.loss: float | None = kept.get("prev_loss")
        kept.setdefault("func_evals", 0)
        kept.setdefault("n_iter", 0)

    def learn(self, grad: Array, size: int) -> None:
        """Take what the last step did to the gradient."""
        if self.direction is None:
            self.direction = -grad
            return
        turn, change = grad - self.grad, self.direction * self.t
        product = float(turn @ change)
        if product > 1e-10:
            if len(self.turns) == size:
                for row in (self.turns, self.changes, self.ro):
                    row.pop(0)
            self.turns.append(turn)
            self.changes.append(change)
            self.ro.append(1 / product)
            self.scale = product / float(turn @ turn)
        self.direction = self._newton(-grad)

    def _newton(self, q: Array) -> Array:
        """Return ``q`` times the estimate of the inverse Hessian, by two loops over the memory."""
        rows = list(zip(self.changes, self.turns, self.ro, strict=True))
        parts = []
        for change, turn, ro in reversed(rows):
            parts.append(float(change @ q) * ro)
            q = q - turn * parts[-1]
        q = q * self.scale
        for change, turn, ro in rows:
            q = q + change * (parts.pop() - float(turn @ q) * ro)
        return q

    def keep(self) -> None:
        """Write all of it into the state."""
        xp = array_namespace(self.direction)
        kind = self.direction.dtype
        self.kept.update(
            d=wrap(self.direction),
            t=self.t,
            old_dirs=[wrap(a) for a in self.turns],
            old_stps=[wrap(a) for a in self.changes],
            ro=[wrap(xp.asarray(value, kind)) for value in self.ro],
            H_diag=wrap(xp.asarray(self.scale, kind)),
            prev_flat_grad=wrap(self.grad),
            prev_loss=self.loss,
        )


class LBFGS(Optimizer):
    """Quasi-Newton steps with a memory of the last gradients (Liu & Nocedal 1989).

    d ← -H g, with H from the last ``history_size`` changes s of weights and y of gradients
    p ← p + t d

    All parameters are one vector and make one group. ``step`` needs a closure, which it calls
    several times.

    Args:
        params: tensors, or pairs of name and tensor.
        lr: step length, or with a line search the first that is tried.
        max_iter: the most iterations of a step.
        max_eval: the most calls of the closure in a step; None is 1.25 ``max_iter``.
        tolerance_grad: ends a step where no element of the gradient is larger.
        tolerance_change: ends a step that changes weights or loss less.
        history_size: number of changes that are kept.
        line_search_fn: "strong_wolfe" or None.

    Example:
        >>> import distgrad as dg
        >>> p = dg.tensor([3.0, -2.0], requires_grad=True)
        >>> optimizer = LBFGS([p], line_search_fn="strong_wolfe")
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = ((p - 1) ** 4).sum()
        ...     loss.backward()
        ...     return loss
        >>> round(float(optimizer.step(closure)), 2)
        97.0
        >>> round(float(closure()), 6)
        0.0
    """

    _elementwise = False  # steps and curvature are of all parameters together

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search_fn: str | None = None,
    ) -> None:
        """Take the parameters and their options."""
        check_lr(lr)
        options = {
            "lr": lr,
            "max_iter": max_iter,
            "max_eval": max_iter * 5 // 4 if max_eval is None else max_eval,
            "tolerance_grad": tolerance_grad,
            "tolerance_change": tolerance_change,
            "history_size": history_size,
            "line_search_fn": line_search_fn,
        }
        super().__init__(params, options)
        if len(self.param_groups) != 1:
            raise ArgumentError("LBFGS doesn't support per-parameter options (parameter groups)")

    # ------------------------------------------------------------------ one vector
    def _params(self) -> list[Tensor]:
        params: list[Tensor] = self.param_groups[0]["params"]
        return params

    def _gradient(self) -> Array:
        """Return all gradients as one vector."""
        parts = []
        for p in self._params():
            xp = array_namespace(p.array)
            array = xp.zeros_like(p.array) if p.grad is None else p.grad.array
            parts.append(as_pairs(array).reshape(-1))
        return xp.concatenate(parts)

    def _move(self, start: list[Array], direction: Array, t: float) -> None:
        """Set the parameters to ``start + t * direction``."""
        at = 0
        for p, first in zip(self._params(), start, strict=True):
            pairs = as_pairs(p.array)
            part = direction[at : at + pairs.size].reshape(pairs.shape)
            pairs[...] = as_pairs(first) + t * part
            at += pairs.size
            shared_of(p).bump()

    # ------------------------------------------------------------------ the step
    def step(self, closure: Closure) -> Any:
        """Run up to ``max_iter`` iterations and return the loss before them.

        Args:
            closure: clears the gradients, computes the loss, calls ``backward``, returns the loss.
        """
        group = self.param_groups[0]
        if group["line_search_fn"] not in (None, "strong_wolfe"):
            raise ConflictError("only 'strong_wolfe' is supported")
        memory = Memory(self.state[self._params()[0]])
        evaluate = _counted(closure, memory.kept)
        before = memory.kept["func_evals"]
        with no_grad():
            first = evaluate()
            loss, grad = float(first), self._gradient()
            if _largest(grad) <= group["tolerance_grad"]:
                return first
            for iteration in range(1, group["max_iter"] + 1):
                memory.kept["n_iter"] += 1
                memory.learn(grad, group["history_size"])
                memory.grad, memory.loss = grad, loss
                memory.t = self._first_step(memory, grad)
                slope = float(grad @ memory.direction)
                if slope > -group["tolerance_change"]:
                    break
                start = Point(0.0, loss, grad, slope)
                last = iteration == group["max_iter"]
                loss, grad = self._advance(evaluate, memory, start, last)
                calls = memory.kept["func_evals"] - before
                if last or calls >= group["max_eval"] or _done(group, memory, loss, grad):
                    break
        memory.keep()
        return first

    def _first_step(self, memory: Memory, grad: Array) -> float:
        lr: float = plain(self.param_groups[0]["lr"])
        if memory.kept["n_iter"] > 1:
            return lr
        return min(1.0, 1.0 / float(abs(grad).sum())) * lr

    def _advance(
        self, evaluate: Closure, memory: Memory, start: Point, last: bool
    ) -> tuple[float, Array]:
        """Go along the direction; return loss and gradient there."""
        here = [p.array.copy() for p in self._params()]
        direction = memory.direction
        if self.param_groups[0]["line_search_fn"] is None:
            self._move(here, direction, memory.t)
            if last:  # nobody looks at the gradient there
                return start.loss, start.grad
            return float(evaluate()), self._gradient()

        def look(t: float) -> Point:
            self._move(here, direction, t)
            loss, grad = float(evaluate()), self._gradient()
            return Point(t, loss, grad, float(grad @ direction))

        end, _ = strong_wolfe(look, start, memory.t, _largest(direction), 1e-9)
        memory.t = end.t
        self._move(here, direction, end.t)
        return end.loss, end.grad


def _counted(closure: Closure, kept: dict[str, Any]) -> Callable[[], Any]:
    """Return ``closure`` with gradients on, which counts its calls."""

    def evaluate() -> Any:
        kept["func_evals"] += 1
        with enable_grad():
            return closure()

    return evaluate


def _largest(array: Array) -> float:
    return float(abs(array).max())


def _done(group: Group, memory: Memory, loss: float, grad: Array) -> bool:
    """Return True where nothing moves any more."""
    assert memory.loss is not None
    least = group["tolerance_change"]
    return bool(
        _largest(grad) <= group["tolerance_grad"]
        or _largest(memory.direction * memory.t) <= least
        or abs(loss - memory.loss) < least
    )
