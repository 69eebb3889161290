"""Names of PyTorch's distributed checkpoints; distgrad saves state dicts and sharded states."""

from __future__ import annotations

from typing import Any, NoReturn

from distgrad.errors import ArgumentError

__all__ = [
    "FileSystemReader", "FileSystemWriter", "HuggingFaceStorageReader", "HuggingFaceStorageWriter",
    "async_save", "load", "save",
]  # fmt: skip

_SAYS = (
    "torch.distributed.checkpoint: distgrad does not write this format; use torch.save and "
    "torch.load on state dicts, which are whole on every rank, or distgrad.optim.save_shards"
)


class FileSystemReader:
    """Reads such checkpoints in PyTorch; here it cannot be made."""

    def __init__(self, *args: Any, **options: Any) -> None:
        raise ArgumentError(_SAYS)


FileSystemWriter = HuggingFaceStorageReader = HuggingFaceStorageWriter = FileSystemReader


def save(state_dict: Any, **options: Any) -> NoReturn:
    """Raise: the format is not written.

    Raises:
        ArgumentError: always.
    """
    raise ArgumentError(_SAYS)


async_save = load = save
