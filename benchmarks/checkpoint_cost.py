"""What checkpoints cost the default job, with a save every 20 steps.

It trains with saves and without, in turns, and says how much longer that takes. As others may use
the machine meanwhile, it also counts processor time on rank 0, which does not depend on them: of
the thread that trains in `Checkpoints.save`, and of the thread that writes; and bytes copied.

    python benchmarks/checkpoint_cost.py --rounds 5 --ranks 1 2
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from functools import wraps
from pathlib import Path
from typing import Any

from distgrad.distributed.checkpoint import saving
from distgrad.distributed.env import find_mpirun, world_from_env
from distgrad.launch import run as launcher
from distgrad.launch.checkpoint import Checkpoints

KINDS = {
    "no saves": ["--save-every", "-1"],
    "in the background": ["--save-every", "20"],
    "while training waits": ["--save-every", "20", "--set", "save_async=0"],
}


def timed(owner: Any, name: str, into: list[float]) -> None:
    """Let a method note the processor time that its thread spends in it."""
    method = getattr(owner, name)

    @wraps(method)
    def measured(*args: Any, **options: Any) -> Any:
        began = time.thread_time()
        try:
            return method(*args, **options)
        finally:
            into.append(time.thread_time() - began)

    setattr(owner, name, measured)


def inside(report: Path, options: list[str]) -> int:
    """Run the launcher, and write down what its checkpoints took on this rank."""
    training: list[float] = []
    writing: list[float] = []
    copied = [0]
    timed(Checkpoints, "save", training)
    timed(saving.Write, "run", writing)
    copy = saving.Saver._copy

    def counted(self: Any, key: str, array: Any) -> Any:
        copied[0] += array.nbytes
        return copy(self, key, array)

    saving.Saver._copy = counted  # type: ignore[method-assign]
    began = time.thread_time()
    status = launcher.main(options)
    row = {"training": training, "writing": writing, "copied": copied[0]}
    if not world_from_env().rank:
        report.write_text(json.dumps(row | {"all": time.thread_time() - began}))
    return status


def measure(kind: str, ranks: int, steps: int, zero: int) -> tuple[float, dict[str, Any]]:
    """Return the seconds that a run of the default job trains, and what its checkpoints took."""
    with tempfile.TemporaryDirectory() as folder:
        run, report = Path(folder) / "run", Path(folder) / "report.json"
        command = [
            sys.executable, __file__, "--inside", str(report), "--steps", str(steps),
            "--eval-every", "-1", "--set", "sample=0", "--zero", str(zero), "--run-dir", str(run),
            *KINDS[kind],
        ]  # fmt: skip
        if ranks > 1:
            command = [find_mpirun() or "mpirun", "-n", str(ranks), *command]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return rows[-1]["seconds"], json.loads(report.read_text())


def main() -> None:
    """Measure in turns and print medians."""
    if sys.argv[1:2] == ["--inside"]:
        raise SystemExit(inside(Path(sys.argv[2]), sys.argv[3:]))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--zero", type=int, default=0)
    options = parser.parse_args()
    for ranks in options.ranks:
        times: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for _ in range(options.rounds):
            for kind in KINDS:
                seconds, last = measure(kind, ranks, options.steps, options.zero)
                times[kind].append(seconds)
                if kind == "in the background":
                    took = last
        base = statistics.median(times["no saves"])
        for kind, each in times.items():
            middle = statistics.median(each)
            print(
                f"{ranks} ranks, ZeRO {options.zero}, {kind}: {middle:.2f} s "
                f"({min(each):.2f} to {max(each):.2f}), {middle / base - 1:+.1%}"
            )
        saves = len(took["training"])
        stood, wrote = sum(took["training"][:-1]), sum(took["writing"][:-1])
        print(
            f"  {saves} saves; processor time of one: {stood / (saves - 1) * 1e3:.1f} ms in the "
            f"training thread ({stood / took['all']:.2%} of its time), "
            f"{wrote / (saves - 1) * 1e3:.1f} ms in the writer ({wrote / took['all']:.2%}); "
            f"{took['copied'] / (saves - 1) / 1e6:.2f} MB copied",
            flush=True,
        )


if __name__ == "__main__":
    main()
