"""Derivatives of functions: ``grad``, ``vjp``, ``jvp``, Jacobians, Hessians; they nest freely."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from distgrad.autograd import engine
from distgrad.autograd.dual import DualLevel, fresh_leaf, transposed
from distgrad.autograd.forward_ad import check_tangent
from distgrad.autograd.mode import enable_grad, mode
from distgrad.autograd.traced import Level, Traced, settled
from distgrad.autograd.tree import flatten, map_tree, unflatten
from distgrad.backend.device import array_namespace
from distgrad.errors import ArgumentError, GradError, ShapeError
from distgrad.tensor import Tensor, wrap

Argnums = int | tuple[int, ...]
F: Any = engine.tensor_functions


# ---------------------------------------------------------------------- which arguments
def check_argnums(argnums: Any, count: int) -> None:
    """Raise unless ``argnums`` name different ones of ``count`` arguments."""
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


def chosen(args: Sequence[Any], argnums: Argnums) -> Any:
    """Return the arguments to differentiate."""
    return args[argnums] if isinstance(argnums, int) else tuple(args[n] for n in argnums)


def replaced(args: Sequence[Any], argnums: Argnums, values: Any) -> list[Any]:
    """Return the arguments with others in place of those to differentiate."""
    out = list(args)
    for n, v in (
        [(argnums, values)] if isinstance(argnums, int) else zip(argnums, values, strict=True)
    ):
        out[n] = v
    return out


def _leaf(value: Any, own: set[int]) -> Tensor:
    """Return an alias to differentiate with respect to."""
    if not isinstance(value, Tensor):
        raise ArgumentError(f"Thing passed to transform API must be Tensor, got {type(value)}")
    if value.array.dtype.kind not in "fcV":
        raise GradError(
            f"grad({value._brief()}): only Tensors of floating point dtype can require gradients"
        )
    return fresh_leaf(value, own)


def _pulled(
    outs: list[Tensor], gs: list[Tensor], inputs: list[Tensor], own: set[int] | None
) -> list[Any]:
    """Return the gradients of ``inputs``, zeros where there is none, at home outside."""
    found = transposed(outs, [engine.conjugated(g) for g in gs], inputs)
    return [
        _zeros(x) if g is None else settled(engine.conjugated(g), own)
        for g, x in zip(found, inputs, strict=True)
    ]


def _zeros(like: Tensor) -> Tensor:
    return wrap(array_namespace(like.array).zeros(like.array.shape, like.array.dtype))


def _home(tree: Any, own: set[int] | None) -> Any:
    """Return results without the history that was recorded for this transformation alone."""

    _check_aux(tree)
    return map_tree(lambda t: settled(t, own), tree)


def _outside(recording: bool, own: set[int]) -> set[int] | None:
    """Return what ``settled`` is told: under ``no_grad`` results keep no history at all."""
    return own if recording else None


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
        check_argnums(argnums, len(args))
        own: set[int] = set()
        kept = _outside(mode.grad, own)
        with enable_grad(), Level():
            values, spec = flatten(chosen(args, argnums))
            leaves = [_leaf(v, own) for v in values]
            out = func(*replaced(args, argnums, unflatten(leaves, spec)), **kwargs)
            aux = None
            if has_aux:
                out, aux = _with_aux("grad_and_value(f)(*args)", out)
            _check_scalar(out)
            one = wrap(array_namespace(out.array).ones((), out.array.dtype))
            found = unflatten(_pulled([out], [one], leaves, kept), spec)
            value = _home(out, kept)
        return (found, (value, _home(aux, kept))) if has_aux else (found, value)

    return wrapped


def _with_aux(where: str, out: Any) -> tuple[Any, Any]:
    if not isinstance(out, tuple) or len(out) != 2:
        raise GradError(
            f"{where}: output of function f should be a tuple: (output, aux) if has_aux is True"
        )
    return out


def _check_aux(aux: Any) -> None:
    for leaf in flatten(aux)[0]:
        if not isinstance(leaf, Tensor):
            raise GradError(f"Expected tensors, got unsupported type {type(leaf)}")


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
    kept = _outside(mode.grad, own)
    with enable_grad(), Level():
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
        now = _outside(mode.grad, own)
        with enable_grad():
            return unflatten(_pulled(outs, gs, leaves, now), spec)

    result = unflatten([settled(o, kept) for o in outs], out_spec)
    return (result, pull, _home(aux, kept)) if has_aux else (result, pull)


def _check_outputs(name: str, outs: list[Any]) -> None:
    inputs = "primals, tangents" if name == "jvp" else "*primals"
    if not outs or (len(outs) == 1 and outs[0] is None):
        raise GradError(
            f"{name}(f, {inputs}): Expected f to be a function that has non-empty output (got "
            f"output = {outs[0] if outs else ()})"
        )
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
            _check_aux(aux)
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
    return result, moved, map_tree(lambda t: level.parts(t)[0], aux)


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
        for name, what in (("primals", value), ("tangents", tangent)):
            if not isinstance(what, Tensor):
                raise GradError(
                    f"jvp(f, primals, tangents): Expected {name} to only contain Tensors, got "
                    f"{type(what)}"
                )
        check_tangent("jvp", value, tangent)


def linearize(func: Callable[..., Any], *primals: Any) -> tuple[Any, Callable[..., Any]]:
    """Return ``func(*primals)`` and the function that maps tangents to the output's tangent.

    ``func`` is evaluated once; the map costs one backward at each use.
    """
    values, spec = flatten(primals)
    if not values:
        raise GradError("linearize(): Expected primals to contain at least one Tensor.")
    own: set[int] = set()
    kept = _outside(mode.grad, own)
    with enable_grad(), Level():
        leaves = [_leaf(v, own) for v in values]
        outs, out_spec = flatten(func(*unflatten(leaves, spec)))
        _check_outputs("jvp", outs)
        gs = [fresh_leaf(F.zero(o.detach()), own) for o in outs]
        pulled = transposed(outs, gs, leaves)

    def push(*tangents: Any) -> Any:
        along, along_spec = flatten(tangents)
        if along_spec != spec:
            raise GradError(
                f"linearize(): Expected the tangents {along_spec} to have the same argspec as the "
                f"primals {spec}"
            )
        for place, (value, tangent) in enumerate(zip(values, along, strict=True)):
            for what in ("shape", "device", "dtype"):
                have, want = getattr(tangent, what), getattr(value, what)
                if have != want:
                    raise GradError(
                        f"linearize(): tangent:{place} with {what} {have} in flattened pytree "
                        f"doesn't match the {what} {want} of the corresponding primal."
                    )
        now = _outside(mode.grad, own)
        with enable_grad():
            found = transposed(pulled, along, gs)
        return unflatten(
            [_zeros(o) if t is None else settled(t, now) for t, o in zip(found, outs, strict=True)],
            out_spec,
        )

    return unflatten([settled(o, kept) for o in outs], out_spec), push


def functionalize(func: Callable[..., Any], *, remove: str = "mutations") -> Callable[..., Any]:
    """Return ``func``: nothing here is compiled, so changes in place need not be taken out.

    Args:
        func: any function of tensors.
        remove: "mutations" or "mutations_and_views"; the results are the same.
    """
    if remove not in ("mutations", "mutations_and_views"):
        raise GradError(
            "functionalize(f, remove='mutations'): received invalid argument for "
            f"remove={remove}. Valid options are: remove='mutations', remove='mutations_and_views'"
        )

    @functools.wraps(func)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return func(*args, **kwargs)

    return wrapped


def debug_unwrap(tensor: Tensor, *, recurse: bool = True) -> Tensor:
    """Return the tensor under one that carries a batch or a tangent, for printing.

    Args:
        tensor: any tensor.
        recurse: go down to the one with an array of numbers, instead of one layer.
    """
    while isinstance(tensor.array, Traced):
        tensor = tensor.array.below
        if not recurse:
            break
    return tensor
