"""Collation: one batch of many samples."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Mapping, MutableMapping, MutableSequence, Sequence
from typing import Any

import numpy

from distgrad.backend.dtype import float64
from distgrad.errors import ArgumentTypeError, ShapeError
from distgrad.ops.create import as_tensor, tensor
from distgrad.ops.join import stack
from distgrad.tensor import Tensor

CollateMap = dict[Any, Callable[..., Any]]


def default_convert(data: Any) -> Any:
    """Return ``data`` with its NumPy arrays as tensors, inside containers too.

    Example:
        >>> import numpy as np
        >>> default_convert({"x": np.arange(2), "name": "a"})
        {'x': tensor([0, 1]), 'name': 'a'}
    """
    if isinstance(data, numpy.ndarray | numpy.generic):
        return data if data.dtype.kind in "USO" else as_tensor(data)
    if isinstance(data, Tensor | str | bytes):
        return data
    if isinstance(data, Mapping):
        return like_mapping(data, {key: default_convert(value) for key, value in data.items()})
    if is_namedtuple(data):
        return type(data)(*map(default_convert, data))
    if isinstance(data, tuple):
        return [default_convert(value) for value in data]
    if isinstance(data, Sequence):
        return like_sequence(data, [default_convert(value) for value in data])
    return data


def default_collate(batch: Any) -> Any:
    """Return a list of samples as one batch.

    Tensors, NumPy arrays and numbers become tensors with a new first dimension; texts stay a list;
    mappings, named tuples and sequences are collated element by element.

    Example:
        >>> default_collate([(1, 2.5, "a"), (3, 4.5, "b")])
        [tensor([1, 3]), tensor([2.5000, 4.5000], dtype=distgrad.float64), ('a', 'b')]
    """
    return collate(batch, collate_fn_map=default_collate_fn_map)


def collate(batch: Any, *, collate_fn_map: CollateMap | None = None) -> Any:
    """Return a list of samples as one batch, with the functions of a table.

    Args:
        batch: samples of one kind.
        collate_fn_map: for types, or tuples of types, ``function(batch, collate_fn_map=...)``. The
            exact type comes first, else the first entry of which a sample is an instance.
            Containers without an entry are collated element by element.

    Raises:
        ArgumentTypeError: there is no entry for the type.
        ShapeError: sequences have different lengths.
    """
    first = batch[0]
    function = _function_for(first, collate_fn_map or {})
    if function is not None:
        return function(batch, collate_fn_map=collate_fn_map)
    if isinstance(first, Mapping):
        columns = {
            key: collate([sample[key] for sample in batch], collate_fn_map=collate_fn_map)
            for key in first
        }
        return like_mapping(first, columns)
    if is_namedtuple(first):
        return type(first)(*_columns(batch, collate_fn_map))
    if isinstance(first, Sequence):
        if any(len(sample) != len(first) for sample in batch):
            raise ShapeError(
                "collate(): each element in list of batch should be of equal size; pad the "
                "samples, or give the loader a collate_fn"
            )
        columns_list = _columns(batch, collate_fn_map)
        return columns_list if isinstance(first, tuple) else like_sequence(first, columns_list)
    raise _not_collatable(type(first))


def _function_for(sample: Any, table: CollateMap) -> Callable[..., Any] | None:
    exact = table.get(type(sample))
    if exact is not None:
        return exact
    return next((table[kind] for kind in table if isinstance(sample, kind)), None)


def _columns(batch: Iterable[Any], collate_fn_map: CollateMap | None) -> list[Any]:
    return [collate(column, collate_fn_map=collate_fn_map) for column in zip(*batch, strict=False)]


def is_namedtuple(value: Any) -> bool:
    """Return whether ``value`` is a tuple with names."""
    return isinstance(value, tuple) and hasattr(value, "_fields")


def like_mapping(kind: Any, content: dict[Any, Any]) -> Any:
    """Return ``content`` as a mapping of the class of ``kind``; a dict, where that cannot be."""
    with contextlib.suppress(TypeError):
        if not isinstance(kind, MutableMapping):
            return type(kind)(content)
        same = copy.copy(kind)  # keeps the attributes of a subclass
        same.update(content)
        return same
    return content


def like_sequence(kind: Any, content: list[Any]) -> Any:
    """Return ``content`` as a sequence of the class of ``kind``; a list, where that cannot be."""
    with contextlib.suppress(TypeError):
        if not isinstance(kind, MutableSequence):
            return type(kind)(content)
        same = copy.copy(kind)
        for place, value in enumerate(content):
            same[place] = value
        return same
    return content


def _not_collatable(kind: Any) -> ArgumentTypeError:
    return ArgumentTypeError(
        "default_collate: batch must contain tensors, numpy arrays, numbers, dicts or lists; "
        f"found {kind}"
    )


def collate_tensor_fn(
    batch: Sequence[Tensor], *, collate_fn_map: CollateMap | None = None
) -> Tensor:
    """Return tensors stacked along a new first dimension."""
    out: Tensor = stack(list(batch), 0)
    return out


def collate_numpy_array_fn(
    batch: Sequence[Any], *, collate_fn_map: CollateMap | None = None
) -> Any:
    """Return NumPy arrays collated as the tensors on their memory."""
    if batch[0].dtype.kind in "USO":
        raise _not_collatable(batch[0].dtype)
    return collate([as_tensor(array) for array in batch], collate_fn_map=collate_fn_map)


def collate_numpy_scalar_fn(
    batch: Sequence[Any], *, collate_fn_map: CollateMap | None = None
) -> Tensor:
    """Return NumPy's numbers as a tensor of their dtype."""
    return as_tensor(numpy.array(batch))


def collate_float_fn(batch: Sequence[float], *, collate_fn_map: CollateMap | None = None) -> Tensor:
    """Return Python floats as a float64 tensor."""
    return tensor(batch, dtype=float64)


def collate_int_fn(batch: Sequence[int], *, collate_fn_map: CollateMap | None = None) -> Tensor:
    """Return Python integers as an int64 tensor, truth values as a bool tensor."""
    return tensor(batch)


def collate_str_fn(batch: Any, *, collate_fn_map: CollateMap | None = None) -> Any:
    """Return texts as they are."""
    return batch


#: What ``default_collate`` does with each type.
default_collate_fn_map: CollateMap = {
    Tensor: collate_tensor_fn,
    numpy.ndarray: collate_numpy_array_fn,
    (numpy.bool_, numpy.number, numpy.object_): collate_numpy_scalar_fn,
    float: collate_float_fn,
    int: collate_int_fn,
    str: collate_str_fn,
    bytes: collate_str_fn,
}
