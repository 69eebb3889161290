"""Comparisons, logic and bits, and the functions that choose between values."""

from __future__ import annotations

from typing import Any

from distgrad.autograd.declare import as_method, cast, op
from distgrad.autograd.inplace import in_place
from distgrad.autograd.outputs import takes_out
from distgrad.autograd.samples import (
    Sample,
    Spec,
    apart,
    booleans,
    broadcast_pairs,
    case,
    given,
    integers,
    real,
    unary,
)
from distgrad.backend.device import array_namespace
from distgrad.backend.dtype import bool_, checked_number, joint_type
from distgrad.errors import ArgumentTypeError, DtypeError, DtypeNotImplemented, ShapeError
from distgrad.tensor import Tensor, wrap
from distgrad.typing import Array, Namespace, Number, TensorLike

__all__ = [
    "allclose", "bitwise_and", "bitwise_left_shift", "bitwise_not", "bitwise_or",
    "bitwise_right_shift", "bitwise_xor", "clamp", "clamp_max", "clamp_min", "clip", "eq", "equal",
    "fmax", "fmin", "ge", "greater", "greater_equal", "gt", "isclose", "isfinite", "isinf", "isnan",
    "isneginf", "isposinf", "isreal", "le", "less", "less_equal", "logical_and", "logical_not",
    "logical_or", "logical_xor", "lt", "maximum", "minimum", "ne", "not_equal", "signbit", "where",
]  # fmt: skip

_SPECIAL = given([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1.5, -2.0])


def _whole(*shape: int) -> Spec:
    return integers(9, *shape, low=1)


def _pairs() -> list[Sample]:
    return [*broadcast_pairs(), case(_whole(3, 4), _whole(3, 4)), case(booleans(4), real(4))]


def _ordered(*arrays: Array) -> None:
    if any(a.dtype.kind == "c" for a in arrays):
        raise DtypeNotImplemented("complex numbers have no order; compare .abs() or .real instead")


# ---------------------------------------------------------------------- choosing
@op(
    "elementwise",
    widens=False,
    samples=[
        case(booleans(3, 4), real(3, 4), real(3, 4)), case(booleans(3, 1), real(4), real()),
        case(booleans(20, 20), real(20, 20), real(1, 20)), case(booleans(), real(2), real(2)),
        case(booleans(0), real(0), real(1)),
    ],
    promote=("input", "other"),
    method=False,
    d_input=lambda F, g, condition: F.where(condition, g, 0.0),
    d_other=lambda F, g, condition: F.where(condition, 0.0, g),
)  # fmt: skip
def where(xp: Namespace, condition: Tensor, input: TensorLike, other: TensorLike) -> Array:
    """Return ``input`` where ``condition`` is true, else ``other``; all three broadcast."""
    if condition.dtype != bool:  # type: ignore[comparison-overlap]
        if condition.dtype == xp.uint8:
            return xp.where(xp.not_equal(condition, 0), input, other)
        raise DtypeError(
            "where expected condition to be a boolean tensor, but got a tensor with dtype "
            f"{condition.dtype}; compare it with something or convert it with .bool()"
        )
    return xp.where(condition, input, other)


select = where


@takes_out  # type: ignore[no-redef]
def where(
    condition: Tensor, input: TensorLike | None = None, other: TensorLike | None = None
) -> Any:
    """Return ``input`` where ``condition`` is true, else ``other``; all three broadcast.

    With ``condition`` alone, return the indices of its true elements: one tensor per dimension.

    Args:
        condition: a bool tensor.

    Raises:
        DtypeError: ``condition`` is not bool.
    """
    if input is None and other is None:
        array = condition.array
        places = array_namespace(array).nonzero(array if array.ndim else array.reshape(1))
        return tuple(wrap(p) for p in places)
    if input is None or other is None:
        raise ArgumentTypeError("where(): takes condition alone, or condition, input and other")
    return select(condition, input, other)


def _where_method(self: Tensor, condition: Tensor, other: TensorLike) -> Tensor:
    """Return this tensor where ``condition`` is true, else ``other``."""
    return select(condition, self, other)


as_method(_where_method, "where")


@op(
    "elementwise",
    samples=_pairs(),
    d_input=lambda F, g, input, other: _chosen(F, g, input < other, input == other),
    d_other=lambda F, g, input, other: _chosen(F, g, other < input, input == other),
)
def maximum(xp: Namespace, input: Tensor, other: Tensor) -> Array:
    """Return the larger element of each pair; nan wins.  A tie gives half the gradient to each."""
    _ordered(input, other)
    return xp.maximum(input, other)


@op(
    "elementwise",
    samples=_pairs(),
    d_input=lambda F, g, input, other: _chosen(F, g, input > other, input == other),
    d_other=lambda F, g, input, other: _chosen(F, g, other > input, input == other),
)
def minimum(xp: Namespace, input: Tensor, other: Tensor) -> Array:
    """Return the smaller element of each pair; nan wins.  A tie gives half the gradient to each."""
    _ordered(input, other)
    return xp.minimum(input, other)


def _chosen(F: Any, g: Any, lost: Any, tie: Any) -> Any:
    """Return nothing where the operand lost, half where there is a tie, else all of ``g``."""
    return F.where(tie, g * 0.5, F.where(lost, 0.0, g))


@op(
    "elementwise",
    samples=broadcast_pairs(),
    d_input=lambda F, g, input, other: F.where((input >= other) | F.isnan(other), g, 0.0),
    d_other=lambda F, g, input, other: F.where((input >= other) | F.isnan(other), 0.0, g),
)
def fmax(xp: Namespace, input: Tensor, other: Tensor) -> Array:
    """Return the larger element of each pair; a number wins over nan."""
    _ordered(input, other)
    return xp.fmax(input, other)


@op(
    "elementwise",
    samples=broadcast_pairs(),
    d_input=lambda F, g, input, other: F.where((input <= other) | F.isnan(other), g, 0.0),
    d_other=lambda F, g, input, other: F.where((input <= other) | F.isnan(other), 0.0, g),
)
def fmin(xp: Namespace, input: Tensor, other: Tensor) -> Array:
    """Return the smaller element of each pair; a number wins over nan."""
    _ordered(input, other)
    return xp.fmin(input, other)


# ---------------------------------------------------------------------- clamping
@op(
    "elementwise",
    samples=[case(real(3, 4), min=-0.5, max=0.7), case(real(), max=0.1), case(real(5), min=0),
             case(integers(9, 5), min=2, max=4)],
    method=False,
    node="ClampBackward1",
    reference="clamp",
    d_input=lambda F, g, input, min, max: F.where(_inside(input, min, max), g, 0.0),
)  # fmt: skip
def clamp_number(
    xp: Namespace, input: Tensor, min: Number | None = None, max: Number | None = None
) -> Array:
    """Return ``input`` limited to [``min``, ``max``], both numbers of its dtype's kind."""
    out = None if min is None else xp.at_least(input, min)
    if max is None:
        return out
    return xp.at_most(input if out is None else out, max, out)


def _inside(input: Any, low: Any, high: Any) -> Any:
    if low is None:
        return input <= high
    return input >= low if high is None else (input >= low) & (input <= high)


@op(
    "elementwise",
    samples=[case(real(3, 4), real(4), real(3, 1)), case(real(4), None, real(4)),
             case(real(4), real(1), None)],
    method=False,
    node="ClampBackward0",
    reference="clamp",
    d_input=lambda F, g, input, min, max: F.where(_inside(input, min, max), g, 0.0),
    d_min=lambda F, g, input, min, max: F.where(
        (input < min) if max is None else (input < min) & (min < max), g, 0.0
    ),
    d_max=lambda F, g, input, min, max: F.where(
        (input > max) if min is None else (input > max) | (max < min), g, 0.0
    ),
)  # fmt: skip
def clamp_tensor(
    xp: Namespace, input: Tensor, min: Tensor | None = None, max: Tensor | None = None
) -> Array:
    """Return ``input`` limited to [``min``, ``max``], tensors of its dtype."""
    out = input if min is None else xp.maximum(input, min)
    return out if max is None else xp.minimum(out, max)


@takes_out
def clamp(input: Tensor, min: TensorLike | None = None, max: TensorLike | None = None) -> Tensor:
    """Return ``input`` limited to the range from ``min`` to ``max``; ``max`` wins over ``min``.

    Args:
        min: a number, a tensor that broadcasts, or None for no limit.
        max: the same.

    Raises:
        ShapeError: both limits are None.

    Gradient: it passes where the limits do not act, limits included; else it goes to the limit.
    """
    _clampable("clamp", input, min, max)
    if min is None and max is None:
        raise ShapeError(
            f"clamp({input._brief()}): At least one of 'min' or 'max' must not be None"
        )
    limits = [m for m in (min, max) if m is not None]
    if input.array.dtype.kind != "f" or any(isinstance(m, Tensor | complex) for m in limits):
        kind = joint_type([m.array if isinstance(m, Tensor) else m for m in (input, *limits)])
        tensors = [m for m in limits if isinstance(m, Tensor)]
        if kind.is_complex or (kind is bool_ and len(tensors) != 1):
            why = "complex numbers have no order" if kind.is_complex else "bool has no limits"
            raise DtypeNotImplemented(f"clamp({input._brief()}): {why}")
        input = input if input.array.dtype == kind.numpy else cast(input, kind.numpy)
        if len(tensors) == len(limits):
            return clamp_tensor(input, _in_type(min, kind.numpy), _in_type(max, kind.numpy))
        min, max = (m.item() if isinstance(m, Tensor) else m for m in (min, max))
        min, max = (m if m is None else checked_number(m, kind.numpy) for m in (min, max))
    return clamp_number(input, min, max)  # type: ignore[arg-type]


def _clampable(name: str, input: Any, *limits: Any) -> None:
    """Refuse what is neither a tensor nor, as a limit, a number or None."""
    if not isinstance(input, Tensor):
        raise ArgumentTypeError(
            f"{name}(): argument 'input' (position 1) must be Tensor, not {type(input).__name__}"
        )
    for limit in limits:
        if not isinstance(limit, Tensor | int | float | complex | None):
            raise ArgumentTypeError(
                f"{name}({input._brief()}): a limit must be Number or Tensor, not "
                f"{type(limit).__name__}"
            )


def _in_type(limit: Any, dtype: Any) -> Any:
    return limit if limit is None or limit.array.dtype == dtype else cast(limit, dtype)


@takes_out
def clamp_min(input: Tensor, min: TensorLike) -> Tensor:
    """Return ``input`` with everything below ``min`` raised to it."""
    if min is None:
        raise ArgumentTypeError("clamp_min(): argument 'min' must be Number or Tensor, not None")
    return clamp(input, min)


@takes_out
def clamp_max(input: Tensor, max: TensorLike) -> Tensor:
    """Return ``input`` with everything above ``max`` lowered to it."""
    if max is None:
        raise ArgumentTypeError("clamp_max(): argument 'max' must be Number or Tensor, not None")
    return clamp(input, None, max)


clip = clamp
for _function in (clamp, clamp_min, clamp_max):
    as_method(_function)
    as_method(in_place(_function, f"{_function.__name__}_"))
as_method(clip, "clip")
as_method(in_place(clip, "clip_"))


# ---------------------------------------------------------------------- comparisons
@op("elementwise", widens=False, samples=_pairs(), operator="==", inplace=True)
def eq(xp: Namespace, input: Tensor, other: TensorLike) -> Array:
    """Return True where ``input == other``."""
    return xp.equal(input, other)


@op("elementwise", widens=False, samples=_pairs(), operator="!=", inplace=True)
def ne(xp: Namespace, input: Tensor, other: TensorLike) -> Array:
    """Return True where ``input != other``."""
    return xp.not_equal(input, other)


@op("elementwise", widens=False, samples=_pairs(), operator="<", inplace=True)
def lt(xp: Namespace, input: Tensor, other: TensorLike) -> Array:
    """Return True where ``input < other``."""
    _ordered(input, other)
    return xp.less(input, other)


@op("elementwise", widens=False, samples=_pairs(), operator="<=", inplace=True)
def le(xp: Namespace, input: Tensor, other: TensorLike) -> Array:
    """Return True where ``input <= other``."""
    _ordered(input, other)
    return xp.less_equal(input, other)


@op("elementwise", widens=False, samples=_pairs(), operator=">", inplace=True)
def gt(xp: Namespace, input: Tensor, other: TensorLike) -> Array:
    """Return True where ``input > other``."""
    _ordered(input, other)
    return xp.greater(input, other)


@op("elementwise", widens=False, samples=_pairs(), operator=">=", inplace=True)
def ge(xp: Namespace, input: Tensor, other: TensorLike) -> Array:
    """Return True where ``input >= other``."""
    _ordered(input, other)
    return xp.greater_equal(input, other)


not_equal, less, less_equal, greater, greater_equal = ne, lt, le, gt, ge
for _name, _comparison in (
    ("not_equal", ne), ("less", lt), ("less_equal", le), ("greater", gt), ("greater_equal", ge),
):  # fmt: skip
    as_method(_comparison, _name)
    as_method(in_place(_comparison, f"{_name}_"))


@op(
    widens=False,
    samples=[
        case(given([1.0, 2.0, float("inf")]), given([1.0, 2.1, float("inf")]), rtol=0.01),
        case(_SPECIAL, _SPECIAL, equal_nan=True), case(_SPECIAL, _SPECIAL),
        case(integers(5, 4), integers(5, 4), atol=1.0), case(booleans(4), booleans(4)),
    ],
)  # fmt: skip
def isclose(
    xp: Namespace,
    input: Tensor,
    other: Tensor,
    rtol: float = 1e-05,
    atol: float = 1e-08,
    equal_nan: bool = False,
) -> Array:
    """Return True where ``|input - other| <= atol + rtol * |other|``, or where both are equal."""
    if input.dtype != other.dtype:
        raise DtypeError(f"{input.dtype} did not match {other.dtype}; convert one with .to(dtype)")
    for name, tolerance in (("rtol", rtol), ("atol", atol)):
        if not tolerance >= 0:
            raise ShapeError(f"{name} must be greater than or equal to zero, but got {tolerance}")
    close = input == other
    if input.dtype.kind in "biu":  # type: ignore[attr-defined]
        input, other = xp.astype(input, xp.float64), xp.astype(other, xp.float64)
    elif equal_nan:
        close = close | ((input != input) & (other != other))
    error = xp.abs(xp.subtract(input, other))
    return close | (xp.isfinite(error) & (error <= atol + xp.abs(xp.multiply(other, rtol))))


def allclose(
    input: Tensor,
    other: Tensor,
    rtol: float = 1e-05,
    atol: float = 1e-08,
    equal_nan: bool = False,
) -> bool:
    """Return True when ``isclose`` holds for all elements."""
    return bool(isclose(input, other, rtol, atol, equal_nan).array.all())


def equal(input: Tensor, other: Tensor) -> bool:
    """Return True when both tensors have the same shape and elements."""
    for name, operand in (("input", input), ("other", other)):
        if not isinstance(operand, Tensor):
            raise ArgumentTypeError(
                f"equal(): argument '{name}' must be Tensor, not {type(operand).__name__}"
            )
    a, b = input.array, other.array
    return a.shape == b.shape and bool((a == b).all())


as_method(allclose)
as_method(equal)


# ---------------------------------------------------------------------- kinds of numbers
@op("elementwise", widens=False, samples=[case(_SPECIAL), *unary()])
def isnan(xp: Namespace, input: Tensor) -> Array:
    """Return True where an element is not a number."""
    return xp.not_equal(input, input)


@op("elementwise", widens=False, samples=[case(_SPECIAL), *unary()])
def isinf(xp: Namespace, input: Tensor) -> Array:
    """Return True where an element is infinite."""
    return xp.isinf(input)


@op("elementwise", widens=False, samples=[case(_SPECIAL), *unary()])
def isfinite(xp: Namespace, input: Tensor) -> Array:
    """Return True where an element is neither infinite nor nan."""
    return xp.isfinite(input)


@op("elementwise", widens=False, samples=[case(_SPECIAL), *unary()])
def isposinf(xp: Namespace, input: Tensor) -> Array:
    """Return True where an element is plus infinity."""
    _ordered(input)
    return xp.isinf(input) & xp.greater(input, 0)


@op("elementwise", widens=False, samples=[case(_SPECIAL), *unary()])
def isneginf(xp: Namespace, input: Tensor) -> Array:
    """Return True where an element is minus infinity."""
    _ordered(input)
    return xp.isinf(input) & xp.less(input, 0)


@op("elementwise", widens=False, samples=[case(_SPECIAL), *unary()])
def isreal(xp: Namespace, input: Tensor) -> Array:
    """Return True where an element has no imaginary part."""
    if input.dtype.kind == "c":  # type: ignore[attr-defined]
        return xp.equal(xp.imag(input), 0)
    return xp.ones(input.shape, bool)


@op(
    "elementwise",
    widens=False,
    samples=[case(_SPECIAL), *unary(apart), case(integers(4, 5, low=-4))],
)
def signbit(xp: Namespace, input: Tensor) -> Array:
    """Return True where the sign is minus, that of -0.0 included."""
    _ordered(input)
    if input.dtype.kind in "biu":  # type: ignore[attr-defined]
        return xp.less(input, 0)
    return xp.signbit(input)


# ---------------------------------------------------------------------- logic
@op("elementwise", samples=_pairs(), promote=(), inplace=True)
def logical_and(xp: Namespace, input: Tensor, other: Tensor) -> Array:
    """Return True where both elements are nonzero."""
    return xp.logical_and(input, other)


@op("elementwise", samples=_pairs(), promote=(), inplace=True)
def logical_or(xp: Namespace, input: Tensor, other: Tensor) -> Array:
    """Return True where one element or both are nonzero."""
    return xp.logical_or(input, other)


@op("elementwise", samples=_pairs(), promote=(), inplace=True)
def logical_xor(xp: Namespace, input: Tensor, other: Tensor) -> Array:
    """Return True where exactly one element is nonzero."""
    return xp.logical_xor(input, other)


@op("elementwise", samples=[*unary(), case(booleans(4))], inplace=True)
def logical_not(xp: Namespace, input: Tensor) -> Array:
    """Return True where an element is zero."""
    return xp.logical_not(input)


# ---------------------------------------------------------------------- bits
def _bits(name: str, *arrays: Any, kinds: str = "biu") -> None:
    for array in arrays:
        if array.dtype.kind not in kinds:
            raise DtypeNotImplemented(
                f'"{name}" not implemented for {array.dtype}; it takes integer and bool tensors'
            )


_BIT_PAIRS = [
    case(_whole(3, 4), _whole(4)),
    case(booleans(4), booleans(4)),
    case(_whole(), _whole(2)),
]


@op("elementwise", samples=_BIT_PAIRS, operator="&", inplace=True)
def bitwise_and(xp: Namespace, input: TensorLike, other: TensorLike) -> Array:
    """Return the bits that are set in both; logical *and* of bools."""
    _bits("bitwise_and", input, other)
    return xp.bitwise_and(input, other)


@op("elementwise", samples=_BIT_PAIRS, operator="|", inplace=True)
def bitwise_or(xp: Namespace, input: TensorLike, other: TensorLike) -> Array:
    """Return the bits that are set in one or both; logical *or* of bools."""
    _bits("bitwise_or", input, other)
    return xp.bitwise_or(input, other)


@op("elementwise", samples=_BIT_PAIRS, operator="^", inplace=True)
def bitwise_xor(xp: Namespace, input: TensorLike, other: TensorLike) -> Array:
    """Return the bits that are set in exactly one; logical *xor* of bools."""
    _bits("bitwise_xor", input, other)
    return xp.bitwise_xor(input, other)


@op("elementwise", samples=[case(_whole(3, 4)), case(booleans(4))], inplace=True)
def bitwise_not(xp: Namespace, input: Tensor) -> Array:
    """Return all bits inverted; logical *not* of bools."""
    _bits("bitwise_not", input)
    return xp.invert(input)


def _invert(self: Tensor) -> Tensor:
    """Return ``~self``."""
    if self.array.dtype.kind not in "biu":
        raise ArgumentTypeError(
            f"invert({self._brief()}): ~ is only implemented on integer and Boolean-type tensors; "
            "use -x or logical_not(x)"
        )
    return bitwise_not(self)


as_method(_invert, "__invert__")


@op("elementwise", samples=[_BIT_PAIRS[0], _BIT_PAIRS[2]], operator="<<", inplace=True)
def bitwise_left_shift(xp: Namespace, input: TensorLike, other: TensorLike) -> Array:
    """Return ``input`` with its bits moved up by ``other`` places."""
    _bits("lshift", input, other, kinds="iu")
    return xp.left_shift(input, other)


@op("elementwise", samples=[_BIT_PAIRS[0], _BIT_PAIRS[2]], operator=">>", inplace=True)
def bitwise_right_shift(xp: Namespace, input: TensorLike, other: TensorLike) -> Array:
    """Return ``input`` with its bits moved down by ``other`` places; the sign stays."""
    _bits("rshift", input, other, kinds="iu")
    return xp.right_shift(input, other)
