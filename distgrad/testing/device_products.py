"""Checks of matrix products on a GPU: every layout, epilogues, gradients where they are kept.

``tests/test_gpu_gemm.py`` runs them on the stand-in for CuPy, ``tests/gpu`` on a real GPU.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import distgrad as dg
from distgrad import nn
from distgrad.backend.device import CPU, array_namespace, device, to_device
from distgrad.backend.dtype import as_numpy
from distgrad.nn import functional as F
from distgrad.tensor import Tensor

__all__ = [
    "DTYPES", "LAYOUTS", "SHAPES", "check_chain", "check_kept_gradients", "check_layer",
    "check_layouts", "check_scalars", "perceptron",
]  # fmt: skip

DTYPES = {
    "float32": 1e-5, "float64": 1e-12, "float16": 4e-3, "bfloat16": 3e-2, "complex64": 1e-5,
    "complex128": 1e-12, "int32": 0.0,
}  # fmt: skip
"""Tolerances by dtype, of the largest number of a result."""

SHAPES = {
    "matrices": ((3, 4), (4, 5)), "rows of a stack": ((2, 3, 4), (4, 5)),
    "stacks": ((2, 3, 4), (2, 4, 5)), "one and a stack": ((3, 4), (2, 4, 5)),
    "stacks of stacks": ((2, 3, 3, 4), (2, 3, 4, 5)), "both repeat": ((2, 1, 3, 4), (3, 4, 5)),
    "vector and matrix": ((4,), (4, 5)), "matrix and vector": ((3, 4), (4,)),
    "vectors": ((4,), (4,)), "stack and vector": ((2, 3, 4), (4,)),
    "one column": ((1, 3, 4), (2, 4, 1)), "no rows": ((0, 4), (4, 2)),
    "nothing to add up": ((3, 0), (0, 2)), "a stack of rows": ((2, 1, 4), (4, 3)),
}  # fmt: skip


def _transposed(xp: Any, a: Any) -> Any:
    return xp.swapaxes(xp.ascontiguousarray(xp.swapaxes(a, -1, -2)), -1, -2)


def _with_gaps(xp: Any, a: Any, step: int) -> Any:
    *lead, rows, columns = a.shape
    view = xp.zeros((*lead, step * rows, step * columns + 3), a.dtype)
    view = view[..., ::step, 1 : step * columns + 1 : step]
    view[...] = a
    return view


def _heads(xp: Any, a: Any) -> Any:
    order = (0, 2, 1, 3) if a.ndim == 4 else tuple(range(a.ndim))
    return xp.transpose(xp.ascontiguousarray(xp.transpose(a, order)), order)


LAYOUTS: dict[str, Callable[[Any, Any], Any]] = {
    "as it is": lambda xp, a: a,
    "transposed": lambda xp, a: a if a.ndim < 2 else _transposed(xp, a),
    "gaps between rows": lambda xp, a: a if a.ndim < 2 else _with_gaps(xp, a, 1),
    "gaps everywhere": lambda xp, a: a if a.ndim < 2 else _with_gaps(xp, a, 2),
    "heads": _heads,
}


def _drawn(shape: tuple[int, ...], dtype: str, seed: int = 0) -> Any:
    numbers = np.random.default_rng(seed).standard_normal(shape) * 2
    return numbers.astype(as_numpy(dtype))


def _near(got: Any, want: Any, dtype: str, what: str = "") -> None:
    got, want = (np.asarray(x) for x in (to_device(got, CPU), want))
    assert got.shape == want.shape, f"{what}: {got.shape}, not {want.shape}"
    wide = np.complex128 if want.dtype.kind == "c" else np.float64
    size = float(np.abs(want.astype(wide)).max(initial=1.0))
    np.testing.assert_allclose(
        got.astype(wide), want.astype(wide), rtol=0, atol=DTYPES[dtype] * size, err_msg=what
    )


def check_layouts(shapes: str, dtype: str, place: device) -> None:
    """Compare products of operands in all layouts with NumPy's."""
    a, b = (_drawn(s, dtype, i) for i, s in enumerate(SHAPES[shapes]))
    wide = a.dtype if a.dtype.kind == "i" else np.complex128 if a.dtype.kind == "c" else np.float64
    want = np.matmul(a.astype(wide), b.astype(wide))
    left, right = to_device(a, place), to_device(b, place)
    xp = array_namespace(left)
    for one, two in itertools.product(LAYOUTS, LAYOUTS):
        found = xp.gemm(LAYOUTS[one](xp, left), LAYOUTS[two](xp, right))
        assert found.dtype == a.dtype
        _near(found, want, dtype, f"{one}, {two}")
        if found.ndim and a.dtype.kind != "i":
            out = xp.ones(found.shape, found.dtype)
            same = xp.gemm(LAYOUTS[one](xp, left), LAYOUTS[two](xp, right), None, out, True)
            assert same is out
            _near(out, want + 1, dtype, f"{one}, {two}, added")


def check_scalars(place: device) -> None:
    """Compare alpha and beta in memory of the host and of the device; bfloat16 in, float32 out."""
    from distgrad.backend.cuda import gemm  # it imports CuPy

    a, b = _drawn((3, 4), "bfloat16"), _drawn((4, 5), "bfloat16", 1)
    want = 0.5 * (a.astype("f4") @ b.astype("f4")) + 3 * np.ones((3, 5), "f4")
    left, right = to_device(a, place), to_device(b, place)
    xp = array_namespace(left)
    numbers = xp.full((2,), 0.5, xp.float32)
    numbers[1:] += 2.5
    for alpha, beta in ((0.5, 3.0), (numbers[:1], numbers[1:])):
        out = xp.ones((3, 5), xp.float32)
        gemm.product(left, right, out, alpha=alpha, beta=beta)
        np.testing.assert_allclose(to_device(out, CPU), want, rtol=1e-6)


# ---------------------------------------------------------------------- layers
def perceptron(activation: str) -> nn.Sequential:
    """Return three linear layers with activations between; the sizes are no multiples of 8."""

    def bent() -> nn.Module:
        return nn.ReLU() if activation == "relu" else nn.GELU(_GELUS[activation])

    return nn.Sequential(
        nn.Linear(6, 20), bent(), nn.Linear(20, 13), bent(), nn.Linear(13, 5), nn.Flatten()
    )


_GELUS = {"gelu": "none", "gelu_tanh": "tanh"}


def _pair(make: Callable[[], nn.Module], place: device, dtype: Any) -> Iterator[nn.Module]:
    """Return the same module on the host, in float64, and on the device."""
    for where, kind in ((CPU, dg.float64), (place, dtype)):
        dg.manual_seed(0)
        yield make().to(kind).to(where)


def check_chain(activation: str, dtype: str, place: device, *, train: bool) -> None:
    """Compare a perceptron's results, and its gradients, with the host's in float64."""
    results: list[list[Any]] = []
    for net in _pair(lambda: perceptron(activation), place, getattr(dg, dtype)):
        first = next(net.parameters())
        x = dg.from_numpy(_drawn((2, 3, 6), "float64")).to(first.dtype).to(first.device)
        x.requires_grad_(train)
        if not train:
            with dg.no_grad():
                results.append([net(x)])
            continue
        out = net(x)
        (out * out).sum().backward()
        results.append([out.detach(), x.grad, *(p.grad for p in net.parameters())])
    for place_, (want, got) in enumerate(zip(*results, strict=True)):
        _near(got.float().array, want.array, "float32" if dtype == "float32" else "bfloat16",
              f"{activation} {dtype}: {place_}")  # fmt: skip


def check_layer(dtype: str, place: device, *, bias: bool) -> None:
    """Compare a linear layer on a stack of rows with the host's, in float64."""
    results: list[list[Any]] = []
    for layer in _pair(lambda: nn.Linear(6, 16, bias), place, getattr(dg, dtype)):
        x = dg.from_numpy(_drawn((2, 3, 6), "float64")).to(layer.weight.dtype)
        out = F.linear(x.to(layer.weight.device), layer.weight, layer.bias)
        out.sum().backward()
        results.append([out.detach(), *(p.grad for p in layer.parameters())])
    for want, got in zip(*results, strict=True):
        _near(got.double().array, want.array, dtype)


# ---------------------------------------------------------------------- where gradients are kept
def check_kept_gradients(place: device) -> None:
    """Check that gradients are added where they lie, under hooks and in graphs as without."""
    for change in (
        _nothing,
        _tensor_hook,
        _post_hook,
        _shared,
        _tied,
        _twice,
        _graph,
        _only_inputs,
    ):
        wants, gots = (_kept(change, where) for where in (CPU, place))
        for want, got in zip(wants, gots, strict=True):
            _near(got, want, "float32", change.__name__)


def _kept(change: Callable[..., None], place: device) -> list[Any]:
    dg.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6)).to(place)
    x = dg.from_numpy(_drawn((3, 4), "float32")).to(place)
    for p in net.parameters():
        p.grad = dg.ones_like(p)
    held = [p.grad for p in net.parameters()]
    notes: list[Any] = []
    change(net, x, notes)
    kept = change is _graph or all(p.grad is g for p, g in zip(net.parameters(), held, strict=True))
    assert kept, f"{change.__name__}: a gradient was not kept where it was"
    return [*(_grad_of(p).detach().array for p in net.parameters()), *notes]


def _grad_of(p: Tensor) -> Tensor:
    """Return a parameter's gradient, which is there."""
    assert p.grad is not None
    return p.grad


def _nothing(net: Any, x: Tensor, notes: list[Any]) -> None:
    net(x).sum().backward()


def _tensor_hook(net: Any, x: Tensor, notes: list[Any]) -> None:
    def doubled(g: Tensor) -> Tensor:
        notes.append(g.clone().array)
        return g * 2

    net[2].weight.register_hook(doubled)
    net(x).sum().backward()


def _post_hook(net: Any, x: Tensor, notes: list[Any]) -> None:
    for p in net.parameters():
        p.register_post_accumulate_grad_hook(lambda p: notes.append(p.grad.clone().array))
    net(x).sum().backward()


def _shared(net: Any, x: Tensor, notes: list[Any]) -> None:
    hidden = net(x)
    net[2](hidden).sum().backward()


def _tied(net: Any, x: Tensor, notes: list[Any]) -> None:
    rows = F.embedding(dg.tensor([0, 2, 2], device=x.device), net[2].weight)
    net[2](net(x)[:1] + rows).sum().backward()


def _twice(net: Any, x: Tensor, notes: list[Any]) -> None:
    loss = net(x).sum()
    loss.backward(retain_graph=True)
    loss.backward()


def _graph(net: Any, x: Tensor, notes: list[Any]) -> None:
    grads = dg.autograd.grad((net(x) ** 2).sum(), list(net.parameters()), create_graph=True)
    sum((g * g).sum() for g in grads).backward()


def _only_inputs(net: Any, x: Tensor, notes: list[Any]) -> None:
    net(x).sum().backward(inputs=[net[0].weight])
