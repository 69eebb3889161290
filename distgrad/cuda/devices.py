"""Which GPUs there are, what they are, and which one is used."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from distgrad.backend.device import cuda_device_count, cuda_in_use, cupy_module
from distgrad.backend.device import device as Device
from distgrad.backend.device import is_cuda_available as is_available
from distgrad.errors import ArgumentError
from distgrad.tensor import Tensor

DeviceLike = Device | str | int | None

__all__ = [
    "current_device", "device", "device_count", "device_of", "get_arch_list",
    "get_device_capability", "get_device_name", "get_device_properties", "init", "is_available",
    "is_bf16_supported", "is_initialized", "is_tf32_supported", "set_device", "synchronize",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class DeviceProperties:
    """What a GPU is."""

    name: str
    major: int
    minor: int
    total_memory: int
    multi_processor_count: int
    warp_size: int
    max_threads_per_multi_processor: int
    shared_memory_per_block: int
    L2_cache_size: int


def device_count() -> int:
    """Return the number of GPUs that can be used; 0 without CuPy or without a driver."""
    return cuda_device_count()


def is_initialized() -> bool:
    """Return whether a GPU was asked for in this process."""
    return cuda_in_use()


def init() -> None:
    """Start CUDA, which otherwise begins with the first array on a GPU.

    Raises:
        DeviceError: there is no GPU, or no CuPy.
    """
    cupy_module("cuda.init()")


def index_of(name: str, place: DeviceLike) -> int:
    """Return the number of a GPU; None is the current one.

    Raises:
        ArgumentError: ``place`` is no GPU.
        DeviceError: there is no GPU, or no CuPy.
    """
    if place is None:
        return current_device()
    asked = place if isinstance(place, Device) else Device(place)
    if asked.type != "cuda":
        raise ArgumentError(f"cuda.{name}({place!r}): Expected a cuda device, but got: {asked}")
    return current_device() if asked.index is None else asked.index


def current_device() -> int:
    """Return the number of the GPU on which ``cuda`` without a number means."""
    return int(cupy_module("cuda.current_device()").cuda.runtime.getDevice())


def set_device(device: DeviceLike) -> None:
    """Let ``cuda`` without a number mean this GPU; a negative number changes nothing."""
    if isinstance(device, int) and device < 0:
        return
    cupy = cupy_module(f"cuda.set_device({device!r})")
    cupy.cuda.Device(index_of("set_device", device)).use()


def synchronize(device: DeviceLike = None) -> None:
    """Return when the GPU has done all that it was given."""
    cupy = cupy_module("cuda.synchronize()")
    cupy.cuda.Device(index_of("synchronize", device)).synchronize()


class device(AbstractContextManager[None]):
    """Makes a GPU the current one inside a ``with`` block; None or a negative number: changes none.

    Args:
        device: the GPU.
    """

    def __init__(self, device: DeviceLike) -> None:
        idle = device is None or (isinstance(device, int) and device < 0)
        self.idx = -1 if idle else index_of("device", device)

    def __enter__(self) -> None:
        if self.idx >= 0:
            self._before = current_device()
            set_device(self.idx)

    def __exit__(self, *error: object) -> None:
        if self.idx >= 0:
            set_device(self._before)


class device_of(device):
    """Makes the GPU of a tensor the current one inside a ``with`` block."""

    def __init__(self, obj: Tensor) -> None:
        super().__init__(obj.device if obj.is_cuda else None)


def get_device_properties(device: DeviceLike = None) -> DeviceProperties:
    """Return what a GPU is.

    Raises:
        DeviceError: there is no such GPU.
    """
    cupy = cupy_module(f"cuda.get_device_properties({device!r})")
    told: dict[str, Any] = cupy.cuda.runtime.getDeviceProperties(
        index_of("get_device_properties", device)
    )
    name = told["name"]
    return DeviceProperties(
        name.decode() if isinstance(name, bytes) else name,
        told["major"],
        told["minor"],
        told["totalGlobalMem"],
        told["multiProcessorCount"],
        told["warpSize"],
        told["maxThreadsPerMultiProcessor"],
        told["sharedMemPerBlock"],
        told["l2CacheSize"],
    )


def get_device_name(device: DeviceLike = None) -> str:
    """Return the name of a GPU."""
    return get_device_properties(device).name


def get_device_capability(device: DeviceLike = None) -> tuple[int, int]:
    """Return major and minor number of what a GPU can do."""
    told = get_device_properties(device)
    return told.major, told.minor


def get_arch_list() -> list[str]:
    """Return an empty list: CuPy compiles for the GPU that is there."""
    return []


def is_bf16_supported(including_emulation: bool = True) -> bool:
    """Return whether tensors on a GPU can be bfloat16: where there is one.

    Raises:
        DeviceError: there is no GPU.
    """
    major = get_device_capability()[0]
    return including_emulation or major >= 8


def is_tf32_supported() -> bool:
    """Return whether the GPU has TF32, which ``set_float32_matmul_precision("high")`` allows."""
    return is_available() and get_device_capability()[0] >= 8
