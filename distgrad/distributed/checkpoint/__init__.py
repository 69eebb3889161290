"""Checkpoints of what is spread over ranks, under PyTorch's name for the place.

A directory holds safetensors files, written by all ranks at once, and ``index.json``: which
elements of which tensor are in which file, the sums of the files, and all that is no tensor. Any
number of ranks reads it, whatever they share.
"""

from distgrad.distributed.checkpoint.api import (
    AsyncCheckpointerType,
    CheckpointException,
    async_save,
    load,
    save,
)
from distgrad.distributed.checkpoint.index import Index as Metadata
from distgrad.distributed.checkpoint.state import Shard, Stateful
from distgrad.distributed.checkpoint.storage import (
    DefaultLoadPlanner,
    DefaultSavePlanner,
    FileSystemReader,
    FileSystemWriter,
)

__all__ = [
    "AsyncCheckpointerType",
    "CheckpointException",
    "DefaultLoadPlanner",
    "DefaultSavePlanner",
    "FileSystemReader",
    "FileSystemWriter",
    "Metadata",
    "Shard",
    "Stateful",
    "async_save",
    "load",
    "save",
]
