"""Forward mode: what each operation does to tangents, derived from its declaration.

"linear": the operation applied to the tangents; "multilinear": one call per operand, summed;
"elementwise": the rules applied to the tangents; ``jvp=``: as declared; a formula: on the dual
operands; anything else: the gradient of the gradient, which is linear in ``g``.  All of it is done
in operations on tensors, so tangents are differentiable in their turn; see Note [Layers].
"""

from __future__ import annotations

import inspect
import weakref
from typing import TYPE_CHECKING, Any

from distgrad.autograd import engine
from distgrad.autograd.graph import edge_of
from distgrad.autograd.inplace import follow, steps_of
from distgrad.autograd.mode import enable_grad
from distgrad.autograd.traced import Level, Traced, map_operand, running, settled
from distgrad.tensor import Tensor, shared_of, wrap

if TYPE_CHECKING:
    from distgrad.autograd.declare import Operation


class DualArray(Traced):
    """A primal, and a tangent of the same shape (None stands for zeros)."""

    __slots__ = ("tangent",)

    def __init__(self, primal: Tensor, tangent: Tensor | None, level: Level) -> None:
        super().__init__(primal, level)
        self.tangent = tangent

    def item(self) -> Any:
        """Return the only element of the primal."""
        return self.below.item()

    def tolist(self) -> Any:
        """Return the primal as nested lists."""
        return self.below.tolist()

    def moved_to(self, device: Any) -> DualArray:
        """Return both on a device."""
        tangent: Any = self.tangent
        below: Any = self.below
        moved = None if tangent is None else tangent.to(device)
        return DualArray(below.to(device), moved, self.level)

    def detached(self) -> Any:
        """Return what ``detach`` keeps: the primal without a history; as in PyTorch no tangent."""
        return self.below.detach()

    def host(self, force: bool) -> Any:
        """Return the primal as a NumPy array."""
        return self.below.numpy(force=force)

    def copy(self) -> DualArray:
        """Return copies of both."""
        F: Any = engine.tensor_functions
        tangent = None if self.tangent is None else F.clone(self.tangent)
        return DualArray(F.clone(self.below), tangent, self.level)

    def settled(self, own: set[int] | None) -> Traced:
        """Return this without histories that lead to leaves of ``own`` alone."""
        tangent = None if self.tangent is None else settled(self.tangent, own)
        return DualArray(settled(self.below, own), tangent, self.level)

    def show(self, suffixes: list[str]) -> str:
        """Return what ``repr`` shows."""
        if self.level.alive and self.tangent is not None:
            suffixes = [f"tangent={self.tangent!r}", *suffixes]
        text = repr(self.below)
        return text[:-1] + "".join(f", {s}" for s in suffixes) + ")"


class DualLevel(Level):
    """One forward-mode differentiation; when it ends its tensors are their primals again."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[weakref.ref[Tensor]] = []

    def note(self, tensor: Tensor) -> None:
        """Remember a tensor with a tangent of this level."""
        self.made.append(weakref.ref(tensor))

    def dual(self, primal: Tensor, tangent: Tensor | None) -> Tensor:
        """Return a tensor with a tangent."""
        out = wrap(DualArray(primal, tangent, self))
        self.note(out)
        return out

    def parts(self, tensor: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return primal and tangent at this level; a tensor of other levels has no tangent."""
        array = tensor.array
        if isinstance(array, DualArray) and array.level is self:
            return array.below, array.tangent
        return tensor, None

    def process(self, op: Operation, operands: dict[str, Any], options: dict[str, Any]) -> Any:
        """Return the outputs as dual arrays; one that carries no gradient has no tangent."""
        primals = {n: map_operand(lambda t: self.parts(t)[0], o) for n, o in operands.items()}
        tangents = {n: _tangents(self, o) for n, o in operands.items()}
        out = op.function(**primals, **options)
        if not running.forward_mode:
            return out.array if isinstance(out, Tensor) else [o.array for o in out]
        if isinstance(out, Tensor):
            (tangent,) = tangents_of(op, primals, tangents, options, [out])
            return self._output(op, out, tangent)
        outs = list(out)
        flags = list(op.outputs.values()) if op.outputs else [True] * len(outs)
        made = iter(tangents_of(
            op, primals, tangents, options, [o for o, f in zip(outs, flags, strict=True) if f]
        ))  # fmt: skip
        return [
            self._output(op, o, next(made)) if f else o.array
            for o, f in zip(outs, flags, strict=True)
        ]

    def _output(self, op: Operation, out: Tensor, tangent: Tensor | None) -> Any:
        if not _differentiable(out) or not op.rules:
            return out.array
        return DualArray(out, tangent, self)

    def store(self, target: Tensor, result: Tensor) -> None:
        """Write ``result`` into ``target``, tangent too; a plain target becomes dual."""
        primal, tangent = self.parts(result)
        if tangent is not None and self.parts(target)[1] is None:
            self._give_tangent(target, tangent)
        into, along = self.parts(target)
        into.copy_(primal)
        if along is not None:
            F: Any = engine.tensor_functions
            along.copy_(F.zero(into) if tangent is None else tangent)

    def _give_tangent(self, target: Tensor, like: Tensor) -> None:
        """Give ``target``, or the base it is a view of, a tangent of zeros, layers as ``like``."""
        base = target if target._base is None else target._base
        primal, tangent = self.parts(base)
        if primal is base:
            primal = wrap(base.array)
            primal._requires, primal._node = base._requires, base._node
        if tangent is None:
            F: Any = engine.tensor_functions
            zero = F.to_dtype(F.sum(F.zero(like)), primal.array.dtype)
            tangent = F.clone(F.expand(zero, primal.array.shape)).detach()
            base.array = DualArray(primal, tangent, self)
            self.note(base)
        for ref in list(shared_of(base).views or ()):
            view = ref()
            if view is not None and view._base is base:
                view.array = follow(steps_of(view), base).array
                self.note(view)

    def __exit__(self, *error: object) -> None:
        """Turn the tensors that carry tangents of this level into their primals."""
        super().__exit__(*error)
        for ref in self.made:
            tensor = ref()
            array = None if tensor is None else tensor.array
            if tensor is not None and isinstance(array, DualArray) and array.level is self:
                tensor.array = array.below.array
                if not tensor.requires_grad:
                    tensor._requires = array.below._requires
                    tensor._node = array.below._node


def _tangents(level: DualLevel, operand: Any) -> Any:
    """Return the tangent of an operand: a list for a list, None where there is none."""
    if isinstance(operand, list | tuple):
        found = [level.parts(t)[1] for t in operand]
        return None if all(t is None for t in found) else found
    return level.parts(operand)[1] if isinstance(operand, Tensor) else None


def _differentiable(tensor: Tensor) -> bool:
    return tensor.array.dtype.kind in "fcV"


# ---------------------------------------------------------------------- the rules
def tangents_of(
    op: Operation,
    primals: dict[str, Any],
    tangents: dict[str, Any],
    options: dict[str, Any],
    outs: list[Tensor],
) -> list[Tensor | None]:
    """Return the tangents of the differentiable outputs ``outs``, None for those that have none.

    Args:
        op: the operation.
        primals: a tensor, None, or list of tensors by operand.
        tangents: the same for the direction; None for an operand that stays fixed.
        options: the options of the call.
        outs: the outputs that carry gradients.
    """
    moving = {n: t for n, t in tangents.items() if t is not None and (n in op.rules or _joint(op))}
    if not moving or not op.rules or not any(_differentiable(o) for o in outs):
        return [None] * len(outs)
    if op.jvp is not None:
        found: Any = _explicit(op, primals, moving, options)
    elif op.kind == "linear":
        found = _linear(op, primals, moving, options)
    elif op.kind == "multilinear":
        found = _sum([op.function(**(primals | {n: t}), **options) for n, t in moving.items()])
    elif op.kind == "elementwise" and not _complex(outs[0], primals, moving):
        found = _rules(op, primals, moving, options, outs[0])
    elif op.formula is not None:
        found = _by_formula(op, primals, moving, options, len(outs))
    else:
        return _twice_backward(op, primals, moving, options)
    many = [found] if isinstance(found, Tensor) else list(found)
    return [_spread(t, o) for t, o in zip(many, outs, strict=True)]


def _spread(tangent: Tensor | None, out: Tensor) -> Tensor | None:
    """Return a tangent in the shape of its output: that of one operand alone may be smaller."""
    if tangent is None or tangent.array.shape == out.array.shape:
        return tangent
    whole: Tensor = engine.tensor_functions.expand(tangent, out.array.shape)  # type: ignore[attr-defined]
    return whole


def _joint(op: Operation) -> bool:
    return "all" in op.rules


def _explicit(op: Operation, primals: Any, moving: Any, options: Any) -> Any:
    known = {"F": engine.tensor_functions} | op.options | options | primals
    known |= {f"t_{o.name}": moving.get(o.name) for o in op.operands}
    assert op.jvp is not None
    return op.jvp(**{a: known[a] for a in inspect.signature(op.jvp).parameters})


def _linear(op: Operation, primals: Any, moving: Any, options: Any) -> Any:
    """Apply the operation to the tangents; what carries no gradient (an index) stays."""
    F: Any = engine.tensor_functions
    given = {}
    for name, primal in primals.items():
        if name not in op.rules:
            given[name] = primal
        elif isinstance(primal, list | tuple):
            along = moving.get(name) or [None] * len(primal)
            given[name] = [
                F.zero(p) if t is None else t for p, t in zip(primal, along, strict=True)
            ]
        elif name in moving:
            given[name] = moving[name]
        else:
            given[name] = None if primal is None else F.zero(primal)
    return op.function(**given, **options)


def _rules(op: Operation, primals: Any, moving: Any, options: Any, out: Tensor) -> Any:
    F: Any = engine.tensor_functions
    known = {"F": F, "out": out, "into": None} | op.options | options | primals
    for name, primal in primals.items():
        if isinstance(primal, Tensor):
            known[f"{name}_shape"], known[f"{name}_dtype"] = primal.array.shape, primal.array.dtype
            known[f"{name}_device"] = primal.device
    parts = []
    for name, tangent in moving.items():
        if tangent.array.shape != out.array.shape:
            tangent = F.expand(tangent, out.array.shape)
        asks = inspect.signature(op.rules[name]).parameters
        parts.append(op.rules[name](**{a: tangent if a == "g" else known[a] for a in asks}))
    return _sum(parts)


def _complex(out: Tensor, primals: dict[str, Any], moving: dict[str, Any]) -> bool:
    """Return True where a rule, which answers a gradient, may not answer a tangent.

    The rule is the transpose of what is wanted, and of complex numbers that is not the same: only
    where the operation is holomorphic, which ``abs`` and ``sgn`` are not.
    """
    return any(t.array.dtype.kind == "c" for t in (out, *(primals[n] for n in moving)))


def _sum(parts: list[Any]) -> Any:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _by_formula(op: Operation, primals: Any, moving: Any, options: Any, count: int) -> Any:
    """Evaluate the formula on the operands with their tangents, at a level of its own."""
    with DualLevel() as level:
        known = op.options | options | primals
        known |= {n: level.dual(primals[n], t) for n, t in moving.items()}
        assert op.formula is not None
        asks = [n for n in inspect.signature(op.formula).parameters if n != "F"]
        out = op.formula(F=engine.tensor_functions, **{n: known[n] for n in asks})
        outs = [out] if isinstance(out, Tensor) else list(out)
        return [level.parts(o)[1] for o in outs[:count]]


def _twice_backward(op: Operation, primals: Any, moving: Any, options: Any) -> list[Any]:
    """Return d/dg <vjp(g), t>: the vjp is linear in g, so its gradient is J t."""
    F: Any = engine.tensor_functions
    own: set[int] = set()
    pairs: list[tuple[Tensor, Tensor]] = []

    def fresh(primal: Tensor, tangent: Tensor | None) -> Tensor:
        if tangent is None:
            return primal
        leaf = fresh_leaf(primal, own)
        pairs.append((leaf, tangent))
        return leaf

    with enable_grad():
        operands = dict(primals)
        for name, tangent in moving.items():
            primal = primals[name]
            operands[name] = (
                [fresh(p, t) for p, t in zip(primal, tangent, strict=True)]
                if isinstance(primal, list | tuple)
                else fresh(primal, tangent)
            )
        out = op.function(**operands, **options)
        outs = [out] if isinstance(out, Tensor) else list(out)
        if op.outputs:
            outs = [o for o, f in zip(outs, op.outputs.values(), strict=True) if f]
        gs = [fresh_leaf(F.zero(o.detach()), own) for o in outs]
        pulled = transposed(outs, gs, [p for p, _ in pairs])
        found = transposed(pulled, [t for _, t in pairs], gs)
    return [None if t is None else settled(t, own) for t in found]


def transposed(outs: list[Any], gs: list[Any], inputs: list[Tensor]) -> list[Any]:
    """Return the transposed Jacobian of ``outs`` by ``inputs`` times ``gs``, recorded.

    ``gs`` are as they travel in the engine.  An input on which nothing depends gets None.
    """
    pairs = [(None if o is None else edge_of(o), g) for o, g in zip(outs, gs, strict=True)]
    roots = [(edge, g) for edge, g in pairs if edge is not None]
    if not roots:
        return [None] * len(inputs)
    edges = [edge_of(x) for x in inputs]
    return engine.run(roots, create_graph=True, keep_graph=True, inputs=edges, accumulate=False)


def fresh_leaf(tensor: Tensor, own: set[int]) -> Tensor:
    """Return an alias that requires grad; noted in ``own`` when nothing lies before it."""
    out: Tensor = engine.tensor_functions.alias(tensor)  # type: ignore[attr-defined]
    if out._node is None:
        out._requires = True
        own.add(id(out))
    return out
