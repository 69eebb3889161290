"""``GradScaler``: losses are scaled up, so that gradients in float16 do not vanish."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from enum import Enum
from typing import Any

from distgrad.backend.device import array_namespace, is_cuda_available
from distgrad.errors import ArgumentError, DistgradError
from distgrad.ops.create import full
from distgrad.tensor import Tensor


class ScalerError(DistgradError, RuntimeError):
    """A call out of order; PyTorch raises RuntimeError."""


class _Stage(Enum):
    READY, UNSCALED, STEPPED = range(3)


class _PerOptimizer:
    """What a scaler knows of an optimizer in this iteration."""

    __slots__ = ("found_inf", "stage")

    def __init__(self) -> None:
        self.stage = _Stage.READY
        self.found_inf: bool | None = None  # None: nothing was unscaled yet


class GradScaler:
    """Scales the loss, takes the scale out of gradients, and leaves steps with infinities out.

    ``scaler.scale(loss).backward(); scaler.step(optimizer); scaler.update()``.  A step is left out
    when a gradient is infinite or not a number; then the scale shrinks.  After ``growth_interval``
    steps without one it grows.

    Args:
        device: "cpu" or "cuda"; without a GPU the default, "cuda", warns and does nothing.
        init_scale: the first scale.
        growth_factor: what it grows by.
        backoff_factor: what it shrinks by.
        growth_interval: steps without infinities after which it grows.
        enabled: False makes all of it do nothing but the steps.

    Example:
        >>> import distgrad as dg
        >>> w = dg.ones(1, requires_grad=True)
        >>> optimizer = dg.optim.SGD([w], lr=0.5)
        >>> scaler = dg.amp.GradScaler("cpu", init_scale=8.0)
        >>> scaler.scale((w * 2).sum()).backward()
        >>> _ = scaler.step(optimizer); scaler.update()
        >>> w.item(), scaler.get_scale()
        (0.0, 8.0)
    """

    def __init__(
        self,
        device: str = "cuda",
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        enabled: bool = True,
    ) -> None:
        self._device, self._enabled = device, enabled
        if enabled and device == "cuda" and not is_cuda_available():
            warnings.warn(
                "torch.cuda.amp.GradScaler is enabled, but CUDA is not available.  Disabling.",
                stacklevel=2,
            )
            self._enabled = False
        if growth_factor <= 1.0:
            raise ArgumentError(f"GradScaler(growth_factor={growth_factor}): must be above 1.0")
        if backoff_factor >= 1.0:
            raise ArgumentError(f"GradScaler(backoff_factor={backoff_factor}): must be below 1.0")
        self._scale = float(init_scale)
        self._growth_factor, self._backoff_factor = growth_factor, backoff_factor
        self._growth_interval, self._growth_tracker = growth_interval, 0
        self._optimizers: dict[int, _PerOptimizer] = {}

    def _of(self, optimizer: Any) -> _PerOptimizer:
        return self._optimizers.setdefault(id(optimizer), _PerOptimizer())

    def scale(self, outputs: Any) -> Any:
        """Return a tensor, or tensors in lists, tuples and dicts, times the scale."""
        if not self._enabled:
            return outputs
        if isinstance(outputs, Tensor):
            kind = outputs.dtype if outputs.dtype.itemsize > 4 else None
            return outputs * full((), self._scale, dtype=kind, device=outputs.device)
        if isinstance(outputs, dict):
            return {key: self.scale(value) for key, value in outputs.items()}
        if isinstance(outputs, Iterable):
            scaled = [self.scale(value) for value in outputs]
            return tuple(scaled) if isinstance(outputs, tuple) else scaled
        raise ArgumentError(
            f"GradScaler.scale({type(outputs).__name__}): outputs must be a Tensor or an iterable "
            "of Tensors"
        )

    def unscale_(self, optimizer: Any) -> None:
        """Divide the gradients of an optimizer's parameters by the scale, to look at or clip them.

        Raises:
            ScalerError: it was called for this optimizer already since ``update()``, or after its
                step.
            ArgumentError: a gradient is float16.
        """
        if not self._enabled:
            return
        known = self._of(optimizer)
        if known.stage is _Stage.UNSCALED:
            raise ScalerError(
                "GradScaler.unscale_(): unscale_() has already been called on this optimizer since "
                "the last update()."
            )
        if known.stage is _Stage.STEPPED:
            raise ScalerError("GradScaler.unscale_(): unscale_() is being called after step().")
        known.found_inf = self._unscale(optimizer)
        known.stage = _Stage.UNSCALED

    def _unscale(self, optimizer: Any) -> bool | None:
        """Return whether a gradient is not finite; None without gradients."""
        inverse, found = 1.0 / self._scale, None
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                array = parameter.grad.array
                if array.dtype.itemsize == 2 and array.dtype.kind == "f":
                    raise ArgumentError(
                        "GradScaler.unscale_(): Attempting to unscale FP16 gradients; keep the "
                        "parameters in float32 and use autocast"
                    )
                xp = array_namespace(array)
                array *= array.dtype.type(inverse)
                found = bool(found) | (not bool(xp.isfinite(array).all()))
        return found

    def step(self, optimizer: Any, *args: Any, **kwargs: Any) -> float | None:
        """Return what ``optimizer.step(*args)`` returns, run unless a gradient is not finite.

        Args:
            optimizer: it; its gradients are unscaled first, unless ``unscale_`` did it.
            args, kwargs: for its ``step``; no closure.

        Raises:
            ScalerError: it was called already since ``update()``, or with a closure.
        """
        if not self._enabled:
            result: float | None = optimizer.step(*args, **kwargs)
            return result
        if "closure" in kwargs:
            raise ScalerError(
                "GradScaler.step(): Closure use is not currently supported if GradScaler is "
                "enabled."
            )
        known = self._of(optimizer)
        if known.stage is _Stage.STEPPED:
            raise ScalerError(
                "GradScaler.step(): step() has already been called since the last update()."
            )
        if known.stage is _Stage.READY:
            self.unscale_(optimizer)
        if known.found_inf is None:
            raise AssertionError("No inf checks were recorded for this optimizer.")
        result = None if known.found_inf else optimizer.step(*args, **kwargs)
        known.stage = _Stage.STEPPED
        return result

    def update(self, new_scale: float | Tensor | None = None) -> None:
        """Let the scale grow or shrink by what the steps found, or set it.

        Raises:
            AssertionError: no step was made.
        """
        if not self._enabled:
            return
        if new_scale is not None:
            self._scale = float(new_scale)
        else:
            found = [known.found_inf for known in self._optimizers.values()]
            found = [f for f in found if f is not None]
            if not found:
                raise AssertionError("No inf checks were recorded prior to update.")
            self._adapt(any(found))
        self._optimizers.clear()

    def _adapt(self, found_inf: bool) -> None:
        if found_inf:
            self._scale *= self._backoff_factor
            self._growth_tracker = 0
            return
        self._growth_tracker += 1
        if self._growth_tracker == self._growth_interval:
            grown = self._scale * self._growth_factor
            self._scale = grown if grown < 3.4e38 else self._scale
            self._growth_tracker = 0

    def get_scale(self) -> float:
        """Return the scale; 1.0 when disabled."""
        return self._scale if self._enabled else 1.0

    def get_growth_factor(self) -> float:
        """Return what the scale grows by."""
        return self._growth_factor

    def set_growth_factor(self, new_factor: float) -> None:
        """Set what the scale grows by."""
        self._growth_factor = new_factor

    def get_backoff_factor(self) -> float:
        """Return what the scale shrinks by."""
        return self._backoff_factor

    def set_backoff_factor(self, new_factor: float) -> None:
        """Set what the scale shrinks by."""
        self._backoff_factor = new_factor

    def get_growth_interval(self) -> int:
        """Return after how many steps without infinities the scale grows."""
        return self._growth_interval

    def set_growth_interval(self, new_interval: int) -> None:
        """Set after how many steps without infinities the scale grows."""
        self._growth_interval = new_interval

    def is_enabled(self) -> bool:
        """Return whether it does anything."""
        return self._enabled

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs; empty when disabled."""
        if not self._enabled:
            return {}
        return {
            "scale": self._scale,
            "growth_factor": self._growth_factor,
            "backoff_factor": self._backoff_factor,
            "growth_interval": self._growth_interval,
            "_growth_tracker": self._growth_tracker,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a ``state_dict``.

        Raises:
            ScalerError: it is empty: the scaler that it is from was disabled.
        """
        if not self._enabled:
            return
        if not state_dict:
            raise ScalerError(
                "GradScaler.load_state_dict(): The source state dict is empty, possibly because it "
                "was saved from a disabled instance of GradScaler."
            )
        self._scale = float(state_dict["scale"])
        self._growth_factor = state_dict["growth_factor"]
        self._backoff_factor = state_dict["backoff_factor"]
        self._growth_interval = state_dict["growth_interval"]
        self._growth_tracker = int(state_dict["_growth_tracker"])
