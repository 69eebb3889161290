"""Memory under tensors: views by strides, what shares memory, and a new form in place."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy

from distgrad.autograd.declare import as_method, as_property, op, recover
from distgrad.autograd.inplace import refuse_leaf
from distgrad.autograd.mode import mode
from distgrad.autograd.samples import case, real
from distgrad.autograd.traced import innermost
from distgrad.backend.device import array_namespace, device_of, to_device
from distgrad.backend.device import device as Device
from distgrad.backend.layout import layout, strided
from distgrad.errors import GradError, ShapeError
from distgrad.ops.shape import squeeze, t, transpose, unsqueeze
from distgrad.tensor import Tensor, shared_of, wrap
from distgrad.typing import Array, Namespace, Shape

__all__ = ["as_strided", "as_strided_", "as_strided_scatter", "resize_as_"]


class Geometry(NamedTuple):
    """Where the elements of a tensor lie in its memory, counted in elements."""

    shape: Shape
    strides: Shape
    offset: int

    @property
    def end(self) -> int:
        """The place after the last element; 0 without elements."""
        if not math.prod(self.shape):
            return 0
        steps = zip(self.shape, self.strides, strict=True)
        return self.offset + sum((n - 1) * step for n, step in steps) + 1

    @property
    def repeats(self) -> int:
        """How many elements share one place, where dimensions were expanded."""
        steps = zip(self.shape, self.strides, strict=True)
        return math.prod(n for n, step in steps if not step)

    def places(self, xp: Namespace) -> Any:
        """Return the place of each element."""
        places: Any = xp.full((), self.offset, dtype=xp.int64)
        for n, step in zip(self.shape, self.strides, strict=True):
            places = places[..., None] + xp.arange(n) * step
        return places


def _row_major(shape: Sequence[int]) -> Shape:
    return tuple(math.prod(shape[d + 1 :]) for d in range(len(shape)))


def _strides(array: Any) -> Shape:
    inner = innermost(array)
    if inner.shape != array.shape:  # a hidden batch
        return _row_major(array.shape)
    return tuple(step // inner.itemsize for step in inner.strides)


def _address(array: Any) -> int:
    return wrap(innermost(array)).data_ptr()


def _memory(tensor: Tensor) -> Any:
    """Return the array that the memory of ``tensor`` was made for."""
    base = tensor if tensor._base is None else tensor._base
    if base is tensor and tensor._shared is not None:
        for ref in tensor._shared.views or ():
            view = ref()
            if view is not None and view._base is not None:
                base = view._base  # ``tensor`` may be detached from a view
                break
    return base.__dict__.get("_storage", base.array)


def geometry(tensor: Tensor) -> Geometry:
    """Return where the elements of ``tensor`` lie."""
    array = tensor.array
    offset = (_address(array) - _address(_memory(tensor))) // array.itemsize if array.size else 0
    return Geometry(tuple(array.shape), _strides(array), offset)


def _extent(tensor: Tensor) -> int:
    """Return how many elements the memory of ``tensor`` holds."""
    array = _memory(tensor)
    end = Geometry(tuple(array.shape), _strides(array), 0).end
    return int(end * array.itemsize // tensor.array.itemsize)


# ---------------------------------------------------------------------- views by strides
_ROWS = Geometry((3, 4), (4, 1), 0)
_EVERY_OTHER = Geometry((2, 2), (2, 2), 1)  # two of its elements are one
_APART = Geometry((2, 2), (4, 2), 1)


@op(
    "linear",
    samples=[case(real(3, 4), source=_ROWS, target=_EVERY_OTHER),
             case(real(2, 2), source=_EVERY_OTHER, target=_ROWS)],
    method=False,
    reference="none",
    d_input=lambda F, g, source, target: F.restrided(g, target, source),
)  # fmt: skip
def restrided(xp: Namespace, input: Tensor, source: Geometry, target: Geometry) -> Array:
    """Return what ``target`` reads of empty memory to which ``input`` was added at ``source``."""
    memory = xp.zeros(max(source.end, target.end), input.dtype)
    values: Array = input
    if values.size:
        xp.add_at(memory, source.places(xp).reshape(-1), values.reshape(-1))
    return memory[target.places(xp)]


@op(
    "linear",
    samples=[case(real(3, 4), own=_ROWS, target=_EVERY_OTHER)],
    view=True,
    method=False,
    node="AsStridedBackward0",
    reference=lambda torch, x, own, target: x.as_strided(*target),
    d_input=lambda F, g, own, target: F.restrided(g, target, own) / own.repeats,
)
def strided_view(xp: Namespace, input: Tensor, own: Geometry, target: Geometry) -> Array:
    """Return the view ``target`` of the memory in which ``input`` lies as ``own``.

    A copy, where ``input`` lies otherwise: the tangent of a tensor, or an element of a batch.
    """
    if _strides(input) == own.strides or not xp.size(input):
        return xp.strided(input, target.shape, target.strides, target.offset - own.offset)
    out = restrided.op.forward(xp, input, own, target)  # type: ignore[attr-defined]
    return out / own.repeats if own.repeats > 1 else out


def _target(
    input: Tensor, size: Sequence[int], stride: Sequence[int], offset: int | None
) -> Geometry:
    """Return the form that ``as_strided`` is asked for; raise when it leaves the memory."""
    start = geometry(input).offset if offset is None else int(offset)
    target = Geometry(tuple(map(int, size)), tuple(map(int, stride)), start)
    if len(target.shape) != len(target.strides):
        raise ShapeError("mismatch in length of strides and shape")
    if min(target.shape, default=0) < 0:
        raise ShapeError(f"sizes must be non-negative, got {list(target.shape)}")
    if min(target.strides, default=0) < 0 or start < 0:
        raise ShapeError(
            "as_strided: Negative strides and storage offsets are not supported, got strides: "
            f"{list(target.strides)}, storage offset: {start}"
        )
    if target.end > _extent(input):
        raise ShapeError(
            f"setStorage: sizes {list(target.shape)}, strides {list(target.strides)}, storage "
            f"offset {start}, requiring {target.end} elements are out of bounds for storage of "
            f"{_extent(input)} elements"
        )
    return target


def as_strided(
    input: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> Tensor:
    """Return the view of a size, with steps in memory counted in elements.

    Args:
        input: names the memory.
        size: the shape of the view.
        stride: the step between neighbours along each dimension.
        storage_offset: the place of the first element (default: that of ``input``).
    """
    try:
        target = _target(input, size, stride, storage_offset)
    except Exception as error:
        options = {"size": size, "stride": stride, "storage_offset": storage_offset}
        recover("as_strided", error, {"input": input}, options)
    return strided_view(input, geometry(input), target)


@op(
    "linear",
    samples=[case(real(3, 4), real(2, 2), own=_ROWS, target=_APART)],
    method=False,
    node="AsStridedScatterBackward0",
    reference=lambda torch, x, src, own, target: torch.as_strided_scatter(x, src, *target),
    d_input=lambda F, g, own, target: F.strided_written(
        g, F.zero(F.strided_view(g, own, target)), own, target
    ),
    d_src=lambda F, g, own, target: F.strided_view(g, own, target),
)
def strided_written(
    xp: Namespace, input: Tensor, src: Tensor, own: Geometry, target: Geometry
) -> Array:
    """Return ``input``, lying as ``own`` in new memory, with ``src`` written at ``target``."""
    memory = xp.zeros(max(own.end, target.end), input.dtype)
    memory[own.places(xp)] = input
    memory[target.places(xp)] = src
    return memory[own.places(xp)]


def as_strided_scatter(
    input: Tensor,
    src: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    storage_offset: int | None = None,
) -> Tensor:
    """Return a copy of ``input`` with ``src`` written into ``as_strided(copy, size, stride)``."""
    operands = {"input": input, "src": src}
    try:
        target = _target(input, size, stride, storage_offset)
        if src.array.shape != target.shape:
            raise ShapeError(
                "expected src to have a size equal to the slice of self. src size = "
                f"{list(src.array.shape)}, slice size = {list(target.shape)}"
            )
        if geometry(input).repeats > 1:
            raise ShapeError("as_strided_scatter() takes no expanded input; use .contiguous()")
    except Exception as error:
        options = {"size": size, "stride": stride, "storage_offset": storage_offset}
        recover("as_strided_scatter", error, operands, options)
    return strided_written(input, src, geometry(input), target)


# ---------------------------------------------------------------------- another form in place
def _reform(target: Tensor, name: str, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Let ``target`` be ``function(target)``, a view of the same memory, and return it.

    A tensor that stands for ``target`` as it was carries its history; views of ``target`` are
    derived from that one.
    """
    refuse_leaf(target, name)
    before, old = geometry(target), wrap(target.array)
    old._requires, old._node = target._requires, target._node
    old._shared, old._base = shared_of(target), target._base
    if target._base is not None:
        old._view = target._view  # type: ignore[attr-defined]
    new = function(old)
    target.array = new.array
    if mode.grad:
        target._node, target._requires = new._node, new._requires
    if old._base is not None:
        target._base, target._view = new._base, new._view  # type: ignore[attr-defined]
    else:
        target.__dict__.setdefault("_storage", old.array)
        old._node, old._requires, old._base = None, False, target
        old._view = (target, as_strided, before)  # type: ignore[attr-defined]
    for ref in shared_of(target).views or ():
        view = ref()
        if view is not None and view is not target and view._base is not None:
            base, *how = view._view  # type: ignore[attr-defined]
            if base is target:
                view._view = (old, *how)  # type: ignore[attr-defined]
    shared_of(target).bump()
    return target


def squeeze_(self: Tensor, dim: int | Sequence[int] | None = None) -> Tensor:
    """Take dimensions of length 1 away in place; see ``squeeze``."""
    return _reform(self, "squeeze_", lambda x: squeeze(x, dim))


def unsqueeze_(self: Tensor, dim: int) -> Tensor:
    """Put in a dimension of length 1 in place; see ``unsqueeze``."""
    return _reform(self, "unsqueeze_", lambda x: unsqueeze(x, dim))


def transpose_(self: Tensor, dim0: int, dim1: int) -> Tensor:
    """Swap two dimensions in place; see ``transpose``."""
    return _reform(self, "transpose_", lambda x: transpose(x, dim0, dim1))


def swapdims_(self: Tensor, dim0: int, dim1: int) -> Tensor:
    """Swap two dimensions in place; see ``transpose``."""
    return _reform(self, "swapdims_", lambda x: transpose(x, dim0, dim1))


def swapaxes_(self: Tensor, axis0: int, axis1: int) -> Tensor:
    """Swap two dimensions in place; see ``transpose``."""
    return _reform(self, "swapaxes_", lambda x: transpose(x, axis0, axis1))


def t_(self: Tensor) -> Tensor:
    """Transpose a matrix in place; see ``t``."""
    return _reform(self, "t_", t)


def as_strided_(
    self: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None
) -> Tensor:
    """Let this tensor be another view of its memory; see ``as_strided``."""
    return _reform(self, "as_strided_", lambda x: as_strided(x, size, stride, storage_offset))


# ---------------------------------------------------------------------- another memory in place
def _refuse_history(self: Tensor, name: str) -> None:
    if self.requires_grad:
        error = GradError("cannot resize variables that require grad; use .detach()")
        recover(name, error, {"self": self}, {})


def _separate(tensor: Tensor) -> None:
    """Let a view be a tensor of its own: it was given other memory."""
    tensor._base = tensor._shared = None
    tensor.__dict__.pop("_view", None)
    tensor.__dict__.pop("_storage", None)


def _resized(self: Tensor, shape: Shape) -> Tensor:
    if min(shape, default=0) < 0:
        recover("resize_", ShapeError(f"sizes must be >= 0, not {list(shape)}"), {"self": self}, {})
    if shape == self.array.shape:
        return self
    place = geometry(self)
    target = Geometry(shape, _row_major(shape), place.offset)
    if target.end <= _extent(self):
        return _reform(self, "resize_", lambda x: strided_view(x, place, target))
    xp = array_namespace(self.array)
    memory = xp.zeros(math.prod(shape), self.array.dtype)
    kept = max(_extent(self) - place.offset, 0) if self.array.size else 0
    memory[:kept] = xp.strided(self.array, (kept,), (1,), 0)
    self.array = memory.reshape(shape)
    _separate(self)
    shared_of(self).bump()
    return self


def resize_(self: Tensor, *size: Any, memory_format: Any = None) -> Tensor:
    """Give this tensor another shape in place: its memory's elements in a row, zeros after them.

    Differs from PyTorch: views do not follow a tensor that grows beyond its memory.
    """
    _refuse_history(self, "resize_")
    one = len(size) == 1 and isinstance(size[0], list | tuple)
    return _resized(self, tuple(int(n) for n in (size[0] if one else size)))


def resize_as_(input: Tensor, the_template: Tensor, *, memory_format: Any = None) -> Tensor:
    """Give ``input`` the shape of another tensor in place; see ``resize_``."""
    _refuse_history(input, "resize_as_")
    return _resized(input, tuple(the_template.array.shape))


def set_(
    self: Tensor,
    source: Tensor | None = None,
    storage_offset: int = 0,
    size: Sequence[int] | None = None,
    stride: Sequence[int] = (),
) -> Tensor:
    """Let this tensor lie in the memory of ``source`` (none: be empty), and return it.

    Args:
        self: the tensor.
        source: another tensor.
        storage_offset: with ``size``: the place of the first element.
        size: the shape (default: the form of ``source``).
        stride: steps in memory (default: row-major).
    """
    xp = array_namespace(self.array)
    if source is None:
        source = wrap(xp.zeros((0,), self.array.dtype))
    if source.array.dtype != self.array.dtype:
        error = ShapeError("Expected a Tensor of the same dtype; convert source with .to(dtype)")
        recover("set_", error, {"self": self, "source": source}, {})
    if size is not None:
        source = as_strided(source.detach(), size, stride or _row_major(size), storage_offset)
    _separate(self)
    self.array, self._shared = source.array, None
    shared_of(self).bump()
    return self


# ---------------------------------------------------------------------- questions
class UntypedStorage:
    """The memory of a tensor, in bytes."""

    __slots__ = ("_tensor",)

    def __init__(self, tensor: Tensor) -> None:
        """Describe the memory that ``tensor`` lies in."""
        self._tensor = tensor

    def data_ptr(self) -> int:
        """Return the address of the first byte."""
        return _address(_memory(self._tensor)) if self.nbytes() else 0

    def nbytes(self) -> int:
        """Return the number of bytes."""
        return _extent(self._tensor) * self._tensor.itemsize

    size = __len__ = nbytes

    @classmethod
    def from_file(cls, filename: str, shared: bool = False, nbytes: int = 0) -> UntypedStorage:
        """Return the bytes of a file.

        Args:
            filename: the file.
            shared: whether changes are written to it.
            nbytes: how many bytes of it.
        """
        mode: Any = "r+" if shared else "c"
        return cls(wrap(numpy.asarray(numpy.memmap(filename, numpy.uint8, mode, shape=(nbytes,)))))

    def untyped(self) -> UntypedStorage:
        """Return this memory."""
        return self

    def _bytes(self) -> Any:
        """Return the bytes as an array."""
        xp = array_namespace(self._tensor.array)
        first = _memory(self._tensor).view(xp.uint8) if self.nbytes() else xp.zeros(0, xp.uint8)
        return xp.strided(first, (self.nbytes(),), (1,), 0)

    def __getitem__(self, index: int | slice) -> Any:
        """Return a byte as a number, or a part of the memory."""
        found = self._bytes()[index]
        return UntypedStorage(wrap(found)) if isinstance(index, slice) else int(found)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return numpy.array(self._bytes(), dtype=dtype, copy=copy)

    @property
    def device(self) -> Device:
        """Where the memory is."""
        return device_of(innermost(self._tensor.array))

    def cpu(self) -> UntypedStorage:
        """Return this memory on the host: itself, or a copy."""
        return self._on(Device("cpu"))

    def cuda(self, index: Any = None) -> UntypedStorage:
        """Return this memory on a GPU (default: the current one): itself, or a copy."""
        return self._on(Device("cuda" if index is None else index))

    def _on(self, place: Any) -> UntypedStorage:
        return UntypedStorage(wrap(to_device(self._bytes(), place)))

    def __repr__(self) -> str:
        return f"[distgrad.UntypedStorage(device={self.device}) of size {self.nbytes()}]"


def untyped_storage(self: Tensor) -> UntypedStorage:
    """Return the memory that this tensor lies in."""
    return UntypedStorage(self)


def storage_offset(self: Tensor) -> int:
    """Return how many elements stand in memory before the first one of this view."""
    return geometry(self).offset


def is_set_to(self: Tensor, tensor: Tensor) -> bool:
    """Return True when both tensors are the same elements of the same memory."""
    one_memory = _address(_memory(self)) == _address(_memory(tensor))
    return one_memory and geometry(self) == geometry(tensor)


def dim_order(self: Tensor) -> Shape:
    """Return the dimensions from the one with the longest step in memory to the shortest."""
    strides = _strides(self.array)
    return tuple(sorted(range(len(strides)), key=lambda d: -strides[d]))


def _layout(self: Tensor) -> layout:
    """How elements are held: ``strided``."""
    return strided


for _function in (
    as_strided, as_strided_, as_strided_scatter, dim_order, is_set_to, resize_, resize_as_, set_,
    squeeze_, storage_offset, swapaxes_, swapdims_, t_, transpose_, unsqueeze_, untyped_storage,
):  # fmt: skip
    as_method(_function)
del _function
as_property(_layout, "layout")
