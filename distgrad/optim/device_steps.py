"""The steps of an optimizer on a GPU, where its rule has a kernel (`distgrad.backend.cuda`).

Note [Counts and rates on the GPU]
    Usually the host counts steps and gives the options of a group to each launch.  With
    ``capturable=True``, in a captured step, and when a gradient scaler may leave steps out, counts
    and options lie on the GPU: no host waits to know whether a step was made, and a replay counts
    for itself.  Options that changed are written there before each step and each replay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy

from distgrad.backend import capture as captures
from distgrad.backend.device import array_namespace, cupy_module
from distgrad.backend.layout import is_dense, lie_alike
from distgrad.errors import CaptureError
from distgrad.optim import rules
from distgrad.optim.runs import Plan, Run, gradient_of
from distgrad.tensor import Tensor, shared_of
from distgrad.typing import Array

if TYPE_CHECKING:
    from distgrad.optim.optimizer import Group, Optimizer

__all__ = ["DeviceSteps", "device_steps"]

# What the kernels call an option of a rule: lr, decay, a, b, eps.
_OPTIONS: dict[str, Callable[[Any], tuple[Any, ...]]] = {
    "sgd": lambda o: (o["momentum"], o["dampening"], 0.0),
    "adam": lambda o: (*o["betas"], o["eps"]),
    "adamax": lambda o: (*o["betas"], o["eps"]),
    "adagrad": lambda o: (o["lr_decay"], 0.0, o["eps"]),
    "adadelta": lambda o: (o["rho"], 0.0, o["eps"]),
    "rmsprop": lambda o: (o["alpha"], o["momentum"], o["eps"]),
    "radam": lambda o: (*o["betas"], o["eps"]),
}
# In which of three places the kernels look for the state that a group may do without.
_PLACES = {"momentum_buffer": {"rmsprop": 1, "sgd": 0}, "grad_avg": {"rmsprop": 2}}
MAXIMIZE, DECOUPLED, NESTEROV, FIRST = 1, 2, 4, 8


class _Batch:
    """Runs that go through one launch: of one dtype, and with the same count of steps."""

    def __init__(self, rule: str, runs: Sequence[Run], slots: Sequence[str], update: Any) -> None:
        self.runs = runs
        rows = [_placed(rule, slots, run.state) for run in runs]
        self.update = update(rule, [run.array for run in runs], rows)
        self.counts: Array | None = None  # on the GPU, for each parameter

    def count_on_device(self, states: dict[Tensor, dict[str, Any]], cupy: Any) -> None:
        """Move the counts of steps to the GPU."""
        kept = [(p, states[p].get("step")) for run in self.runs for p in run.params]
        count = next((float(step.array) for _, step in kept if step is not None), 1.0)
        self.counts = cupy.full(len(kept), count, numpy.float32)
        for number, (_, step) in enumerate(kept):
            if step is not None:
                step.array = self.counts[number, ...]

    def count(self) -> Array | int:
        """Return the number of the next step, or the counts on the GPU."""
        if self.counts is not None:
            return self.counts
        step = 1
        for run in self.runs:
            counts = run.scalars.get("step")
            if counts is not None:
                counts += 1
                step = int(counts[0])
        return step


def _placed(rule: str, slots: Sequence[str], state: Sequence[Array]) -> list[Array | None]:
    """Return the arrays of state in the places where the kernel looks for them."""
    row: list[Array | None] = [None, None, None]
    for number, (name, array) in enumerate(zip(slots, state, strict=True)):
        row[_PLACES.get(name, {}).get(rule, number)] = array
    return row


def _alike(grad: Array, array: Array) -> Array:
    """Return a gradient in the dtype of ``array`` and in its order of memory, channels last too."""
    if lie_alike(grad, array):
        return grad.astype(array.dtype, copy=False)
    out = array_namespace(array).empty_like(array)
    out[...] = grad
    return out


class DeviceSteps:
    """The steps of one parameter group, all of whose parameters are on one GPU.

    Args:
        name: of the optimizer, for messages.
        rule: the name of its rule.
        plan: the parameters and their state.
        states: the optimizer's.
        update: the kernel.
    """

    def __init__(
        self, name: str, rule: str, plan: Plan, states: dict[Tensor, dict[str, Any]], update: Any
    ) -> None:
        self._name, self._rule, self._states = name, rule, states
        batches: dict[Any, list[Run]] = {}
        for run in plan.runs:
            counts = run.scalars.get("step")
            key = run.array.dtype, run.first, None if counts is None else float(counts[0])
            batches.setdefault(key, []).append(run)
        slots = list(plan.slots)
        self._batches = [_Batch(rule, runs, slots, update) for runs in batches.values()]
        self._options: Array | None = None  # on the GPU
        self._written: list[float] = []
        self._group: Group = {}

    def step(self, group: Group, decoupled: bool, found: Array | None) -> None:
        """Update the parameters.

        Args:
            group: the options.
            decoupled: whether the weights themselves decay.
            found: whether to do nothing; on the GPU.
        """
        self._group, capture = group, captures.current()
        if self._options is None and (capture or found is not None or group.get("capturable")):
            self._move(capture)
        if capture is not None:
            capture.before_replay(self.refresh)
            capture.keep(self)
        else:
            self.refresh()
        given: Any = self._options if self._options is not None else self._values()
        flags = MAXIMIZE * bool(group.get("maximize")) + DECOUPLED * decoupled
        flags += NESTEROV * bool(group.get("nesterov"))
        for batch in self._batches:
            first = FIRST * batch.runs[0].first
            grads = [_alike(gradient_of(run), run.array) for run in batch.runs]
            batch.update(grads, given, flags + first, batch.count(), found)
            for run in batch.runs:
                run.first = False
                for p in run.params:
                    shared_of(p).bump()

    def _move(self, capture: Any) -> None:
        """Keep options and counts on the GPU from now on."""
        if capture is not None:
            check_first(self._name, any(batch.runs[0].first for batch in self._batches))
        cupy = cupy_module("optimizer")
        with captures.outside():
            self._options = cupy.zeros(8, numpy.float64)
            self._written = [math.nan] * 5
            for batch in self._batches:
                batch.count_on_device(self._states, cupy)
            self.refresh()

    def refresh(self) -> None:
        """Write options that changed to the GPU, if they are there."""
        if self._options is None:
            return
        for number, value in enumerate(self._values()):
            if isinstance(value, Tensor):
                self._options[number : number + 1] = value.array
            elif value != self._written[number]:
                self._options[number : number + 1].fill(value)
                self._written[number] = value

    def _values(self) -> list[Any]:
        group = self._group
        values = (group["lr"], group.get("weight_decay", 0.0), *_OPTIONS[self._rule](group))
        return [self._number(v) for v in values]

    def _number(self, value: Any) -> Any:
        """Return an option as Python's number; a tensor on the GPU stays there, if others do."""
        if isinstance(value, Tensor):
            return value if value.is_cuda and self._options is not None else value.item()
        return float(value)


def check_first(name: str, first: bool) -> None:
    """Raise in a capture of the first step of an optimizer.

    Raises:
        CaptureError: it is that.
    """
    if first:
        raise CaptureError(
            f"{name}.step(): its first step makes its state, which a replay would make again; take "
            "a step before the capture"
        )


def device_steps(optimizer: Optimizer, plan: Plan, decay: Any) -> DeviceSteps | None:
    """Return the steps of a plan by kernels; None where its arrays or its rule have none."""
    update = plan.runs[0].xp.kernels.get("update")
    rule = optimizer._update
    name = getattr(rule, "__name__", "")
    if update is None or name not in _OPTIONS or rule is not getattr(rules, name):
        return None
    if decay not in (rules.penalised, rules.shrunk):
        return None
    place = plan.runs[0].array.device
    for run in plan.runs:
        arrays = [run.array, *run.state]
        if run.xp is not plan.runs[0].xp or run.array.device != place:
            return None
        if any(a.dtype != run.array.dtype or not lie_alike(a, run.array) for a in arrays):
            return None
        if not is_dense(run.array):
            return None
        if run.array.dtype.kind == "c":
            return None
    return DeviceSteps(type(optimizer).__name__, name, plan, optimizer.state, update)
