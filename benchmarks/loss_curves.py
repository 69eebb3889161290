"""The loss curve of textgpt on 1, 2, 3 and 4 ranks with the same global batch.

    python benchmarks/loss_curves.py --steps 600

Prints the losses side by side at some steps and, over all steps, the largest relative difference
from one rank.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from distgrad.distributed.env import find_mpirun
from distgrad.launch.rundir import read_metrics


def losses(ranks: int, steps: int, folder: Path) -> tuple[dict[int, float], float, str, float]:
    """Return loss by step, the last validation loss, weights' sha256 and seconds of one run."""
    run_dir = folder / f"n{ranks}"
    program = [sys.executable, "-m", "distgrad.launch"]
    command = program if ranks == 1 else [find_mpirun() or "mpirun", "-n", str(ranks), *program]
    subprocess.run(
        [*command, "--run-dir", str(run_dir), "--steps", str(steps), "--set", "sample=0"],
        check=True, stdout=subprocess.DEVNULL, env=os.environ,
    )  # fmt: skip
    rows = read_metrics(run_dir / "metrics.jsonl")
    curve = {r["step"]: r["loss"] for r in rows if "loss" in r}
    val = [r["val_loss"] for r in rows if "val_loss" in r][-1]
    return curve, val, rows[-1]["sha256"][:12], rows[-1]["seconds"]


def main() -> None:
    """Run all sizes and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3, 4])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = {n: losses(n, args.steps, Path(folder)) for n in args.ranks}
    first = runs[args.ranks[0]][0]
    shown = sorted({1, 10, 100, 200, 400, args.steps} & set(first))
    print(f"{'step':>10}" + "".join(f"{f'n={n}':>16}" for n in runs))
    for step in shown:
        print(f"{step:10}" + "".join(f"{run[0][step]:16.9f}" for run in runs.values()))
    print(f"{'val_loss':>10}" + "".join(f"{run[1]:16.9f}" for run in runs.values()))
    worst = {n: max(abs(run[0][s] / first[s] - 1) for s in first) for n, run in runs.items()}
    print(f"{'max diff':>10}" + "".join(f"{d:16.1e}" for d in worst.values()))
    print(f"{'weights':>10}" + "".join(f"{run[2]:>16}" for run in runs.values()))
    print(f"{'seconds':>10}" + "".join(f"{run[3]:16.1f}" for run in runs.values()))
    if max(worst.values()) > 1e-5:
        raise SystemExit(f"losses differ by more than 1e-5: {worst}")


if __name__ == "__main__":
    main()
