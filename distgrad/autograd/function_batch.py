"""Custom Functions inside ``vmap``: by their own ``vmap``, or by a rule made of their methods.

A Function is recorded at the layer of its arguments; what its ``forward`` is there, where they are
traced, is answered here on the tensors below, which have histories of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from distgrad.autograd import engine
from distgrad.autograd.batching import BatchLevel
from distgrad.autograd.dual import DualLevel
from distgrad.autograd.function import (
    Function,
    FunctionCtx,
    apply_dual,
    batched_forward,
    has_tangent,
)
from distgrad.autograd.mode import mode
from distgrad.autograd.traced import running_levels
from distgrad.autograd.tree import Spec, broadcast, flatten, unflatten
from distgrad.errors import GradError
from distgrad.tensor import Tensor

F: Any = engine.tensor_functions

_MORE = "For more details, please see https://pytorch.org/docs/main/notes/extending.func.html"


class VmapInfo(NamedTuple):
    """What the ``vmap`` of a Function is told."""

    batch_size: int
    randomness: str


def _forward(kind: type[Function], args: Any, kwargs: dict[str, Any], recording: bool) -> Any:
    """Return what ``forward`` returns; of traced arguments, what their innermost level answers."""
    leaves, spec = flatten(args)
    level = _level_of(leaves)
    if level is None:
        return kind.forward(*args, **kwargs)
    mode.grad = recording  # the tensors below have a history of their own
    if isinstance(level, DualLevel):
        return apply_dual(kind, level, args, kwargs)
    if kwargs:
        raise NotImplementedError(
            "Run vmap on autograd.Function with kwarg-only Tensor args. Please do not pass "
            f"kwarg-only Tensors to autograd.Function. Got: {kwargs}"
        )
    own_rule = kind.vmap is not Function.vmap
    if own_rule == kind.generate_vmap_rule:
        raise GradError(f"You tried to vmap over {kind.__name__}, but it " + (
            "has both generate_vmap_rule=True and an overridden vmap staticmethod. Please set "
            "generate_vmap_rule=False or delete the overridden vmap staticmethod to avoid "
            "ambiguity. " if own_rule else
            "does not have vmap support. Please override and implement the vmap staticmethod or "
            "set generate_vmap_rule=True. "
        ) + _MORE)  # fmt: skip
    if own_rule:
        return _by_own_rule(kind, level, leaves, spec)
    return _Generated(kind, level, leaves, spec).run()


batched_forward.append(_forward)


def _level_of(leaves: list[Any]) -> BatchLevel | DualLevel | None:
    """Return the innermost level of which a tensor carries a batch or a tangent on top."""
    for level in reversed(running_levels()):
        if isinstance(level, BatchLevel) and any(_value(level, x) is not None for x in leaves):
            return level
        if isinstance(level, DualLevel) and has_tangent(level, tuple(leaves)):
            return level
    return None


def _value(level: BatchLevel, leaf: Any) -> Tensor | None:
    return level.value(leaf) if isinstance(leaf, Tensor) else None


def _below(level: BatchLevel, leaf: Any) -> Any:
    value = _value(level, leaf)
    return leaf if value is None else value


# ---------------------------------------------------------------------- the Function's own rule
def _by_own_rule(kind: type[Function], level: BatchLevel, leaves: list[Any], spec: Spec) -> Any:
    in_dims = unflatten([None if _value(level, x) is None else 0 for x in leaves], spec)
    args = unflatten([_below(level, x) for x in leaves], spec)
    found: Any = kind.vmap(VmapInfo(level.size, level.randomness), in_dims, *args)
    if not isinstance(found, tuple) or len(found) != 2:
        what = f"{len(found)} returns" if isinstance(found, tuple) else f"a {type(found)}"
        raise GradError(
            "Expected the vmap staticmethod to have two returns, an output and out_dims with "
            f"pytree structure compatible with the output. Got {what} instead"
        )
    output, out_dims = found
    outs, out_spec = flatten(output)
    dims = broadcast(out_dims, out_spec)
    if dims is None:
        raise GradError(
            "The autograd.Function's vmap staticmethod returned an incompatible (output, out_dims) "
            f"tuple. Expected out_dims={out_dims} to be compatible with the structure of `output`. "
            f"out_dims has structure {flatten(out_dims)[1]} but output has structure {out_spec}. "
            + _MORE
        )
    return unflatten(
        [
            o if d is None else level.batched(_to_front(o, d))
            for o, d in zip(outs, dims, strict=True)
        ],
        out_spec,
    )


def _to_front(tensor: Tensor, dim: int) -> Tensor:
    ndim = int(tensor.array.ndim)
    dim %= ndim
    out: Tensor = F.permute(tensor, (dim, *(d for d in range(ndim) if d != dim)))
    return out if dim else tensor


# ---------------------------------------------------------------------- a generated rule
class _InnerCtx(FunctionCtx):
    """The ctx that the methods see, which work on tensors with a hidden batch."""

    saved_tensors: tuple[Any, ...] = ()
    needs_input_grad: tuple[bool, ...] = ()


class _Generated:
    """A Function on the tensors below: its methods are those of ``kind``, on batches of them."""

    def __init__(
        self, kind: type[Function], level: BatchLevel, leaves: list[Any], spec: Spec
    ) -> None:
        self.kind, self.made_at, self.spec = kind, level, spec
        self.leaves = [_below(level, x) for x in leaves]
        self.hidden = [_value(level, x) is not None for x in leaves]
        self.out_spec: Any = None
        self.out_hidden: list[bool] = []

    def run(self) -> Any:
        """Return the outputs, with a hidden batch where they have one."""
        names = ("forward", "setup_context", "backward", "jvp")
        members: dict[str, Any] = {n: staticmethod(getattr(self, n)) for n in names}
        members["generate_vmap_rule"] = True
        function: Any = type(f"Vmapped{self.kind.__name__}", (Function,), members)
        outs = function.apply(*self.leaves)
        level = self.made_at
        return unflatten(_hide(level, outs, self.out_hidden), self.out_spec)

    def level(self) -> BatchLevel:
        """Return the level of the ``vmap``, or another like it when that has ended."""
        old = self.made_at
        return old if old.alive else BatchLevel(old.size, old.randomness)

    def forward(self, *leaves: Any) -> Any:
        """Run ``forward`` on the batch."""
        level = self.made_at
        out = self.kind.forward(*unflatten(_hide(level, leaves, self.hidden), self.spec))
        outs, self.out_spec = flatten(out)
        self.out_hidden = [_value(level, o) is not None for o in outs]
        return tuple([_below(level, o) for o in outs])

    def setup_context(self, ctx: Any, inputs: Any, output: Any) -> None:
        """Run ``setup_context``; what it saves is kept without the hidden batch."""
        level = self.made_at
        inner = ctx.inner = _InnerCtx()
        ins = _hide(level, inputs, self.hidden)
        outs = _hide(level, output, self.out_hidden)
        self.kind.setup_context(inner, unflatten(ins, self.spec), unflatten(outs, self.out_spec))
        ctx.set_materialize_grads(inner.materialize_grads)
        for save, name in ((ctx.save_for_backward, "to_save"),
                           (ctx.save_for_forward, "saved_for_forward")):  # fmt: skip
            tensors = getattr(inner, name)
            setattr(ctx, f"hidden_{name}", [_value(level, t) is not None for t in tensors])
            known = {id(w): t for w, t in zip((*ins, *outs), (*inputs, *output), strict=True)}
            save(*[known.get(id(t), _below(level, t)) for t in tensors])
        plain = {id(t) for t in inner.non_differentiable}
        ctx.mark_non_differentiable(
            *[o for o, w in zip(output, outs, strict=True) if id(w) in plain]
        )
        inner.to_save = inner.saved_for_forward = inner.non_differentiable = ()

    def backward(self, ctx: Any, *grads: Any) -> Any:
        """Run ``backward`` on the batch; the gradient of what has no batch is the sum over it."""
        with _entered(self.level()) as level:
            inner = self._prepared(ctx, level, ctx.saved_tensors, ctx.hidden_to_save)
            found = self.kind.backward(inner, *_hide(level, grads, self.out_hidden))
            found = found if isinstance(found, tuple | list) else (found,)
            grads_of: list[Any] = []
            for part, spec in zip(found, self.spec.parts, strict=False):
                grads_of += [part] if spec.kind is None else [None] * spec.leaves
            return tuple([
                g if g is None else level.full(g) if hidden else _summed(level, g)
                for g, hidden in zip(grads_of, self.hidden, strict=True)
            ])  # fmt: skip

    def jvp(self, ctx: Any, *tangents: Any) -> Any:
        """Run ``jvp`` on the batch."""
        with _entered(self.level()) as level:
            inner = self._prepared(ctx, level, ctx.saved_tensors, ctx.hidden_saved_for_forward)
            along = unflatten(_hide(level, tangents, self.hidden), self.spec)
            found = flatten(self.kind.jvp(inner, *along))[0]
            return tuple([
                t if t is None or not hidden else level.full(t)
                for t, hidden in zip(found, self.out_hidden, strict=True)
            ])  # fmt: skip

    def _prepared(self, ctx: Any, level: BatchLevel, saved: Any, hidden: list[bool]) -> _InnerCtx:
        inner: _InnerCtx = ctx.inner
        inner.saved_tensors = tuple(_hide(level, saved, hidden))
        needs = iter(ctx.needs_input_grad)
        inner.needs_input_grad = tuple(
            [any([next(needs) for _ in range(spec.leaves)]) for spec in self.spec.parts]
        )
        return inner


class _entered:
    """The level inside a block, entered unless it is running."""

    def __init__(self, level: BatchLevel) -> None:
        self.level, self.enters = level, level not in running_levels()

    def __enter__(self) -> BatchLevel:
        if self.enters:
            self.level.__enter__()
        return self.level

    def __exit__(self, *error: object) -> None:
        if self.enters:
            self.level.__exit__()


def _hide(level: BatchLevel, leaves: Sequence[Any], hidden: list[bool]) -> list[Any]:
    return [
        level.batched(x) if h and x is not None else x for x, h in zip(leaves, hidden, strict=True)
    ]


def _summed(level: BatchLevel, tensor: Tensor) -> Tensor:
    value = level.value(tensor)
    if value is None:
        whole: Tensor = F.mul(tensor, float(level.size))
        return whole
    total: Tensor = F.sum(value, 0)
    return total
