"""Scaled dot-product attention, fused.

Note [Attention]
    With S = scale·q·kᵀ + mask and E = exp(S − shift), the output is (E·v)·r, r = 1 / (row sums of
    E): normalising the output costs E·v's few columns, normalising E its many.  ``shift`` is the
    rows' maxima, or 0 where no exponential overflows or vanishes: two passes saved.  Backward needs
    no sum over P·dP, since it is the row sum of g·out (Dao et al., "FlashAttention", 2022):

        dv = Eᵀ·(g·r)      dS = E·((g·r)·vᵀ − r·Σ g·out)      dq = scale·dS·k      dk = scale·dSᵀ·q

    Short sequences run batched and keep E.  Long ones run head by head in blocks of rows that stay
    in the cache, skip what lies above a causal diagonal, and compute E again in backward.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy

from distgrad.autograd.declare import op, recover
from distgrad.autograd.samples import booleans, case, real
from distgrad.autograd.traced import is_traced
from distgrad.backend.device import array_namespace, to_device
from distgrad.backend.forms import device_form
from distgrad.backend.random import current_generator
from distgrad.errors import (
    ArgumentError,
    DistgradError,
    DtypeError,
    GradError,
    ShapeError,
    signature,
)
from distgrad.ops.checks import demand_floating
from distgrad.ops.dropout import _dropout
from distgrad.ops.shape import reshape, to_dtype
from distgrad.tensor import Tensor, wrap
from distgrad.typing import Array, Namespace, Shape

__all__ = ["scaled_dot_product_attention"]

_ROWS = 128  # rows of a block of a long sequence
_SAFE = 60.0  # exp of less is far from overflow, in float32 and summed over any row


class _Rows(NamedTuple):
    """Exponentials of logits, and what turns them into probabilities."""

    exp: Array
    shift: Array | None
    inverse: Array


# ---------------------------------------------------------------------- softmax, unnormalised
@functools.lru_cache(maxsize=32)
def _triangle(xp: Namespace, rows: int, columns: int, dtype: Any) -> Array:
    return xp.tril(xp.ones((rows, columns), dtype))


def _times(xp: Namespace, s: Array, allowed: Array | None) -> Array:
    """Return ``s`` with its last columns times ``allowed``, in place where the shapes permit."""
    if allowed is None:
        return s
    if allowed.ndim > 2 and numpy.broadcast_shapes(s.shape, allowed.shape) != s.shape:
        return s * allowed
    s[..., s.shape[-1] - allowed.shape[-1] :] *= allowed
    return s


def _plus(xp: Namespace, s: Array, bias: Array | None) -> Array:
    if bias is None:
        return s
    if numpy.broadcast_shapes(s.shape, bias.shape) != s.shape:
        return s + bias
    s += bias
    return s


def _exponentials(xp: Namespace, q: Array, keys: Array, bias: Any, allowed: Any) -> _Rows:
    """Return exp(q·keys + bias) where ``allowed``, 0 elsewhere, and 1 / its row sums."""
    s = _plus(xp, xp.matmul(q, keys), bias)
    if type(s) is numpy.ndarray and s.size and float(s.max()) < _SAFE:  # no wait for a device
        e = _times(xp, xp.exp(s, out=s), allowed)
        sums = xp.matmul(e, xp.ones((e.shape[-1], 1), e.dtype))
        if float(sums.min()) > 1e-30:
            return _Rows(e, None, xp.reciprocal(sums, out=sums))
        s = _plus(xp, xp.matmul(q, keys), bias)
    return _shifted(xp, s, allowed)


def _closed(xp: Namespace, s: Array, allowed: Array | None) -> Array:
    """Return ``s`` with -inf where nothing is allowed."""
    if allowed is None:
        return s
    width = s.shape[-1] - allowed.shape[-1]
    open_ = xp.where(allowed != 0, s[..., width:], s.dtype.type(-xp.inf))
    return xp.concatenate([s[..., :width], open_], axis=-1) if width else open_


def _row_maxima(xp: Namespace, s: Array) -> Array:
    """Return the maximum of each row, 0 for a row that is empty or -inf throughout."""
    if not s.shape[-1]:
        return xp.zeros((*s.shape[:-1], 1), s.dtype)
    top = xp.max(s, axis=-1, keepdims=True)
    return xp.where(xp.isneginf(top), xp.zeros_like(top), top)


def _shifted(xp: Namespace, s: Array, allowed: Array | None) -> _Rows:
    """Return the same for any logits; a row where nothing is allowed gets 0 for 1 / 0."""
    s = _closed(xp, s, allowed)
    top = _row_maxima(xp, s)
    with xp.errstate(invalid="ignore"):
        s = s - top
    xp.exp(s, out=s)
    sums = xp.add.reduce(s, axis=-1, keepdims=True)
    return _Rows(s, top, xp.where(sums == 0, sums, 1 / xp.where(sums == 0, sums + 1, sums)))


# ---------------------------------------------------------------------- forward
def _allowed(xp: Namespace, mask: Array | None, causal: bool, square: Shape, like: Array) -> Any:
    """Return 1 where a query may look and 0 elsewhere; None if everywhere."""
    lower = _triangle(xp, *square, like.dtype) if causal else None
    if mask is None or mask.dtype != bool:
        return lower
    chosen = mask.astype(like.dtype)
    return chosen if lower is None else chosen * lower


def _bias(mask: Array | None) -> Array | None:
    return None if mask is None or mask.dtype == bool else mask


@device_form
def _attend(
    xp: Namespace, q: Array, k: Array, v: Array, mask: Any, keep: Any, scale: float, causal: bool
) -> tuple[Array, Array, Array, Array]:
    if q.dtype.itemsize == 2:  # on a device: no exponential is rounded
        wide, kept = _widely(xp, q, k, v), _widely(xp, mask, keep)
        found = _attend(xp, wide[0], wide[1], wide[2], kept[0], kept[1], scale, causal)
        return found[0].astype(q.dtype), found[1], found[2], found[3]
    square = (q.shape[-2], k.shape[-2])
    if math.prod(square) > xp.BLOCK // 2:
        return _long_forward(xp, q, k, v, mask, keep, scale, causal)
    allowed = _allowed(xp, mask, causal, square, q)
    e, _, inverse = _exponentials(xp, q * scale, xp.swapaxes(k, -1, -2), _bias(mask), allowed)
    kept = e if keep is None else e * keep
    out = _product(xp, kept, v, q)
    out *= inverse
    return out, e, xp.zeros(0, q.dtype), inverse


def _widely(xp: Namespace, *arrays: Array | None) -> list[Any]:
    """Return half precision in float32, and what is no number as it is."""
    return [a if a is None or a.dtype == bool else xp.widened(a) for a in arrays]


def _product(xp: Namespace, a: Array, b: Array, like: Array) -> Array:
    """Return ``a @ b`` in memory ordered as that of ``like``, where the shapes permit.

    Heads that are a view of (batch, length, heads, width) are then such a view in the result too.
    """
    shape = (*a.shape[:-1], b.shape[-1])
    if like.shape[:-2] == shape[:-2] == b.shape[:-2]:
        return xp.matmul(a, b, out=xp.empty_like(like, shape=shape))
    return xp.matmul(a, b)


def _long_forward(
    xp: Namespace, q: Array, k: Array, v: Array, mask: Any, keep: Any, scale: float, causal: bool
) -> tuple[Array, Array, Array, Array]:
    heads = _Heads(xp, q, k, v, mask, keep, scale, causal)
    out = xp.empty_like(heads.q, shape=(*heads.lead, q.shape[-2], v.shape[-1]))
    shift = xp.zeros((*heads.lead, q.shape[-2], 1), q.dtype)
    inverse = xp.empty_like(shift)
    for head, rows, columns in heads.blocks():
        logits = heads.logits(head, rows, columns)
        e, top, inv = _exponentials(xp, *logits)
        inverse[head][rows] = inv
        if top is not None:
            shift[head][rows] = top
        if keep is not None:
            e *= heads.kept(head, rows, columns)
        part = out[head][rows]
        xp.matmul(e, heads.v[head][columns], out=part)
        part *= inv
    return out, xp.zeros(0, q.dtype), shift, inverse


class _Heads:
    """A long attention as blocks: (head, rows, the columns that these rows may see)."""

    __slots__ = ("causal", "k", "keep", "lead", "mask", "q", "scale", "v", "xp")

    def __init__(
        self, xp: Namespace, q: Array, k: Array, v: Array, mask: Any, keep: Any, scale: float,
        causal: bool,
    ) -> None:  # fmt: skip
        self.xp, self.scale, self.causal = xp, scale, causal
        more = [m.shape[:-2] for m in (mask, keep) if m is not None]
        self.lead = numpy.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2], *more)
        square = (q.shape[-2], k.shape[-2])
        self.q, self.k, self.v = (xp.broadcast_to(a, self.lead + a.shape[-2:]) for a in (q, k, v))
        self.mask, self.keep = (
            None if a is None else xp.broadcast_to(a, self.lead + square) for a in (mask, keep)
        )

    def blocks(self) -> Iterator[tuple[Shape, slice, slice]]:
        """Return the blocks; a causal one leaves out the columns right of its last diagonal."""
        length, size = self.q.shape[-2], self.k.shape[-2]
        for head in numpy.ndindex(*self.lead):
            for start in range(0, length, _ROWS):
                rows = slice(start, min(start + _ROWS, length))
                yield head, rows, slice(0, min(rows.stop, size) if self.causal else size)

    def logits(self, head: Shape, rows: slice, columns: slice) -> tuple[Array, Array, Any, Any]:
        """Return scaled queries, keys, bias, and what is allowed in the last columns."""
        xp = self.xp
        q, keys = self.q[head][rows] * self.scale, self.k[head][columns].T
        mask = None if self.mask is None else self.mask[head][rows, columns]
        allowed = None
        if self.causal and columns.stop > rows.start:
            # Left of the block's first row every column is allowed.
            height, width = rows.stop - rows.start, columns.stop - rows.start
            allowed = _triangle(xp, height, width, q.dtype)
        if mask is not None and mask.dtype == bool:
            chosen = mask.astype(q.dtype)
            allowed = _times(xp, chosen, allowed)
        return q, keys, _bias(mask), allowed

    def kept(self, head: Shape, rows: slice, columns: slice) -> Array:
        """Return the block's factors of dropout."""
        assert self.keep is not None
        return self.keep[head][rows, columns]

    def again(self, head: Shape, rows: slice, columns: slice, shift: Array) -> Array:
        """Return the exponentials once more."""
        q, keys, bias, allowed = self.logits(head, rows, columns)
        xp = self.xp
        s = _plus(xp, xp.matmul(q, keys), bias)
        if not shift.any():
            return _times(xp, xp.exp(s, out=s), allowed)
        s = _closed(xp, s, allowed) - shift
        return xp.exp(s, out=s)


# ---------------------------------------------------------------------- backward
@device_form
def _attend_backward(
    xp: Namespace, g: Array, needs: tuple[bool, ...], query: Array, key: Array, value: Array,
    attn_mask: Array | None, keep: Array | None, scale: float, is_causal: bool, output: Array,
    weights: Array, shift: Array, inverse: Array,
) -> tuple[Array | None, ...]:  # fmt: skip
    """See Note [Attention]."""
    if query.dtype.itemsize == 2:  # as forward
        g, *wide = _widely(xp, g, query, key, value, attn_mask, keep)
        kept = _widely(xp, output, weights, shift, inverse)
        operands: tuple[Any, ...] = (g, needs, *wide, scale, is_causal, *kept)
        found = _attend_backward(xp, *operands)
        return tuple(None if d is None else d.astype(query.dtype) for d in found)
    square = (query.shape[-2], key.shape[-2])
    if shift.size and not inverse.size:  # of a device, which kept the logarithms of the sums
        inverse = xp.ones(shift.shape, shift.dtype)
    if math.prod(square) > xp.BLOCK // 2:
        heads = _Heads(xp, query, key, value, attn_mask, keep, scale, is_causal)
        return _long_backward(heads, g, needs[3], output, shift, inverse)
    if shift.size and not weights.size:
        allowed = _allowed(xp, attn_mask, is_causal, square, query)
        logits = xp.matmul(query * scale, xp.swapaxes(key, -1, -2))
        logits = _closed(xp, _plus(xp, logits, _bias(attn_mask)), allowed)
        weights = xp.exp(logits - shift)
    scaled = g * inverse
    ds = xp.matmul(scaled, xp.swapaxes(value, -1, -2))
    kept = weights
    if keep is not None:
        ds *= keep
        kept = weights * keep
    ds -= xp.row_dots(scaled, output)[..., None]
    ds *= weights
    dq = _product(xp, ds, key, query)
    dq *= scale
    dk = _product(xp, xp.swapaxes(ds, -1, -2), query, key)
    dk *= scale
    dv = _product(xp, xp.swapaxes(kept, -1, -2), scaled, value)
    return dq, dk, dv, ds if needs[3] else None, None


def _long_backward(
    heads: _Heads, g: Array, mask_too: bool, out: Array, shift: Array, inverse: Array
) -> tuple[Array | None, ...]:
    xp, scale = heads.xp, heads.scale
    dq, dk, dv = (xp.zeros_like(a) for a in (heads.q, heads.k, heads.v))
    square = (*heads.lead, heads.q.shape[-2], heads.k.shape[-2])
    d_mask = xp.zeros(square, g.dtype) if mask_too else None
    for head, rows, columns in heads.blocks():
        e = kept = heads.again(head, rows, columns, shift[head][rows])
        k, scaled = heads.k[head][columns], g[head][rows] * inverse[head][rows]
        ds = xp.matmul(scaled, heads.v[head][columns].T)
        if heads.keep is not None:
            keep = heads.kept(head, rows, columns)
            ds *= keep
            kept = e * keep
        ds -= xp.row_dots(scaled, out[head][rows])[:, None]
        ds *= e
        dv[head][columns] += xp.matmul(kept.T, scaled)
        xp.matmul(ds, k, out=dq[head][rows])
        dk[head][columns] += xp.matmul(ds.T, heads.q[head][rows])
        if d_mask is not None:
            d_mask[head][rows, columns] = ds
    dq *= scale
    dk *= scale
    return dq, dk, dv, d_mask, None


def _formula(
    F: Any, query: Any, key: Any, value: Any, attn_mask: Any, keep: Any, scale: float,
    is_causal: bool,
) -> Any:  # fmt: skip
    s = F.matmul(query * scale, F.mT(key))
    if attn_mask is not None:
        is_bias = attn_mask.array.dtype != bool
        s = s + attn_mask if is_bias else F.where(attn_mask, s, -math.inf)
    if is_causal:
        xp, square = array_namespace(query.array), (query.array.shape[-2], key.array.shape[-2])
        s = F.where(wrap(xp.tri(*square, dtype=bool)), s, -math.inf)
    if key.array.shape[-2]:  # the shift has no part in the result, so none in its derivative
        top = F.amax(s, -1, True).detach()
        s = s - F.where(F.isfinite(top), top, 0.0)
    e = F.exp(s)
    sums = F.sum(e, -1, True)
    p = e / F.where(F.eq(sums, 0), 1.0, sums)
    return F.matmul(p if keep is None else p * keep, value)


# ---------------------------------------------------------------------- the operation
def _check(query: Array, key: Array, value: Array, mask: Array | None) -> None:
    if min(query.ndim, key.ndim, value.ndim) < 2:
        raise ShapeError(
            "Expected query, key, and value to all be at least 2 dimensional, but got query.dim: "
            f"{query.ndim} key.dim: {key.ndim} and value.dim: {value.ndim} instead"
        )
    if not query.dtype == key.dtype == value.dtype:
        raise DtypeError(
            "Expected query, key, and value to have the same dtype, but got query.dtype: "
            f"{query.dtype} key.dtype: {key.dtype} and value.dtype: {value.dtype} instead"
        )
    if query.dtype.kind not in "fV":
        raise DtypeError(f"expected floating point operands, but got {query.dtype}; use .float()")
    if query.shape[-1] != key.shape[-1]:
        raise ShapeError(
            f"query and key must have the same last size, but got {query.shape[-1]} and "
            f"{key.shape[-1]}"
        )
    if key.shape[-2] != value.shape[-2]:
        raise ShapeError(
            f"key and value must have the same length, but got {key.shape[-2]} and "
            f"{value.shape[-2]} in the last dimension but one"
        )
    leads = [a.shape[:-2] for a in (query, key, value)]
    try:
        numpy.broadcast_shapes(*leads)
    except ValueError:
        raise ShapeError(
            "the leading dimensions of query, key and value must broadcast, but are "
            f"{', '.join(str(list(lead)) for lead in leads)}; enable_gqa=True shares key heads"
        ) from None
    square = (query.shape[-2], key.shape[-2])
    if mask is not None:
        for have, want in zip(mask.shape[-2:][::-1], square[::-1], strict=False):
            if have not in (1, want):
                raise ShapeError(
                    f"attn_mask must broadcast to (*, {square[0]}, {square[1]}), one entry for "
                    f"each query and key, but its shape is {list(mask.shape)}"
                )


_Q, _K, _V = real(2, 3, 4), real(2, 5, 4), real(2, 5, 3)


def _reference(torch: Any, q: Any, k: Any, v: Any, mask: Any = None, keep: Any = None,
               scale: float = 1.0, is_causal: bool = False) -> Any:  # fmt: skip
    attention = torch.nn.functional.scaled_dot_product_attention
    return attention(q, k, v, mask, scale=scale, is_causal=is_causal)


@op(
    samples=[
        case(_Q, _K, _V, scale=0.5, is_causal=False),
        case(real(2, 2, 4, 3), real(2, 2, 4, 3), real(2, 2, 4, 3), scale=1.5, is_causal=True),
        case(_Q, _K, _V, booleans(3, 5), scale=0.5, is_causal=False),
        case(_Q, _K, _V, real(2, 3, 5), scale=0.5, is_causal=False),
        case(_Q, real(5, 4), real(2, 5, 3), real(5), scale=50.0, is_causal=False),
        case(real(150, 3), real(140, 3), real(140, 2), scale=0.5, is_causal=True),
        case(real(2, 140, 3), real(150, 3), real(1, 150, 2), real(140, 150), scale=40.0,
             is_causal=False),
    ],
    outputs=("output", "weights!", "shift!", "inverse!"),
    method=False,
    node="ScaledDotProductAttentionBackward0",
    reference=_reference,
    formula=_formula,
    d_all=_attend_backward,
)  # fmt: skip
def attention(
    xp: Namespace,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    keep: Tensor | None,
    scale: float,
    is_causal: bool,
) -> Any:
    """Return softmax(scale·query·keyᵀ + mask)·value, and what backward needs of it.

    Args:
        attn_mask: True where a query may look, or numbers that are added.
        keep: factors of the probabilities, for dropout.
    """
    _check(query, key, value, attn_mask)
    return _attend(xp, query, key, value, attn_mask, keep, scale, is_causal)


# ---------------------------------------------------------------------- dropout on a device
def _keyed(xp: Namespace, q: Array, k: Array, v: Array, mask: Any, p: float, draw: Any) -> Array:
    """Return the factors of dropout that a key gives."""
    more = [] if mask is None else [mask.shape[:-2]]
    lead = numpy.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2], *more)
    return _dropout(xp, xp.ones((*lead, q.shape[-2], k.shape[-2]), q.dtype), p, draw)


@device_form
def _dropped_attend(
    xp: Namespace, q: Array, k: Array, v: Array, mask: Any, p: float, draw: Any, scale: float,
    causal: bool,
) -> Any:  # fmt: skip
    return _attend(xp, q, k, v, mask, _keyed(xp, q, k, v, mask, p, draw), scale, causal)


@device_form
def _dropped_attend_backward(
    xp: Namespace, g: Array, needs: tuple[bool, ...], query: Array, key: Array, value: Array,
    attn_mask: Array | None, p: float, draw: Any, scale: float, is_causal: bool, output: Array,
    weights: Array, shift: Array, inverse: Array,
) -> tuple[Array | None, ...]:  # fmt: skip
    keep = _keyed(xp, query, key, value, attn_mask, p, draw)
    found = _attend_backward(
        xp, g, needs, query, key, value, attn_mask, keep, scale, is_causal, output, weights,
        shift, inverse,
    )  # fmt: skip
    return tuple(found[:4])


def _dropped_formula(
    F: Any, query: Any, key: Any, value: Any, attn_mask: Any, p: float, draw: Any, scale: float,
    is_causal: bool,
) -> Any:  # fmt: skip
    array = query.array
    xp = array_namespace(array)
    if array.dtype.itemsize == 2 and xp.kernels:  # its own library draws what nobody else can
        raise GradError(
            "attention with dropout in half precision on a GPU has first derivatives only; use "
            "float32 for more"
        )
    mask = None if attn_mask is None else attn_mask.array
    keep = wrap(_keyed(xp, array, key.array, value.array, mask, p, draw))
    return _formula(F, query, key, value, attn_mask, keep, scale, is_causal)


_DRAW = (0, 2**61 + 3, 0)


@op(
    samples=[
        case(_Q, _K, _V, p=0.3, draw=_DRAW, scale=0.5, is_causal=False),
        case(real(2, 2, 4, 3), real(2, 2, 4, 3), real(2, 2, 4, 3), p=0.5, draw=_DRAW, scale=1.5,
             is_causal=True),
        case(_Q, _K, _V, real(2, 3, 5), p=0.4, draw=_DRAW, scale=0.5, is_causal=False),
    ],
    outputs=("output", "weights!", "shift!", "inverse!"),
    method=False,
    node="ScaledDotProductAttentionBackward0",
    reference="none",
    formula=_dropped_formula,
    d_all=_dropped_attend_backward,
)  # fmt: skip
def dropped_attention(
    xp: Namespace,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    p: float,
    draw: Any,
    scale: float,
    is_causal: bool,
) -> Any:
    """Return `attention` with dropout by a key, from which backward draws the factors anew.

    Args:
        p: probability with which a weight is dropped.
        draw: the key, as in ``keyed_dropout``.
    """
    _check(query, key, value, attn_mask)
    return _dropped_attend(xp, query, key, value, attn_mask, p, draw, scale, is_causal)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return softmax(query·keyᵀ·scale + attn_mask)·value over the last two dimensions.

    Shape:
        query: ``(*, L, E)``, key: ``(*, S, E)``, value: ``(*, S, Ev)``, attn_mask: broadcasts to
        ``(*, L, S)``; result: ``(*, L, Ev)``.
    Args:
        attn_mask: bool, True where a query may look; or float, added to the logits.
        dropout_p: probability with which a weight is dropped; there is no training switch here.
        is_causal: query i sees keys 0 … i only.
        scale: 1 / √E by default.
        enable_gqa: key and value have fewer heads (third dimension from the end); each serves
            as many consecutive heads of query.
    Source:
        Vaswani et al., "Attention Is All You Need" (2017).
    """
    try:
        demand_floating(query.array)
    except DistgradError as error:
        operands = {"query": query, "key": key, "value": value}
        recover("scaled_dot_product_attention", error, operands, {})
    if scale is None:
        width = query.array.shape[-1] if query.ndim else 1
        scale = 1 / math.sqrt(width) if width else 1.0
    attn_mask = _checked_mask(query, attn_mask)
    shape = query.array.shape
    if enable_gqa:
        query, key, value, attn_mask = _grouped(query, key, value, attn_mask)
    out = _chosen(query, key, value, attn_mask, dropout_p, scale, is_causal)
    return reshape(out, (*shape[:-1], out.array.shape[-1])) if enable_gqa else out


def _chosen(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, p: float, scale: float,
    is_causal: bool,
) -> Tensor:  # fmt: skip
    """Return attention without dropout, or with it by a mask, or by a key where a device draws."""
    if not 0 <= p <= 1:
        raise ArgumentError(
            f"{signature('scaled_dot_product_attention', {'query': query}, {'dropout_p': p})}: "
            "dropout probability has to be between 0 and 1"
        )
    draw_from = array_namespace(query.array).kernels.get("draw_from") if p else None
    if draw_from is not None and not is_traced(query.array):
        draw = draw_from(current_generator())
        found = dropped_attention(query, key, value, mask, p, draw, scale, is_causal)
    else:
        keep = _factors(query, key, p) if p else None
        found = attention(query, key, value, mask, keep, scale, is_causal)
    out: Tensor = found[0]
    return out


def _checked_mask(query: Tensor, mask: Tensor | None) -> Tensor | None:
    if mask is None or mask.array.dtype == bool or mask.array.dtype == query.array.dtype:
        return mask
    if mask.array.dtype != "float32":
        raise DtypeError(
            f"{signature('attention', {'query': query, 'attn_mask': mask}, {})}: "
            "Expected attn_mask dtype to be bool or float or to match query dtype; convert it"
        )
    return to_dtype(mask, query.array.dtype)


def _grouped(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return query as (*, key heads, group, L, E), and the others with a group of 1."""
    heads, few = query.array.shape[-3], key.array.shape[-3]
    if few == 0 or heads % few or value.array.shape[-3] != few:
        named = {"query": query, "key": key, "value": value}
        raise ShapeError(
            f"{signature('scaled_dot_product_attention', named, {'enable_gqa': True})}: the number "
            f"of heads of key and value must be equal and divide that of query, {heads}"
        )
    group = heads // few

    def split(x: Tensor, inner: int) -> Tensor:
        shape = x.array.shape
        return reshape(x, (*shape[:-3], few if inner else 1, max(inner, 1), *shape[-2:]))

    if mask is not None and mask.ndim >= 3:
        mask = split(mask, 0 if mask.array.shape[-3] == 1 else group)
    return split(query, group), split(key, 1), split(value, 1), mask


def _factors(query: Tensor, key: Tensor, p: float) -> Tensor:
    """Return the factors 0 and 1 / (1 - p), drawn as PyTorch draws them."""
    lead = numpy.broadcast_shapes(query.array.shape[:-2], key.array.shape[:-2])
    square = (query.array.shape[-2], key.array.shape[-2])
    drawn = current_generator().bernoulli((*lead, *square), 1 - p)
    factors = drawn.astype(query.array.dtype)
    factors *= 1 / (1 - p) if p < 1 else 0
    return wrap(to_device(factors, query.device))
