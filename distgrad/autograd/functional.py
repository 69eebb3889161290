"""Products with Jacobians and Hessians, and these themselves, of functions of tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distgrad.autograd import engine
from distgrad.autograd.batching import over_batch
from distgrad.autograd.dual import DualLevel, fresh_leaf
from distgrad.autograd.gradients import grad
from distgrad.autograd.mode import enable_grad, mode, set_grad_enabled
from distgrad.autograd.traced import is_traced
from distgrad.backend.device import array_namespace
from distgrad.errors import ArgumentTypeError, GradError, ShapeError
from distgrad.tensor import Tensor, wrap

__all__ = ["hessian", "hvp", "jacobian", "jvp", "vhp", "vjp"]

Tensors = tuple[Any, ...]
F: Any = engine.tensor_functions


def vjp(
    func: Callable[..., Any],
    inputs: Any,
    v: Any = None,
    create_graph: bool = False,
    strict: bool = False,
) -> tuple[Any, Any]:
    """Return ``func(*inputs)`` and the product of ``v`` with its Jacobian.

    Args:
        func: takes tensors, returns a tensor or a tuple of tensors.
        inputs: a tensor or a tuple of tensors.
        v: of the shape of the outputs; may be left out for one output with one element.
        create_graph: make both results differentiable.
        strict: raise where an output does not depend on an input, instead of giving zeros.

    Example:
        >>> import distgrad as dg
        >>> vjp(lambda x: x * x, dg.tensor([1.0, 2.0]), dg.tensor([1.0, 1.0]))
        (tensor([1., 4.]), tensor([2., 4.]))
    """
    with enable_grad():
        many_in, xs = _inputs(inputs, "vjp", create_graph)
        many_out, outputs = _outputs(func, xs, "vjp", strict)
        if v is not None:
            v = _vector(v, "vjp", create_graph, outputs, many_out)
        elif len(outputs) != 1 or outputs[0].numel() != 1:
            raise GradError(
                "vjp(v=None): The vector v can only be None if the user-provided function returns "
                "a single Tensor with a single element."
            )
    with set_grad_enabled(create_graph or mode.grad):
        found = _grad(outputs, xs, v, create_graph)
        found = _zeros_for(found, xs, strict, create_graph, "back")
    return _finish(outputs, create_graph, many_out), _finish(found, create_graph, many_in)


def jvp(
    func: Callable[..., Any],
    inputs: Any,
    v: Any = None,
    create_graph: bool = False,
    strict: bool = False,
) -> tuple[Any, Any]:
    """Return ``func(*inputs)`` and the product of its Jacobian with ``v``.

    It is computed by two backwards; ``v`` has the shape of the inputs.  Arguments as in ``vjp``.
    """
    with enable_grad():
        many_in, xs = _inputs(inputs, "jvp", create_graph)
        v = _input_vector(v, "jvp", create_graph, xs, many_in)
        many_out, outputs = _outputs(func, xs, "jvp", strict)
        dummies = _zeros_that_require_grad(outputs)
        pulled = _grad(outputs, xs, dummies, True)
        _check(pulled, "grad_inputs", strict)
    with set_grad_enabled(create_graph or mode.grad):
        found = _grad(pulled, dummies, v, create_graph)
        found = _zeros_for(found, outputs, strict, create_graph, "back_trick")
    return _finish(outputs, create_graph, many_out), _finish(found, create_graph, many_out)


def vhp(
    func: Callable[..., Any],
    inputs: Any,
    v: Any = None,
    create_graph: bool = False,
    strict: bool = False,
) -> tuple[Any, Any]:
    """Return the scalar ``func(*inputs)`` and the product of ``v`` with its Hessian.

    Arguments as in ``vjp``; ``v`` has the shape of the inputs.
    """
    with enable_grad():
        many_in, xs = _inputs(inputs, "vhp", create_graph)
        v = _input_vector(v, "vhp", create_graph, xs, many_in)
        outputs, first = _scalar_gradient(func, xs, "vhp", strict)
    with set_grad_enabled(create_graph or mode.grad):
        found = _grad(first, xs, v, create_graph)
        found = _zeros_for(found, xs, strict, create_graph, "double_back")
    return _finish(outputs, create_graph, False), _finish(found, create_graph, many_in)


def hvp(
    func: Callable[..., Any],
    inputs: Any,
    v: Any = None,
    create_graph: bool = False,
    strict: bool = False,
) -> tuple[Any, Any]:
    """Return the scalar ``func(*inputs)`` and the product of its Hessian with ``v``.

    Arguments as in ``vhp``, which costs less and gives the same for a symmetric Hessian.
    """
    with enable_grad():
        many_in, xs = _inputs(inputs, "hvp", create_graph)
        v = _input_vector(v, "hvp", create_graph, xs, many_in)
        outputs, first = _scalar_gradient(func, xs, "hvp", strict)
        dummies = _zeros_that_require_grad(xs)
        double = _grad(first, xs, dummies, True)
        _check(first, "hessian", strict)
    with set_grad_enabled(create_graph or mode.grad):
        found = _grad(double, dummies, v, create_graph)
        found = _zeros_for(found, xs, strict, create_graph, "double_back_trick")
    return _finish(outputs, create_graph, False), _finish(found, create_graph, many_in)


def jacobian(
    func: Callable[..., Any],
    inputs: Any,
    create_graph: bool = False,
    strict: bool = False,
    vectorize: bool = False,
    strategy: str = "reverse-mode",
) -> Any:
    """Return the Jacobian of ``func`` at ``inputs``: of the output's shape, then the input's.

    Args:
        func: takes tensors, returns a tensor or a tuple of tensors.
        inputs: a tensor or a tuple of tensors; tuples give tuples (of tuples).
        create_graph: make the result differentiable.
        strict: raise where an output does not depend on an input, instead of giving zeros.
        vectorize: compute all rows in one backward, with ``vmap``, instead of one after the other.
        strategy: "reverse-mode", or "forward-mode" (with ``vectorize``) for columns by ``jvp``.

    Example:
        >>> import distgrad as dg
        >>> jacobian(lambda x: x * x, dg.tensor([1.0, 2.0]))
        tensor([[2., 0.],
                [0., 4.]])
    """
    _check_strategy(strategy, create_graph, strict, vectorize)
    if strategy == "forward-mode":
        many_in, xs = _as_tuple(inputs, "inputs", "jacobian")
        return _by_columns(func, xs, many_in)
    with enable_grad():
        many_in, xs = _inputs(inputs, "jacobian", create_graph)
        many_out, outputs = _outputs(func, xs, "jacobian", strict)
        if vectorize:
            found = tuple(_all_rows(out, xs, create_graph) for out in outputs)
        else:
            found = tuple(_rows(i, out, xs, create_graph, strict) for i, out in enumerate(outputs))
    if not create_graph:
        found = tuple(tuple(part.detach() for part in row) for row in found)
    return _nested(found, many_out, many_in)


def hessian(
    func: Callable[..., Any],
    inputs: Any,
    create_graph: bool = False,
    strict: bool = False,
    vectorize: bool = False,
    outer_jacobian_strategy: str = "reverse-mode",
) -> Any:
    """Return the Hessian of the scalar function ``func`` at ``inputs``.

    Arguments as in ``jacobian``.

    Example:
        >>> import distgrad as dg
        >>> hessian(lambda x: (x**3).sum(), dg.tensor([1.0, 2.0]))
        tensor([[ 6.,  0.],
                [ 0., 12.]])
    """
    many_in, xs = _as_tuple(inputs, "inputs", "hessian")
    if outer_jacobian_strategy not in ("forward-mode", "reverse-mode"):
        raise AssertionError('Expected strategy to be either "forward-mode" or "reverse-mode".')

    def scalar(*args: Tensor) -> Tensor:
        out = func(*args)
        many, outs = _as_tuple(out, "outputs of the user-provided function", "hessian")
        _check(outs, "outputs", strict)
        _check_scalar(many, outs, "hessian")
        return F.squeeze(out) if out.ndim else out  # type: ignore[no-any-return]

    def gradient(*args: Tensor) -> Any:
        first = jacobian(scalar, args, create_graph=True)
        _check(first, "jacobian", strict)
        return first

    found = jacobian(gradient, xs, create_graph, strict, vectorize, outer_jacobian_strategy)
    return _nested(found, many_in, many_in)


# ---------------------------------------------------------------------- arguments
def _as_tuple(values: Any, what: str, name: str) -> tuple[bool, Tensors]:
    many = isinstance(values, tuple)
    found = values if many else (values,)
    for place, value in enumerate(found):
        if not isinstance(value, Tensor):
            where = f"value at index {place}" if many else f"given {what}"
            raise ArgumentTypeError(
                f"{name}(): The {what} given to {name} must be either a Tensor or a tuple of "
                f"Tensors but the {where} has type {type(value)}."
            )
    return many, found


def _fresh(tensors: Tensors, create_graph: bool, need_graph: bool) -> Tensors:
    """Return new tensors, so that those which ``func`` captured are told apart."""
    return tuple(_fresh_one(t, create_graph, need_graph) for t in tensors)


def _fresh_one(tensor: Tensor, create_graph: bool, need_graph: bool) -> Any:
    if is_traced((tensor,)):  # ``detach`` would lose a tangent
        return fresh_leaf(tensor, set()) if need_graph else F.alias(tensor)
    if create_graph and tensor.requires_grad:
        return F.alias(tensor)
    return tensor.detach().requires_grad_(need_graph)


def _inputs(inputs: Any, name: str, create_graph: bool) -> tuple[bool, Tensors]:
    many, xs = _as_tuple(inputs, "inputs", name)
    return many, _fresh(xs, create_graph, True)


def _outputs(func: Callable[..., Any], xs: Tensors, name: str, strict: bool) -> Any:
    found = _as_tuple(func(*xs), "outputs of the user-provided function", name)
    _check(found[1], "outputs", strict)
    return found


def _vector(v: Any, name: str, create_graph: bool, others: Tensors, many: bool) -> Tensors:
    _, vs = _as_tuple(v, "v", name)
    vs = _fresh(vs, create_graph, False)
    if len(vs) != len(others):
        raise GradError(
            f"{name}(): v is a tuple of invalid length: should be {len(others)} but got {len(vs)}."
            if many
            else f"{name}(): The given v should contain a single Tensor."
        )
    for place, (one, other) in enumerate(zip(vs, others, strict=True)):
        if one.shape != other.shape:
            entry = f"Entry {place} in " if many else ""
            raise ShapeError(
                f"{name}(): {entry}v has invalid size: should be {other.shape} but got {one.shape}."
            )
    return vs


def _input_vector(v: Any, name: str, create_graph: bool, xs: Tensors, many: bool) -> Any:
    if v is not None:
        return _vector(v, name, create_graph, xs, many)
    if len(xs) != 1 or xs[0].numel() != 1:
        raise GradError(
            f"{name}(v=None): The vector v can only be None if the input to the user-provided "
            "function is a single Tensor with a single element."
        )
    return None


def _check_scalar(many: bool, outputs: Tensors, name: str) -> None:
    if many:
        raise GradError(f"{name}(): The function given to {name} should return a single Tensor")
    if outputs[0].numel() != 1:
        raise GradError(
            f"{name}(): The Tensor returned by the function given to {name} should contain a "
            "single element"
        )


def _scalar_gradient(
    func: Callable[..., Any], xs: Tensors, name: str, strict: bool
) -> tuple[Tensors, Tensors]:
    many, outputs = _outputs(func, xs, name, strict)
    _check_scalar(many, outputs, name)
    first = _grad(outputs, xs, None, True)
    _check(first, "jacobian", strict)
    return outputs, first


def _check_strategy(strategy: str, create_graph: bool, strict: bool, vectorize: bool) -> None:
    if strategy not in ("forward-mode", "reverse-mode"):
        raise AssertionError(
            'Expected strategy to be either "forward-mode" or "reverse-mode". Hint: If your '
            'function has more outputs than inputs, "forward-mode" tends to be more performant. '
            'Otherwise, prefer to use "reverse-mode".'
        )
    if strategy == "forward-mode" and create_graph:
        raise NotImplementedError(
            'jacobian(): `create_graph=True` and `strategy="forward-mode"` are not supported '
            "together (yet)."
        )
    if strategy == "forward-mode" and not vectorize:
        raise NotImplementedError(
            "Computing Jacobian using forward-AD or forward-over-reverse Hessian is only "
            "implemented for `vectorize=True`."
        )
    if strict and (strategy == "forward-mode" or vectorize):
        raise GradError(
            "jacobian(): `strict=True` is not supported together with `vectorize=True` or "
            '`strategy="forward-mode"`; set `strict=False`'
        )


# ---------------------------------------------------------------------- strictness
_INDEPENDENT = {
    "hessian": "The hessian of the user-provided function with respect to input {} is independent "
    "of the input. This is not allowed in strict mode. You should ensure that your function is "
    "thrice differentiable and that the hessian depends on the inputs.",
    "jacobian": "While computing the hessian, found that the jacobian of the user-provided "
    "function with respect to input {} is independent of the input. This is not allowed in strict "
    "mode. You should ensure that your function is twice differentiable and that the jacobian "
    "depends on the inputs (this would be violated by a linear function for example).",
    "grad_inputs": "The gradient with respect to input {} is independent of the inputs of the "
    "user-provided function. This is not allowed in strict mode.",
    "outputs": "Output {} of the user-provided function does not require gradients. The outputs "
    "must be computed in a differentiable manner from the input when running in strict mode.",
}
_MISSING = {
    "back": "The output of the user-provided function is independent of input {}. This is not "
    "allowed in strict mode.",
    "back_trick": "The gradient with respect to the input is independent of entry {} in the "
    "grad_outputs when using the double backward trick to compute forward mode gradients. This is "
    "not allowed in strict mode.",
    "double_back": "The jacobian of the user-provided function is independent of input {}. This "
    "is not allowed in strict mode.",
    "double_back_trick": "The hessian of the user-provided function is independent of entry {} in "
    "the grad_jacobian. This is not allowed in strict mode as it prevents from using the double "
    "backward trick to replace forward mode AD.",
}


def _check(tensors: Tensors, what: str, strict: bool) -> None:
    for place, tensor in enumerate(tensors if strict else ()):
        if tensor is None:
            raise GradError(_MISSING["back"].format(place))
        if not tensor.requires_grad:
            raise GradError(_INDEPENDENT[what].format(place))


def _zeros_for(
    grads: Tensors, like: Tensors, strict: bool, create_graph: bool, stage: str
) -> Tensors:
    full = []
    for place, (g, other) in enumerate(zip(grads, like, strict=True)):
        if g is None and strict:
            raise GradError(_MISSING[stage].format(place))
        if g is not None and strict and create_graph and not g.requires_grad:
            what = "hessian" if "double" in stage else "jacobian"
            raise GradError(
                f"The {what} of the user-provided function is independent of input {place}. This "
                "is not allowed in strict mode when create_graph=True."
            )
        full.append(_zeros(other) if g is None else g)
    return tuple(full)


# ---------------------------------------------------------------------- computation
def _zeros(like: Tensor) -> Tensor:
    return wrap(array_namespace(like.array).zeros_like(like.array))


def _zeros_that_require_grad(like: Tensors) -> Tensors:
    return tuple(_zeros(t).requires_grad_() for t in like)


def _grad(
    outputs: Tensors, inputs: Tensors, gs: Any, create_graph: bool, keep: bool | None = None
) -> Tensors:
    """Return the gradients; outputs that are None or constant take no part."""
    given = gs if gs is not None else (None,) * len(outputs)
    pairs = [
        (o, g) for o, g in zip(outputs, given, strict=True) if o is not None and o.requires_grad
    ]
    if not pairs:
        return (None,) * len(inputs)
    outs, gs = zip(*pairs, strict=True)
    found: Tensors = grad(outs, inputs, gs, keep, create_graph, allow_unused=True)
    return found


def _rows(place: int, out: Tensor, xs: Tensors, create_graph: bool, strict: bool) -> Tensors:
    """Return the Jacobian of one output with respect to each input."""
    flat = F.reshape(out, (out.numel(),))
    parts: list[list[Tensor]] = [[] for _ in xs]
    for j in range(out.numel()):
        row = _grad((flat[j],), xs, None, create_graph, keep=True)
        for i, (g, x) in enumerate(zip(row, xs, strict=True)):
            if g is None and strict:
                raise GradError(
                    f"jacobian(): Output {place} of the user-provided function is independent of "
                    f"input {i}. This is not allowed in strict mode."
                )
            if g is not None and strict and create_graph and not g.requires_grad:
                raise GradError(
                    "jacobian(): The jacobian of the user-provided function is independent of "
                    f"input {place}. This is not allowed in strict mode when create_graph=True."
                )
            parts[i].append(_zeros(x) if g is None else g)
    return tuple(
        F.reshape(F.stack(p, 0), (*out.shape, *x.shape)) if p else _empty(out, x)
        for p, x in zip(parts, xs, strict=True)
    )


def _empty(out: Tensor, x: Tensor) -> Tensor:
    return wrap(array_namespace(x.array).zeros((*out.shape, *x.shape), x.array.dtype))


def _basis(tensors: Tensors) -> list[Tensor]:
    """Return for each tensor a batch of directions: together all unit vectors of all of them."""
    xp = array_namespace(tensors[0].array)
    counts = [t.numel() for t in tensors]
    found, start = [], 0
    for t, count in zip(tensors, counts, strict=True):
        rows = xp.zeros((sum(counts), count), t.array.dtype)
        rows[start : start + count] = xp.eye(count, dtype=t.array.dtype)
        found.append(wrap(rows.reshape(-1, *t.shape) if count else rows))
        start += count
    return found


def _all_rows(out: Tensor, xs: Tensors, create_graph: bool) -> Tensors:
    """Return the Jacobian of one output with respect to each input, by one backward."""
    found: Tensors = (None,) * len(xs)
    if out.requires_grad and out.numel():
        found = grad(
            (out,), xs, tuple(_basis((out,))), True, create_graph, allow_unused=True,
            is_grads_batched=True,
        )  # fmt: skip
    return tuple(
        _empty(out, x) if g is None else F.reshape(g, (*out.shape, *x.shape))
        for g, x in zip(found, xs, strict=True)
    )


def _by_columns(func: Callable[..., Any], xs: Tensors, many_in: bool) -> Any:
    """Return the Jacobian by one evaluation in forward mode, with a batch of directions."""
    basis = _basis(xs)
    many_out = False

    def push(along: list[Any]) -> list[Any]:
        nonlocal many_out
        with DualLevel() as level:
            duals = [level.dual(x, t) for x, t in zip(xs, along, strict=True)]
            many_out, outs = _as_tuple(
                func(*duals), "outputs of the user-provided function", "jacobian"
            )
            parts = [level.parts(o) for o in outs]
            return [_zeros(p) if t is None else t for p, t in parts]

    per_output = []
    for columns in over_batch(push, basis, len(basis[0])):
        shape = columns.array.shape[1:]
        last = F.permute(columns, (*range(1, len(shape) + 1), 0))
        row, start = [], 0
        for x in xs:
            row.append(F.reshape(F.narrow(last, -1, start, x.numel()), (*shape, *x.shape)))
            start += x.numel()
        per_output.append(tuple(row))
    return _nested(tuple(per_output), many_out, many_in)


def _finish(tensors: Tensors, create_graph: bool, many: bool) -> Any:
    found = tensors if create_graph else tuple(t.detach() for t in tensors)
    return found if many else found[0]


def _nested(rows: Any, many_out: bool, many_in: bool) -> Any:
    found = rows if many_in else tuple(row[0] for row in rows)
    return found if many_out else found[0]
