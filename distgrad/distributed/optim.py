"""Optimizers over many ranks, under PyTorch's name for the place; they live in `distgrad.optim`."""

from distgrad.optim.local_sgd import PostLocalSGDOptimizer
from distgrad.optim.shards import load_shards, save_shards
from distgrad.optim.zero import ZeroRedundancyOptimizer

__all__ = [
    "PostLocalSGDOptimizer",
    "ZeroRedundancyOptimizer",
    "load_shards",
    "save_shards",
]
