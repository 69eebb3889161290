"""Fully sharded data parallelism, under PyTorch's name for the place; it lives in `distgrad.nn`."""

from distgrad.nn.parallel.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    FullyShardedDataParallel,
    MixedPrecisionPolicy,
    ModuleWrapPolicy,
    OffloadPolicy,
    ShardingStrategy,
    SpareParts,
    UnshardHandle,
    fully_shard,
    register_fsdp_forward_method,
    size_based_auto_wrap_policy,
    summon_full_params,
)
from distgrad.optim.parts import full_optim_state_dict, load_full_optim_state_dict
from distgrad.optim.shards import load_shards, save_shards

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
    "full_optim_state_dict",
    "fully_shard",
    "load_full_optim_state_dict",
    "load_shards",
    "register_fsdp_forward_method",
    "save_shards",
    "size_based_auto_wrap_policy",
    "summon_full_params",
]
