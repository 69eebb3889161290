"""Tensors that carry more than an array: the common part of forward mode and ``vmap``.

Note [Layers]
    The array of such a tensor is a ``Traced``: it has a shape and a dtype, but refuses all
    arithmetic.  So the wrapper of an operation fails on it where an error would be explained, and
    comes here instead: ordinary tensors pay nothing.  A ``Traced`` holds tensors (a primal and its
    tangent, or a batch), and its ``Level`` says what an operation means for them, in operations on
    those tensors.  These may be traced again, by a level that began earlier, and each layer of
    tensors keeps its own graph; that is how all transformations nest.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import numpy

from distgrad.autograd import saving
from distgrad.autograd.inplace import link_view, store_traced
from distgrad.autograd.source import call_source
from distgrad.backend.device import array_namespace
from distgrad.errors import GradError, explain
from distgrad.tensor import Tensor, tensors_in, wrap

if TYPE_CHECKING:
    from distgrad.autograd.declare import Operation

_numbers = itertools.count(1)


_REFUSED = (
    "the numbers of a tensor inside vmap or forward mode were asked for, by code that is no "
    "operation on tensors; use operations, or do this outside"
)


class Refused(GradError):
    """The numbers of a traced array were asked for; the operation itself must answer."""

    def __init__(self, message: str = _REFUSED) -> None:
        """Say what stands in the way, for code that is no operation."""
        super().__init__(message)


class Level:
    """One transformation that is running: forward mode, one ``vmap``, or a gradient of ``func``."""

    functional = True  # part of ``func``: custom Functions must have ``setup_context``

    def __init__(self) -> None:
        """Begin inside all levels that exist."""
        self.number = next(_numbers)
        self.alive = True

    def process(self, op: Operation, operands: dict[str, Any], options: dict[str, Any]) -> Any:
        """Return the output array, or a list of them, of ``op`` on operands of this level."""
        raise NotImplementedError

    def store(self, target: Tensor, result: Tensor) -> None:
        """Write the elements of ``result`` into ``target``; one of them is of this level."""
        raise NotImplementedError

    def note(self, tensor: Tensor) -> None:
        """Be told of a tensor that was made at this level."""

    def __enter__(self) -> Any:
        running.levels.append(self)
        return self

    def __exit__(self, *error: object) -> None:
        self.alive = False
        running.levels.remove(self)


class _Running(threading.local):
    def __init__(self) -> None:
        self.levels: list[Level] = []
        self.forward_mode = True


running = _Running()


def running_levels() -> list[Level]:
    """Return the levels that this thread is in, the innermost last."""
    return running.levels


class Traced:
    """What stands in place of an array: a description, and the tensor one layer below."""

    __slots__ = ("__weakref__", "below", "level")
    below: Tensor
    level: Level

    def __init__(self, below: Tensor, level: Level) -> None:
        self.below, self.level = below, level

    # ------------------------------------------------------------------ description
    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of the dimensions that the user sees."""
        shape: tuple[int, ...] = self.below.array.shape
        return shape

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def dtype(self) -> Any:
        """The type of the elements."""
        return self.below.array.dtype

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return int(self.below.array.itemsize)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.itemsize

    @property
    def flags(self) -> Any:
        """How the elements lie in memory."""
        return self.below.array.flags

    @property
    def strides(self) -> tuple[int, ...]:
        """Bytes from one element to the next, by dimension."""
        strides: tuple[int, ...] = self.below.array.strides
        return strides

    @property
    def device(self) -> Any:
        """Where the elements live (of a CuPy array)."""
        return self.below.array.device

    @property
    def base(self) -> Any:
        """The array that owns the memory, or None."""
        return innermost(self).base

    @property
    def data(self) -> Any:
        """The memory, whose address is ``data.ptr`` (as of a CuPy array)."""
        array = innermost(self)
        return array.data if hasattr(array.data, "ptr") else SimpleNamespace(ptr=array.ctypes.data)

    # ------------------------------------------------------------------ what it does not do
    def _refuse(self, *args: Any, **options: Any) -> NoReturn:
        raise Refused

    __array__ = __array_ufunc__ = __array_function__ = _refuse
    __getitem__ = __setitem__ = __bool__ = __len__ = __iter__ = _refuse
    __eq__ = __ne__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = _refuse
    fill = nonzero = reshape = transpose = any = all = min = max = sum = _refuse
    __add__ = __sub__ = __mul__ = __truediv__ = __floordiv__ = __mod__ = __pow__ = _refuse
    __radd__ = __rsub__ = __rmul__ = __rtruediv__ = __rfloordiv__ = __rmod__ = __rpow__ = _refuse
    __matmul__ = __rmatmul__ = __isub__ = __itruediv__ = _refuse
    __neg__ = __abs__ = __invert__ = __and__ = __or__ = __xor__ = _refuse
    __hash__ = object.__hash__


def innermost(array: Any) -> Any:
    """Return the NumPy or CuPy array under all layers."""
    while isinstance(array, Traced):
        array = array.below.array
    return array


def operand_tensors(operands: Iterable[Any]) -> list[Tensor]:
    """Return the tensors among operands, of which some may be None or lists."""
    return tensors_in(operands)


def map_operand(function: Callable[[Tensor], Any], operand: Any) -> Any:
    """Return ``function`` of an operand: of each one in a list, None for None."""
    if isinstance(operand, list | tuple):
        return [map_operand(function, o) for o in operand]
    return function(operand) if isinstance(operand, Tensor) else operand


# ---------------------------------------------------------------------- an operation on them
def namespace_of_plain(array: Any) -> Any:
    """Return the namespace of an array; raise for a traced one, before the forward starts."""
    if isinstance(array, Traced):
        raise Refused
    return array_namespace(array)


def is_traced(operands: Iterable[Any]) -> bool:
    """Return True when one of the operands is a traced tensor."""
    return any([isinstance(t.array, Traced) for t in operand_tensors(operands)])


def traced_call(op: Operation, operands: dict[str, Any], options: dict[str, Any]) -> Any:
    """Return the outputs of ``op`` where an operand is traced; recorded like any other call."""
    names = [o.name for o in op.operands]
    if not any([_level(t) for t in operand_tensors(operands.values())]):
        settled = {n: map_operand(_without_ended, o) for n, o in operands.items()}
        return op.function(**settled, **options)
    function = _functions.get(op.name)
    if function is None or function.__globals__["_op"] is not op:
        function = _functions[op.name] = _compile(op)
    try:
        out = function(**{n: operands[n] for n in names}, **options)
    except AttributeError as error:  # an operand is no tensor
        raise explain(op.name, error, operands, options) from error
    for tensor in (out,) if isinstance(out, Tensor) else out:
        if isinstance(tensor.array, Traced):
            tensor.array.level.note(tensor)
    return out


_functions: dict[str, Any] = {}


def _compile(op: Operation) -> Any:
    """Return the operation's wrapper with the forward on arrays replaced by ``_dispatch``."""
    names: dict[str, Any] = dict(op.function.__globals__)
    saving.register(names)
    names |= {
        "_op": op, "_dispatch": dispatch, "_asarray": _itself, "_link": _link,
        "_link_all": _link_all,
    }  # fmt: skip
    exec(compile(call_source(op.plan, traced=True), f"<traced operation {op.name}>", "exec"), names)
    function = names[op.name]
    names[op.name] = op.function  # what a view's history calls again
    return function


def dispatch(op: Operation, operands: dict[str, Any], options: dict[str, Any]) -> Any:
    """Return the output array(s) of ``op``: the innermost level of the operands answers."""
    operands = {n: map_operand(_without_ended, o) for n, o in operands.items()}
    levels = [_level(t) for t in operand_tensors(operands.values())]
    level = max([x for x in levels if x is not None], key=lambda x: x.number)
    return level.process(op, operands, options)


def _level(tensor: Tensor) -> Level | None:
    array = tensor.array
    while isinstance(array, Traced):
        if array.level.alive:
            return array.level
        array = array.below.array
    return None


def _without_ended(tensor: Tensor) -> Tensor:
    """Return the tensor under all layers of levels that have ended."""
    while isinstance(tensor.array, Traced) and not tensor.array.level.alive:
        tensor = tensor.array.below
    return tensor


def _itself(array: Any) -> Any:
    return array


def _link(out: Tensor, base: Tensor, array: Any, function: Any, options: Any) -> None:
    """Note that ``out`` is a view of ``base``, if their elements share memory."""
    one, other = innermost(out.array), innermost(array)
    if one.base is not None and (
        type(one) is not numpy.ndarray or numpy.may_share_memory(one, other)
    ):
        link_view(out, base, out.array.base, function, options)


def _link_all(outs: Any, base: Tensor, array: Any, function: Any, options: Any) -> None:
    for index, out in enumerate(outs):
        _link(out, base, array, _Part(function, index), options)


class _Part:
    """One output of an operation with several."""

    __slots__ = ("function", "index")

    def __init__(self, function: Callable[..., Any], index: int) -> None:
        self.function, self.index = function, index

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)[self.index]


# ---------------------------------------------------------------------- writing into memory
def store(target: Tensor, result: Tensor) -> None:
    """Write the elements of ``result`` into ``target``'s memory, where one of them is traced."""
    levels = [x for x in (_level(target), _level(result)) if x is not None]
    if levels:
        max(levels, key=lambda x: x.number).store(target, result)
    else:
        innermost(target.array)[...] = innermost(result.array)


store_traced.append(store)


# ---------------------------------------------------------------------- graphs that end here
def foreign(tensor: Tensor, own: set[int]) -> bool:
    """Return True when ``tensor``'s history leads to a leaf that is not one of ``own`` (ids)."""
    start = tensor._node
    if start is None:
        return tensor.requires_grad and id(tensor) not in own
    seen, stack = {start}, [start]
    while stack:
        for edge in stack.pop()._edges:
            if edge is None or edge in seen:
                continue
            if edge._leaf and isinstance(edge, Tensor) and id(edge) not in own:
                return True
            seen.add(edge)
            stack.append(edge)
    return False


def settled(tensor: Tensor, own: set[int] | None) -> Tensor:
    """Return ``tensor`` without a history that leads to leaves of ``own`` alone, at every layer.

    Args:
        tensor: a result.
        own: the ids of leaves; None to cut every history.
    """
    array = tensor.array
    if isinstance(array, Traced):
        array = array.settled(own)  # type: ignore[attr-defined]
    if tensor.requires_grad and own is not None and foreign(tensor, own):
        if array is tensor.array:
            return tensor
        out = wrap(array)
        out._requires, out._node = True, tensor._node
        return out
    return tensor if array is tensor.array and not tensor.requires_grad else wrap(array)
