"""The built-in jobs by name, and what a job and the launcher know of each other.

A job is a module with ``DEFAULTS``, an instance of a frozen dataclass (nested ones make dotted
keys), and ``run(config, context)``, which returns its final metrics.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from distgrad.config import nearest
from distgrad.errors import ConfigError

if TYPE_CHECKING:
    from distgrad.distributed.group import ProcessGroup
    from distgrad.launch.rundir import RunDir

JOBS = {
    "textgpt": "a character GPT on the text of Python's own documentation",
    "digits": "handwritten digits, 98 % (needs the extra 'examples')",
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
    path = f"distgrad.launch.jobs.{name}" if name in JOBS else name
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


def accumulation_steps(global_batch: int, micro_batch: int, world_size: int) -> int:
    """Return how many micro-batches each rank adds up for one step.

    Raises:
        ConfigError: if the global batch is no multiple of micro-batch times ranks.

    Example:
        >>> accumulation_steps(32, 4, 2)
        4
    """
    once = micro_batch * world_size
    steps, rest = divmod(global_batch, once)
    if steps and not rest:
        return steps
    near = [n for n in (steps * once, (steps + 1) * once) if n]
    fits = [m for m in range(1, global_batch + 1) if global_batch % (m * world_size) == 0]
    hint = f"--global-batch {' or '.join(map(str, near))}"
    if fits:
        hint += f", or --micro-batch {min(fits, key=lambda m: abs(m - micro_batch))}"
    raise ConfigError(
        f"--global-batch {global_batch}: is not a multiple of {once} = micro-batch {micro_batch} "
        f"x {world_size} ranks; use {hint}"
    )
