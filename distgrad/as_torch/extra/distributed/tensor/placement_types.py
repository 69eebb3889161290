"""The same names at another path of PyTorch's."""

from distgrad.as_torch.extra.distributed.tensor import (
    Partial,
    Placement,
    Replicate,
    Shard,
)

__all__ = ["Partial", "Placement", "Replicate", "Shard", "_StridedShard"]


class _StridedShard(Shard):
    """Cut along a dimension in steps; nothing here is."""
