"""Matrix products, and what is made of them: all by ``xp.gemm``, which knows BLAS.

A batch of matrices times one matrix is one product of the batch's rows, laid end to end, with that
matrix; forward and both gradients take this way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy

from distgrad.autograd.declare import as_method, op, promote_all, recover
from distgrad.autograd.inplace import in_place
from distgrad.autograd.into import Into
from distgrad.autograd.outputs import takes_out
from distgrad.autograd.samples import case, real
from distgrad.autograd.traced import is_traced
from distgrad.backend.device import array_namespace
from distgrad.errors import DtypeError, DtypeNotImplemented, ShapeError
from distgrad.ops.checks import refuse_kinds
from distgrad.ops.compare import logical_or
from distgrad.ops.coo import SparseTensor
from distgrad.ops.elementwise import add, mul, sub
from distgrad.ops.reduce import sum as sum_
from distgrad.ops.shape import (
    broadcast_tensors,
    expand,
    permute,
    reshape,
    unsqueeze,
    wrap_dim,
    wrap_dims,
)
from distgrad.tensor import Tensor
from distgrad.typing import Array, Namespace, Number

__all__ = [
    "addbmm",
    "addmm",
    "addmv",
    "addr",
    "baddbmm",
    "bmm",
    "chain_matmul",
    "cross",
    "dot",
    "ger",
    "inner",
    "kron",
    "matmul",
    "mm",
    "mv",
    "outer",
    "tensordot",
    "trace",
    "vdot",
]


# ---------------------------------------------------------------------- matmul and its kin
def _d_left(F: Any, g: Any, input_shape: Any, other: Any) -> Any:
    if other.ndim == 1:
        return F.unsqueeze(g, -1) * other  # a row times a vector: for each row g * other
    if len(input_shape) == 1:  # vector times matrices
        return F.squeeze(F.matmul(other, F.unsqueeze(g, -1)), -1)
    return F.matmul(g, F.mT(other))


def _rows(F: Any, x: Any) -> Any:
    """Return ``x`` as one matrix of rows, its last dimension."""
    return x if x.ndim == 2 else F.reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))


def _d_right(F: Any, g: Any, input: Any, other_shape: Any) -> Any:
    if input.ndim == 1:
        return g * input if len(other_shape) == 1 else F.unsqueeze(g, -2) * F.unsqueeze(input, -1)
    if len(other_shape) == 1:
        return F.squeeze(F.matmul(F.mT(input), F.unsqueeze(g, -1)), -1)
    if len(other_shape) == 2 and input.ndim > 2:
        return F.matmul(F.mT(_rows(F, input)), _rows(F, g))
    return F.matmul(F.mT(input), g)


@op(
    "multilinear",
    samples=[
        case(real(2, 3), real(3, 4)),
        case(real(5, 2, 3), real(3, 4)),
        case(real(2, 3), real(5, 3, 4)),
        case(real(2, 1, 2, 3), real(4, 3, 2)),
        case(real(3), real(3)),
        case(real(2, 3), real(3)),
        case(real(3), real(3, 2)),
        case(real(3), real(2, 3, 4)),
        case(real(4, 2, 3), real(3)),
        case(real(2, 0), real(0, 3)),
        case(real(0, 2, 3), real(3, 4)),
    ],
    operator="@",
    node="MmBackward0",
    d_input=_d_left,
    d_other=_d_right,
)
def matmul(xp: Namespace, input: Tensor, other: Tensor) -> Array:
    """Return the matrix product over the last two dimensions; leading dimensions broadcast.

    A vector on the left counts as a row, on the right as a column, and is taken away after.
    """
    if not input.ndim or not other.ndim:
        raise ShapeError(
            "both arguments to matmul need to be at least 1D, but they are "
            f"{input.ndim}D and {other.ndim}D; use mul()"
        )
    array: Array = xp.gemm(input, other)
    return array


def _ranks(name: str, operands: dict[str, Tensor], ranks: Sequence[int]) -> None:
    """Raise unless every operand has its number of dimensions."""
    for (what, tensor), rank in zip(operands.items(), ranks, strict=True):
        if tensor.array.ndim != rank:
            kind = {1: "a vector", 2: "a matrix", 3: "a 3D tensor"}[rank]
            error = ShapeError(f"{what} must be {kind}, but it is {tensor.array.ndim}D; use matmul")
            recover(name, error, operands, {})


@takes_out
def mm(input: Tensor | SparseTensor, mat2: Tensor) -> Tensor:
    """Return the product of two matrices; the first may be sparse."""
    if isinstance(input, SparseTensor):
        return input @ mat2
    if input.array.ndim != 2 or mat2.array.ndim != 2:
        _ranks("mm", {"input": input, "mat2": mat2}, (2, 2))
    return matmul(input, mat2)


@takes_out
def bmm(input: Tensor, mat2: Tensor) -> Tensor:
    """Return the products of two batches of matrices, pair by pair."""
    a, b = input.array.shape, mat2.array.shape
    if len(a) != 3 or len(b) != 3:
        _ranks("bmm", {"input": input, "mat2": mat2}, (3, 3))
    if a[0] != b[0]:
        error = ShapeError(
            f"Expected size for first two dimensions of batch2 tensor to be: [{a[0]}, {a[2]}] but "
            f"got: [{b[0]}, {b[1]}]"
        )
        recover("bmm", error, {"input": input, "mat2": mat2}, {})
    return matmul(input, mat2)


@takes_out
def mv(input: Tensor, vec: Tensor) -> Tensor:
    """Return the product of a matrix and a vector."""
    _ranks("mv", {"input": input, "vec": vec}, (2, 1))
    return matmul(input, vec)


@takes_out
def dot(input: Tensor, tensor: Tensor) -> Tensor:
    """Return the sum of the products of two vectors' elements."""
    operands = {"input": input, "tensor": tensor}
    _ranks("dot", operands, (1, 1))
    if input.array.shape != tensor.array.shape:
        error = ShapeError(
            "inconsistent tensor size, expected tensor and src to have the same number of "
            f"elements, but got {input.array.size} and {tensor.array.size} elements respectively"
        )
        recover("dot", error, operands, {})
    return matmul(input, tensor)


@takes_out
def vdot(input: Tensor, other: Tensor) -> Tensor:
    """Return the dot product, the first vector conjugated where it is complex."""
    return dot(input.conj() if input.is_complex() else input, other)


@takes_out
def inner(input: Tensor, other: Tensor) -> Tensor:
    """Return the dot products along the last dimensions; with a number, the product."""
    if not input.array.ndim or not other.array.ndim:
        return mul(input, other)
    return tensordot(input, other, ([-1], [-1]))


@takes_out
def outer(input: Tensor, vec2: Tensor) -> Tensor:
    """Return the matrix of all products of two vectors' elements."""
    _ranks("outer", {"input": input, "vec2": vec2}, (1, 1))
    return mul(unsqueeze(input, -1), vec2)


@takes_out
def ger(input: Tensor, vec2: Tensor) -> Tensor:
    """Return the matrix of all products of two vectors' elements."""
    return outer(input, vec2)


# ---------------------------------------------------------------------- products added to a tensor
def _weighted(
    name: str, input: Tensor, operands: dict[str, Tensor], made: Tensor, beta: Any, alpha: Any
) -> Tensor:
    """Return ``beta * input + alpha * made``; with ``beta`` 0 nothing of input counts, nan too."""
    dtype = made.array.dtype
    if input.array.dtype != dtype:
        error = DtypeError(
            f"self and mat2 must have the same dtype, but got {input.array.dtype} and {dtype}; "
            "convert one with .to(dtype)"
        )
        recover(name, error, {"input": input, **operands}, {"beta": beta, "alpha": alpha})
    if dtype.kind != "c" and (isinstance(beta, complex) or isinstance(alpha, complex)):
        error = DtypeError("beta and alpha of real matrices cannot be complex")
        recover(name, error, {"input": input, **operands}, {"beta": beta, "alpha": alpha})
    if dtype.kind in "iu":  # as PyTorch's kernels take them
        beta, alpha = int(beta), int(alpha)
    if alpha != 1:
        made = mul(made, alpha)
    shape = made.array.shape
    if input.array.shape != shape:
        input = expand(input, shape)
    if not beta:
        return made
    return add(made, input if beta == 1 else mul(input, beta))


@takes_out
def addmm(
    input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: Number = 1, alpha: Number = 1
) -> Tensor:
    """Return ``beta * input + alpha * (mat1 @ mat2)``."""
    operands = {"mat1": mat1, "mat2": mat2}
    _ranks("addmm", operands, (2, 2))
    if is_layer(input, mat1, mat2) and (beta, alpha) == (1, 1):
        return linear(mat1, permute(mat2, (1, 0)), input)
    return _weighted("addmm", input, operands, matmul(mat1, mat2), beta, alpha)


def is_layer(input: Tensor, mat1: Tensor, mat2: Tensor) -> bool:
    """Return whether ``input`` is a bias that a product on a GPU can add by itself."""
    bias, left, right = (t.array for t in (input, mat1, mat2))
    if type(left) is numpy.ndarray or is_traced((input, mat1, mat2)):
        return False
    fits = left.shape[1] == right.shape[0] and bias.shape == right.shape[1:]
    return bool(fits and bias.dtype == left.dtype == right.dtype and left.dtype.kind in "fV")


@takes_out
def addmv(
    input: Tensor, mat: Tensor, vec: Tensor, *, beta: Number = 1, alpha: Number = 1
) -> Tensor:
    """Return ``beta * input + alpha * (mat @ vec)``."""
    operands = {"mat": mat, "vec": vec}
    return _weighted("addmv", input, operands, mv(mat, vec), beta, alpha)


@takes_out
def addr(
    input: Tensor, vec1: Tensor, vec2: Tensor, *, beta: Number = 1, alpha: Number = 1
) -> Tensor:
    """Return ``beta * input + alpha * outer(vec1, vec2)``."""
    operands = {"input": input, "vec1": vec1, "vec2": vec2}
    _ranks("addr", {"vec1": vec1, "vec2": vec2}, (1, 1))
    input, vec1, vec2 = promote_all(input, vec1, vec2)
    kind = input.array.dtype.kind
    for name, value in (("beta", beta), ("alpha", alpha)):
        if kind in "biu" and isinstance(value, float):
            error = DtypeError(
                f"For integral input tensors, argument {name} must not be a floating point number."
            )
            recover("addr", error, operands, {"beta": beta, "alpha": alpha})
    made = outer(vec1, vec2)
    if kind == "b":
        made = made if alpha else mul(made, False)
        return logical_or(made, input) if beta else made
    return _weighted("addr", input, operands, made, beta, alpha)


@takes_out
def baddbmm(
    input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: Number = 1, alpha: Number = 1
) -> Tensor:
    """Return ``beta * input + alpha * (batch1 @ batch2)``."""
    operands = {"batch1": batch1, "batch2": batch2}
    return _weighted("baddbmm", input, operands, bmm(batch1, batch2), beta, alpha)


@takes_out
def addbmm(
    input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: Number = 1, alpha: Number = 1
) -> Tensor:
    """Return ``beta * input + alpha * sum(batch1 @ batch2)``, the sum over the batch."""
    operands = {"batch1": batch1, "batch2": batch2}
    left, right = batch1.array.shape, batch2.array.shape
    _ranks("addbmm", operands, (3, 3))
    if left[0] != right[0] or left[2] != right[1]:
        bmm(batch1, batch2)  # says what is wrong
    many = left[0] * left[2]  # the sum over the batch is one long product
    wide = reshape(permute(batch1, (1, 0, 2)), (left[1], many))
    made = matmul(wide, reshape(batch2, (many, right[2])))
    return _weighted("addbmm", input, operands, made, beta, alpha)


# ---------------------------------------------------------------------- the layer
def _linear_jvp(F: Any, input: Any, weight: Any, t_input: Any, t_weight: Any, t_bias: Any) -> Any:
    parts = [
        None if t_input is None else F.linear(t_input, weight),
        None if t_weight is None else F.linear(input, t_weight),
        t_bias,
    ]
    first, *rest = [p for p in parts if p is not None]
    for part in rest:
        first = first + part
    return first


def _d_rows(F: Any, g: Any, weight: Any, into: Any) -> Any:
    """Return the gradient of the rows that a weight was multiplied with."""
    if weight.ndim == 1:
        return F.unsqueeze(g, -1) * weight
    if into is not None and times_slope(into, g, weight):
        return None
    return F.matmul(g, weight)


def times_slope(into: Into, g: Array, weight: Array) -> bool:
    """Return whether ``g @ weight`` was multiplied by the slope of the activation before, at once.

    The node of that activation then has what it would have begun with.
    """
    before = into.before("input")
    op_: Any = getattr(before, "op", None)
    slope = array_namespace(g).kernels.get("slope_times_product")
    if slope is None or op_ is None or op_.name not in _SLOPES or type(before) is not op_.node:
        return False
    saved = dict(zip(op_.plan.kept, before.saved, strict=True))  # type: ignore[union-attr, arg-type]
    found = slope(g, weight, saved["aux"], _SLOPES[op_.name])
    if found is NotImplemented:
        return False
    into.give(before, found[0].reshape(before._shape), found[1])  # type: ignore[arg-type, union-attr]
    return True


_SLOPES = {"linear_relu": "relu", "linear_gelu": "gelu_tanh"}


def _d_weight(F: Any, g: Any, input: Any, weight_shape: Any, into: Any) -> Any:
    """Return the weight's gradient as one product over all leading dimensions."""
    rows = _rows(F, input)
    if len(weight_shape) == 1:
        return F.matmul(F.mT(rows), F.reshape(g, (-1,)))
    return weight_gradient(F, _rows(F, g), rows, into)


def weight_gradient(F: Any, g: Any, rows: Any, into: Into | None, sums: str = "bias") -> Any:
    """Return ``g.T @ rows``; None if it was put where the weight's gradient is kept.

    ``sums``: the operand whose gradient is the sum of the rows of ``g``, if that is wanted too.
    """
    if into is None:
        return F.matmul(F.mT(g), rows)
    return into.product("weight", F.mT(g), rows, sums)


@op(
    samples=[
        case(real(5, 3), real(4, 3), real(4)),
        case(real(2, 5, 3), real(4, 3)),
        case(real(3), real(4, 3), real(4)),
        case(real(2, 3), real(3)),
        case(real(0, 3), real(4, 3), real(4)),
    ],
    method=False,
    node="AddmmBackward0",
    jvp=_linear_jvp,
    d_input=_d_rows,
    d_weight=_d_weight,
    d_bias=lambda g, into: g if into is None or into.sums is None else into.sums,
)
def linear(xp: Namespace, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Array:
    """Return ``input @ weight.T + bias``.

    Shape:
        input: ``(*, in)``, weight: ``(out, in)`` or ``(in,)``, bias: ``(out,)`` or ``()``.
    """
    if input.shape[-1:] != weight.shape[-1:]:
        a = "x".join(map(str, input.shape)) or "scalar"
        b = "x".join(map(str, weight.shape[::-1]))
        raise ShapeError(
            f"mat1 and mat2 shapes cannot be multiplied ({a} and {b}): the last size of input must "
            f"equal the last size of weight, {weight.shape[-1]}; change the layer or the input"
        )
    if bias is not None and bias.dtype != input.dtype and input.dtype == weight.dtype:
        raise DtypeError(f"bias is {bias.dtype}, but input and weight are {input.dtype}")
    array: Array = xp.gemm(input, weight.T if weight.ndim > 1 else weight, bias)
    return array


# ---------------------------------------------------------------------- several dimensions at once
@takes_out
def tensordot(a: Tensor, b: Tensor, dims: Any = 2) -> Tensor:
    """Return the sums of products over ``dims`` of ``a`` and ``b``.

    Args:
        a: the left tensor.
        b: the right tensor.
        dims: how many of the last of ``a`` and the first of ``b``, or two lists of dimensions.
    """
    left, right = a.array.shape, b.array.shape
    try:
        if isinstance(dims, int):
            if dims < 0 or dims > min(len(left), len(right)):
                raise ShapeError(
                    f"tensordot expects dims >= 0 and within both, but got dims={dims}"
                )
            dims = (list(range(len(left) - dims, len(left))), list(range(dims)))
        one, two = (
            wrap_dims([d] if isinstance(d, int) else [int(i) for i in d], n)
            for d, n in zip(dims, (len(left), len(right)), strict=True)
        )
        _check_contracted(left, right, one, two)
    except Exception as error:
        recover("tensordot", error, {"a": a, "b": b}, {"dims": dims})
    free_a = [d for d in range(len(left)) if d not in one]
    free_b = [d for d in range(len(right)) if d not in two]
    inside = math.prod([min(left[i], right[j]) for i, j in zip(one, two, strict=True)])
    if any(left[i] != right[j] for i, j in zip(one, two, strict=True)):
        a, b = _broadcast_contracted(a, b, one, two)
    shape_a, shape_b = [left[d] for d in free_a], [right[d] for d in free_b]
    rows = reshape(permute(a, (*free_a, *one)), (math.prod(shape_a), inside))
    columns = reshape(permute(b, (*two, *free_b)), (inside, math.prod(shape_b)))
    return reshape(matmul(rows, columns), (*shape_a, *shape_b))


def _check_contracted(left: Any, right: Any, one: Any, two: Any) -> None:
    if len(one) != len(two):
        raise ShapeError("both dimension lists should have same length")
    for i, j in zip(one, two, strict=True):
        if left[i] != right[j] and 1 not in (left[i], right[j]):
            raise ShapeError(
                f"contracted dimensions need to match, but first has size {left[i]} in dim {i} and "
                f"second has size {right[j]} in dim {j}"
            )


def _broadcast_contracted(a: Tensor, b: Tensor, one: Any, two: Any) -> tuple[Tensor, Tensor]:
    """Return the operands with a length of 1 on one side summed away on the other."""
    for i, j in zip(one, two, strict=True):
        if a.array.shape[i] == 1:
            b = sum_(b, j, True, dtype=b.dtype) if b.array.shape[j] != 1 else b
        elif b.array.shape[j] == 1:
            a = sum_(a, i, True, dtype=a.dtype)
    return a, b


@takes_out
def kron(input: Tensor, other: Tensor) -> Tensor:
    """Return the Kronecker product: every element of ``input`` times the whole of ``other``."""
    a, b = input.array.shape, other.array.shape
    ndim = max(len(a), len(b))
    a, b = (1,) * (ndim - len(a)) + a, (1,) * (ndim - len(b)) + b
    wide = reshape(input, tuple(n for size in a for n in (size, 1)))
    tight = reshape(other, tuple(n for size in b for n in (1, size)))
    return reshape(mul(wide, tight), tuple(m * n for m, n in zip(a, b, strict=True)))


@takes_out
def chain_matmul(*matrices: Tensor) -> Tensor:
    """Return the product of matrices, multiplied in the order that costs least."""
    one = len(matrices) == 1 and isinstance(matrices[0], list | tuple)
    many = list(matrices[0]) if one else list(matrices)
    if not many:
        raise ShapeError("chain_matmul(): Expected one or more matrices")
    for number, matrix in enumerate(many):
        if matrix.array.ndim != 2:
            _ranks("chain_matmul", {f"matrices[{number}]": matrix}, (2,))
    return multiply_chain(many)


def multiply_chain(matrices: Sequence[Tensor]) -> Tensor:
    """Return the product of matrices in the order of least cost, by dynamic programming."""
    sizes = [m.array.shape[0] for m in matrices] + [matrices[-1].array.shape[1]]
    n = len(matrices)
    cost = [[0.0] * n for _ in range(n)]
    cut = [[0] * n for _ in range(n)]
    for length in range(1, n):
        for i in range(n - length):
            j = i + length
            cost[i][j], cut[i][j] = min(
                (cost[i][k] + cost[k + 1][j] + sizes[i] * sizes[k + 1] * sizes[j + 1], k)
                for k in range(i, j)
            )

    def multiplied(i: int, j: int) -> Tensor:
        if i == j:
            return matrices[i]
        return matmul(multiplied(i, cut[i][j]), multiplied(cut[i][j] + 1, j))

    return multiplied(0, n - 1)


@takes_out
def cross(input: Tensor, other: Tensor, dim: int | None = None) -> Tensor:
    """Return the cross product of vectors of three elements along ``dim``; the rest broadcasts.

    Without ``dim`` it is the first dimension of length 3.
    """
    if dim is None:
        shape = input.array.shape
        if 3 not in shape:
            error = ShapeError("no dimension of size 3 in input")
            recover("cross", error, {"input": input, "other": other}, {"dim": dim})
        dim = shape.index(3)
    return cross_product(input, other, dim)


def cross_product(input: Tensor, other: Tensor, dim: int) -> Tensor:
    refuse_kinds("cross", "b", input, other)
    a, b = input.array.shape, other.array.shape
    try:
        if len(a) != len(b):
            raise ShapeError("inputs must have the same number of dimensions")
        if input.array.dtype != other.array.dtype:
            raise DtypeError(
                f"expected both of one dtype but found {input.array.dtype} and "
                f"{other.array.dtype}; convert one with .to(dtype)"
            )
        place = wrap_dim(dim, len(a))
        if not a or a[place] != 3 or b[place] != 3:
            raise ShapeError(
                f"inputs dimension {dim} must have length 3. Got {list(a)} and {list(b)}"
            )
        input, other = broadcast_tensors(input, other)
    except Exception as error:
        recover("cross", error, {"input": input, "other": other}, {"dim": dim})
    one, two = _turned(input, place), _turned(other, place)
    return _turned(sub(mul(input, two), mul(one, other)), place)


def _turned(x: Tensor, dim: int) -> Tensor:
    """Return the three entries along ``dim`` as (second, third, first)."""
    return x.roll(-1, dim)


def trace(input: Tensor) -> Tensor:
    """Return the sum of the diagonal of a matrix."""
    _ranks("trace", {"input": input}, (2,))
    if input.array.dtype.kind == "b":
        error = DtypeNotImplemented("not implemented for bool; convert with .int()")
        recover("trace", error, {"input": input}, {})
    return sum_(input.diagonal())


for _added in (addbmm, addmm, addmv, addr, baddbmm):
    setattr(Tensor, _added.__name__ + "_", in_place(_added, _added.__name__ + "_"))
del _added
for _function in (
    addbmm, addmm, addmv, addr, baddbmm, bmm, cross, dot, ger, inner, kron, mm, mv, outer, trace,
    vdot,
):  # fmt: skip
    as_method(_function)
del _function
