"""The weights' hash for every number of ranks, MPI library and way to shard, in "world" mode.

    python benchmarks/same_bits.py --python PYTHON_WITH_MPICH PYTHON_WITH_OPEN_MPI

Each run trains the job textgpt for some steps.  Exits with 1 if any hash differs from the first.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from distgrad.launch.rundir import read_metrics

ROOT = str(Path(__file__).parent.parent)


def environment(zero: int) -> dict[str, str]:
    """Return the environment of a run: more ranks than cores may run under Open MPI too."""
    added = {
        "PYTHONPATH": ROOT,
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": "node:oversubscribe",
        "OMPI_MCA_mpi_yield_when_idle": "1",
    }
    if zero:
        added["DISTGRAD_ZERO"] = str(zero)
    return {**os.environ, **added}


def weights(python: str, ranks: int, zero: int, steps: int) -> str:
    """Return the sha256 of the weights after ``steps`` steps."""
    with tempfile.TemporaryDirectory() as folder:
        program = [python, "-m", "distgrad.launch", "--run-dir", folder, "--steps", str(steps)]
        command = [*program, "--set", "sample=0", "--eval-every", "-1", "--save-every", "-1"]
        if ranks > 1:
            command = [str(Path(python).parent / "mpirun"), "-n", str(ranks), *command]
        subprocess.run(
            command, check=True, stdout=subprocess.DEVNULL, env=environment(zero), timeout=600
        )
        return str(read_metrics(Path(folder) / "metrics.jsonl")[-1]["sha256"])


def main() -> None:
    """Run all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3, 4, 5, 8])
    parser.add_argument("--zero", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--python", nargs="+", default=[sys.executable])
    args = parser.parse_args()
    found: list[str] = []
    print(f"{'python':<28}{'zero':>5}" + "".join(f"{f'n={n}':>14}" for n in args.ranks))
    for python in args.python:
        for zero in args.zero:
            row = [weights(python, n, zero, args.steps) for n in args.ranks]
            found += row
            place = "/".join(Path(python).parts[-3:])
            print(f"{place:<28}{zero:>5}" + "".join(f"{h[:12]:>14}" for h in row), flush=True)
    if len(set(found)) > 1:
        raise SystemExit(f"{len(set(found))} different weights")


if __name__ == "__main__":
    main()
