"""Complex numbers: parts, angles, conjugates."""

from __future__ import annotations

import math
from typing import Any

from distgrad.autograd.declare import as_method, op, recover
from distgrad.autograd.inplace import in_place
from distgrad.autograd.outputs import takes_out
from distgrad.autograd.samples import apart, case, integers, unary
from distgrad.errors import ArgumentTypeError, DtypeError, ShapeError
from distgrad.ops.checks import refuse_kinds
from distgrad.ops.elementwise import cos, is_complex, mul, sin
from distgrad.ops.index import select
from distgrad.tensor import Tensor
from distgrad.typing import Array, Namespace

__all__ = [
    "angle",
    "complex",
    "conj",
    "conj_physical",
    "imag",
    "polar",
    "real",
    "view_as_complex",
    "view_as_real",
]


@op(
    samples=[],  # a complex output is beyond the checker
    method=False,
    widens=False,
    d_real=lambda F, g: F.real(g),
    d_imag=lambda F, g: -F.imag(g),
    jvp=lambda F, t_real, t_imag: F.complex(t_real, t_imag),
)
def complex(xp: Namespace, real: Tensor, imag: Tensor) -> Array:
    """Return ``real + 1j * imag``; both float32 or both float64."""
    if real.dtype != imag.dtype or real.dtype.kind != "f":  # type: ignore[attr-defined]
        raise DtypeError(
            f"Expected object of scalar type {real.dtype} but got scalar type {imag.dtype} for "
            "second argument; both must be the same floating point type"
        )
    kind = xp.result_type(real.dtype, xp.complex64)
    out = xp.empty(xp.broadcast_shapes(real.shape, imag.shape), kind)
    out.real, out.imag = real, imag
    return out


@takes_out
def polar(abs: Tensor, angle: Tensor) -> Tensor:
    """Return ``abs * exp(1j * angle)``; both float32 or both float64."""
    for name, part in (("abs", abs), ("angle", angle)):
        if not isinstance(part, Tensor):
            raise ArgumentTypeError(
                f"polar(): argument '{name}' must be Tensor, not {type(part).__name__}"
            )
    refuse_kinds("polar", "n", abs, angle)
    if abs.array.dtype != angle.array.dtype or abs.array.dtype.kind != "f":
        error = DtypeError("Expected both inputs to be float32 or both float64 tensors")
        recover("polar", error, {"abs": abs, "angle": angle}, {})
    return complex(mul(abs, cos(angle)), mul(abs, sin(angle)))


@op("linear", samples=unary(), view=True, method=False,
    d_input=lambda F, g, input: F.complex(g, F.zero(g)) if is_complex(input) else g)  # fmt: skip
def real(xp: Namespace, input: Tensor) -> Array:
    """Return the real parts, on the same memory."""
    array: Array = input
    return xp.real(array) if is_complex(array) else array[...]


@op("linear", samples=[], view=True, method=False,
    d_input=lambda F, g: F.complex(F.zero(g), -g))  # fmt: skip
def imag(xp: Namespace, input: Tensor) -> Array:
    """Return the imaginary parts of a complex tensor, on the same memory."""
    if not is_complex(input):
        raise DtypeError("imag is not implemented for tensors with non-complex dtypes.")
    return xp.imag(input)


@op("linear", samples=[], view=True, method=False,
    d_input=lambda F, g: F.complex(F.select(g, -1, 0), -F.select(g, -1, 1)))  # fmt: skip
def view_as_real(xp: Namespace, input: Tensor) -> Array:
    """Return real and imaginary parts as a last dimension of 2, on the same memory."""
    array: Array = input
    if not is_complex(array):
        raise ShapeError("view_as_real is only supported for complex tensors")
    shape, strides = (*array.shape, 2), (*array.strides, array.itemsize // 2)
    return xp.restrided(xp.real(array), shape, strides)


@op("linear", samples=[], view=True, method=False, d_input=lambda F, g: F.view_as_real(F.conj(g)))
def view_as_complex(xp: Namespace, input: Tensor) -> Array:
    """Return the complex numbers of which the last dimension holds both parts, on the same memory.

    Shape:
        input: ``(*, 2)``, float32 or float64, with both parts side by side in memory.
    """
    array: Array = input
    if array.dtype.kind != "f" or array.shape[-1:] != (2,):
        raise ShapeError("view_as_complex needs floats in a tensor with a last dimension of 2")
    whole = 2 * array.itemsize
    if array.strides[-1] != array.itemsize or any(step % whole for step in array.strides[:-1]):
        raise ShapeError(
            "Tensor must have a last dimension with stride 1 and even strides before it; use "
            ".contiguous()"
        )
    return array.view(xp.result_type(array.dtype, xp.complex64))[..., 0]


@op("linear", widens=False, samples=unary(), method=False, d_input=lambda F, g: F.conj(g))
def conj(xp: Namespace, input: Tensor) -> Array:
    """Return the complex conjugates."""
    return xp.conj(input)


_conj_op = conj


def real(input: Tensor) -> Tensor:  # type: ignore[no-redef]  # noqa: F811
    """Return the real parts, on the same memory; of a real tensor itself."""
    return select(view_as_real(input), -1, 0) if input.array.dtype.kind == "c" else input


def conj(input: Tensor) -> Tensor:  # type: ignore[no-redef]
    """Return the complex conjugates; of a real tensor itself."""
    return _conj_op(input) if input.array.dtype.kind == "c" else input


@op("elementwise", samples=[*unary(apart), case(integers(5, 3, low=-5))], floats=True,
    jvp=lambda F, t_input, input: _turn(F, t_input, input),
    d_input=lambda F, g, input: _d_angle(F, g, input))  # fmt: skip
def angle(xp: Namespace, input: Tensor) -> Array:
    """Return the angle of complex numbers; of real ones 0 or π by their sign."""
    if is_complex(input):
        return xp.angle(input)
    half_turn = xp.where(
        xp.less(input, 0), xp.full((), math.pi, input.dtype), xp.zeros((), input.dtype)
    )
    return xp.where(xp.isnan(input), input, half_turn)


def _d_angle(F: Any, g: Any, input: Any) -> Any:
    if not is_complex(input):
        return F.zero(g)
    across = _across(F, g, input)
    return F.complex(-across * F.imag(input), -across * F.real(input))


def _turn(F: Any, t: Any, input: Any) -> Any:
    """Return the change of the angle when ``t`` is added to ``input``."""
    if not is_complex(input):
        return F.zero(t)
    return _across(F, F.imag(t * F.conj(input)), input)


def _across(F: Any, x: Any, input: Any) -> Any:
    """Return ``x / |input|²``, and 0 where ``input`` is 0."""
    size = F.abs(input)
    return F.where(size == 0, 0.0, x / F.where(size == 0, 1.0, size * size))


@takes_out
def conj_physical(input: Tensor) -> Tensor:
    """Return the complex conjugates; of a real tensor itself."""
    return conj(input)


as_method(conj)
as_method(conj_physical)
as_method(in_place(conj_physical, "conj_physical_"))
Tensor.real = property(real)  # type: ignore[method-assign, assignment]
Tensor.imag = property(imag)  # type: ignore[method-assign, assignment]
