"""Scaled dot-product attention, fused.

Note [Attention]
    With S = scale·q·kᵀ + mask and E = exp(S − shift), the output is (E·v)·r, r = 1 / (row sums of
    E): normalising the output costs E·v's few columns, normalising E its many.  ``shift`` is the
    rows' maxima, or 0 where no exponential can overflow or vanish: two passes saved.  Backward needs
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

from distgrad.autograd.declare import op
from distgrad.autograd.samples import Spec, booleans, case, given, real
from distgrad.backend.device import array_namespace, to_device
from distgrad.backend.random import current_generator
from distgrad.errors import ArgumentError, DtypeError, ShapeError, signature
from distgrad.ops.shape import reshape, unsqueeze
from distgrad.tensor import Tensor, wrap
from distgrad.typing import Array, Namespace

__all__ = ["attention", "scaled_dot_product_attention"]

_ROWS = 128  # rows of a block of a long sequence
_SAFE = 60.0  # exp of less is far from overflow, in float32 and summed over any row


class _Rows(NamedTuple):
    """Exponentials of logits, and what turns them into probabilities."""

    exp: Array
    shift: Array | None
    inverse: Array


# ---------------------------------------------------------------------- softmax, unnormalised
@functools.lru_cache(maxsize=16)
def _lower_triangle(xp: Namespace, length: int, size: int, dtype: Any) -> Array:
    return xp.tril(xp.ones((length, size), dtype))


def _exponentials(xp: Namespace, q: Array, keys: Array, bias: Array | None, allowed: Any) -> _Rows:
    """Return exp(q·kᵀ + bias) where ``allowed``, 0 elsewhere, and 1 / its row sums."""
    s = xp.matmul(q, keys)
    if bias is not None:
        s += bias
    if s.size and float(s.max()) < _SAFE:
        xp.exp(s, out=s)
        if allowed is not None:
            s *= allowed
        sums = xp.matmul(s, xp.ones((s.shape[-1], 1), s.dtype))
        if float(sums.min()) > 1e-30:
            return _Rows(s, None, xp.reciprocal(sums, out=sums))
        s = xp.matmul(q, keys)
        if bias is not None:
            s += bias
    return _shifted(xp, s, allowed)


def _shifted(xp: Namespace, s: Array, allowed: Array | None) -> _Rows:
    """Return the same for any logits; a row with nothing allowed gets the sum 1 / 0 = 0."""
    if allowed is not None:
        s = xp.where(allowed != 0, s, xp.asarray(-xp.inf, s.dtype))
    top = xp.max(s, axis=-1, keepdims=True, initial=-xp.inf)
    top = xp.where(xp.isneginf(top), xp.zeros_like(top), top)
    with xp.errstate(invalid="ignore"):
        s -= top
    xp.exp(s, out=s)
    sums = xp.add.reduce(s, axis=-1, keepdims=True)
    return _Rows(s, top, xp.where(sums == 0, sums, 1 / xp.where(sums == 0, sums + 1, sums)))


# ---------------------------------------------------------------------- forward
def _allowed(
    xp: Namespace, mask: Array | None, causal: bool, length: int, size: int, dtype: Any
) -> Array | None:
    """Return 1 where a query may look and 0 elsewhere, None if everywhere."""
    lower = _lower_triangle(xp, length, size, dtype) if causal else None
    if mask is None or mask.dtype != bool:
        return lower
    chosen = mask.astype(dtype)
    return chosen if lower is None else chosen * lower


def _bias(mask: Array | None) -> Array | None:
    return None if mask is None or mask.dtype == bool else mask


def _forward(
    xp: Namespace, q: Array, k: Array, v: Array, mask: Any, keep: Any, scale: float, causal: bool
) -> tuple[Array, Array, Array, Array]:
    length, size = q.shape[-2], k.shape[-2]
    if length * size > xp.BLOCK // 2:
        return _long_forward(xp, q, k, v, mask, keep, scale, causal)
    allowed = _allowed(xp, mask, causal, length, size, q.dtype)
    e, _, inverse = _exponentials(xp, q * scale, xp.swapaxes(k, -1, -2), _bias(mask), allowed)
    kept = e if keep is None else e * keep
    out = _like(xp, q, (*kept.shape[:-1], v.shape[-1]), v)
    xp.matmul(kept, v, out=out)
    out *= inverse
    return out, e, xp.zeros(0, q.dtype), inverse


def _like(xp: Namespace, x: Array, shape: tuple[int, ...], *others: Array) -> Array:
    """Return an empty array of ``shape`` whose memory is ordered as that of ``x``.

    Heads that are a view of (batch, length, heads, width) are then a view again in the result.
    """
    lead = shape[:-2]
    if x.shape[:-2] == lead and all(o.shape[:-2] == lead for o in others):
        return xp.empty_like(x, shape=shape)
    return xp.empty(xp.broadcast_shapes(lead, *(o.shape[:-2] for o in others)) + shape[-2:], x.dtype)


def _long_forward(
    xp: Namespace, q: Array, k: Array, v: Array, mask: Any, keep: Any, scale: float, causal: bool
) -> tuple[Array, Array, Array, Array]:
    heads = _Heads(xp, q, k, v, mask, keep, scale, causal)
    out = _like(xp, q, (*heads.lead, q.shape[-2], v.shape[-1]), v)
    shift = xp.zeros((*heads.lead, q.shape[-2], 1), q.dtype)
    inverse = xp.empty_like(shift)
    for head, rows, columns in heads.blocks():
        e, top, inv = heads.exponentials(head, rows, columns)
        if top is not None:
            shift[head][rows] = top
        inverse[head][rows] = inv
        if keep is not None:
            e *= heads.keep[head][rows, columns]
        part = xp.matmul(e, heads.v[head][columns])
        part *= inv
        out[head][rows] = part
    return out, xp.zeros(0, q.dtype), shift, inverse


class _Heads:
    """A long attention as blocks: (head, rows, the columns that these rows may see)."""

    __slots__ = ("causal", "k", "keep", "lead", "mask", "q", "scale", "v", "xp")

    def __init__(
        self, xp: Namespace, q: Array, k: Array, v: Array, mask: Any, keep: Any, scale: float,
        causal: bool,
    ) -> None:  # fmt: skip
        self.xp, self.scale, self.causal = xp, scale, causal
        masks = [m.shape[:-2] for m in (mask, keep) if m is not None]
        self.lead = xp.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2], *masks)
        square = (q.shape[-2], k.shape[-2])
        self.q, self.k, self.v = (
            xp.broadcast_to(a, self.lead + a.shape[-2:]) for a in (q, k, v)
        )
        self.mask, self.keep = (
            None if a is None else xp.broadcast_to(a, self.lead + square) for a in (mask, keep)
        )

    def blocks(self) -> Iterator[tuple[tuple[int, ...], slice, slice]]:
        length, size = self.q.shape[-2], self.k.shape[-2]
        for head in self.xp.ndindex(*self.lead):
            for start in range(0, length, _ROWS):
                rows = slice(start, min(start + _ROWS, length))
                yield head, rows, slice(0, min(rows.stop, size) if self.causal else size)

    def exponentials(self, head: tuple[int, ...], rows: slice, columns: slice) -> _Rows:
        xp = self.xp
        allowed = None
        if self.causal:
            # The block's own part of the triangle: ones, and a triangle at its right end.
            lower = _lower_triangle(xp, rows.stop, columns.stop, self.q.dtype)
            allowed = lower[rows]
        bias = None
        if self.mask is not None:
            mask = self.mask[head][rows, columns]
            bias = _bias(mask)
            if bias is None:
                allowed = mask.astype(self.q.dtype) * (1 if allowed is None else allowed)
        return _exponentials(
            xp, self.q[head][rows] * self.scale, self.k[head][columns].T, bias, allowed
        )


# ---------------------------------------------------------------------- backward
def _backward(
    xp: Namespace,
    g: Array,
    needs: tuple[bool, ...],
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | None,
    keep: Array | None,
    scale: float,
    is_causal: bool,
    out: Array,
    weights: Array,
    shift: Array,
    inverse: Array,
) -> tuple[Array | None, ...]:
    """See Note [Attention]."""
    if not weights.size:
        heads = _Heads(xp, query, key, value, attn_mask, keep, scale, is_causal)
        return _long_backward(heads, g, needs[3], out, shift, inverse)
    scaled = g * inverse
    ds = xp.matmul(scaled, xp.swapaxes(value, -1, -2))
    if keep is not None:
        ds *= keep
    ds -= xp.row_dots(scaled, out)[..., None]
    ds *= weights
    kept = weights if keep is None else weights * keep
    dq = _product(xp, ds, key, query)
    dq *= scale
    dk = _product(xp, xp.swapaxes(ds, -1, -2), query, key)
    dk *= scale
    dv = _product(xp, xp.swapaxes(kept, -1, -2), scaled, value)
    return dq, dk, dv, ds if needs[3] else None


def _product(xp: Namespace, a: Array, b: Array, like: Array) -> Array:
    return xp.matmul(a, b, out=_like(xp, like, (*a.shape[:-1], b.shape[-1]), b))


def _long_backward(
    heads: _Heads, g: Array, mask_too: bool, out: Array, shift: Array, inverse: Array
) -> tuple[Array | None, ...]:
    xp, lead, scale = heads.xp, heads.lead, heads.scale
    dq, dk, dv = (xp.zeros_like(a) if a.strides[0] or not lead else xp.zeros(a.shape, a.dtype)
                  for a in (heads.q, heads.k, heads.v))  # fmt: skip
    square = (*lead, heads.q.shape[-2], heads.k.shape[-2])
    d_mask = xp.zeros(square, g.dtype) if mask_too else None
    for head, rows, columns in heads.blocks():
        e = heads.again(head, rows, columns, shift[head][rows])
        k, scaled = heads.k[head][columns], g[head][rows] * inverse[head][rows]
        ds = xp.matmul(scaled, heads.v[head][columns].T)
        kept = e
        if heads.keep is not None:
            keep = heads.keep[head][rows, columns]
            ds *= keep
            kept = e * keep
        ds -= xp.row_dots(scaled, out[head][rows])[:, None]
        ds *= e
        dv[head][columns] += xp.matmul(kept.T, scaled)
        dq[head][rows] = xp.matmul(ds, k)
        dk[head][columns] += xp.matmul(ds.T, heads.q[head][rows])
        if d_mask is not None:
            d_mask[head][rows, columns] = ds
    dq *= scale
    dk *= scale
    return dq, dk, dv, d_mask
