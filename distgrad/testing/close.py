"""``assert_close``: two results are equal within what their dtype allows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy

from distgrad.autograd.declare import cast
from distgrad.backend.dtype import promote_types
from distgrad.errors import ArgumentError, ArgumentTypeError
from distgrad.ops.create import as_tensor
from distgrad.tensor import Tensor

_TOLERANCES = {
    "float16": (1e-3, 1e-5), "bfloat16": (1.6e-2, 1e-5), "float32": (1.3e-6, 1e-5),
    "float64": (1e-7, 1e-7), "complex64": (1.3e-6, 1e-5), "complex128": (1e-7, 1e-7),
}  # fmt: skip

Message = str | Callable[[str], str] | None


def assert_close(
    actual: Any,
    expected: Any,
    *,
    allow_subclasses: bool = True,
    rtol: float | None = None,
    atol: float | None = None,
    equal_nan: bool = False,
    check_device: bool = True,
    check_dtype: bool = True,
    check_layout: bool = True,
    check_stride: bool = False,
    msg: Message = None,
) -> None:
    """Return if ``|actual - expected| <= atol + rtol * |expected|`` for every element.

    Args:
        actual, expected: tensors, numbers, arrays, or nested sequences and mappings of them.
        allow_subclasses: whether types may be subclasses of each other.
        rtol, atol: both or none; by default those of the wider dtype's kind, 1.3e-6 and 1e-5 for
            float32, none for integers.
        equal_nan: whether NaN equals NaN.
        check_device, check_dtype, check_layout, check_stride: what must be the same too.
        msg: replaces the message, or makes one of it.

    Raises:
        AssertionError: they are not close.

    Example:
        >>> import distgrad as dg
        >>> assert_close([dg.ones(2) / 3, 2.0], [dg.tensor([0.33333334, 0.33333334]), 2.0])
    """
    if (rtol is None) != (atol is None):
        raise ArgumentError("assert_close(): rtol and atol must both be given, or none of them")
    checks = {"dtype": check_dtype, "device": check_device, "stride": check_stride}
    try:
        _compare(actual, expected, "", rtol, atol, equal_nan, checks)
    except AssertionError as error:
        text = str(error)
        told = msg(text) if callable(msg) else text if msg is None else msg
        raise AssertionError(told) from None


def _compare(actual: Any, expected: Any, place: str, *rest: Any) -> None:
    if isinstance(actual, Mapping) and isinstance(expected, Mapping):
        if set(actual) != set(expected):
            _fail(f"The keys of the mappings do not match: {set(actual) ^ set(expected)}", place)
        for key in actual:
            _compare(actual[key], expected[key], f"{place}[{key!r}]", *rest)
    elif _is_nest(actual) and _is_nest(expected):
        if len(actual) != len(expected):
            _fail(
                f"The length of the sequences do not match: {len(actual)} != {len(expected)}", place
            )
        for index, pair in enumerate(zip(actual, expected, strict=True)):
            _compare(*pair, f"{place}[{index}]", *rest)
    elif actual is None or expected is None or isinstance(actual, str):
        if actual != expected:
            _fail(f"{actual!r} is not {expected!r}", place)
    else:
        _compare_arrays(_tensor(actual), _tensor(expected), place, *rest)


def _is_nest(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, float | complex | int | numpy.ndarray | numpy.generic):
        return as_tensor(value)
    raise ArgumentTypeError(
        "assert_close(): No comparison pair was able to handle inputs of type "
        f"{type(value).__name__}"
    )


def _compare_arrays(
    actual: Tensor,
    expected: Tensor,
    place: str,
    rtol: float | None,
    atol: float | None,
    equal_nan: bool,
    checks: dict[str, bool],
) -> None:
    if actual.shape != expected.shape:
        _fail(
            f"The values for attribute 'shape' do not match: {actual.shape} != {expected.shape}.",
            place,
        )
    for name in (name for name, on in checks.items() if on):
        a, b = getattr(actual, name), getattr(expected, name)
        a, b = (a(), b()) if callable(a) else (a, b)
        if a != b:
            _fail(f"The values for attribute {name!r} do not match: {a} != {b}.", place)
    if rtol is None or atol is None:
        rtol, atol = _tolerance(actual, expected)
    kind = promote_types(actual.dtype, expected.dtype).numpy
    x, y = cast(actual, kind).numpy(force=True), cast(expected, kind).numpy(force=True)
    if kind.itemsize == 2:
        x, y = x.astype("float32"), y.astype("float32")
    close = numpy.isclose(x, y, rtol, atol, equal_nan) if x.dtype.kind in "fc" else x == y
    if not rtol and not atol:
        close = (x == y) | ((x != x) & (y != y) & equal_nan)
    if not close.all():
        _fail(_mismatch(x, y, close, rtol, atol), place)


def _tolerance(*tensors: Tensor) -> tuple[float, float]:
    pairs = [_TOLERANCES.get(t.dtype.name, (0.0, 0.0)) for t in tensors]
    return max(p[0] for p in pairs), max(p[1] for p in pairs)


def _mismatch(x: Any, y: Any, close: Any, rtol: float, atol: float) -> str:
    wrong = int((~close).sum())
    with numpy.errstate(all="ignore"):
        apart = numpy.where(close, 0, numpy.abs(numpy.subtract(x, y, dtype=_wide(x))))
        relative = apart / numpy.abs(y)
    lines = [f"Tensor-likes are not {'close' if rtol or atol else 'equal'}!", ""]
    lines.append(f"Mismatched elements: {wrong} / {x.size} ({100 * wrong / x.size:.1f}%)")
    for title, values, bound in (
        ("absolute", apart, f"up to {atol} allowed"),
        ("relative", relative, f"up to {rtol} allowed"),
    ):
        at = tuple(int(i) for i in numpy.unravel_index(numpy.nanargmax(values), values.shape))
        lines.append(f"Greatest {title} difference: {values[at]} at index {at} ({bound})")
    return "\n".join(lines)


def _wide(x: Any) -> Any:
    return numpy.float64 if x.dtype.kind in "biu" else x.dtype


def _fail(text: str, place: str) -> NoReturn:
    raise AssertionError(text + (f"\n\nThe failure occurred for item {place}" if place else ""))
