"""Algorithms beside the collectives, by PyTorch's names.

Communication hooks, uneven inputs, averages of models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from distgrad.distributed.algorithms import join
from distgrad.distributed.algorithms.join import Join, Joinable, JoinHook
from distgrad.later import later

if TYPE_CHECKING:
    from distgrad.distributed.algorithms import ddp_comm_hooks, model_averaging

__all__ = ["Join", "JoinHook", "Joinable", "ddp_comm_hooks", "join", "model_averaging"]

__getattr__ = later(
    __name__, {name: f"{__name__}.{name}" for name in ("ddp_comm_hooks", "model_averaging")}
)
