"""Attention by cuDNN: one kernel forward and a few backward, which never write the weights out.

Note [Statistics]
    Forward keeps the logarithm of each row's sum of exponentials, in float32.  It takes the place
    of the rows' shift in `ops.attention`, and the inverse of their sums is 1, so the form made of
    matrix products can go backward from it where cuDNN cannot.

Note [Closed rows]
    A mask becomes a bias, very negative where a query may not look, but finite: -inf would give
    nan in rows where it may look nowhere.  Such rows are 0 by definition; their
    results, and what comes back for them, are multiplied by 0.

Note [Dropout]
    cuDNN draws by Philox from a seed in the device's memory, and draws the same again in backward.
    What it draws is its own affair, so forward takes a call only if it has a plan for backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import cupy

from distgrad.backend.cuda.attention_rows import attend_by_rows, backward_by_rows
from distgrad.backend.cuda.cudnn import (
    Place,
    Sketch,
    Wishes,
    aligned,
    library,
    packed,
    plan,
    usable,
    wishes,
)
from distgrad.backend.cuda.ordered import empty_in, order_of
from distgrad.backend.cuda.random import signed
from distgrad.backend.switches import attention as switches
from distgrad.typing import Array, Shape

__all__ = ["KERNELS", "Attention"]

# Between the seeds of draws in one graph: odd, and far from every small number.
_APART = 0x1E3779B97F4A7C15
# Half the most negative numbers: a logit can be added to them.
_LOW = {"float16": -32752.0, "bfloat16": -1.6947656946257677e38}


# ---------------------------------------------------------------------- what cuDNN is asked
class Attention(NamedTuple):
    """Attention, or its gradients.

    The operands of forward are q, k, v, the bias, and seed and offset of dropout, as far as there
    are any; it gives the output and the statistics.  Backward takes the output, its gradient and
    the statistics after v, and gives the gradients of q, k, v and, if asked for, of the bias.
    """

    backward: bool
    q: Place
    k: Place
    v: Place
    output: Place
    gradient: Place | None
    bias: Place | None
    bias_too: bool
    scale: float
    causal: bool
    dropout: float
    dtype: str
    wishes: Wishes
    workspace: int | None = None  # the sums of dq need it, and there is no other algorithm
    compiled: bool = True

    def write(self, sketch: Sketch) -> None:
        """Write the graph."""
        names = ("q", "k", "v")
        kind, rows = self.dtype, _rows(self.q)
        operands = {n: sketch.given(getattr(self, n), kind) for n in names}
        if self.backward:
            assert self.gradient is not None
            operands["o"] = sketch.given(self.output, kind)
            operands["dO"] = sketch.given(self.gradient, kind)
            operands["stats"] = sketch.given(rows, "float32")
        options = self._options(sketch)
        if not self.backward:
            out, stats = sketch.graph.sdpa(**operands, **options, generate_stats=True)
            sketch.gives(out, self.output, kind)
            sketch.gives(stats, rows, "float32")
            return
        if self.wishes.deterministic:
            options["use_deterministic_algorithm"] = True
        found = sketch.graph.sdpa_backward(**operands, **options)
        for tensor, name in zip(found, names, strict=True):
            sketch.gives(tensor, _dense(getattr(self, name)), kind)
        if self.bias_too:
            sketch.gives(options["dBias"], _dense(self.bias), kind)

    def _options(self, sketch: Sketch) -> dict[str, Any]:
        options: dict[str, Any] = {"attn_scale": self.scale}
        if self.causal:
            options["diagonal_alignment"] = library().diagonal_alignment.TOP_LEFT
            options["diagonal_band_right_bound"] = 0
        if self.bias is not None:
            options["bias"] = sketch.given(self.bias, self.dtype)
        if self.dropout:
            seed, offset = (sketch.given(Place((1,) * 4, (1,) * 4), "int64") for _ in range(2))
            options["dropout"] = (self.dropout, seed, offset)
        if self.bias_too:
            options["dBias"] = sketch.result(_dense(self.bias), self.dtype)
        return options


def _rows(q: Place) -> Place:
    """Return where the statistics lie: a number for each row, in order."""
    shape = (*q.shape[:3], 1)
    return Place(shape, packed(shape, range(4)))


def _dense(place: Place | None) -> Place:
    """Return the same dimensions in the same order of memory, without gaps."""
    assert place is not None
    return Place(place.shape, packed(place.shape, order_of(place.strides)))


def _place(x: Array) -> Place:
    return Place(x.shape, tuple(s // x.itemsize for s in x.strides))


# ---------------------------------------------------------------------- operands
class _Heads(NamedTuple):
    """Operands with four dimensions, and how the results become what was asked for."""

    q: Array
    k: Array
    v: Array
    lead: Shape


def _heads(q: Array, k: Array, v: Array) -> _Heads | None:
    """Return the operands as (batch, heads, length, width); None for what cuDNN does not take.

    Groups of queries that share keys come as (batch, heads of keys, group, length, width).
    """
    lead = q.shape[:-2]
    if q.ndim == 5 and k.shape[2] == v.shape[2] == 1:
        q, k, v = q.reshape(len(q), -1, *q.shape[3:]), k[:, :, 0], v[:, :, 0]
    elif q.ndim == 3:
        q, k, v = (x[:, None] for x in (q, k, v))
    if not q.ndim == k.ndim == v.ndim == 4:
        return None
    if not len(q) == len(k) == len(v) or k.shape[1] != v.shape[1] or q.shape[1] % k.shape[1]:
        return None
    return _Heads(_near(q), _near(k), _near(v), lead)


def _near(x: Array) -> Array:
    """Return ``x``, or its copy where the numbers of a row are not side by side."""
    fits = x.strides[-1] == x.itemsize and min(x.strides) > 0
    return aligned(x) if fits else cupy.ascontiguousarray(x)


def _like(place: Place, dtype: Any) -> Array:
    """Return new memory for a dense result."""
    return empty_in(place.shape, order_of(place.strides), dtype)


class _Mask(NamedTuple):
    """A mask as numbers to add, and which rows have anything to look at (Note [Closed rows])."""

    bias: Array
    open_rows: Array
    causal: bool  # not yet in the bias


def _mask(mask: Array, q: Array, k: Array, lead: Shape, causal: bool) -> _Mask | None:
    """Return a mask as cuDNN adds it; None where its dimensions do not fit."""
    shape = (1,) * (len(lead) + 2 - mask.ndim) + mask.shape
    if len(lead) == 3:  # groups: (batch, heads of keys, group, …)
        if shape[2] != lead[2] and shape[1:3] != (1, 1):
            return None
        shape = (shape[0], shape[1] * shape[2], *shape[3:])
    elif len(lead) == 1:
        shape = (shape[0], 1, *shape[1:])
    square = (q.shape[2], k.shape[2])
    if shape[0] not in (1, len(q)) or shape[1] not in (1, q.shape[1]):
        return None
    mask = mask.reshape(shape)
    mask = cupy.broadcast_to(mask, (*mask.shape[:2], *square))
    low = _LOW[q.dtype.name]
    if mask.dtype == bool:
        chosen = mask & cupy.tri(*square, dtype=bool) if causal else mask
        bias = cupy.full(mask.shape, low, q.dtype)
        cupy.copyto(bias, 0, where=chosen)
        return _Mask(bias, chosen.any(-1, keepdims=True), False)
    lowest = q.dtype.type(low)
    bias = cupy.ascontiguousarray(cupy.maximum(mask.astype(q.dtype, copy=False), lowest))
    seen = bias > lowest
    if causal:
        seen = seen & cupy.tri(*square, dtype=bool)
    return _Mask(bias, seen.any(-1, keepdims=True), causal)


# ---------------------------------------------------------------------- forward and backward
def _usable(q: Array, *others: Array) -> bool:
    """Return whether cuDNN may be asked: it has no backward for float32, nor odd widths."""
    if q.dtype.itemsize != 2 or q.ndim < 3 or not switches.fused:
        return False
    return not (q.shape[-1] % 8 or others[1].shape[-1] % 8) and usable(q, *others)


def attend(
    q: Array, k: Array, v: Array, mask: Array | None, keep: Array | None, scale: float,
    causal: bool,
) -> Any:  # fmt: skip
    """Return output, no weights, statistics, and nothing; see `ops.attention`."""
    if keep is not None:
        return NotImplemented
    found = _attend(q, k, v, mask, scale, causal, 0.0, None)
    if found is NotImplemented and mask is None:
        found = attend_by_rows(q, k, v, scale, causal)
    return found


def dropped_attend(
    q: Array, k: Array, v: Array, mask: Array | None, p: float, draw: Any, scale: float,
    causal: bool,
) -> Any:  # fmt: skip
    """Return the same with dropout; ``draw`` is what `random.draw_from` gave."""
    if p == 1:
        return NotImplemented
    return _attend(q, k, v, mask, scale, causal, p, draw)


def _attend(
    q: Array, k: Array, v: Array, mask: Array | None, scale: float, causal: bool, p: float,
    draw: Any,
) -> Any:  # fmt: skip
    call = _called(q, k, v, mask, scale, causal, p)
    found = None if call is None else plan(call.described)
    if call is None or found is None or (p and not _returns(call, q, k, mask)):
        return NotImplemented
    heads, place = call.heads, call.described.output
    out, stats = _like(place, q.dtype), cupy.empty((*heads.q.shape[:3], 1), "f4")
    found.run(*_operands(call, (), draw), out, stats)
    if call.masked is not None:
        out *= call.masked.open_rows
    lead, none = (*heads.lead, q.shape[-2]), cupy.empty(0, q.dtype)
    return out.reshape(*lead, v.shape[-1]), none, stats.reshape(*lead, 1), none


class _Call(NamedTuple):
    """A call of attention as cuDNN takes it."""

    heads: _Heads
    masked: _Mask | None
    described: Attention

    def backward(self, mask_too: bool) -> Attention:
        """Return the description of its gradients."""
        place = self.described.output
        return self.described._replace(backward=True, gradient=place, bias_too=mask_too)


def _called(
    q: Array, k: Array, v: Array, mask: Array | None, scale: float, causal: bool, p: float
) -> _Call | None:
    """Return the call; None where cuDNN does not take the operands."""
    heads = _heads(q, k, v) if _usable(q, k, v) else None
    if heads is None:
        return None
    masked = None if mask is None else _mask(mask, heads.q, heads.k, heads.lead, causal)
    if mask is not None and masked is None:
        return None
    output = _dense(_place(heads.q)._replace(shape=(*heads.q.shape[:3], heads.v.shape[3])))
    described = Attention(
        False, _place(heads.q), _place(heads.k), _place(heads.v), output, None,
        None if masked is None else _place(masked.bias), False, float(scale),
        causal if masked is None else masked.causal, float(p), q.dtype.name, wishes(),
    )  # fmt: skip
    return _Call(heads, masked, described)


def _returns(call: _Call, q: Array, k: Array, mask: Array | None) -> bool:
    """Return whether cuDNN has plans for the gradients, whichever of them are asked for."""
    plain = plan(call.backward(False)) is not None
    if mask is None or mask.dtype == bool:
        return plain
    return plain and _whole(mask, q, k) and plan(call.backward(True)) is not None


def _operands(call: _Call, more: tuple[Array, ...], draw: Any) -> list[Array]:
    arrays = [call.heads.q, call.heads.k, call.heads.v, *more]
    if call.masked is not None:
        arrays.append(call.masked.bias)
    return arrays if draw is None else [*arrays, *_seed_and_offset(draw)]


def _seed_and_offset(draw: Any) -> tuple[Array, Array]:
    """Return what dropout is drawn from: a seed of its own for each draw of a graph."""
    memory, key, number = draw
    seed = cupy.full(1, key, "i8") if not isinstance(memory, cupy.ndarray) else memory
    return (seed + signed(number * _APART % 2**64) if number else seed), cupy.zeros(1, "i8")


def attend_backward(
    g: Array, needs: tuple[bool, ...], query: Array, key: Array, value: Array,
    attn_mask: Array | None, keep: Array | None, scale: float, is_causal: bool, output: Array,
    weights: Array, shift: Array, inverse: Array,
) -> Any:  # fmt: skip
    """Return the gradients of query, key, value and mask, and None; see `ops.attention`."""
    if keep is not None or inverse.size or not shift.size:  # forward was not of this module
        return NotImplemented
    call = _called(query, key, value, attn_mask, scale, is_causal, 0.0)
    found = _backward(g, needs[3], query, key, value, attn_mask, call, output, shift, None)
    if found is NotImplemented and attn_mask is None:
        found = backward_by_rows(g, query, key, value, shift, scale, is_causal)
        return found if found is NotImplemented else (*found, None, None)
    return found if found is NotImplemented else (*found, None)


def dropped_attend_backward(
    g: Array, needs: tuple[bool, ...], query: Array, key: Array, value: Array,
    attn_mask: Array | None, p: float, draw: Any, scale: float, is_causal: bool, output: Array,
    weights: Array, shift: Array, inverse: Array,
) -> Any:  # fmt: skip
    """Return the gradients of query, key, value and mask."""
    if inverse.size or not shift.size:
        return NotImplemented
    call = _called(query, key, value, attn_mask, scale, is_causal, p)
    return _backward(g, needs[3], query, key, value, attn_mask, call, output, shift, draw)


def _backward(
    g: Array, mask_too: bool, q: Array, k: Array, v: Array, mask: Array | None,
    call: _Call | None, out: Array, stats: Array, draw: Any,
) -> Any:  # fmt: skip
    if call is None or (mask_too and mask is not None and not _whole(mask, q, k)):
        return NotImplemented
    described = call.backward(mask_too)
    found = plan(described)
    if found is None:
        return NotImplemented
    four = described.output.shape
    out, g = (_laid(x.reshape(four), described.output) for x in (out, g))
    if call.masked is not None:
        g = g * call.masked.open_rows
        g = _laid(g, described.output)
    places = [described.q, described.k, described.v]
    gradients = [_like(_dense(p), q.dtype) for p in places]
    if mask_too:
        gradients.append(_like(_dense(described.bias), q.dtype))
    rows = stats.reshape(*four[:3], 1)
    found.run(*_operands(call, (out, g, rows), draw), *gradients)
    shapes = [x.shape for x in (q, k, v)] + ([] if mask is None else [mask.shape])
    whole = [x.reshape(shape) for x, shape in zip(gradients, shapes, strict=False)]
    return (*whole, *[None] * (4 - len(whole)))


def _laid(x: Array, place: Place) -> Array:
    """Return ``x``, or its copy where it does not lie as in ``place``."""
    if _place(x) == place:
        return aligned(x)
    out = _like(place, x.dtype)
    out[...] = x
    return out


def _whole(mask: Array, q: Array, k: Array) -> bool:
    """Return whether a mask has a number for each query and key, as its gradient must."""
    return bool(mask.ndim == 4 == q.ndim and mask.shape[-2:] == (q.shape[-2], k.shape[-2]))


KERNELS: dict[str, Callable[..., Any]] = {
    "attend": attend, "attend_backward": attend_backward, "dropped_attend": dropped_attend,
    "dropped_attend_backward": dropped_attend_backward,
}  # fmt: skip
