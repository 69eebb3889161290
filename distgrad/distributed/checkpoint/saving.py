"""Writing checkpoints: by all ranks at once, beside training, complete or not at all.

Note [Two phases]: each rank writes its files and waits until they are on the disk. Then the ranks
tell each other whether all went well, and rank 0 writes the index and gives the directory its name.
A rank that cannot write makes the checkpoint fail on all ranks, and the ones before stay.

Note [Beside training]: `Saver.save` copies what is to be written to memory of the host that it
keeps, and returns; a thread of each rank writes. There is one checkpoint on its way at a time: the
next `save` waits for it, and raises what went wrong.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from distgrad.backend.device import CPU, to_device
from distgrad.distributed.checkpoint import tensors as tensor_files
from distgrad.distributed.checkpoint.exchange import (
    raise_first,
    reason,
    together,
    told_by_all,
)
from distgrad.distributed.checkpoint.folder import (
    INDEX,
    Sum,
    clean,
    drop,
    new_token,
    put,
    temporary,
    write_file,
)
from distgrad.distributed.checkpoint.index import Entry, Index, Piece, name_in_file
from distgrad.distributed.checkpoint.plan import Manifest, Plan, manifest, planned
from distgrad.distributed.checkpoint.state import Leaf, Shard, taken_apart
from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.work import HostArray
from distgrad.errors import CheckpointError

Done = Callable[[Index], None]
_SAME, _CHANGED, _FAILED = 0, 1, 2
_EXIT_S, _ABANDON_S = 60.0, 5.0
_ADVICE = "; free space or choose another directory; earlier checkpoints are untouched"


class Saver:
    """Saves the state of a group of ranks, again and again.

    Args:
        group: the ranks.
    """

    def __init__(self, group: ProcessGroup) -> None:
        self.group = group.channel("control")
        self.copied_bytes = 0  # by this rank, while training stood still
        self._told: tuple[Manifest, list[str]] | None = None
        self._plan = Plan()
        self._copies: dict[str, HostArray] = {}
        self._under_way: Write | None = None
        _savers.add(self)

    def save(
        self,
        state: Mapping[str, Any],
        target: Path,
        background: bool = False,
        serial: int = 0,
        done: Done | None = None,
    ) -> Write:
        """Write ``state`` to the directory ``target``; return what can be waited for.

        Args:
            state: nested dicts of tensors, of `Shard`, and of what JSON can hold. What several
                ranks have under one key is the same on all of them.
            target: on a file system that all ranks see; replaced if it is there.
            background: return when everything is copied, and write meanwhile.
            serial: of the index; that of rank 0 counts.
            done: called on rank 0 when the checkpoint has its name.

        Raises:
            CheckpointError: on all ranks, if one could not write, this time or the last.

        Ranks: all.
        """
        self.wait()
        _finish_others(self.group)
        head = f"save({target.name})"
        tensors, objects = self._agreed(head, state)
        plan, rank = self._plan, self.group.rank
        beside = background and (self.group.thread_safe or self.group.size == 1)
        arrays = {
            key: self._host(key, tensors[key], beside) for key in tensors if key in self._mine
        }
        own = {key: value for key, value in objects.items() if plan.objects[key] == rank}
        write = Write(self.group, plan, target, arrays, own, serial, done)
        _last[id(self.group)] = write
        if beside:
            self._under_way = write
            write.start()
        else:
            write.run()
            write.result()
        return write

    def wait(self) -> None:
        """Return when nothing is on its way; raises what went wrong with it."""
        write, self._under_way = self._under_way, None
        if write is not None:
            write.result()

    def forget(self) -> None:
        """Let go of a checkpoint that is on its way among ranks of which some are gone."""
        write, self._under_way = self._under_way, None
        if write is not None:
            write.abandon(_ABANDON_S)

    def _agreed(
        self, head: str, state: Mapping[str, Any]
    ) -> tuple[dict[str, Leaf], dict[str, Any]]:
        """Return tensors and objects once all ranks have a plan for them."""
        parts: Any = ({}, {})
        error: Exception | None = None
        try:
            parts = taken_apart(state)
            told = manifest(parts[0]), sorted(parts[1])
            status = _SAME if told == self._told else _CHANGED
        except Exception as wrong:
            error, status = wrong, _FAILED
        sign = np.array([status], np.int64)
        if self.group.size > 1:
            self.group.all_reduce(sign, "max")
        if sign[0] == _FAILED:
            together(self.group, head, lambda: _raise(error))
        if sign[0] == _CHANGED:
            token = new_token()
            rows = [(token, told)]
            if self.group.size > 1:
                rows = self.group.all_gather_object((token, told))
            self._plan = planned([row for _, row in rows], rows[0][0])
            self._told, self._mine = told, self._plan.mine(self.group.rank)
            self._copies.clear()
        kept: tuple[dict[str, Leaf], dict[str, Any]] = parts
        return kept

    def _host(self, key: str, leaf: Leaf, copied: bool) -> HostArray:
        """Return the values of a tensor, or of this rank's part, as they are written."""
        array = (leaf.tensor if isinstance(leaf, Shard) else leaf).array
        shape = leaf.shape if isinstance(leaf, Shard) else array.shape
        host = to_device(array, CPU)
        if copied and isinstance(array, np.ndarray):
            host = self._copy(key, host)
        if copied:
            self.copied_bytes += host.nbytes
        found: HostArray = host.reshape(shape if host.size == math.prod(shape) else -1)
        return found

    def _copy(self, key: str, array: HostArray) -> HostArray:
        room = self._copies.get(key)
        if room is None or room.shape != array.shape or room.dtype != array.dtype:
            room = self._copies[key] = np.empty(array.shape, array.dtype)
        np.copyto(room, array)
        return room


class Write:
    """One checkpoint on its way to the disk, on one rank."""

    def __init__(
        self,
        group: ProcessGroup,
        plan: Plan,
        target: Path,
        arrays: Mapping[str, HostArray],
        objects: Mapping[str, Any],
        serial: int,
        done: Done | None,
    ) -> None:
        self.future: Future[Path] = Future()
        self._group, self._plan, self._target = group, plan, target
        self._arrays, self._objects = arrays, objects
        self._serial, self._done = serial, done

    def start(self) -> None:
        """Write in a thread."""
        threading.Thread(target=self.run, name="distgrad-checkpoint", daemon=True).start()

    def run(self) -> None:
        """Write, and keep what goes wrong for `result`, even if it would end the thread."""
        try:
            self._write()
        except CheckpointError as error:
            self.future.set_exception(error)
        except BaseException as error:
            text = f"save({self._target.name}): {reason(error)}"
            wrong = CheckpointError(text)
            wrong.__cause__ = error
            self.future.set_exception(wrong)
        else:
            self.future.set_result(self._target)

    def result(self) -> Path:
        """Return the directory when it is complete; raises what went wrong."""
        return self.future.result()

    def abandon(self, timeout_s: float) -> None:
        """Wait until the thread notices that ranks are gone, and remove what it has written.

        Only the rank that would give the directory its name knows that nobody will.
        """
        with contextlib.suppress(CheckpointError, TimeoutError):
            self.future.result(timeout_s)
        if self.future.done() and self._group.rank == 0:
            drop(temporary(self._target, self._plan.token))

    def _write(self) -> None:
        group, part = self._group, temporary(self._target, self._plan.token)
        files: dict[str, Sum] = {}
        why = ""
        try:
            files = write_part(part, self._plan, group.rank, self._arrays)
        except BaseException as error:  # the other ranks wait to hear of it
            why = reason(error)
        sums = {name: [s.size, s.sha256] for name, s in files.items()}
        told = told_by_all(group, [why, sums, self._objects])
        failed = [row[0] for row in told]
        verdict = ""
        if group.rank == 0:
            try:
                if not any(failed):
                    self._commit(part, [row[1] for row in told], [row[2] for row in told])
            except BaseException as error:
                verdict = reason(error)
            if any(failed) or verdict:
                with contextlib.suppress(OSError):
                    drop(part)
        verdicts = told_by_all(group, verdict)
        raise_first(
            f"save({self._target.name}): {self._target.parent} cannot take the checkpoint",
            failed if any(failed) else verdicts, _ADVICE,
        )  # fmt: skip

    def _commit(
        self, part: Path, files: list[dict[str, list[Any]]], objects: list[dict[str, Any]]
    ) -> None:
        """Write the index of complete files, and give the directory its name."""
        known = {name: Sum(*row) for each in files for name, row in each.items()}
        for rank, each in enumerate(files):
            for name in each:
                _check_there(part / name, known[name].size, rank)
        plan = self._plan
        entries = {
            key: Entry(
                *plan.kinds[key], tuple(Piece(plan.file_of(key, r), a, b) for r, a, b in rows)
            )
            for key, rows in plan.owners.items()
        }
        values = {key: objects[rank][key] for key, rank in plan.objects.items()}
        index = Index(self._serial, plan.world, known, entries, values)
        part.mkdir(parents=True, exist_ok=True)  # nobody had a tensor
        write_file(part / INDEX, [index.text()])
        put(part, self._target, plan.token)
        if self._done is not None:
            self._done(index)


def write_part(
    part: Path, plan: Plan, rank: int, arrays: Mapping[str, HostArray]
) -> dict[str, Sum]:
    """Write what one rank has to write, wait until it is on the disk, and return the sums."""
    part.mkdir(parents=True, exist_ok=True)
    files: dict[str, dict[str, HostArray]] = {}
    for key, array in arrays.items():
        name = plan.file_of(key, rank)
        files.setdefault(name, {})[name_in_file(name, key)] = array
    return {name: tensor_files.write(part / name, held) for name, held in files.items()}


def save_once(state: Mapping[str, Any], target: Path, group: ProcessGroup) -> None:
    """Write a checkpoint, after removing what a killed program has left of it.

    Ranks: all.
    """
    if group.rank == 0:
        clean(target.parent, f"{target.name}.")
    Saver(group).save(state, target)


def _check_there(path: Path, size: int, rank: int) -> None:
    """Raise unless rank 0 sees the file of another rank."""
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        found = -1
    if found != size:
        raise CheckpointError(
            f"{path.name}, which rank {rank} wrote, is not there for rank 0; the directory must be "
            "on a file system that all hosts share"
        )


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise CheckpointError(reason(error)) from error


def _finish_others(group: ProcessGroup) -> None:
    """Wait for what another saver of these ranks has on its way: the messages would mix."""
    write = _last.get(id(group))
    if write is not None:
        write.future.exception()  # is for those who wait for it


_last: weakref.WeakValueDictionary[int, Write] = weakref.WeakValueDictionary()  # by its group
_savers: weakref.WeakSet[Saver] = weakref.WeakSet()


def _finish() -> None:
    """Wait for what is on its way when the program ends, and say what went wrong."""
    for saver in list(_savers):
        write = saver._under_way
        if write is None:
            continue
        try:
            write.future.result(_EXIT_S)
        except Exception as error:
            print(f"distgrad: {error or 'a checkpoint was not completed'}", file=sys.stderr)


atexit.register(_finish)
