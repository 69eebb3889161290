"""Complex numbers: parts, angles, conjugates."""

from __future__ import annotations

import math
from typing import Any

from distgrad.autograd.declare import as_method, op
from distgrad.autograd.samples import apart, case, integers, unary
from distgrad.errors import DtypeError
from distgrad.ops.elementwise import cos, mul, sin
from distgrad.tensor import Tensor
from distgrad.typing import Array, Namespace

__all__ = ["angle", "complex", "conj", "imag", "polar", "real"]


@op(
    samples=[],  # a complex output is beyond the checker
    method=False,
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


def polar(abs: Tensor, angle: Tensor) -> Tensor:
    """Return ``abs * exp(1j * angle)``."""
    return complex(mul(abs, cos(angle)), mul(abs, sin(angle)))


def _is_complex(x: Any) -> bool:
    return bool((x.array if isinstance(x, Tensor) else x).dtype.kind == "c")


@op("linear", samples=unary(), view=True, method=False,
    d_input=lambda F, g, input: F.complex(g, F.zero(g)) if _is_complex(input) else g)  # fmt: skip
def real(xp: Namespace, input: Tensor) -> Array:
    """Return the real parts, on the same memory."""
    array: Array = input
    return xp.real(array) if _is_complex(array) else array[...]


@op("linear", samples=[], view=True, method=False,
    d_input=lambda F, g: F.complex(F.zero(g), -g))  # fmt: skip
def imag(xp: Namespace, input: Tensor) -> Array:
    """Return the imaginary parts of a complex tensor, on the same memory."""
    if not _is_complex(input):
        raise DtypeError("imag is not implemented for tensors with non-complex dtypes.")
    return xp.imag(input)


@op("linear", samples=unary(), method=False, d_input=lambda F, g: F.conj(g))
def conj(xp: Namespace, input: Tensor) -> Array:
    """Return the complex conjugates."""
    return xp.conj(input)


_real_op, _conj_op = real, conj


def real(input: Tensor) -> Tensor:  # type: ignore[no-redef]
    """Return the real parts, on the same memory; of a real tensor itself."""
    return _real_op(input) if input.array.dtype.kind == "c" else input


def conj(input: Tensor) -> Tensor:  # type: ignore[no-redef]
    """Return the complex conjugates; of a real tensor itself."""
    return _conj_op(input) if input.array.dtype.kind == "c" else input


@op("elementwise", samples=[*unary(apart), case(integers(5, 3, low=-5))], floats=True,
    d_input=lambda F, g, input: _d_angle(F, g, input))  # fmt: skip
def angle(xp: Namespace, input: Tensor) -> Array:
    """Return the angle of complex numbers; of real ones 0 or π by their sign."""
    if _is_complex(input):
        return xp.angle(input)
    half_turn = xp.where(
        xp.less(input, 0), xp.full((), math.pi, input.dtype), xp.zeros((), input.dtype)
    )
    return xp.where(xp.isnan(input), input, half_turn)


def _d_angle(F: Any, g: Any, input: Any) -> Any:
    if not _is_complex(input):
        return F.zero(g)
    size = F.abs(input)
    g = F.where(size == 0, 0.0, g / (size * size))
    return F.complex(-g * F.imag(input), -g * F.real(input))


as_method(conj)
Tensor.real = property(real)  # type: ignore[method-assign, assignment]
Tensor.imag = property(imag)  # type: ignore[method-assign, assignment]
