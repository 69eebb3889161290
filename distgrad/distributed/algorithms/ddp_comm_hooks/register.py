"""The hooks by name."""

from __future__ import annotations

from enum import Enum
from typing import Any, Protocol

from distgrad.distributed.algorithms.ddp_comm_hooks import (
    debugging_hooks,
    default_hooks,
    quantization_hooks,
)
from distgrad.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import (
    PowerSGDState,
    batched_powerSGD_hook,
    powerSGD_hook,
)
from distgrad.distributed.comm_hooks import Hook

__all__ = ["DDPCommHookType", "register_ddp_comm_hook"]


class Hooked(Protocol):
    """What takes a hook: DistributedDataParallel."""

    def register_comm_hook(self, state: Any, hook: Hook) -> None:
        """Let ``hook(state, bucket)`` average each bucket."""


class DDPCommHookType(Enum):
    """Hooks to choose by name, on a command line for example.

    Example:
        >>> DDPCommHookType["FP16_COMPRESS"].value
        'fp16_compress'
    """

    ALLREDUCE = "allreduce"
    FP16_COMPRESS = "fp16_compress"
    BF16_COMPRESS = "bf16_compress"
    QUANTIZE_PER_TENSOR = "quantize_per_tensor"
    QUANTIZE_PER_CHANNEL = "quantize_per_channel"
    POWER_SGD = "power_sgd"
    POWER_SGD_RANK2 = "power_sgd_rank2"
    BATCHED_POWER_SGD = "batched_power_sgd"
    BATCHED_POWER_SGD_RANK2 = "batched_power_sgd_rank2"
    NOOP = "noop"


_HOOKS: dict[DDPCommHookType, Hook] = {
    DDPCommHookType.ALLREDUCE: default_hooks.allreduce_hook,
    DDPCommHookType.FP16_COMPRESS: default_hooks.fp16_compress_hook,
    DDPCommHookType.BF16_COMPRESS: default_hooks.bf16_compress_hook,
    DDPCommHookType.QUANTIZE_PER_TENSOR: quantization_hooks.quantization_pertensor_hook,
    DDPCommHookType.QUANTIZE_PER_CHANNEL: quantization_hooks.quantization_perchannel_hook,
    DDPCommHookType.NOOP: debugging_hooks.noop_hook,
}
_POWER: dict[DDPCommHookType, tuple[Hook, int]] = {
    DDPCommHookType.POWER_SGD: (powerSGD_hook, 1),
    DDPCommHookType.POWER_SGD_RANK2: (powerSGD_hook, 2),
    DDPCommHookType.BATCHED_POWER_SGD: (batched_powerSGD_hook, 1),
    DDPCommHookType.BATCHED_POWER_SGD_RANK2: (batched_powerSGD_hook, 2),
}


def register_ddp_comm_hook(
    comm_hook_type: DDPCommHookType, model: Hooked, state: Any = None
) -> None:
    """Register a hook that is named.

    Args:
        comm_hook_type: which one.
        model: a DistributedDataParallel.
        state: the process group of the hook; None is that of ``model``.
    """
    if comm_hook_type in _POWER:
        hook, rank = _POWER[comm_hook_type]
        model.register_comm_hook(PowerSGDState(state, rank), hook)
    else:
        model.register_comm_hook(state, _HOOKS[comm_hook_type])
