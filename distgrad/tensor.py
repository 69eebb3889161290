"""The class Tensor: an array, its place in the graph, and conversions.  No mathematics.

Mathematics, methods and operators are attached from the table of operations (``distgrad.ops``).
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy

from distgrad.backend import device as _device
from distgrad.backend import dtype as _dtype
from distgrad.backend.format import format_array
from distgrad.errors import ArgumentTypeError, DeviceError, GradError, ShapeError

ndarray = numpy.ndarray


class Size(tuple[int, ...]):
    """The shape of a tensor: a tuple of ints that can count its elements.

    Example:
        >>> Size((2, 3)).numel()
        6
    """

    def numel(self) -> int:
        """Return the number of elements of this shape."""
        return math.prod(self)

    def __repr__(self) -> str:
        return f"{_dtype.MODULE_PREFIX}.Size({list(self)})"

    def __add__(self, other: tuple[int, ...]) -> Size:  # type: ignore[override]
        return Size(tuple.__add__(self, other))

    def __getitem__(self, index: Any) -> Any:
        item = tuple.__getitem__(self, index)
        return Size(item) if isinstance(index, slice) else item


class Clock:
    """Counts changes in place, over all tensors; a graph node remembers the time of its birth."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = 0


clock = Clock()


class Shared:
    """What tensors on one memory share: how often it was changed in place, when, and its views."""

    __slots__ = ("changed_at", "count", "node", "views")
    views: list[weakref.ref[Tensor]] | None

    def __init__(self, node: Any = None) -> None:
        self.count = 0
        self.changed_at = -1
        self.views = None
        self.node = None if node is None else weakref.ref(node.owner)

    def bump(self) -> None:
        """Note one change in place."""
        clock.now += 1
        self.count += 1
        self.changed_at = clock.now
        node = None if self.node is None else self.node()
        if node is not None:
            node.changed_at = clock.now


class Tensor:
    """A multi-dimensional array that remembers how it was computed.

    ``array`` is the NumPy or CuPy array itself; ``data`` is PyTorch's alias without a history.
    """

    __slots__ = (
        "__dict__",
        "__weakref__",
        "_node",
        "_shared",
        "array",
        "grad",
        "requires_grad",
    )
    array: Any
    requires_grad: bool
    grad: Tensor | None
    _node: Any
    _shared: Shared | None

    # Rare state lives in __dict__; these are its defaults.
    _leaf = True
    _edges: tuple[Any, ...] = ()
    _base: Tensor | None = None
    _replay: Callable[[Tensor], Tensor] | None = None  # rebuilds this view from its base
    _hooks: dict[int, Callable[..., Any]] | None = None
    _post_hooks: dict[int, Callable[..., Any]] | None = None
    _grad_buffer: Tensor | None = None
    _retains = False

    __array_ufunc__ = None  # numpy_array * tensor calls Tensor.__rmul__
    __array_priority__ = 1000

    def __init__(self, *data: Any, dtype: Any = None, device: Any = None) -> None:
        """Make a float tensor of the given sizes (uninitialised) or from nested sequences."""
        kind = _dtype.as_numpy(dtype) if dtype is not None else _dtype.default_float()
        if data and all(isinstance(n, int) for n in data):
            array = numpy.empty(data, kind)
        elif len(data) <= 1:
            array = numpy.array(data[0] if data else [], dtype=kind)
        else:
            raise ArgumentTypeError(f"Tensor{data!r}: takes sizes or one sequence; use tensor([…])")
        self.array = _device.to_device(array, _device.device(device or "cpu"))
        self.requires_grad = False
        self.grad = self._node = self._shared = None

    # ------------------------------------------------------------------ description
    @property
    def shape(self) -> Size:
        """The length of each dimension."""
        return Size(self.array.shape)

    @property
    def _shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.array.shape
        return shape

    @property
    def dtype(self) -> _dtype.dtype:
        """The type of the elements."""
        return _dtype.from_numpy(self.array.dtype)

    @property
    def device(self) -> _device.device:
        """Where the array lives."""
        return _device.device_of(self.array)

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return int(self.array.ndim)

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return int(self.array.itemsize)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return int(self.array.nbytes)

    @property
    def is_cuda(self) -> bool:
        """True when the array lives on a GPU."""
        return type(self.array) is not ndarray

    def dim(self) -> int:
        """Return the number of dimensions."""
        return int(self.array.ndim)

    def numel(self) -> int:
        """Return the number of elements."""
        return int(self.array.size)

    nelement = numel

    def element_size(self) -> int:
        """Return the bytes of one element."""
        return int(self.array.itemsize)

    def size(self, dim: int | None = None) -> Size | int:
        """Return the shape, or its entry ``dim``."""
        return Size(self.array.shape) if dim is None else int(self.array.shape[dim])

    def stride(self, dim: int | None = None) -> tuple[int, ...] | int:
        """Return the steps between neighbours, in elements (not bytes), or that of ``dim``."""
        steps = tuple(s // self.array.itemsize for s in self.array.strides)
        return steps if dim is None else steps[dim]

    def is_contiguous(self) -> bool:
        """Return True when the elements lie in row-major order without gaps."""
        return bool(self.array.flags.c_contiguous)

    def is_floating_point(self) -> bool:
        """Return True for float16, bfloat16, float32 and float64."""
        return self.dtype.is_floating_point

    def is_complex(self) -> bool:
        """Return True for complex64 and complex128."""
        return self.dtype.is_complex

    def data_ptr(self) -> int:
        """Return the address of the first element."""
        array = self.array
        return int(array.ctypes.data if type(array) is ndarray else array.data.ptr)

    # ------------------------------------------------------------------ place in the graph
    @property
    def grad_fn(self) -> Any:
        """The graph node that made this tensor, or None for a leaf."""
        node = self._node
        return None if node is None else node.owner

    @property
    def is_leaf(self) -> bool:
        """True when no recorded operation made this tensor."""
        return self._node is None

    @property
    def retains_grad(self) -> bool:
        """True for a non-leaf tensor whose ``grad`` will be kept."""
        return self._retains

    @property
    def _version(self) -> int:
        return 0 if self._shared is None else self._shared.count

    @property
    def data(self) -> Tensor:
        """The same memory without a history; changes are not seen by autograd."""
        return wrap(self.array)

    @data.setter
    def data(self, value: Tensor) -> None:
        self.array = value.array

    def detach(self) -> Tensor:
        """Return the same memory without a history; changes in place are seen by autograd."""
        array = self.array
        if type(array) is not ndarray and hasattr(array, "below"):  # every layer has a history
            return array.detached()  # type: ignore[no-any-return]
        out = wrap(array)
        out._shared = shared_of(self)
        return out

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Set ``requires_grad`` of a leaf in place and return it."""
        if self._node is not None and not requires_grad:
            raise GradError(
                f"requires_grad_({self._brief()}): you can only change requires_grad flags of leaf "
                "tensors; use .detach() for a tensor without a history"
            )
        if requires_grad and self.array.dtype.kind not in "fcV":
            raise GradError(
                f"requires_grad_({self._brief()}): only tensors of floating point and complex "
                "dtype can require gradients; convert with .float() first"
            )
        self.requires_grad = requires_grad
        return self

    # ------------------------------------------------------------------ conversion
    def item(self) -> Any:
        """Return the only element as a Python number."""
        if self.array.size != 1:
            raise ShapeError(
                f"item({self._brief()}): a Tensor with {self.array.size} elements cannot be "
                "converted to Scalar; reduce it first (.sum(), .mean()) or index one element"
            )
        return self.array.item()

    def tolist(self) -> Any:
        """Return nested lists of Python numbers, or one number for a zero-dimensional tensor."""
        return self.array.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """Return the NumPy array that shares this tensor's memory.

        Args:
            force: detach and copy to the host first where needed.

        Raises:
            GradError: the tensor requires grad.
            DeviceError: the tensor lives on a GPU.
        """
        if self.requires_grad and not force:
            raise GradError(
                f"numpy({self._brief()}): can't call numpy() on Tensor that requires grad; "
                "use tensor.detach().numpy() instead"
            )
        if type(self.array) is not ndarray:
            if hasattr(self.array, "below"):
                return self.array.host(force)
            if force:
                return _device.to_device(self.array, _device.device("cpu"))
            raise DeviceError(
                f"numpy({self._brief()}): can't convert a cuda tensor to numpy; "
                "use Tensor.cpu() to copy the tensor to host memory first"
            )
        return self.array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return numpy.array(self.numpy(), dtype=dtype, copy=copy)

    def __dlpack__(self, **options: Any) -> Any:
        if self.requires_grad:
            raise GradError(f"__dlpack__({self._brief()}): requires grad; use tensor.detach()")
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()

    def __bool__(self) -> bool:
        if self.array.size != 1:
            raise ShapeError(
                f"bool({self._brief()}): Boolean value of Tensor with "
                f"{'no values' if not self.array.size else 'more than one value'} is ambiguous; "
                "use .any() or .all()"
            )
        return bool(self.array.item())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __complex__(self) -> complex:
        return complex(self.item())

    def __index__(self) -> int:
        if self.array.dtype.kind not in "iub" or self.array.size != 1:
            raise ArgumentTypeError(
                f"index({self._brief()}): only integer tensors of a single element can be "
                "converted to an index"
            )
        return int(self.array.item())

    def __len__(self) -> int:
        if not self.array.ndim:
            raise ArgumentTypeError(f"len({self._brief()}): len() of a 0-d tensor")
        return int(self.array.shape[0])

    def __iter__(self) -> Iterator[Tensor]:
        if not self.array.ndim:
            raise ArgumentTypeError(f"iter({self._brief()}): iteration over a 0-d tensor")
        return (self[i] for i in range(self.array.shape[0]))  # type: ignore[index]

    __hash__ = object.__hash__

    def __repr__(self, *, tensor_contents: str | None = None) -> str:
        if hasattr(self.array, "below"):  # a traced array: forward mode or vmap
            return self.array.show(self._suffixes())  # type: ignore[no-any-return]
        return format_array(self.array, suffixes=self._suffixes())

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec and not self.array.ndim else repr(self)

    def _suffixes(self) -> list[str]:
        if self._node is not None:
            return [f"grad_fn=<{self._node.owner.name()}>"]
        return ["requires_grad=True"] if self.requires_grad else []

    def _brief(self) -> str:
        return f"{self.array.dtype}{list(self.array.shape)}"

    def __reduce_ex__(self, protocol: Any) -> Any:
        host = _device.to_device(self.array, _device.device("cpu"))
        return _rebuild, (type(self), host, str(self.device), self.requires_grad)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if self._node is not None:
            raise GradError(
                f"deepcopy({self._brief()}): only Tensors created explicitly by the user (graph "
                "leaves) support the deepcopy protocol; use .detach() first"
            )
        if id(self) not in memo:
            out = wrap(self.array.copy(), type(self))
            out.requires_grad = self.requires_grad
            memo[id(self)] = out
            if self.grad is not None:
                out.grad = self.grad.__deepcopy__(memo)
        copied: Tensor = memo[id(self)]
        return copied


def wrap(array: Any, kind: type[Tensor] = Tensor) -> Tensor:
    """Return a tensor of class ``kind`` on ``array``: no copy, no history, no checks."""
    out = object.__new__(kind)
    out.array = array
    out.requires_grad = False
    out.grad = out._node = out._shared = None
    return out


def shared_of(tensor: Tensor) -> Shared:
    """Return the version counter of a tensor's memory, made at the first call."""
    if tensor._shared is None:
        tensor._shared = Shared(tensor._node)
    return tensor._shared


def _rebuild(kind: type[Tensor], host: Any, device: str, requires_grad: bool) -> Tensor:
    out = wrap(_device.to_device(host, _device.device(device)), kind)
    out.requires_grad = requires_grad
    return out


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """Return the tensors among ``values``, looking one level into lists and tuples."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += [v for v in value if isinstance(v, Tensor)]
    return found
