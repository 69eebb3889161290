"""Share the cores of a host among its ranks: one BLAS thread for each core, not for each rank."""

from __future__ import annotations

import os
import sys

VARIABLES = (
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


def cores() -> int:
    """Return how many cores this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def threads(local_size: int) -> int:
    """Return the BLAS threads of each of ``local_size`` ranks on this host."""
    per_task = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return int(per_task) if per_task.isdigit() else max(1, cores() // local_size)


def missing(count: int) -> dict[str, str]:
    """Return the variables to set for ``count`` threads; those of the user stay."""
    text = os.environ.get("OMP_NUM_THREADS", str(count))
    return {name: text for name in VARIABLES if name not in os.environ}


def limit(count: int) -> None:
    """Limit the BLAS threads of this process, which is replaced by a fresh one if need be.

    BLAS reads the variables when NumPy is loaded, and ``python -m distgrad.launch`` loads it with
    the package, before any line of the launcher.  The fresh process finds the variables set.
    """
    wanted = missing(count)
    if count == cores() or not wanted:
        return  # all cores are what BLAS takes by itself
    os.environ.update(wanted)
    if "numpy" in sys.modules:
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
