"""Memory that several processes or a GPU can reach: shared, pinned, and read from buffers."""

from __future__ import annotations

import itertools
import mmap
import os
import weakref
from pathlib import Path
from typing import Any

import numpy

from distgrad.autograd.declare import as_method, as_property
from distgrad.backend import pinned
from distgrad.backend.device import cuda_in_use
from distgrad.backend.dtype import as_numpy, from_numpy
from distgrad.errors import ArgumentError, DeviceError
from distgrad.tensor import Tensor, wrap

__all__ = ["frombuffer"]

_FOLDER = "/dev/shm" if os.access("/dev/shm", os.W_OK) else os.environ.get("TMPDIR", "/tmp")
_numbers = itertools.count()


# ---------------------------------------------------------------------- between processes
# Note [Shared tensors]
#   share_memory_ moves the elements into a file in memory that every process of the host can map.
#   Sent to another process by multiprocessing, a tensor on such memory is the name of the file and
#   its place there, so both see each other's changes; all other tensors travel as copies.  The file
#   goes with the last array of the process that made it; maps of other processes stay valid.
class _SharedMemory(mmap.mmap):
    """A file in memory, mapped by this process."""

    path: Path

    @classmethod
    def of(cls, path: Path, nbytes: int, *, make: bool = False) -> _SharedMemory:
        """Map a file, which its maker removes at the end of the map."""
        flags = os.O_RDWR | (os.O_CREAT | os.O_EXCL if make else 0)
        handle = os.open(path, flags, 0o600)
        try:
            if make:
                os.ftruncate(handle, nbytes)
            self = cls(handle, nbytes)
        finally:
            os.close(handle)
        self.path = path
        if make:
            weakref.finalize(self, _remove, path, os.getpid())
        return self


def _remove(path: Path, maker: int) -> None:
    if os.getpid() == maker:  # not a child that was forked from it
        path.unlink(missing_ok=True)


def share_memory_(self: Tensor) -> Tensor:
    """Move the elements to memory that processes of this host share, in place; return the tensor.

    Does nothing to one that is there, and to one on a GPU.

    Differs from PyTorch: views of the tensor do not follow it.
    """
    if self.is_cuda or is_shared(self):
        return self
    name = f"distgrad-{os.getpid()}-{next(_numbers)}"
    memory = _SharedMemory.of(Path(_FOLDER, name), max(1, self.nbytes), make=True)
    array: Any = numpy.frombuffer(memory, self.array.dtype, self.numel())
    array = array.reshape(self.array.shape)
    array[...] = self.array
    self.array = array
    _tell_multiprocessing()
    return self


def is_shared(self: Tensor) -> bool:
    """Return whether processes of this host can share the elements; True on a GPU."""
    return self.is_cuda or _memory_of(self) is not None


def _memory_of(tensor: Tensor) -> _SharedMemory | None:
    """Return the shared memory in which the elements lie."""
    base = tensor.array
    while base is not None and not isinstance(base, _SharedMemory):
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    return base


def _reduce(tensor: Tensor) -> Any:
    """Return how multiprocessing sends a tensor; see Note [Shared tensors]."""
    memory = None if tensor.is_cuda else _memory_of(tensor)
    if memory is None:
        return tensor.__reduce_ex__(2)
    array = tensor.array
    start = numpy.frombuffer(memory, numpy.uint8).ctypes.data
    form = array.dtype, array.shape, array.ctypes.data - start, array.strides
    return _attach, (type(tensor), str(memory.path), len(memory), form, tensor.requires_grad)


def _attach(
    kind: type[Tensor], path: str, nbytes: int, form: tuple[Any, ...], requires_grad: bool
) -> Tensor:
    dtype, shape, offset, strides = form
    memory = _SharedMemory.of(Path(path), nbytes)
    out = wrap(numpy.ndarray(shape, dtype, memory, offset, strides), kind)
    out._requires = requires_grad
    _tell_multiprocessing()
    return out


def _tell_multiprocessing() -> None:
    """Let it send tensors of every class as Note [Shared tensors] says."""
    from multiprocessing.reduction import ForkingPickler  # it loads sockets; few programs share

    kinds = [Tensor]
    for kind in kinds:
        ForkingPickler.register(kind, _reduce)
        kinds += kind.__subclasses__()


# ---------------------------------------------------------------------- beside a GPU
def pin_memory(self: Tensor, device: Any = None) -> Tensor:
    """Return a copy in memory from which a GPU copies without the processor.

    Raises:
        DeviceError: the tensor is on a GPU, or there is none.
    """
    if self.is_cuda:
        raise DeviceError(
            f"pin_memory({self._brief()}): cannot pin a tensor on a GPU, only dense CPU tensors"
        )
    if is_pinned(self):
        return self
    return wrap(pinned.copied(self.array, f"pin_memory({self._brief()})"))


def is_pinned(self: Tensor, device: Any = None) -> bool:
    """Return whether the elements lie in page-locked memory."""
    return pinned.is_pinned(self.array)


def record_stream(self: Tensor, stream: Any) -> None:
    """Keep the tensor's memory until what ``stream`` does with it is done, also when it is freed.

    Nothing waits. The memory is found to be free at the next such call, or the next copy with
    ``non_blocking``.
    """
    if cuda_in_use() and self.is_cuda:
        pinned.hold(self.array, stream.raw)


# ---------------------------------------------------------------------- buffers
def frombuffer(
    buffer: Any,
    *,
    dtype: Any,
    count: int = -1,
    offset: int = 0,
    requires_grad: bool = False,
) -> Tensor:
    """Return a tensor of one dimension that shares the memory of a Python buffer.

    Args:
        buffer: bytes, a bytearray, a memoryview, an mmap or the like.
        dtype: of the elements.
        count: how many; -1 takes all that the buffer holds.
        offset: bytes to leave out at its beginning.
        requires_grad: record operations on the tensor.

    Example:
        >>> import distgrad as dg
        >>> frombuffer(bytearray([1, 0, 2, 0]), dtype=dg.int16)
        tensor([1, 2], dtype=distgrad.int16)
    """
    kind = as_numpy(dtype)
    have = memoryview(buffer).nbytes
    head = f"frombuffer({have} bytes, dtype={from_numpy(kind)}, count={count}, offset={offset})"
    if not 0 <= offset < have:
        raise ArgumentError(f"{head}: offset must be non-negative and no greater than the buffer")
    if count == -1 and (have - offset) % kind.itemsize:
        raise ArgumentError(
            f"{head}: {have - offset} bytes are no multiple of the element size {kind.itemsize}"
        )
    if count == 0 or count < -1 or offset + max(count, 0) * kind.itemsize > have:
        raise ArgumentError(f"{head}: the buffer does not hold {count} elements")
    out = wrap(numpy.frombuffer(buffer, kind, count, offset))
    return out.requires_grad_() if requires_grad else out


# ---------------------------------------------------------------------- questions
def _never(self: Tensor) -> bool:
    """Return False: tensors are dense arrays on the CPU or on CUDA."""
    return False


for _name in (
    "is_ipu", "is_maia", "is_meta", "is_mkldnn", "is_mps", "is_mtia", "is_nested", "is_quantized",
    "is_sparse", "is_sparse_csr", "is_vulkan", "is_xla", "is_xpu",
):  # fmt: skip
    as_property(_never, _name)
for _function in (is_pinned, is_shared, pin_memory, record_stream, share_memory_):
    as_method(_function)
del _function, _name


def _cuda_array_interface(self: Tensor) -> Any:
    """CUDA's array protocol: how other libraries read the memory on a GPU; v3."""
    if not self.is_cuda:
        raise AttributeError(
            f"Can't get __cuda_array_interface__ on non-CUDA tensor type: {self.type()}; "
            "use .cuda() first"
        )
    if self.requires_grad:
        raise DeviceError(
            f"__cuda_array_interface__({self._brief()}): Can't get it on a Variable that requires "
            "grad; use var.detach()"
        )
    return self.array.__cuda_array_interface__


as_property(_cuda_array_interface, "__cuda_array_interface__")
