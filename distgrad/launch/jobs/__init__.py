"""The built-in jobs by name, and what a job and the launcher know of each other.

A job is a module with ``DEFAULTS``, an instance of a frozen dataclass (nested ones make dotted
keys), and ``run(config, context)``, which returns its final metrics.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from distgrad.config import nearest
from distgrad.distributed.tree import shard_bounds
from distgrad.errors import ConfigError

if TYPE_CHECKING:
    from distgrad.distributed.group import ProcessGroup
    from distgrad.launch.rundir import RunDir

JOBS = {
    "textgpt": "a character GPT on the text of Python's own documentation",
    "digits": "handwritten digits, 98 % (needs the extra 'examples')",
    "allreduce-bench": "the speed of all-reduces by size, beside the MPI library's",
    "scaling": "how a job would scale to 10,000 ranks of the present cluster",
}


@dataclass(frozen=True, slots=True)
class Context:
    """What the launcher gives to a job."""

    group: ProcessGroup
    rundir: RunDir
    resume_from: Path | None  # a checkpoint directory
    dry_run: bool
    profile_steps: tuple[int, int] | None
    stop_requested: Callable[[], bool]  # of this rank alone: reduce it with MAX
    say: Callable[[str], None]  # prints on rank 0
    any_checkpoint: bool = False  # if ``resume_from`` is damaged, an older one will do
    min_ranks: int | None = None  # go on in place while so many are left; None: with all only
    regrouped: Callable[[ProcessGroup], None] = lambda group: None  # rank 0 may be another now


class Job(Protocol):
    """A module that can be run as a job."""

    DEFAULTS: Any

    def run(self, config: Any, context: Context) -> dict[str, float]:
        """Return the final metrics of the job; every rank calls it."""


class Preempted(Exception):
    """Raised by a job, on every rank, once it has saved because a signal asked it to stop."""


def load(name: str) -> Job:
    """Return the job ``name``: a built-in one, or a module by its dotted path.

    Raises:
        ConfigError: if there is no such job, or the module is none.
    """
    path = f"distgrad.launch.jobs.{name.replace('-', '_')}" if name in JOBS else name
    if name not in JOBS and "." not in name:
        raise ConfigError(f"--job {name}: is none of {', '.join(JOBS)}{nearest(name, JOBS)}")
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise  # the job is there, something that it imports is not
        raise ConfigError(f"--job {name}: there is no module {error.name!r}") from None
    for need in ("DEFAULTS", "run"):
        if not hasattr(module, need):
            raise ConfigError(f"--job {name}: the module has no {need}, which every job has")
    return cast("Job", module)


def turns(parts: Sequence[int], rank: int, size: int) -> Iterator[tuple[int, bool]]:
    """Give the parts that a rank computes one after the other, and whether each counts.

    All ranks get as many, for they may need each other to compute; one for which no part is left
    repeats the last part.

    Example:
        >>> list(turns(range(3), 1, 2))
        [(1, True), (2, False)]
    """
    for first in range(0, len(parts), size):
        place = first + rank
        yield parts[min(place, len(parts) - 1)], place < len(parts)


def micro_batches(global_batch: int, micro_batch: int, world_size: int) -> list[list[slice]]:
    """Return for each rank the rows of the global batch that it computes, one slice at a time.

    The micro-batches are the same for every number of ranks; ranks differ by one at most.

    Raises:
        ConfigError: the global batch is no multiple of the micro-batch, or a rank gets nothing.

    Example:
        >>> [len(share) for share in micro_batches(32, 4, 3)]
        [3, 3, 2]
    """
    count, rest = divmod(global_batch, micro_batch)
    if rest:
        near = [n for n in (count * micro_batch, (count + 1) * micro_batch) if n]
        fits = [m for m in range(1, global_batch + 1) if global_batch % m == 0]
        raise ConfigError(
            f"--global-batch {global_batch}: is not a multiple of --micro-batch {micro_batch}; use "
            f"--global-batch {' or '.join(map(str, near))}, or --micro-batch "
            f"{min(fits, key=lambda m: abs(m - micro_batch))}"
        )
    if count < world_size:
        smaller = global_batch // world_size
        hint = f"--micro-batch {smaller} or less, or " if smaller else ""
        raise ConfigError(
            f"--global-batch {global_batch}: makes {count} micro-batches of {micro_batch} for "
            f"{world_size} ranks, so some rank would have none; use {hint}--global-batch "
            f"{world_size * micro_batch}"
        )
    rows = [slice(i * micro_batch, (i + 1) * micro_batch) for i in range(count)]
    return [rows[a:b] for a, b in pairwise(shard_bounds(count, world_size))]
