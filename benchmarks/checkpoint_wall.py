"""How much longer training takes while checkpoints are written in the background, by the clock.

One job trains all the time. Its steps are cut into blocks of 5; a block of kind B begins with a
save, one of kind A does not, and they follow each other A B B A, so that what changes slowly
cancels in each four. What a save takes, by the median over all fours of time(B) - time(A), is
printed as a share of 20 steps, with an interval that holds the true median with 95 % whatever the
noise is like, and whether that decides the claim: less than 2 % with a save every 20 steps. A block
of kind B also waits at its end until its checkpoint is on the disk, which jobs need not.

    python benchmarks/checkpoint_wall.py         # about 6 minutes on two quiet cores
    python benchmarks/checkpoint_wall.py --null  # no saves at all: what noise alone gives
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from distgrad.distributed.env import find_mpirun, world_from_env
from distgrad.launch import run as launcher
from distgrad.launch.jobs.training import Trainer

BLOCK = 5  # steps
EVERY = 20  # steps from save to save, of which the claim speaks
WARM = 8  # blocks
CLAIM = 0.02


def inside(report: Path, saves: bool, options: list[str]) -> int:
    """Run the launcher with a save at the beginning of every block of kind B, and note the time."""
    marks: list[float] = []

    def boundary(trainer: Trainer) -> None:
        if trainer.step % BLOCK:
            return
        trainer.checkpoints.wait()
        marks.append(time.perf_counter())
        if saves and is_b(len(marks) - 1) and trainer.step < trainer.steps:
            trainer._save(trainer.row, wait=False)

    Trainer._save_if_due = boundary  # type: ignore[assignment,method-assign]
    status = launcher.main(options)
    if not world_from_env().rank:
        report.write_text(json.dumps(marks))
    return status


def is_b(block: int) -> bool:
    """Return whether a block is one of kind B."""
    return "ABBA"[block % 4] == "B"


def marks_of(ranks: int, zero: int, fours: int, null: bool) -> list[float]:
    """Return when the blocks of a run of the default job began."""
    steps = BLOCK * (WARM + 4 * fours + 1)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [
            sys.executable, __file__, "--inside", str(report), "null" if null else "saves",
            "--steps", str(steps), "--eval-every", "-1", "--log-every", "-1", "--set", "sample=0",
            "--zero", str(zero), "--run-dir", str(Path(folder) / "run"),
        ]  # fmt: skip
        if ranks > 1:
            command = [find_mpirun() or "mpirun", "-n", str(ranks), *command]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        marks: list[float] = json.loads(report.read_text())
        return marks


def shares(marks: list[float]) -> list[float]:
    """Return what a save takes, in the time of `EVERY` steps, of every four blocks."""
    each = [after - before for before, after in pairwise(marks)][WARM:]
    fours = [each[i : i + 4] for i in range(0, len(each) - 3, 4)]
    return [((b1 + b2) / (a1 + a2) - 1) * BLOCK / EVERY for a1, b1, b2, a2 in fours]


def interval(values: list[float]) -> tuple[float, float]:
    """Return what holds the median of a distribution with 95 %: two values out of the sorted ones.

    How many of n values lie below the true median is known without knowing the distribution.
    """
    n, ordered = len(values), sorted(values)
    rank, cases = 0, 1  # in which no more than `rank` values lie below, of 2**n
    while 40 * cases <= 2**n and rank < n // 2:
        rank += 1
        cases += math.comb(n, rank)
    if not rank:
        return -math.inf, math.inf
    return ordered[rank - 1], ordered[n - rank]


def verdict(low: float, high: float) -> str:
    """Return what the interval says of the claim."""
    if high < CLAIM:
        return f"less than {CLAIM:.0%}"
    if low > CLAIM:
        return f"MORE than {CLAIM:.0%}"
    return f"undecided, whether more or less than {CLAIM:.0%}: take more fours or a quieter machine"


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--inside"]:
        raise SystemExit(inside(Path(sys.argv[2]), sys.argv[3] == "saves", sys.argv[4:]))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fours", type=int, default=350)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1])
    parser.add_argument("--zero", type=int, default=0)
    parser.add_argument("--null", action="store_true", help="save nothing")
    options = parser.parse_args()
    for ranks in options.ranks:
        began = time.perf_counter()
        marks = marks_of(ranks, options.zero, options.fours, options.null)
        found = shares(marks)
        low, high = interval(found)
        step = statistics.median(b - a for a, b in pairwise(marks)) / BLOCK
        print(
            f"{ranks} rank{'s' * (ranks > 1)}, ZeRO {options.zero}, "
            f"{'nothing saved' if options.null else f'a save every {EVERY} steps'} of "
            f"{step * 1e3:.1f} ms: {statistics.median(found):+.2%} longer "
            f"(95 %: {low:+.2%} to {high:+.2%}; {len(found)} fours, "
            f"{time.perf_counter() - began:.0f} s): {verdict(low, high)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
