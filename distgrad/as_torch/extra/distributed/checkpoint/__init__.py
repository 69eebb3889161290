"""What only PyTorch's programs ask of distributed checkpoints; the rest is distgrad's own."""

from __future__ import annotations

from typing import Any

from distgrad.distributed.checkpoint import (
    DefaultLoadPlanner,
    DefaultSavePlanner,
    FileSystemReader,
    FileSystemWriter,
    Metadata,
    load,
    save,
)
from distgrad.distributed.group import ProcessGroup
from distgrad.errors import ArgumentError

__all__ = [
    "HuggingFaceStorageReader", "HuggingFaceStorageWriter", "LoadPlanner", "SavePlanner",
    "StorageReader", "StorageWriter", "load_state_dict", "save_state_dict",
]  # fmt: skip

StorageReader, StorageWriter = FileSystemReader, FileSystemWriter
LoadPlanner, SavePlanner = DefaultLoadPlanner, DefaultSavePlanner


class HuggingFaceStorageReader:
    """Reads the shards of a hub's models in PyTorch; here it cannot be made."""

    def __init__(self, *args: Any, **options: Any) -> None:
        raise ArgumentError(
            "torch.distributed.checkpoint: shards of a hub are read with "
            "distgrad.load_file or safetensors, one after the other"
        )


HuggingFaceStorageWriter = HuggingFaceStorageReader


def save_state_dict(
    state_dict: dict[str, Any],
    storage_writer: FileSystemWriter,
    process_group: ProcessGroup | None = None,
    coordinator_rank: int = 0,
    no_dist: bool = False,
    planner: DefaultSavePlanner | None = None,
) -> Metadata:
    """Write a state, as ``save`` does; rank 0 writes the index whatever ``coordinator_rank``."""
    return save(
        state_dict, storage_writer=storage_writer, process_group=process_group, no_dist=no_dist,
        planner=planner,
    )  # fmt: skip


def load_state_dict(
    state_dict: dict[str, Any],
    storage_reader: FileSystemReader,
    process_group: ProcessGroup | None = None,
    coordinator_rank: int = 0,
    no_dist: bool = False,
    planner: DefaultLoadPlanner | None = None,
) -> None:
    """Fill a state, as ``load`` does."""
    load(
        state_dict, storage_reader=storage_reader, process_group=process_group, no_dist=no_dist,
        planner=planner,
    )  # fmt: skip
