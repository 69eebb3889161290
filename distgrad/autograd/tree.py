"""Trees of tensors: nested tuples, lists and dicts, as function arguments and results."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Spec(NamedTuple):
    """The structure of a tree: the type of the container (None: a leaf), its keys and parts."""

    kind: Any
    keys: Any
    parts: tuple[Spec, ...]

    @property
    def leaves(self) -> int:
        """The number of leaves."""
        return sum(p.leaves for p in self.parts) if self.kind is not None else 1

    def __repr__(self) -> str:
        if self.kind is None:
            return "*"
        return f"TreeSpec({self.kind.__name__}, {self.keys}, [{', '.join(map(repr, self.parts))}])"


LEAF = Spec(None, None, ())


def _children(tree: Any) -> tuple[Any, list[Any]] | None:
    """Return keys and parts of a container, or None for a leaf."""
    kind = type(tree)
    if kind in (dict, OrderedDict, defaultdict):
        return list(tree), list(tree.values())
    if kind in (list, tuple) or (isinstance(tree, tuple) and hasattr(tree, "_fields")):
        return None, list(tree)
    return None


def flatten(tree: Any) -> tuple[list[Any], Spec]:
    """Return the leaves of a tree, and its structure."""
    found = _children(tree)
    if found is None:
        return [tree], LEAF
    keys, parts = found
    leaves: list[Any] = []
    specs = []
    for part in parts:
        inner, spec = flatten(part)
        leaves += inner
        specs.append(spec)
    return leaves, Spec(type(tree), keys, tuple(specs))


def unflatten(leaves: Sequence[Any], spec: Spec) -> Any:
    """Return the tree of structure ``spec`` with these leaves."""
    return _build(iter(leaves), spec)


def _build(leaves: Any, spec: Spec) -> Any:
    if spec.kind is None:
        return next(leaves)
    parts = [_build(leaves, s) for s in spec.parts]
    if spec.keys is not None:
        kind = dict if spec.kind is defaultdict else spec.kind
        return kind(zip(spec.keys, parts, strict=True))
    return spec.kind(*parts) if hasattr(spec.kind, "_fields") else spec.kind(parts)


def map_tree(function: Callable[..., Any], tree: Any) -> Any:
    """Return the tree with ``function`` applied to each leaf."""
    leaves, spec = flatten(tree)
    return unflatten([function(leaf) for leaf in leaves], spec)


def broadcast(prefix: Any, spec: Spec) -> list[Any] | None:
    """Return a value for each leaf of ``spec`` from a tree that may end earlier, or None."""
    if spec.kind is None:
        return None if _children(prefix) is not None else [prefix]
    found = _children(prefix)
    if found is None:
        return [prefix] * spec.leaves
    keys, parts = found
    if type(prefix) is not spec.kind or len(parts) != len(spec.parts) or keys != spec.keys:
        return None
    values: list[Any] = []
    for part, inner in zip(parts, spec.parts, strict=True):
        more = broadcast(part, inner)
        if more is None:
            return None
        values += more
    return values
