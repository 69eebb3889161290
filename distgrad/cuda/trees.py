"""Tensors in nested tuples, lists and dicts: what captured functions take and return."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from distgrad.tensor import Tensor

__all__ = ["leaves", "outline", "rebuilt"]


def leaves(tree: Any) -> list[Tensor]:
    """Return the tensors of a tree, in order.

    Example:
        >>> import distgrad as dg
        >>> leaves({"x": dg.ones(1), "rest": [dg.zeros(1), 3]})
        [tensor([1.]), tensor([0.])]
    """
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in leaves(value)]
    if isinstance(tree, tuple | list):
        return [leaf for value in tree for leaf in leaves(value)]
    return []


def rebuilt(tree: Any, tensors: Iterable[Tensor]) -> Any:
    """Return ``tree`` with other tensors in the places of its own."""
    return _rebuilt(tree, iter(tensors))


def _rebuilt(tree: Any, tensors: Iterator[Tensor]) -> Any:
    if isinstance(tree, Tensor):
        return next(tensors)
    if isinstance(tree, dict):
        return {key: _rebuilt(value, tensors) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        parts = [_rebuilt(value, tensors) for value in tree]
        if hasattr(tree, "_fields"):  # a named tuple
            return type(tree)(*parts)
        return type(tree)(parts)
    return tree


def outline(tree: Any) -> Any:
    """Return what a captured call depends on: all of ``tree`` but the numbers in its tensors.

    Example:
        >>> import distgrad as dg
        >>> outline((dg.ones(2, 3), True))
        ('tuple', (('tensor', (2, 3), dtype('float32'), 'cpu', False), True))
    """
    if isinstance(tree, Tensor):
        array = tree.array
        return "tensor", tuple(array.shape), array.dtype, str(tree.device), tree.requires_grad
    if isinstance(tree, dict):
        return "dict", tuple((key, outline(value)) for key, value in tree.items())
    if isinstance(tree, tuple | list):
        return type(tree).__name__, tuple(map(outline, tree))
    return tree
