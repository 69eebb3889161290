"""``vmap``: a function of one example, applied to a batch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from distgrad.autograd import batch_rules as batch_rules  # fills the table of rules
from distgrad.autograd import engine
from distgrad.autograd import function_batch as function_batch  # what Functions do in vmap
from distgrad.autograd.batch_random import Refusing, generator_inside
from distgrad.autograd.batching import BatchLevel, stacked
from distgrad.autograd.traced import Refused
from distgrad.autograd.tree import broadcast, flatten, unflatten
from distgrad.backend.random import current_generator, use_generator
from distgrad.errors import ArgumentError, ConfigError, GradError, IndexOutOfRange
from distgrad.tensor import Tensor, clock

F: Any = engine.tensor_functions


def vmap(
    func: Callable[..., Any],
    in_dims: Any = 0,
    out_dims: Any = 0,
    randomness: str = "error",
    *,
    chunk_size: int | None = None,
) -> Callable[..., Any]:
    """Return a function that applies ``func`` to every element along a dimension of its inputs.

    Args:
        func: takes and returns tensors, also in nested tuples, lists and dicts.
        in_dims: the dimension to run over: one for all inputs, or a tree of them; None for an
            input that all elements share.
        out_dims: where the dimension stands in the outputs.
        randomness: whether random operations draw "different" numbers for each element, the
            "same", or raise an "error".
        chunk_size: run over so many elements at a time, to save memory.

    Raises:
        ArgumentError: dimensions do not fit the inputs or outputs.

    Example:
        >>> import distgrad as dg
        >>> vmap(dg.dot)(dg.ones(2, 3), dg.ones(2, 3))
        tensor([3., 3.])
    """
    if randomness not in ("error", "different", "same"):
        raise GradError(
            "vmap(): Only allowed values for randomness are 'error', 'different', or 'same'. "
            f"Got {randomness}"
        )
    if chunk_size is not None and not chunk_size > 0:
        raise ConfigError(f"vmap: chunk_size should be None or greater than 0. (got {chunk_size})")

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        name = getattr(func, "__name__", repr(func))
        leaves, spec = flatten(args)
        dims = _input_dims(name, in_dims, args, leaves, spec)
        size = _batch_size(leaves, dims)
        run = functools.partial(_run, func, name, spec, out_dims, randomness, kwargs)
        if chunk_size is None or size <= chunk_size:
            return run(leaves, dims, size)
        return _in_chunks(run, leaves, dims, size, chunk_size, out_dims)

    return wrapped


def _input_dims(name: str, in_dims: Any, args: Any, leaves: list[Any], spec: Any) -> list[Any]:
    """Return the dimension of each leaf, counted from the front, or None."""
    if not isinstance(in_dims, int | tuple):
        raise ArgumentError(
            f"vmap({name}, in_dims={in_dims}, ...)(<inputs>): expected `in_dims` to be int or a "
            f"(potentially nested) tuple matching the structure of inputs, got: {type(in_dims)}."
        )
    if not args:
        raise ArgumentError(
            f"vmap({name})(<inputs>): got no inputs. Maybe you forgot to add inputs, or you are "
            "trying to vmap over a function with no inputs. The latter is unsupported."
        )
    dims = broadcast(in_dims, spec)
    if dims is None:
        raise ArgumentError(
            f"vmap({name}, in_dims={in_dims}, ...)(<inputs>): in_dims is not compatible with the "
            f"structure of `inputs`. in_dims has structure {flatten(in_dims)[1]} but inputs has "
            f"structure {spec}."
        )
    return [
        _input_dim(f"vmap({name}, in_dims={in_dims}, ...)(<inputs>)", leaf, dim)
        for leaf, dim in zip(leaves, dims, strict=True)
    ]


def _input_dim(where: str, leaf: Any, dim: Any) -> int | None:
    if dim is None:
        return None
    if not isinstance(dim, int):
        raise ArgumentError(
            f"{where}: Got in_dim={dim} for an input but in_dim must be either an integer "
            "dimension or None."
        )
    if not isinstance(leaf, Tensor):
        raise ArgumentError(
            f"{where}: Got in_dim={dim} for an input but the input is of type {type(leaf)}. We "
            "cannot vmap over non-Tensor arguments, please use None as the respective in_dim"
        )
    ndim = int(leaf.array.ndim)
    if not -ndim <= dim < ndim:
        raise ArgumentError(
            f"{where}: Got in_dim={dim} for some input, but that input is a Tensor of "
            f"dimensionality {ndim} so expected in_dim to satisfy -{ndim} <= in_dim < {ndim}."
        )
    return dim % ndim


def _batch_size(leaves: list[Any], dims: list[Any]) -> int:
    sizes = [x.array.shape[d] for x, d in zip(leaves, dims, strict=True) if d is not None]
    if not sizes:
        raise ArgumentError("vmap: Expected at least one Tensor to vmap over")
    if any(n != sizes[0] for n in sizes):
        raise ArgumentError(
            "vmap: Expected all tensors to have the same size in the mapped dimension, got sizes "
            f"{sizes} for the mapped dimension"
        )
    return int(sizes[0])


def _run(
    func: Callable[..., Any], name: str, spec: Any, out_dims: Any, randomness: str,
    kwargs: dict[str, Any], leaves: list[Any], dims: list[Any], size: int,
) -> Any:  # fmt: skip
    batches = [
        leaf if d is None else _moved(leaf, d, 0) for leaf, d in zip(leaves, dims, strict=True)
    ]
    before = clock.changed
    try:
        with BatchLevel(size, randomness) as level:
            inside = [
                b if d is None else level.batched(b) for b, d in zip(batches, dims, strict=True)
            ]
            with use_generator(generator_inside(level)):
                out = func(*unflatten(inside, spec), **kwargs)
            outs, out_spec = flatten(out)
            places = _output_dims(name, out_dims, out, out_spec)
            results = [_output(level, name, o, d) for o, d in zip(outs, places, strict=True)]
        return unflatten(results, out_spec)
    except Refused:
        if not size or clock.changed != before:  # what was written into cannot be had again
            raise
    return _one_by_one(func, name, spec, out_dims, randomness, kwargs, batches, dims, size)


def _one_by_one(
    func: Callable[..., Any], name: str, spec: Any, out_dims: Any, randomness: str,
    kwargs: dict[str, Any], batches: list[Any], dims: list[Any], size: int,
) -> Any:  # fmt: skip
    """Return the stacked results of ``func`` for each element, where the batch itself will not do.

    That is a function of which a part reads numbers, such as a check of its arguments.
    """
    outside = current_generator()
    start = outside.get_state()
    versions = [b._version if isinstance(b, Tensor) else 0 for b in batches]
    many = []
    for place in range(size):
        one = [
            b if d is None else F.select(b, 0, place) for b, d in zip(batches, dims, strict=True)
        ]
        if randomness == "same":
            outside.set_state(start)
        with use_generator(Refusing() if randomness == "error" else outside):
            many.append(func(*unflatten(one, spec), **kwargs))
        if any(d is None and isinstance(b, Tensor) and b._version != v
               for b, d, v in zip(batches, dims, versions, strict=True)):  # fmt: skip
            raise GradError(
                f"vmap({name}): a tensor without a batch is changed in place by what differs for "
                "each element; give every element its own"
            )
    out_spec = flatten(many[0])[1]
    places = _output_dims(name, out_dims, many[0], out_spec)
    columns = zip(*(flatten(out)[0] for out in many), strict=True)
    return unflatten(
        [_column(name, list(c), d) for c, d in zip(columns, places, strict=True)], out_spec
    )


def _column(name: str, parts: list[Any], dim: int | None) -> Any:
    if dim is None and all(p is parts[0] for p in parts):
        return parts[0]
    level = BatchLevel(len(parts), "error")
    if isinstance(parts[0], Tensor):
        return _output(level, name, level.batched(stacked(name, parts)), dim)
    return _output(level, name, parts[0], dim)


def _moved(tensor: Tensor, source: int, target: int) -> Tensor:
    """Return a view with one dimension moved to another place."""
    if source == target:
        return tensor
    order = [d for d in range(tensor.array.ndim) if d != source]
    order.insert(target, source)
    out: Tensor = F.permute(tensor, tuple(order))
    return out


def _output_dims(name: str, out_dims: Any, out: Any, spec: Any) -> list[Any]:
    if not all(d is None or isinstance(d, int) for d in flatten(out_dims)[0]):
        raise ArgumentError(
            f"vmap({name}, ..., out_dims={out_dims}): `out_dims` must be an int, None or a python "
            "collection of ints representing where in the outputs the vmapped dimension should "
            "appear."
        )
    if isinstance(out, Tensor) and isinstance(out_dims, tuple) and len(out_dims) == 1:
        return [out_dims[0]]
    dims = broadcast(out_dims, spec)
    if dims is None:
        raise ArgumentError(
            f"vmap({name}, ..., out_dims={out_dims})(<inputs>): out_dims is not compatible with "
            f"the structure of `outputs`. out_dims has structure {flatten(out_dims)[1]} but "
            f"outputs has structure {spec}."
        )
    return dims


def _output(level: BatchLevel, name: str, out: Any, dim: int | None) -> Any:
    if dim is None:
        if isinstance(out, Tensor) and level.value(out) is not None:
            raise ArgumentError(
                f"vmap({name}, ...): `{name}` can not return a BatchedTensor when out_dim is None"
            )
        return out
    if not isinstance(out, Tensor):
        raise ArgumentError(
            f"vmap({name}, ...): `{name}` must only return Tensors, got type {type(out)}. "
            "Did you mean to set out_dims= to None for output?"
        )
    value = level.full(out)
    ndim = int(value.array.ndim)
    if not -ndim <= dim < ndim:
        raise IndexOutOfRange(
            f"vmap({name}): Dimension out of range (expected to be in range of [-{ndim}, "
            f"{ndim - 1}], but got {dim})"
        )
    return _moved(value, 0, dim % ndim)


def _in_chunks(
    run: Callable[..., Any], leaves: list[Any], dims: list[Any], size: int, chunk: int,
    out_dims: Any,
) -> Any:  # fmt: skip
    parts = []
    for start in range(0, size, chunk):
        length = min(chunk, size - start)
        part = [
            leaf if d is None else F.narrow(leaf, d, start, length)
            for leaf, d in zip(leaves, dims, strict=True)
        ]
        parts.append(flatten(run(part, dims, length)))
    spec = parts[0][1]
    if isinstance(out_dims, tuple) and len(out_dims) == 1 and spec.kind is None:
        out_dims = out_dims[0]
    places = broadcast(out_dims, spec) or []
    joined = [
        many[0] if d is None else F.cat(list(many), d)
        for many, d in zip(zip(*(p[0] for p in parts), strict=True), places, strict=True)
    ]
    return unflatten(joined, spec)
