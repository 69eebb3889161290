"""Modules whose parameters lie in parts on the ranks (ZeRO-3, FSDP)."""

from distgrad.nn.parallel.fsdp.fully_shard import (
    fully_shard,
    register_fsdp_forward_method,
    summon_full_params,
)
from distgrad.nn.parallel.fsdp.module import FSDPModule, UnshardHandle
from distgrad.nn.parallel.fsdp.policy import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy
from distgrad.nn.parallel.fsdp.spare import SpareParts
from distgrad.nn.parallel.fsdp.wrapper import (
    FullyShardedDataParallel,
    ModuleWrapPolicy,
    ShardingStrategy,
    size_based_auto_wrap_policy,
)

__all__ = [
    "CPUOffloadPolicy",
    "FSDPModule",
    "FullyShardedDataParallel",
    "MixedPrecisionPolicy",
    "ModuleWrapPolicy",
    "OffloadPolicy",
    "ShardingStrategy",
    "SpareParts",
    "UnshardHandle",
    "fully_shard",
    "register_fsdp_forward_method",
    "size_based_auto_wrap_policy",
    "summon_full_params",
]
