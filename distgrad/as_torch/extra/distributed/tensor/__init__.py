"""Names of PyTorch's distributed tensors, which distgrad has not: a tensor is one process's."""

from __future__ import annotations

from typing import Any, NoReturn

from distgrad.errors import ArgumentError
from distgrad.tensor import Tensor

__all__ = [
    "DTensor", "Partial", "Placement", "Replicate", "Shard", "distribute_module",
    "distribute_tensor",
]  # fmt: skip


class DTensor(Tensor):
    """A tensor spread over a mesh; nothing here is one."""


class Placement:
    """How a distributed tensor lies along a dimension of a mesh."""


class Replicate(Placement):
    """Whole on every rank."""


class Shard(Placement):
    """Cut along ``dim``."""

    def __init__(self, dim: int) -> None:
        self.dim = dim


class Partial(Placement):
    """To be reduced by ``reduce_op``."""

    def __init__(self, reduce_op: str = "sum") -> None:
        self.reduce_op = reduce_op


def _refuse(*args: Any, **options: Any) -> NoReturn:
    """Raise: tensors are not spread over ranks here.

    Raises:
        ArgumentError: always.
    """
    raise ArgumentError(
        "distribute_tensor(): distgrad has no distributed tensors; use fully_shard, "
        "DistributedDataParallel or the collectives of torch.distributed"
    )


distribute_tensor = distribute_module = implicit_replication = _refuse
compute_local_shape_and_global_offset = _refuse
