"""Forward mode, derived from the declarations: no operation writes it by hand.

"linear": the forward applied to the tangent; "multilinear": one forward per operand, summed;
"elementwise": the rules applied to the tangents; ``jvp=``: as declared; anything else: the
gradient of the gradient, which is linear in ``g``.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from distgrad.autograd import engine
from distgrad.autograd.declare import Operation
from distgrad.autograd.graph import edge_of
from distgrad.backend.device import array_namespace
from distgrad.errors import GradError
from distgrad.tensor import Tensor, wrap


def jvp_arrays(
    op: Operation, primals: Sequence[Any], tangents: Sequence[Any], options: dict[str, Any]
) -> Any:
    """Return the directional derivative of ``op`` at ``primals`` along ``tangents``.

    Args:
        op: the operation.
        primals: one array (None, list of arrays) per operand.
        tangents: the same for the direction; None for an operand that stays fixed.
        options: the options of the call.
    """
    arrays = [a for p in primals for a in (p if isinstance(p, list) else [p]) if a is not None]
    xp = array_namespace(arrays[0])
    if op.jvp is not None:
        return _explicit(op, xp, primals, tangents, options)
    if op.kind == "linear":
        return _call(op, xp, tangents, options)
    if op.kind == "multilinear":
        parts = [
            _call(op, xp, [*primals[:i], t, *primals[i + 1 :]], options)
            for i, t in enumerate(tangents)
            if t is not None
        ]
        return _sum(parts)
    if op.kind == "elementwise":
        return _rules(op, xp, primals, tangents, options)
    return _twice_backward(op, primals, tangents, options)


def _call(op: Operation, xp: Any, operands: Sequence[Any], options: dict[str, Any]) -> Any:
    names = [o.name for o in op.operands]
    return op.forward(xp, **dict(zip(names, operands, strict=True)), **options)


def _known(
    op: Operation, xp: Any, primals: Sequence[Any], options: dict[str, Any]
) -> dict[str, Any]:
    """Return all that a rule on arrays may ask for, but ``g``."""
    known: dict[str, Any] = {"F": engine.array_functions(xp), "xp": xp} | op.options | options
    for (name, _), primal in zip(op.operands, primals, strict=True):
        known[name] = primal
        if primal is not None and not isinstance(primal, list):
            known[name + "_shape"] = primal.shape
    out = _call(op, xp, primals, options)
    return known | (dict(zip(op.outputs, out, strict=True)) if op.outputs else {"out": out})


def _explicit(
    op: Operation, xp: Any, primals: Sequence[Any], tangents: Sequence[Any], options: dict[str, Any]
) -> Any:
    known = _known(op, xp, primals, options)
    for (name, _), t in zip(op.operands, tangents, strict=True):
        known["t_" + name] = t
    assert op.jvp is not None
    return op.jvp(**{a: known[a] for a in inspect.signature(op.jvp).parameters})


def _rules(
    op: Operation, xp: Any, primals: Sequence[Any], tangents: Sequence[Any], options: dict[str, Any]
) -> Any:
    known = _known(op, xp, primals, options)
    shape = xp.shape(known["out"])
    parts = []
    for (name, _), t in zip(op.operands, tangents, strict=True):
        if t is None or name not in op.rules:
            continue
        asks = inspect.signature(op.rules[name]).parameters
        g = xp.broadcast_to(t, shape)
        parts.append(op.rules[name](**{a: g if a == "g" else known[a] for a in asks}))
    return _sum(parts)


def _sum(parts: list[Any]) -> Any:
    if not parts:
        raise GradError("jvp(): no operand has a tangent")
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _twice_backward(
    op: Operation, primals: Sequence[Any], tangents: Sequence[Any], options: dict[str, Any]
) -> Any:
    """Return d/dg <vjp(g), t>: the vjp is linear in g, so its gradient is J t."""
    operands: list[Any] = []
    pairs: list[tuple[Tensor, Any]] = []
    for primal, tangent in zip(primals, tangents, strict=True):
        if isinstance(primal, list):
            many = [wrap(p).requires_grad_() for p in primal]
            pairs += zip(many, tangent, strict=True)
            operands.append(many)
            continue
        tensor = None if primal is None else wrap(primal)
        if tensor is not None and tangent is not None:
            pairs.append((tensor.requires_grad_(), tangent))
        operands.append(tensor)
    out = op.function(**dict(zip([o.name for o in op.operands], operands, strict=True)), **options)
    outs = [out] if isinstance(out, Tensor) else [o for o in out if o.requires_grad]
    gs = [wrap(array_namespace(o.array).zeros_like(o.array)).requires_grad_() for o in outs]
    roots = [(edge_of(o), g) for o, g in zip(outs, gs, strict=True)]
    edges = [t for t, _ in pairs]
    pulled = engine.run(roots, create_graph=True, keep_graph=True, inputs=edges, accumulate=False)
    dots = [(p, t) for p, (_, t) in zip(pulled, pairs, strict=True) if p is not None]
    found = engine.run(
        [(edge_of(p), t) for p, t in dots if edge_of(p) is not None], inputs=gs, accumulate=False
    )
    return found[0] if isinstance(out, Tensor) else found
