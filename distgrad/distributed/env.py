"""What the environment says about the world before MPI starts: rank, size, place on the host.

The truth is MPI's own communicator. These hints serve the moment before it exists (choice of device
and of BLAS threads, choice of backend) and the check that both agree afterwards.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorldHint:
    """One process's place in the world as its launcher announced it; ``None`` where unknown."""

    rank: int | None = None
    size: int | None = None
    local_rank: int | None = None
    local_size: int | None = None
    launcher: str | None = None


@dataclass(frozen=True, slots=True)
class _Names:
    """The variables of one launcher, each with its spellings in order of preference."""

    launcher: str
    rank: tuple[str, ...]
    size: tuple[str, ...]
    local_rank: tuple[str, ...]
    local_size: tuple[str, ...]


# An mpirun inside a Slurm allocation inherits the variables of the batch step, so Slurm comes last.
# Open MPI 5 no longer sets the OMPI_MCA_orte_* names; these are the ones it kept.
_LAUNCHERS = (
    _Names(
        "Open MPI",
        ("OMPI_COMM_WORLD_RANK",),
        ("OMPI_COMM_WORLD_SIZE",),
        ("OMPI_COMM_WORLD_LOCAL_RANK",),
        ("OMPI_COMM_WORLD_LOCAL_SIZE",),
    ),
    _Names(
        "MVAPICH",
        ("MV2_COMM_WORLD_RANK", "MVP_COMM_WORLD_RANK"),
        ("MV2_COMM_WORLD_SIZE", "MVP_COMM_WORLD_SIZE"),
        ("MV2_COMM_WORLD_LOCAL_RANK", "MVP_COMM_WORLD_LOCAL_RANK"),
        ("MV2_COMM_WORLD_LOCAL_SIZE", "MVP_COMM_WORLD_LOCAL_SIZE"),
    ),
    _Names("PALS", ("PALS_RANKID",), ("PMI_SIZE",), ("PALS_LOCAL_RANKID",), ("PMI_LOCAL_SIZE",)),
    _Names(
        "MPICH",
        ("PMI_RANK",),
        ("PMI_SIZE",),
        ("MPI_LOCALRANKID", "PMI_LOCAL_RANK"),
        ("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"),
    ),
)


def world_from_env(environ: Mapping[str, str] | None = None) -> WorldHint:
    """Return the rank, size and local place that the launcher put into the environment.

    Reads the variables of Open MPI, MVAPICH, PALS, MPICH and Intel MPI (Hydra), Slurm's ``srun``
    and PMIx, and takes the first launcher that names a rank. Starts nothing, imports no MPI.

    Example:
        >>> world_from_env({"PMI_RANK": "1", "PMI_SIZE": "4"}).size
        4
        >>> world_from_env({}).rank is None
        True
    """
    env = os.environ if environ is None else environ
    slurm = _slurm_step(env)
    for names in _LAUNCHERS:
        rank = _first_int(env, names.rank)
        if rank is None:
            continue
        hint = WorldHint(
            rank,
            _first_int(env, names.size),
            _first_int(env, names.local_rank),
            _first_int(env, names.local_size),
            names.launcher,
        )
        return _with_local_place(hint, slurm)
    if slurm is not None:
        return slurm
    rank = _first_int(env, ("PMIX_RANK",))
    return WorldHint() if rank is None else WorldHint(rank=rank, launcher="PMIx")


def find_mpirun(environ: Mapping[str, str] | None = None) -> str | None:
    """Return the ``mpirun`` beside this Python, else the one on PATH, else ``None``.

    An MPI that was installed as a wheel puts its mpirun beside the interpreter, and only that one
    fits the library mpi4py loads, however many others the PATH holds.
    """
    env = os.environ if environ is None else environ
    beside = shutil.which("mpirun", path=os.path.dirname(sys.executable))
    return beside or shutil.which("mpirun", path=env.get("PATH"))


def _first_int(env: Mapping[str, str], names: tuple[str, ...]) -> int | None:
    for name in names:
        value = env.get(name, "")
        if value.isdigit():
            return int(value)
    return None


def _slurm_step(env: Mapping[str, str]) -> WorldHint | None:
    """The place in an srun step; a batch script has SLURM_NTASKS too but is one process."""
    if "SLURM_STEP_ID" not in env and "SLURM_STEPID" not in env:
        return None
    rank = _first_int(env, ("SLURM_PROCID",))
    size = _first_int(env, ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"))
    if rank is None or size is None:
        return None
    return WorldHint(
        rank, size, _first_int(env, ("SLURM_LOCALID",)), _slurm_local_size(env), "Slurm"
    )


def _slurm_local_size(env: Mapping[str, str]) -> int | None:
    """The tasks on this node out of Slurm's run-length list, such as ``4(x2),3``."""
    node = _first_int(env, ("SLURM_NODEID",))
    text = env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE", "")
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            return _first_int(env, ("SLURM_NTASKS_PER_NODE",))
        counts += [int(match[1])] * int(match[2] or 1)
    return counts[node] if node is not None and node < len(counts) else None


def _with_local_place(hint: WorldHint, slurm: WorldHint | None) -> WorldHint:
    """The hint with Slurm's local rank where ``srun --mpi=pmi2`` left the PMI one out."""
    if hint.local_rank is not None or slurm is None:
        return hint
    if (hint.rank, hint.size) != (slurm.rank, slurm.size):
        return hint
    return WorldHint(hint.rank, hint.size, slurm.local_rank, slurm.local_size, hint.launcher)
