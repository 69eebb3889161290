"""The scale of a `GradScaler` on a GPU, where what its steps find stays too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distgrad.backend import capture as captures
from distgrad.backend.device import array_namespace, namespace_of
from distgrad.backend.device import device as Device
from distgrad.errors import ArgumentError
from distgrad.tensor import Tensor, wrap
from distgrad.typing import Array

__all__ = ["DeviceScale"]


class DeviceScale:
    """A scale on a GPU: itself, its inverse, and the steps since it grew, in float32.

    Args:
        place: the GPU.
        scale: the first scale.
        tracker: steps since it grew.
    """

    def __init__(self, place: Device, scale: float, tracker: int) -> None:
        self.place, self.xp = place, namespace_of(place)
        with captures.outside():
            self._state = self.xp.empty(3, "float32")
            self.write(scale, tracker)

    def write(self, scale: float | None, tracker: int) -> None:
        """Set the scale, unless it is None, and the steps since it grew."""
        if scale is not None:
            self._state[0:1].fill(scale)
            self._state[1:2].fill(1.0 / scale)
        self._state[2:3].fill(tracker)

    def read(self) -> tuple[float, int]:
        """Return the scale and the steps since it grew; the host waits for the GPU."""
        captures.refuse("GradScaler.get_scale()", "it waits for the GPU", "ask between steps")
        scale, _, tracker = self.xp.to_numpy(self._state)
        return float(scale), int(tracker)

    @property
    def scale(self) -> Tensor:
        """The scale, without dimensions, to multiply by."""
        return wrap(self._state[0, ...])

    def unscale(self, arrays: Sequence[Array]) -> Array:
        """Take the scale out of gradients; return a float32, not 0 if any is not finite."""
        found = self.xp.zeros((), "float32")
        by_dtype: dict[Any, list[Array]] = {}
        for array in arrays:
            by_dtype.setdefault((array.dtype, array.flags.c_contiguous), []).append(array)
        for members in by_dtype.values():
            kernel = self.xp.kernels.get("unscale_arrays")
            taken = kernel(members, self._state[1:2], found) if kernel else NotImplemented
            if taken is NotImplemented:
                self._unscale(members, found)
        return found

    def _unscale(self, arrays: Sequence[Array], found: Array) -> None:
        for array in arrays:
            array *= self._state[1, ...].astype(array.real.dtype)
            wrong = ~self.xp.isfinite(array).all()
            self.xp.maximum(found, wrong.astype(found.dtype), out=found)

    def adapt(self, found: Sequence[Array], growth: float, backoff: float, interval: int) -> None:
        """Let the scale grow or shrink by what unscaling found; nobody waits."""
        kernel = self.xp.kernels.get("adapt_scale")
        if kernel is not None:
            kernel(self._state, self.xp.stack(found), growth, backoff, interval)
            return
        scale, tracker = self.read()
        if any(float(f) for f in found):
            self.write(scale * backoff, 0)
        elif tracker + 1 == interval:
            self.write(scale * growth if scale * growth < 3.4e38 else None, 0)
        else:
            self.write(None, tracker + 1)


def gradients_on(optimizer: Any) -> tuple[list[Array], Device | None]:
    """Return the gradients of an optimizer's parameters, and the GPU that all are on, if any.

    Raises:
        ArgumentError: one is float16.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    arrays = [p.grad.array for p in params if p.grad is not None]
    for array in arrays:
        if array.dtype.itemsize == 2 and array.dtype.kind == "f":
            raise ArgumentError(
                "GradScaler.unscale_(): Attempting to unscale FP16 gradients; keep the "
                "parameters in float32 and use autocast"
            )
    places = {p.grad.device for p in params if p.grad is not None}
    place = places.pop() if len(places) == 1 else None
    return arrays, place if place is not None and place.type == "cuda" else None


def unscaled_on_host(arrays: Sequence[Array], scale: float) -> bool | None:
    """Take a scale out of gradients; return whether one is not finite, None without gradients."""
    found = None
    for array in arrays:
        xp = array_namespace(array)
        array *= array.dtype.type(1.0 / scale)
        found = bool(found) | (not bool(xp.isfinite(array).all()))
    return found
