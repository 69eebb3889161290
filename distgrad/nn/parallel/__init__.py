"""Parallel training of modules."""

from distgrad.nn.parallel.distributed import DistributedDataParallel

__all__ = ["DistributedDataParallel"]
