"""Gradients that a rule leaves where they belong: no array between, and no copy.

A rule that asks for ``into`` gets an `Into`, or None where there is nothing to gain.  By it the
gradient of a weight is computed where it is kept, in ``.grad`` or in its slice of a bucket; on a
GPU, it is added to what is there by the product itself, in float32 if that is what lies there, and
a product may do a piece of the backward of the node before.  The rule then returns None: the walk
knows what it was spared.  Everything that somebody else could see is left to the ordinary way:
tensor hooks, graphs of gradients, ``autograd.grad``.  Where several nodes use a parameter, what
they bring later is added to what the first one has written.
"""

from __future__ import annotations

from typing import Any

import numpy

from distgrad.autograd import engine
from distgrad.autograd.node import Node
from distgrad.backend.device import array_namespace
from distgrad.tensor import Tensor, wrap

Array = Any
_FLOAT32 = numpy.dtype("float32")


def into(node: Any, g: Any) -> Into | None:
    """Return what the rules of ``node`` may use in the walk of this thread, for the gradient ``g``.

    On the host that is memory that is written first, so that a copy is saved.
    """
    walk = engine._state.walk
    if type(walk) is not engine._Walk or node._posthooks is not None:
        return None
    if type(g) is not numpy.ndarray:
        return Into(node, walk)
    for edge in node._edges:
        if edge is not None and edge._leaf and edge._grad is None:
            if edge._grad_buffer is not None:
                return Into(node, walk)
    return None


class Into:
    """What the rules of one node know of where their gradients go."""

    __slots__ = ("_node", "_walk", "sums")
    sums: Array | None  # of the rows of the left operand of `product`, if it added them up

    def __init__(self, node: Any, walk: Any) -> None:
        """Serve one run of the rules of ``node``."""
        self._node, self._walk, self.sums = node, walk, None

    def _edge(self, name: str) -> Any:
        """Return where the gradient of an operand goes; None where nobody wants it."""
        return self._node._edges[list(self._node.op.plan.rules).index(name)]

    # ------------------------------------------------------------------ to memory
    def product(self, name: str, a: Array, b: Array, sums: str = "") -> Array | None:
        """Return ``a @ b``, the gradient of an operand; None if it is where it is kept already.

        Args:
            name: the operand.
            a, b: two matrices.
            sums: another operand, whose gradient are the sums of the rows of ``a``: they are added
                up too if the product can, see ``sums``.
        """
        bias = self._edge(sums) if sums else None
        if bias is not None and bias._shape != a.shape[:1]:
            bias = None
        leaf = self._target(self._edge(name), a.dtype)
        if leaf is None:
            return self._multiplied(a, b, None, False, bias)
        with engine.lock_of(leaf):
            grad = leaf._grad
            place = leaf._grad_buffer if grad is None else grad
            if place is None:  # a parameter in float32 that autocast has converted
                place = wrap(array_namespace(a).empty(leaf.array.shape, leaf.array.dtype))
            self._multiplied(a, b, place.array, grad is not None, bias)
            leaf._grad = place
            if grad is not None and grad._shared is not None:
                grad._shared.bump()
        self._walk.acc[leaf] = engine.WRITTEN
        return None

    def _multiplied(self, a: Array, b: Array, out: Array | None, add: bool, bias: Any) -> Array:
        """Return ``a @ b``, with the gradient of ``bias`` (an edge) in `sums` if that is fast."""
        xp = array_namespace(a)
        both = None if bias is None else xp.kernels.get("product_and_sums")
        found = NotImplemented if both is None else both(a, b, out, add)
        if found is not NotImplemented:
            made, self.sums = found
            if not (_is_cast(bias) and not _seen(bias)):  # that one takes float32 too
                self.sums = self.sums.astype(a.dtype, copy=False)
            return made
        return xp.gemm(a, b, None, out, add)

    def _target(self, edge: Any, dtype: Any) -> Tensor | None:
        """Return the leaf in whose gradient memory a product of ``dtype`` may go.

        A parameter that autocast has converted is behind the node of that conversion.
        """
        walk = self._walk
        if walk.wanted is not None or not walk.accumulate:
            return None
        if not edge._leaf:
            if not _is_cast(edge) or walk.wait[edge] != 1 or edge in walk.acc or _seen(edge):
                return None
            edge = edge._edges[0]
            if edge is None or not edge._leaf:
                return None
        leaf: Tensor = edge
        if leaf._hooks or leaf._accumulator is not None:
            return None
        if leaf in walk.acc and walk.acc[leaf] is not engine.WRITTEN:
            return None  # what is there comes first
        return leaf if _can_take(leaf, dtype) else None

    # ------------------------------------------------------------------ to the node before
    def before(self, name: str) -> Node | None:
        """Return the node that made an operand, if nobody but its rules sees its gradient."""
        edge, walk = self._edge(name), self._walk
        if not isinstance(edge, Node) or walk.wait[edge] != 1 or edge in walk.acc or _seen(edge):
            return None
        if walk.wanted is not None and (edge in walk.wanted or edge not in walk.needed):
            return None
        return edge

    def give(self, node: Node, g: Array, more: Any) -> None:
        """Let ``g`` be the gradient of a node's output, and tell its rules something with it."""
        self._walk.acc[node] = g
        self._walk.given[node] = more

    def given(self) -> Any:
        """Return what the rule of the node behind this one told with the gradient, or None."""
        return self._walk.given.pop(self._node, None)


def _seen(node: Any) -> bool:
    """Return whether somebody else may see the gradient that comes to a node."""
    return bool(node._hooks or node._retain or node._prehooks or node._posthooks or node._of_slots)


def _is_cast(edge: Any) -> bool:
    op = getattr(edge, "op", None)
    return op is not None and op.name == "to_dtype"


def _can_take(leaf: Tensor, dtype: Any) -> bool:
    """Return whether a product of ``dtype`` can be put, or added, where a leaf's gradient is."""
    grad = leaf._grad
    place = leaf._grad_buffer if grad is None else grad
    if place is not None and place._requires:
        return False
    memory = leaf.array if place is None else place.array
    if place is None and memory.dtype == dtype:
        return False  # the product will be the gradient
    if grad is not None and type(memory) is numpy.ndarray:
        return False  # BLAS of the host adds nothing by itself
    kinds = memory.dtype == dtype or (memory.dtype == _FLOAT32 and dtype.itemsize == 2)
    if leaf._grad_dtype not in ("own", memory.dtype) or dtype.kind == "c":
        return False
    return bool(kinds and memory.shape == leaf.array.shape and memory.flags.c_contiguous)
