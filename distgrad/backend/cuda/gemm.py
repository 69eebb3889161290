"""Matrix products on a GPU: any strides that BLAS can read, in one call, with what belongs to it.

A product's shapes, strides and dtypes lead to a `_Recipe` that is made once: which operands must be
copied (few), how cuBLASLt sees the rest, and its kernels.  Stacks of matrices are one call if each
operand goes through them in equal steps; a step of 0 repeats a matrix.  Rows of a stack times one
matrix are one product.  16-bit floats add up in float32, and float32 is exact unless
``set_float32_matmul_precision`` allows TF32.  It has not yet run on a GPU.

Note [Products with more to do]
    An epilogue works on results before they are stored: adds a bias, applies ReLU or GELU and keeps
    what backward will need, multiplies by their derivative and adds up the bias's gradient.
    cuBLASLt's GELU is the one by tanh.  Its ReLU makes 0 of nan, as `linear_activation` says.

Note [Without cuBLASLt]
    Where nvmath-python is missing, cuBLAS is called through CuPy's own binding: CuPy's matmul
    fails for stacks of bfloat16 and computes stacks of float16 in float32.  Epilogues are then
    computed as everywhere else, and a CUDA graph cannot be captured.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import cupy
import numpy as np

from distgrad.backend.cuda import lt
from distgrad.backend.cuda.classic import multiply_classically
from distgrad.backend.cuda.lt import TYPES, Plan, Problem, Side, Unsupported
from distgrad.backend.operands import refuse_product
from distgrad.backend.promises import promises
from distgrad.typing import Array, Shape

__all__ = ["KERNELS", "gemm", "matmul", "product"]

_names: dict[Any, str | None] = {}  # of dtypes that cuBLAS takes; dtype.name takes a microsecond


def _name(dtype: Any) -> str | None:
    try:
        return _names[dtype]
    except KeyError:
        return _names.setdefault(dtype, dtype.name if dtype.name in TYPES else None)


# --- how operands lie -----------------------------------------------------------------------------
def _matrix(shape: Shape, strides: Shape) -> tuple[int, bool] | None:
    """Return the step between rows of a row-major matrix, or (…, True) of a column-major one."""
    (rows, columns), (down, across) = shape[-2:], strides[-2:]
    if (columns == 1 or across == 1) and (rows == 1 or down >= columns):
        return (columns if rows == 1 else down), False
    if (rows == 1 or down == 1) and (columns == 1 or across >= rows):
        return (rows if columns == 1 else across), True
    return None


def _step(sizes: Shape, strides: Shape) -> int | None:
    """Return the one step that leads through all of these dimensions, if there is one."""
    count, step = 1, 0
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size == 1:
            continue
        if count == 1:
            step = stride
        elif stride != step * count:
            return None
        count *= size
    return step


def _contiguous(shape: Shape) -> Shape:
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def _side(shape: Shape, strides: Shape, lead: Shape) -> Side | None:
    """Return how a stack of matrices lies that is broadcast to ``lead``; None if BLAS cannot."""
    missing = len(lead) - (len(shape) - 2)
    steps = (0,) * missing + tuple(
        0 if have == 1 else stride for have, stride in zip(shape[:-2], strides[:-2], strict=True)
    )
    matrix, step = _matrix(shape, strides), _step(lead, steps)
    return None if matrix is None or step is None else Side(*matrix, step)


class _Recipe:
    """How products of operands of one kind are computed: shapes, strides, dtypes, epilogue."""

    __slots__ = ("fit_a", "fit_b", "plans", "problem", "scale", "shape")

    def __init__(self, a: Array, b: Array, out: Array | None, ask: tuple[Any, ...]) -> None:
        """Find what must be copied, and describe the rest to cuBLASLt.

        Args:
            a: the left operand, of two dimensions at least.
            b: the right operand.
            out: where the product goes, if that is given.
            ask: its dtype, and the last fields of `Problem` from ``epilogue`` on.
        """
        (m, k), n = a.shape[-2:], b.shape[-1]
        if b.shape[-2] != k:
            raise ValueError(
                f"matmul: operands have a mismatch in the core dimension: {k} and {b.shape[-2]}"
            )
        lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        self.shape = (*lead, m, n)
        left, self.fit_a = _fitting(a, lead)
        right, self.fit_b = _fitting(b, lead)
        d = Side(n, False, m * n) if out is None else _side_of(out, lead)
        if out is not None and out.shape != self.shape:
            raise ValueError(f"matmul: out has the shape {out.shape}, the product {self.shape}")
        if d is None or d.transposed or (d.stride == 0 and math.prod(lead) > 1):
            raise Unsupported
        batch, kind, (out_kind, *rest) = math.prod(lead), _name(a.dtype), ask
        rows_follow = left.stride == m * left.ld and not left.transposed
        if batch > 1 and right.stride == 0 and rows_follow and d.stride == m * d.ld:
            m, batch = m * batch, 1
        # Note [Columns first] in lt: the right operand comes first
        self.problem = Problem(n, m, k, right, left, d, str(kind), out_kind, batch, *rest)
        self.scale = lt.scale_type(self.problem.kind)
        self.plans: dict[tuple[int, ...], Plan | None] = {}

    def plan(self, library: Any, device: int, places: tuple[int, ...]) -> Plan | None:
        """Return the plan for operands on a device; None where cuBLASLt has no kernel.

        A plan serves all addresses that are aligned as these are: the three matrices together, the
        vector, and the auxiliary matrix.
        """
        a, b, out, vector, aux = places
        matrices = _ALIGNMENT[(a | b | out) & 255]
        key = device, matrices, vector and _ALIGNMENT[vector & 255], aux and _ALIGNMENT[aux & 255]
        try:
            plan = self.plans[key]
        except KeyError:
            problem = self.problem._replace(alignment=matrices)
            try:
                plan = lt.make_plan(library, problem, device, key[2], key[3])
            except Unsupported:
                plan = None
            self.plans[key] = plan
        if plan is not None and (vector or aux):
            plan.point(vector, aux)
        return plan


# The largest power of two up to 256 that divides an address, by its last byte.
_ALIGNMENT = [256] + [low & -low for low in range(1, 256)]


def _side_of(x: Array, lead: Shape) -> Side | None:
    item = x.itemsize
    return _side(x.shape, tuple(s // item for s in x.strides), lead)


def _fitting(x: Array, lead: Shape) -> tuple[Side, Shape | None]:
    """Return how ``x`` lies, and to what shape it must be copied first, if it must be."""
    side = _side_of(x, lead)
    if side is not None:
        return side, None
    for shape in (x.shape, (*lead, *x.shape[-2:])):
        side = _side(shape, _contiguous(shape), lead)
        if side is not None:
            return side, shape
    raise AssertionError(f"a contiguous stack of {shape} has no equal steps")


def _fitted(x: Array, shape: Shape) -> Array:
    return cupy.ascontiguousarray(cupy.broadcast_to(x, shape))


class _Mine(threading.local):
    """Recipes of a thread: their plans point to the bias of the product that is launched."""

    def __init__(self) -> None:
        self.recipes: dict[tuple[Any, ...], _Recipe] = {}


_mine = _Mine()
_MOST = 4096  # shapes that never come back must not pile up


def _recipe(a: Array, b: Array, out: Array | None, ask: tuple[Any, ...]) -> _Recipe:
    place = None if out is None else (out.shape, out.strides)
    key = (a.shape, a.strides, b.shape, b.strides, a.dtype, place, ask)
    found = _mine.recipes.get(key)
    if found is None:
        if len(_mine.recipes) >= _MOST:
            for old in _mine.recipes.values():
                for plan in filter(None, old.plans.values()):
                    plan.close()
            _mine.recipes.clear()
        found = _mine.recipes[key] = _Recipe(a, b, out, ask)
    return found


# --- one product ----------------------------------------------------------------------------------
def product(
    a: Array,
    b: Array,
    out: Array | None = None,
    *,
    alpha: float | Array = 1.0,
    beta: float | Array = 0.0,
    dtype: Any = None,
    epilogue: str = "DEFAULT",
    vector: Array | None = None,
    aux: Array | None = None,
    aux_ld: int = 0,
) -> Array:
    """Return ``alpha * a @ b + beta * out`` of two stacks of matrices, in ``out`` if it is given.

    Args:
        a, b: two dimensions at least and no length of 0; of one dtype that cuBLAS takes.
        out: what is added to and written; with ``beta`` 0 only written.
        alpha, beta: numbers, or both arrays of one element on the device: float32, or as a and b
            if these are float64 or complex.
        dtype: of the result (default: that of out, else of a and b).
        epilogue: of cuBLASLt; needs one matrix, or a stack of rows times one matrix.
        vector: the bias that it adds, or where it puts the bias's gradient.
        aux: the matrix that it keeps, or reads, with ``aux_ld`` elements (bits) in a row.

    Raises:
        Unsupported: there is no kernel with this epilogue, or for the strides of ``out``.
    """
    own = a.data.device_id
    if own != cupy.cuda.runtime.getDevice():
        with cupy.cuda.Device(own):
            return product(a, b, out, alpha=alpha, beta=beta, dtype=dtype,
                           epilogue=epilogue, vector=vector, aux=aux, aux_ld=aux_ld)  # fmt: skip
    on_device = isinstance(alpha, cupy.ndarray)
    dtype = dtype or (a.dtype if out is None else out.dtype)
    ask = (_name(dtype), epilogue, aux_ld, promises.precision != "highest", on_device)
    recipe = _recipe(a, b, out, ask)
    if recipe.fit_a is not None:
        a = _fitted(a, recipe.fit_a)
    if recipe.fit_b is not None:
        b = _fitted(b, recipe.fit_b)
    if out is None:
        out = cupy.empty(recipe.shape, dtype)
    if epilogue != "DEFAULT" and recipe.problem.batch > 1:
        raise Unsupported
    if on_device:
        _launch(recipe, (a, b, out, vector, aux), alpha.data.ptr, beta.data.ptr)  # type: ignore[union-attr]
    else:
        one, other = lt.scalar(alpha, recipe.scale), lt.scalar(beta, recipe.scale)
        _launch(recipe, (a, b, out, vector, aux), one[1], other[1])
    return out


def _launch(recipe: _Recipe, arrays: tuple[Array | None, ...], alpha: int, beta: int) -> None:
    """Compute with cuBLASLt, else with cuBLAS; ``alpha`` and ``beta`` are addresses."""
    places = tuple([0 if x is None else x.data.ptr for x in arrays])
    a, b, out = places[:3]
    library, stream = lt.bindings(), cupy.cuda.get_current_stream()
    if library is not None:
        device = cupy.cuda.runtime.getDevice()
        plan = recipe.plan(library, device, places)
        if plan is not None:
            memory = lt.workspace(device, stream.ptr)
            plan.launch(b, a, out, alpha, beta, memory.data.ptr, stream.ptr)
            return
    if recipe.problem.epilogue != "DEFAULT":
        raise Unsupported
    multiply_classically(recipe.problem, (b, a, out), (alpha, beta), stream)


# --- the functions of the namespace ---------------------------------------------------------------
def gemm(
    a: Array, b: Array, bias: Array | None = None, out: Array | None = None, add: bool = False
) -> Array:
    """The matrix product of ``a`` and ``b``, plus ``bias``.

    Args:
        a, b: of one dtype; leading dimensions broadcast, and vectors count as a row or a column.
        bias: one number for each column, or one for all.
        out: where the product goes; for 16-bit floats it may be float32.
        add: add it to what is there.

    Raises:
        DtypeError: the dtypes differ.
        DtypeNotImplemented: they are bool.
    """
    if a.dtype != b.dtype or a.dtype.kind == "b":
        refuse_product(a, b)
    if bias is None:
        return _into(a, b, out, add)
    if out is None and bias.ndim == 1 and min(a.ndim, b.ndim) > 1 and bias.dtype == a.dtype:
        try:
            return _with_bias(a, b, bias)
        except Unsupported:
            pass
    result = _into(a, b, out, add)
    result += bias
    return result


def matmul(a: Array, b: Array, out: Array | None = None) -> Array:
    """The matrix product of ``a`` and ``b``, in ``out`` if it is given."""
    if a.dtype != b.dtype or _name(a.dtype) is None:
        return cupy.matmul(a, b, out=out)
    return _into(a, b, out, False)


def _into(a: Array, b: Array, out: Array | None, add: bool) -> Array:
    if min(a.ndim, b.ndim) < 2:
        return _of_vectors(a, b, out, add)
    known = _name(a.dtype) is not None and (out is None or _name(out.dtype) is not None)
    if not known or 0 in a.shape or 0 in b.shape:
        return _placed(_without_blas(a, b), out, add)
    try:
        return product(a, b, out, beta=1.0 if add else 0.0)
    except Unsupported:  # where out lies, for all else has a kernel
        assert out is not None
        return _placed(product(a, b, dtype=out.dtype), out, add)


def _without_blas(a: Array, b: Array) -> Array:
    """Return the product of integers, or of nothing: CuPy computes these by its own kernels."""
    if _name(a.dtype) is None:
        return cupy.matmul(a, b)
    if a.shape[-1] != b.shape[-2]:
        raise ValueError(
            "matmul: operands have a mismatch in the core dimension: "
            f"{a.shape[-1]} and {b.shape[-2]}"
        )
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return cupy.zeros((*lead, a.shape[-2], b.shape[-1]), a.dtype)


def _placed(result: Array, out: Array | None, add: bool) -> Array:
    if out is None:
        return result
    if add:
        out += result
    else:
        out[...] = result
    return out


def _of_vectors(a: Array, b: Array, out: Array | None, add: bool) -> Array:
    if not a.ndim or not b.ndim:
        raise ValueError("matmul: operands have no core dimension")
    left = a[None, :] if a.ndim == 1 else a
    right = b[:, None] if b.ndim == 1 else b
    whole = _into(left, right, None, False)
    lead, (rows, columns) = whole.shape[:-2], whole.shape[-2:]
    shape = (*lead, *(() if a.ndim == 1 else (rows,)), *(() if b.ndim == 1 else (columns,)))
    return _placed(whole.reshape(shape), out, add)


# --- products with more to do ---------------------------------------------------------------------
def _is_vector(x: Array, kind: Any) -> bool:
    return bool(x.ndim == 1 and x.dtype == kind and x.flags.c_contiguous)


def _fusible(a: Array, b: Array, bias: Array | None) -> bool:
    """Return whether cuBLASLt knows epilogues for these operands: real, and something there."""
    real = _name(a.dtype) in ("float32", "float16", "bfloat16")
    fits = bias is None or (_is_vector(bias, a.dtype) and bias.size == b.shape[-1])
    return real and fits and a.dtype == b.dtype and bool(a.size) and bool(b.size) and b.ndim == 2


def _with_bias(a: Array, b: Array, bias: Array) -> Array:
    if not _fusible(a, b, bias):
        raise Unsupported
    return product(a, b, epilogue="BIAS", vector=bias)


def _rounded(n: int, to: int) -> int:
    return -(-n // to) * to


def _aux(rows: int, columns: int, activation: str, kind: Any) -> tuple[Array, int]:
    """Return room for what backward of an activation needs, and the length of its rows there."""
    if activation == "relu":  # a bit for each element
        width = _rounded(columns, 128)
        return cupy.empty((rows, width // 8), np.uint8), width
    width = _rounded(columns, 8)
    return cupy.empty((rows, width), kind), width


_EPILOGUE = {"relu": "RELU", "gelu_tanh": "GELU"}


def linear_activation(
    x: Array, weight: Array, bias: Array | None, activation: str, keep: bool
) -> Any:
    """Return ``activation(x @ weight.T + bias)``, and with ``keep`` what its backward needs.

    cuBLASLt's ReLU makes 0 of nan.
    """
    epilogue, turned = _EPILOGUE.get(activation), weight.T
    if epilogue is None or min(x.ndim, weight.ndim) < 2 or not _fusible(x, turned, bias):
        return NotImplemented
    aux, width = None, 0
    if keep:
        rows = math.prod(x.shape[:-1])
        aux, width = _aux(rows, turned.shape[1], activation, x.dtype)
        epilogue += "_AUX"
    if bias is not None:
        epilogue += "_BIAS"
    try:
        out = product(x, turned, epilogue=epilogue, vector=bias, aux=aux, aux_ld=width)
    except Unsupported:
        return NotImplemented
    return out, aux


def slope_times_product(g: Array, weight: Array, aux: Array, activation: str) -> Any:
    """Return ``(g @ weight) * activation'(…)``, whose argument ``aux`` describes, and its row sum.

    That is the gradient of what went into the activation, and the gradient of the bias before it.
    """
    if not _fusible(g, weight, None) or g.ndim < 2 or not aux.size:
        return NotImplemented
    sums = cupy.empty(weight.shape[1], g.dtype)
    width = aux.shape[1] * (8 if activation == "relu" else 1)
    try:
        found = product(
            g, weight, epilogue=f"D{_EPILOGUE[activation]}_BGRAD", vector=sums, aux=aux,
            aux_ld=width,
        )  # fmt: skip
    except Unsupported:
        return NotImplemented
    return found, sums


def product_and_sums(a: Array, b: Array, out: Array | None = None, add: bool = False) -> Any:
    """Return ``a @ b`` of two matrices, as `gemm` does, and the sums of the rows of ``a``.

    With the gradient of a linear layer's output, turned, on the left: the gradients of its weight
    and of its bias.
    """
    if not _fusible(a, b, None) or a.ndim != 2:
        return NotImplemented
    sums = cupy.empty(len(a), a.dtype if out is None else out.dtype)
    beta = 1.0 if add else 0.0
    try:
        return product(a, b, out, beta=beta, epilogue="BGRADB", vector=sums), sums
    except Unsupported:
        return NotImplemented


KERNELS: dict[str, Callable[..., Any]] = {
    "linear_activation": linear_activation,
    "product_and_sums": product_and_sums,
    "slope_times_product": slope_times_product,
}
