"""Parallel training of modules."""

from distgrad.nn.parallel.data_parallel import DataParallel, data_parallel
from distgrad.nn.parallel.distributed import DistributedDataParallel

__all__ = ["DataParallel", "DistributedDataParallel", "data_parallel"]
