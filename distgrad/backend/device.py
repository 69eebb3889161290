"""Devices: ``cpu`` is NumPy's memory, ``cuda`` is CuPy's. CuPy is imported when it is needed."""

from __future__ import annotations

import contextvars
import functools
import re
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from types import ModuleType
from typing import Any, TypeVar, cast

import numpy as np

from distgrad.backend import numpy_backend
from distgrad.errors import ArgumentTypeError, DeviceError
from distgrad.typing import Array, Namespace

F = TypeVar("F", bound=Callable[..., Any])
_ONLY_NAMES = ("meta", "mps", "xpu")  # PyTorch's, which programs compare with
_TEXT = re.compile(r"([a-z]+)(?::(0|[1-9][0-9]*))?")


class device:
    """A place where arrays live: ``cpu``, the current GPU ``cuda``, or GPU ``n`` ``cuda:n``.

    Naming a GPU is allowed without one; using it is not.

    Args:
        type: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, a number of a GPU, or another device.
        index: the number of the GPU when ``type`` does not hold it.

    Raises:
        DeviceError: for a name that is neither cpu nor cuda.

    Example:
        >>> device("cuda:1"), str(device("cuda", 1)), device("cpu").index
        (device(type='cuda', index=1), 'cuda:1', None)
    """

    __slots__ = ("index", "type")
    type: str
    index: int | None

    def __init__(self, type: device | str | int, index: int | None = None) -> None:
        if isinstance(type, device):
            self.type, self.index = type.type, type.index
        elif isinstance(type, str):
            self.type, self.index = _parse(type, index)
        elif isinstance(type, int) and not isinstance(type, bool) and index is None:
            self.type, self.index = "cuda", _checked_index(type, repr(type))
        else:
            raise ArgumentTypeError(
                f"device({type!r}, {index!r}): not a device; use 'cpu', 'cuda' or 'cuda:<number>'"
            )

    def __repr__(self) -> str:
        number = "" if self.index is None else f", index={self.index}"
        return f"device(type='{self.type}'{number})"

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, device):
            return NotImplemented
        return self.type == other.type and self.index == other.index

    def __hash__(self) -> int:
        return hash((self.type, self.index))

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return device, (str(self),)

    def __enter__(self) -> device:
        _DEFAULT.set((*_DEFAULT.get(), self))
        return self

    def __exit__(self, *error: object) -> None:
        _DEFAULT.set(_DEFAULT.get()[:-1])


def _parse(text: str, index: int | None) -> tuple[str, int | None]:
    match = _TEXT.fullmatch(text)
    if match is None or (match[2] is not None and index is not None):
        raise DeviceError(
            f"device({text!r}, {index!r}): not the name of a device; "
            "use 'cpu', 'cuda' or 'cuda:<number>'"
        )
    kind = match[1]
    if kind not in ("cpu", "cuda", *_ONLY_NAMES):
        raise DeviceError(
            f"device({text!r}): there is no device type {kind!r} here; use 'cpu' or 'cuda'"
        )
    number = index if match[2] is None else int(match[2])
    if number is not None:
        _checked_index(number, repr(text))
        if kind == "cpu" and number > 0:
            raise DeviceError(f"device('cpu', {number}): there is one cpu device; use 'cpu'")
    return kind, number


def _checked_index(index: int, text: str) -> int:
    if index < 0:
        raise DeviceError(f"device({text}): device numbers start at 0, got {index}")
    return index


CPU = device("cpu")
_DEFAULT: contextvars.ContextVar[tuple[device, ...]] = contextvars.ContextVar(
    "distgrad_default_device", default=(CPU,)
)


def get_default_device() -> device:
    """The device on which tensors are made when none is named."""
    return _DEFAULT.get()[-1]


def set_default_device(d: device | str | int | None) -> None:
    """Sets the device on which tensors are made when none is named; ``None`` means the cpu."""
    chosen = CPU if d is None else device(d)
    namespace_of(chosen)
    _DEFAULT.set((chosen,))


# --- CUDA -------------------------------------------------------------------------------------

_CUDA_COUNT = 0  # 0: not looked yet, or none found

#: Caches whose keys do not tell NumPy's arrays from CuPy's: emptied as soon as there may be both.
HOST_CACHES: list[dict[Any, Any]] = []


def _no_rank() -> int | None:
    return None


_local_rank: Callable[[], int | None] = _no_rank


def choose_gpu_by(local_rank: Callable[[], int | None]) -> None:
    """Let this process start with the GPU of its number among the ranks of its host.

    Args:
        local_rank: returns that number, or None; asked before the first call of CuPy. A rank that
            uses GPU 0 first would keep memory there for good.
    """
    global _local_rank
    _local_rank = local_rank


def current_gpu() -> device:
    """The GPU that is the current one of this thread."""
    return device("cuda", int(cupy_module("current_gpu()").cuda.Device().id))


def bind_gpu(d: device) -> None:
    """Make GPU ``d`` the current one of this thread, before anything lies on another.

    Raises:
        DeviceError: there is no such GPU.
    """
    if d.type == "cuda" and d.index is not None:
        _cuda_backend(f"device({str(d)!r})", d.index, use=True)


def cuda_in_use() -> bool:
    """Whether a GPU was asked for, so that there may be arrays on it."""
    return _CUDA_COUNT > 0


def several_gpus() -> bool:
    """Whether arrays may be on another GPU than the current one."""
    return _CUDA_COUNT > 1


_ALREADY: AbstractContextManager[object] = nullcontext()


def working_on(*arrays: Array | None) -> AbstractContextManager[object]:
    """Return a block in which the GPU that these arrays are on is the current one.

    CuPy computes on the current GPU, PyTorch on that of the operands.

    Raises:
        ValueError: they are on several GPUs.
    """
    if _CUDA_COUNT < 2:
        return _ALREADY
    found = [_innermost(a) for a in arrays if a is not None]
    places = {int(a.device.id) for a in found if array_namespace(a) is not numpy_backend}
    if len(places) > 1:
        raise ValueError(f"operands are on GPUs {sorted(places)}")
    cuda = cupy_module("working_on()").cuda
    if not places or cuda.runtime.getDevice() in places:
        return _ALREADY
    block: AbstractContextManager[object] = cuda.Device(places.pop())
    return block


def _innermost(array: Array) -> Array:
    """Return what a traced array describes, else the array itself."""
    while hasattr(array, "below"):
        array = array.below.array
    return array


def where_it_is(function: F) -> F:
    """Let a function of several operations work on the GPU of its first tensor."""

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        if _CUDA_COUNT < 2:
            return function(*args, **options)
        arrays = [getattr(value, "array", None) for value in (*args, *options.values())]
        with working_on(next((a for a in arrays if a is not None), None)):
            return function(*args, **options)

    return cast("F", call)


def run_on_gpu(
    forward: Callable[..., Any],
    xp: Namespace,
    arrays: Iterable[Array | None],
    /,
    *args: Any,
    **options: Any,
) -> Any:
    """Return what ``forward`` gives for ``arrays``, computed where they are."""
    if _CUDA_COUNT < 2:
        return forward(xp, *args, **options)
    with working_on(*arrays):
        return forward(xp, *args, **options)


def cupy_wheels() -> list[str]:
    """The distributions of CuPy that are installed, of which there must be no more than one.

    Example:
        >>> cupy_wheels()  # doctest: +SKIP
        ['cupy-cuda13x']
    """
    from importlib import metadata  # 20 ms that only those pay who ask for a GPU

    found = []
    for name in ("cupy", *(f"cupy-cuda{version}x" for version in (11, 12, 13))):
        with suppress(metadata.PackageNotFoundError):
            metadata.version(name)
            found.append(name)
    return found


def _why_no_cupy(error: ImportError) -> str:
    wheels = cupy_wheels()
    if len(wheels) > 1:
        names = " ".join(wheels)
        return (
            f"{' and '.join(wheels)} are installed and break each other; pip uninstall {names}, "
            "then install the one for your CUDA"
        )
    if wheels:
        return f"{wheels[0]} is installed but cannot be imported ({error}); install it again"
    return "CuPy is not installed; pip install 'distgrad[cuda12]' (or 'distgrad[cuda13]')"


def _why_no_gpu(runtime: Any, reason: str) -> str:
    """Say why the driver gives no GPU: there is none, or it is too old for this CuPy."""
    wheels = cupy_wheels()
    if len(wheels) > 1:
        return _why_no_cupy(ImportError())
    try:
        driver, needed = int(runtime.driverGetVersion()), int(runtime.runtimeGetVersion())
    except (runtime.CUDARuntimeError, AttributeError):
        driver = needed = 0
    if not driver:
        return f"there is no NVIDIA driver ({reason}); install one, or expose it to this process"
    if driver // 1000 < needed // 1000:
        return (
            f"it is for CUDA {needed // 1000}, and the NVIDIA driver knows CUDA "
            f"{driver // 1000}.{driver % 1000 // 10} ({reason}); update the driver, or "
            f"pip uninstall {' '.join(wheels) or 'cupy'} and install cupy-cuda{driver // 1000}x"
        )
    return f"the NVIDIA driver gives no GPU ({reason}); see what nvidia-smi says"


def cupy_module(asked: str) -> ModuleType:
    """CuPy with a working GPU behind it; ``asked`` is what the user wrote."""
    global _CUDA_COUNT
    try:
        import cupy  # optional, and it looks for CUDA when it is imported
    except ImportError as error:
        raise DeviceError(f"{asked}: {_why_no_cupy(error)}, or use device 'cpu'") from error
    if not _CUDA_COUNT:
        try:
            _CUDA_COUNT = int(cupy.cuda.runtime.getDeviceCount())
            why = "the NVIDIA driver reports no GPU; expose one to this process"
        except cupy.cuda.runtime.CUDARuntimeError as error:
            why = _why_no_gpu(cupy.cuda.runtime, str(error))
        if not _CUDA_COUNT:
            raise DeviceError(
                f"{asked}: CuPy {cupy.__version__} is installed, but {why}, or use device 'cpu'"
            )
        rank = _local_rank()
        if rank is not None:
            cupy.cuda.Device(rank % _CUDA_COUNT).use()
        for cache in HOST_CACHES:
            cache.clear()
    module: ModuleType = cupy
    return module


def cuda_device_count() -> int:
    """The number of GPUs that can be used; 0 without CuPy or without a driver."""
    try:
        cupy_module("cuda_device_count()")
    except DeviceError:
        return 0
    return _CUDA_COUNT


def is_cuda_available() -> bool:
    """Whether device ``cuda`` can be used."""
    return cuda_device_count() > 0


def _cuda_backend(asked: str, index: int | None, use: bool = False) -> ModuleType:
    cupy = cupy_module(asked)
    if index is not None and index >= _CUDA_COUNT:
        raise DeviceError(
            f"{asked}: there are {_CUDA_COUNT} GPUs, numbered from 0; "
            f"use 'cuda:{_CUDA_COUNT - 1}' or a lower number"
        )
    if use:  # before the import below, which may touch the current one
        cupy.cuda.Device(index).use()
    from distgrad.backend import cupy_backend  # it imports CuPy

    return cupy_backend


# --- arrays and their places ------------------------------------------------------------------

_NAMESPACES: dict[type, Namespace] = {np.ndarray: numpy_backend}


def array_namespace(array: Array) -> Namespace:
    """The module of functions for this array: numpy_backend or cupy_backend."""
    found = _NAMESPACES.get(type(array))
    return found if found is not None else _find_namespace(array)


def namespace_beside(*arrays: Array) -> Namespace:
    """The module of functions for these arrays, of which some may be numbers or None."""
    found = [a for a in arrays if not isinstance(a, np.generic | None)]
    return array_namespace(found[0] if found else arrays[0])


def _find_namespace(array: Array) -> Namespace:
    kind = type(array)
    if isinstance(array, np.ndarray | np.generic):
        found: Namespace = numpy_backend
    elif kind.__module__.partition(".")[0] == "cupy":
        found = _cuda_backend("array_namespace(cupy array)", None)
    elif hasattr(array, "below"):  # a traced array describes the one under it
        return array_namespace(array.below.array)
    else:
        raise ArgumentTypeError(
            f"array_namespace({kind.__name__}): not a NumPy or CuPy array; "
            "convert it with numpy.asarray first"
        )
    _NAMESPACES[kind] = found
    return found


def namespace_of(d: device) -> Namespace:
    """The module of functions for arrays on device ``d``.

    Raises:
        DeviceError: for ``cuda`` without CuPy, without a driver, or with too high a number; for
            kinds of devices that have only a name here.
    """
    if d.type in _ONLY_NAMES:
        raise DeviceError(
            f"device({str(d)!r}): there are no arrays on this kind of device here; use 'cpu' or "
            "'cuda'"
        )
    return numpy_backend if d.type == "cpu" else _cuda_backend(f"device({str(d)!r})", d.index)


def device_of(array: Array) -> device:
    """The device on which ``array`` lives."""
    if array_namespace(array) is numpy_backend:
        return CPU
    return device("cuda", int(array.device.id))


def is_on(array: Array, d: device) -> bool:
    """Whether ``array`` lives on device ``d``; on any GPU, if ``d`` names none."""
    here = device_of(array)
    return here.type == d.type and (d.index is None or d.index == here.index or d.type == "cpu")


def to_device(array: Array, d: device) -> Array:
    """``array`` on device ``d``: itself when it is there already, else a copy."""
    if hasattr(array, "below"):  # a traced array
        return array.moved_to(d)
    here = array_namespace(array)
    there = namespace_of(d)
    if d.type == "cpu":
        host: Array = here.to_numpy(array)
        return host
    if is_on(array, d):
        return array
    cupy = cupy_module(f"device({str(d)!r})")
    with cupy.cuda.Device(d.index):
        return there.copied(array) if here is there else there.asarray(array)
