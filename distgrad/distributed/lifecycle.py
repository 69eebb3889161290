"""The beginning and the end of the default group."""

from __future__ import annotations

import os
from datetime import timedelta
from importlib.util import find_spec
from typing import Any, NamedTuple

from distgrad.backend.device import (
    bind_gpu,
    choose_gpu_by,
    device,
    namespace_of,
)
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
from distgrad.distributed.nccl import nccl_module
from distgrad.distributed.plans import Group, NonMember, seconds
from distgrad.distributed.store import Store
from distgrad.errors import ArgumentError, DeviceError, DistributedError

BACKENDS = ("mpi", "local", "threads")


class Meeting(NamedTuple):
    """Where processes meet, and which of them this is."""

    address: str
    port: int
    rank: int
    size: int


_ANY = ("gloo", "nccl", "cpu:gloo", "cuda:nccl", "cpu:gloo,cuda:nccl")  # PyTorch's: what fits here
_METHODS = ("env://", "tcp://", "file://")
default_pg_timeout = timedelta(seconds=DEFAULT_TIMEOUT_S)


class Backend(str):
    """The name of a backend in lower case, which `init_process_group` takes.

    Example:
        >>> Backend("GLOO")
        'gloo'
    """

    GLOO, NCCL, MPI, UCC, XCCL, UNDEFINED = "gloo", "nccl", "mpi", "ucc", "xccl", "undefined"

    def __new__(cls, name: str) -> Backend:
        """Return the name.

        Args:
            name: in any case.
        """
        if not isinstance(name, str):
            raise ArgumentError(f"Backend({name!r}): Backend constructor parameter must be a str")
        return super().__new__(cls, name.lower())


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
            of `run_ranks`; None takes "threads" inside run_ranks, else "mpi" where a launcher of
            MPI announces more than one rank, else sockets where rank, number of ranks and an
            address are given, else "local". PyTorch's "gloo" and "nccl" stand for None:
            tensors of every device travel in every group. With "nccl", tensors on GPUs that have to
            go by way of the host are worth a warning.
        init_method: where to meet without a launcher of MPI: "env://" (MASTER_ADDR, MASTER_PORT,
            RANK and WORLD_SIZE of the environment) or "tcp://ADDRESS:PORT".
        timeout: a duration, or seconds, that any one wait may take; None is half an hour.
        world_size, rank: what must be true here, or what is so without a launcher; -1 accepts any.
        store: PyTorch's; ranks need none to meet here, so it is not used.
        pg_options: PyTorch's; there are none here, so it must be None.
        group_name: for messages.
        device_id: the GPU of this rank; default is that of its number among the ranks of its host,
            modulo the number of GPUs.

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
    made = group or _new_group(wanted, limit, _meeting(init_method, world_size, rank))
    try:
        _check_place(head, made, world_size, rank)
    except DistributedError:
        if group is None:
            made.close()
        raise
    made.description = group_name
    if group is None:
        set_process_group(made)
    _bind(made, device_id, "nccl" in str(backend).lower())
    return made


def _bind(made: ProcessGroup, device_id: Any, nccl_wanted: bool) -> None:
    """Choose this rank's GPU; CUDA starts only if one is named."""
    for sibling in made.siblings.values():
        sibling.nccl_wanted = nccl_wanted
    if made.backend != "threads":
        choose_gpu_by(lambda: made.local_rank)
    if device_id is not None:
        bind_gpu(device(device_id))


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
        choose_gpu_by(_rank_by_launcher)


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
    """Return whether there is a GPU here and CuPy finds NCCL; starts CUDA to know it."""
    try:
        return bool(nccl_module().available)
    except DeviceError:
        return False


def is_ucc_available() -> bool:
    """Return False."""
    return False


def is_xccl_available() -> bool:
    """Return False."""
    return False


def get_default_backend_for_device(device: Any) -> str:
    """Return PyTorch's backend for tensors on ``device``; its name is taken here too.

    Args:
        device: a device, or its name.
    """
    return "nccl" if str(device).startswith("cuda") else "gloo"


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
    if pg_options is not None:
        raise ArgumentError(
            f"{head}: pg_options={pg_options!r}: there are no such options here; "
            "leave pg_options out"
        )
    if store is not None and not isinstance(store, Store):
        raise ArgumentError(
            f"{head}: store={store!r}: is no distgrad.distributed.Store; ranks meet through their "
            "launcher, so leave store out"
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
            f"{head}: torchrun started {announced} processes, but the environment does not say "
            "where they meet; set MASTER_ADDR, MASTER_PORT and RANK too"
        )


def _meeting(init_method: str | None, world_size: int, rank: int) -> Meeting | None:
    """Return where processes without a launcher of MPI meet, as PyTorch's programs say it.

    None where nobody announces several ranks, or says where they meet.
    """
    method = init_method or "env://"
    env = os.environ
    size = world_size if world_size != -1 else int(env.get("WORLD_SIZE") or 1)
    place = rank if rank != -1 else int(env.get("RANK") or -1)
    if method.startswith("tcp://"):
        address, _, port = method.removeprefix("tcp://").partition("?")[0].rpartition(":")
    else:
        address, port = env.get("MASTER_ADDR", ""), env.get("MASTER_PORT", "")
    if size < 2 or place < 0 or not address or not port.isdigit():
        return None
    return Meeting(address, int(port), place, size)


def _new_group(backend: str | None, timeout_s: float, meeting: Meeting | None) -> ProcessGroup:
    if backend == "threads":
        raise DistributedError(
            'init_process_group("threads"): this thread is no rank; call it inside the function '
            "that run_ranks(n, function) runs"
        )
    alone = (world_from_env().size or 1) == 1
    if backend is None and alone and meeting is not None:
        from distgrad.distributed.sockets import socket_group  # few programs need sockets

        return socket_group(*meeting, timeout_s)
    if backend == "local" or (backend is None and alone):
        return local_group(timeout_s)
    group = mpi_group(timeout_s=timeout_s)
    install_failure_hooks(group)
    return group


def _forget(world: ProcessGroup, group: ProcessGroup) -> None:
    """Remove ``group`` from the sub-groups of ``world`` and of these."""
    world.children[:] = [child for child in world.children if child is not group]
    for child in world.children:
        _forget(child, group)


def _rank_by_launcher() -> int | None:
    return world_from_env().local_rank


choose_gpu_by(_rank_by_launcher)  # until there is a group, which knows better
