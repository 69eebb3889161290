"""``GradScaler``: losses are scaled up, so that gradients in float16 do not vanish."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from enum import Enum
from typing import Any

from distgrad.amp.device_scale import DeviceScale, gradients_on, unscaled_on_host
from distgrad.backend.device import device as Device
from distgrad.backend.device import is_cuda_available
from distgrad.errors import ArgumentError, DistgradError
from distgrad.ops.create import full
from distgrad.tensor import Tensor
from distgrad.typing import Array


class ScalerError(DistgradError, RuntimeError):
    """A call out of order; PyTorch raises RuntimeError."""


class _Stage(Enum):
    READY, UNSCALED, STEPPED = range(3)


class _PerOptimizer:
    """What a scaler knows of an optimizer in this iteration."""

    __slots__ = ("found_inf", "stage")

    def __init__(self) -> None:
        self.stage = _Stage.READY
        # A number on a GPU where gradients are there; None: nothing was unscaled yet.
        self.found_inf: bool | Array | None = None


class GradScaler:
    """Scales the loss, takes the scale out of gradients, and leaves steps with infinities out.

    ``scaler.scale(loss).backward(); scaler.step(optimizer); scaler.update()``.  A step is left out
    when a gradient is infinite or not a number; then the scale shrinks.  After ``growth_interval``
    steps without one it grows.

    On a GPU the scale lies there, and no host waits: optimizers with a kernel (SGD, Adam, AdamW, …)
    leave the step out by themselves.  Only ``get_scale``, ``state_dict`` and steps of the other
    optimizers wait for the GPU.

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
        self._on_gpu: DeviceScale | None = None  # then the numbers above are only the first ones

    def _of(self, optimizer: Any) -> _PerOptimizer:
        return self._optimizers.setdefault(id(optimizer), _PerOptimizer())

    def scale(self, outputs: Any) -> Any:
        """Return a tensor, or tensors in lists, tuples and dicts, times the scale."""
        if not self._enabled:
            return outputs
        if isinstance(outputs, Tensor):
            kind = outputs.dtype if outputs.dtype.itemsize > 4 else None
            if outputs.is_cuda:
                scale = self._there(outputs.device).scale
                return outputs * (scale if kind is None else scale.to(kind))
            return outputs * full((), self.get_scale(), dtype=kind, device=outputs.device)
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

    def _unscale(self, optimizer: Any) -> bool | Array | None:
        """Return whether a gradient is not finite, on a GPU if they are; None without gradients."""
        arrays, place = gradients_on(optimizer)
        if place is None:
            return unscaled_on_host(arrays, self.get_scale())
        return self._there(place).unscale(arrays)

    def _there(self, place: Device) -> DeviceScale:
        """Return the scale on a GPU, where it stays from then on."""
        if self._on_gpu is None:
            self._on_gpu = DeviceScale(place, self._scale, self._growth_tracker)
        return self._on_gpu

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
        known.stage = _Stage.STEPPED
        if isinstance(known.found_inf, bool) or not hasattr(optimizer, "found_inf"):
            return None if known.found_inf else optimizer.step(*args, **kwargs)
        optimizer.found_inf = known.found_inf
        try:
            result = optimizer.step(*args, **kwargs)
        finally:
            optimizer.found_inf = None
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
            if self._on_gpu is not None:
                self._on_gpu.write(self._scale, 0)
        else:
            found = [known.found_inf for known in self._optimizers.values()]
            found = [f for f in found if f is not None]
            if not found:
                raise AssertionError("No inf checks were recorded prior to update.")
            self._adapt(found)
        self._optimizers.clear()

    def _adapt(self, found: list[Any]) -> None:
        if self._on_gpu is not None:
            there = [self._on_gpu.xp.full((), f, "float32") if isinstance(f, bool) else f
                     for f in found]  # fmt: skip
            self._on_gpu.adapt(
                there, self._growth_factor, self._backoff_factor, self._growth_interval
            )
            return
        if any(found):
            self._scale *= self._backoff_factor
            self._growth_tracker = 0
            return
        self._growth_tracker += 1
        if self._growth_tracker == self._growth_interval:
            grown = self._scale * self._growth_factor
            self._scale = grown if grown < 3.4e38 else self._scale
            self._growth_tracker = 0

    def get_scale(self) -> float:
        """Return the scale; 1.0 when disabled.  One on a GPU makes the host wait."""
        if not self._enabled:
            return 1.0
        return self._scale if self._on_gpu is None else self._on_gpu.read()[0]

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
        scale, tracker = self._scale, self._growth_tracker
        if self._on_gpu is not None:
            scale, tracker = self._on_gpu.read()
        return {
            "scale": scale,
            "growth_factor": self._growth_factor,
            "backoff_factor": self._backoff_factor,
            "growth_interval": self._growth_interval,
            "_growth_tracker": tracker,
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
        if self._on_gpu is not None:
            self._on_gpu.write(self._scale, self._growth_tracker)
