"""What parallel training takes where it is told nothing: the ranks, and the number of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distgrad.distributed import get_group, init_process_group, is_initialized, local_group
from distgrad.distributed.env import world_from_env
from distgrad.distributed.group import ProcessGroup
from distgrad.tensor import Tensor


def default_group() -> ProcessGroup:
    """Return the default group: made under a launcher, a group of this process without one."""
    if is_initialized():
        return get_group()
    several = (world_from_env().size or 1) > 1
    return init_process_group() if several else local_group()


def samples_in(inputs: Sequence[Any], options: Mapping[str, Any], dim: int) -> int:
    """Return the length of the first tensor along ``dim``; 1 without a tensor."""
    for value in (*inputs, *options.values()):
        if isinstance(value, Tensor):
            return int(value.array.shape[dim]) if value.array.ndim > dim else 1
        if isinstance(value, list | tuple | dict):
            nested = value.values() if isinstance(value, dict) else value
            if any(isinstance(v, Tensor) for v in nested):
                return samples_in(tuple(nested), {}, dim)
    return 1
