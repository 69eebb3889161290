"""Short-time Fourier transforms and the windows that go with them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy

from distgrad.autograd.declare import as_method, recover
from distgrad.backend.dtype import as_numpy
from distgrad.errors import ArgumentTypeError, DistgradError, DtypeError, ShapeError
from distgrad.ops.arrange import constant_pad_nd, pad
from distgrad.ops.complex import view_as_real
from distgrad.ops.create import factory, finish, ones, placed
from distgrad.ops.elementwise import div, mul
from distgrad.ops.fft import fft_c2c, fft_c2r, fft_r2c
from distgrad.ops.reduce import amin
from distgrad.ops.shape import expand, narrow, squeeze, swapaxes, unsqueeze, windows_backward
from distgrad.ops.shape import windows_view as windows_of
from distgrad.tensor import Tensor

__all__ = [
    "bartlett_window", "blackman_window", "hamming_window", "hann_window", "istft",
    "kaiser_window", "stft",
]  # fmt: skip


# ---------------------------------------------------------------------- short-time transforms
def stft(
    input: Tensor,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Tensor | None = None,
    center: bool = True,
    pad_mode: str = "reflect",
    normalized: bool = False,
    onesided: bool | None = None,
    return_complex: bool | None = None,
    align_to_window: bool | None = None,
) -> Tensor:
    """Return the Fourier transforms of overlapping pieces of a signal.

    Shape:
        input: ``(L,)`` or ``(B, L)``; result: ``(B?, N, T)`` for N frequencies of T pieces, and a
        last dimension 2 (real, imaginary) unless ``return_complex``.

    Args:
        n_fft: length of a piece.
        hop_length: distance of pieces (n_fft // 4).
        win_length: length of ``window`` (n_fft), which stands in the middle of a piece.
        window: weights of the elements of a piece; None weighs them alike.
        center: pad the signal, so that piece t has its middle at t * hop_length.
        pad_mode: how, as in ``nn.functional.pad``.
        normalized: divide by √n_fft.
        onesided: only the first n_fft // 2 + 1 frequencies (default where all is real).
        return_complex: must be given for real signals and windows.
        align_to_window: without ``center``: pieces begin where their windows do.
    """
    hop = n_fft // 4 if hop_length is None else hop_length
    width = n_fft if win_length is None else win_length
    options = {
        "n_fft": n_fft, "hop_length": hop, "win_length": width, "onesided": onesided,
        "return_complex": return_complex,
    }  # fmt: skip
    x = input
    try:
        real = not _is_complex(input) and (window is None or not _is_complex(window))
        half = real if onesided is None else onesided
        _check_stft(input, real, half, return_complex, center, align_to_window)
        _warn_without(window)
        if x.array.ndim == 1:
            x = unsqueeze(x, 0)
        if x.array.ndim != 2:
            raise ShapeError(f"expected a 1D or 2D tensor, but got {input.array.ndim}D")
        if center or align_to_window:
            more = n_fft // 2 if center else (n_fft - width) // 2
            x = _padded(x, more, pad_mode if center else "constant")
        _check_pieces(n_fft, hop, width, x.array.shape[-1], window)
        pieces = _transformed(_weighted(windows_of(x, 1, n_fft, hop), window, n_fft, width),
                              half, "ortho" if normalized else "backward")  # fmt: skip
    except DistgradError as error:
        recover("stft", error, {"input": input, "window": window}, options)
    found = swapaxes(pieces, -1, -2)
    found = squeeze(found, 0) if input.array.ndim == 1 else found
    return view_as_real(found) if return_complex is False else found


def _is_complex(tensor: Tensor) -> bool:
    return bool(tensor.array.dtype.kind == "c")


def _check_stft(
    input: Tensor, real: bool, half: bool, return_complex: Any, center: bool, align: bool | None
) -> None:
    if real and return_complex is None:
        raise ShapeError(
            "stft requires the return_complex parameter be given for real inputs; pass "
            "return_complex=True (view_as_real() makes real numbers of the result)"
        )
    if input.array.dtype.kind not in "fc" or input.array.dtype.itemsize == 2:
        raise DtypeError("expected a tensor of floating point or complex values in 32 or 64 bits")
    if half and not real:
        raise ShapeError("Cannot have onesided output if window or input is complex")
    if align is not None and center:
        raise ShapeError("stft align_to_window should only be set when center = false")


def _padded(x: Tensor, more: int, mode: str) -> Tensor:
    return squeeze(pad(unsqueeze(x, 0), (more, more), mode), 0)


def _check_pieces(n_fft: int, hop: int, width: int, length: int, window: Tensor | None) -> None:
    if not 0 < n_fft <= length:
        raise ShapeError(f"expected 0 < n_fft <= {length}, but got n_fft={n_fft}")
    if hop <= 0:
        raise ShapeError(f"expected hop_length > 0, but got hop_length={hop}")
    if not 0 < width <= n_fft:
        raise ShapeError(f"expected 0 < win_length <= n_fft, but got win_length={width}")
    if window is not None and window.array.shape != (width,):
        raise ShapeError(
            f"expected a 1D window tensor of size equal to win_length={width}, but got window with "
            f"size {list(window.array.shape)}"
        )


def _warn_without(window: Tensor | None) -> None:
    if window is None:
        warnings.warn(
            "A window was not provided. A rectangular window will be applied, which is known to "
            "cause spectral leakage. Other windows such as distgrad.hann_window are recommended; "
            "to keep the rectangular one, pass window=distgrad.ones(n_fft).",
            stacklevel=3,
        )


def _full_window(window: Tensor | None, n_fft: int, width: int, like: Tensor) -> Tensor | None:
    """Return the weights of all elements of a piece; None where all are 1."""
    if width == n_fft:
        return window
    if window is None:
        window = _ones(width, like)
    left = (n_fft - width) // 2
    return constant_pad_nd(window, (left, n_fft - width - left))


def _ones(length: int, like: Tensor) -> Tensor:
    return ones(length, dtype=like.dtype.to_real(), device=like.device)


def _weighted(pieces: Tensor, window: Tensor | None, n_fft: int, width: int) -> Tensor:
    weights = _full_window(window, n_fft, width, pieces)
    return pieces if weights is None else mul(pieces, weights)


def _transformed(pieces: Tensor, half: bool, norm: str) -> Tensor:
    if _is_complex(pieces):
        return fft_c2c(pieces, (2,), norm, True)
    return fft_r2c(pieces, (2,), norm, True, half)


def istft(
    input: Tensor,
    n_fft: int,
    hop_length: int | None = None,
    win_length: int | None = None,
    window: Tensor | None = None,
    center: bool = True,
    normalized: bool = False,
    onesided: bool | None = None,
    length: int | None = None,
    return_complex: bool = False,
) -> Tensor:
    """Return the signal whose ``stft`` is nearest to ``input``.

    Shape:
        input: ``(N, T)`` or ``(B, N, T)``, complex; result: ``(L,)`` or ``(B, L)``.

    Args:
        n_fft, hop_length, win_length, window, center, normalized: as in ``stft``.
        onesided: ``input`` has n_fft // 2 + 1 frequencies (default unless it has n_fft).
        length: cut the signal, or fill it with zeros, to this length.
        return_complex: the signal is complex.

    Raises:
        ShapeError: somewhere all windows are zero, so that nothing is known of the signal.
    """
    hop = n_fft // 4 if hop_length is None else hop_length
    width = n_fft if win_length is None else win_length
    options = {
        "n_fft": n_fft, "hop_length": hop, "win_length": width, "center": center,
        "onesided": onesided, "length": length, "return_complex": return_complex,
    }  # fmt: skip
    try:
        _warn_without(window)
        half = _check_istft(input, n_fft, hop, width, window, onesided, return_complex)
        x = input if input.array.ndim == 3 else unsqueeze(input, 0)
        pieces = _signals(swapaxes(x, 1, 2), n_fft, half, return_complex, normalized)
        weights = _full_window(window, n_fft, width, pieces)
        signal = _overlapped(pieces, weights, hop, center, length)
    except DistgradError as error:
        recover("istft", error, {"input": input, "window": window}, options)
    missing = 0 if length is None else length - signal.array.shape[1]
    if missing > 0:
        warnings.warn(
            "The length of signal is shorter than the length parameter. Result is being padded "
            "with zeros in the tail. Please check your center and hop_length settings.",
            stacklevel=2,
        )
        signal = constant_pad_nd(signal, (0, missing))
    return signal if input.array.ndim == 3 else squeeze(signal, 0)


def _check_istft(
    input: Tensor, n_fft: int, hop: int, width: int, window: Tensor | None, onesided: bool | None,
    return_complex: bool,
) -> bool:  # fmt: skip
    """Return whether only one half of the frequencies is given."""
    shape = input.array.shape
    if not _is_complex(input):
        raise ShapeError(
            "istft requires a complex-valued input tensor matching the output from stft with "
            "return_complex=True."
        )
    if len(shape) not in (2, 3):
        raise ShapeError(f"expected a tensor with 2 or 3 dimensions, but got {len(shape)}")
    if not input.array.size:
        raise ShapeError("input tensor cannot be empty.")
    half = shape[-2] != n_fft if onesided is None else onesided
    wanted = n_fft // 2 + 1 if half else n_fft
    if shape[-2] != wanted:
        raise ShapeError(
            f"expected the frequency dimension of the input tensor to be {wanted} when "
            f"onesided={half}, but got {shape[-2]}"
        )
    if not 0 < hop <= width:
        raise ShapeError("expected 0 < hop_length <= win_length")
    if not 0 < width <= n_fft:
        raise ShapeError("expected 0 < win_length <= n_fft")
    if window is not None and window.array.shape != (width,):
        raise ShapeError("Invalid window shape. window has to be 1D and length of `win_length`")
    if return_complex and half:
        raise ShapeError("Cannot have onesided output if window or input is complex")
    if not return_complex and window is not None and _is_complex(window):
        raise ShapeError("Complex windows are incompatible with return_complex=False")
    return half


def _signals(x: Tensor, n_fft: int, half: bool, complex_: bool, normalized: bool) -> Tensor:
    """Return the pieces of the signal: the inverse transforms of (B, T, N) along N."""
    norm = "ortho" if normalized else "backward"
    if complex_:
        return fft_c2c(x, (2,), norm, False)
    if not half:
        x = narrow(x, 2, 0, n_fft // 2 + 1)
    return fft_c2r(x, (2,), norm, False, n_fft)


def _overlapped(
    pieces: Tensor, weights: Tensor | None, hop: int, center: bool, length: int | None
) -> Tensor:
    """Return the weighted mean of the pieces that overlap at each place that is wanted."""
    count, n_fft = pieces.array.shape[1:]
    size = n_fft + hop * (count - 1)
    if weights is None:
        weights = _ones(n_fft, pieces)
    batch = pieces.array.shape[0]
    total = windows_backward(mul(pieces, weights), (batch, size), 1, n_fft, hop)
    squares = expand(mul(weights, weights), (1, count, n_fft))
    envelope = windows_backward(squares, (1, size), 1, n_fft, hop)
    start = n_fft // 2 if center else 0
    end = size - start if length is None else start + length
    end = max(min(end, size), start)
    total, envelope = (narrow(t, 1, start, end - start) for t in (total, envelope))
    if end == start:
        raise ShapeError("the signal has no elements; give more pieces, or a longer length")
    if float(amin(envelope.detach().abs()).item()) <= 1e-11:
        raise ShapeError("window overlap add min: 0; somewhere all windows are zero")
    return div(total, envelope)


as_method(stft)
as_method(istft)


# ---------------------------------------------------------------------- windows
def _window(
    name: str,
    window_length: int,
    periodic: bool,
    formula: Callable[[Any], Any],
    dtype: Any,
    device: Any,
    requires_grad: bool,
) -> Tensor:
    """Return ``formula`` of angles that go from 0 to 2π (almost, if ``periodic``)."""
    if isinstance(window_length, bool) or not hasattr(window_length, "__index__"):
        raise ArgumentTypeError(
            f"{name}(): argument 'window_length' (position 1) must be int, not "
            f"{type(window_length).__name__}"
        )
    if window_length < 0:
        raise ShapeError(
            f"{name}({window_length}): {name} requires non-negative window_length, got "
            f"window_length={window_length}"
        )
    kind = as_numpy(dtype)
    if kind.kind not in "fV":
        raise DtypeError(f"{name}(dtype={kind}): {name} expects floating point dtypes, got {kind}")
    points = window_length if periodic else window_length - 1
    values = numpy.ones(window_length)
    if window_length > 1:
        values = formula(2 * numpy.pi * numpy.arange(window_length) / points)
    return finish(values.astype(kind), placed(device), requires_grad, name)


@factory
def hann_window(
    window_length: int, periodic: bool = True, *, dtype: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Return ``(1 - cos(2π k / N)) / 2``; N is the length, or one less unless ``periodic``.

    Example:
        >>> import distgrad as dg
        >>> dg.hann_window(4)
        tensor([0.0000, 0.5000, 1.0000, 0.5000])
    """

    def formula(x: Any) -> Any:
        return 0.5 - 0.5 * numpy.cos(x)

    return _window("hann_window", window_length, periodic, formula, dtype, device, requires_grad)


@factory
def hamming_window(
    window_length: int, periodic: bool = True, alpha: float = 0.54, beta: float = 0.46, *,
    dtype: Any = None, device: Any = None, requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Return ``alpha - beta cos(2π k / N)``; N is the length, or one less unless ``periodic``."""

    def formula(x: Any) -> Any:
        return alpha - beta * numpy.cos(x)

    return _window("hamming_window", window_length, periodic, formula, dtype, device,
                   requires_grad)  # fmt: skip


@factory
def blackman_window(
    window_length: int, periodic: bool = True, *, dtype: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Return ``0.42 - 0.5 cos(x) + 0.08 cos(2x)`` for ``x = 2π k / N``, as ``hann_window`` does."""

    def formula(x: Any) -> Any:
        return 0.42 - 0.5 * numpy.cos(x) + 0.08 * numpy.cos(2 * x)

    return _window("blackman_window", window_length, periodic, formula, dtype, device,
                   requires_grad)  # fmt: skip


@factory
def bartlett_window(
    window_length: int, periodic: bool = True, *, dtype: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Return a triangle that begins (and unless ``periodic`` ends) with 0."""

    def formula(x: Any) -> Any:
        return 1 - numpy.abs(x / numpy.pi - 1)

    return _window("bartlett_window", window_length, periodic, formula, dtype, device,
                   requires_grad)  # fmt: skip


@factory
def kaiser_window(
    window_length: int, periodic: bool = True, beta: float = 12.0, *, dtype: Any = None,
    device: Any = None, requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Return ``i0(beta √(1 - x²)) / i0(beta)`` for ``x`` from -1 to 1."""

    def formula(x: Any) -> Any:
        inside = numpy.maximum(1 - (x / numpy.pi - 1) ** 2, 0)
        return numpy.i0(beta * numpy.sqrt(inside)) / numpy.i0(beta)

    return _window("kaiser_window", window_length, periodic, formula, dtype, device,
                   requires_grad)  # fmt: skip
