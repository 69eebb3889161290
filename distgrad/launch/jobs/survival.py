"""How a training goes on without ranks that were lost; see `distgrad.distributed.shrink`.

The sum of the losses, which all ranks need after every step, is also their vote: it starts when a
rank has all gradients of the step, and nobody updates before it is complete. So it costs nothing
but the overlap of that sum with the update.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from distgrad.distributed.agreement import check_values
from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.shrink import shrink, why_not_shrinkable
from distgrad.distributed.work import HostArray
from distgrad.errors import RankLost
from distgrad.optim.zero import ZeroRedundancyOptimizer
from distgrad.tensor import Tensor

if TYPE_CHECKING:
    from distgrad.launch.jobs.training import Trainer

TOGETHER = ("evaluate", "save")  # what all ranks do after a step; the rest is of rank 0 alone


class Place(NamedTuple):
    """How far a rank has come.

    Args:
        trained: steps of which it has made the update.
        left: what it has still to do after the last of them.
        row: the metrics of that step.
        stop: whether a signal asked the job to stop.
    """

    trained: int
    left: list[str]
    row: dict[str, Any]
    stop: bool


def survival_of(trainer: Trainer) -> Survival | None:
    """Return what lets ``trainer`` go on without lost ranks; None where it cannot, or shall not."""
    context = trainer.context
    if context.min_ranks is None or trainer.group.size == 1:
        return None
    reason = _why_not(trainer)
    if reason:
        context.say(
            f"--min-ranks {context.min_ranks}: {reason}; a lost rank ends these ranks, and "
            "--max-restarts starts the job again from its last checkpoint"
        )
        return None
    return Survival(trainer, context.min_ranks)


def is_loss(error: BaseException) -> bool:
    """Return whether ``error`` comes of a lost rank, as that of a writer of checkpoints may."""
    return isinstance(error, RankLost) or isinstance(error.__cause__, RankLost)


def _why_not(trainer: Trainer) -> str:
    """Return why a lost rank cannot be survived in place; empty if it can."""
    if any(p.is_cuda for p in trainer.task.model.parameters()):
        return "shrinking in place is for CPUs: NCCL would wait for a lost rank"
    return why_not_shrinkable(trainer.group)


class Survival:
    """Brings a trainer to the ranks that are left, each time that some are lost.

    Args:
        trainer: of this rank.
        min_ranks: fewer do not go on.
    """

    def __init__(self, trainer: Trainer, min_ranks: int) -> None:
        self.trainer, self.min_ranks = trainer, min_ranks
        self.losses = 0  # how often some were lost
        self._buffers: list[tuple[Tensor, Any]] = []  # as they were before the step at hand

    def tidy(self) -> None:
        """Remove what lost ranks have left half written."""
        if self.losses:
            self.trainer.checkpoints.tidy()

    def begin_step(self) -> None:
        """Note what forward changes."""
        model = self.trainer.task.model
        self._buffers = [(buffer, buffer.array.copy()) for buffer in model.buffers()]

    def vote(self, sums: HostArray) -> None:
        """Add up ``sums`` over the ranks; who comes through knows that all have the gradients."""
        optimizer = self.trainer.optimizer
        if isinstance(optimizer, ZeroRedundancyOptimizer):
            optimizer.prepare()
        if self.trainer.spare is not None:
            self.trainer.spare.prepare()
        self.trainer.group.channel("control").all_reduce(sums)

    def recover(self) -> None:
        """Return when the ranks that are left are ready to go on, all at the same place."""
        began, trainer = time.perf_counter(), self.trainer
        before, self.losses = trainer.group, self.losses + 1
        agreed = 0.0
        while True:
            try:
                group = shrink(self.min_ranks)
                agreed = time.perf_counter() - began
                self._go_on(group)
                break
            except RankLost:  # one more
                continue
        rebuilt = time.perf_counter() - began - agreed
        gone = sorted(set(before.origins) - set(group.origins))
        trainer.context.say(
            f"lost  rank{'s' * (len(gone) > 1)} {', '.join(map(str, gone))}: {group.size} of "
            f"{before.size} ranks go on behind step {trainer.trained}; agreed in "
            f"{agreed * 1e3:.0f} ms, rebuilt in {rebuilt * 1e3:.0f} ms"
        )

    def _go_on(self, group: ProcessGroup) -> None:
        trainer = self.trainer
        trainer.group = group
        trainer.context.regrouped(group)
        here = Place(trainer.trained, trainer.left, trainer.row, trainer.stop)
        places: list[Place] = group.all_gather_object(here)
        newest = max(places, key=lambda place: place.trained)
        if trainer.trained < newest.trained:
            # Others have seen that all voted for this step, so the gradients are here.
            trainer.update()
            trainer.row, trainer.stop = dict(newest.row), newest.stop
            trainer.left = list(trainer.after)
        else:
            for buffer, values in self._buffers * (trainer.step > trainer.trained):
                buffer.array[...] = values
        trainer.step = trainer.trained
        self._agree_on_the_rest(places, newest.trained)
        trainer.regroup(group)
        if trainer.spare is None:  # which has compared what there was twice
            named = list(trainer.task.model.named_parameters())
            check_values(group, named, f"after step {trainer.trained}")

    def _agree_on_the_rest(self, places: list[Place], trained: int) -> None:
        """Repeat what all ranks do together unless all have done it."""
        trainer = self.trainer
        done = [place.left for place in places if place.trained == trained]
        behind = len(done) < len(places)
        missing = [n for n in TOGETHER if behind or any(n in left for left in done)]
        mine = [name for name in trainer.left if name not in TOGETHER]
        trainer.left = [name for name in trainer.after if name in (*missing, *mine)]
