"""The check of operations from their samples: every declaration, every derivative, one test each.

Forward against PyTorch (where it is installed), gradients against finite differences, gradients on
tensors against gradients on arrays, second derivatives and forward mode against differences; and
the same results on another device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from distgrad.autograd import engine
from distgrad.autograd.declare import Operation, table
from distgrad.autograd.forward_ad import jvp_arrays
from distgrad.autograd.graph import edge_of
from distgrad.autograd.samples import Sample, Spec
from distgrad.backend.device import CPU, device, device_of, to_device
from distgrad.tensor import Tensor, wrap

STEP = 1e-6


def cases() -> Iterator[tuple[str, int]]:
    """Return (operation, number of the sample) for everything in the table."""
    for name, op in table.items():
        for index in range(len(op.samples)):
            yield name, index


class Case:
    """One sample of one operation, drawn in float64."""

    def __init__(self, name: str, index: int, dtype: Any = np.float64) -> None:
        """Draw sample ``index`` of operation ``name``."""
        self.op: Operation = table[name]
        self.sample: Sample = self.op.samples[index]
        self.rng = np.random.default_rng(abs(hash((len(name), index))) % 2**32)
        self.arrays = [_draw(spec, self.rng, dtype) for spec in self.sample.operands]
        self.arrays += [None] * (len(self.op.operands) - len(self.arrays))
        self.options = self.sample.options
        rules = set(self.op.plan.rules)
        self.differentiable = [
            o.name in rules and a is not None and _is_real(a)
            for o, a in zip(self.op.operands, self.arrays, strict=True)
        ]

    def tensors(self, arrays: Sequence[Any] | None = None) -> list[Any]:
        """Return the operands as tensors; differentiable ones require grad."""
        made = []
        for a, track in zip(arrays or self.arrays, self.differentiable, strict=True):
            one = functools.partial(_tensor, track=track)
            made.append([one(x) for x in a] if isinstance(a, list) else one(a))
        return made

    def call(self, operands: Sequence[Any]) -> list[Tensor]:
        """Return the operation's outputs, always as a list."""
        names = [o.name for o in self.op.operands]
        out = self.op.function(**dict(zip(names, operands, strict=True)), **self.options)
        return [out] if isinstance(out, Tensor) else list(out)

    def directions(self, seed: int) -> list[Any]:
        """Return a random direction per operand; None where there is no derivative."""
        rng = np.random.default_rng(seed)
        return [
            None if not track else [rng.standard_normal(x.shape) for x in a]
            if isinstance(a, list) else rng.standard_normal(a.shape)
            for a, track in zip(self.arrays, self.differentiable, strict=True)
        ]  # fmt: skip


def _draw(spec: Spec | Sequence[Spec] | None, rng: np.random.Generator, dtype: Any) -> Any:
    if spec is None:
        return None
    if isinstance(spec, Spec):
        array = spec.draw(rng)
        return array.astype(dtype) if array.dtype == np.float64 else array
    many: Sequence[Spec] = spec
    return [_draw(s, rng, dtype) for s in many]


def _is_real(a: Any) -> bool:
    return all(x.dtype.kind == "f" for x in (a if isinstance(a, list) else [a]))


def _tensor(a: Any, track: bool) -> Any:
    return None if a is None else wrap(a).requires_grad_() if track else wrap(a)


def _flat(values: Sequence[Any]) -> list[Any]:
    return [x for v in values for x in (v if isinstance(v, list) else [v])]


def _moved(arrays: Sequence[Any], directions: Sequence[Any], step: float) -> list[Any]:
    moved = []
    for a, t in zip(arrays, directions, strict=True):
        if t is None:
            moved.append(a)
        elif isinstance(a, list):
            moved.append([x + step * d for x, d in zip(a, t, strict=True)])
        else:
            moved.append(np.asarray(a + step * t))
    return moved


def _difference(function: Callable[[list[Any]], Any], case: Case, directions: list[Any]) -> Any:
    """Return the central difference of ``function(arrays)`` along the directions."""
    high = function(_moved(case.arrays, directions, STEP))
    low = function(_moved(case.arrays, directions, -STEP))
    if isinstance(high, list):
        return [(h - low_) / (2 * STEP) for h, low_ in zip(high, low, strict=True)]
    return (high - low) / (2 * STEP)


def _gradients(case: Case, tensors: list[Any], weights: list[Any], create_graph: bool) -> list[Any]:
    """Return the gradients of sum(weight * output) for all differentiable operands."""
    outs = [o for o in case.call(tensors) if o.requires_grad]
    inputs = [t for t in _flat(tensors) if isinstance(t, Tensor) and t.requires_grad]
    roots = [(edge_of(o), w) for o, w in zip(outs, weights, strict=True)]
    if not roots:
        return [None] * len(inputs)
    return engine.run(
        roots, create_graph=create_graph, keep_graph=create_graph, inputs=inputs, accumulate=False
    )


def _weights(case: Case) -> list[Any]:
    outs = [o for o in case.call(case.tensors()) if o.requires_grad]
    return [np.asarray(np.random.default_rng(7).standard_normal(o.array.shape)) for o in outs]


def _dot(gradients: Sequence[Any], directions: Sequence[Any]) -> float:
    pairs = zip(gradients, [d for d in _flat(directions) if d is not None], strict=True)
    return float(sum(np.sum(g * d) for g, d in pairs if g is not None))


def _close(got: Any, want: Any, what: str, rtol: float = 1e-6, atol: float = 1e-7) -> None:
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol, err_msg=what)


# ---------------------------------------------------------------------- the checks
def check_forward(name: str, index: int, torch: Any) -> bool:
    """Compare the outputs with PyTorch's; False where PyTorch has no such function."""
    case = Case(name, index)
    function = _reference(case.op, torch)
    if function is None:
        return False
    as_torch = [
        [torch.tensor(x) for x in a] if isinstance(a, list) else None if a is None
        else torch.tensor(a) for a in case.arrays
    ]  # fmt: skip
    while as_torch and as_torch[-1] is None:
        as_torch.pop()
    want = function(*as_torch, **case.options)
    wants = [want] if isinstance(want, torch.Tensor) else list(want)
    outs = case.call(case.tensors())
    if case.op.outputs and isinstance(want, torch.Tensor):
        del outs[1:]  # PyTorch does not show what is kept for backward
    assert len(outs) == len(wants), (len(outs), len(wants))
    for out, expected in zip(outs, wants, strict=True):
        assert out.array.shape == tuple(expected.shape), (out.array.shape, expected.shape)
        assert str(out.array.dtype) == str(expected.dtype).removeprefix("torch."), name
        _close(out.array, expected.detach().numpy(), name, 1e-9, 1e-11)
    return True


def _reference(op: Operation, torch: Any) -> Callable[..., Any] | None:
    reference = op.reference
    if reference == "none":
        return None
    if callable(reference):
        return functools.partial(reference, torch)
    if reference is None:
        for place in (torch, torch.nn.functional, torch.linalg, torch.special, torch.Tensor):
            if hasattr(place, op.name):
                function: Callable[..., Any] = getattr(place, op.name)
                return function
        raise AssertionError(f"{op.name}: torch has no such function; declare reference=")
    found = functools.reduce(getattr, reference.split("."), torch)
    return found  # type: ignore[no-any-return]


def check_gradients(name: str, index: int) -> bool:
    """Compare gradients on arrays with differences, and gradients on tensors with those."""
    case = Case(name, index)
    if not any(case.differentiable):
        return False
    before = [np.copy(a) for a in _flat(case.arrays) if a is not None]
    weights = _weights(case)
    tensors = case.tensors()
    raw = _gradients(case, tensors, weights, create_graph=False)
    graph = _gradients(case, case.tensors(), [wrap(w) for w in weights], create_graph=True)
    inputs = [t for t in _flat(tensors) if isinstance(t, Tensor) and t.requires_grad]
    for a, b, x in zip(raw, graph, inputs, strict=True):
        assert a is None or np.shape(a) == x.array.shape, (np.shape(a), x.array.shape)
        _close(0 if b is None else b.array, 0 if a is None else a, f"{name}: arrays vs tensors")

    def value(arrays: list[Any]) -> Any:
        outs = case.call(case.tensors(arrays))
        outs = [o for o in outs if o.requires_grad]
        return sum(np.sum(o.array * w) for o, w in zip(outs, weights, strict=True))

    directions = case.directions(1)
    _close(_dot(raw, directions), _difference(value, case, directions), name, 1e-5, 1e-6)
    after = [a for a in _flat(case.arrays) if a is not None]
    for a, b in zip(before, after, strict=True):
        np.testing.assert_array_equal(a, b, f"{name} changed an operand")
    return True


def check_second(name: str, index: int) -> bool:
    """Compare second derivatives with differences of first ones."""
    case = Case(name, index)
    if not any(case.differentiable):
        return False
    weights = _weights(case)
    along = case.directions(2)
    along_flat = [d for d in _flat(along) if d is not None]

    def slope(arrays: list[Any]) -> float:
        return _dot(_gradients(case, case.tensors(arrays), weights, create_graph=False), along)

    tensors = case.tensors()
    first = _gradients(case, tensors, [wrap(w) for w in weights], create_graph=True)
    roots = [
        (edge_of(g), np.asarray(d))
        for g, d in zip(first, along_flat, strict=True)
        if g is not None and edge_of(g) is not None
    ]
    inputs = [t for t in _flat(tensors) if isinstance(t, Tensor) and t.requires_grad]
    second = engine.run(roots, inputs=inputs, accumulate=False) if roots else [None] * len(inputs)
    directions = case.directions(3)
    _close(_dot(second, directions), _difference(slope, case, directions), name, 1e-4, 1e-5)
    return True


def check_jvp(name: str, index: int) -> bool:
    """Compare the derived forward mode with differences."""
    case = Case(name, index)
    if not any(case.differentiable):
        return False
    directions = case.directions(4)
    options = dict(case.options)
    if case.op.kind == "multilinear" or not all(case.differentiable):
        assert case.op.kind != "linear" or any(case.differentiable)
    tangents = [
        d if d is not None or case.op.kind != "linear" else a
        for d, a in zip(directions, case.arrays, strict=True)
    ]
    got = jvp_arrays(case.op, case.arrays, tangents, options)

    def value(arrays: list[Any]) -> Any:
        return [o.array for o in case.call(case.tensors(arrays)) if o.requires_grad]

    want = _difference(value, case, directions)
    gots = list(got) if isinstance(got, list | tuple) else [got]
    if case.op.outputs and len(gots) == len(case.op.outputs):
        gots = [g for g, d in zip(gots, case.op.outputs.values(), strict=True) if d]
    for g, w in zip(gots, want, strict=True):
        _close(g, w, f"{name}: jvp", 1e-5, 1e-6)
    return True


def check_float32(name: str, index: int) -> bool:
    """Check that float32 operands give float32 outputs and gradients, without sharing memory."""
    case = Case(name, index, np.float32)
    tensors = case.tensors()
    outs = case.call(tensors)
    inputs = [t for t in _flat(tensors) if isinstance(t, Tensor)]
    if not case.op.view:
        for out in outs:
            assert not any(np.shares_memory(out.array, t.array) for t in inputs), name
    if not any(case.differentiable):
        return False
    tracked = [o for o in outs if o.requires_grad]
    for out in tracked:
        assert out.array.dtype == np.float32, (name, out.array.dtype)
    weights = [np.ones_like(o.array) for o in tracked]
    for g in _gradients(case, tensors, weights, create_graph=False):
        assert g is None or g.dtype == np.float32, (name, g.dtype)
    return True


def check_device(name: str, index: int, place: device, dtype: Any = np.float64) -> None:
    """Compare outputs and gradients, on arrays and on tensors, on ``place`` with the host's."""
    case = Case(name, index, dtype)
    moved = [_moved_to(place, a) for a in case.arrays]
    rtol, atol = (1e-9, 1e-12) if dtype == np.float64 else (1e-4, 1e-5)
    pairs = zip(_results(case, case.arrays), _results(case, moved), strict=True)
    for (what, want), (_, got) in pairs:
        assert (got is None) == (want is None), f"{name}: {what}"
        if got is None:
            continue
        if name != "to_device":  # it brings its operand to the host
            assert device_of(got) == place, f"{name}: {what} is on {device_of(got)}"
        assert got.dtype == want.dtype, f"{name}: {what}: {got.dtype}, on the host {want.dtype}"
        _close(to_device(got, CPU), want, f"{name}: {what}", rtol, atol)


# Operations with kernels of their own, which take 16-bit types as they are.
FUSED = (
    "avg_pool", "avg_pool_input", "batch_statistics_norm", "cross_entropy_loss", "embedding",
    "embedding_backward", "fused_layer_norm", "fused_rms_norm", "gelu", "keyed_dropout",
    "log_softmax", "max_pool", "mish", "relu", "relu_backward", "silu", "softmax",
)  # fmt: skip
_EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7}


def check_device_narrow(name: str, index: int, place: device, dtype: Any) -> None:
    """Compare outputs and gradients in a 16-bit type on ``place`` with the host's in float64.

    Both begin with the same rounded numbers, so the difference is what the device rounded.
    """
    case, narrow = Case(name, index), np.dtype(dtype)
    wide = [_in_dtype(a, narrow, np.float64) for a in case.arrays]
    moved = [_moved_to(place, _in_dtype(a, narrow, narrow)) for a in case.arrays]
    wants, gots = (_first_order(case, arrays, narrow) for arrays in (wide, moved))
    for number, (want, got) in enumerate(zip(wants, gots, strict=True)):
        assert (got is None) == (want is None), f"{name}: {number}"
        if got is not None:
            assert device_of(got) == place, f"{name}: {number} is on {device_of(got)}"
            error = to_device(got, CPU).astype(np.float64) - want
            most = 3 * _EPSILON[narrow.name] * max(float(np.linalg.norm(want)), 0.1)
            assert float(np.linalg.norm(error)) <= most, f"{name}: {number}: {error}"


def _in_dtype(a: Any, narrow: Any, dtype: Any) -> Any:
    if isinstance(a, list):
        return [_in_dtype(x, narrow, dtype) for x in a]
    return a if a is None or not _is_real(a) else a.astype(narrow).astype(dtype)


def _first_order(case: Case, arrays: list[Any], narrow: Any) -> list[Any]:
    """Return outputs and gradients, the output's gradients being numbers of a 16-bit type."""
    outs = case.call(case.tensors(arrays))
    shown = list((case.op.outputs or {"": True}).values())
    rng = np.random.default_rng(7)
    drawn = [rng.standard_normal(o.array.shape).astype(narrow) for o in outs if o.requires_grad]
    tracked = [o for o in outs if o.requires_grad]
    weights = [
        to_device(np.asarray(w, o.array.dtype), o.device)
        for w, o in zip(drawn, tracked, strict=True)
    ]
    raw = _gradients(case, case.tensors(arrays), weights, create_graph=False)
    return [*(o.array for o, show in zip(outs, shown, strict=True) if show), *raw]


def _moved_to(place: device, a: Any) -> Any:
    if isinstance(a, list):
        return [_moved_to(place, x) for x in a]
    return None if a is None else to_device(a, place)


def _results(case: Case, arrays: list[Any]) -> Iterator[tuple[str, Any]]:
    """Return outputs and both kinds of gradients by name."""
    outs = case.call(case.tensors(arrays))
    shown = [True] * len(outs)
    if case.op.formula and case.op.outputs:  # the rest is kept for backward, and as it likes
        shown = list(case.op.outputs.values())
    yield from ((f"output {i}", o.array) for i, o in enumerate(outs) if shown[i])
    rng = np.random.default_rng(7)
    weights = [
        to_device(rng.standard_normal(o.array.shape).astype(o.array.dtype), o.device)
        for o in outs
        if o.requires_grad
    ]
    raw = _gradients(case, case.tensors(arrays), weights, create_graph=False)
    yield from ((f"gradient {i}", g) for i, g in enumerate(raw))
    graph = _gradients(case, case.tensors(arrays), [wrap(w) for w in weights], create_graph=True)
    yield from (
        (f"gradient {i} on tensors", None if g is None else g.array) for i, g in enumerate(graph)
    )
