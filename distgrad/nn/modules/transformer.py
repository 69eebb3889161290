"""The Transformer: encoder and decoder layers, stacks of them, and the whole model.

Source: Vaswani et al. 2017, "Attention is all you need"; ``norm_first``: Xiong et al. 2020.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

from distgrad.backend.device import CPU, to_device
from distgrad.errors import ShapeError
from distgrad.nn import functional as F
from distgrad.nn import init
from distgrad.nn.module import Module
from distgrad.nn.modules.attention import MultiheadAttention
from distgrad.nn.modules.container import ModuleList
from distgrad.nn.modules.dropout import Dropout
from distgrad.nn.modules.linear import Linear
from distgrad.nn.modules.normalization import LayerNorm
from distgrad.nn.modules.pairs import activated
from distgrad.ops.arrange import triu
from distgrad.ops.create import full
from distgrad.ops.elementwise import add
from distgrad.tensor import Tensor

Activation = str | Callable[[Tensor], Tensor]


def _activation(named: Activation) -> Callable[[Tensor], Tensor]:
    if not isinstance(named, str):
        return named
    functions: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}
    found = functions.get(named)
    if found is None:
        raise ShapeError(f"activation should be relu/gelu, not {named}")
    return found


def _copies(module: Module, count: int) -> ModuleList:
    return ModuleList([copy.deepcopy(module) for _ in range(count)])


def _generate_square_subsequent_mask(sz: int, device: Any = None, dtype: Any = None) -> Tensor:
    """Return minus infinity where position i would look at a later one, and 0 elsewhere."""
    return triu(full((sz, sz), -math.inf, dtype=dtype, device=device), 1)


def _is_causal(mask: Tensor | None, said: bool | None, like: Tensor, batch_first: bool) -> bool:
    """Return whether ``mask`` is the causal one: what the caller said, or what it contains."""
    if said is not None or mask is None:
        return bool(said)
    size = like.array.shape[1 if batch_first and like.ndim == 3 else 0]
    if mask.array.shape != (size, size) or mask.array.dtype == bool:
        return False
    causal = _generate_square_subsequent_mask(size).array
    return bool((to_device(mask.array, CPU) == causal).all())


class _Layer(Module):
    """What encoder and decoder layers share: the two linear layers and the norms."""

    def _make(
        self,
        norms: int,
        d_model: int,
        dim_feedforward: int,
        dropout: float,
        activation: Activation,
        layer_norm_eps: float,
        norm_first: bool,
        bias: bool,
        device: Any,
        dtype: Any,
    ) -> None:
        self.linear1 = Linear(d_model, dim_feedforward, bias, device, dtype)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model, bias, device, dtype)
        self.norm_first = norm_first
        for k in range(1, norms + 1):
            norm = LayerNorm(d_model, layer_norm_eps, bias=bias, device=device, dtype=dtype)
            setattr(self, f"norm{k}", norm)
        for k in range(1, norms + 1):
            setattr(self, f"dropout{k}", Dropout(dropout))
        self.activation = _activation(activation)

    def __setstate__(self, saved: dict[str, Any]) -> None:
        super().__setstate__(saved)
        if "activation" not in self.__dict__ and "activation" not in self._modules:
            self.activation = F.relu

    def _attend(
        self,
        attention: MultiheadAttention,
        x: Tensor,
        memory: Tensor,
        attn_mask: Tensor | None,
        key_padding_mask: Tensor | None,
        is_causal: bool,
    ) -> Tensor:
        out, _ = attention(
            x, memory, memory, key_padding_mask=key_padding_mask, need_weights=False,
            attn_mask=attn_mask, is_causal=is_causal,
        )  # fmt: skip
        found: Tensor = out
        return found

    def _feed(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear2(self.dropout(activated(self.linear1, self.activation, x)))
        return out


class TransformerEncoderLayer(_Layer):
    """Self-attention and two linear layers, each added to its input and normalised.

    Shape:
        (S, N, E), or (N, S, E) with ``batch_first``, or (S, E) -> the same

    Args:
        d_model: size E.
        nhead: number of heads.
        dim_feedforward: size between the two linear layers.
        dropout: probability of dropout, in attention too.
        activation: between the linear layers: "relu", "gelu" or a function.
        layer_norm_eps: of the norms.
        batch_first: the batch is the first dimension.
        norm_first: normalise before attention and linear layers, not after.
        bias: learn biases, in the norms too.
        device: where the parameters live.
        dtype: of the parameters.
    """

    norm1: LayerNorm
    norm2: LayerNorm
    dropout1: Dropout
    dropout2: Dropout

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = F.relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Draw the parameters as their layers do."""
        super().__init__()
        self.self_attn = MultiheadAttention(
            d_model, nhead, dropout, bias, batch_first=batch_first, device=device, dtype=dtype
        )
        self._make(2, d_model, dim_feedforward, dropout, activation, layer_norm_eps, norm_first,
                   bias, device, dtype)  # fmt: skip

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Return the encoded sequence.

        Args:
            src: the sequence.
            src_mask: (S, S), True at pairs to leave out, or added to the scores.
            src_key_padding_mask: (N, S), True at positions that nothing looks at.
            is_causal: says that ``src_mask`` is the causal mask.
        """
        masks = (src_mask, src_key_padding_mask, is_causal)
        x = src
        if self.norm_first:
            x = add(x, self._sa_block(self.norm1(x), *masks))
            return add(x, self._ff_block(self.norm2(x)))
        x = self.norm1(add(x, self._sa_block(x, *masks)))
        out: Tensor = self.norm2(add(x, self._ff_block(x)))
        return out

    def _sa_block(
        self,
        x: Tensor,
        attn_mask: Tensor | None,
        key_padding_mask: Tensor | None,
        is_causal: bool = False,
    ) -> Tensor:
        out = self._attend(self.self_attn, x, x, attn_mask, key_padding_mask, is_causal)
        dropped: Tensor = self.dropout1(out)
        return dropped

    def _ff_block(self, x: Tensor) -> Tensor:
        out: Tensor = self.dropout2(self._feed(x))
        return out


class TransformerDecoderLayer(_Layer):
    """Self-attention, attention to a memory, and two linear layers, added and normalised.

    The arguments are those of ``TransformerEncoderLayer``.
    """

    norm1: LayerNorm
    norm2: LayerNorm
    norm3: LayerNorm
    dropout1: Dropout
    dropout2: Dropout
    dropout3: Dropout

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = F.relu,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Draw the parameters as their layers do."""
        super().__init__()
        for name in ("self_attn", "multihead_attn"):
            attention = MultiheadAttention(
                d_model, nhead, dropout, bias, batch_first=batch_first, device=device, dtype=dtype
            )
            setattr(self, name, attention)
        self._make(3, d_model, dim_feedforward, dropout, activation, layer_norm_eps, norm_first,
                   bias, device, dtype)  # fmt: skip

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """Return the decoded sequence.

        Args:
            tgt: the sequence to decode.
            memory: what the encoder returned.
            tgt_mask: (T, T), True at pairs to leave out, or added to the scores.
            memory_mask: (T, S), the same for the attention to ``memory``.
            tgt_key_padding_mask: (N, T), True at positions that nothing looks at.
            memory_key_padding_mask: (N, S), the same in ``memory``.
            tgt_is_causal: says that ``tgt_mask`` is the causal mask.
            memory_is_causal: says that ``memory_mask`` is the causal mask.
        """
        own = (tgt_mask, tgt_key_padding_mask, tgt_is_causal)
        other = (memory, memory_mask, memory_key_padding_mask, memory_is_causal)
        x = tgt
        if self.norm_first:
            x = add(x, self._sa_block(self.norm1(x), *own))
            x = add(x, self._mha_block(self.norm2(x), *other))
            return add(x, self._ff_block(self.norm3(x)))
        x = self.norm1(add(x, self._sa_block(x, *own)))
        x = self.norm2(add(x, self._mha_block(x, *other)))
        out: Tensor = self.norm3(add(x, self._ff_block(x)))
        return out

    def _sa_block(
        self,
        x: Tensor,
        attn_mask: Tensor | None,
        key_padding_mask: Tensor | None,
        is_causal: bool = False,
    ) -> Tensor:
        out = self._attend(self.self_attn, x, x, attn_mask, key_padding_mask, is_causal)
        dropped: Tensor = self.dropout1(out)
        return dropped

    def _mha_block(
        self,
        x: Tensor,
        mem: Tensor,
        attn_mask: Tensor | None,
        key_padding_mask: Tensor | None,
        is_causal: bool = False,
    ) -> Tensor:
        attention: Any = self.multihead_attn
        out = self._attend(attention, x, mem, attn_mask, key_padding_mask, is_causal)
        dropped: Tensor = self.dropout2(out)
        return dropped

    def _ff_block(self, x: Tensor) -> Tensor:
        out: Tensor = self.dropout3(self._feed(x))
        return out


class TransformerEncoder(Module):
    """A stack of copies of an encoder layer.

    Args:
        encoder_layer: what is copied.
        num_layers: how often.
        norm: applied at the end.
        enable_nested_tensor: taken for compatibility: padding is always computed.
        mask_check: taken for compatibility.

    Differs from PyTorch:
        In evaluation without gradients PyTorch may return zeros at padded positions.
    """

    def __init__(
        self,
        encoder_layer: TransformerEncoderLayer,
        num_layers: int,
        norm: Module | None = None,
        enable_nested_tensor: bool = True,
        mask_check: bool = True,
    ) -> None:
        """Copy the layer."""
        super().__init__()
        self.layers = _copies(encoder_layer, num_layers)
        self.num_layers, self.norm = num_layers, norm
        self.enable_nested_tensor, self.mask_check = enable_nested_tensor, mask_check

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """Return the sequence after all layers; arguments as those of a layer.

        ``is_causal`` None: whether the mask is causal is read from it.
        """
        batch_first = getattr(getattr(self.layers[0], "self_attn", None), "batch_first", False)
        causal = _is_causal(mask, is_causal, src, batch_first)
        out = src
        for layer in self.layers:
            out = layer(
                out, src_mask=mask, is_causal=causal, src_key_padding_mask=src_key_padding_mask
            )
        return out if self.norm is None else self.norm(out)


class TransformerDecoder(Module):
    """A stack of copies of a decoder layer.

    Args:
        decoder_layer: what is copied.
        num_layers: how often.
        norm: applied at the end.
    """

    def __init__(
        self,
        decoder_layer: TransformerDecoderLayer,
        num_layers: int,
        norm: Module | None = None,
    ) -> None:
        """Copy the layer."""
        super().__init__()
        self.layers = _copies(decoder_layer, num_layers)
        self.num_layers, self.norm = num_layers, norm

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """Return the sequence after all layers; arguments as those of a layer."""
        batch_first = getattr(getattr(self.layers[0], "self_attn", None), "batch_first", False)
        causal = _is_causal(tgt_mask, tgt_is_causal, tgt, batch_first)
        out = tgt
        for layer in self.layers:
            out = layer(
                out, memory, tgt_mask=tgt_mask, memory_mask=memory_mask,
                tgt_key_padding_mask=tgt_key_padding_mask,
                memory_key_padding_mask=memory_key_padding_mask, tgt_is_causal=causal,
                memory_is_causal=memory_is_causal,
            )  # fmt: skip
        return out if self.norm is None else self.norm(out)


class Transformer(Module):
    """An encoder and a decoder.

    Args:
        d_model: size E of all positions.
        nhead: number of heads.
        num_encoder_layers: layers of the encoder.
        num_decoder_layers: layers of the decoder.
        dim_feedforward: size between the two linear layers of a layer.
        dropout: probability of dropout.
        activation: "relu", "gelu" or a function.
        custom_encoder: takes the place of the encoder.
        custom_decoder: takes the place of the decoder.
        layer_norm_eps: of the norms.
        batch_first: the batch is the first dimension.
        norm_first: normalise before attention and linear layers, not after.
        bias: learn biases.
        device: where the parameters live.
        dtype: of the parameters.

    Example:
        >>> import distgrad as dg
        >>> model = Transformer(8, 2, 1, 1, 16)
        >>> model(dg.ones(5, 3, 8), dg.ones(4, 3, 8)).shape
        distgrad.Size([4, 3, 8])
    """

    def __init__(
        self,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: Activation = F.relu,
        custom_encoder: Any | None = None,
        custom_decoder: Any | None = None,
        layer_norm_eps: float = 1e-5,
        batch_first: bool = False,
        norm_first: bool = False,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Draw all matrices from Xavier's uniform distribution."""
        super().__init__()

        def norm() -> LayerNorm:
            return LayerNorm(d_model, layer_norm_eps, bias=bias, device=device, dtype=dtype)

        options = (
            d_model, nhead, dim_feedforward, dropout, activation, layer_norm_eps, batch_first,
            norm_first, bias, device, dtype,
        )  # fmt: skip
        if custom_encoder is not None:
            self.encoder = custom_encoder
        else:
            one = TransformerEncoderLayer(*options)
            self.encoder = TransformerEncoder(one, num_encoder_layers, norm())
        if custom_decoder is not None:
            self.decoder = custom_decoder
        else:
            other = TransformerDecoderLayer(*options)
            self.decoder = TransformerDecoder(other, num_decoder_layers, norm())
        self._reset_parameters()
        self.d_model, self.nhead, self.batch_first = d_model, nhead, batch_first

    def forward(
        self,
        src: Tensor,
        tgt: Tensor,
        src_mask: Tensor | None = None,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        src_is_causal: bool | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """Return ``tgt`` decoded from the encoded ``src``; masks as those of the layers."""
        self._check(src, tgt)
        memory = self.encoder(
            src, mask=src_mask, src_key_padding_mask=src_key_padding_mask, is_causal=src_is_causal
        )
        out: Tensor = self.decoder(
            tgt, memory, tgt_mask=tgt_mask, memory_mask=memory_mask,
            tgt_key_padding_mask=tgt_key_padding_mask,
            memory_key_padding_mask=memory_key_padding_mask, tgt_is_causal=tgt_is_causal,
            memory_is_causal=memory_is_causal,
        )  # fmt: skip
        return out

    def _check(self, src: Tensor, tgt: Tensor) -> None:
        dim = 0 if self.batch_first else 1
        problem = ""
        if src.ndim == 3 and src.array.shape[dim] != tgt.array.shape[dim]:
            problem = "the batch number of src and tgt must be equal"
        elif not src.array.shape[-1] == tgt.array.shape[-1] == self.d_model:
            problem = "the feature number of src and tgt must be equal to d_model"
        if problem:
            raise ShapeError(f"Transformer(src: {src._brief()}, tgt: {tgt._brief()}): {problem}")

    @staticmethod
    def generate_square_subsequent_mask(sz: int, device: Any = None, dtype: Any = None) -> Tensor:
        """Return minus infinity where position i would look at a later one, and 0 elsewhere.

        Example:
            >>> Transformer.generate_square_subsequent_mask(2)
            tensor([[0., -inf],
                    [0., 0.]])
        """
        return _generate_square_subsequent_mask(sz, device, dtype)

    def _reset_parameters(self) -> None:
        for param in self.parameters():
            if param.ndim > 1:
                init.xavier_uniform_(param)
