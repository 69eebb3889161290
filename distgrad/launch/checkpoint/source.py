"""Checkpoints of all formats, alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distgrad.distributed.checkpoint.loading import Checkpoint, opened
from distgrad.distributed.group import ProcessGroup
from distgrad.launch.checkpoint.first_format import LEAD, FirstFormat

Source = Checkpoint | FirstFormat


def source(path: Path) -> Source:
    """Return the checkpoint ``path``, open for reading."""
    return FirstFormat(path) if (path / LEAD).is_file() else Checkpoint(path)


@contextmanager
def shared_source(path: Path, group: ProcessGroup) -> Iterator[Source]:
    """Give a checkpoint that is whole, and the same one for all ranks; see `opened`.

    Ranks: all.
    """
    with opened(path, group, source) as found:
        yield found
