"""Reading checkpoints: everything is checked, and read, before anything is changed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from distgrad.backend.dtype import as_numpy
from distgrad.config import nearest
from distgrad.distributed.checkpoint.exchange import together
from distgrad.distributed.checkpoint.folder import Folder
from distgrad.distributed.checkpoint.index import (
    MOST_BYTES,
    Index,
    name_in_file,
    read_index,
)
from distgrad.distributed.checkpoint.state import Leaf, Shard, decoded, fill, leaves, restored
from distgrad.distributed.checkpoint.tensors import NAMES, TensorFile
from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.work import HostArray
from distgrad.errors import CheckpointError


class Checkpoint:
    """One checkpoint, open for reading.

    Args:
        path: its directory.

    Raises:
        CheckpointError: there is none, or its index makes no sense.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folder = Folder(path)
        self._files: dict[str, TensorFile] = {}
        try:
            text = self._folder.lead(MOST_BYTES)
            self.digest = hashlib.sha256(text).hexdigest()
            self.index: Index = read_index(text, "index.json")
            self._contents = self.index.contents()
        except BaseException:
            self.close()
            raise

    @property
    def files(self) -> list[str]:
        """The names of the files, the largest first."""
        files = self.index.files
        return sorted(files, key=lambda name: (-files[name].size, name))

    @property
    def world(self) -> int:
        """How many ranks wrote it."""
        return self.index.world

    def file(self, name: str) -> TensorFile:
        """Return a file of the checkpoint, compared with the index."""
        if name not in self._files:
            told = self.index.files[name]
            self._files[name] = TensorFile(self._folder, name, told, self._contents[name])
        return self._files[name]

    def verify(self, names: list[str] | None = None) -> None:
        """Raise unless these files, or all, are what the index says, to the last byte."""
        for name in self.index.files if names is None else names:
            self.file(name).verify()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all tensors."""
        return {key: entry.shape for key, entry in self.index.tensors.items()}

    def read(self, key: str, start: int = 0, stop: int | None = None) -> HostArray:
        """Return elements of a flat tensor."""
        entry = self.index.tensors.get(key)
        if entry is None:
            raise CheckpointError(f"it has no tensor {key!r}{nearest(key, self.index.tensors)}")
        last = entry.size if stop is None else stop
        found = np.empty(last - start, as_numpy(NAMES[entry.code]))
        for piece in entry.pieces:
            first, end = max(start, piece.start), min(last, piece.stop)
            if first < end:
                name = name_in_file(piece.file, key)
                values = self.file(piece.file).read(
                    name, entry.code, first - piece.start, end - first
                )
                found[first - start : end - start] = values
        return found

    def object(self, key: str) -> Any:
        """Return a value that is no tensor, or a value inside one.

        Raises:
            CheckpointError: there is none.
        """
        objects, lead = self.index.objects, key
        while lead and lead not in objects:
            lead = lead.rpartition("/")[0]
        value = decoded(objects[lead]) if lead else None
        for name in key[len(lead) + 1 :].split("/") if lead != key else ():
            if not isinstance(value, dict) or name not in value:
                raise CheckpointError(f"it has no value {key!r}{self._instead(key)}")
            value = value[name]
        return value

    def _instead(self, key: str) -> str:
        """Return what there is in place of a value that is not there."""
        if any(name.startswith(f"{key}/") for name in self.index.tensors):
            return (
                " but tensors in it, for which there are none here; states of optimizers that have "
                "made no step yet come from get_optimizer_state_dict()"
            )
        return nearest(key, self.index.objects)

    def close(self) -> None:
        """Close all files."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._folder.close()


S = TypeVar("S", bound="Source")
_verified: set[tuple[str, str]] = set()  # of this process: place and index


class Source(Protocol):
    """A checkpoint of any format, open for reading."""

    @property
    def path(self) -> Path:
        """Its directory."""

    @property
    def digest(self) -> str:
        """The sum of the file that says what is in the others."""

    @property
    def files(self) -> list[str]:
        """The names of the others, the largest first."""

    def verify(self, names: list[str] | None = None) -> None:
        """Raise unless these files, or all, have their sums."""

    def close(self) -> None:
        """Close all files."""


@contextmanager
def opened(path: Path, group: ProcessGroup, start: Callable[[Path], S]) -> Iterator[S]:
    """Give a checkpoint that all ranks see alike, with files that have their sums.

    Args:
        path: its directory.
        group: the ranks, which share out the reading for the sums; a program does so once.
        start: opens it.

    Raises:
        CheckpointError: on all ranks, if one finds something wrong.

    Ranks: all.
    """
    control, head = group.channel("control"), f"load({path})"
    mine: list[S] = []
    try:
        together(control, head, lambda: mine.append(start(path)))
        found = mine[0]
        _check_same(control, head, found.digest)
        known = (str(path.resolve()), found.digest)
        if known not in _verified:
            share = found.files[control.rank :: control.size]
            together(control, head, lambda: found.verify(share))
            _verified.add(known)
        yield found
    finally:
        for each in mine:
            each.close()


def _check_same(group: ProcessGroup, head: str, digest: str) -> None:
    """Raise on all ranks unless they read the same index."""
    if group.size == 1:
        return
    digests = group.all_gather_object(digest)
    other = [rank for rank, text in enumerate(digests) if text != digests[0]]
    if other:
        raise CheckpointError(
            f"{head}: rank {other[0]} finds another checkpoint there than rank 0; the directory "
            "must be on a file system that all hosts share"
        )


def load_into(
    state: dict[str, Any], path: Path, group: ProcessGroup, partial: bool = False
) -> None:
    """Fill ``state`` from a checkpoint, in place; nothing is changed if anything is wrong.

    Args:
        state: nested as what was saved: tensors and `Shard` are filled, other values replaced.
        path: the directory.
        group: the ranks.
        partial: leave alone what the checkpoint does not have.

    Raises:
        CheckpointError: on all ranks, if the checkpoint is damaged, or lacks something for one.

    Ranks: all.
    """
    with opened(path, group, Checkpoint) as found:
        staged: dict[str, Any] = {}

        def give(key: str, value: Any) -> Any:
            if key not in staged:
                return value
            if isinstance(value, Leaf):
                fill(value, staged[key])
                return value
            return staged[key]

        def stage_all() -> None:
            tensors, objects = found.index.tensors, found.index.objects
            for key, value in leaves(state, ""):
                optional = partial or (isinstance(value, dict) and not value)
                if not optional or key in tensors or key in objects:
                    staged[key] = wanted(found, key, value)

        together(group.channel("control"), f"load({path})", stage_all)
        restored(state, "", give)


def wanted(found: Checkpoint, key: str, value: Any) -> Any:
    """Return what goes into the place of ``value``.

    Raises:
        CheckpointError: there is none, or it has another shape.
    """
    tensors = found.index.tensors
    if not isinstance(value, Leaf):
        return found.object(key)
    if key not in tensors:
        raise CheckpointError(f"it has no tensor {key!r}{nearest(key, tensors)}")
    entry = tensors[key]
    shape = value.shape if isinstance(value, Shard) else tuple(value.array.shape)
    if entry.shape != tuple(shape):
        raise CheckpointError(
            f"{key!r} is {list(entry.shape)} there and {list(shape)} here; load it into what it "
            "was saved from"
        )
    if isinstance(value, Shard):
        return found.read(key, value.start, value.stop)
    return found.read(key)
