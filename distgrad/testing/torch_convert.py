"""PyTorch's samples as operands of this package, and the comparison of both results."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import distgrad as dg

# rtol, atol
TOLERANCE = {
    "float16": (4e-3, 4e-3),
    "bfloat16": (3e-2, 3e-2),
    "float32": (2e-5, 2e-5),
    "float64": (1e-7, 1e-7),
    "complex64": (5e-5, 5e-5),
    "complex128": (1e-7, 1e-7),
}


class Difference(Exception):
    """What differs between the two sides."""


def is_wrapper(function: Any) -> bool:
    """Return whether ``function`` is Python code of the database, not of PyTorch itself."""
    if isinstance(function, functools.partial):
        return is_wrapper(function.func)
    module = getattr(function, "__module__", None) or ""
    return isinstance(function, types.FunctionType) and module.startswith("torch.testing._internal")


def rebound(function: Any) -> Any:
    """Return a Python function of the database that calls this package for ``torch``."""
    if isinstance(function, functools.partial):
        return functools.partial(rebound(function.func), *function.args, **function.keywords)
    ours = {"torch": dg, "F": dg.nn.functional, "wrapper_set_seed": seeded}
    scope = {**function.__globals__, **ours}
    for name in function.__code__.co_names:
        if name not in ours and is_wrapper(scope.get(name)) and scope[name] is not function:
            scope[name] = rebound(scope[name])
    cells = function.__closure__ and tuple(
        types.CellType(rebound(c.cell_contents)) if is_wrapper(c.cell_contents) else c
        for c in function.__closure__
    )
    made = types.FunctionType(
        function.__code__, scope, function.__name__, function.__defaults__, cells
    )
    made.__kwdefaults__ = function.__kwdefaults__
    return made


def seeded(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Return what ``function`` returns with the seed that the database sets for it."""
    with dg.random.fork_rng():
        dg.manual_seed(42)
        return function(*args, **options)


def tree_map(function: Callable[[Any], Any], value: Any) -> Any:
    """Return ``value`` with ``function`` applied to what is no list, tuple, dict or slice."""
    import torch  # an extra of the tests

    if isinstance(value, torch.Size):
        return function(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(tree_map(function, v) for v in value))
    if isinstance(value, list | tuple):
        return type(value)(tree_map(function, v) for v in value)
    if isinstance(value, dict):
        return {k: tree_map(function, v) for k, v in value.items()}
    if isinstance(value, slice):
        return slice(*(tree_map(function, v) for v in (value.start, value.stop, value.step)))
    return function(value)


def leaves_of(value: Any) -> Iterator[Any]:
    """Yield the tensors and numbers of a result, in order."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for v in value:
            yield from leaves_of(v)
    else:
        yield value


def clone(value: Any) -> Any:
    """Return a sample's value with tensors of its own."""
    import torch  # an extra of the tests

    def one(v: Any) -> Any:
        if isinstance(v, torch.Tensor):
            return v.detach().clone().requires_grad_(v.requires_grad)
        return v

    return tree_map(one, value)


def array_of(value: Any) -> Any:
    """Return a NumPy array with the memory of a tensor of PyTorch, and with its strides."""
    import torch  # an extra of the tests

    value = value.detach().resolve_conj().resolve_neg()
    if torch._is_zerotensor(value):
        value = torch.zeros(value.shape, dtype=value.dtype)
    if value.dtype == torch.bfloat16:
        import ml_dtypes  # an extra of the tests

        return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return value.numpy()


def tensor_of(array: Any) -> Any:
    """Return a tensor of PyTorch with the memory of a NumPy array."""
    import torch  # an extra of the tests

    if array.dtype.kind == "V":  # bfloat16
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def copied(value: Any, memories: dict[Any, Any]) -> Any:
    """Return a tensor with the values of one of PyTorch, as the same view of as much memory.

    Args:
        memories: copies of memory so far: what shares memory there shares it here.
    """
    import torch  # an extra of the tests

    value = value.detach().resolve_conj().resolve_neg()
    if torch._is_zerotensor(value):
        return dg.from_numpy(array_of(value).copy())
    count = value.untyped_storage().nbytes() // value.itemsize
    key = value.untyped_storage().data_ptr(), value.dtype
    if key not in memories:
        memory = dg.from_numpy(array_of(torch.as_strided(value, (count,), (1,), 0)).copy())
        memories[key] = memory, value  # which keeps the address its own
    memory = memories[key][0]
    if value.is_contiguous() and count == value.numel():
        return memory.view(tuple(value.shape))
    return memory.as_strided(tuple(value.shape), value.stride(), value.storage_offset())


class Converter:
    """Makes operands of this package from PyTorch's: one for each tensor.

    Args:
        tracks: tensors that require grad do so here, and are listed in ``leaves`` as pairs.
    """

    def __init__(self, tracks: bool = False) -> None:
        self.tracks = tracks
        self.memo: dict[int, tuple[Any, Any]] = {}
        self.leaves: list[tuple[Any, Any]] = []
        self.memories: dict[Any, Any] = {}

    def __call__(self, value: Any) -> Any:
        return tree_map(self._one, value)

    def _one(self, value: Any) -> Any:
        import torch  # an extra of the tests

        if isinstance(value, torch.Tensor):
            if id(value) not in self.memo:
                self.memo[id(value)] = value, self.tensor(value)  # the first keeps its id its own
            return self.memo[id(value)][1]
        if isinstance(value, torch.dtype | torch.memory_format | torch.layout):
            return getattr(dg, str(value).removeprefix("torch."))
        if isinstance(value, torch.device):
            return dg.device(str(value))
        if isinstance(value, torch.Size):
            return dg.Size(value)
        if isinstance(value, torch.nn.PairwiseDistance):
            return dg.nn.PairwiseDistance(value.norm, value.eps, value.keepdim)
        if isinstance(value, torch.Generator):
            return dg.Generator().manual_seed(value.initial_seed())
        return value

    def tensor(self, value: Any) -> Any:
        """Return a new tensor with the values and strides of ``value``."""
        made = copied(value, self.memories)
        lost = value.is_leaf and value._is_view()  # PyTorch gives such a one no gradient
        if self.tracks and value.requires_grad and not lost:
            made.requires_grad_()
            self.leaves.append((made, value))
        return made


def cotangents(tensors: list[Any]) -> list[Any]:
    """Return arrays of random numbers like the tensors."""
    rng = np.random.default_rng(1)
    made = []
    for t in tensors:
        a = rng.standard_normal(tuple(t.shape))
        if t.is_complex():
            a = a + 1j * rng.standard_normal(tuple(t.shape))
        made.append(np.asarray(a, array_of(t).dtype))
    return made


def same(got: Any, want: Any, *, values: bool = True, slack: float = 1.0) -> None:
    """Raise ``Difference`` unless both results are the same."""
    gots, wants = list(leaves_of(got)), list(leaves_of(want))
    if len(gots) != len(wants):
        raise Difference(f"{len(gots)} results, not {len(wants)}")
    for g, w in zip(gots, wants, strict=True):
        if hasattr(w, "is_contiguous"):
            _same_tensor(g, w, values, slack)
        else:
            _same_object(g, w)


def _same_object(got: Any, want: Any) -> None:
    if type(want).__module__.startswith("torch"):
        if str(got).removeprefix("distgrad.") != str(want).removeprefix("torch."):
            raise Difference(f"{got}, not {want}")
    elif type(got) is not type(want):
        raise Difference(f"{type(got).__name__}, not {type(want).__name__}")
    elif isinstance(want, float | complex):
        if not np.allclose(got, want, 1e-6, equal_nan=True):
            raise Difference(f"{got!r}, not {want!r}")
    elif got != want:
        raise Difference(f"{got!r}, not {want!r}")


def _same_tensor(got: Any, want: Any, values: bool, slack: float) -> None:
    import torch  # an extra of the tests

    if not isinstance(got, dg.Tensor):
        raise Difference(f"{type(got).__name__}, not a tensor")
    if want.layout != torch.strided:
        raise Difference("a sparse result")
    a, b = got.detach().numpy(), array_of(want)
    if str(a.dtype) != str(b.dtype):
        raise Difference(f"dtype {a.dtype}, not {b.dtype}")
    if a.shape != b.shape:
        raise Difference(f"shape {a.shape}, not {b.shape}")
    if values:
        _same_values(a, b, slack)


def _same_values(a: Any, b: Any, slack: float) -> None:
    kind = str(b.dtype)
    rtol, atol = TOLERANCE.get(kind, (0.0, 0.0))
    if kind in TOLERANCE:
        wide = np.complex128 if "complex" in kind else np.float64
        a, b = np.atleast_1d(a).astype(wide), np.atleast_1d(b).astype(wide)
        good = np.isclose(a, b, rtol * slack, atol * slack, equal_nan=True)
    else:
        a, b = np.atleast_1d(a), np.atleast_1d(b)
        good = a == b
    if not good.all():
        first = tuple(int(i[0]) for i in np.nonzero(~good))
        raise Difference(
            f"{kind}: {int((~good).sum())} of {good.size} values differ, first at {first}: "
            f"{a[first]!r}, not {b[first]!r}"
        )


def as_near(got: Any, want: Any, exact: Any) -> bool:
    """Return whether ``got`` is no further from the exact result than twice what ``want`` is."""
    kind = str(array_of(want).dtype)
    a, b = got.detach().numpy(), array_of(want)
    if kind not in TOLERANCE or str(a.dtype) != kind or a.shape != b.shape:
        return kind not in TOLERANCE and bool(np.array_equal(a, b))
    c = np.asarray(array_of(exact))
    a, b = a.astype(c.dtype), b.astype(c.dtype)
    known = np.isfinite(c)
    rtol, atol = TOLERANCE[kind]
    bound = atol + rtol * np.abs(c) + 2 * np.abs(b - c).max(initial=0, where=known & np.isfinite(b))
    good = (np.abs(a - c) <= bound) | (a == c) | (np.isnan(a) & np.isnan(c))
    return bool(good.all())


def same_but_order(source: Any, dim: int, gots: list[Any], wants: list[Any]) -> bool:
    """Return whether results of sorting agree but for the order of equal values.

    Args:
        source: what was sorted along ``dim``.
        gots: results; the last one holds indices.
        wants: those of PyTorch.
    """
    try:
        same(gots[:-1], wants[:-1])
    except Difference:
        return False
    values = np.atleast_1d(array_of(source))
    places = [np.asarray(a) for a in (gots[-1].numpy(), array_of(wants[-1]))]
    if places[0].shape != places[1].shape or places[0].dtype != places[1].dtype:
        return False
    if places[0].ndim < values.ndim:  # without keepdim
        places = [np.expand_dims(p, dim) for p in places]
    ours, theirs = (np.take_along_axis(values, p, dim) for p in places)
    ordered = np.sort(places[0], dim)
    once = bool((np.diff(ordered, axis=dim) > 0).all())
    return once and bool(((ours == theirs) | ((ours != ours) & (theirs != theirs))).all())


def same_gradient(position: int, got: Any, want: Any) -> None:
    """Raise ``Difference`` unless both gradients agree; None and zeros are the same."""
    try:
        if want is not None and got is not None:
            same(got, want, slack=10.0)
            return
        rest = got if want is None else want
        if rest is not None and bool((rest != 0).any()):
            raise Difference("a gradient, not None" if want is None else "None, not a gradient")
    except Difference as error:
        raise Difference(f"gradient of operand {position}: {error}") from error


def describe(value: Any) -> str:
    """Return a short text of a sample's value."""
    import torch  # an extra of the tests

    if isinstance(value, torch.Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        return f"{kind}{list(value.shape)}" + ("" if value.is_contiguous() else "'")
    if isinstance(value, torch.Size):
        return repr(value)
    if isinstance(value, list | tuple):
        inner = ", ".join(describe(v) for v in value)
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    if isinstance(value, dict):
        return ", ".join(f"{k}={describe(v)}" for k, v in value.items())
    return repr(value)


def text_of(sample: Any) -> str:
    """Return a sample as the arguments of a call."""
    parts = [describe(sample.input), *(describe(a) for a in sample.args)]
    if sample.kwargs:
        parts.append(describe(sample.kwargs))
    return "(" + ", ".join(parts) + ")"
