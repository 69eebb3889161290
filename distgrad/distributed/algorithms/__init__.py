"""Algorithms beside the collectives, by PyTorch's names.

Communication hooks, uneven inputs, averages of models.
"""

from __future__ import annotations

from distgrad.distributed.algorithms import ddp_comm_hooks, join, model_averaging
from distgrad.distributed.algorithms.join import Join, Joinable, JoinHook

__all__ = ["Join", "JoinHook", "Joinable", "ddp_comm_hooks", "join", "model_averaging"]
