"""Attention with scores changed by a function, and masks given as functions.

The functions are called once, with index tensors that broadcast to (batch, heads, queries, keys).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from distgrad.errors import ArgumentError, ShapeError
from distgrad.ops.compare import where
from distgrad.ops.create import full, ones
from distgrad.ops.elementwise import exp
from distgrad.ops.matmul import matmul
from distgrad.ops.ranges import arange
from distgrad.ops.reduce import amax, logsumexp
from distgrad.ops.shape import expand, mT, reshape
from distgrad.tensor import Tensor

__all__ = [
    "AuxOutput",
    "AuxRequest",
    "BlockMask",
    "and_masks",
    "create_block_mask",
    "create_mask",
    "flex_attention",
    "noop_mask",
    "or_masks",
]

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Any]
ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Any]


class AuxRequest(NamedTuple):
    """What ``flex_attention`` returns besides its output."""

    lse: bool = False
    max_scores: bool = False


class AuxOutput(NamedTuple):
    """What was asked for by an ``AuxRequest``."""

    lse: Tensor | None = None
    max_scores: Tensor | None = None


def noop_mask(batch: Tensor, head: Tensor, token_q: Tensor, token_kv: Tensor) -> Tensor:
    """Return True: every query sees every key."""
    return ones((), dtype=bool, device=batch.device)


def _joined(masks: tuple[MaskMod, ...], both: Callable[[Any, Any], Any], start: bool) -> MaskMod:
    if not all(callable(mask) for mask in masks):
        raise ShapeError(f"All inputs should be callable mask_mods: {masks}")

    def joined(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Any:
        result: Any = full((), start, dtype=bool, device=b.device)
        for mask in masks:
            result = both(result, mask(b, h, q, kv))
        return result

    return joined


def and_masks(*mask_mods: MaskMod) -> MaskMod:
    """Return the mask that allows what all of them allow."""
    return _joined(mask_mods, lambda a, b: a & b, True)


def or_masks(*mask_mods: MaskMod) -> MaskMod:
    """Return the mask that allows what any of them allows."""
    return _joined(mask_mods, lambda a, b: a | b, False)


def _indices(sizes: tuple[int, int, int, int], device: Any) -> list[Tensor]:
    """Return the numbers of batch, head, query and key, each along its own dimension."""
    shapes = [tuple(-1 if d == k else 1 for d in range(4)) for k in range(4)]
    return [
        reshape(arange(n, device=device), shape) for n, shape in zip(sizes, shapes, strict=True)
    ]


def create_mask(
    mod_fn: MaskMod,
    B: int | None,
    H: int | None,
    Q_LEN: int,
    KV_LEN: int,
    device: Any = None,
) -> Tensor:
    """Return the bool mask (B, H, Q_LEN, KV_LEN) that a function of the indices gives.

    Example:
        >>> create_mask(lambda b, h, q, kv: q >= kv, None, None, 2, 2).tolist()
        [[[[True, False], [True, True]]]]
    """
    sizes = (B or 1, H or 1, Q_LEN, KV_LEN)
    return expand(mod_fn(*_indices(sizes, device)), sizes)


class BlockMask:
    """A mask as a function of indices, with its sizes; blocks of it are only counted.

    Args:
        mask_mod: the function.
        sizes: batch, heads, queries and keys.
        BLOCK_SIZE: queries and keys of a block.
        device: where the indices live.
    """

    def __init__(
        self,
        mask_mod: MaskMod,
        sizes: tuple[int, int, int, int],
        BLOCK_SIZE: tuple[int, int] = (128, 128),
        device: Any = None,
    ) -> None:
        """Keep the function."""
        self.mask_mod, self.BLOCK_SIZE = mask_mod, BLOCK_SIZE
        self.seq_lengths = sizes[2:]
        self._sizes, self._device = sizes, device

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Batch, heads, queries and keys."""
        return self._sizes

    def numel(self) -> int:
        """Return the number of pairs."""
        return math.prod(self._sizes)

    def to_dense(self) -> Any:
        """Return 1 for each block that allows a pair, 0 for the others."""
        mask: Any = create_mask(self.mask_mod, *self._sizes, device=self._device)
        batch, heads, rows, columns = self._sizes
        high, wide = self.BLOCK_SIZE
        padded: Any = full((batch, heads, -(-rows // high) * high, -(-columns // wide) * wide),
                           False, dtype=bool, device=self._device)  # fmt: skip
        padded[:, :, :rows, :columns] = mask
        blocks = padded.reshape(batch, heads, -1, high, padded.shape[-1] // wide, wide)
        return blocks.any(-1).any(-2).int()

    def sparsity(self) -> float:
        """Return which percentage of the blocks is empty."""
        blocks = self.to_dense()
        return 100.0 * (1.0 - float(blocks.double().mean()))

    def __repr__(self) -> str:
        return f"BlockMask(shape={self._sizes}, sparsity={self.sparsity():.2f}%)"


def create_block_mask(
    mask_mod: MaskMod,
    B: int | None,
    H: int | None,
    Q_LEN: int,
    KV_LEN: int,
    device: Any = None,
    BLOCK_SIZE: int | tuple[int, int] = 128,
) -> BlockMask:
    """Return the mask as ``flex_attention`` takes it.

    Args:
        mask_mod: takes the numbers of batch, head, query and key; True where the query may look.
        B: size of the batch; None: the same for all.
        H: number of heads; None: the same for all.
        Q_LEN: number of queries.
        KV_LEN: number of keys.
        device: where the indices live.
        BLOCK_SIZE: of the blocks that are counted.
    """
    block = (BLOCK_SIZE, BLOCK_SIZE) if isinstance(BLOCK_SIZE, int) else BLOCK_SIZE
    return BlockMask(mask_mod, (B or 1, H or 1, Q_LEN, KV_LEN), block, device)


def _check(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> None:
    heads, few = query.array.shape[1], key.array.shape[1]
    problem = ""
    if not query.ndim == key.ndim == value.ndim == 4:
        problem = "Expected query, key and value to be 4D tensors"
    elif heads != few and not enable_gqa:
        problem = (
            f"Expect query and key/value to have the same number of heads but got Hq={heads} and "
            f"Hkv={few}. Try setting enable_gqa=True for GQA."
        )
    elif heads % few:
        problem = f"Expect number of query heads to be a multiple of kv heads, got {heads}, {few}"
    if problem:
        raise ArgumentError(
            f"flex_attention(query: {query._brief()}, key: {key._brief()}): {problem}"
        )


def flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: ScoreMod | None = None,
    block_mask: BlockMask | None = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    kernel_options: dict[str, Any] | None = None,
    *,
    return_aux: AuxRequest | None = None,
) -> Any:
    """Return softmax(score_mod(scale query·keyᵀ))·value where ``block_mask`` allows.

    Shape:
        query (B, H, L, E), key (B, Hkv, S, E), value (B, Hkv, S, Ev) -> (B, H, L, Ev)

    Args:
        query: what attends.
        key: what is attended to.
        value: what is mixed.
        score_mod: takes scores and the numbers of batch, head, query and key; returns scores.
        block_mask: where queries may look.
        scale: 1 / √E by default.
        enable_gqa: each head of key and value serves as many heads of query.
        return_lse: return the logarithm of the sums of exponentials too.
        kernel_options: taken for compatibility.
        return_aux: what else to return.
    """
    _check(query, key, value, enable_gqa)
    groups = query.array.shape[1] // key.array.shape[1]
    if groups > 1:
        key, value = (t.repeat_interleave(groups, 1) for t in (key, value))
    factor = 1.0 / math.sqrt(query.array.shape[-1]) if scale is None else scale
    scores: Any = matmul(query, mT(key)) * factor
    places = _indices(scores.array.shape, query.device)
    if score_mod is not None:
        scores = score_mod(scores, *places).to(query.dtype)
    if block_mask is not None:
        scores = where(block_mask.mask_mod(*places), scores, -math.inf)
    lse: Any = logsumexp(scores, -1, True)
    open_ = lse != -math.inf
    weights = where(open_, exp(scores - where(open_, lse, 0.0)), 0.0)
    out = matmul(weights, value)
    if return_aux is not None:
        aux = AuxOutput(
            lse.squeeze(-1) if return_aux.lse else None,
            amax(scores, -1) if return_aux.max_scores else None,
        )
        return out, aux
    return (out, lse.squeeze(-1)) if return_lse else out
