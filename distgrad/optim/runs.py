"""Runs: parameters that one call of an update rule covers.

Where parameters and gradients lie next to each other in flat arrays (``flatten_parameters``, the
buckets of DistributedDataParallel), the state is laid out likewise and the rule runs over the whole
stretch.  Elsewhere each parameter is a run of its own.  Long runs go through the rule block by
block, so that its several passes find their operands in the cache; the bits are the same.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy

from distgrad.backend import numpy_backend
from distgrad.backend.device import array_namespace, working_on
from distgrad.backend.dtype import float64, get_default_dtype
from distgrad.tensor import Tensor, shared_of, wrap
from distgrad.typing import Array

BLOCK = 1 << 16
"""Elements of a block: five float32 arrays of it take 1.3 MiB, about a core's own cache."""

Rule = Callable[[Any, Array, Array, Sequence[Array]], None]
Decay = Callable[[Any, Array, Array], Array]
State = dict[str, Any]


class Run:
    """Parameters that are updated together.

    ``grad`` is the flat gradient, or None where the only parameter's gradient is looked up anew at
    each step.  ``scalars`` hold one number for each parameter (``step``); they agree within a run.
    """

    __slots__ = ("array", "first", "grad", "params", "scalars", "state", "xp")
    params: list[Tensor]
    array: Array
    grad: Array | None
    state: list[Array]
    scalars: dict[str, Array]
    first: bool  # the state was made now
    xp: Any

    def apply(self, rule: Rule, decay: Decay | None, maximize: bool) -> None:
        """Run the rule over the parameters and note that they changed."""
        p, state, g = self.array, self.state, gradient_of(self)
        if self.xp is not numpy_backend or p.ndim != 1 or p.size <= BLOCK:
            update(self.xp, p, g, state, rule, decay, maximize)
        else:
            for start in range(0, p.size, BLOCK):
                part = slice(start, start + BLOCK)
                pieces = [s[part] for s in state]
                update(self.xp, p[part], g[part], pieces, rule, decay, maximize)
        for param in self.params:
            shared_of(param).bump()


def update(
    xp: Any,
    p: Array,
    g: Array,
    state: Sequence[Array],
    rule: Rule,
    decay: Decay | None,
    maximize: bool,
) -> None:
    """Change ``p`` and ``state`` by the rule, after the sign and the decay of weights."""
    if maximize:
        g = xp.negative(g)
    if decay is not None:
        g = decay(xp, p, g)
    rule(xp, p, g, state)


def gradient_of(run: Run) -> Array:
    """Return the gradient that a run is updated with now."""
    if run.grad is not None:
        return run.grad
    return _flat(run.params[0].grad.array, run.array.ndim)  # type: ignore[union-attr]


class Plan:
    """The runs of one parameter group, valid while memory and gradients stay where they are."""

    __slots__ = ("arrays", "device", "entries", "grads", "params", "runs", "slots", "values")

    def __init__(
        self,
        params: list[Tensor],
        states: dict[Tensor, State],
        slots: dict[str, float],
        scalars: dict[str, float],
    ) -> None:
        self.params, self.slots = params, slots
        self.device: Any = None  # its `DeviceSteps`, False where it has none
        self.arrays = [p.array for p in params]
        fresh = fill(params, states, slots, scalars)
        self.entries = [states[p] for p in params] if slots or scalars else []
        self.runs: list[Run] = []
        flat: set[Tensor] = set()
        for stretch in _stretches(params, states, scalars, fresh):
            run = _make_run(stretch, states, slots, scalars)
            run.first = stretch[0] in fresh
            self.runs.append(run)
            if run.grad is not None:
                flat.update(stretch)
        self.grads = [p.grad.array if p in flat else None for p in params]  # type: ignore[union-attr]
        self.values = [value for entry in self.entries for value in entry.values()]

    def fits(
        self, params: list[Tensor], states: dict[Tensor, State], slots: dict[str, float]
    ) -> bool:
        """Return True when these parameters can be updated by this plan."""
        if len(params) != len(self.params) or slots.keys() != self.slots.keys():
            return False
        for p, was, array, g in zip(params, self.params, self.arrays, self.grads, strict=True):
            if p is not was or p.array is not array:
                return False
            if g is not None and p.grad.array is not g:  # type: ignore[union-attr]
                return False
        if not all(map(operator.is_, map(states.get, params), self.entries)):
            return False
        values = itertools.chain.from_iterable(map(dict.values, self.entries))
        return all(map(operator.is_, values, self.values))


def fill(
    params: list[Tensor],
    states: dict[Tensor, State],
    slots: dict[str, float],
    scalars: dict[str, float],
) -> set[Tensor]:
    """Make the state that is missing; return the parameters which had none."""
    fresh: set[Tensor] = set()
    if not slots and not scalars:
        return fresh
    for p in params:
        entry = states[p]
        for name, value in scalars.items():
            entry.setdefault(name, scalar(value))
        for name, value in slots.items():
            if entry.get(name) is None:
                fresh.add(p)
                entry[name] = _filled(p.array, value)
    return fresh


def plain(value: Any) -> Any:
    """Return an option as rules take it: tensors and NumPy's numbers as Python's."""
    if isinstance(value, Tensor | numpy.generic):
        return value.item()
    return tuple(map(plain, value)) if isinstance(value, list | tuple) else value


def options_of(group: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a group as rules take them."""
    return {k: plain(v) for k, v in group.items() if k not in ("params", "param_names")}


def scalar(value: float) -> Tensor:
    """Return a number of a parameter's state, as PyTorch keeps it."""
    kind = numpy.float64 if get_default_dtype() is float64 else numpy.float32
    return wrap(numpy.full((), value, kind))


def _filled(like: Array, value: float) -> Tensor:
    """Return an array of one number; real and imaginary parts of complex ones are this number."""
    both = complex(value, value) if value and like.dtype.kind == "c" else value
    with working_on(like):
        return wrap(array_namespace(like).full_like(like, both))


def _flat(array: Array, ndim: int) -> Array:
    """Return ``array`` as the run's array is: flat where that is flat, complex as pairs."""
    out = array.reshape(-1) if ndim == 1 else array
    if out.dtype.kind != "c":
        return out
    return out.view(out.real.dtype) if ndim == 1 else as_pairs(out)


def as_pairs(array: Array) -> Array:
    """Return a view of complex numbers as pairs of real ones, of another number as it is."""
    if array.dtype.kind != "c":
        return array
    kind = array.real.dtype
    strides = (*array.strides, kind.itemsize)
    make = array_namespace(array).lib.stride_tricks.as_strided
    out: Array = make(array.real, (*array.shape, 2), strides)
    return out


# ---------------------------------------------------------------------- stretches of memory
def _address(array: Array) -> int:
    return int(array.ctypes.data if type(array) is numpy.ndarray else array.data.ptr)


def _in_flat(array: Array) -> bool:
    """Return True for a contiguous part of a flat array of the same type."""
    base = array.base
    return (
        base is not None
        and type(base) is type(array)
        and base.ndim == 1
        and base.dtype == array.dtype
        and bool(array.flags.c_contiguous)
        and array.size > 0
    )


def _stretches(
    params: list[Tensor],
    states: dict[Tensor, State],
    scalars: dict[str, float],
    fresh: set[Tensor],
) -> Iterable[list[Tensor]]:
    """Give lists of parameters that lie one after the other, together with their gradients."""
    flat: list[tuple[Any, ...]] = []
    for p in params:
        g = p.grad.array  # type: ignore[union-attr]
        if p.array.base is None or g.base is None or not (_in_flat(p.array) and _in_flat(g)):
            yield [p]
            continue
        numbers = tuple(float(states[p][name].array) for name in scalars)
        place = (id(p.array.base), id(g.base), numbers, p in fresh)
        flat.append((_address(p.array), _address(g), place, p))
    flat.sort(key=lambda item: item[0])
    stretch: list[Tensor] = []
    after: tuple[Any, ...] = ()
    for at, at_grad, place, p in flat:
        if stretch and (at, at_grad, place) != after:
            yield stretch
            stretch = []
        stretch.append(p)
        after = (at + p.array.nbytes, at_grad + p.array.nbytes, place)
    if stretch:
        yield stretch


def _part(first: Array, size: int) -> Array:
    """Return ``size`` elements of the flat base of ``first`` from its beginning on."""
    start = (_address(first) - _address(first.base)) // first.itemsize
    return first.base[start : start + size]


def _make_run(
    params: list[Tensor],
    states: dict[Tensor, State],
    slots: dict[str, float],
    scalars: dict[str, float],
) -> Run:
    run = Run()
    run.params, run.xp = params, array_namespace(params[0].array)
    if len(params) == 1:
        p = params[0]
        entry = [states[p][name].array for name in slots]
        plain = all(a.flags.c_contiguous for a in (p.array, *entry))
        ndim = 1 if plain else max(p.array.ndim, 2)
        run.array, run.grad = _flat(p.array, ndim), None
        run.state = [_flat(a, ndim) for a in entry]
    else:
        size = sum(p.array.size for p in params)
        run.array = _part(params[0].array, size)
        run.grad = _part(params[0].grad.array, size)  # type: ignore[union-attr]
        run.state = [_gather(params, states, name, run) for name in slots]
    run.scalars = {}
    for name in scalars:
        kept = [states[p][name].array for p in params]
        numbers = numpy.array([float(a) for a in kept], kept[0].dtype)
        run.scalars[name] = numbers
        for i, p in enumerate(params):
            states[p][name].array = numbers[i, ...]
    return run


def _gather(params: list[Tensor], states: dict[Tensor, State], name: str, run: Run) -> Array:
    """Move one kind of state into a flat array, of which each parameter's becomes a view."""
    flat = run.xp.empty_like(run.array)
    start = 0
    for p in params:
        tensor, size = states[p][name], p.array.size
        view = flat[start : start + size].reshape(p.array.shape)
        view[...] = tensor.array
        tensor.array = view
        start += size
    return flat


# ---------------------------------------------------------------------- flat parameters
def flatten_parameters(params: Iterable[Tensor]) -> list[Tensor]:
    """Move parameters into flat arrays, give them flat gradients, and return the flat arrays.

    Each parameter stays the same tensor; its memory becomes a view.  An optimizer then updates a
    whole flat array at once.  Parameters whose gradients lie in flat buckets already
    (DistributedDataParallel) are laid out in the order of their bucket.

    Args:
        params: leaf tensors; one flat array is made for each dtype, device and bucket.

    Example:
        >>> import distgrad as dg
        >>> model = dg.nn.Sequential(dg.nn.Linear(2, 3), dg.nn.Linear(3, 1))
        >>> [flat.shape for flat in flatten_parameters(model.parameters())]
        [distgrad.Size([13])]
    """
    groups: dict[Any, list[Tensor]] = {}
    for p in dict.fromkeys(params):
        groups.setdefault(_home(p), []).append(p)
    flats = []
    for (bucket, *_), members in groups.items():
        if bucket:
            members.sort(key=lambda p: _address(p._grad_buffer.array))  # type: ignore[union-attr]
        flats.append(wrap(_move(members)))
        if not bucket:
            _give_gradients(members)
    return flats


def _home(p: Tensor) -> tuple[Any, ...]:
    buffer = p._grad_buffer
    bucket = id(buffer.array.base) if buffer is not None and _in_flat(buffer.array) else 0
    return bucket, p.array.dtype, p.device


def _views(members: list[Tensor], flat: Array) -> list[Array]:
    views, start = [], 0
    for p in members:
        views.append(flat[start : start + p.array.size].reshape(p.array.shape))
        start += p.array.size
    return views


def _move(members: list[Tensor]) -> Array:
    array = members[0].array
    flat = array_namespace(array).empty(sum(p.array.size for p in members), array.dtype)
    for p, view in zip(members, _views(members, flat), strict=True):
        view[...] = p.array
        p.array = view
    return flat


def _give_gradients(members: list[Tensor]) -> None:
    array = members[0].array
    flat = array_namespace(array).zeros(sum(p.array.size for p in members), array.dtype)
    for p, view in zip(members, _views(members, flat), strict=True):
        p._grad_buffer = wrap(view)
        if p.grad is not None:
            view[...] = p.grad.array
            p.grad = p._grad_buffer
