"""Communication between ranks: process groups over MPI, threads, or one process alone.

`init_process_group` makes the default group. Importing this package starts no MPI.
"""

from __future__ import annotations

from distgrad.config import nearest
from distgrad.distributed.default import (
    default_group,
    get_group,
    set_process_group,
    set_thread_group,
)
from distgrad.distributed.env import WorldHint, find_mpirun, world_from_env
from distgrad.distributed.failure import abort_on_failure, install_failure_hooks
from distgrad.distributed.group import (
    CHANNELS,
    DEFAULT_TIMEOUT_S,
    OPS,
    ProcessGroup,
    check_same,
)
from distgrad.distributed.local import local_group
from distgrad.distributed.mpi import mpi_group
from distgrad.distributed.progress import (
    CommunicationThread,
    InlineProgress,
    Job,
    Progress,
    start_progress,
)
from distgrad.distributed.threads import run_ranks
from distgrad.distributed.work import Work
from distgrad.errors import ArgumentError, DistributedError

BACKENDS = ("mpi", "local", "threads")


def init_process_group(
    backend: str | None = None,
    *,
    world_size: int | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
) -> ProcessGroup:
    """Make the default group and return it.

    Args:
        backend: "mpi"; "local", one process without MPI; "threads", the group of the calling rank
            of `run_ranks`; None takes "threads" inside run_ranks, else "mpi" where the environment
            announces more than one rank, else "local".
        world_size: the number of ranks there must be; None accepts any.
        timeout_s: seconds that any one wait may take.

    Raises:
        DistributedError: there is a default group already, the number of ranks is another, or the
            launcher belongs to another MPI than mpi4py.

    Over MPI, an uncaught exception or ``sys.exit`` with a status other than 0 on any rank ends the
    whole job from here on.

    Ranks: all ranks of the job.

    Example:
        >>> group = init_process_group("local")
        >>> get_rank(), get_world_size()
        (0, 1)
        >>> destroy_process_group()
    """
    head = f"init_process_group({backend!r})"
    if backend is not None and backend not in BACKENDS:
        raise ArgumentError(
            f"{head}: is none of {', '.join(BACKENDS)}{nearest(str(backend), BACKENDS)}"
        )
    group = default_group()
    if group is not None and group.backend != "threads":
        raise DistributedError(
            f"{head}: the default group is {group!r} already; call destroy_process_group() first"
        )
    if group is not None and backend not in (None, "threads"):
        raise DistributedError(
            f"{head}: this thread is rank {group.rank} of run_ranks, whose backend is threads; "
            'leave the backend out, or say "threads"'
        )
    made = group or _new_group(backend, timeout_s)
    if world_size not in (None, made.size):
        made.close()
        raise DistributedError(
            f"{head}: there are {made.size} ranks and not world_size={world_size}; start that "
            "many, such as with mpirun -n"
        )
    if group is None:
        set_process_group(made)
    return made


def _new_group(backend: str | None, timeout_s: float) -> ProcessGroup:
    if backend == "threads":
        raise DistributedError(
            'init_process_group("threads"): this thread is no rank; call it inside the function '
            "that run_ranks(n, function) runs"
        )
    if backend == "local" or (backend is None and (world_from_env().size or 1) == 1):
        return local_group(timeout_s)
    group = mpi_group(timeout_s=timeout_s)
    install_failure_hooks(group)
    return group


def destroy_process_group() -> None:
    """Close the default group, if there is one."""
    group = default_group()
    if group is None:
        return
    group.close()
    if group.backend == "threads":
        set_thread_group(None)
    else:
        set_process_group(None)


def is_initialized() -> bool:
    """Return whether there is a default group."""
    return default_group() is not None


def get_rank() -> int:
    """Return this rank's number in the default group."""
    return get_group().rank


def get_world_size() -> int:
    """Return the number of ranks of the default group."""
    return get_group().size


def barrier() -> None:
    """Return when every rank of the default group has called it."""
    get_group().barrier()


__all__ = [
    "BACKENDS",
    "CHANNELS",
    "OPS",
    "CommunicationThread",
    "InlineProgress",
    "Job",
    "ProcessGroup",
    "Progress",
    "Work",
    "WorldHint",
    "abort_on_failure",
    "barrier",
    "check_same",
    "destroy_process_group",
    "find_mpirun",
    "get_group",
    "get_rank",
    "get_world_size",
    "init_process_group",
    "is_initialized",
    "local_group",
    "mpi_group",
    "run_ranks",
    "start_progress",
    "world_from_env",
]
