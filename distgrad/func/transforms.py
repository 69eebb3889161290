"""Derivatives of functions: ``grad``, ``vjp``, ``jvp``, Jacobians, Hessians; they nest freely."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from distgrad.autograd import engine
from distgrad.autograd.dual import DualLevel, fresh_leaf
from distgrad.autograd.forward_ad import check_tangent
from distgrad.autograd.graph import edge_of
from distgrad.autograd.mode import enable_grad
from distgrad.autograd.traced import settled
from distgrad.backend.device import array_namespace
from distgrad.errors import ArgumentError, GradError, ShapeError
from distgrad.func.tree import flatten, map_tree, unflatten
from distgrad.func.vmap import vmap
from distgrad.tensor import Tensor, wrap

Argnums = int | tuple[int, ...]
F: Any = engine.tensor_functions


# ---------------------------------------------------------------------- which arguments
def _check_argnums(argnums: Any, count: int) -> None:
    if not isinstance(argnums, int | tuple) or isinstance(argnums, bool):
        raise GradError(f"argnums must be int or Tuple[int, ...], got: {type(argnums)}")
    numbers = (argnums,) if isinstance(argnums, int) else argnums
    if not numbers:
        raise GradError("argnums must be non-empty")
    if not all(isinstance(n, int) for n in numbers):
        raise GradError("argnums must be int or Tuple[int, ...]")
    for n in numbers:
        if not -count <= n < count:
            raise GradError(f"Got argnum={n}, but only {count} positional inputs")
    if len({n % count for n in numbers}) < len(numbers):
        raise GradError(f"argnums elements must be unique, got {argnums}")


def _chosen(args: Sequence[Any], argnums: Argnums) -> Any:
    return args[argnums] if isinstance(argnums, int) else tuple(args[n] for n in argnums)


def _replaced(args: Sequence[Any], argnums: Argnums, values: Any) -> list[Any]:
    out = list(args)
    for n, v in (
        [(argnums, values)] if isinstance(argnums, int) else zip(argnums, values, strict=True)
    ):
        out[n] = v
    return out


def _leaf(value: Any, own: set[int]) -> Tensor:
    if not isinstance(value, Tensor):
        raise ArgumentError(f"Thing passed to transform API must be Tensor, got {type(value)}")
    if value.array.dtype.kind not in "fcV":
        raise GradError(
            f"grad({value._brief()}): only Tensors of floating point dtype can require gradients"
        )
    return fresh_leaf(value, own)


def _pulled(outs: list[Tensor], gs: list[Tensor], inputs: list[Tensor], own: set[int]) -> list[Any]:
    """Return the gradients of ``inputs``, zeros where there is none, at home outside."""
    roots = [(edge_of(o), engine.conjugated(g)) for o, g in zip(outs, gs, strict=True)]
    roots = [(edge, g) for edge, g in roots if edge is not None]
    edges = [edge_of(x) for x in inputs]
    found: list[Any] = [None] * len(inputs)
    if roots:
        found = engine.run(
            roots, create_graph=True, keep_graph=True, inputs=edges, accumulate=False
        )
    return [
        _zeros(x) if g is None else settled(engine.conjugated(g), own)
        for g, x in zip(found, inputs, strict=True)
    ]


def _zeros(like: Tensor) -> Tensor:
    return wrap(array_namespace(like.array).zeros(like.array.shape, like.array.dtype))


def _home(tree: Any, own: set[int]) -> Any:
    """Return results without the history that was recorded for this transformation alone."""
    return map_tree(lambda t: settled(t, own) if isinstance(t, Tensor) else t, tree)


# ---------------------------------------------------------------------- gradients of scalars
def grad_and_value(
    func: Callable[..., Any], argnums: Argnums = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """Return a function that computes the gradient of ``func`` and its value.

    Args:
        func: returns a scalar tensor, or with ``has_aux`` a pair of it and anything else.
        argnums: the arguments (trees of tensors) to differentiate.
        has_aux: the result is ``(gradient, (value, aux))``.
    """

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        _check_argnums(argnums, len(args))
        own: set[int] = set()
        with enable_grad():
            values, spec = flatten(_chosen(args, argnums))
            leaves = [_leaf(v, own) for v in values]
            out = func(*_replaced(args, argnums, unflatten(leaves, spec)), **kwargs)
            aux = None
            if has_aux:
                out, aux = _with_aux("grad_and_value(f)(*args)", out)
            _check_scalar(out)
            one = wrap(array_namespace(out.array).ones((), out.array.dtype))
            found = unflatten(_pulled([out], [one], leaves, own), spec)
            value = _home(out, own)
        return (found, (value, _home(aux, own))) if has_aux else (found, value)

    return wrapped


def _with_aux(where: str, out: Any) -> tuple[Any, Any]:
    if not isinstance(out, tuple) or len(out) != 2:
        raise GradError(
            f"{where}: output of function f should be a tuple: (output, aux) if has_aux is True"
        )
    return out


def _check_scalar(out: Any) -> None:
    if not isinstance(out, Tensor):
        raise GradError(
            f"grad_and_value(f)(*args): Expected f(*args) to return a Tensor, got {type(out)}"
        )
    if out.array.ndim:
        raise GradError(
            "grad_and_value(f)(*args): Expected f(*args) to return a scalar Tensor, got tensor "
            f"with {out.array.ndim} dims. Maybe you wanted to use the vjp or jacrev APIs instead?"
        )


def grad(
    func: Callable[..., Any], argnums: Argnums = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """Return a function that computes the gradient of ``func``, which returns a scalar.

    Args:
        func: returns a scalar tensor, or with ``has_aux`` a pair of it and anything else.
        argnums: the arguments (trees of tensors) to differentiate.
        has_aux: the result is ``(gradient, aux)``.

    Example:
        >>> import distgrad as dg
        >>> grad(grad(lambda x: x**3))(dg.tensor(2.0))
        tensor(12.)
    """
    both = grad_and_value(func, argnums, has_aux)

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        found, value = both(*args, **kwargs)
        return (found, value[1]) if has_aux else found

    return wrapped


# ---------------------------------------------------------------------- products with Jacobians
def vjp(func: Callable[..., Any], *primals: Any, has_aux: bool = False) -> Any:
    """Return ``func(*primals)`` and the function that pulls gradients of it back to the primals.

    Example:
        >>> import distgrad as dg
        >>> out, pull = vjp(dg.sin, dg.zeros(2))
        >>> pull(dg.tensor([1.0, 2.0]))
        (tensor([1., 2.]),)
    """
    own: set[int] = set()
    with enable_grad():
        values, spec = flatten(primals)
        leaves = [_leaf(v, own) for v in values]
        out = func(*unflatten(leaves, spec))
    aux = None
    if has_aux:
        out, aux = _with_aux("vjp(f, *primals)", out)
    outs, out_spec = flatten(out)
    _check_outputs("vjp", outs)

    def pull(cotangents: Any) -> Any:
        gs, g_spec = flatten(cotangents)
        if g_spec != out_spec:
            raise GradError(
                "Expected pytree structure of cotangents to be the same as pytree structure of "
                f"outputs to the function. cotangents: {g_spec}, primal output: {out_spec}"
            )
        for place, (g, o) in enumerate(zip(gs, outs, strict=True)):
            if g.array.shape != o.array.shape:
                raise ShapeError(
                    f"vjp(): Mismatch in shape: grad_output[{place}] has a shape of {g.shape} and "
                    f"output[{place}] has a shape of {o.shape}."
                )
        with enable_grad():
            return unflatten(_pulled(outs, gs, leaves, own), spec)

    result = unflatten([settled(o, own) for o in outs], out_spec)
    return (result, pull, _home(aux, own)) if has_aux else (result, pull)


def _check_outputs(name: str, outs: list[Any]) -> None:
    inputs = "primals, tangents" if name == "jvp" else "*primals"
    for out in outs:
        if not isinstance(out, Tensor):
            raise GradError(
                f"{name}(f, {inputs}): expected f(*primals) to return only tensors, got "
                f"unsupported type {type(out)}"
            )


def jvp(
    func: Callable[..., Any], primals: Any, tangents: Any, *, strict: bool = False,
    has_aux: bool = False,
) -> Any:  # fmt: skip
    """Return ``func(*primals)`` and its derivative along ``tangents``, by forward mode.

    Args:
        func: takes and returns tensors, also in trees.
        primals: a tuple of the arguments.
        tangents: a direction for each, of the same structure.
        strict: raise when an output does not depend on the inputs.
        has_aux: ``func`` returns a pair; its second part comes last in the result.

    Example:
        >>> import distgrad as dg
        >>> jvp(lambda x: x**2, (dg.tensor(3.0),), (dg.tensor(1.0),))
        (tensor(9.), tensor(6.))
    """
    if not isinstance(primals, tuple):
        raise GradError(
            "jvp(f, primals, tangents): Expected primals to be a tuple. E.g. it should be valid to "
            "call f(*primals)."
        )
    values, spec = flatten(primals)
    along, along_spec = flatten(tangents)
    _check_directions(values, spec, along, along_spec)
    with DualLevel() as level:
        inside = [level.dual(v, t) for v, t in zip(values, along, strict=True)]
        out = func(*unflatten(inside, spec))
        aux = None
        if has_aux:
            out, aux = _with_aux("jvp(f, primals, tangents)", out)
        outs, out_spec = flatten(out)
        _check_outputs("jvp", outs)
        parts = [level.parts(o) for o in outs]
    if strict and any(t is None for _, t in parts):
        raise GradError(
            "jvp(f, primals, tangents, strict=True): The output of f is independent of the inputs. "
            "This is not allowed with strict=True."
        )
    result = unflatten([p for p, _ in parts], out_spec)
    moved = unflatten([_zeros(p) if t is None else t for p, t in parts], out_spec)
    if not has_aux:
        return result, moved
    aux = map_tree(lambda t: level.parts(t)[0] if isinstance(t, Tensor) else t, aux)
    return result, moved, aux


def _check_directions(values: list[Any], spec: Any, along: list[Any], along_spec: Any) -> None:
    if spec != along_spec:
        raise GradError(
            "jvp(f, primals, tangents): Expected primals and tangents to have the same python "
            "structure. For example, if primals is a tuple of 3 tensors, tangents also must be. "
            f"Got primals with structure {spec} and tangents with structure {along_spec}"
        )
    if not values:
        raise GradError(
            "jvp(f, primals, tangents): Expected primals to contain at least one Tensor."
        )
    for value, tangent in zip(values, along, strict=True):
        for what in (value, tangent):
            if not isinstance(what, Tensor):
                raise ArgumentError(
                    f"jvp(): Thing passed to transform API must be Tensor, got {type(what)}"
                )
        check_tangent("jvp", value, tangent)


def linearize(func: Callable[..., Any], *primals: Any) -> tuple[Any, Callable[..., Any]]:
    """Return ``func(*primals)`` and the function that maps tangents to the output's tangent.

    Differs from PyTorch: the function is evaluated again at each use.
    """
    if not flatten(primals)[0]:
        raise GradError("linearize(): Expected primals to contain at least one Tensor.")

    def push(*tangents: Any) -> Any:
        return jvp(func, primals, tangents)[1]

    return func(*primals), push


# ---------------------------------------------------------------------- Jacobians
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


def jacrev(
    func: Callable[..., Any],
    argnums: Argnums = 0,
    *,
    has_aux: bool = False,
    chunk_size: int | None = None,
) -> Callable[..., Any]:
    """Return a function that computes the Jacobian of ``func`` by reverse mode.

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
        _check_argnums(argnums, len(args))

        def partial(values: Any) -> Any:
            return func(*_replaced(args, argnums, values), **kwargs)

        chosen = _chosen(args, argnums)
        out, pull, *aux = vjp(partial, chosen, has_aux=has_aux)
        outs, out_spec = flatten(out)
        inputs, in_spec = flatten(chosen)

        def rows_of(gs: list[Tensor]) -> list[Tensor]:
            (found,) = pull(unflatten(gs, out_spec))
            return flatten(found)[0]

        rows = vmap(rows_of, chunk_size=chunk_size)(_basis(outs))
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
        _check_argnums(argnums, len(args))

        def partial(values: Any) -> Any:
            return func(*_replaced(args, argnums, values), **kwargs)

        chosen = _chosen(args, argnums)
        inputs, in_spec = flatten(chosen)
        for value in inputs:
            if not isinstance(value, Tensor):
                raise ArgumentError(
                    f"jacfwd(): Thing passed to transform API must be Tensor, got {type(value)}"
                )

        def push(along: list[Tensor]) -> Any:
            direction = (unflatten(along, in_spec),)
            _, moved, *aux = jvp(partial, (chosen,), direction, has_aux=has_aux)
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
