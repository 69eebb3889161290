"""The beginning and the end of the default group."""

from __future__ import annotations

import os
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

from distgrad.backend.device import device, namespace_of
from distgrad.config import nearest
from distgrad.distributed.default import (
    DefaultGroupError,
    default_group,
    get_group,
    set_process_group,
    set_thread_group,
)
from distgrad.distributed.env import world_from_env
from distgrad.distributed.failure import install_failure_hooks
from distgrad.distributed.group import DEFAULT_TIMEOUT_S, ProcessGroup
from distgrad.distributed.local import local_group
from distgrad.distributed.mpi import mpi_group
from distgrad.distributed.plans import Group, NonMember, seconds
from distgrad.errors import ArgumentError, DistributedError

BACKENDS = ("mpi", "local", "threads")
_ANY = ("gloo", "nccl", "cpu:gloo", "cuda:nccl", "cpu:gloo,cuda:nccl")  # PyTorch's: what fits here
_METHODS = ("env://", "tcp://", "file://")


def init_process_group(
    backend: str | None = None,
    init_method: str | None = None,
    timeout: timedelta | float | None = None,
    world_size: int = -1,
    rank: int = -1,
    store: Any = None,
    group_name: str = "",
    pg_options: Any = None,
    device_id: Any = None,
) -> ProcessGroup:
    """Make the default group and return it.

    Args:
        backend: "mpi"; "local", one process without MPI; "threads", the group of the calling rank
            of `run_ranks`; None takes "threads" inside run_ranks, else "mpi" where the environment
            announces more than one rank, else "local". PyTorch's "gloo" and "nccl" stand for None:
            tensors of every device travel in every group.
        init_method: PyTorch's; the launcher's ranks know each other, so an address is not used.
        timeout: a duration, or seconds, that any one wait may take; None is half an hour.
        world_size, rank: what must be true here; -1 accepts any.
        store, pg_options: PyTorch's; there are none here, so they must be None.
        group_name: for messages.
        device_id: a device that must exist here.

    Raises:
        DistributedError: there is a default group already, the number of ranks or the rank is
            another, or the launcher belongs to another MPI than mpi4py.

    Over MPI, an uncaught exception or ``sys.exit`` with a status other than 0 on any rank ends the
    whole job from here on.

    Ranks: all ranks of the job.

    Example:
        >>> from distgrad.distributed import destroy_process_group, get_rank, get_world_size
        >>> group = init_process_group("local")
        >>> get_rank(), get_world_size()
        (0, 1)
        >>> destroy_process_group()
    """
    head = f"init_process_group({backend!r})"
    wanted = _backend(head, backend)
    _check_options(head, init_method, store, pg_options, device_id)
    limit = seconds("init_process_group", timeout) or DEFAULT_TIMEOUT_S
    group = default_group()
    if group is not None and group.backend != "threads":
        raise DefaultGroupError(
            f"{head}: the default group is {group!r} already; call destroy_process_group() first"
        )
    if group is not None and wanted not in (None, "threads"):
        raise DistributedError(
            f"{head}: this thread is rank {group.rank} of run_ranks, whose backend is threads; "
            'leave the backend out, or say "threads"'
        )
    made = group or _new_group(wanted, limit)
    try:
        _check_place(head, made, world_size, rank)
    except DistributedError:
        if group is None:
            made.close()
        raise
    made.description = group_name
    if group is None:
        set_process_group(made)
    return made


def destroy_process_group(group: Group = None) -> None:
    """Close a group; None closes the default group, if there is one, and all its sub-groups.

    Ranks: all ranks of the group, in the same order for several groups.
    """
    world = default_group()
    if isinstance(group, NonMember) or world is None:
        return
    if group is not None and group is not world:
        group.close()
        _forget(world, group)
        return
    world.close()
    if world.backend == "threads":
        set_thread_group(None)
    else:
        set_process_group(None)


def is_initialized() -> bool:
    """Return whether there is a default group."""
    return default_group() is not None


def is_available() -> bool:
    """Return True: this package is always there."""
    return True


def is_mpi_available() -> bool:
    """Return whether mpi4py is installed; starts no MPI."""
    return find_spec("mpi4py") is not None


def is_gloo_available() -> bool:
    """Return True: the name stands for the backend that fits here."""
    return True


def is_nccl_available() -> bool:
    """Return False: the name is accepted, but tensors on a GPU travel through host memory."""
    return False


def is_backend_available(backend: str) -> bool:
    """Return whether `init_process_group` takes the name."""
    name = backend.lower()
    return name in ("local", "threads", *_ANY) or (name == "mpi" and is_mpi_available())


def is_torchelastic_launched() -> bool:
    """Return whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def get_node_local_rank(fallback_rank: int | None = None) -> int:
    """Return this rank's number among those of its host.

    Args:
        fallback_rank: the answer where neither a launcher nor a default group says it.

    Raises:
        DistributedError: nobody says it.
    """
    if os.environ.get("LOCAL_RANK", "").isdigit():
        return int(os.environ["LOCAL_RANK"])
    if is_initialized():
        return get_group().local_rank
    hint = world_from_env().local_rank
    if hint is None and fallback_rank is None:
        raise DistributedError(
            "get_node_local_rank(): LOCAL_RANK is not in the environment and there is no default "
            "group; call init_process_group() first, or pass fallback_rank"
        )
    return int(hint if hint is not None else fallback_rank or 0)


def _backend(head: str, backend: str | None) -> str | None:
    """Return the backend of the name; None for what fits here."""
    known = (*BACKENDS, *_ANY)
    if backend is None or (isinstance(backend, str) and backend.lower() in _ANY):
        return None
    if not isinstance(backend, str) or backend.lower() not in BACKENDS:
        raise ArgumentError(f"{head}: is none of {', '.join(known)}{nearest(str(backend), known)}")
    return backend.lower()


def _check_options(
    head: str, init_method: str | None, store: Any, pg_options: Any, device_id: Any
) -> None:
    for name, value in (("store", store), ("pg_options", pg_options)):
        if value is not None:
            raise ArgumentError(
                f"{head}: {name}={value!r}: ranks meet through their launcher and need none; "
                f"leave {name} out"
            )
    if init_method is not None and not str(init_method).startswith(_METHODS):
        raise ArgumentError(
            f"{head}: init_method={init_method!r}: is none of {', '.join(_METHODS)}; leave it out"
        )
    if device_id is not None:
        namespace_of(device(device_id))


def _check_place(head: str, made: ProcessGroup, world_size: int, rank: int) -> None:
    """Raise if this is another rank, or another number of them, than the program thinks."""
    if world_size not in (-1, made.size):
        raise DistributedError(
            f"{head}: there are {made.size} ranks and not world_size={world_size}; start that "
            "many, such as with mpirun -n"
        )
    if rank not in (-1, made.rank):
        raise DistributedError(
            f"{head}: this is rank {made.rank} of {made.size} and not rank={rank}; the launcher "
            "numbers the ranks, so leave rank out"
        )
    announced = os.environ.get("WORLD_SIZE", "")
    alone = made.backend == "local" and announced.isdigit() and int(announced) > 1
    if is_torchelastic_launched() and alone:
        raise DistributedError(
            f"{head}: torchrun started {announced} processes, which cannot find each other here; "
            "start the program with mpirun, or with python -m distgrad.launch"
        )


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


def _forget(world: ProcessGroup, group: ProcessGroup) -> None:
    """Remove ``group`` from the sub-groups of ``world`` and of these."""
    world.children[:] = [child for child in world.children if child is not group]
    for child in world.children:
        _forget(child, group)
