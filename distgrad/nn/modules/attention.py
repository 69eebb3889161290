"""Attention of several heads, with learned projections."""

from __future__ import annotations

from typing import Any

from distgrad.errors import ArgumentError
from distgrad.nn import functional as F
from distgrad.nn import init
from distgrad.nn.module import Module
from distgrad.nn.modules.linear import NonDynamicallyQuantizableLinear
from distgrad.nn.parameter import Parameter
from distgrad.ops.create import empty
from distgrad.ops.shape import transpose
from distgrad.tensor import Tensor


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
        turned = self.batch_first and query.array.ndim == 3
        if turned:
            query, key, value = _length_first(query, key, value)
        out, weights = F.multi_head_attention_forward(
            query, key, value, self.embed_dim, self.num_heads, self.in_proj_weight,
            self.in_proj_bias, self.bias_k, self.bias_v, self.add_zero_attn, self.dropout,
            self.out_proj.weight, self.out_proj.bias, self.training, key_padding_mask,
            need_weights, attn_mask, not self._qkv_same_embed_dim, self.q_proj_weight,
            self.k_proj_weight, self.v_proj_weight, average_attn_weights=average_attn_weights,
            is_causal=is_causal,
        )  # fmt: skip
        return transpose(out, 0, 1) if turned else out, weights


def _length_first(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    """Return the three with the length first; the same tensor stays one, for one projection."""
    q = transpose(query, 0, 1)
    k = q if key is query else transpose(key, 0, 1)
    return q, k, k if value is key else transpose(value, 0, 1)
