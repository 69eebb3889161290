"""Where checkpoints are, and the names of PyTorch's for it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from distgrad.distributed.checkpoint.folder import INDEX
from distgrad.distributed.checkpoint.index import Index
from distgrad.distributed.checkpoint.loading import Checkpoint
from distgrad.errors import ArgumentError

FilePath = str | os.PathLike[str]


class FileSystemWriter:
    """A directory to write a checkpoint to.

    Args:
        path: the directory; on a file system that all ranks see.
        single_file_per_rank, sync_files, thread_count, per_thread_copy_ahead,
            cache_staged_state_dict, serialization_format: accepted; a rank writes one safetensors
            file for each of the dicts in the state, waits until they are on the disk, and keeps the
            memory for copies where it saves again.
        overwrite: False refuses a directory that holds a checkpoint.
        _extensions: None only.
    """

    def __init__(
        self,
        path: FilePath,
        single_file_per_rank: bool = True,
        sync_files: bool = True,
        thread_count: int = 1,
        per_thread_copy_ahead: int = 10_000_000,
        cache_staged_state_dict: bool = False,
        overwrite: bool = True,
        _extensions: Sequence[Any] | None = None,
        serialization_format: Any = None,
    ) -> None:
        if _extensions:
            raise ArgumentError("FileSystemWriter(_extensions): bytes are written as they are")
        self.path, self.overwrite = Path(path), overwrite

    @property
    def checkpoint_id(self) -> Path:
        """The directory."""
        return self.path

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: FilePath) -> bool:
        """Return whether this is the path of a directory that can be made."""
        path = Path(checkpoint_id)
        return path.exists() or path.parent.exists()


class FileSystemReader:
    """A directory to read a checkpoint from.

    Args:
        path: the directory.
        _extension_registry: None only.
    """

    def __init__(self, path: FilePath, _extension_registry: Any = None) -> None:
        if _extension_registry is not None:
            raise ArgumentError("FileSystemReader(_extension_registry): bytes are read as they are")
        self.path = Path(path)

    @property
    def checkpoint_id(self) -> Path:
        """The directory."""
        return self.path

    def read_metadata(self) -> Index:
        """Return the index: what is in the checkpoint, and where."""
        with closing(Checkpoint(self.path)) as found:
            return found.index

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: FilePath) -> bool:
        """Return whether there is a checkpoint."""
        return (Path(checkpoint_id) / INDEX).is_file()


class DefaultSavePlanner:
    """What PyTorch's programs may say about saving; each element is written once in any case.

    Args:
        flatten_state_dict, flatten_sharded_tensors, dedup_replicated_tensors,
            dedup_save_to_lowest_rank, enable_plan_caching: accepted.
    """

    def __init__(
        self,
        flatten_state_dict: bool = True,
        flatten_sharded_tensors: bool = True,
        dedup_replicated_tensors: bool | None = None,
        dedup_save_to_lowest_rank: bool = False,
        enable_plan_caching: bool = False,
    ) -> None:
        pass


class DefaultLoadPlanner:
    """What PyTorch's programs may say about loading.

    Args:
        flatten_state_dict, flatten_sharded_tensors: accepted.
        allow_partial_load: leave alone what the checkpoint does not have.
    """

    def __init__(
        self,
        flatten_state_dict: bool = True,
        flatten_sharded_tensors: bool = True,
        allow_partial_load: bool = False,
    ) -> None:
        self.allow_partial_load = allow_partial_load
