"""Steps of optimizers without a kernel of their own, in captured graphs.

Note [Numbers of a graph]
    Some numbers that a rule multiplies by differ from step to step: the learning rate, and what
    comes of the count of steps (``Optimizer._factors``). For a graph they lie on the GPU, each an
    array without dimensions of the parameters' dtype, which gives the bits of Python's number. The
    host counts the step and writes them before each replay. All other options belong to the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy

from distgrad.backend import capture as captures
from distgrad.backend.device import array_namespace
from distgrad.errors import CaptureError
from distgrad.optim import rules
from distgrad.optim.runs import Rule, options_of, update
from distgrad.typing import Array, Namespace

if TYPE_CHECKING:
    from distgrad.optim.optimizer import Group, Optimizer

__all__ = ["Row", "record_step"]

_OWN = ("params", "param_names", "lr")  # of a group: what may change, and what is no option


class Row(NamedTuple):
    """Parameters that have made the same number of steps.

    Args:
        arrays: each with its gradient and its state.
        counts: arrays of the host that count their steps, if any do.
        numbers: what else is kept for them, to be changed in place.
    """

    arrays: Sequence[tuple[Array, Array, Sequence[Array]]]
    counts: Sequence[Array] = ()
    numbers: dict[str, Array] = {}  # noqa: RUF012  # nobody changes the default


class _Numbers:
    """The numbers of a row that differ from step to step, on the GPU."""

    def __init__(self, optimizer: Optimizer, group: Group, row: Row) -> None:
        self._optimizer, self._group, self._row = optimizer, group, row
        self._baked = {name: value for name, value in group.items() if name not in _OWN}
        step = int(row.counts[0].flat[0]) + 1 if row.counts else 2
        values = self._values(step, {name: a.copy() for name, a in row.numbers.items()})
        like = row.arrays[0][0]
        with captures.outside():
            zeros = array_namespace(like).zeros
            self.places: dict[str, Any] = {name: zeros((), like.dtype) for name in values}
        self._written: dict[str, float] = {}

    def _values(self, step: int, numbers: dict[str, Array]) -> dict[str, float]:
        options = options_of(self._group)
        values = self._optimizer._factors(options, step, numbers)
        if self._optimizer._decay(self._group) is rules.shrunk:
            values["kept"] = 1 - options["lr"] * options["weight_decay"]
        return values

    def write(self) -> None:
        """Count a step, and write what it multiplies by.

        Raises:
            CaptureError: the graph is not of this step.
        """
        name = f"{type(self._optimizer).__name__}.step()"
        for option, value in self._baked.items():
            now = self._group[option]
            if now is not value and now != value:
                raise CaptureError(
                    f"{name}: {option} has changed since the capture, whose graph holds it; "
                    "capture the step anew (only lr may change)"
                )
        counts = self._row.counts
        steps = {int(count.flat[0]) + 1 for count in counts} or {2}
        if len(steps) > 1:
            raise CaptureError(
                f"{name}: its parameters have made {sorted(steps)} steps, and as many as each "
                "other when this was captured; capture the step anew"
            )
        for count in counts:
            count += 1
        for place, number in self._values(steps.pop(), self._row.numbers).items():
            if self._written.get(place) != number:
                self.places[place].fill(number)
                self._written[place] = number


def record_step(optimizer: Optimizer, group: Group, rows: Sequence[Row]) -> None:
    """Let the capture under way record a step of a group.

    Raises:
        CaptureError: the numbers of its steps cannot be kept on the GPU.
    """
    capture = captures.current()
    assert capture is not None
    for row in rows:
        numbers = _Numbers(optimizer, group, row)
        rule, decay = _rule(optimizer, group, row, numbers.places)
        capture.keep(numbers)
        capture.before_replay(numbers.write)
        for p, g, state in row.arrays:
            update(array_namespace(p), p, g, state, rule, decay, group.get("maximize", False))


def _rule(optimizer: Optimizer, group: Group, row: Row, places: dict[str, Any]) -> tuple[Rule, Any]:
    """Return the update rule and the decay, which take what changes from the GPU."""
    options = options_of(group)
    asked: dict[str, Any] = {name: options[name] for name in optimizer._asks if name in options}
    if "step" in optimizer._asks:
        asked["step"] = 2  # only rules that keep no count ask whether it is the first one
    asked |= {name: place for name, place in places.items() if name in optimizer._asks}
    kind, amount = optimizer._decay(group), options.get("weight_decay", 0)
    known = kind in (rules.penalised, rules.shrunk)
    loose = ("lr" in asked and "lr" not in places) or ("step" in asked and row.counts)
    wide = row.arrays[0][0].dtype in (numpy.float32, numpy.float64)
    if loose or not known or not wide:
        refuse_step(optimizer)
    decay: Any = None
    if amount and "weight_decay" not in optimizer._asks:
        decay = partial(kind, lr=0.0, weight_decay=amount)
        if kind is rules.shrunk:
            decay = partial(_shrunk, kept=places["kept"])
    assert optimizer._update is not None
    return partial(optimizer._update, **asked), decay


def _shrunk(xp: Namespace, p: Array, g: Array, *, kept: Any) -> Array:
    """Return ``g`` after ``p`` was moved towards 0, as by `distgrad.optim.rules.shrunk`."""
    p *= kept
    return g


def refuse_step(optimizer: Optimizer) -> None:
    """Raise if a capture is under way."""
    scaled = "the host has to know whether a gradient scaler leaves the step out"
    captures.refuse(
        f"{type(optimizer).__name__}.step()",
        "the host works out the numbers of each step" if optimizer.found_inf is None else scaled,
        "take an optimizer with a kernel, such as AdamW or SGD, over real parameters",
    )
