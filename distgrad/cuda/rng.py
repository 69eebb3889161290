"""Random numbers on GPUs.

A GPU makes its numbers by itself, with Philox, but each draw takes its key from the one stream of
the process: to seed or restore a GPU's stream is to do so with that one, once a GPU can be used.
"""

from __future__ import annotations

from collections.abc import Iterable

from distgrad.backend.device import cuda_device_count, is_cuda_available
from distgrad.backend.device import device as Device
from distgrad.ops import random
from distgrad.tensor import Tensor


def manual_seed(seed: int) -> None:
    """Start the random numbers from ``seed``; without a GPU it changes nothing, as in PyTorch."""
    if is_cuda_available():
        random.manual_seed(seed)


manual_seed_all = manual_seed


def seed() -> None:
    """Start the random numbers from a seed of the operating system, where there is a GPU."""
    if is_cuda_available():
        random.seed()


seed_all = seed


def initial_seed() -> int:
    """Return the seed that the random numbers started from."""
    return random.initial_seed()


def get_rng_state(device: Device | str | int = "cuda") -> Tensor:
    """Return the state of the random numbers."""
    return random.get_rng_state()


def get_rng_state_all() -> list[Tensor]:
    """Return the state of the random numbers, once for each GPU."""
    return [random.get_rng_state() for _ in range(cuda_device_count())]


def set_rng_state(new_state: Tensor, device: Device | str | int = "cuda") -> None:
    """Continue the random numbers from a state."""
    if is_cuda_available():
        random.set_rng_state(new_state)


def set_rng_state_all(new_states: Iterable[Tensor]) -> None:
    """Continue the random numbers from a state: the first of those given, where all are one."""
    for state in list(new_states)[:1]:
        set_rng_state(state)
