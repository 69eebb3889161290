"""Types that ``torch.utils.data.dataloader`` names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distgrad.utils.data import iterators

__all__ = [
    "_BaseDataLoaderIter", "_MultiProcessingDataLoaderIter", "_SingleProcessDataLoaderIter",
    "_collate_fn_t", "_worker_init_fn_t",
]  # fmt: skip

_BaseDataLoaderIter = iterators._Pass
_SingleProcessDataLoaderIter = iterators.DirectPass
_MultiProcessingDataLoaderIter = iterators.WorkersPass
_collate_fn_t = Callable[[list[Any]], Any]
_worker_init_fn_t = Callable[[int], None]
