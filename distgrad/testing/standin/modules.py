"""The stand-in's modules: ``cupy``, ``cupy.linalg``, ``cupy.cuda``, ``cupyx`` and their parts.

Functions are NumPy's with CuPy's names and parameters, on the stand-in's arrays only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np

from distgrad.backend import numpy_backend
from distgrad.testing.standin import between, captures, cublaslt, cudnn, emulator, nccl, streams
from distgrad.testing.standin.array import (
    _BLAS,
    SCALARS,
    TABLE,
    arrays_in,
    bare,
    done,
    given,
    ndarray,
    placed,
    refuse_cublas,
    refuse_host_arrays,
    upload,
)
from distgrad.testing.standin.ledger import ledger
from distgrad.testing.standin.streams import CUDARuntimeError
from distgrad.testing.standin.ufuncs import ufunc, ufuncs

Function = Callable[..., Any]


# ---------------------------------------------------------------------- functions by their table
# A first parameter of these names is an array, or a sequence of arrays.
_ARRAYS = frozenset({"a", "x", "arr", "ary", "a1", "ar", "ar1", "array", "condition", "v", "m", "A",
                     "val", "z", "dst", "element", "y"})  # fmt: skip
_SEQUENCES = frozenset({"tup", "arys", "arrays"})
_ANYTHING = frozenset({"iscomplexobj", "isrealobj", "isscalar", "ndim", "shape", "size"})
_SYNCS = frozenset({
    "argwhere", "array2string", "array_repr", "array_str", "bincount", "compress", "delete",
    "extract", "flatnonzero", "histogram", "ix_", "nonzero", "trim_zeros", "unique",
})  # fmt: skip
_JOINS = frozenset({"concatenate", "stack", "hstack", "vstack", "dstack", "column_stack"})
_NUMBERS_ON_DEVICE = frozenset({"allclose", "array_equal", "array_equiv", "count_nonzero"})


def _function(name: str, parameters: str | None, native: Function) -> Function:
    """Return NumPy's function ``native`` as CuPy has it."""
    names = (parameters or "*args **options").split()
    whole = [n for n in names if n[0] != "*"]
    open_ended = any(n[0] == "*" and n[1] != "*" for n in names)
    free = any(n.startswith("**") for n in names)

    def call(*args: Any, **options: Any) -> Any:
        if not open_ended and len(args) > len(whole):
            ledger.refuse(f"{name}() takes {len(whole)} arguments, got {len(args)}")
        unknown = set(options) - set(whole)
        if unknown and not free:
            ledger.refuse(f"{name}() got unexpected keyword arguments {sorted(unknown)}")
        refuse_host_arrays(name, [*args, *options.values()])
        if "subok" in whole:  # None in CuPy, a bool in NumPy
            bound = dict(zip(whole, args, strict=False)) | options
            args, options = (), {n: v for n, v in bound.items() if n != "subok"}
        first = args[0] if args else options.get(whole[0]) if whole else None
        _check_first(name, names[0], first)
        if name.rpartition(".")[2] in _SYNCS:
            ledger.sync(f"{name}()")
        if name in _BLAS or name.startswith("linalg."):
            refuse_cublas(name, *args)
        if name in _JOINS:
            _note_addresses(name, first)
        if name == "may_share_memory":  # compares addresses; no kernel reads the numbers
            return native(*[a.host for a in args])
        operands, keywords = bare(args), {k: bare(v) for k, v in options.items()}

        def compute() -> Any:
            out = native(*operands, **keywords)
            return np.asarray(out) if name in _NUMBERS_ON_DEVICE else out

        compute.__name__ = name
        return done(compute, lambda out: given(out, arrays_in([args, list(options.values())])))

    call.__name__ = name.rpartition(".")[2]
    return call


def _note_addresses(name: str, arrays: Any) -> None:
    """Note that CuPy copies the addresses of many small arrays of one type to the device."""
    kinds = {a.dtype for a in arrays}
    if len(arrays) > 8 and len(kinds) == 1 and sum(a.nbytes for a in arrays) < len(arrays) << 21:
        upload(f"{name}() of {len(arrays)} arrays, whose addresses it copies")


def _check_first(name: str, parameter: str, value: Any) -> None:
    if name in _ANYTHING:
        return
    wanted = parameter in _ARRAYS and not isinstance(value, ndarray)
    many = parameter in _SEQUENCES
    if wanted or (many and not all(isinstance(v, ndarray) for v in value)):
        ledger.refuse(f"{name}({parameter}: {type(value).__name__}): only arrays of the device")


# ---------------------------------------------------------------------- functions that differ
def asarray(a: Any, dtype: Any = None, order: Any = None, *, blocking: bool = False) -> ndarray:
    """Return ``a`` on the device: itself, a conversion, or a copy from the host."""
    if isinstance(a, ndarray):
        host = a.use()
        return done(lambda: np.asarray(host, dtype, order=order), lambda made: placed(made, [a]))
    _refuse_mixture(a)
    upload("asarray()")
    return placed(_sent(np.array(a, dtype)))


def array(
    obj: Any, dtype: Any = None, copy: bool = True, order: Any = "K", subok: bool = False,
    ndmin: int = 0, *, blocking: bool = False,
) -> ndarray:  # fmt: skip
    """Return ``obj`` as a new array of the device."""
    if isinstance(obj, ndarray):
        source, host = [] if copy else [obj], obj.use()
        return done(
            lambda: np.array(host, dtype, copy=copy or None, order=order, ndmin=ndmin),
            lambda made: placed(made, source),
        )
    _refuse_mixture(obj)
    upload("array()")
    return placed(_sent(np.array(obj, dtype, ndmin=ndmin)))


def _sent(host: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return an array of the host as it arrives: row-major or column-major, nothing else."""
    return np.asarray(host, order="F" if host.flags.f_contiguous else "C")


def _refuse_mixture(value: Any) -> None:
    """Raise for a list with arrays of the device in it: CuPy would stack them one by one."""
    if isinstance(value, list | tuple) and arrays_in(value):
        ledger.refuse("array([device arrays]): use stack()")


def asnumpy(
    a: Any, stream: Any = None, order: Any = "C", out: Any = None, *, blocking: bool = True
) -> np.ndarray[Any, Any]:
    """Return a copy in host memory."""
    return a.get(stream, order, out) if isinstance(a, ndarray) else np.asarray(a)


def where(condition: Any, x: Any = None, y: Any = None) -> Any:
    """Return ``x`` where ``condition`` is true, else ``y``; alone it finds the true places."""
    if not isinstance(condition, ndarray):
        ledger.refuse(f"where(condition: {type(condition).__name__}): only arrays of the device")
    if x is None and y is None:
        return condition.nonzero()
    for value in (x, y):
        if not isinstance(value, (ndarray, *SCALARS)):
            ledger.refuse(f"where: Unsupported type {type(value)}")
    operands = condition.use(), bare(x), bare(y)
    return done(lambda: np.where(*operands), lambda host: placed(host, row_major=True))


def copyto(dst: Any, src: Any, casting: Any = "same_kind", where: Any = None) -> None:
    """Copy ``src`` into ``dst``, everywhere or where a mask is true."""
    refuse_host_arrays("copyto", [dst, src, where])
    target, numbers, mask = dst.use(), bare(src), True if where is None else where.use()
    done(lambda: np.copyto(target, numbers, casting, mask))


def searchsorted(a: Any, v: Any, side: Any = "left", sorter: Any = None) -> Any:
    """Return where to put ``v`` into the sorted vector ``a``."""
    if not isinstance(a, ndarray) or not isinstance(v, ndarray | int | float | complex):
        ledger.refuse("Only python scalars or ndarrays are supported for v", NotImplementedError)
    operands = a.use(), bare(v), side, bare(sorter)
    return done(lambda: np.searchsorted(*operands), placed)


def as_strided(x: Any, shape: Any = None, strides: Any = None) -> ndarray:
    """Return a view by explicit strides; as in CuPy it does not know its base."""
    view = placed(np.lib.stride_tricks.as_strided(x.host, shape, strides), [x])
    view.base = None
    return view


def diagonal(a: Any, offset: Any = 0, axis1: Any = 0, axis2: Any = 1) -> Any:
    """Return a view of a diagonal, which CuPy lets one write to."""
    host = np.diagonal(a.host, offset, axis1, axis2)
    host.flags.writeable = True
    return placed(host, [a])


_OWN: dict[str, Function] = {
    "array": array, "asarray": asarray, "asanyarray": asarray, "asnumpy": asnumpy,
    "copyto": copyto, "diagonal": diagonal, "searchsorted": searchsorted, "where": where,
}  # fmt: skip


# ---------------------------------------------------------------------- linear algebra
class _Linalg(threading.local):
    """What to do when cuSOLVER cannot: "ignore" (the result is rubbish) or "raise"."""

    state = "ignore"


_linalg = _Linalg()


@contextmanager
def errstate(
    *, divide: Any = None, over: Any = None, under: Any = None, invalid: Any = None,
    linalg: str | None = None,
) -> Iterator[None]:  # fmt: skip
    """Say in the block what happens when linear algebra fails; there is nothing else to say."""
    if any(v is not None for v in (divide, over, under, invalid)):
        ledger.refuse("errstate(): only linalg= is implemented", NotImplementedError)
    before, _linalg.state = _linalg.state, linalg or _linalg.state
    try:
        yield
    finally:
        _linalg.state = before


def _linalg_function(name: str, parameters: str | None) -> Function:
    call = _function(f"linalg.{name}", parameters, getattr(np.linalg, name))

    def checked(*args: Any, **options: Any) -> Any:
        if _linalg.state == "raise":
            ledger.sync(f"linalg.{name}()")
        try:
            return call(*args, **options)
        except np.linalg.LinAlgError:
            if _linalg.state == "raise":
                raise
            return args[0] * np.nan

    checked.__name__ = name
    return checked


# ---------------------------------------------------------------------- modules
def _scatter_add(a: Any, slices: Any, value: Any) -> None:
    """Add ``value`` at indices of ``a``; places named twice get both."""
    a.scatter_add(slices, value)


def _special(function: Function) -> Function:
    """Return a special function of CuPy's from that of the NumPy backend."""

    def call(*args: Any) -> Any:
        if args[-1].dtype.char not in "fdFD":
            ledger.refuse(f"{function.__name__} is not implemented for {args[-1].dtype}")
        operands = bare(args)
        return done(lambda: function(*operands), placed)

    return call


_SPECIAL = {
    "digamma": "digamma", "erf": "erf", "erfc": "erfc", "erfinv": "erfinv", "expit": "sigmoid",
    "gammaln": "lgamma", "polygamma": "polygamma",
}  # fmt: skip


def _module(name: str, values: dict[str, Any]) -> ModuleType:
    module = ModuleType(name, "A stand-in that needs no GPU; see distgrad.testing.standin.")
    for key, value in values.items():
        setattr(module, key, value)
    return module


def _types() -> dict[str, Any]:
    """Return dtypes and constants, which are NumPy's own objects in CuPy too."""
    names = ("bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 "
             "complex64 complex128 dtype finfo iinfo inf nan pi e newaxis floating integer inexact "
             "number generic complexfloating signedinteger unsignedinteger")  # fmt: skip
    return {name: getattr(np, name) for name in names.split()}


def _properties(device: int) -> dict[str, Any]:
    """Return what a device is."""
    return {
        "name": b"Stand-in", "major": 9, "minor": 0, "totalGlobalMem": 1 << 30,
        "multiProcessorCount": 1, "warpSize": 32, "maxThreadsPerMultiProcessor": 2048,
        "sharedMemPerBlock": 49152, "l2CacheSize": 1 << 20, "uuid": bytes([device]) * 16,
    }  # fmt: skip


def make_modules(
    devices: int, with_nccl: bool = True, with_nvmath: bool = True, with_cudnn: bool = True
) -> dict[str, ModuleType | None]:
    """Return the stand-in's modules by the names they are imported under; None cannot be."""
    cuda = _cuda(_runtime(devices))
    top = [_cupy(cuda), _cupyx()]
    # No attribute of cupy.cuda: CuPy loads NCCL when its module is imported by name.
    products, cublas = cublaslt.make_modules(with_nvmath)
    vars(cuda)["device"] = _module("cupy.cuda.device", cublas)
    apart = [nccl.make_module(with_nccl), *products]
    if not emulator.compiler():  # nobody to compile the kernels of the package
        apart.append(_module("distgrad.backend.cuda.table", {"KERNELS": {}}))
    missing: dict[str, ModuleType | None] = {} if with_nvmath else {"nvmath": None}
    missing["cudnn"] = cudnn.make_module() if with_cudnn else None
    return missing | {m.__name__: m for m in [*top, *apart, *_below(top)]}


def _runtime(devices: int) -> ModuleType:
    def count() -> int:
        if devices < 0:
            raise CUDARuntimeError("cudaErrorInsufficientDriver: CUDA driver version is "
                                   "insufficient for CUDA runtime version")  # fmt: skip
        return devices

    return _module("cupy.cuda.runtime", {
        "getDeviceCount": count, "CUDARuntimeError": CUDARuntimeError,
        "getDevice": lambda: streams.here.device, "hostRegister": streams.host_register,
        "hostUnregister": streams.host_unregister, "getDeviceProperties": _properties,
        "ipcGetMemHandle": between.ipc_get_mem_handle,
        "ipcOpenMemHandle": between.ipc_open_mem_handle,
        "ipcCloseMemHandle": between.ipc_close_mem_handle,
        "ipcGetEventHandle": between.ipc_get_event_handle,
        "ipcOpenEventHandle": between.ipc_open_event_handle,
        "eventDestroy": between.event_destroy,
        "memGetInfo": lambda: ((1 << 30) - streams.machine.pool.used_bytes(), 1 << 30),
        "streamWaitEvent": between.stream_wait_event,
        "deviceCanAccessPeer": lambda device, peerDevice: int(device == peerDevice),
    })  # fmt: skip


def _cuda(runtime: ModuleType) -> ModuleType:
    return _module("cupy.cuda", {
        "runtime": runtime, "Device": streams.Device, "Stream": streams.Stream,
        "Event": streams.Event, "get_current_stream": streams.current_stream,
        "Graph": captures.Graph, "MemoryPool": streams.MemoryPool,
        "using_allocator": streams.using_allocator, "Memory": between.RawMemory,
        "MemoryHook": streams.MemoryHook, "set_allocator": streams.set_allocator,
        "UnownedMemory": between.UnownedMemory, "MemoryPointer": between.pointer,
        "alloc_pinned_memory": streams.alloc_pinned_memory,
    })  # fmt: skip


def _cupy(cuda: ModuleType) -> ModuleType:
    tricks = _module("cupy.lib.stride_tricks", {"as_strided": as_strided})
    linalg = {n: _linalg_function(n, p) for n, p in TABLE["cupy.linalg"].items()}
    fft = {n: _function(f"fft.{n}", p, getattr(np.fft, n)) for n, p in TABLE["cupy.fft"].items()}
    plain = {n: _function(n, p, getattr(np, n)) for n, p in TABLE["cupy"].items()}
    parts: dict[str, Any] = {
        "cuda": cuda, "lib": _module("cupy.lib", {"stride_tricks": tricks}), "ndarray": ndarray,
        "fft": _module("cupy.fft", fft),
        "linalg": _module("cupy.linalg", linalg | {"LinAlgError": np.linalg.LinAlgError}),
        "get_default_memory_pool": lambda: streams.machine.pool,
        "ufunc": ufunc, "__version__": TABLE["version"],
    }  # fmt: skip
    if emulator.compiler():
        parts |= {"RawModule": emulator.RawModule, "RawKernel": emulator.RawKernel}
    return _module("cupy", plain | _types() | ufuncs | _OWN | parts)


def _cupyx() -> ModuleType:
    special = {n: _special(getattr(numpy_backend, own)) for n, own in _SPECIAL.items()}
    parts = {
        "errstate": errstate, "scatter_add": _scatter_add, "empty_pinned": streams.empty_pinned,
        "zeros_pinned": streams.zeros_pinned,
        "scipy": _module("cupyx.scipy", {"special": _module("cupyx.scipy.special", special)}),
    }  # fmt: skip
    return _module("cupyx", parts)


def _below(modules: list[ModuleType]) -> list[ModuleType]:
    """Return the modules inside of modules."""
    found: list[ModuleType] = []
    for module in modules:
        inner = [v for v in vars(module).values() if isinstance(v, ModuleType)]
        found += [*inner, *_below(inner)]
    return found
