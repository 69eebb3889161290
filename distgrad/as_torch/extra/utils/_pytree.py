"""Nested lists, tuples and dicts of tensors, taken apart and put together again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple


class TreeSpec(NamedTuple):
    """The form of a nest: its type, what else it takes to make it, and the forms in it."""

    type: Any
    context: Any
    children_specs: list[TreeSpec]

    @property
    def num_leaves(self) -> int:
        """How many leaves the nest has."""
        if self.type is None:
            return 1
        return sum(spec.num_leaves for spec in self.children_specs)


LeafSpec = TreeSpec(None, None, [])


def _parts(tree: Any) -> tuple[list[Any], Any] | None:
    if isinstance(tree, dict):
        return list(tree.values()), list(tree)
    if isinstance(tree, list | tuple):
        return list(tree), None
    return None


def tree_flatten(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> Any:
    """Return the leaves in order and the form."""
    parts = None if is_leaf is not None and is_leaf(tree) else _parts(tree)
    if parts is None:
        return [tree], LeafSpec
    leaves, specs = [], []
    for part in parts[0]:
        found, spec = tree_flatten(part, is_leaf)
        leaves += found
        specs.append(spec)
    return leaves, TreeSpec(type(tree), parts[1], specs)


def tree_unflatten(leaves: Any, treespec: TreeSpec) -> Any:
    """Return the nest of a form with these leaves."""
    return _build(iter(leaves), treespec)


def _build(leaves: Any, spec: TreeSpec) -> Any:
    if spec.type is None:
        return next(leaves)
    parts = [_build(leaves, child) for child in spec.children_specs]
    if spec.context is not None:
        pairs = zip(spec.context, parts, strict=True)
        return OrderedDict(pairs) if spec.type is OrderedDict else dict(pairs)
    return spec.type(*parts) if hasattr(spec.type, "_fields") else spec.type(parts)


def tree_leaves(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[Any]:
    """Return the leaves in order."""
    leaves: list[Any] = tree_flatten(tree, is_leaf)[0]
    return leaves


def tree_map(
    func: Callable[..., Any], tree: Any, *rests: Any, is_leaf: Callable[[Any], bool] | None = None
) -> Any:
    """Return the nest of what ``func`` makes of each leaf (and of those of the other nests)."""
    leaves, spec = tree_flatten(tree, is_leaf)
    others = [tree_flatten(rest, is_leaf)[0] for rest in rests]
    return tree_unflatten([func(*each) for each in zip(leaves, *others, strict=True)], spec)


def tree_map_only(kind: Any, func: Callable[[Any], Any], tree: Any) -> Any:
    """Return the nest with ``func`` of the leaves that are of a type."""
    return tree_map(lambda leaf: func(leaf) if isinstance(leaf, kind) else leaf, tree)


def tree_all(pred: Callable[[Any], bool], tree: Any) -> bool:
    """Return whether all leaves satisfy ``pred``."""
    return all(map(pred, tree_leaves(tree)))


def tree_any(pred: Callable[[Any], bool], tree: Any) -> bool:
    """Return whether a leaf satisfies ``pred``."""
    return any(map(pred, tree_leaves(tree)))
