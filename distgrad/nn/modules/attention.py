"""Attention of several heads, with learned projections."""

from __future__ import annotations

import math
from typing import Any

from distgrad.backend.device import array_namespace
from distgrad.errors import ArgumentError, ShapeError
from distgrad.nn import functional as F
from distgrad.nn import init
from distgrad.nn.module import Module
from distgrad.nn.modules.linear import NonDynamicallyQuantizableLinear
from distgrad.nn.parameter import Parameter
from distgrad.ops.create import empty, zeros
from distgrad.ops.elementwise import add, mul
from distgrad.ops.join import cat, chunk
from distgrad.ops.matmul import matmul
from distgrad.ops.reduce import mean
from distgrad.ops.shape import expand, reshape, squeeze, transpose, unsqueeze
from distgrad.tensor import Tensor, wrap


class MultiheadAttention(Module):
    """Attends from ``query`` to ``key`` and ``value`` with ``num_heads`` heads at once.

    Shape:
        query (L, N, E), key (S, N, Ek), value (S, N, Ev) -> (L, N, E), weights (N, L, S);
        without N for a single sample, N first with ``batch_first``

    Args:
        embed_dim: size E of the queries and the output.
        num_heads: number of heads; divides ``embed_dim``.
        dropout: probability with which attention weights are dropped in training.
        bias: learn biases of the projections.
        add_bias_kv: learn one more key and value.
        add_zero_attn: add a key and a value of zeros.
        kdim: size of the keys (default: ``embed_dim``).
        vdim: size of the values (default: ``embed_dim``).
        batch_first: the batch is the first dimension.
        device: where the parameters live.
        dtype: of the parameters.

    Source: Vaswani et al. 2017, "Attention is all you need".
    """

    in_proj_weight: Any  # a parameter, or None where keys or values have another size
    in_proj_bias: Any

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Draw the projections from Xavier's uniform distribution."""
        super().__init__()
        if embed_dim <= 0 or num_heads <= 0 or embed_dim % num_heads:
            raise ArgumentError(
                f"MultiheadAttention(embed_dim={embed_dim}, num_heads={num_heads}): embed_dim must "
                "be divisible by num_heads, and both greater than 0"
            )
        self.embed_dim, self.num_heads, self.dropout = embed_dim, num_heads, dropout
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self.batch_first, self.add_zero_attn = batch_first, add_zero_attn
        self.head_dim = embed_dim // num_heads
        self._qkv_same_embed_dim = self.kdim == self.vdim == embed_dim

        def new(*sizes: int) -> Parameter:
            return Parameter(empty(sizes, device=device, dtype=dtype))

        same = self._qkv_same_embed_dim
        if same:
            self.in_proj_weight = new(3 * embed_dim, embed_dim)
        for name, size in zip("qkv", (embed_dim, self.kdim, self.vdim), strict=True):
            made = None if same else new(embed_dim, size)
            self.register_parameter(f"{name}_proj_weight", made)
        if not same:
            self.register_parameter("in_proj_weight", None)
        self.register_parameter("in_proj_bias", new(3 * embed_dim) if bias else None)
        self.out_proj = NonDynamicallyQuantizableLinear(
            embed_dim, embed_dim, bias, device=device, dtype=dtype
        )
        self.bias_k = new(1, 1, embed_dim) if add_bias_kv else None
        self.bias_v = new(1, 1, embed_dim) if add_bias_kv else None
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        names = (
            ["in_proj_weight"] if self._qkv_same_embed_dim else [f"{n}_proj_weight" for n in "qkv"]
        )
        for name in names:
            init.xavier_uniform_(getattr(self, name))
        if self.in_proj_bias is not None and self.out_proj.bias is not None:
            init.zeros_(self.in_proj_bias)
            init.zeros_(self.out_proj.bias)
        if self.bias_k is not None and self.bias_v is not None:
            init.xavier_normal_(self.bias_k)
            init.xavier_normal_(self.bias_v)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attended values and, with ``need_weights``, the weights.

        Args:
            query: what attends.
            key: what is attended to.
            value: what is mixed.
            key_padding_mask: (N, S), True (or minus infinity) at keys to leave out.
            need_weights: return the weights too; False is faster.
            attn_mask: (L, S) or (N * num_heads, L, S), True at pairs to leave out, or added.
            average_attn_weights: return the mean of the weights over the heads.
            is_causal: says that ``attn_mask`` is the causal mask.
        """
        if is_causal and attn_mask is None:
            raise ArgumentError(
                "MultiheadAttention(is_causal=True): Need attn_mask if specifying the is_causal "
                "hint; pass the causal mask too"
            )
        batched = query.array.ndim == 3
        if not batched:
            query, key, value = (unsqueeze(t, 0) for t in (query, key, value))
            if key_padding_mask is not None:
                key_padding_mask = unsqueeze(key_padding_mask, 0)
        elif not self.batch_first:
            query, key, value = _batch_first(query, key, value)
        q, k, v = self._project(query, key, value)
        mask = self._mask(q, k, attn_mask, key_padding_mask)
        drop = self.dropout if self.training else 0.0
        if need_weights:
            out, weights = _attend(q, k, v, mask, drop)
        else:
            out, weights = F.scaled_dot_product_attention(q, k, v, mask, drop), None
        n, length = q.array.shape[0], q.array.shape[2]
        out = self.out_proj(reshape(transpose(out, 1, 2), (n, length, self.embed_dim)))
        if weights is not None and average_attn_weights:
            weights = mean(weights, 1)
        if not batched:
            return squeeze(out, 0), None if weights is None else squeeze(weights, 0)
        return out if self.batch_first else transpose(out, 0, 1), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Return the projected (N, heads, ·, head_dim), one key and value more where asked for."""
        bias = self.in_proj_bias
        if self._qkv_same_embed_dim and query is key is value:
            parts: Any = chunk(F.linear(query, self.in_proj_weight, bias), 3, -1)
        else:
            if self._qkv_same_embed_dim:
                weights = chunk(self.in_proj_weight, 3)
            else:
                weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            biases = (None, None, None) if bias is None else chunk(bias, 3)
            parts = [
                F.linear(x, w, b)
                for x, w, b in zip((query, key, value), weights, biases, strict=True)
            ]
        q, k, v = parts
        if self.bias_k is not None and self.bias_v is not None:
            n = k.array.shape[0]
            k = cat([k, expand(self.bias_k, (n, 1, self.embed_dim))], 1)
            v = cat([v, expand(self.bias_v, (n, 1, self.embed_dim))], 1)
        if self.add_zero_attn:
            n = k.array.shape[0]
            zero = zeros((n, 1, self.embed_dim), dtype=k.dtype, device=k.device)
            k, v = cat([k, zero], 1), cat([v, zero], 1)
        return tuple(self._heads(t) for t in (q, k, v))

    def _heads(self, t: Tensor) -> Tensor:
        n, length, _ = t.array.shape
        return transpose(reshape(t, (n, length, self.num_heads, self.head_dim)), 1, 2)

    def _mask(
        self, q: Tensor, k: Tensor, attn: Tensor | None, padding: Tensor | None
    ) -> Tensor | None:
        """Return one mask (N or 1, heads or 1, L or 1, S) to add to the scores."""
        (n, heads, length, _), full = q.array.shape, k.array.shape[2]
        own = full - (self.bias_k is not None) - self.add_zero_attn
        if attn is not None:
            if attn.array.shape not in ((length, own), (n * heads, length, own)):
                raise ShapeError(
                    f"MultiheadAttention(attn_mask: {attn._brief()}): The shape of the attn_mask "
                    f"should be {(length, own)} or {(n * heads, length, own)}"
                )
            lead = (1, 1) if attn.array.ndim == 2 else (n, heads)
            attn = reshape(_added(attn, q, full - own), (*lead, length, full))
        if padding is not None:
            if padding.array.shape != (n, own):
                raise ShapeError(
                    f"MultiheadAttention(key_padding_mask: {padding._brief()}): Expected "
                    f"key_padding_mask.shape to be {(n, own)}"
                )
            padding = reshape(_added(padding, q, full - own), (n, 1, 1, full))
        if attn is None or padding is None:
            return padding if attn is None else attn
        return add(attn, padding)


def _batch_first(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    """Return the three with the batch first; the same tensor stays one, for one projection."""
    q = transpose(query, 0, 1)
    k = q if key is query else transpose(key, 0, 1)
    return q, k, k if value is key else transpose(value, 0, 1)


def _added(mask: Tensor, like: Tensor, more: int) -> Tensor:
    """Return a mask to add: minus infinity where a bool mask is True; ``more`` open keys."""
    if mask.array.dtype == bool:
        xp, dtype = array_namespace(mask.array), like.array.dtype
        mask = wrap(xp.where(mask.array, dtype.type(-math.inf), dtype.type(0)))
    return F.pad(mask, (0, more)) if more else mask


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, drop: float
) -> tuple[Tensor, Tensor]:
    """Return the attended values and the weights of every head."""
    scores = matmul(mul(q, math.sqrt(1.0 / q.array.shape[-1])), transpose(k, -2, -1))
    weights = F.softmax(scores if mask is None else add(scores, mask), -1)
    if drop > 0.0:
        weights = F.dropout(weights, drop)
    return matmul(weights, v), weights
