"""Nested containers of tensors, taken apart and put together again, with types of one's own."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

__all__ = [
    "SUPPORTED_NODES", "Context", "GetAttrKey", "LeafSpec", "MappingKey", "NodeDef", "PyTree",
    "SequenceKey", "TreeSpec", "_get_node_type", "register_dataclass", "register_pytree_node",
    "tree_all", "tree_any", "tree_flatten", "tree_flatten_with_path", "tree_iter", "tree_leaves",
    "tree_map", "tree_map_", "tree_map_only", "tree_map_with_path", "tree_structure",
    "tree_unflatten",
]  # fmt: skip

Context = Any
PyTree = Any


class NodeDef(NamedTuple):
    """How a type of container is taken apart, and made again."""

    type: type[Any]
    flatten_fn: Callable[[Any], tuple[list[Any], Context]]
    unflatten_fn: Callable[[Iterable[Any], Context], Any]


class SequenceKey(NamedTuple):
    """A step of a path: the place in a sequence."""

    idx: int


class MappingKey(NamedTuple):
    """A step of a path: the key of a mapping."""

    key: Any


class GetAttrKey(NamedTuple):
    """A step of a path: the name of an attribute."""

    name: str


class TreeSpec:
    """The form of a nest: its type, what else it takes to make it, and the forms in it."""

    def __init__(self, type: Any, context: Context, children_specs: list[TreeSpec]) -> None:
        self.type, self.context, self.children_specs = type, context, children_specs
        self.num_leaves: int = sum(spec.num_leaves for spec in children_specs)
        self.num_children = len(children_specs)

    def is_leaf(self) -> bool:
        """Return whether this is one leaf."""
        return isinstance(self, LeafSpec)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TreeSpec):
            return NotImplemented
        mine = (self.type, self.context, self.children_specs)
        return mine == (other.type, other.context, other.children_specs)

    def __hash__(self) -> int:
        return hash((self.type, self.num_leaves))

    def __repr__(self) -> str:
        return f"TreeSpec({self.type.__name__}, {self.context}, {self.children_specs})"


class LeafSpec(TreeSpec):
    """The form of one leaf."""

    def __init__(self) -> None:
        super().__init__(None, None, [])
        self.num_leaves = 1

    def __repr__(self) -> str:
        return "*"


SUPPORTED_NODES: dict[type[Any], NodeDef] = {}


def register_pytree_node(
    cls: type[Any],
    flatten_fn: Callable[[Any], tuple[list[Any], Context]],
    unflatten_fn: Callable[[Iterable[Any], Context], Any],
    **options: Any,
) -> None:
    """Let ``cls`` be a container: how to take one apart, and how to make one."""
    SUPPORTED_NODES[cls] = NodeDef(cls, flatten_fn, unflatten_fn)


_register_pytree_node = register_pytree_node


def register_dataclass(cls: type[Any], **options: Any) -> None:
    """Let the fields of a dataclass be parts of a nest."""
    import dataclasses  # only programs that register one

    names = [field.name for field in dataclasses.fields(cls)]
    register_pytree_node(
        cls,
        lambda one: ([getattr(one, name) for name in names], names),
        lambda parts, context: cls(**dict(zip(context, parts, strict=True))),
    )


def _mapping(cls: type[Any]) -> None:
    register_pytree_node(
        cls,
        lambda one: (list(one.values()), list(one)),
        lambda parts, keys: cls(zip(keys, parts, strict=True)),
    )


def _dict_flatten(one: dict[Any, Any]) -> tuple[list[Any], Context]:
    """Return the values of a dict and its keys."""
    return list(one.values()), list(one)


def _dict_unflatten(values: Iterable[Any], keys: Context) -> dict[Any, Any]:
    """Return the dict of these values and keys."""
    return dict(zip(keys, values, strict=True))


def _dict_flatten_with_keys(
    one: dict[Any, Any],
) -> tuple[list[tuple[MappingKey, Any]], Context]:
    """Return the values of a dict with their steps of a path, and its keys."""
    return [(MappingKey(key), value) for key, value in one.items()], list(one)


def _sequence(cls: type[Any]) -> None:
    register_pytree_node(cls, lambda one: (list(one), None), lambda parts, _: cls(parts))


_mapping(dict)
_mapping(OrderedDict)
_sequence(list)
_sequence(tuple)
register_pytree_node(
    deque, lambda one: (list(one), one.maxlen), lambda parts, most: deque(parts, most)
)
register_pytree_node(
    defaultdict,
    lambda one: (list(one.values()), (one.default_factory, list(one))),
    lambda parts, made: defaultdict(made[0], zip(made[1], parts, strict=True)),
)
_NAMED = NodeDef(tuple, lambda one: (list(one), type(one)), lambda parts, kind: kind(*parts))
SUPPORTED_NODES[NamedTuple] = _NAMED  # the key that stands for all of them


def _get_node_type(tree: Any) -> Any:
    """Return the type under which the container is registered."""
    named = (
        isinstance(tree, tuple) and hasattr(tree, "_fields") and type(tree) not in (SUPPORTED_NODES)
    )
    return NamedTuple if named else type(tree)


def tree_flatten(
    tree: PyTree, is_leaf: Callable[[PyTree], bool] | None = None
) -> tuple[list[Any], TreeSpec]:
    """Return the leaves in order and the form.

    Example:
        >>> from distgrad.as_torch.extra.utils._pytree import tree_flatten, tree_unflatten
        >>> leaves, spec = tree_flatten({"a": [1, 2], "b": 3})
        >>> leaves, tree_unflatten([-x for x in leaves], spec)
        ([1, 2, 3], {'a': [-1, -2], 'b': -3})
    """
    leaves: list[Any] = []
    return leaves, _flatten(tree, leaves, is_leaf)


def _flatten(tree: Any, leaves: list[Any], is_leaf: Callable[[Any], bool] | None) -> TreeSpec:
    kind = _get_node_type(tree)
    node = None if is_leaf is not None and is_leaf(tree) else SUPPORTED_NODES.get(kind)
    if node is None:
        leaves.append(tree)
        return LeafSpec()
    parts, context = node.flatten_fn(tree)
    return TreeSpec(kind, context, [_flatten(part, leaves, is_leaf) for part in parts])


def tree_unflatten(leaves: Iterable[Any], treespec: TreeSpec) -> PyTree:
    """Return the nest of a form with these leaves."""
    return _build(iter(leaves), treespec)


def _build(leaves: Any, spec: TreeSpec) -> Any:
    if spec.is_leaf():
        return next(leaves)
    parts = [_build(leaves, child) for child in spec.children_specs]
    return SUPPORTED_NODES[spec.type].unflatten_fn(parts, spec.context)


def tree_structure(tree: PyTree, is_leaf: Callable[[PyTree], bool] | None = None) -> TreeSpec:
    """Return the form."""
    return tree_flatten(tree, is_leaf)[1]


def tree_leaves(tree: PyTree, is_leaf: Callable[[PyTree], bool] | None = None) -> list[Any]:
    """Return the leaves in order."""
    return tree_flatten(tree, is_leaf)[0]


def tree_iter(tree: PyTree, is_leaf: Callable[[PyTree], bool] | None = None) -> Any:
    """Return an iterator over the leaves."""
    return iter(tree_leaves(tree, is_leaf))


def tree_map(
    func: Callable[..., Any],
    tree: PyTree,
    *rests: PyTree,
    is_leaf: Callable[[PyTree], bool] | None = None,
) -> PyTree:
    """Return the nest of what ``func`` makes of each leaf (and of those of the other nests)."""
    leaves, spec = tree_flatten(tree, is_leaf)
    others = [tree_flatten(rest, is_leaf)[0] for rest in rests]
    return tree_unflatten([func(*each) for each in zip(leaves, *others, strict=True)], spec)


def tree_map_(func: Callable[..., Any], tree: PyTree, *rests: PyTree) -> PyTree:
    """Call ``func`` on each leaf and return the nest itself."""
    tree_map(func, tree, *rests)
    return tree


def tree_map_only(
    type_or_types: Any,
    func: Callable[[Any], Any],
    tree: PyTree,
    is_leaf: Callable[[PyTree], bool] | None = None,
) -> PyTree:
    """Return the nest with ``func`` of the leaves that are of a type."""
    return tree_map(
        lambda leaf: func(leaf) if isinstance(leaf, type_or_types) else leaf, tree, is_leaf=is_leaf
    )


def tree_all(pred: Callable[[Any], bool], tree: PyTree) -> bool:
    """Return whether all leaves satisfy ``pred``."""
    return all(map(pred, tree_leaves(tree)))


def tree_any(pred: Callable[[Any], bool], tree: PyTree) -> bool:
    """Return whether a leaf satisfies ``pred``."""
    return any(map(pred, tree_leaves(tree)))


def tree_flatten_with_path(
    tree: PyTree, is_leaf: Callable[[PyTree], bool] | None = None
) -> tuple[list[tuple[tuple[Any, ...], Any]], TreeSpec]:
    """Return pairs of path and leaf, and the form."""
    return list(_paths(tree, (), is_leaf)), tree_structure(tree, is_leaf)


def _paths(tree: Any, path: tuple[Any, ...], is_leaf: Callable[[Any], bool] | None) -> Any:
    kind = _get_node_type(tree)
    node = None if is_leaf is not None and is_leaf(tree) else SUPPORTED_NODES.get(kind)
    if node is None:
        yield path, tree
        return
    keys: list[Any]
    if kind is NamedTuple:
        keys = [GetAttrKey(name) for name in tree._fields]
    elif isinstance(tree, dict):
        keys = [MappingKey(key) for key in tree]
    else:
        keys = [SequenceKey(i) for i in range(len(node.flatten_fn(tree)[0]))]
    for key, part in zip(keys, node.flatten_fn(tree)[0], strict=True):
        yield from _paths(part, (*path, key), is_leaf)


def tree_map_with_path(
    func: Callable[..., Any],
    tree: PyTree,
    *rests: PyTree,
    is_leaf: Callable[[PyTree], bool] | None = None,
) -> PyTree:
    """Return the nest of ``func(path, leaf, …)``."""
    pairs, spec = tree_flatten_with_path(tree, is_leaf)
    others = [tree_flatten(rest, is_leaf)[0] for rest in rests]
    made = [func(path, leaf, *more) for (path, leaf), *more in zip(pairs, *others, strict=True)]
    return tree_unflatten(made, spec)
