"""What a training job saves, and how it goes on from there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distgrad.distributed.checkpoint.exchange import together
from distgrad.distributed.checkpoint.folder import new_token
from distgrad.distributed.checkpoint.saving import Saver
from distgrad.distributed.checkpoint.state import Leaf, Shard
from distgrad.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    keys_of,
    named_state,
    names_of,
    set_state_dict,
    shapes_of,
)
from distgrad.distributed.group import ProcessGroup
from distgrad.errors import CheckpointError
from distgrad.launch.checkpoint.directory import Directory
from distgrad.launch.checkpoint.first_format import FirstFormat
from distgrad.launch.checkpoint.source import Source, shared_source
from distgrad.nn.module import Module
from distgrad.ops.random import get_rng_state
from distgrad.optim.holdings import holding_of
from distgrad.optim.optimizer import Optimizer
from distgrad.optim.zero import ZeroRedundancyOptimizer
from distgrad.tensor import Tensor, wrap

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Resumed:
    """What a job goes on from, beside model and optimizer."""

    path: Path
    job: Mapping[str, Any]  # what was given to `Checkpoints.save`
    random: Tensor  # the state of this rank's generator
    world: int  # how many ranks wrote it


class Checkpoints:
    """Saves and loads model, optimizer, random numbers and what a job knows.

    Args:
        group: the ranks.
        folder: the directory of checkpoints.
        keep: how many stay, the newest; the best stays too.
        background: write while the job goes on.
    """

    def __init__(
        self, group: ProcessGroup, folder: Path, keep: int = 3, background: bool = True
    ) -> None:
        self.group, self.directory, self._background = group, Directory(folder, keep), background
        self.saver = Saver(group)

    def tidy(self) -> None:
        """Remove what a killed job has left half written."""
        if self.group.rank == 0:
            self.directory.tidy()

    # ------------------------------------------------------------------ saving
    def save(
        self,
        step: int,
        model: Module,
        optimizer: Optimizer,
        job: Mapping[str, Any],
        metric: float | None = None,
        wait: bool = False,
    ) -> None:
        """Save after ``step`` optimizer steps.

        Args:
            step: names the checkpoint.
            model: with any wrapper.
            optimizer: of the model's parameters.
            job: numbers, texts and containers; that of rank 0 counts.
            metric: of an evaluation of these weights; the least one is the best.
            wait: return when it is on the disk.

        Raises:
            CheckpointError: on all ranks, if one could not write, this time or the last.

        Ranks: all.
        """
        if isinstance(optimizer, ZeroRedundancyOptimizer):
            optimizer.wait()
        state = {
            "model": get_model_state_dict(model),
            "optim": named_state(model, optimizer, holding_of(optimizer).rows()),
            "rng": {f"{self.group.rank:05d}": get_rng_state()},
            "job": {**job, "step": step, "metric": metric},
        }
        directory, target, token = self.directory, self.directory.path(step), new_token()
        self.saver.wait()
        serial = directory.next_serial() if self.group.rank == 0 else 0
        self.saver.save(
            state, target, self._background and not wait, serial,
            lambda index: directory.finished(target, index, token),
        )  # fmt: skip

    def wait(self) -> None:
        """Return when nothing is on its way to the disk; raises what went wrong with it."""
        self.saver.wait()

    def regroup(self, group: ProcessGroup) -> None:
        """Go on with the ranks that are left; what was on its way among the others is dropped."""
        self.saver.forget()
        self.group, self.saver = group, Saver(group)

    # ------------------------------------------------------------------ loading
    def load(self, path: Path, model: Module, optimizer: Optimizer) -> Resumed:
        """Give model and optimizer what is in ``path``, saved by any number of ranks.

        Raises:
            CheckpointError: on all ranks, before anything is changed: it is damaged, or is of
                another model.

        Ranks: all.
        """
        try:
            return self._load(path, model, optimizer)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {self._another(path)}") from error

    def load_newest(
        self, first: Path, model: Module, optimizer: Optimizer, say: Say
    ) -> Resumed | None:
        """Load the newest that is not damaged; None if all are.

        Args:
            first: tried first if it is elsewhere.
            model, optimizer: as for `load`.
            say: prints on rank 0.

        Ranks: all; rank 0 says which.
        """
        order = self.directory.newest_first()
        if first.name not in [p.name for p in order]:
            order.insert(0, first)
        for path in self.group.broadcast_object(order):
            try:
                return self._load(path, model, optimizer)
            except CheckpointError as error:
                say(f"warning: {path.name} is skipped: {error}")
        return None

    def _load(self, path: Path, model: Module, optimizer: Optimizer) -> Resumed:
        with shared_source(path, self.group) as found:
            holding = holding_of(optimizer)
            ranges = holding.ranges  # may be a collective
            target = get_model_state_dict(model)

            def read() -> tuple[dict[str, Any], dict[str, Any], Resumed]:
                own = _model_state(found, target)
                return own, _optimizer_state(found, model, optimizer, ranges), self._rest(found)

            own, theirs, rest = together(self.group.channel("control"), f"load({path})", read)
            set_state_dict(model, optimizer, model_state_dict=own, optim_state_dict=theirs)
        return rest

    def _rest(self, found: Source) -> Resumed:
        """Return what is neither model nor optimizer."""
        world = found.world
        random = found.read(f"rng/{self.group.rank % max(1, world):05d}")
        job = {name: found.object(f"job/{name}") for name in ("step", "schedule", "best", "metric")}
        sound = (
            isinstance(job["step"], int)
            and isinstance(job["schedule"], dict)
            and isinstance(job["best"], int | float)
            and random.dtype == np.uint8
            and random.shape == tuple(get_rng_state().shape)
        )
        if not sound:
            raise CheckpointError("its step, schedule, best metric or random numbers are none")
        return Resumed(found.path, job, wrap(random), world)

    def _another(self, path: Path) -> str:
        """Return what to do instead of loading ``path``."""
        others = [p for p in Directory(path.parent).newest_first() if p != path]
        if others:
            return f"take --resume {others[0]}, or --resume never to begin anew"
        return "begin anew with --resume never and another --run-dir"


def _model_state(found: Source, target: Mapping[str, Any]) -> dict[str, Any]:
    """Return what goes into a model, as this rank has it."""
    there = {key[6:]: shape for key, shape in found.shapes().items() if key.startswith("model/")}
    odd = sorted(there.keys() ^ target.keys())
    if odd:
        where = "in the checkpoint" if odd[0] in there else "in the model"
        raise CheckpointError(
            f"is of another model: {odd[0]!r} is {where} only; give the job the settings it had"
        )
    return {name: _like(found, f"model/{name}", leaf, there[name]) for name, leaf in target.items()}


def _like(found: Source, key: str, leaf: Leaf, shape: tuple[int, ...]) -> Leaf:
    """Return from a checkpoint what goes into ``leaf``."""
    here = leaf.shape if isinstance(leaf, Shard) else tuple(leaf.array.shape)
    if here != shape:
        raise CheckpointError(
            f"is of another model: {key!r} is {list(shape)} there and {list(here)} here; give the "
            "job the settings it had"
        )
    if isinstance(leaf, Shard):
        return Shard(wrap(found.read(key, leaf.start, leaf.stop)), shape, leaf.start)
    return wrap(found.read(key).reshape(shape))


def _optimizer_state(
    found: Source, model: Module, optimizer: Optimizer, ranges: Mapping[int, slice]
) -> dict[str, Any]:
    """Return what goes into an optimizer, as this rank has it."""
    keys, whole = keys_of(names_of(model), optimizer), shapes_of(optimizer)
    groups = found.object("optim/param_groups")
    if not isinstance(groups, list) or not all(
        isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups
    ):
        raise CheckpointError("its groups of the optimizer are none")
    written = list(map(str, range(len(keys)))) if isinstance(found, FirstFormat) else keys
    if isinstance(found, FirstFormat):
        groups = [{**group, "params": [keys[n] for n in group["params"]]} for group in groups]
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, shape in found.shapes().items():
        if key.startswith("optim/state/"):
            name, _, slot = key[12:].rpartition("/")
            shapes.setdefault(name, {})[slot] = shape
    state: dict[str, Any] = {}
    for number, within in ranges.items():
        lead = f"optim/state/{written[number]}/"
        state[keys[number]] = {
            slot: _slot(found, lead + slot, shape, whole[number], within)
            for slot, shape in shapes.get(written[number], {}).items()
        }
    return {"state": state, "param_groups": groups}


def _slot(
    found: Source, key: str, shape: tuple[int, ...], whole: tuple[int, ...], within: slice
) -> Leaf:
    """Return a state array of the elements ``within`` of a parameter, or a number kept once."""
    if not shape:
        return wrap(found.read(key).reshape(()))
    if shape != whole:
        raise CheckpointError(f"is of another model: {key!r} is {list(shape)}, not {list(whole)}")
    return Shard(wrap(found.read(key, within.start, within.stop)), shape, within.start)
