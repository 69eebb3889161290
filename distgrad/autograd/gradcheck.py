"""``gradcheck`` and ``gradgradcheck``: gradients against finite differences.

Note [Complex numbers]
    An output is looked at as two real functions, its real and its imaginary part.  The gradient of
    a real L with respect to z = x + iy is dL/dx + i dL/dy, as in PyTorch, and both are differences.
    In forward mode the tangents 1 and i are two directions.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy

from distgrad.autograd import forward_ad
from distgrad.autograd.batching import BatchLevel
from distgrad.autograd.gradients import grad
from distgrad.autograd.node import Node, attached, edge_of
from distgrad.errors import ArgumentError, GradError
from distgrad.tensor import Tensor, wrap

Tensors = Tensor | Sequence[Any]


class GradcheckError(GradError):
    """Gradients that are not those of the function."""


class _Settings(NamedTuple):
    """The numbers of one check."""

    eps: float
    atol: float
    rtol: float
    nondet_tol: float
    fast: bool
    dtypes: bool  # the gradients' dtypes are looked at


def gradcheck(
    func: Callable[..., Any],
    inputs: Tensors,
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    raise_exception: bool = True,
    nondet_tol: float = 0.0,
    check_undefined_grad: bool = True,
    check_grad_dtypes: bool = False,
    check_batched_grad: bool = False,
    check_batched_forward_grad: bool = False,
    check_forward_ad: bool = False,
    check_backward_ad: bool = True,
    fast_mode: bool = False,
    masked: bool | None = None,
) -> bool:
    """Return True when the gradients of ``func`` agree with finite differences.

    Args:
        func: takes the inputs, returns a tensor or several.
        inputs: float64 or complex128 tensors that require grad, and anything else.
        eps: the step of the differences.
        atol, rtol: how far gradients may differ.
        raise_exception: raise when they differ; else return False.
        nondet_tol: how far two backwards may differ.
        check_undefined_grad: also check that a missing gradient of an output counts as zeros.
        check_grad_dtypes: also check the dtypes of gradients.
        check_batched_grad: also check ``grad(..., is_grads_batched=True)``.
        check_batched_forward_grad: also check forward mode inside ``vmap``.
        check_forward_ad: also check forward mode.
        check_backward_ad: check backward.
        fast_mode: compare along one random direction instead of all Jacobians.
        masked: accepted; there are no sparse tensors.

    Raises:
        GradcheckError: they differ.
        ArgumentError: no input requires grad.

    Example:
        >>> import distgrad as dg
        >>> x = dg.tensor([1.0, 2.0], dtype=dg.float64, requires_grad=True)
        >>> gradcheck(dg.exp, x)
        True
    """
    _check_flags(
        check_forward_ad, check_backward_ad, check_batched_grad, check_batched_forward_grad
    )
    how = _Settings(eps, atol, rtol, nondet_tol, fast_mode, check_grad_dtypes)
    try:
        args = _as_tuple(inputs)
        _check_inputs(args)
        found = func(*args)
        outputs = _differentiable(found)
        if check_backward_ad or not outputs:
            _compare_backward(func, args, _as_tuple(found), outputs, how)
        if check_forward_ad:
            _compare_forward(func, args, how)
            if check_undefined_grad:
                _check_missing_tangents(func, args)
        if check_batched_forward_grad:
            _check_batched_forward(func, args)
        if check_backward_ad:
            _check_further(func, args, outputs, check_batched_grad, check_undefined_grad)
    except GradcheckError:
        if raise_exception:
            raise
        return False
    return True


def _check_further(
    func: Callable[..., Any],
    args: tuple[Any, ...],
    outputs: tuple[Tensor, ...],
    batched: bool,
    undefined: bool,
) -> None:
    """Check what else must hold of gradients."""
    if batched:
        _check_batched(args, outputs)
    _check_zero(args, outputs)
    if undefined:
        _check_undefined(func, args)


def _check_flags(forward: bool, backward: bool, batched: bool, batched_forward: bool) -> None:
    if not (forward or backward):
        raise AssertionError(
            "Expected at least one of check_forward_ad or check_backward_ad to be True"
        )
    if batched and not backward:
        raise AssertionError(
            "Setting check_batched_grad=True requires check_backward_ad to be True"
        )
    if batched_forward and not forward:
        raise AssertionError(
            "Setting check_batched_forward_grad=True requires check_forward_ad to be True"
        )


def gradgradcheck(
    func: Callable[..., Any],
    inputs: Tensors,
    grad_outputs: Tensors | None = None,
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    gen_non_contig_grad_outputs: bool = False,
    raise_exception: bool = True,
    nondet_tol: float = 0.0,
    check_undefined_grad: bool = True,
    check_grad_dtypes: bool = False,
    check_batched_grad: bool = False,
    check_fwd_over_rev: bool = False,
    check_rev_over_rev: bool = True,
    fast_mode: bool = False,
    masked: bool = False,
) -> bool:
    """Return True when the second derivatives of ``func`` agree with finite differences.

    Args:
        func, inputs: as in ``gradcheck``.
        grad_outputs: the gradients of the outputs (default: random).
        gen_non_contig_grad_outputs: let the random ones be spread in memory.
        check_fwd_over_rev: also check forward mode of the gradients.
        check_rev_over_rev: check backward of the gradients.

    The other arguments are those of ``gradcheck``.
    """
    if not (check_fwd_over_rev or check_rev_over_rev):
        raise AssertionError(
            "Expected at least one of check_fwd_over_rev or check_rev_over_rev to be True"
        )
    args = _as_tuple(inputs)
    if grad_outputs is None:
        outputs = _differentiable(func(*args))
        gs = tuple(_random_like(o, gen_non_contig_grad_outputs) for o in outputs)
    else:
        gs = _as_tuple(grad_outputs)
    count = len(gs)
    tracked = [isinstance(a, Tensor) and a.requires_grad for a in args]
    used = [o.requires_grad for o in _as_tuple(func(*args))] if count else []

    def first(*values: Any) -> tuple[Tensor, ...]:
        values = tuple(  # forward mode brings tensors that do not require grad
            v.requires_grad_() if t and not v.requires_grad else v
            for v, t in zip(values, [*tracked, *[False] * count], strict=True)
        )
        xs = [v for v, t in zip(values, tracked, strict=False) if t]
        outs = [o for o, u in zip(_as_tuple(func(*values[:-count])), used, strict=True) if u]
        found = grad(outs, xs, values[-count:], create_graph=True, allow_unused=True)
        return tuple(g for g in found if g is not None)

    return gradcheck(
        first, args + gs, eps=eps, atol=atol, rtol=rtol, raise_exception=raise_exception,
        nondet_tol=nondet_tol, check_undefined_grad=check_undefined_grad,
        check_grad_dtypes=check_grad_dtypes, check_batched_grad=check_batched_grad,
        check_forward_ad=check_fwd_over_rev, check_backward_ad=check_rev_over_rev,
        fast_mode=fast_mode, masked=masked,
    )  # fmt: skip


def _random_like(out: Tensor, spread: bool) -> Tensor:
    shape = (*out.array.shape, 2) if spread else out.array.shape
    values: Any = numpy.random.default_rng().uniform(-1, 1, shape)
    if out.array.dtype.kind == "c":
        values = values + 1j * numpy.random.default_rng().uniform(-1, 1, shape)
    array = (values[..., 0] if spread else numpy.asarray(values)).astype(
        out.array.dtype, copy=False
    )
    return wrap(array).to(out.device).requires_grad_()


def _as_tuple(values: Any) -> tuple[Any, ...]:
    return tuple(values) if isinstance(values, tuple | list) else (values,)


def _differentiable(found: Any) -> tuple[Tensor, ...]:
    return tuple(o for o in _as_tuple(found) if isinstance(o, Tensor) and o.requires_grad)


def _tracked(args: tuple[Any, ...]) -> list[tuple[int, Tensor]]:
    return [(i, a) for i, a in enumerate(args) if isinstance(a, Tensor) and a.requires_grad]


def _check_inputs(args: tuple[Any, ...]) -> None:
    tracked = _tracked(args)
    for place, x in tracked:
        if x.array.dtype not in (numpy.float64, numpy.complex128):
            warnings.warn(
                f"Input #{place} requires gradient and is not a double precision floating point or "
                "complex. This check will likely fail if all the inputs are not of double "
                "precision floating point or complex. ",
                stacklevel=3,
            )
        if any(s == 0 and n > 1 for s, n in zip(x.array.strides, x.array.shape, strict=True)):
            raise GradError(
                f"gradcheck(input {place}: {x._brief()}): The {place}th input has a dimension with "
                "stride 0. gradcheck only supports inputs that are non-overlapping to be able to "
                "compute the numerical gradients correctly. You should call .contiguous on the "
                "input before passing it to gradcheck."
            )
        if x._node is None:
            continue
        x.retain_grad()
    if not tracked:
        raise ArgumentError(
            "gradcheck(): gradcheck expects at least one input tensor to require gradient, but "
            "none of them have requires_grad=True."
        )


def _host(tensor: Tensor) -> Any:
    return tensor.detach().cpu().array


def _flat(tensor: Tensor) -> Any:
    array = _host(tensor)
    wide = numpy.complex128 if array.dtype.kind == "c" else numpy.float64
    return numpy.array(array, wide).reshape(-1)


# ---------------------------------------------------------------------- numerical
def _difference(
    func: Callable[..., Any], args: tuple[Any, ...], x: Tensor, step: Any, eps: float
) -> list[Any]:
    """Return for each output (f(x + eps step) - f(x - eps step)) / 2 eps, flat."""
    before = x.array.copy()
    values: list[list[Tensor]] = []
    try:
        for sign in (1, -1):
            x.array[...] = before + sign * eps * step
            found = [o for o in _as_tuple(func(*args)) if isinstance(o, Tensor)]
            values.append([wrap(o.array.copy()) for o in found])
    finally:
        x.array[...] = before
    for a, b in zip(*values, strict=True):
        for what, one, two in (("shape", a.shape, b.shape), ("dtype", a.dtype, b.dtype)):
            if one != two:
                raise AssertionError(
                    f"Expected `fn` to return outputs with the same {what} when inputs are "
                    f"perturbed, got: {one} and {two}"
                )
    return [(_flat(a) - _flat(b)) / (2 * eps) for a, b in zip(*values, strict=True)]


def _units(x: Tensor) -> list[Any]:
    """Return a direction for each element of ``x``."""
    directions = []
    for place in numpy.ndindex(x.array.shape):
        step = numpy.zeros(x.array.shape)
        step[place] = 1
        directions.append(step)
    return directions


def _numerical(
    func: Callable[..., Any], args: tuple[Any, ...], x: Tensor, eps: float, factor: complex = 1
) -> list[Any]:
    """Return for each output its Jacobian: one row per element of ``x``, moved by ``factor``."""
    rows = [_difference(func, args, x, factor * step, eps) for step in _units(x)]
    if not rows:
        return []
    return [numpy.array(column) for column in zip(*rows, strict=True)]


# ---------------------------------------------------------------------- backward
class _Part(NamedTuple):
    """The real or the imaginary part of outputs."""

    factor: complex  # the gradient of an output
    take: Callable[[Any], Any]
    words: str


_REAL = _Part(1, numpy.real, "")
_REAL_OF_COMPLEX = _Part(1, numpy.real, "While considering the real part of complex outputs only, ")
_IMAGINARY = _Part(1j, numpy.imag, "While considering the imaginary part of complex outputs only, ")


def _compare_backward(
    func: Callable[..., Any],
    args: tuple[Any, ...],
    found: tuple[Any, ...],
    outputs: tuple[Tensor, ...],
    how: _Settings,
) -> None:
    """Raise where backward and differences disagree."""
    if not outputs:
        for _, x in _tracked(args):
            if any(numpy.any(n != 0) for n in _numerical(func, args, x, how.eps)):
                raise GradcheckError(
                    "gradcheck(): Numerical gradient for function expected to be zero"
                )
        return
    chosen = [i for i, o in enumerate(o for o in found if isinstance(o, Tensor)) if o.requires_grad]
    compare = _compare_along_one if how.fast else _compare_jacobians
    complex_outputs = any(o.array.dtype.kind == "c" for o in outputs)
    if complex_outputs:
        compare(func, args, chosen, outputs, _IMAGINARY, how)
    compare(func, args, chosen, outputs, _REAL_OF_COMPLEX if complex_outputs else _REAL, how)


def _compare_jacobians(
    func: Callable[..., Any],
    args: tuple[Any, ...],
    chosen: list[int],
    outputs: tuple[Tensor, ...],
    part: _Part,
    how: _Settings,
) -> None:
    xs = [x for _, x in _tracked(args)]
    numerical = [_gradients(func, args, x, part, how.eps) for x in xs]
    for i, (place, out) in enumerate(zip(chosen, outputs, strict=True)):
        if part is _IMAGINARY and out.array.dtype.kind != "c":
            continue
        first = _analytical(out, xs, part.factor, how.dtypes)
        again = _analytical(out, xs, part.factor, how.dtypes)
        _check_steady(first, again, how.nondet_tol)
        for j, a in enumerate(first):
            n = numerical[j][place] if numerical[j] else numpy.zeros_like(a)
            if not numpy.allclose(a, n, how.rtol, how.atol):
                raise _mismatch(f"{part.words}Jacobian mismatch", i, j, n, a)


def _gradients(
    func: Callable[..., Any], args: tuple[Any, ...], x: Tensor, part: _Part, eps: float
) -> list[Any]:
    """Return the Jacobians of one part of the outputs, in PyTorch's convention."""
    along = [part.take(n) for n in _numerical(func, args, x, eps)]
    if x.array.dtype.kind != "c":
        return along
    across = [part.take(n) for n in _numerical(func, args, x, eps, 1j)]
    return [a + 1j * b for a, b in zip(along, across, strict=True)]


def _analytical(out: Tensor, xs: list[Tensor], factor: complex, check_dtypes: bool) -> list[Any]:
    """Return the Jacobians of ``out`` with respect to each of ``xs``, by one backward per row."""
    count = out.array.size
    jacobians = [numpy.zeros((x.array.size, count), _wide(x)) for x in xs]
    for j in range(count):
        g = wrap(numpy.zeros(out.array.shape, out.array.dtype))
        g.array.reshape(-1)[j] = factor if out.array.dtype.kind == "c" else 1
        for jacobian, part in zip(jacobians, _pulled(out, xs, g, check_dtypes), strict=True):
            if part is not None:
                jacobian[:, j] = _flat(part)
    return jacobians


def _wide(x: Tensor) -> Any:
    return numpy.complex128 if x.array.dtype.kind == "c" else numpy.float64


def _pulled(out: Tensor, xs: list[Tensor], g: Tensor, check_dtypes: bool) -> list[Any]:
    """Return the gradients of ``out``; raise where size or dtype is wrong."""
    g = g.to(out.device)
    found = grad(out, xs, g, retain_graph=True, allow_unused=True)
    for x, part in zip(xs, found, strict=True):
        if part is None:
            continue
        if part.array.shape != x.array.shape:
            raise GradcheckError("gradcheck(): Analytical gradient has incorrect size")
        if check_dtypes and part.array.dtype != x.array.dtype:
            raise GradcheckError("gradcheck(): Gradient has dtype mismatch")
    return list(found)


def _check_steady(first: list[Any], again: list[Any], tolerance: float) -> None:
    for a, b in zip(first, again, strict=True):
        if numpy.size(a) and numpy.abs(a - b).max() > tolerance:
            raise GradcheckError(
                "gradcheck(): Backward is not reentrant, i.e., running backward with same "
                "input and grad_output multiple times gives different values, although "
                "analytical gradient matches numerical gradient."
                f"The tolerance for nondeterminism was {tolerance}."
            )


def _mismatch(words: str, output: int, place: int, numerical: Any, analytical: Any) -> Any:
    return GradcheckError(
        f"gradcheck(): {words} for output {output} with respect to input {place},\n"
        f"numerical:{wrap(numpy.asarray(numerical))}\nanalytical:{wrap(numpy.asarray(analytical))}\n"
    )


def _compare_along_one(
    func: Callable[..., Any],
    args: tuple[Any, ...],
    chosen: list[int],
    outputs: tuple[Tensor, ...],
    part: _Part,
    how: _Settings,
) -> None:
    """Compare v . J u for a random u and v; say by the Jacobians where they disagree."""
    xs = [x for _, x in _tracked(args)]
    moves = [_direction(x) for x in xs]
    numerical = [_difference(func, args, x, u, how.eps) for x, u in zip(xs, moves, strict=True)]
    for place, out in zip(chosen, outputs, strict=True):
        if part is _IMAGINARY and out.array.dtype.kind != "c":
            continue
        v = numpy.random.default_rng().uniform(0, 1, out.array.shape)
        g = wrap((v * (part.factor if out.array.dtype.kind == "c" else 1)).astype(out.array.dtype))
        first, again = _pulled(out, xs, g, how.dtypes), _pulled(out, xs, g, how.dtypes)
        parts = [
            (numpy.zeros(u.size) if p is None else _flat(p))
            for p, u in zip(first, moves, strict=True)
        ]
        more = [
            (numpy.zeros(u.size) if p is None else _flat(p))
            for p, u in zip(again, moves, strict=True)
        ]
        _check_steady(parts, more, how.nondet_tol)
        for p, u, n in zip(parts, moves, numerical, strict=True):
            a = numpy.real(numpy.vdot(p, u.reshape(-1)))
            b = numpy.dot(v.reshape(-1), part.take(n[place]))
            atol = how.atol * max(1.0, float(numpy.abs(u).sum() * v.sum()))
            if not numpy.allclose(a, b, how.rtol, atol):
                _compare_jacobians(func, args, chosen, outputs, part, how)
                raise GradcheckError(
                    "gradcheck(): Fast gradcheck failed but element-wise differences are small: "
                    f"{a} and {b}; use fast_mode=False or other tolerances"
                )


def _direction(x: Tensor) -> Any:
    make = numpy.random.default_rng().uniform
    u: Any = make(0, 1, x.array.shape)
    if x.array.dtype.kind == "c":
        u = u + 1j * make(0, 1, x.array.shape)
    return u / max(1e-12, float(numpy.linalg.norm(u))) if u.size else u


# ---------------------------------------------------------------------- forward mode
def _plain(args: tuple[Any, ...]) -> list[Any]:
    """Return the arguments; what requires grad as tensors that do not."""
    return [a.detach() if isinstance(a, Tensor) and a.requires_grad else a for a in args]


def _tangents(
    func: Callable[..., Any], args: tuple[Any, ...], directions: dict[int, Tensor]
) -> list[Any]:
    """Return the tangents of the outputs for tangents of some inputs; None where there is none."""
    with forward_ad.dual_level():
        given = _plain(args)
        for place, t in directions.items():
            given[place] = forward_ad.make_dual(given[place], t)
        found = [o for o in _as_tuple(func(*given)) if isinstance(o, Tensor)]
        return [forward_ad.unpack_dual(o).tangent for o in found]


def _compare_forward(func: Callable[..., Any], args: tuple[Any, ...], how: _Settings) -> None:
    """Raise where forward mode and differences disagree."""
    for j, (place, x) in enumerate(_tracked(args)):
        is_complex = x.array.dtype.kind == "c"
        for factor, which in ((1, "real"), (1j, "imaginary")) if is_complex else ((1, ""),):
            words = f"While considering the {which} part of complex inputs only, " if which else ""
            steps = [_direction(x).real] if how.fast and x.array.size else _units(x)
            for step in steps:
                tangent = wrap(numpy.asarray(factor * step).astype(x.array.dtype))
                moved = _tangents(func, args, {place: tangent.to(x.device)})
                values = _difference(func, args, x, factor * step, how.eps)
                for i, (t, n) in enumerate(zip(moved, values, strict=True)):
                    a = numpy.zeros_like(n) if t is None else _flat(t)
                    if not numpy.allclose(a, n, how.rtol, how.atol):
                        text = f"{words}Jacobian computed with forward mode mismatch"
                        raise _mismatch(text, i, j, n, a)


def _random_tangent(x: Tensor) -> Tensor:
    return _random_like(x, False).detach()


def _check_missing_tangents(func: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Check that an input without a tangent counts as one with zeros."""
    tracked = _tracked(args)
    for place, x in tracked:
        others = {i: _zeros(y) for i, y in tracked if i != place}
        direction = _random_tangent(x)
        alone = _tangents(func, args, {place: direction})
        if not others:
            continue
        for a, b in zip(alone, _tangents(func, args, {place: direction} | others), strict=True):
            zero = (a is None or not numpy.any(_host(a))) and (b is None or not numpy.any(_host(b)))
            if not zero and (a is None or b is None or not numpy.allclose(_host(a), _host(b))):
                raise GradcheckError(
                    "gradcheck(): Expected forward mode to treat inputs without a tangent as those "
                    f"with a tangent of zeros (input {place})"
                )


def _check_batched_forward(func: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Check that forward mode inside vmap gives what it gives one by one."""
    for place, x in _tracked(args):
        rows = [_random_tangent(x) for _ in range(2)]
        batch = wrap(numpy.stack([_host(r) for r in rows])).to(x.device)
        with BatchLevel(2, "error") as level:
            together = _tangents(func, args, {place: level.batched(batch)})
            values = [None if t is None else level.value(t) for t in together]
        for index, row in enumerate(rows):
            alone = _tangents(func, args, {place: row})
            for t, value, whole in zip(alone, values, together, strict=True):
                if t is None or whole is None:
                    continue
                found = _host(whole) if value is None else _host(value)[index]
                if not numpy.allclose(found, _host(t)):
                    raise GradcheckError(
                        "gradcheck(): gradcheck failed while testing batched forward mode: "
                        f"for input {place} vmap gives {found}, one by one {_host(t)}"
                    )


# ---------------------------------------------------------------------- further checks
def _zeros(out: Tensor) -> Tensor:
    zeros: Tensor = wrap(numpy.zeros(out.array.shape, out.array.dtype)).to(out.device)
    return zeros


def _check_zero(args: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
    """Check that gradients of zero give gradients of zero, of the inputs' dtypes."""
    if not outputs:
        return
    xs = [x for _, x in _tracked(args)]
    zeros = [_zeros(o) for o in outputs]
    found = grad(outputs, xs, zeros, retain_graph=True, allow_unused=True)
    for x, g in zip(xs, found, strict=True):
        if g is None:
            continue
        if numpy.any(_host(g) != 0):
            raise GradcheckError("gradcheck(): backward not multiplied by grad_output")
        if g.array.dtype != x.array.dtype:
            raise GradcheckError("gradcheck(): grad is incorrect type")
        if g.array.shape != x.array.shape:
            raise GradcheckError("gradcheck(): grad is incorrect size")


class UndefinedGrad(Node):
    """Sends no gradient on."""

    __slots__ = ()

    def pull(self, F: Any, g: Any) -> tuple[Any, ...]:
        """Return nothing."""
        return (None,)

    pull_graph = pull


def _without_gradient(out: Tensor) -> Tensor:
    node = UndefinedGrad()
    node._edges, node._shape = (edge_of(out),), out.array.shape
    node.clock, node.saved = 0, ()
    return attached(out.array, node)


def _check_undefined(func: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Check that an output whose gradient is missing counts as one with zeros."""
    xs = [x for _, x in _tracked(args)]
    outputs = _differentiable(func(*args))
    missing = [set(range(len(outputs)))]
    if len(outputs) > 1:
        missing += [{i} for i in range(len(outputs))]
    for places in missing if outputs else ():
        heads = [_without_gradient(o) if i in places else o for i, o in enumerate(outputs)]
        try:
            found = grad(heads, xs, [_zeros(o) for o in outputs], True, allow_unused=True)
        except RuntimeError as error:
            warnings.warn(
                "Backwards compatibility: New undefined gradient support checking feature is "
                "enabled by default, but it may break existing callers of this function. If this "
                "is true for you, you can call this function with check_undefined_grad=False to "
                "disable the feature",
                stacklevel=3,
            )
            raise GradcheckError(
                "gradcheck(): Expected backward function to handle undefined output grads; a "
                "hook gets None, and a Function with set_materialize_grads(False) too"
            ) from error
        if any(g is not None and numpy.any(_host(g) != 0) for g in found):
            raise GradcheckError(
                "gradcheck(): Expected all input grads to be undefined or zero when all output "
                "grads are undefined or zero."
            )


def _check_batched(args: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
    xs = [x for _, x in _tracked(args)]
    for place, out in enumerate(outputs):
        rows = numpy.random.default_rng().standard_normal((2, *out.array.shape))
        batch = wrap(rows.astype(out.array.dtype)).to(out.device)
        try:
            found = grad(out, xs, batch, True, allow_unused=True, is_grads_batched=True)
        except RuntimeError as error:
            raise GradcheckError(
                "gradcheck(): gradcheck or gradgradcheck failed while testing batched gradient "
                f"computation (output {place})"
            ) from error
        for j in range(2):
            one = grad(out, xs, batch[j], retain_graph=True, allow_unused=True)
            for a, b in zip(found, one, strict=True):
                if a is not None and not numpy.allclose(_host(a[j]), _host(b)):
                    raise GradcheckError(
                        "gradcheck(): gradcheck or gradgradcheck failed while testing batched "
                        f"gradient computation: for output {place}, the batched gradient differs "
                        "from the gradients one by one"
                    )


# ---------------------------------------------------------------------- old names
def _warn_private(name: str) -> None:
    warnings.warn(
        f"`{name}` was part of PyTorch's private API and not meant to be exposed. We are "
        f"deprecating it and it will be removed in a future version; use "
        "autograd.functional.jacobian",
        FutureWarning,
        stacklevel=3,
    )


def get_numerical_jacobian(
    fn: Callable[..., Any],
    inputs: Any,
    target: Any = None,
    eps: float = 1e-3,
    grad_out: float = 1.0,
) -> list[Any]:
    """Return the Jacobians of the first output of ``fn(inputs)``, by differences."""
    _warn_private("get_numerical_jacobian")
    if grad_out != 1.0:
        raise ArgumentError(
            "get_numerical_jacobian(): Expected grad_out to be 1.0. get_numerical_jacobian no "
            "longer supports values of grad_out != 1.0."
        )
    given = _as_tuple(inputs)
    wanted = _as_tuple(given if target is None else target)
    tracked = [x for x in wanted if isinstance(x, Tensor) and x.requires_grad]
    return [wrap(_numerical(lambda *args: fn(args), given, x, eps)[0]) for x in tracked]


def get_analytical_jacobian(
    inputs: Any, output: Tensor, nondet_tol: float = 0.0, grad_out: float = 1.0
) -> tuple[Any, bool, bool, bool]:
    """Return the Jacobians of ``output`` by backward; are they steady; right in size, in type."""
    _warn_private("get_analytical_jacobian")
    if grad_out != 1.0:
        raise ArgumentError(
            "get_analytical_jacobian(): Expected grad_out to be 1.0. get_analytical_jacobian no "
            "longer supports values of grad_out != 1.0."
        )
    xs = [x for x in _as_tuple(inputs) if isinstance(x, Tensor) and x.requires_grad]
    first, again = (_analytical(output, xs, 1, False) for _ in range(2))
    steady = all(not a.size or numpy.abs(a - b).max() <= nondet_tol
                 for a, b in zip(first, again, strict=True))  # fmt: skip
    return tuple(wrap(a) for a in first), steady, True, True
