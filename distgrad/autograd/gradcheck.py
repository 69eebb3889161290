"""``gradcheck`` and ``gradgradcheck``: gradients against finite differences."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy

from distgrad.autograd.gradients import grad
from distgrad.errors import ArgumentError, GradError
from distgrad.tensor import Tensor, wrap

Tensors = Tensor | Sequence[Any]


class GradcheckError(GradError):
    """Gradients that are not those of the function."""


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
        inputs: float64 tensors that require grad, and anything else.
        eps: the step of the differences.
        atol, rtol: how far gradients may differ.
        raise_exception: raise when they differ; else return False.
        nondet_tol: how far two backwards may differ.
        check_undefined_grad: also check that a missing gradient of an output counts as zeros.
        check_grad_dtypes: also check the dtypes of gradients.
        check_batched_grad: also check ``grad(..., is_grads_batched=True)``.
        check_batched_forward_grad, check_forward_ad: must be False; ``distgrad.func.jvp`` has its
            own checks.
        check_backward_ad: must be True.
        fast_mode: accepted; the whole Jacobian is compared in any case.
        masked: accepted; there are no sparse tensors.

    Raises:
        GradcheckError: they differ.
        ArgumentError: no input requires grad, or one is complex.

    Example:
        >>> import distgrad as dg
        >>> x = dg.tensor([1.0, 2.0], dtype=dg.float64, requires_grad=True)
        >>> gradcheck(dg.exp, x)
        True
    """
    if not (check_forward_ad or check_backward_ad):
        raise AssertionError(
            "Expected at least one of check_forward_ad or check_backward_ad to be True"
        )
    if check_forward_ad or check_batched_forward_grad:
        raise ArgumentError(
            "gradcheck(check_forward_ad=True): forward mode is not compared here; leave it False"
        )
    try:
        args = _as_tuple(inputs)
        _check_inputs(args)
        outputs = _differentiable(func(*args))
        if outputs:
            _compare(func, args, outputs, eps, atol, rtol, nondet_tol, check_grad_dtypes)
        else:
            _check_constant(func, args, eps)
        if check_batched_grad:
            _check_batched(args, outputs)
        _check_zero(args, outputs)
        if check_undefined_grad:
            _check_undefined(func, args)
    except GradcheckError:
        if raise_exception:
            raise
        return False
    return True


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
        check_fwd_over_rev: must be False.
        check_rev_over_rev: must be True.

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

    def first(*values: Any) -> tuple[Tensor, ...]:
        xs = [v for v, t in zip(values, tracked, strict=False) if t]
        outs = _differentiable(func(*values[:-count]))
        found = grad(outs, xs, values[-count:], create_graph=True, allow_unused=True)
        return tuple(g for g in found if g is not None)

    return gradcheck(
        first, args + gs, eps=eps, atol=atol, rtol=rtol, raise_exception=raise_exception,
        nondet_tol=nondet_tol, check_undefined_grad=check_undefined_grad,
        check_grad_dtypes=check_grad_dtypes, check_batched_grad=check_batched_grad,
        check_forward_ad=check_fwd_over_rev, fast_mode=fast_mode, masked=masked,
    )  # fmt: skip


def _random_like(out: Tensor, spread: bool) -> Tensor:
    shape = (*out.array.shape, 2) if spread else out.array.shape
    values = numpy.random.default_rng().uniform(-1, 1, shape)
    array = (values[..., 0] if spread else numpy.asarray(values)).astype(
        out.array.dtype, copy=False
    )
    return wrap(array).to(out.device).requires_grad_()


def _as_tuple(values: Any) -> tuple[Any, ...]:
    return tuple(values) if isinstance(values, tuple | list) else (values,)


def _differentiable(found: Any) -> tuple[Tensor, ...]:
    outputs = tuple(o for o in _as_tuple(found) if o.requires_grad)
    if any(o.array.dtype.kind == "c" for o in outputs):
        raise ArgumentError("gradcheck(): complex outputs are not checked; split them into parts")
    return outputs


def _tracked(args: tuple[Any, ...]) -> list[tuple[int, Tensor]]:
    return [(i, a) for i, a in enumerate(args) if isinstance(a, Tensor) and a.requires_grad]


def _check_inputs(args: tuple[Any, ...]) -> None:
    tracked = _tracked(args)
    for place, x in tracked:
        if x.array.dtype.kind == "c":
            raise ArgumentError(f"gradcheck(input {place}: {x._brief()}): complex is not checked")
        if x.array.dtype != numpy.float64:
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
    if not tracked:
        raise ArgumentError(
            "gradcheck(): gradcheck expects at least one input tensor to require gradient, but "
            "none of them have requires_grad=True."
        )


# ---------------------------------------------------------------------- numerical
def _numerical(func: Callable[..., Any], args: tuple[Any, ...], x: Tensor, eps: float) -> list[Any]:
    """Return for each output its Jacobian with respect to ``x``: one row per element of ``x``."""
    rows = []
    for place in numpy.ndindex(x.array.shape):
        before = x.array[place].copy()
        values = []
        for step in (eps, -eps):
            x.array[place] = before + step
            found = _as_tuple(func(*args))
            values.append([numpy.array(_host(o), numpy.float64).reshape(-1) for o in found])
        x.array[place] = before
        rows.append([(a - b) / (2 * eps) for a, b in zip(*values, strict=True)])
    return [numpy.array(column) for column in zip(*rows, strict=True)]


def _host(tensor: Tensor) -> Any:
    return tensor.detach().cpu().array


# ---------------------------------------------------------------------- analytical
def _analytical(out: Tensor, xs: list[Tensor], check_dtypes: bool) -> list[Any]:
    """Return the Jacobians of ``out`` with respect to each of ``xs``, by one backward per row."""
    count = out.array.size
    jacobians = [numpy.zeros((x.array.size, count)) for x in xs]
    for j in range(count):
        g = wrap(numpy.zeros(out.array.shape, out.array.dtype))
        g.array.reshape(-1)[j] = 1
        g = g.to(out.device)
        found = grad(out, xs, g, retain_graph=True, allow_unused=True)
        for jacobian, x, part in zip(jacobians, xs, found, strict=True):
            if part is None:
                continue
            if part.array.shape != x.array.shape:
                raise GradcheckError("gradcheck(): Analytical gradient has incorrect size")
            if check_dtypes and part.array.dtype != x.array.dtype:
                raise GradcheckError("gradcheck(): Gradient has dtype mismatch")
            jacobian[:, j] = _host(part).reshape(-1)
    return jacobians


def _compare(
    func: Callable[..., Any],
    args: tuple[Any, ...],
    outputs: tuple[Tensor, ...],
    eps: float,
    atol: float,
    rtol: float,
    nondet_tol: float,
    check_dtypes: bool,
) -> None:
    xs = [x for _, x in _tracked(args)]
    with_grad = [o.requires_grad for o in _as_tuple(func(*args))]
    numerical = [_numerical(func, args, x, eps) for x in xs]
    chosen = [i for i, flag in enumerate(with_grad) if flag]
    for i, (place, out) in enumerate(zip(chosen, outputs, strict=True)):
        first = _analytical(out, xs, check_dtypes)
        again = _analytical(out, xs, check_dtypes)
        for a, b in zip(first, again, strict=True):
            if a.size and abs(a - b).max() > nondet_tol:
                raise GradcheckError(
                    "gradcheck(): Backward is not reentrant, i.e., running backward with same "
                    "input and grad_output multiple times gives different values, although "
                    "analytical gradient matches numerical gradient."
                    f"The tolerance for nondeterminism was {nondet_tol}."
                )
        for j, a in enumerate(first):
            n = numerical[j][place] if numerical[j] else numpy.zeros_like(a)
            if not numpy.allclose(a, n, rtol, atol):
                raise GradcheckError(
                    f"gradcheck(): Jacobian mismatch for output {i} with respect to input {j},\n"
                    f"numerical:{wrap(n)}\nanalytical:{wrap(a)}\n"
                )


# ---------------------------------------------------------------------- further checks
def _check_constant(func: Callable[..., Any], args: tuple[Any, ...], eps: float) -> None:
    for _, x in _tracked(args):
        if any(numpy.any(n != 0) for n in _numerical(func, args, x, eps)):
            raise GradcheckError("gradcheck(): Numerical gradient for function expected to be zero")


def _zeros(out: Tensor) -> Tensor:
    return wrap(numpy.zeros(out.array.shape, out.array.dtype)).to(out.device)


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


def _check_undefined(func: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Check that an output whose gradient is missing counts as one with zeros."""
    xs = [x for _, x in _tracked(args)]
    outputs = _differentiable(func(*args))
    for place, out in enumerate(outputs if len(outputs) > 1 else ()):
        try:
            found = grad(out, xs, _zeros(out), retain_graph=True, allow_unused=True)
        except RuntimeError as error:
            raise GradcheckError(
                "gradcheck(): Expected backward function to handle undefined output grads. "
                f"(output {place})"
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
        found = grad(out, xs, batch, retain_graph=True, allow_unused=True, is_grads_batched=True)
        for j in range(2):
            one = grad(out, xs, batch[j], retain_graph=True, allow_unused=True)
            for a, b in zip(found, one, strict=True):
                if a is not None and not numpy.allclose(_host(a[j]), _host(b)):
                    raise GradcheckError(
                        f"gradcheck(): For output {place}, the batched gradient differs from the "
                        "gradients one by one"
                    )
