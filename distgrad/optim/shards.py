"""Checkpoints of what is spread over ranks, written by all of them at once.

A folder holds ``rank00000.safetensors`` and so on, each with what one rank had of a model or of an
optimizer's state, and ``index.json``: which elements of which parameter are in which file, the
sha256 of the files, and names or the options of groups. Any number of ranks reads it, and so does
a model or an optimizer without sharding.
It is written under another name, flushed to the disk, and renamed when all ranks are done.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from distgrad.distributed.checkpoint.exchange import together
from distgrad.distributed.checkpoint.folder import new_token, put
from distgrad.distributed.redistribute import Ranges
from distgrad.distributed.work import HostArray
from distgrad.errors import CheckpointError
from distgrad.nn.module import Module
from distgrad.optim.holdings import holding_of
from distgrad.optim.optimizer import Optimizer
from distgrad.serialization.atomic import FilePath, atomic_path
from distgrad.serialization.safetensors import save_file
from distgrad.tensor import wrap

FORMAT = 1
_INDEX = "index.json"


def save_shards(owner: Optimizer | Module, folder: FilePath) -> None:
    """Write the state of an optimizer, or the values of a model; each rank writes what it has.

    Args:
        owner: with `ZeroRedundancyOptimizer`, or after `fully_shard`, all ranks call this; with
            another one rank does.
        folder: on a file system that all ranks see; replaced if it is there.

    Raises:
        CheckpointError: on all ranks, if one of them could not write; what was in ``folder`` is
            as it was.
    """
    holding = holding_of(owner)
    group, target = holding.group, Path(folder)
    part = target.with_name(f"{target.name}.tmp")
    head = f"save_shards({os.fspath(folder)!r})"

    def clear() -> None:
        if group.rank == 0:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)

    def write() -> tuple[str, str, dict[int, list[int]]]:
        ranges, entries = holding.ranges, holding.rows()
        name = f"rank{group.rank:05d}.safetensors"
        tensors = {f"{n}.{k}": wrap(a) for n, row in entries.items() for k, a in row.items()}
        save_file(tensors, part / name)
        kept = {n: [ranges[n].start, ranges[n].stop] for n in entries}
        return name, sha256(part / name), kept

    def finish() -> None:
        if group.rank == 0:
            index = {
                "format": FORMAT,
                "param_groups": holding.about(),
                "sizes": holding.sizes,
                "files": {name: {"sha256": d, "ranges": r} for name, d, r in files},
            }
            with atomic_path(part / _INDEX) as path:
                Path(path).write_text(json.dumps(index), "utf-8")
            put(part, target, new_token())

    together(group, head, clear)
    files = group.all_gather_object(together(group, head, write))
    together(group, head, finish)


def load_shards(owner: Optimizer | Module, folder: FilePath) -> None:
    """Give an optimizer or a model what `save_shards` wrote, from any number of ranks.

    Each rank reads the files that have what it needs, and checks their sums.

    Args:
        owner: with `ZeroRedundancyOptimizer`, or after `fully_shard`, all ranks call this; any
            other gets everything.
        folder: what was written.

    Raises:
        CheckpointError: on all ranks, if a file is missing or damaged for one of them, or belongs
            to other parameters.
    """
    holding, path = holding_of(owner), Path(folder)
    head = f"load_shards({os.fspath(folder)!r})"

    def read() -> tuple[list[dict[str, Any]], dict[int, dict[str, HostArray]]]:
        index = _index(path)
        sizes, about = holding.sizes, index["param_groups"]
        if index["sizes"] != sizes:
            raise CheckpointError(
                f"the parameters have {_short(index['sizes'])} elements there and {_short(sizes)} "
                "here; load it into the model it was saved from"
            )
        if about[0].get("names") != holding.about()[0].get("names"):
            raise CheckpointError(
                "has other names of parameters, or state where values are wanted; load it into "
                "what it was saved from"
            )
        return about, _collect(path, index["files"], holding.ranges)

    about, entries = together(holding.group, head, read)
    for options in about:
        for name, value in options.items():
            if isinstance(value, list) and name not in ("params", "param_names", "names"):
                options[name] = tuple(value)
    holding.take(about, entries)


def sha256(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------------- the disk
def _index(path: Path) -> dict[str, Any]:
    index: dict[str, Any] = json.loads((path / _INDEX).read_text("utf-8"))
    if index.get("format") != FORMAT:
        raise CheckpointError(f"has format {index.get('format')!r}, this version reads {FORMAT}")
    return index


def _collect(path: Path, files: dict[str, Any], want: Ranges) -> dict[int, dict[str, HostArray]]:
    """Return the state of the wanted ranges, put together from the files that have some of it."""
    from safetensors import safe_open  # takes 20 ms to import

    found: dict[int, dict[str, HostArray]] = {}
    for file, about in files.items():
        there = {int(n): slice(*ends) for n, ends in about["ranges"].items()}
        shared = {n: both for n in there.keys() & want.keys() if (both := _both(there[n], want[n]))}
        if not shared:
            continue
        if sha256(path / file) != about["sha256"]:
            raise CheckpointError(f"{file} is damaged, its sha256 is not the one in {_INDEX}")
        with safe_open(os.fspath(path / file), framework="numpy") as tensors:
            for key in tensors.keys():  # noqa: SIM118  (no mapping)
                number, _, name = key.partition(".")
                if int(number) in shared:
                    _take(found, tensors, key, int(number), name, there, want, shared)
    return found


def _take(
    found: dict[int, dict[str, HostArray]],
    tensors: Any,
    key: str,
    number: int,
    name: str,
    there: Ranges,
    want: Ranges,
    shared: Ranges,
) -> None:
    """Copy what is wanted of one tensor of a file."""
    row, both, first = found.setdefault(number, {}), shared[number], there[number].start
    piece = tensors.get_slice(key)
    if not piece.get_shape():
        row[name] = tensors.get_tensor(key)
        return
    part = piece[both.start - first : both.stop - first]
    if name not in row:
        row[name] = np.empty(want[number].stop - want[number].start, part.dtype)
    start = want[number].start
    row[name][both.start - start : both.stop - start] = part


def _both(a: slice, b: slice) -> slice | None:
    """Return what two slices share; two empty ones share an empty one."""
    start, stop = max(a.start, b.start), min(a.stop, b.stop)
    return slice(start, stop) if start < stop or a == b else None


def _short(sizes: list[int]) -> str:
    return str(sizes) if len(sizes) <= 8 else f"{str(sizes[:8])[:-1]}, ...]"
