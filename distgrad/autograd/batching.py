"""``vmap``: tensors that hide a batch, and what operations do to it.

A batched tensor holds its batch in dimension 0 of the tensor below, hidden from the user.
"elementwise" operations line the other dimensions up and broadcast.  For the rest
``batch_rules.py`` says how the dimensions that options name move back by one.  Where there is no
rule, or it does not fit the operands at hand, the operation runs once per element of the batch and
the results are stacked: slow, but right for every operation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy

from distgrad.autograd import engine
from distgrad.autograd.traced import (
    Level,
    Traced,
    map_operand,
    operand_tensors,
    running_levels,
    settled,
)
from distgrad.backend.device import array_namespace
from distgrad.errors import GradError, ShapeError
from distgrad.tensor import Tensor, wrap

if TYPE_CHECKING:
    from distgrad.autograd.declare import Operation

F: Any = engine.tensor_functions


#: By name or kind of operation; filled by ``batch_rules``.
RULES: dict[str, Callable[[Call], Any]] = {}


class Dynamic(ShapeError):
    """The shape of an operation's output depends on the numbers."""


class NoRule(Exception):
    """The rule of an operation does not cover these operands: take them one by one."""


class BatchedArray(Traced):
    """Many arrays of one shape, in dimension 0 of the tensor below."""

    __slots__ = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one of them."""
        shape: tuple[int, ...] = self.below.array.shape
        return shape[1:]

    @property
    def strides(self) -> tuple[int, ...]:
        """Bytes from one element to the next, by dimension."""
        strides: tuple[int, ...] = self.below.array.strides
        return strides[1:]

    def item(self) -> Any:
        """Raise: a batch has no single value."""
        raise GradError(
            "vmap: It looks like you're calling .item() on a Tensor. We don't support vmap over "
            "calling .item() on a Tensor, please try to rewrite what you're doing with other "
            "operations; data-dependent control flow becomes where()"
        )

    tolist = item

    def host(self, force: bool) -> Any:
        """Raise: a batch is no array of the shape that is shown."""
        self.item()

    def copy(self) -> BatchedArray:
        """Return a copy of the batch."""
        return BatchedArray(F.clone(self.below), self.level)

    def astype(self, dtype: Any, copy: bool = True) -> BatchedArray:
        """Return the batch in another dtype."""
        return BatchedArray(F.to_dtype(self.below, numpy.dtype(dtype)), self.level)

    def moved_to(self, device: Any) -> BatchedArray:
        """Return the batch on a device."""
        return BatchedArray(self.below.to(device), self.level)

    def __imul__(self, number: float) -> BatchedArray:  # type: ignore[override,misc]
        return BatchedArray(F.mul(self.below, number), self.level)

    def __iadd__(self, number: float) -> BatchedArray:  # type: ignore[override,misc]
        return BatchedArray(F.add(self.below, number), self.level)

    def detached(self) -> Tensor:
        """Return the batch without a history."""
        return wrap(BatchedArray(self.below.detach(), self.level))

    def settled(self, own: set[int] | None) -> Traced:
        """Return this without histories that lead to leaves of ``own`` alone."""
        return BatchedArray(settled(self.below, own), self.level)

    def show(self, suffixes: list[str]) -> str:
        """Return what ``repr`` shows."""
        levels = running_levels()
        number = levels.index(self.level) + 1 if self.level in levels else -1
        inner = "\n    ".join(repr(self.below).split("\n"))
        return f"BatchedTensor(lvl={number}, bdim=0, value=\n    {inner}\n)"


class BatchLevel(Level):
    """One ``vmap``: how many elements it runs over, and what random numbers do."""

    def __init__(self, size: int, randomness: str) -> None:
        super().__init__()
        self.size, self.randomness = size, randomness

    def batched(self, tensor: Tensor) -> Tensor:
        """Return a batched tensor; the batch is dimension 0 of ``tensor``."""
        return wrap(BatchedArray(tensor, self))

    def value(self, tensor: Tensor) -> Tensor | None:
        """Return the tensor below, or None for one that is not batched at this level."""
        array = tensor.array
        return array.below if isinstance(array, BatchedArray) and array.level is self else None

    def full(self, tensor: Tensor) -> Tensor:
        """Return the tensor with its batch in front: one without is repeated."""
        value = self.value(tensor)
        return F.expand(tensor, (self.size, *tensor.array.shape)) if value is None else value

    def process(self, op: Operation, operands: dict[str, Any], options: dict[str, Any]) -> Any:
        """Return the batch of outputs."""
        rule = RULES.get(op.name) or RULES.get(op.kind)
        outs: Any = None
        if rule is not None and self.size:
            call = Call(self, op, operands, options)
            try:
                outs = rule(call)
            except Dynamic:
                raise
            except Exception:  # the loop explains it in the terms of one element
                outs = None
        if outs is None:
            outs = self.one_by_one(op, operands, options)
        if isinstance(outs, Tensor):
            return BatchedArray(outs, self)
        return [BatchedArray(o, self) for o in outs]

    def one_by_one(self, op: Operation, operands: dict[str, Any], options: dict[str, Any]) -> Any:
        """Return the stacked outputs of one call per element."""

        def element(tensor: Tensor, place: int) -> Tensor:
            value = self.value(tensor)
            if value is None:
                return tensor
            if not self.size:
                return wrap(_zeros(value, value.array.shape[1:]))
            part: Tensor = F.select(value, 0, place)
            return part

        results = []
        for place in range(max(self.size, 1)):
            own = {n: map_operand(lambda t: element(t, place), o) for n, o in operands.items()}  # noqa: B023
            results.append(op.function(**own, **options))
        if isinstance(results[0], Tensor):
            return self._stacked(op, results)
        return [self._stacked(op, list(parts)) for parts in zip(*results, strict=True)]

    def _stacked(self, op: Operation, parts: list[Tensor]) -> Tensor:
        if not self.size:
            return wrap(_zeros(parts[0], (0, *parts[0].array.shape)))
        return stacked(op.name, parts)

    def store(self, target: Tensor, result: Tensor) -> None:
        """Write ``result`` into ``target``, which must be batched if ``result`` is."""
        into, values = self.value(target), self.value(result)
        if into is None:
            raise ShapeError(
                "vmap: inplace arithmetic(self, *extra_args) is not possible because there exists "
                "a Tensor `other` in extra_args that has more elements than `self`. This happened "
                "due to `other` being vmapped over but `self` not being vmapped over in a vmap. "
                "Please use the out-of-place operator, or make self with new_zeros or zeros_like "
                "of a batched tensor plus its zeros"
            )
        into.copy_(result if values is None else values)


def over_batch(function: Callable[[list[Any]], list[Any]], batches: list[Any], size: int) -> Any:
    """Return what ``function`` makes of tensors (or None) with a batch each, as batches again."""
    with BatchLevel(size, "error") as level:
        found = function([None if b is None else level.batched(b) for b in batches])
        return [None if t is None else level.full(t) for t in found]


def stacked(name: str, parts: list[Tensor]) -> Tensor:
    """Return the results of single calls as a batch."""
    if any(p.array.shape != parts[0].array.shape for p in parts):
        shapes = sorted({tuple(p.array.shape) for p in parts})
        raise dynamic(name, f"; its outputs have shapes {shapes}")
    out: Tensor = F.stack(parts, 0)
    return out


def dynamic(name: str, more: str = "") -> Dynamic:
    """Return the error of an operation whose output's shape depends on the numbers."""
    return Dynamic(
        "vmap: We do not support batching operators that can output dynamic shape. Attempted to "
        f"vmap over {name}{more}"
    )


def _zeros(like: Tensor, shape: tuple[int, ...]) -> Any:
    return array_namespace(like.array).zeros(shape, like.array.dtype)


# ---------------------------------------------------------------------- what rules work with
class Call:
    """One call of an operation on batched operands."""

    def __init__(
        self, level: BatchLevel, op: Operation, operands: dict[str, Any], options: dict[str, Any]
    ) -> None:
        self.level, self.op = level, op
        self.operands = operands
        self.options = op.options | options
        self.batch = level.size

    def ndim(self, name: str) -> int:
        """Return the number of dimensions of an operand as the user sees it."""
        return int(self.operands[name].array.ndim)

    def is_batched(self, name: str) -> bool:
        """Return True for an operand (or one of a list) with a batch."""
        return any(self.level.value(t) is not None for t in operand_tensors([self.operands[name]]))

    def full(self, operand: Any) -> Any:
        """Return an operand with its batch in front: one without is repeated."""
        return map_operand(self.level.full, operand)

    def aligned(self, operand: Any, ndim: int) -> Any:
        """Return an operand whose batch, if any, comes before ``ndim`` dimensions."""
        if not isinstance(operand, Tensor):
            return operand
        value = self.level.value(operand)
        if value is None:
            return operand
        have = value.array.shape
        if len(have) == ndim + 1:
            return value
        return F.reshape(value, (have[0], *(1,) * (ndim + 1 - len(have)), *have[1:]))

    def run(self, operands: dict[str, Any], **changed: Any) -> Any:
        """Return the operation on ``operands``, with some options changed."""
        return self.op.function(**operands, **(self.options | changed))
