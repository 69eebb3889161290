"""``save``, ``async_save`` and ``load``: states that are spread over ranks, in one directory."""

from __future__ import annotations

import enum
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from distgrad.distributed.checkpoint.folder import INDEX, clean
from distgrad.distributed.checkpoint.index import Index
from distgrad.distributed.checkpoint.loading import Checkpoint, load_into
from distgrad.distributed.checkpoint.saving import Saver, save_once
from distgrad.distributed.checkpoint.storage import (
    DefaultLoadPlanner,
    DefaultSavePlanner,
    FilePath,
    FileSystemReader,
    FileSystemWriter,
)
from distgrad.distributed.default import default_group
from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.local import local_group
from distgrad.errors import ArgumentError, CheckpointError

CheckpointException = CheckpointError


class AsyncCheckpointerType(enum.Enum):
    """What writes meanwhile: here it is always a thread."""

    THREAD = "thread"
    PROCESS = "process"


def save(
    state_dict: dict[str, Any],
    *,
    checkpoint_id: FilePath | None = None,
    storage_writer: FileSystemWriter | None = None,
    planner: DefaultSavePlanner | None = None,
    process_group: ProcessGroup | None = None,
    no_dist: bool = False,
    use_collectives: bool = True,
) -> Index:
    """Write a state to a directory; each rank writes a part, and each element is written once.

    Args:
        state_dict: nested dicts, lists and tuples of tensors, of parts (`Shard`, as
            ``get_model_state_dict`` returns them), of objects with ``state_dict`` and
            ``load_state_dict``, and of numbers, texts and containers of them. A tensor whose key
            several ranks have is taken from one of them.
        checkpoint_id: the directory, on a file system that all ranks see; replaced when all is
            written.
        storage_writer: the same, as PyTorch's programs may say it.
        planner: a `DefaultSavePlanner` or None.
        process_group: the ranks; default is the default group, or this process alone.
        no_dist: this process alone saves.
        use_collectives: accepted.

    Returns:
        The index: what is in the checkpoint, and where.

    Raises:
        CheckpointError: on all ranks, if one of them could not write; what was there is as it was.

    Ranks: all. Differs from PyTorch: files are safetensors and JSON; nothing is pickled, so what
        is neither a tensor nor numbers, texts and containers is refused.

    Example:
        >>> import tempfile
        >>> import distgrad as dg
        >>> place = tempfile.mkdtemp() + "/first"
        >>> index = save({"weight": dg.ones(2), "step": 3}, checkpoint_id=place)
        >>> state = {"weight": dg.zeros(2), "step": 0}
        >>> load(state, checkpoint_id=place)
        >>> state
        {'weight': tensor([1., 1.]), 'step': 3}
    """
    target = _target("save", checkpoint_id, storage_writer)
    save_once(state_dict, target, _group(process_group, no_dist))
    with closing(Checkpoint(target)) as found:
        return found.index


def async_save(
    state_dict: dict[str, Any],
    *,
    checkpoint_id: FilePath | None = None,
    storage_writer: FileSystemWriter | None = None,
    planner: DefaultSavePlanner | None = None,
    process_group: ProcessGroup | None = None,
    async_checkpointer_type: AsyncCheckpointerType = AsyncCheckpointerType.THREAD,
    async_stager: None = None,
    no_dist: bool = False,
    use_collectives: bool = True,
) -> Future[Path]:
    """Copy a state to memory of the host, and write it while the program goes on.

    Args: as for `save`.
        async_checkpointer_type: accepted; a thread writes.
        async_stager: None only.

    Returns:
        What ``result()`` is asked of: the directory when it is complete, or the error. The next
        `async_save` of the group waits for this one, and raises its error.

    Ranks: all.
    """
    if async_stager is not None:
        raise ArgumentError("async_save(async_stager): copies are made here; leave it None")
    target = _target("async_save", checkpoint_id, storage_writer)
    group = _group(process_group, no_dist)
    saver = _savers.get(group)
    if saver is None:
        saver = _savers[group] = Saver(group)
    saver.wait()
    if group.rank == 0:
        clean(target.parent, f"{target.name}.")
    return saver.save(state_dict, target, background=True).future


def load(
    state_dict: dict[str, Any],
    *,
    checkpoint_id: FilePath | None = None,
    storage_reader: FileSystemReader | None = None,
    planner: DefaultLoadPlanner | None = None,
    process_group: ProcessGroup | None = None,
    no_dist: bool = False,
) -> None:
    """Fill a state, in place, from a directory that any number of ranks wrote.

    Args:
        state_dict: nested as what was saved. Tensors and parts get their values, other values are
            replaced, objects with ``load_state_dict`` get their state.
        checkpoint_id: the directory.
        storage_reader: the same, as PyTorch's programs may say it.
        planner: `DefaultLoadPlanner` with ``allow_partial_load=True`` leaves alone what the
            checkpoint does not have.
        process_group: the ranks; default is the default group, or this process alone.
        no_dist: this process alone loads.

    Raises:
        CheckpointError: on all ranks, before anything is changed: the checkpoint is damaged, makes
            no sense, or lacks something.

    Ranks: all. Cost: each file is read once for its sum, by one of the ranks, and each rank reads
        what it needs.
    """
    target = _target("load", checkpoint_id, storage_reader)
    partial = planner is not None and planner.allow_partial_load
    load_into(state_dict, target, _group(process_group, no_dist), partial)


def _target(
    call: str, given: FilePath | None, storage: FileSystemWriter | FileSystemReader | None
) -> Path:
    if given is None and storage is None:
        raise ArgumentError(f"{call}(): where? give checkpoint_id=DIRECTORY")
    if storage is not None and not isinstance(storage, FileSystemWriter | FileSystemReader):
        raise ArgumentError(
            f"{call}({type(storage).__name__}): takes a FileSystemWriter or FileSystemReader, or "
            "checkpoint_id=DIRECTORY"
        )
    path = storage.path if storage is not None and given is None else Path(given or "")
    keeps = isinstance(storage, FileSystemWriter) and not storage.overwrite
    if keeps and (path / INDEX).exists():
        raise CheckpointError(f"{call}({path}): there is a checkpoint, and overwrite is False")
    return path


def _group(given: ProcessGroup | None, alone: bool) -> ProcessGroup:
    if alone:
        return local_group()
    return given or default_group() or local_group()


_savers: WeakKeyDictionary[ProcessGroup, Saver] = WeakKeyDictionary()
