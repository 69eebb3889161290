"""Attention of several heads with projections: the function behind ``nn.MultiheadAttention``.

Source: Vaswani et al., "Attention Is All You Need" (2017).
"""

from __future__ import annotations

import math
from typing import NamedTuple

from distgrad.autograd.declare import recover
from distgrad.backend.device import array_namespace
from distgrad.errors import DistgradError, DtypeError, ShapeError
from distgrad.ops.activation import softmax
from distgrad.ops.arrange import constant_pad_nd
from distgrad.ops.attention import scaled_dot_product_attention
from distgrad.ops.checks import is_floating
from distgrad.ops.dropout import dropout
from distgrad.ops.elementwise import add, mul
from distgrad.ops.join import cat, chunk
from distgrad.ops.matmul import linear, matmul
from distgrad.ops.reduce import mean
from distgrad.ops.shape import expand, permute, reshape, squeeze, transpose, unsqueeze
from distgrad.tensor import Tensor, wrap
from distgrad.typing import Shape

__all__ = ["multi_head_attention_forward"]


class _Projections(NamedTuple):
    """Weights of the three projections, together in one or each its own, and their bias."""

    together: Tensor | None
    each: tuple[Tensor | None, Tensor | None, Tensor | None]
    bias: Tensor | None


def multi_head_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return what ``nn.MultiheadAttention`` returns for these weights: the output, and the weights.

    Shape:
        query: ``(L, N, E)``, key: ``(S, N, Ek)``, value: ``(S, N, Ev)``, or all without N; result:
        ``(L, N, E)`` and ``(N, L, S)``.
    Args:
        embed_dim_to_check: E.
        bias_k, bias_v: one more key and value, ``(1, 1, E)``.
        add_zero_attn: add a key and a value of zeros.
        key_padding_mask: ``(N, S)``, True (or -inf) at keys to leave out.
        attn_mask: ``(L, S)`` or ``(N * num_heads, L, S)``, True at pairs to leave out, or added.
        use_separate_proj_weight: take the three weights instead of in_proj_weight.
        static_k, static_v: keys and values of the heads, ``(N * num_heads, S, E / num_heads)``.
        average_attn_weights: return the mean of the weights over the heads.
        is_causal: says that ``attn_mask`` is the causal mask.
    """
    operands = {"query": query, "key": key, "value": value}
    each = (q_proj_weight, k_proj_weight, v_proj_weight)
    together = None if use_separate_proj_weight else in_proj_weight
    single = query.ndim == 2
    try:
        _check(query, key, value, embed_dim_to_check, num_heads)
        if is_causal and attn_mask is None:
            raise ShapeError("Need attn_mask if specifying the is_causal hint; pass the mask too")
        q, k, v = _batch_first(query, key, value, single)
        heads = _project(q, k, v, _Projections(together, each, in_proj_bias), (bias_k, bias_v))
        q, k, v = (_split(t, num_heads) for t in heads)
        k, v = (_static(t, s, q) for t, s in ((k, static_k), (v, static_v)))
        if add_zero_attn:
            k, v = (constant_pad_nd(t, (0, 0, 0, 1)) for t in (k, v))
        more = (bias_k is not None) + add_zero_attn
        if key_padding_mask is not None and single:
            key_padding_mask = unsqueeze(key_padding_mask, 0)
        causal = is_causal and key_padding_mask is None and not need_weights
        mask = None if causal else _mask(q, k, attn_mask, key_padding_mask, more)
    except DistgradError as error:
        recover("multi_head_attention_forward", error, operands, {"num_heads": num_heads})
    drop = dropout_p if training else 0.0
    if need_weights:
        out, weights = _attend(q, k, v, mask, drop)
    else:
        out, weights = scaled_dot_product_attention(q, k, v, mask, drop, causal), None
    out = linear(_merge(out), out_proj_weight, out_proj_bias)
    if weights is not None and average_attn_weights:
        weights = mean(weights, 1)
    if single:
        return squeeze(out, 1), None if weights is None else squeeze(weights, 0)
    return out, weights


def _check(query: Tensor, key: Tensor, value: Tensor, width: int, heads: int) -> None:
    if query.ndim not in (2, 3) or not query.ndim == key.ndim == value.ndim:
        raise ShapeError("query, key and value should all be unbatched 2-D or batched 3-D tensors")
    if query.array.shape[-1] != width:
        raise ShapeError(
            f"was expecting embedding dimension of {width}, but got {query.array.shape[-1]}"
        )
    if heads <= 0 or width % heads:
        raise ShapeError(f"embed_dim {width} not divisible by num_heads {heads}")
    if key.array.shape[:-1] != value.array.shape[:-1]:
        raise ShapeError(
            f"key's sequence and batch dims {key.array.shape[:-1]} do not match value's "
            f"{value.array.shape[:-1]}"
        )


def _batch_first(
    query: Tensor, key: Tensor, value: Tensor, single: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three with the batch first; the same tensor stays one, for one projection."""

    def turned(x: Tensor) -> Tensor:
        return unsqueeze(x, 0) if single else transpose(x, 0, 1)

    q = turned(query)
    k = q if key is query else turned(key)
    return q, k, k if value is key else turned(value)


def _project(
    query: Tensor, key: Tensor, value: Tensor, by: _Projections, more: tuple[Tensor | None, ...]
) -> tuple[Tensor, ...]:
    """Return the projected (N, ·, E), with one key and value more where they are given."""
    if by.together is not None and query is key is value:
        parts = list(chunk(linear(query, by.together, by.bias), 3, -1))
    else:
        weights = by.each if by.together is None else chunk(by.together, 3)
        biases = (None, None, None) if by.bias is None else chunk(by.bias, 3)
        parts = []
        for x, w, b in zip((query, key, value), weights, biases, strict=True):
            if w is None:
                raise ShapeError("use_separate_proj_weight needs the three weights")
            parts.append(linear(x, w, b))
    for place, bias in enumerate(more, 1):
        if bias is not None:
            batch, _, width = parts[place].array.shape
            parts[place] = cat([parts[place], expand(bias, (batch, 1, width))], 1)
    return tuple(parts)


def _split(t: Tensor, heads: int) -> Tensor:
    """Return (N, heads, ·, E / heads)."""
    batch, length, width = t.array.shape
    return transpose(reshape(t, (batch, length, heads, width // heads)), 1, 2)


def _merge(t: Tensor) -> Tensor:
    """Return (·, N, E), in memory too: dropout draws in that order, and PyTorch's is this one."""
    batch, heads, length, width = t.array.shape
    return reshape(permute(t, (2, 0, 1, 3)), (length, batch, heads * width))


def _static(t: Tensor, given: Tensor | None, q: Tensor) -> Tensor:
    """Return ``given`` for the heads of ``t`` where there is one."""
    if given is None:
        return t
    batch, heads, _, width = q.array.shape
    shape = given.array.shape
    if len(shape) != 3 or (shape[0], shape[2]) != (batch * heads, width):
        raise ShapeError(
            f"expecting static keys and values of size ({batch * heads}, *, {width}), but got "
            f"{list(shape)}"
        )
    return reshape(given, (batch, heads, shape[1], width))


def _mask(
    q: Tensor, k: Tensor, attn: Tensor | None, padding: Tensor | None, more: int
) -> Tensor | None:
    """Return one mask (N or 1, heads or 1, L or 1, S) to add to the scores."""
    (n, heads, length, _), full = q.array.shape, k.array.shape[2]
    own = full - more
    if attn is not None:
        _demand(attn, "attn_mask", (length, own), (n * heads, length, own))
        lead: Shape = (1, 1) if attn.ndim == 2 else (n, heads)
        attn = reshape(_added(attn, q, more), (*lead, length, full))
    if padding is not None:
        _demand(padding, "key_padding_mask", (n, own))
        padding = reshape(_added(padding, q, more), (n, 1, 1, full))
    if attn is None or padding is None:
        return padding if attn is None else attn
    return add(attn, padding)


def _demand(mask: Tensor, name: str, *shapes: Shape) -> None:
    if mask.array.dtype != bool and not is_floating(mask.array):
        raise DtypeError(f"only bool and floating types of {name} are supported")
    if mask.array.shape not in shapes:
        wanted = " or ".join(map(str, shapes))
        raise ShapeError(f"The shape of the {name} should be {wanted}, but is {mask.array.shape}")


def _added(mask: Tensor, like: Tensor, more: int) -> Tensor:
    """Return a mask to add: minus infinity where a bool mask is True; ``more`` open keys."""
    if mask.array.dtype == bool:
        xp, dtype = array_namespace(mask.array), like.array.dtype
        mask = wrap(xp.where(mask.array, dtype.type(-math.inf), dtype.type(0)))
    return constant_pad_nd(mask, (0, more)) if more else mask


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, drop: float
) -> tuple[Tensor, Tensor]:
    """Return the attended values and the weights of every head."""
    scores = matmul(mul(q, math.sqrt(1.0 / q.array.shape[-1])), transpose(k, -2, -1))
    weights = softmax(scores if mask is None else add(scores, mask), -1)
    if drop > 0.0:
        weights = dropout(weights, drop)
    return matmul(weights, v), weights
