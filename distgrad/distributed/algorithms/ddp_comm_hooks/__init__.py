"""Communication hooks that are ready to use with ``register_comm_hook``."""

from __future__ import annotations

from distgrad.distributed.algorithms.ddp_comm_hooks import (
    debugging_hooks,
    default_hooks,
    post_localSGD_hook,
    powerSGD_hook,
    quantization_hooks,
    topk_hook,
)
from distgrad.distributed.algorithms.ddp_comm_hooks.register import (
    DDPCommHookType,
    register_ddp_comm_hook,
)

__all__ = [
    "DDPCommHookType",
    "debugging_hooks",
    "default_hooks",
    "post_localSGD_hook",
    "powerSGD_hook",
    "quantization_hooks",
    "register_ddp_comm_hook",
    "topk_hook",
]
