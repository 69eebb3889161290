"""Jacobians and Hessians as functions: one product with the Jacobian per basis vector, batched."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from distgrad.autograd import engine
from distgrad.autograd.tree import flatten, unflatten
from distgrad.backend.device import array_namespace
from distgrad.errors import ArgumentError, GradError
from distgrad.func.transforms import Argnums, check_argnums, chosen, jvp, replaced, vjp
from distgrad.func.vmap import vmap
from distgrad.tensor import Tensor, wrap

F: Any = engine.tensor_functions


def _basis(tensors: list[Tensor]) -> list[Tensor]:
    """Return for each tensor a batch of directions: together all unit vectors of all of them."""
    total = sum(int(t.array.size) for t in tensors)
    found, start = [], 0
    for t in tensors:
        xp = array_namespace(t.array)
        count = int(t.array.size)
        rows = xp.zeros((total, count), t.array.dtype)
        rows[start : start + count] = xp.eye(count, dtype=t.array.dtype)
        found.append(wrap(rows.reshape(total, *t.array.shape)))
        start += count
    return found


def _cut(rows: Tensor, tensors: list[Tensor], dim: int) -> list[Tensor]:
    """Return the blocks of ``rows`` along ``dim`` that belong to each of the tensors."""
    blocks, start = [], 0
    for t in tensors:
        count = int(t.array.size)
        part = F.narrow(rows, dim, start, count)
        shape = rows.array.shape
        blocks.append(F.reshape(part, (*shape[:dim], *t.array.shape, *shape[dim + 1 :])))
        start += count
    return blocks


def _check_real(name: str, what: str, tensors: list[Tensor]) -> None:
    for t in tensors:
        if t.array.dtype.kind == "c":
            raise GradError(
                f"{name}: Expected all {what} to be real but received complex tensor at flattened "
                f"{what[:-1]}: {t._brief()}; take .real and .imag apart"
            )


def jacrev(
    func: Callable[..., Any],
    argnums: Argnums = 0,
    *,
    has_aux: bool = False,
    chunk_size: int | None = None,
    _preallocate_and_copy: bool = False,
) -> Callable[..., Any]:
    """Return a function that computes the Jacobian of ``func`` by reverse mode.

    Args:
        func: takes and returns tensors, also in trees.
        argnums: the arguments (trees of tensors) to differentiate.
        has_aux: ``func`` returns a pair; its second part comes last in the result.
        chunk_size: rows computed at a time, to save memory; 1: one by one, without ``vmap``.
        _preallocate_and_copy: accepted; the rows are joined at the end.

    Shape:
        Of each output by each argument: the output's shape, then the argument's.

    Example:
        >>> import distgrad as dg
        >>> jacrev(lambda x: x * x)(dg.tensor([1.0, 2.0]))
        tensor([[2., 0.],
                [0., 4.]])
    """
    if chunk_size is not None and chunk_size <= 0:
        raise ArgumentError("jacrev: `chunk_size` should be greater than 0.")

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        check_argnums(argnums, len(args))

        def partial(values: Any) -> Any:
            return func(*replaced(args, argnums, values), **kwargs)

        given = chosen(args, argnums)
        out, pull, *aux = vjp(partial, given, has_aux=has_aux)
        outs, out_spec = flatten(out)
        inputs, in_spec = flatten(given)
        _check_real("jacrev", "inputs", inputs)
        _check_real("jacrev", "outputs", outs)

        def rows_of(gs: list[Tensor]) -> list[Tensor]:
            (found,) = pull(unflatten(gs, out_spec))
            return flatten(found)[0]

        basis = _basis(outs)
        if chunk_size == 1:
            each = [rows_of([F.select(b, 0, i) for b in basis]) for i in range(len(basis[0]))]
            rows = [F.stack(list(parts), 0) for parts in zip(*each, strict=True)]
        else:
            rows = vmap(rows_of, chunk_size=chunk_size)(basis)
        by_input = [_cut(r, outs, 0) for r in rows]
        found = unflatten(
            [unflatten([by_input[i][o] for i in range(len(inputs))], in_spec)
             for o in range(len(outs))],
            out_spec,
        )  # fmt: skip
        return (found, aux[0]) if has_aux else found

    return wrapped


def jacfwd(
    func: Callable[..., Any],
    argnums: Argnums = 0,
    has_aux: bool = False,
    *,
    randomness: str = "error",
) -> Callable[..., Any]:
    """Return a function that computes the Jacobian of ``func`` by forward mode.

    Shape:
        Of each output by each argument: the output's shape, then the argument's.
    """

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        check_argnums(argnums, len(args))

        def partial(values: Any) -> Any:
            return func(*replaced(args, argnums, values), **kwargs)

        given = chosen(args, argnums)
        inputs, in_spec = flatten(given)
        for value in inputs:
            if not isinstance(value, Tensor):
                raise ArgumentError(
                    f"jacfwd(): Thing passed to transform API must be Tensor, got {type(value)}"
                )
        _check_real("jacfwd", "inputs", inputs)

        def push(along: list[Tensor]) -> Any:
            direction = (unflatten(along, in_spec),)
            _, moved, *aux = jvp(partial, (given,), direction, has_aux=has_aux)
            _check_real("jacfwd", "outputs", flatten(moved)[0])
            return (moved, aux[0]) if has_aux else moved

        out_dims = (0, None) if has_aux else 0
        out = vmap(push, out_dims=out_dims, randomness=randomness)(_basis(inputs))
        moved, aux = out if has_aux else (out, None)
        columns, out_spec = flatten(moved)
        blocks = [
            _cut(F.permute(c, (*range(1, c.array.ndim), 0)), inputs, c.array.ndim - 1)
            for c in columns
        ]
        found = unflatten([unflatten(b, in_spec) for b in blocks], out_spec)
        return (found, aux) if has_aux else found

    return wrapped


def hessian(func: Callable[..., Any], argnums: Argnums = 0) -> Callable[..., Any]:
    """Return a function that computes second derivatives: forward mode over reverse mode.

    Example:
        >>> import distgrad as dg
        >>> hessian(lambda x: (x**3).sum())(dg.tensor([1.0, 2.0]))
        tensor([[ 6.,  0.],
                [ 0., 12.]])
    """
    return jacfwd(jacrev(func, argnums), argnums)
