"""``autocast``: matrix products in 16 bits, sensitive operations in float32."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

from distgrad.amp.state import (
    autocast_decrement_nesting,
    autocast_increment_nesting,
    clear_autocast_cache,
    get_autocast_dtype,
    is_autocast_enabled,
    set_autocast_cache_enabled,
    set_autocast_dtype,
    set_autocast_enabled,
    state,
)
from distgrad.backend.device import is_cuda_available
from distgrad.backend.dtype import bfloat16, dtype, float16, float64
from distgrad.errors import ArgumentError, ArgumentTypeError
from distgrad.tensor import Tensor

_FITS = {"cpu": (bfloat16, float16), "cuda": (bfloat16, float16)}


def is_autocast_available(device_type: str) -> bool:
    """Return whether there is autocast for a type of device."""
    return device_type in _FITS


class autocast:
    """Converts the operands of chosen operations in a ``with`` block or a decorated function.

    Matrix products and convolutions run in ``dtype``, losses and the like in float32; which ones,
    stands in ``distgrad/amp/lists.py``.  float64 is left alone.  Parameters are converted once in
    the outermost block.  Backward belongs outside of the block.

    Args:
        device_type: "cpu" or "cuda".
        dtype: bfloat16 or float16 (default: bfloat16 on the CPU, float16 on a GPU).
        enabled: False turns autocast off in the block.
        cache_enabled: whether converted parameters are kept.

    Differs from PyTorch: 16-bit results on the CPU are computed in float32 and rounded once.

    Example:
        >>> import distgrad as dg
        >>> x = dg.ones(2, 2)
        >>> with dg.amp.autocast("cpu", dtype=dg.bfloat16):
        ...     (x @ x).dtype, (x + x).dtype
        (distgrad.bfloat16, distgrad.float32)
    """

    def __init__(
        self,
        device_type: str,
        dtype: dtype | None = None,
        enabled: bool = True,
        cache_enabled: bool | None = None,
    ) -> None:
        if not isinstance(device_type, str):
            raise ArgumentTypeError(
                f"autocast({device_type!r}): Expected `device_type` of type `str`, got: "
                f"`{type(device_type).__name__}`"
            )
        if not is_autocast_available(device_type):
            raise ArgumentError(
                f"autocast({device_type!r}): User specified an unsupported autocast device_type "
                f"'{device_type}'; use 'cpu' or 'cuda'"
            )
        self.device = device_type
        self.fast_dtype = get_autocast_dtype(device_type) if dtype is None else dtype
        self._enabled = self._checked(enabled)
        self._cache_enabled = state.cache_enabled if cache_enabled is None else cache_enabled
        self._before: list[tuple[bool, dtype_, bool]] = []

    def _checked(self, enabled: bool) -> bool:
        if enabled and self.device == "cuda" and not is_cuda_available():
            warnings.warn(
                "User provided device_type of 'cuda', but CUDA is not available. Disabling",
                stacklevel=3,
            )
            return False
        if enabled and self.fast_dtype not in _FITS[self.device]:
            warnings.warn(
                f"In {self.device.upper()} autocast, but the target dtype is not supported. "
                f"Disabling autocast. {self.device.upper()} Autocast only supports dtypes of "
                "bfloat16, float16 currently.",
                stacklevel=3,
            )
            return False
        return bool(enabled)

    def __enter__(self) -> autocast:
        kind = self.device
        self._before.append(
            (is_autocast_enabled(kind), get_autocast_dtype(kind), state.cache_enabled)
        )
        set_autocast_enabled(kind, self._enabled)
        set_autocast_dtype(kind, self.fast_dtype)
        set_autocast_cache_enabled(self._cache_enabled)
        autocast_increment_nesting()
        return self

    def __exit__(self, *error: object) -> None:
        if autocast_decrement_nesting() == 0:
            clear_autocast_cache()
        enabled, kind, cache = self._before.pop()
        set_autocast_enabled(self.device, enabled)
        set_autocast_dtype(self.device, kind)
        set_autocast_cache_enabled(cache)

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``function`` that runs in such a block."""

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return wrapped


dtype_ = dtype


def _in(kind: Any, value: Any, place: str) -> Any:
    """Return ``value`` with the eligible tensors of a device type in ``kind``."""
    if isinstance(value, Tensor):
        fits = value.is_floating_point() and value.dtype is not float64
        return value.to(kind) if fits and value.device.type == place else value
    if isinstance(value, dict):
        return {_in(kind, k, place): _in(kind, v, place) for k, v in value.items()}
    if isinstance(value, list | tuple):
        parts = [_in(kind, v, place) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def custom_fwd(
    fwd: Callable[..., Any] | None = None,
    *,
    device_type: str,
    cast_inputs: dtype | None = None,
) -> Any:
    """Decorate ``forward`` of a custom Function: what autocast does in it.

    Args:
        fwd: the method.
        device_type: "cpu" or "cuda".
        cast_inputs: convert floating point arguments to this dtype and run without autocast;
            None runs it under the autocast of its caller.
    """
    if fwd is None:
        return functools.partial(custom_fwd, device_type=device_type, cast_inputs=cast_inputs)

    @functools.wraps(fwd)
    def decorated(ctx: Any, *args: Any, **kwargs: Any) -> Any:
        ctx._dtype = get_autocast_dtype(device_type)
        if cast_inputs is None or not is_autocast_enabled(device_type):
            ctx._fwd_used_autocast = cast_inputs is None and is_autocast_enabled(device_type)
            return fwd(ctx, *args, **kwargs)
        ctx._fwd_used_autocast = False
        with autocast(device_type, enabled=False):
            return fwd(
                ctx, *_in(cast_inputs, args, device_type), **_in(cast_inputs, kwargs, device_type)
            )

    return decorated


def custom_bwd(bwd: Callable[..., Any] | None = None, *, device_type: str) -> Any:
    """Decorate ``backward`` of a custom Function: it runs under the autocast of its forward.

    Args:
        bwd: the method.
        device_type: "cpu" or "cuda".
    """
    if bwd is None:
        return functools.partial(custom_bwd, device_type=device_type)

    @functools.wraps(bwd)
    def decorated(ctx: Any, *args: Any, **kwargs: Any) -> Any:
        with autocast(device_type, enabled=ctx._fwd_used_autocast, dtype=ctx._dtype):
            return bwd(ctx, *args, **kwargs)

    return decorated
