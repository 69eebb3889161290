"""The class Tensor: an array, its place in the graph, and conversions.  No mathematics.

Mathematics, methods and operators are attached from the table of operations (``distgrad.ops``).
"""

from __future__ import annotations

import copy
import itertools
import math
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from typing import Any, ClassVar, NoReturn

import numpy

from distgrad.backend import device as _device
from distgrad.backend import dtype as _dtype
from distgrad.backend import layout as _layout
from distgrad.backend.format import format_array
from distgrad.errors import (
    ArgumentError,
    ArgumentTypeError,
    DeviceError,
    DtypeError,
    GradError,
    IndexOutOfRange,
    ShapeError,
)

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
    """Counts what happens, over all tensors: the birth of each graph node and each change in place.

    So it says which of two nodes was recorded later, and what has changed since.
    """

    __slots__ = ("changed", "tick")

    def __init__(self) -> None:
        self.changed = 0  # the time of the last change
        self.tick: Callable[[], int] = itertools.count(1).__next__  # counts on


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
        self.count += 1
        clock.changed = self.changed_at = clock.tick()
        node = None if self.node is None else self.node()
        if node is not None:
            node.changed_at = self.changed_at


class _Untracked(Shared):
    """What tensors of inference mode have in place of a version counter."""

    __slots__ = ()

    def __init__(self) -> None:
        self.changed_at, self.views, self.node = -1, None, None

    @property
    def count(self) -> int:  # type: ignore[override]
        """Nobody counts."""
        raise GradError("_version: Inference tensors do not track version counter.")

    def bump(self) -> None:
        """Do nothing."""


UNTRACKED = _Untracked()


class Tensor:
    """A multi-dimensional array that remembers how it was computed.

    ``array`` is the NumPy or CuPy array itself; ``data`` is PyTorch's alias without a history.
    """

    __slots__ = (
        "__dict__",
        "__weakref__",
        "_grad",
        "_node",
        "_requires",
        "_shared",
        "array",
    )
    array: Any
    _requires: bool  # what ``requires_grad`` says, without its checks
    _grad: Tensor | None  # the same for ``grad``
    _node: Any
    _shared: Shared | None

    # Rare state lives in __dict__; these are its defaults.
    _leaf = True
    _edges: tuple[Any, ...] = ()
    _base: Tensor | None = None
    _replay: Callable[[Tensor], Tensor] | None = None  # rebuilds this view from its base
    _hooks: dict[int, Callable[..., Any]] | None = None
    _post_hooks: dict[int, Callable[..., Any]] | None = None
    _accumulator: Any = None  # hooks and notes of its place in the graph
    _grad_buffer: Tensor | None = None
    _retains = False
    _recording: ClassVar[list[Callable[[], bool]]] = []  # autograd adds: does it record now
    _inferring: Any = staticmethod(lambda: False)  # whether inference mode is on: autograd's own
    _unseen: int | None = None  # a view made without recording: the version of its memory then
    _inference: Any = None  # held by what was made in inference mode; Note [Inference tensors …]
    _is_number = False  # a Python number beside a tensor
    _detached_at = -1  # when detach_ cut it off
    _grad_dtype: Any = "own"  # of the gradient; None: any

    __array_priority__ = 1000  # numpy_array * tensor calls Tensor.__rmul__

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
        self._requires = False
        self._grad = self._node = self._shared = None

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
        shape = self.array.shape
        return Size(shape) if dim is None else int(shape[self._dimension(dim)])

    def stride(self, dim: int | None = None) -> tuple[int, ...] | int:
        """Return the steps between neighbours, in elements (not bytes), or that of ``dim``."""
        steps = tuple(s // self.array.itemsize for s in self.array.strides)
        return steps if dim is None else steps[self._dimension(dim)]

    def _dimension(self, dim: int) -> int:
        ndim = self.array.ndim
        if -ndim <= dim < ndim:
            return dim
        raise IndexOutOfRange(
            f"size({self._brief()}): Dimension out of range (expected to be in range of "
            f"[{-ndim}, {ndim - 1}], but got {dim})"
            if ndim
            else f"size({self._brief()}): Dimension specified as {dim} but tensor has no dimensions"
        )

    def is_contiguous(self, *, memory_format: Any = _layout.contiguous_format) -> bool:
        """Return True when the elements lie in row-major (or the given) order without gaps."""
        array = self.array
        if memory_format in (_layout.contiguous_format, _layout.preserve_format):
            return bool(array.flags.c_contiguous)
        while hasattr(array, "below"):
            array = array.below.array
        return _layout.lies_in(array, memory_format)

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
        if node is not None:
            node.describe(self.array.dtype)
            return node.owner
        if self._unseen is not None and self._unseen != self._version:
            base = self._base
            if base is not None and base._requires:
                mode = "no_grad" if self._inference is None else "inference"
                raise GradError(
                    f"grad_fn({self._brief()}): A view was created in {mode} mode and its base or "
                    "another view of its base has been modified inplace; make the view with grad "
                    "mode enabled"
                )
        return None

    @property
    def is_leaf(self) -> bool:
        """True when no recorded operation made this tensor."""
        return self._node is None and (self._unseen is None or self.grad_fn is None)

    @property
    def output_nr(self) -> int:
        """Which output of ``grad_fn`` this tensor is."""
        return getattr(self._node, "index", 0)

    @property
    def requires_grad(self) -> bool:
        """Whether operations on this tensor are recorded; it can be set on leaves."""
        return self._requires

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if self._node is not None:
            raise GradError(
                f"requires_grad({self._brief()}): you can only change requires_grad flags of leaf "
                "variables; use .detach() for a tensor without a history"
            )
        self.requires_grad_(value)

    @requires_grad.deleter
    def requires_grad(self) -> None:
        _refuse_deletion("requires_grad")

    @property
    def grad(self) -> Tensor | None:
        """The gradient that backward has accumulated, or None."""
        grad = self._grad
        if grad is None and self._node is not None and not self._retains:
            warnings.warn(
                "The .grad attribute of a Tensor that is not a leaf Tensor is being accessed. Its "
                ".grad attribute won't be populated during autograd.backward(). If you indeed want "
                "the .grad field to be populated for a non-leaf Tensor, use .retain_grad() on the "
                "non-leaf Tensor.",
                stacklevel=2,
            )
        return grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is not None:
            self._check_grad(value)
        self._grad = value

    @grad.deleter
    def grad(self) -> None:
        self._grad = None

    def _check_grad(self, value: Any) -> None:
        if not isinstance(value, Tensor):
            raise ArgumentTypeError(
                f"grad({self._brief()}): assigned grad expected to be a Tensor or None but got "
                f"grad of type {type(value).__name__}"
            )
        have, want, kind = value.array, self.array, self._grad_dtype
        why = ""
        if value is self:
            why = "can't assign Variable as its own grad"
        elif kind is not None and have.dtype != (want.dtype if kind == "own" else kind):
            name = self.dtype if kind == "own" else _dtype.from_numpy(kind)
            why = (
                f"attempting to assign a gradient with dtype '{_scalar_type(value.dtype)}' to a "
                f"tensor with grad_dtype '{_scalar_type(name)}'; convert it first (.to(dtype))"
            )
        elif value.device != self.device:
            why = f"assigned grad has data located on a different device: {value.device}"
        elif have.shape != want.shape:
            why = (
                f"attempting to assign a gradient of size '{list(have.shape)}' to a tensor of size "
                f"'{list(want.shape)}'. Please ensure that the gradient and the tensor are the "
                "same size"
            )
        if why:
            raise GradError(f"grad({self._brief()}): {why}")

    @property
    def grad_dtype(self) -> _dtype.dtype | None:
        """The dtype of ``grad``, that of the tensor unless it was set; None: any."""
        kind = self._leaf_grad_dtype("accessed")
        return self.dtype if kind == "own" else None if kind is None else _dtype.from_numpy(kind)

    @grad_dtype.setter
    def grad_dtype(self, value: _dtype.dtype | None) -> None:
        self._leaf_grad_dtype("set")
        kind = None if value is None else _dtype.as_numpy(value)
        if kind is not None and self._grad is not None and self._grad.array.dtype != kind:
            raise GradError(
                f"grad_dtype({self._brief()}): Cannot set grad_dtype to {value} because there is "
                f"already a gradient of {self._grad.dtype}; set grad to None first"
            )
        self._grad_dtype = kind

    def _leaf_grad_dtype(self, what: str) -> Any:
        if self._node is not None:
            raise GradError(
                f"grad_dtype({self._brief()}): grad_dtype can only be {what} on leaf tensors"
            )
        return self._grad_dtype

    @property
    def _grad_fn(self) -> Any:
        return self.grad_fn

    @_grad_fn.deleter
    def _grad_fn(self) -> None:
        _refuse_deletion("_grad_fn")

    @property
    def _backward_hooks(self) -> Any:
        return self._hooks if self._node is None else self._node._hooks

    @_backward_hooks.setter
    def _backward_hooks(self, hooks: Any) -> None:
        if self._node is None:
            self._hooks = hooks
        else:
            self._node._hooks = hooks

    @_backward_hooks.deleter
    def _backward_hooks(self) -> None:
        _refuse_deletion("_backward_hooks")

    @property
    def volatile(self) -> bool:
        """Always False: what it was for, ``no_grad`` does."""
        warnings.warn(
            "volatile was removed (Variable.volatile is always False); use `with no_grad():` "
            "instead.",
            stacklevel=2,
        )
        return False

    @property
    def retains_grad(self) -> bool:
        """True for a non-leaf tensor whose ``grad`` will be kept."""
        return self._retains

    @property
    def _version(self) -> int:
        if self._inference is not None:
            return shared_of(self).count
        return 0 if self._shared is None else self._shared.count

    @property
    def data(self) -> Tensor:
        """The same memory without a history; changes are not seen by autograd."""
        array = self.array
        if type(array) is not ndarray and hasattr(array, "below"):
            return array.detached()  # type: ignore[no-any-return]
        out = wrap(array)
        if out._inference is not None and not is_inference(self):
            out._inference = None
        return out

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, Tensor):
            raise ArgumentTypeError(
                f"data({self._brief()}): Variable data has to be a tensor, but got "
                f"{type(value).__name__}"
            )
        if self._requires and value.array.dtype.kind not in "fcV":
            raise GradError(
                f"data({self._brief()}): data set to a tensor that requires gradients must be "
                f"floating point or complex dtype, not {value.dtype}"
            )
        self.array = value.array

    @data.deleter
    def data(self) -> None:
        _refuse_deletion("data")

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
        if requires_grad and not self._requires and is_inference(self) and not self._inferring():
            raise GradError(
                f"requires_grad_({self._brief()}): Setting requires_grad=True on inference tensor "
                "outside InferenceMode is not allowed; use a clone()"
            )
        if requires_grad and self.array.dtype.kind not in "fcV":
            raise GradError(
                f"requires_grad_({self._brief()}): only tensors of floating point and complex "
                "dtype can require gradients; convert with .float() first"
            )
        self._requires = bool(requires_grad)
        return self

    # ------------------------------------------------------------------ conversion
    def item(self) -> Any:
        """Return the only element as a Python number."""
        if self.array.size != 1:
            raise ShapeError(
                f"item({self._brief()}): a Tensor with {self.array.size} elements cannot be "
                "converted to Scalar; reduce it first (.sum(), .mean()) or index one element"
            )
        return _read(self.array).item()

    def tolist(self) -> Any:
        """Return nested lists of Python numbers, or one number for a zero-dimensional tensor."""
        return _read(self.array).tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """Return the NumPy array that shares this tensor's memory.

        Args:
            force: detach and copy to the host first where needed.

        Raises:
            GradError: the tensor requires grad.
            DeviceError: the tensor lives on a GPU.
        """
        if self._requires and not force and all(is_on() for is_on in self._recording):
            raise GradError(
                f"numpy({self._brief()}): Can't call numpy() on Tensor that requires grad. "
                "Use tensor.detach().numpy() instead."
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

    def __array_wrap__(self, array: Any, context: Any = None, scalar: bool = False) -> Tensor:
        """Return what a function of NumPy made of this tensor as one; truth values as uint8."""
        array = numpy.asarray(array)
        return wrap(array.astype(numpy.uint8) if array.dtype == bool else array)

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
        return bool(_read(self.array).item())

    def __float__(self) -> float:
        return float(self._real())

    def __int__(self) -> int:
        return int(self._real())

    def __complex__(self) -> complex:
        return complex(self.item())

    def _real(self) -> Any:
        if self.array.size != 1:
            raise ArgumentError(
                f"float({self._brief()}): only one element tensors can be converted to Python "
                "scalars; reduce it first (.sum(), .mean()) or index one element"
            )
        value = _read(self.array).item()
        if not isinstance(value, complex):
            return value
        if value.imag:
            raise DtypeError(
                f"float({self._brief()}): value cannot be converted to type double without "
                "overflow; take .real or .abs()"
            )
        return value.real

    def __index__(self) -> int:
        if self.array.dtype.kind not in "iub" or self.array.size != 1:
            raise ArgumentTypeError(
                f"index({self._brief()}): only integer tensors of a single element can be "
                "converted to an index"
            )
        return int(_read(self.array).item())

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
        if type(self) is Tensor and not self.array.ndim:
            return format(self.item(), spec)
        return super().__format__(spec)

    def _suffixes(self) -> list[str]:
        try:
            node = self.grad_fn
        except GradError:
            return ["grad_fn=<Invalid>"]
        if node is not None:
            return [f"grad_fn=<{node.name()}>"]
        return ["requires_grad=True"] if self.requires_grad else []

    def _brief(self) -> str:
        return f"{self.array.dtype}{list(self.array.shape)}"

    def __reduce_ex__(self, protocol: Any) -> Any:
        host = _device.to_device(self.array, _device.device("cpu"))
        return _rebuild, (type(self), host, str(self.device), self.requires_grad)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if self._node is not None:
            raise GradError(
                f"deepcopy({self._brief()}): Only Tensors created explicitly by the user (graph "
                "leaves) support the deepcopy protocol at the moment; use .detach() first"
            )
        if id(self) not in memo:
            out = wrap(self.array.copy(), type(self))
            out._requires = self._requires
            memo[id(self)] = out
            if self._grad is not None:
                out._grad = self._grad.__deepcopy__(memo)
            for name, value in self.__dict__.items():
                if name not in _STATE:
                    out.__dict__[name] = copy.deepcopy(value, memo)
        copied: Tensor = memo[id(self)]
        return copied


_new: Any = object.__new__  # replaced in inference mode


def wrap(array: Any, kind: type[Tensor] = Tensor) -> Tensor:
    """Return a tensor of class ``kind`` on ``array``: no copy, no history, no checks."""
    out = _new(kind)
    out.array = array
    out._requires = False
    out._grad = out._node = out._shared = None
    return out


# reading it without a call of a Python function takes half the time
Tensor.requires_grad = Tensor.requires_grad.getter(attrgetter("_requires"))  # type: ignore[method-assign, attr-defined]

# what autograd keeps in a tensor's __dict__; it is no part of a copy
_STATE = frozenset(
    ["_base", "_view", "_replay", "_hooks", "_post_hooks", "_retains", "_unseen", "_detached_at",
     "_is_number", "_storage", "_custom_view", "_grad_buffer", "_accumulator", "_inference"]
)  # fmt: skip


def _read(array: Any) -> Any:
    """Return ``array``, whose numbers the host reads: time to ask what a GPU found wrong."""
    if type(array) is not ndarray and not hasattr(array, "below"):
        _device.array_namespace(array).check(array)
    return array


def _refuse_deletion(name: str) -> NoReturn:
    raise GradError(f"del {name}: cannot be deleted; set it instead")


def _scalar_type(kind: Any) -> str:
    """Return the name that PyTorch's messages give a dtype: float, double, Half, …"""
    word = str(kind).split(".")[-1]
    names = {"float32": "float", "float64": "double", "float16": "c10::Half",
             "bfloat16": "c10::BFloat16"}  # fmt: skip
    return names.get(word, word)


def is_inference(tensor: Tensor) -> bool:
    """Return True for a tensor on memory that was allocated in inference mode."""
    if tensor._shared is None:
        return tensor._inference is not None
    return tensor._shared is UNTRACKED


def shared_of(tensor: Tensor) -> Shared:
    """Return the version counter of a tensor's memory, made at the first call."""
    if tensor._shared is None:
        marked = tensor._inference is not None
        tensor._shared = UNTRACKED if marked else Shared(tensor._node)
    return tensor._shared


def _rebuild(kind: type[Tensor], host: Any, device: str, requires_grad: bool) -> Tensor:
    out = wrap(_device.to_device(host, _device.device(device)), kind)
    out._requires = requires_grad
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
