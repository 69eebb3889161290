"""The stand-in's ``ndarray``: memory of the host behind the surface of ``cupy.ndarray``.

What CuPy refuses is refused (NumPy's functions and arrays beside it, names it has not), what is
undefined on a device is an error (the same place stored twice, an index out of bounds), and every
wait of the host for the device is counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np

from distgrad.testing.standin.captures import repetition
from distgrad.testing.standin.ledger import ledger
from distgrad.testing.standin.streams import (
    Device,
    Memory,
    MemoryPointer,
    _bytes,
    capturing,
    current_stream,
    here,
    host_knows,
    machine,
    note,
    refuse_in_capture,
)

TABLE: dict[str, Any] = json.loads(
    Path(__file__).with_name("cupy_api.json").read_text(encoding="utf-8")
)
R = TypeVar("R")
SCALARS = (bool, int, float, complex, np.generic)


class Flags:
    """The flags that CuPy has; there is no ``writeable``."""

    __slots__ = ("c_contiguous", "f_contiguous", "owndata")

    def __init__(self, host: np.ndarray[Any, Any]) -> None:
        self.c_contiguous, self.f_contiguous = host.flags.c_contiguous, host.flags.f_contiguous
        self.owndata = host.flags.owndata


class ndarray:
    """``cupy.ndarray`` without a GPU."""

    __module__ = "cupy"  # by which distgrad.backend.device knows it
    __slots__ = ("__weakref__", "base", "data", "host")
    base: ndarray | None
    data: MemoryPointer  # as in CuPy it holds the memory, and views that begin there share it
    host: np.ndarray[Any, Any]
    __array_ufunc__ = None  # NumPy's functions and operators refuse this class
    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]

    def __init__(
        self,
        shape: Any,
        dtype: Any = float,
        memptr: Any = None,
        strides: Any = None,
        order: Any = "C",
    ) -> None:
        if strides is not None:
            ledger.refuse("ndarray(strides): the stand-in has none")
        if memptr is not None:
            kind = np.dtype(dtype)
            count = int(np.prod(shape))
            whole = _bytes(memptr.ptr, count * kind.itemsize)
            self.host, self.base = whole.view(kind).reshape(shape), None
            self.data = memptr
            return
        self.host, self.base = _pooled(np.empty(shape, dtype, order)), None
        self.data = _pointer(Memory(self.host), self.host)

    @property
    def memory(self) -> Memory:
        """The memory that the numbers lie in."""
        found: Memory = self.data.mem
        return found

    def use(self) -> np.ndarray[Any, Any]:
        """Return the numbers for a kernel of the current stream.

        Raises:
            ValueError: the array is on another device, which this one cannot look into.
            StreamHazard: another stream may still be using it.
        """
        if self.memory.device != here.device:
            ledger.refuse(
                f"The device where the array resides ({self.memory.device}) is different from the "
                f"current device ({here.device}). Peer access is unavailable between these "
                "devices.",
                ValueError,
            )
        self.memory.use()
        return self.host

    # ------------------------------------------------------------------ NumPy is refused
    def __array__(self, *options: Any, **more: Any) -> NoReturn:
        ledger.refuse(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __array_function__(self, function: Any, *rest: Any) -> NoReturn:
        ledger.refuse(f"numpy.{function.__name__} was called on a device array; use xp")

    # ------------------------------------------------------------------ description
    dtype = property(lambda self: self.host.dtype)
    itemsize = property(lambda self: self.host.itemsize)
    nbytes = property(lambda self: self.host.nbytes)
    ndim = property(lambda self: self.host.ndim)
    size = property(lambda self: self.host.size)
    strides = property(lambda self: self.host.strides)
    T = property(lambda self: self.transpose())
    mT = property(lambda self: self.swapaxes(-1, -2))
    flags = property(lambda self: Flags(self.host))
    device = property(lambda self: Device(self.memory.device))

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of each dimension."""
        shape: tuple[int, ...] = self.host.shape
        return shape

    @property
    def real(self) -> ndarray:
        """The real part, a view."""
        return placed(self.host.real, [self])

    @real.setter
    def real(self, value: Any) -> None:
        self.real[...] = value

    @property
    def imag(self) -> ndarray:
        """The imaginary part, a view; of real numbers new zeros."""
        if self.dtype.kind == "c":
            return placed(self.host.imag, [self])
        return done(self.host.imag.copy, placed)

    @imag.setter
    def imag(self, value: Any) -> None:
        self.imag[...] = value

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self.host.__array_interface__, "version": 3}

    def __len__(self) -> int:
        return len(self.host)

    def __iter__(self) -> Iterator[ndarray]:
        if not self.ndim:
            raise TypeError("iteration over a 0-d array")
        return (self[i] for i in range(len(self)))

    # ------------------------------------------------------------------ the host waits
    def get(
        self, stream: Any = None, order: Any = "C", out: Any = None, blocking: bool = True
    ) -> np.ndarray[Any, Any]:
        """Return a copy in host memory."""
        stream = stream or current_stream(self.memory.device)
        self.memory.use(stream)
        ledger.sync("get()")
        host_knows(stream.clock())
        if out is None:
            return self.host.copy(order)
        out[...] = self.host
        found: np.ndarray[Any, Any] = out
        return found

    def set(self, arr: Any, stream: Any = None) -> None:
        """Copy an array of the host to here."""
        if not isinstance(arr, np.ndarray):
            ledger.refuse("Only numpy.ndarray can be set to cupy.ndarray")
        upload("ndarray.set()")
        self.use()[...] = arr

    def item(self) -> Any:
        """Return the only element as a number."""
        return self.get().item()

    def tolist(self) -> Any:
        """Return nested lists of numbers."""
        return self.get().tolist()

    def __bool__(self) -> bool:
        return bool(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __complex__(self) -> complex:
        return complex(self.get())

    def __repr__(self) -> str:
        return repr(self.get())

    def __format__(self, spec: str) -> str:
        return format(self.get(), spec)

    def __index__(self) -> NoReturn:
        ledger.refuse("cupy.ndarray has no __index__; use int()")

    def __contains__(self, value: object) -> NoReturn:
        ledger.refuse("cupy.ndarray has no __contains__; use (x == value).any()")

    # ------------------------------------------------------------------ indexing
    def __getitem__(self, index: Any) -> ndarray:
        found = read_index(self, index, stores=False)
        return done(lambda: self.host[found], lambda host: placed(host, [self]))

    def __setitem__(self, index: Any, value: Any) -> None:
        check_operand("__setitem__", value)
        _note_number("x[array] = number", index, value)
        many = isinstance(value, ndarray) and value.size > 1
        host, found, numbers = (
            self.use(), read_index(self, index, stores=True, many=many), bare(value)
        )  # fmt: skip
        done(lambda: host.__setitem__(found, numbers))

    def scatter_add(self, slices: Any, value: Any) -> None:
        """Add at indices; places named twice get both."""
        check_operand("scatter_add", value)
        _note_number("scatter_add(array, number)", slices, value)
        if self.dtype.char not in "iefdIQL":
            ledger.refuse(f"scatter_add does not support {self.dtype}")
        host, found, numbers = self.use(), read_index(self, slices, stores=False), bare(value)
        done(lambda: np.add.at(host, found, numbers))

    # ------------------------------------------------------------------ methods that differ
    def astype(
        self,
        dtype: Any,
        order: Any = "K",
        casting: Any = None,
        subok: Any = None,
        copy: bool = True,
    ) -> ndarray:
        """Return a copy in ``dtype``; itself if it is that already and ``copy`` is False."""
        host = self.use()
        return done(
            lambda: host.astype(dtype, order, casting or "unsafe", copy=copy),
            lambda made: placed(made, [self]),
        )

    def view(self, dtype: Any = None, type: Any = None) -> ndarray:
        """Return the same memory, read as ``dtype``."""
        return placed(self.host.view() if dtype is None else self.host.view(dtype), [self])

    def reshape(self, *shape: Any, order: Any = "C", copy: Any = None) -> ndarray:
        """Return a view in another shape, or a copy where there is none."""
        return done(
            lambda: self.host.reshape(*shape, order=order), lambda host: placed(host, [self])
        )

    def ravel(self, order: Any = "C") -> ndarray:
        """Return the elements in a row."""
        if order == "K":
            ledger.refuse("ravel with order='K' not yet implemented.", NotImplementedError)
        return done(lambda: self.host.ravel(order), lambda host: placed(host, [self]))

    def transpose(self, *axes: Any) -> ndarray:
        """Return a view with its dimensions in another order."""
        return placed(self.host.transpose(*axes), [self])

    def copy(self, order: Any = "C") -> ndarray:
        """Return a copy on the current device, wherever this array is."""
        self.memory.use(current_stream(self.memory.device))
        return done(lambda: self.host.copy(order), placed)

    def fill(self, value: Any) -> None:
        """Store one number everywhere."""
        check_operand("fill", value)
        host, number = self.use(), bare(value)
        done(lambda: host.fill(number))

    def nonzero(self) -> tuple[ndarray, ...]:
        """Return the indices of what is not zero, one array per dimension."""
        ledger.sync("nonzero()")
        return tuple(placed(a) for a in self.use().nonzero())


# ---------------------------------------------------------------------- between host and device
def _as_it_is(result: Any) -> Any:
    return result


def done(
    compute: Callable[[], Any], give: Callable[[Any], R] = _as_it_is, *, kernel: bool | None = None
) -> R:
    """Return what ``give`` makes of ``compute()``; a capture repeats that at each launch.

    Args:
        compute: works on arrays of the host only.
        give: makes arrays of the device of what it returned.
        kernel: whether to note a kernel of CuPy's; None finds out whether there is new memory, or
            nothing is returned, so something was written.
    """
    with np.errstate(all="ignore"):
        result = compute()
    pieces = machine.pieces
    out = give(result)
    if kernel is None:
        kernel = result is None or machine.pieces > pieces
    if kernel:
        _note_kernel(compute)
    if capturing() is not None:
        note(repetition(compute, out))
    return out


def _note_kernel(compute: Callable[[], Any]) -> None:
    """Note a kernel by the name of the function that computes it, or in which that is written."""
    name = compute.__name__
    if name == "<lambda>":
        name = compute.__qualname__.partition(".<locals>")[0].rpartition(".")[2]
    if not name.startswith("empty"):
        ledger.kernels.append(name)


def _note_number(what: str, index: Any, value: Any) -> None:
    """Note that CuPy makes an array of a number that it stores at indices."""
    parts = index if isinstance(index, tuple) else (index,)
    if not isinstance(value, ndarray) and any(isinstance(part, ndarray) for part in parts):
        upload(what)


def upload(what: str) -> None:
    """Note that an array of the host becomes one of the device."""
    refuse_in_capture(f"{what} from memory that is not pinned")
    ledger.uploads += 1


def placed(host: Any, sources: Sequence[ndarray] = (), *, row_major: bool = False) -> ndarray:
    """Return an array of the host as one of the device: a view of a source, or new memory.

    Args:
        host: the array, or a number, which becomes an array without dimensions.
        sources: what it may be a view of.
        row_major: make new memory row-major, as CuPy's kernels do.
    """
    out = object.__new__(ndarray)
    out.base = None
    for source in sources:
        if host is source.host:
            return source
        if isinstance(host, np.ndarray) and host.size and np.may_share_memory(host, source.host):
            out.base = source if source.base is None else source.base
            same = host.ctypes.data == source.data.ptr
            out.data = source.data if same else _pointer(source.memory, host)
            break
    out.host = np.asarray(host, order="C" if row_major and out.base is None else None)
    if out.base is None:
        out.host = _pooled(out.host)
        for source in sources:
            source.use()
        out.data = _pointer(Memory(out.host), out.host)
        out.memory.use()
    return out


def _pointer(memory: Memory, host: np.ndarray[Any, Any]) -> MemoryPointer:
    return MemoryPointer(memory, int(host.ctypes.data))


def _pooled(host: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return an array that begins where one of CuPy's pool does, at a multiple of 512 bytes."""
    dense = host.flags.c_contiguous or host.flags.f_contiguous
    if host.ctypes.data % 512 == 0 or not dense:
        return host
    room = np.empty(host.nbytes + 512, np.uint8)
    start = -room.ctypes.data % 512
    out: np.ndarray[Any, Any] = np.ndarray(host.shape, host.dtype, room.data, start, host.strides)
    out[...] = host
    return out


def given(host: Any, sources: Sequence[ndarray]) -> Any:
    """Return what NumPy gave as CuPy gives it, in tuples and lists too."""
    if isinstance(host, tuple | list):
        parts = [given(h, sources) for h in host]
        return parts if isinstance(host, list) else tuple(parts)
    return placed(host, sources) if isinstance(host, np.ndarray | np.generic) else host


def bare(value: Any) -> Any:
    """Return ``value`` with the arrays of the host in the place of the stand-in's, to be used."""
    if isinstance(value, ndarray):
        return value.use()
    if type(value) in (tuple, list):
        return type(value)(bare(v) for v in value)
    return value


def arrays_in(values: Any) -> list[ndarray]:
    """Return the device arrays in nested tuples and lists."""
    if isinstance(values, ndarray):
        return [values]
    if isinstance(values, tuple | list):
        return [a for v in values for a in arrays_in(v)]
    return []


def refuse_host_arrays(name: str, values: Any) -> None:
    """Raise for a NumPy array anywhere among ``values``."""
    if isinstance(values, np.ndarray):
        ledger.refuse(f"{name}: Unsupported type {type(values)}")
    if isinstance(values, tuple | list):
        for value in values:
            refuse_host_arrays(name, value)


def check_operand(name: str, value: Any) -> None:
    """Raise for what is neither an array of the device nor a number."""
    if not isinstance(value, (ndarray, *SCALARS)):
        ledger.refuse(f"{name}: Unsupported type {type(value)}")


# ---------------------------------------------------------------------- indices
def read_index(array: ndarray, index: Any, *, stores: bool, many: bool = False) -> Any:
    """Return NumPy's form of an index, after what a device could not check.

    Args:
        stores: something is stored there.
        many: it is different numbers, of which one place must not get two.
    """
    refuse_host_arrays("index", index)
    parts = index if isinstance(index, tuple) else (index,)
    chosen = [p for p in parts if isinstance(p, ndarray)]
    if any(p.dtype.kind == "b" for p in chosen) and not stores:
        ledger.sync("indexing by a mask")
    found = bare(index)
    if not chosen:
        return found
    try:
        array.host[found]
        if many:
            _check_once(array.host, found)
    except IndexError as error:
        ledger.refuse(f"{error}: CuPy wraps such an index around", IndexError)
    return found


def _check_once(host: np.ndarray[Any, Any], index: Any) -> None:
    places = np.arange(host.size).reshape(host.shape)[index].reshape(-1)
    if len(np.unique(places)) != len(places):
        ledger.refuse("one place is stored twice, in no fixed order; use cupyx.scatter_add")


# ---------------------------------------------------------------------- plain methods
_BLAS = frozenset({"dot", "einsum", "inner", "matmul", "tensordot", "vdot"})


def refuse_cublas(name: str, *operands: Any) -> None:
    """Raise as CuPy does for a matrix product in a capture, or of stacks of bfloat16."""
    arrays = arrays_in(operands)
    if any(a.ndim > 2 and a.dtype.name == "bfloat16" for a in arrays):
        ledger.refuse(f"{name}: CuPy multiplies no stacks of bfloat16")
    floats = any(a.dtype.kind not in "biu" for a in arrays)
    if capturing() is not None and floats and not ledger.cublas_captures:
        ledger.refuse(
            f"{name}: calling cuBLAS API during stream capture is currently unsupported",
            NotImplementedError,
        )


def method(name: str, parameters: str) -> Callable[..., Any]:
    """Return a method with CuPy's parameters that does what NumPy's does."""
    names = parameters.split()
    native = getattr(np.ndarray, name)

    def call(self: ndarray, *args: Any, **options: Any) -> Any:
        if len(args) > len(names):
            ledger.refuse(f"ndarray.{name}() takes {len(names)} arguments, got {len(args)}")
        bound = dict(zip(names, args, strict=False)) | options
        if set(bound) - set(names):
            ledger.refuse(f"ndarray.{name}() got an unexpected keyword of {sorted(bound)}")
        refuse_host_arrays(f"ndarray.{name}", list(bound.values()))
        numbers = {k: bare(v) for k, v in bound.items()} if names else {}
        sources = [self, *arrays_in(list(bound.values()))]

        def compute() -> Any:
            return native(self.host, **numbers)

        def give(out: Any) -> Any:
            if out is None:  # in place
                self.use()
            return given(out, sources)

        if name in _BLAS:
            refuse_cublas(name, self)
        compute.__name__ = name
        return done(compute, give)

    call.__name__ = name
    return call


for _name, _parameters in TABLE["ndarray"].items():
    if _parameters is not None and hasattr(np.ndarray, _name) and not hasattr(ndarray, _name):
        setattr(ndarray, _name, method(_name, _parameters))
