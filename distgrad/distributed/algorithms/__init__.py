"""Algorithms beside the collectives: communication hooks and uneven inputs, by PyTorch's names."""

from __future__ import annotations

from distgrad.distributed.algorithms import ddp_comm_hooks, join
from distgrad.distributed.algorithms.join import Join, Joinable, JoinHook

__all__ = ["Join", "JoinHook", "Joinable", "ddp_comm_hooks", "join"]
