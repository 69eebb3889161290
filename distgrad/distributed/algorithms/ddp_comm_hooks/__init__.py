"""Communication hooks that are ready to use with ``register_comm_hook``."""

from __future__ import annotations

from distgrad.distributed.algorithms.ddp_comm_hooks import (
    default_hooks,
    powerSGD_hook,
    topk_hook,
)

__all__ = ["default_hooks", "powerSGD_hook", "topk_hook"]
