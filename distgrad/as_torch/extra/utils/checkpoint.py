"""What reversible networks take from ``torch.utils.checkpoint``: states of the devices' streams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distgrad import cuda
from distgrad.tensor import Tensor

__all__ = ["get_device_states", "set_device_states"]


def get_device_states(*args: Any) -> tuple[list[int], list[Tensor]]:
    """Return the GPUs that the tensors in ``args`` lie on, and the states of their generators."""
    tensors = [arg for arg in args if isinstance(arg, Tensor) and arg.device.type == "cuda"]
    devices = sorted({tensor.device.index or 0 for tensor in tensors})
    return devices, [cuda.get_rng_state(device) for device in devices]


def set_device_states(
    devices: Sequence[int], states: Sequence[Tensor], *, device_type: str | None = None
) -> None:
    """Give the generators of GPUs these states."""
    for device, state in zip(devices, states, strict=True):
        cuda.set_rng_state(state, device)
