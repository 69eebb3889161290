"""Window functions: ``M`` weights that fall off towards both ends.

All take ``sym`` (symmetric, for filters; else one period of a periodic window, for spectra), and
``dtype`` (float32 or float64), ``device`` and ``requires_grad`` as creation functions do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy

from distgrad.backend.dtype import as_numpy
from distgrad.errors import ArgumentError, ArgumentTypeError
from distgrad.ops.create import finish, placed
from distgrad.tensor import Tensor

__all__ = [
    "bartlett", "blackman", "cosine", "exponential", "gaussian", "general_cosine",
    "general_hamming", "hamming", "hann", "kaiser", "nuttall",
]  # fmt: skip

# Of the number of points and the positions 0, 1, … of those that are kept.
Formula = Callable[[int, Any], Any]


def _window(
    name: str,
    M: int,
    sym: bool,
    formula: Formula,
    dtype: Any,
    layout: Any,
    device: Any,
    requires_grad: bool,
) -> Tensor:
    """Return ``formula(points, positions)`` after the checks that all windows share."""
    if isinstance(M, bool) or not hasattr(M, "__index__"):
        raise ArgumentTypeError(f"{name}(M={M!r}): the window length must be an int")
    kind = as_numpy(dtype)
    if M < 0:
        raise ArgumentError(f"{name}(M={M}): {name} requires non-negative window length, got M={M}")
    if layout is not None and not str(layout).endswith("strided"):
        raise ArgumentError(f"{name}(layout={layout}): {name} is implemented for strided tensors")
    if kind.name not in ("float32", "float64"):
        raise ArgumentError(
            f"{name}(dtype={kind}): {name} expects float32 or float64 dtypes, got: {kind}; "
            "convert the window with .to(dtype)"
        )
    points = M if sym else M + 1
    values = numpy.ones(M) if M < 2 else formula(points, numpy.arange(M, dtype=numpy.float64))
    return finish(values.astype(kind), placed(device), requires_grad, name)


def _positive(name: str, option: str, words: str, value: float) -> None:
    if value <= 0:
        raise ArgumentError(
            f"{name}({option}={value}): {words} must be positive, got: {value} instead."
        )


def _cosines(weights: Sequence[float]) -> Formula:
    """Return the formula Σ (-1)^i weights[i] cos(2π i k / (points - 1))."""

    def formula(points: int, k: Any) -> Any:
        angles = 2 * numpy.pi * k / (points - 1)
        return sum((-1) ** i * a * numpy.cos(i * angles) for i, a in enumerate(weights))

    return formula


def exponential(
    M: int, *, center: float | None = None, tau: float = 1.0, sym: bool = True, dtype: Any = None,
    layout: Any = None, device: Any = None, requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Return ``exp(-|k - center| / tau)``.

    Args:
        center: position of the peak; of a symmetric window it is the middle, and must be None.

    Raises:
        ArgumentError: ``tau`` is not positive, or a symmetric window was given a center.
    """
    _positive("exponential", "tau", "Tau", tau)
    if sym and center is not None:
        raise ArgumentError(
            f"exponential(center={center}): Center must be None for symmetric windows"
        )

    def formula(points: int, k: Any) -> Any:
        middle = (points - 1) / 2 if center is None else center
        return numpy.exp(-numpy.abs(k - middle) / tau)

    return _window("exponential", M, sym, formula, dtype, layout, device, requires_grad)


def cosine(
    M: int, *, sym: bool = True, dtype: Any = None, layout: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Return one arch of the sine: ``sin(π (k + 1/2) / M)``.

    Example:
        >>> import distgrad as dg
        >>> dg.signal.windows.cosine(5)
        tensor([0.3090, 0.8090, 1.0000, 0.8090, 0.3090])
    """

    def formula(points: int, k: Any) -> Any:
        return numpy.sin(numpy.pi * (k + 0.5) / points)

    return _window("cosine", M, sym, formula, dtype, layout, device, requires_grad)


def gaussian(
    M: int, *, std: float = 1.0, sym: bool = True, dtype: Any = None, layout: Any = None,
    device: Any = None, requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Return ``exp(-(k - middle)² / (2 std²))``."""
    _positive("gaussian", "std", "Standard deviation", std)

    def formula(points: int, k: Any) -> Any:
        return numpy.exp(-(((k - (points - 1) / 2) / std) ** 2) / 2)

    return _window("gaussian", M, sym, formula, dtype, layout, device, requires_grad)


def kaiser(
    M: int, *, beta: float = 12.0, sym: bool = True, dtype: Any = None, layout: Any = None,
    device: Any = None, requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Return ``i0(beta √(1 - x²)) / i0(beta)`` for ``x`` from -1 to 1."""
    if beta < 0:
        raise ArgumentError(f"kaiser(beta={beta}): beta must be non-negative, got: {beta} instead.")

    def formula(points: int, k: Any) -> Any:
        x = 2 * k / (points - 1) - 1
        return numpy.i0(beta * numpy.sqrt(numpy.maximum(1 - x * x, 0))) / numpy.i0(beta)

    return _window("kaiser", M, sym, formula, dtype, layout, device, requires_grad)


def bartlett(
    M: int, *, sym: bool = True, dtype: Any = None, layout: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Return a triangle with 0 at both ends."""

    def formula(points: int, k: Any) -> Any:
        return 1 - numpy.abs(2 * k / (points - 1) - 1)

    return _window("bartlett", M, sym, formula, dtype, layout, device, requires_grad)


def general_cosine(
    M: int, *, a: Sequence[float], sym: bool = True, dtype: Any = None, layout: Any = None,
    device: Any = None, requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Return the sum of cosines of i periods with the weights ``a[i]`` and alternating signs.

    Raises:
        ArgumentTypeError: ``a`` is no list or tuple.
        ArgumentError: ``a`` is empty.
    """
    if not isinstance(a, list | tuple):
        raise ArgumentTypeError(f"general_cosine(a={a!r}): Coefficients must be a list/tuple")
    if not a:
        raise ArgumentError("general_cosine(a=[]): Coefficients cannot be empty")
    return _window(
        "general_cosine", M, sym, _cosines(a), dtype, layout, device, requires_grad
    )  # fmt: skip


def general_hamming(
    M: int, *, alpha: float = 0.54, sym: bool = True, dtype: Any = None, layout: Any = None,
    device: Any = None, requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Return ``alpha - (1 - alpha) cos(2π k / (M - 1))``."""
    formula = _cosines((alpha, 1 - alpha))
    return _window("general_hamming", M, sym, formula, dtype, layout, device, requires_grad)


def hamming(
    M: int, *, sym: bool = True, dtype: Any = None, layout: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Return ``0.54 - 0.46 cos(2π k / (M - 1))``."""
    return _window(
        "hamming", M, sym, _cosines((0.54, 0.46)), dtype, layout, device, requires_grad
    )  # fmt: skip


def hann(
    M: int, *, sym: bool = True, dtype: Any = None, layout: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Return ``sin²(π k / (M - 1))``.

    Example:
        >>> import distgrad as dg
        >>> dg.signal.windows.hann(5)
        tensor([0.0000, 0.5000, 1.0000, 0.5000, 0.0000])
    """
    return _window("hann", M, sym, _cosines((0.5, 0.5)), dtype, layout, device, requires_grad)


def blackman(
    M: int, *, sym: bool = True, dtype: Any = None, layout: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Return ``0.42 - 0.5 cos(2π k / (M - 1)) + 0.08 cos(4π k / (M - 1))``."""
    formula = _cosines((0.42, 0.5, 0.08))
    return _window("blackman", M, sym, formula, dtype, layout, device, requires_grad)


def nuttall(
    M: int, *, sym: bool = True, dtype: Any = None, layout: Any = None, device: Any = None,
    requires_grad: bool = False,
) -> Tensor:  # fmt: skip
    """Return the window of four cosines with the smallest side lobes, by Nuttall."""
    formula = _cosines((0.3635819, 0.4891775, 0.1365995, 0.0106411))
    return _window("nuttall", M, sym, formula, dtype, layout, device, requires_grad)
