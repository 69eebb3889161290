"""Discrete Fourier transforms: the namespace ``distgrad.fft``.

Three operations carry all transforms, as in PyTorch: complex to complex, real to complex, and
Hermitian complex to real.  The engine passes gradients of complex numbers as ``dL/dz`` (see Note
[Complex gradients] in the engine), and a transform is a symmetric matrix, so each is its own rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distgrad.autograd.declare import convert, op, recover
from distgrad.autograd.numpy_names import takes_names
from distgrad.autograd.outputs import takes_out
from distgrad.backend.dtype import as_numpy, default_float
from distgrad.errors import ArgumentError, DistgradError, DtypeError, ShapeError
from distgrad.ops.arrange import constant_pad_nd, roll
from distgrad.ops.create import factory
from distgrad.ops.ranges import arange
from distgrad.ops.shape import narrow, wrap_dim, wrap_dims
from distgrad.tensor import Tensor, wrap
from distgrad.typing import Array, Namespace, Shape

__all__ = [
    "fft", "fft2", "fftfreq", "fftn", "fftshift", "hfft", "hfft2", "hfftn", "ifft", "ifft2",
    "ifftn", "ifftshift", "ihfft", "ihfft2", "ihfftn", "irfft", "irfft2", "irfftn", "rfft",
    "rfft2", "rfftfreq", "rfftn",
]  # fmt: skip

_OTHER = {"backward": "forward", "forward": "backward", "ortho": "ortho"}
_TWO = (-2, -1)

Sizes = int | Sequence[int] | None


# ---------------------------------------------------------------------- the three operations
# Their operands or outputs are complex, which the checker does not draw: see tests/test_ops_fft.py.
@op(
    "linear", samples=[], method=False, node="FftC2CBackward0",
    d_input=lambda F, g, dim, norm, forward: F.fft_c2c(g, dim, norm, forward),
)  # fmt: skip
def fft_c2c(xp: Namespace, input: Tensor, dim: Shape, norm: str, forward: bool) -> Array:
    """Return the transform of complex numbers over ``dim``, with exp(-i…) if ``forward``."""
    transform = xp.fft.fftn if forward else xp.fft.ifftn
    return transform(input, axes=dim, norm=norm)


def _d_r2c(
    F: Any, g: Any, input_shape: Shape, dim: Shape, norm: str, forward: bool, half: bool
) -> Any:
    if half:
        missing = input_shape[dim[-1]] - g.shape[dim[-1]]
        pads = [0] * (2 * (g.ndim - 1 - dim[-1])) + [0, missing]
        g = F.constant_pad_nd(g, pads)
    return F.real(F.fft_c2c(g, dim, norm, forward))


@op("linear", samples=[], method=False, node="FftR2CBackward0", d_input=_d_r2c)
def fft_r2c(
    xp: Namespace, input: Tensor, dim: Shape, norm: str, forward: bool, half: bool
) -> Array:
    """Return the transform of real numbers; one half of the last dimension if ``half``."""
    if not half:
        return (xp.fft.fftn if forward else xp.fft.ifftn)(input, axes=dim, norm=norm)
    if forward:
        return xp.fft.rfftn(input, axes=dim, norm=norm)
    return xp.conj(xp.fft.rfftn(input, axes=dim, norm=_OTHER[norm]))


def _d_c2r(F: Any, g: Any, dim: Shape, norm: str, forward: bool, n: int) -> Any:
    """The half that is not stored has the same numbers: all but the ends count twice."""
    found = F.fft_r2c(g, dim, norm, forward, True)
    inner = (n - 1) // 2
    if not inner:
        return found
    last = dim[-1]
    parts = [F.narrow(found, last, 0, 1), F.narrow(found, last, 1, inner) * 2]
    if n % 2 == 0:
        parts.append(F.narrow(found, last, inner + 1, 1))
    return F.cat(parts, last)


@op("linear", samples=[], method=False, node="FftC2RBackward0", d_input=_d_c2r)
def fft_c2r(xp: Namespace, input: Tensor, dim: Shape, norm: str, forward: bool, n: int) -> Array:
    """Return the ``n`` real numbers whose transform is Hermitian, given by one half."""
    x: Array = input
    if len(dim) > 1:
        x = (xp.fft.fftn if forward else xp.fft.ifftn)(x, axes=dim[:-1], norm=norm)
    if forward:
        return xp.fft.irfft(xp.conj(x), n, axis=dim[-1], norm=_OTHER[norm])
    return xp.fft.irfft(x, n, axis=dim[-1], norm=norm)


# ---------------------------------------------------------------------- reading arguments
def _norm(norm: str | None) -> str:
    if norm is not None and norm not in _OTHER:
        raise ShapeError(f'Invalid normalization mode: "{norm}"; use backward, ortho or forward')
    return norm or "backward"


def _plan(input: Tensor, s: Sizes, dim: Sizes) -> tuple[tuple[int, ...], list[int]]:
    """Return the dimensions and the lengths of the transform along them."""
    shape = input.array.shape
    s, dim = ((n,) if isinstance(n, int) else n for n in (s, dim))
    if dim is None:
        count = len(shape) if s is None else len(s)
        if count > len(shape):
            raise ShapeError(
                f"Got shape with {count} values but input tensor only has {len(shape)} dimensions."
            )
        dim = range(len(shape) - count, len(shape))
    dims = wrap_dims(tuple(dim), len(shape))
    if s is not None and len(s) != len(dims):
        raise ShapeError("When given, dim and shape arguments must have the same length")
    sizes = [shape[d] if n == -1 else n for d, n in zip(dims, s or (-1,) * len(dims), strict=True)]
    return dims, sizes


def _check_sizes(sizes: Sequence[int]) -> None:
    if any(n < 1 for n in sizes):
        raise ShapeError(f"Invalid number of data points ({min(sizes)}) specified")


def _resized(input: Tensor, dims: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """Return ``input`` cut or filled with zeros at the ends of the dimensions."""
    pads = [0] * (2 * input.array.ndim)
    for d, n in zip(dims, sizes, strict=True):
        have = input.array.shape[d]
        if n < have:
            input = narrow(input, d, 0, n)
        pads[2 * (input.array.ndim - 1 - d) + 1] = max(n - have, 0)
    return constant_pad_nd(input, pads) if any(pads) else input


def _floating(input: Tensor) -> Tensor:
    kind = input.array.dtype
    if kind.itemsize == 2 and kind.kind not in "iu":
        raise DtypeError(f"Unsupported dtype {kind}; convert with .float()")
    if kind.kind not in "biu":
        return input
    out: Tensor = convert(input, default_float())
    return out


def _complex_type(input: Tensor) -> Any:
    return as_numpy("complex128" if input.array.dtype.itemsize == 8 else "complex64")


def _complex(name: str, input: Tensor, s: Any, dim: Any, norm: str | None, forward: bool) -> Tensor:
    """Return a transform whose output is complex and whole."""
    try:
        input, mode = _floating(input), _norm(norm)
        dims, sizes = _plan(input, s, dim)
        _check_sizes(sizes)
    except DistgradError as error:
        recover(name, error, {"input": input}, {"s": s, "dim": dim, "norm": norm})
    if not dims:
        return convert(input, _complex_type(input)) if _is_real(input) else input
    input = _resized(input, dims, sizes)
    if _is_real(input):
        return fft_r2c(input, dims, mode, forward, False)
    return fft_c2c(input, dims, mode, forward)


def _is_real(input: Tensor) -> bool:
    return bool(input.array.dtype.kind != "c")


def _to_half(name: str, input: Tensor, s: Any, dim: Any, norm: str | None, forward: bool) -> Tensor:
    """Return one half of the Hermitian transform of real numbers."""
    try:
        if not _is_real(input):
            raise ShapeError(
                f"{name} expects a real input tensor, but got {input.array.dtype}; use .real"
            )
        input, mode = _floating(input), _norm(norm)
        dims, sizes = _plan(input, s, dim)
        if not dims:
            raise ShapeError(f"{name} must transform at least one axis")
        _check_sizes(sizes)
    except DistgradError as error:
        recover(name, error, {"input": input}, {"s": s, "dim": dim, "norm": norm})
    return fft_r2c(_resized(input, dims, sizes), dims, mode, forward, True)


def _from_half(
    name: str, input: Tensor, s: Any, dim: Any, norm: str | None, forward: bool
) -> Tensor:
    """Return the real transform of Hermitian numbers of which one half is given."""
    try:
        input, mode = _floating(input), _norm(norm)
        dims, sizes = _plan(input, s, dim)
        if not dims:
            raise ShapeError(f"{name} must transform at least one axis")
        last = s if s is None or isinstance(s, int) else s[-1]
        n = 2 * (sizes[-1] - 1) if last in (None, -1) else last
        _check_sizes([*sizes, n])
    except DistgradError as error:
        recover(name, error, {"input": input}, {"s": s, "dim": dim, "norm": norm})
    input = _resized(input, dims, [*sizes[:-1], n // 2 + 1])
    if _is_real(input):
        input = convert(input, _complex_type(input))
    return fft_c2r(input, dims, mode, forward, n)


def _one(n: int | None) -> tuple[int, ...] | None:
    return None if n is None else (n,)


# ---------------------------------------------------------------------- one dimension
@takes_out
def fft(input: Tensor, n: int | None = None, dim: int = -1, norm: str | None = None) -> Tensor:
    """Return the transform Σ x_j exp(-2πijk/n) along ``dim``.

    Args:
        n: cut the dimension, or fill it with zeros, to this length first.
        norm: "backward" (no factor; the inverse has 1/n), "ortho" (1/√n) or "forward" (1/n).

    Example:
        >>> import distgrad as dg
        >>> dg.fft.fft(dg.tensor([1.0, 2.0, 3.0, 4.0])).real
        tensor([10., -2., -2., -2.])
    """
    return _complex("fft", input, _one(n), (dim,), norm, True)


@takes_out
def ifft(input: Tensor, n: int | None = None, dim: int = -1, norm: str | None = None) -> Tensor:
    """Return the inverse of ``fft`` along ``dim``."""
    return _complex("ifft", input, _one(n), (dim,), norm, False)


@takes_out
def rfft(input: Tensor, n: int | None = None, dim: int = -1, norm: str | None = None) -> Tensor:
    """Return the first n//2 + 1 elements of ``fft`` of real numbers; the others mirror them."""
    return _to_half("rfft", input, _one(n), (dim,), norm, True)


@takes_out
def irfft(input: Tensor, n: int | None = None, dim: int = -1, norm: str | None = None) -> Tensor:
    """Return the inverse of ``rfft``: ``n`` real numbers (by default an even number)."""
    return _from_half("irfft", input, _one(n), (dim,), norm, False)


@takes_out
def hfft(input: Tensor, n: int | None = None, dim: int = -1, norm: str | None = None) -> Tensor:
    """Return the real ``fft`` of a Hermitian signal of which one half is given."""
    return _from_half("hfft", input, _one(n), (dim,), norm, True)


@takes_out
def ihfft(input: Tensor, n: int | None = None, dim: int = -1, norm: str | None = None) -> Tensor:
    """Return the inverse of ``hfft``: one half of a Hermitian signal."""
    return _to_half("ihfft", input, _one(n), (dim,), norm, False)


# ---------------------------------------------------------------------- several dimensions


@takes_out
def fftn(input: Tensor, s: Sizes = None, dim: Sizes = None, norm: str | None = None) -> Tensor:
    """Return ``fft`` along each of the dimensions ``dim`` (by default all, or the last len(s))."""
    return _complex("fftn", input, s, dim, norm, True)


@takes_out
def ifftn(input: Tensor, s: Sizes = None, dim: Sizes = None, norm: str | None = None) -> Tensor:
    """Return the inverse of ``fftn``."""
    return _complex("ifftn", input, s, dim, norm, False)


@takes_out
def rfftn(input: Tensor, s: Sizes = None, dim: Sizes = None, norm: str | None = None) -> Tensor:
    """Return ``fftn`` of real numbers, of the last dimension one half."""
    return _to_half("rfftn", input, s, dim, norm, True)


@takes_out
def irfftn(input: Tensor, s: Sizes = None, dim: Sizes = None, norm: str | None = None) -> Tensor:
    """Return the inverse of ``rfftn``."""
    return _from_half("irfftn", input, s, dim, norm, False)


@takes_out
def hfftn(input: Tensor, s: Sizes = None, dim: Sizes = None, norm: str | None = None) -> Tensor:
    """Return the real ``fftn`` of a Hermitian signal, of whose last dimension one half is given."""
    return _from_half("hfftn", input, s, dim, norm, True)


@takes_out
def ihfftn(input: Tensor, s: Sizes = None, dim: Sizes = None, norm: str | None = None) -> Tensor:
    """Return the inverse of ``hfftn``."""
    return _to_half("ihfftn", input, s, dim, norm, False)


@takes_out
def fft2(input: Tensor, s: Sizes = None, dim: Sizes = _TWO, norm: str | None = None) -> Tensor:
    """Return ``fftn`` along two dimensions."""
    return _complex("fft2", input, s, dim, norm, True)


@takes_out
def ifft2(input: Tensor, s: Sizes = None, dim: Sizes = _TWO, norm: str | None = None) -> Tensor:
    """Return the inverse of ``fft2``."""
    return _complex("ifft2", input, s, dim, norm, False)


@takes_out
def rfft2(input: Tensor, s: Sizes = None, dim: Sizes = _TWO, norm: str | None = None) -> Tensor:
    """Return ``rfftn`` along two dimensions."""
    return _to_half("rfft2", input, s, dim, norm, True)


@takes_out
def irfft2(input: Tensor, s: Sizes = None, dim: Sizes = _TWO, norm: str | None = None) -> Tensor:
    """Return the inverse of ``rfft2``."""
    return _from_half("irfft2", input, s, dim, norm, False)


@takes_out
def hfft2(input: Tensor, s: Sizes = None, dim: Sizes = _TWO, norm: str | None = None) -> Tensor:
    """Return ``hfftn`` along two dimensions."""
    return _from_half("hfft2", input, s, dim, norm, True)


@takes_out
def ihfft2(input: Tensor, s: Sizes = None, dim: Sizes = _TWO, norm: str | None = None) -> Tensor:
    """Return the inverse of ``hfft2``."""
    return _to_half("ihfft2", input, s, dim, norm, False)


# ---------------------------------------------------------------------- frequencies and order
@factory
def fftfreq(
    n: int, d: float = 1.0, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """Return the frequencies of the elements of ``fft`` for samples ``d`` apart.

    Example:
        >>> import distgrad as dg
        >>> dg.fft.fftfreq(4)
        tensor([ 0.0000,  0.2500, -0.5000, -0.2500])
    """
    numbers = _frequencies("fftfreq", n, d, n, dtype, device)
    numbers[(n + 1) // 2 :] -= n
    return _scaled(numbers, n, d, requires_grad)


@factory
def rfftfreq(
    n: int, d: float = 1.0, *, dtype: Any = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """Return the frequencies of the elements of ``rfft`` for samples ``d`` apart."""
    numbers = _frequencies("rfftfreq", n, d, n // 2 + 1, dtype, device)
    return _scaled(numbers, n, d, requires_grad)


def _frequencies(name: str, n: int, d: float, count: int, dtype: Any, device: Any) -> Any:
    if n < 1 or not d:
        raise ArgumentError(f"{name}(n={n}, d={d}): n must be positive, and d not 0")
    kind = default_float() if dtype is None else dtype
    return arange(count, dtype=kind, device=device).array


def _scaled(numbers: Any, n: int, d: float, requires_grad: bool) -> Tensor:
    numbers *= numbers.dtype.type(1.0 / (n * d))
    return wrap(numbers).requires_grad_(requires_grad)


@takes_names
def fftshift(input: Tensor, dim: int | Sequence[int] | None = None) -> Tensor:
    """Return the elements in the order of their frequencies, 0 in the middle."""
    return _shift("fftshift", input, dim, lambda n: n // 2)


@takes_names
def ifftshift(input: Tensor, dim: int | Sequence[int] | None = None) -> Tensor:
    """Return the inverse of ``fftshift``."""
    return _shift("ifftshift", input, dim, lambda n: (n + 1) // 2)


def _shift(name: str, input: Tensor, dim: Any, half: Any) -> Tensor:
    shape = input.array.shape
    try:
        if dim is None:
            dims: tuple[int, ...] = tuple(range(len(shape)))
        else:
            chosen = (dim,) if isinstance(dim, int) else tuple(dim)
            dims = tuple(wrap_dim(d, len(shape)) for d in chosen)
    except DistgradError as error:
        recover(name, error, {"input": input}, {"dim": dim})
    return roll(input, tuple(half(shape[d]) for d in dims), dims) if dims else input
