"""``out=``: results written into tensors that the caller brings.

The wrapper of an operation tests ``out is not None`` and comes here, so nobody else pays for it.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

from distgrad.autograd.inplace import refuse_expanded, refuse_inference
from distgrad.autograd.mode import mode, no_grad
from distgrad.autograd.numpy_names import ABSENT, OTHER_NAMES, parameters_of, torch_names
from distgrad.backend.device import array_namespace
from distgrad.backend.dtype import can_cast
from distgrad.errors import ArgumentTypeError, DtypeError, GradError, ShapeError
from distgrad.tensor import Tensor, shared_of

P = ParamSpec("P")
R = TypeVar("R")


def takes_out(function: Callable[P, R]) -> Callable[P, R]:
    """Give a plain function of operations the keyword ``out``."""

    @functools.wraps(function)
    def call(*args: Any, out: Any = None, **options: Any) -> Any:
        if not OTHER_NAMES.keys().isdisjoint(options):
            options = torch_names(function.__name__, options, parameters_of(function))
        if out is None:
            return function(*args, **options)
        return into(out, function.__name__, function, args, options)

    return call


def by_name(
    function: Callable[..., Any],
    values: dict[str, Any],
    named: dict[str, Any],
    defaults: dict[str, Any],
    takes_out: bool,
) -> Any:
    """Call an operation again with what came by names that are none of its parameters.

    Args:
        function: the operation.
        values: its arguments by name; ``ABSENT`` for those that did not come.
        named: the rest.
        defaults: what stands in ``values`` for options that were not given.
        takes_out: the operation has ``out=``.

    Raises:
        ArgumentTypeError: a name is unknown.
    """
    out = named.pop("out", None) if takes_out else None
    free = [n for n, v in values.items() if v is ABSENT or v is defaults.get(n, ABSENT)]
    values |= torch_names(function.__name__, named, free)
    values = {n: v for n, v in values.items() if v is not ABSENT}
    return function(**values) if out is None else into(out, function.__name__, function, (), values)


def into(
    out: Any,
    name: str,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    options: dict[str, Any],
) -> Any:
    """Write ``function(*args, **options)`` into ``out`` (a tensor, or one per output); return it.

    A tensor of another shape is resized, with a warning unless it is empty; one of another dtype
    takes the result if PyTorch's rules let it be cast.

    Raises:
        GradError: something here requires grad while operations are recorded.
        DtypeError: the result cannot be cast to the dtype of ``out``.
    """
    targets = [out] if isinstance(out, Tensor) else out
    if not isinstance(targets, list | tuple) or not all(isinstance(t, Tensor) for t in targets):
        raise ArgumentTypeError(
            f"{name}(): argument 'out' must be Tensor, not {type(out).__name__}"
        )
    if any(hasattr(t.array, "below") for t in _tensors([*args, *options.values(), *targets])):
        raise GradError(
            f"{name}(): forward mode and vmap do not support it because it is an out= function; "
            "leave out= away"
        )
    if mode.grad and any(t.requires_grad for t in _tensors([*args, *options.values(), *targets])):
        raise GradError(
            f"{name}(): functions with out=... arguments don't support automatic differentiation, "
            "but one of the arguments requires grad; use dg.no_grad(), or leave out= away"
        )
    with no_grad():
        found = function(*args, **options)
    results = [found] if isinstance(found, Tensor) else list(found)
    if len(results) != len(targets):
        raise ArgumentTypeError(
            f"{name}(): expected a sequence of {len(results)} tensors for 'out', but got "
            f"{len(targets)}"
        )
    operands = list(_tensors([*args, *options.values()]))
    for target, result in zip(targets, results, strict=True):
        refuse_inference(target, name)
        _check_dtype(name, target, result, len(targets) > 1)
        grows = name in _NO_OVERLAP and target.array.shape != result.array.shape
        _check_memory(name, target, operands, grows)
    for target, result in zip(targets, results, strict=True):
        _write(name, target, result)
    return out if isinstance(out, Tensor) else _like(found, targets)


def _like(found: Any, targets: Any) -> Any:
    kind = type(found)
    return kind(*targets) if hasattr(found, "_fields") else tuple(targets)


def _tensors(values: Iterable[Any]) -> Iterable[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _check_dtype(name: str, target: Tensor, result: Tensor, several: bool) -> None:
    if target.array.dtype == result.array.dtype:
        return
    if name in _ONE_DTYPE or (several and name not in _SEVERAL_DTYPES):
        raise DtypeError(
            f"{name}(out: {target._brief()}): Expected out tensor to have dtype "
            f"{result.array.dtype}, but got {target.array.dtype} instead"
        )
    if not can_cast(result.dtype, target.dtype):
        kind = ArgumentTypeError if name in _JOINING else DtypeError
        raise kind(
            f"{name}(out: {target._brief()}): result type {result.array.dtype} can't be cast to "
            f"the desired output type {target.array.dtype}; give an out of the result's dtype"
        )


# What moves elements, rounds, or is one routine of a library, converts nothing; nor do operations
# of several outputs.
_ONE_DTYPE = frozenset((
    "abs", "addbmm", "addmm", "addmv", "alias_copy", "amax", "amin", "argmax", "argmin",
    "argwhere", "as_strided_copy", "avg_pool2d", "avg_pool3d", "baddbmm", "bitwise_not", "bmm",
    "bucketize", "ceil", "complex", "conj_physical", "cross", "det", "diag", "diagonal_copy",
    "dot", "eigvalsh", "expand_copy", "floor", "frac", "gather", "gelu", "hardshrink",
    "heaviside", "histc", "ifft", "ihfft", "index_add", "index_copy", "index_reduce",
    "index_select", "inv", "isin", "isneginf", "isposinf", "ldl_solve", "linear", "log_softmax",
    "logcumsumexp", "logsigmoid", "lu_solve", "masked_select", "matmul", "matrix_norm", "mm",
    "msort", "multi_dot", "mv", "nan_to_num", "nanquantile", "narrow_copy", "neg", "nonzero",
    "norm", "ormqr", "permute_copy", "polar", "quantile", "renorm", "round", "scatter",
    "scatter_add", "scatter_reduce", "searchsorted", "sgn", "sign", "signbit", "slice_scatter",
    "softmax", "softplus", "softshrink", "solve", "solve_triangular", "sort", "squeeze_copy",
    "svdvals", "t_copy", "take", "take_along_dim", "tensordot", "topk", "transpose_copy",
    "tril", "triu", "trunc", "unfold_copy", "unsqueeze_copy", "vdot", "vecdot", "vector_norm",
    "view_copy", "where",
))  # fmt: skip
_SEVERAL_DTYPES = frozenset(("eig", "geqrf", "lstsq", "lu"))
_JOINING = frozenset((
    "cat", "column_stack", "concat", "concatenate", "dstack", "hstack", "row_stack", "stack",
    "vstack",
))  # fmt: skip
_CREATING = frozenset((
    "arange", "bernoulli", "empty", "eye", "full", "linspace", "logspace", "multinomial",
    "ones", "rand", "randint", "randn", "randperm", "range", "zeros",
))  # fmt: skip
_NO_OVERLAP = frozenset((
    "cat", "column_stack", "concat", "concatenate", "dstack", "gather", "hstack", "index_select",
    "kthvalue", "masked_select", "row_stack", "stack", "take", "take_along_dim", "vstack",
))  # fmt: skip


def _check_memory(name: str, target: Tensor, operands: list[Tensor], grows: bool) -> None:
    """Raise for a target that shares memory with itself or, not being it, with an operand.

    Args:
        grows: the target will be resized, into memory that an operand may have.
    """
    array = target.array
    if hasattr(array, "below"):
        return
    try:
        refuse_expanded(array)
    except ShapeError as error:
        raise ShapeError(f"{name}(out: {target._brief()}): {error}") from None
    xp = array_namespace(array)
    for operand in operands:
        other = operand.array
        if type(other) is not type(array) or not _is_dense(other) or not _is_dense(array):
            continue
        same = operand.data_ptr() == target.data_ptr() and other.shape == array.shape
        overlaps = (not same or name in _NO_OVERLAP) and xp.may_share_memory(array, other)
        if overlaps or (grows and shared_of(operand) is shared_of(target)):
            raise ShapeError(
                f"{name}(out: {target._brief()}): unsupported operation: some elements of the "
                "input tensor and the written-to tensor refer to a single memory location. Please "
                "clone() the tensor before performing the operation."
            )


def _is_dense(array: Any) -> bool:
    return bool(array.flags.c_contiguous or array.flags.f_contiguous)


def _write(name: str, target: Tensor, result: Tensor) -> None:
    refuse_expanded(target.array)
    if target.array.shape != result.array.shape:
        if target.array.size and name not in _CREATING:
            warnings.warn(
                "An output with one or more elements was resized since it had shape "
                f"{list(target.shape)}, which does not match the required output shape "
                f"{list(result.shape)}. This behavior is deprecated, and in a future release "
                "outputs will not be resized unless they have zero elements. Pass an out of the "
                "right shape, or an empty one.",
                stacklevel=4,
            )
        target.array = result.array.astype(target.array.dtype)
    else:
        target.array[...] = result.array
    shared_of(target).bump()
