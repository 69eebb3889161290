"""Kill a job with SIGKILL while it writes checkpoints, again and again: each time the next one must
find a checkpoint that is whole, at least as new as the last one that was reported as complete.

    python benchmarks/checkpoint_kills.py --kills 100
    python benchmarks/checkpoint_kills.py --kills 100 --ranks 2    # kills one rank, or all of them
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import distgrad as dg
from distgrad.distributed import init_process_group, local_group
from distgrad.distributed.env import find_mpirun
from distgrad.distributed.fsdp import fully_shard
from distgrad.launch.checkpoint import Checkpoints

JOB = {"schedule": {}, "best": 0.0}
KEEP = 3


def train(folder: Path, ranks: int) -> None:
    """Go on from the newest checkpoint, and save in the background until somebody kills this."""
    group = init_process_group() if ranks > 1 else local_group()
    dg.manual_seed(0)
    model = dg.nn.Sequential(dg.nn.Linear(700, 700), dg.nn.Linear(700, 300))
    if ranks > 1:
        fully_shard(model, mesh=group)
    optimizer = dg.optim.AdamW(model.parameters())
    for p in model.parameters():
        p.grad = dg.zeros_like(p)
    optimizer.step()  # makes the state
    checkpoints = Checkpoints(group, folder, KEEP)
    checkpoints.tidy()
    there, step = group.broadcast_object(checkpoints.directory.newest_first()), 0
    say = print if group.rank == 0 else _say_nothing
    if there:
        found = checkpoints.load_newest(there[0], model, optimizer, say)
        if found is None:
            raise SystemExit("no checkpoint is whole")
        step = found.job["step"]
        for p in (p for p in model.parameters() if p.numel()):  # a rank may have none of one
            for part in (p.detach().numpy(), optimizer.state[p]["exp_avg"].numpy()):
                if not (part == step).all():
                    raise SystemExit(f"step {step} holds {part.min()} to {part.max()}")
    say(f"resumed {step}", flush=True)
    (folder / f"pid{group.rank}").write_text(str(os.getpid()))
    group.barrier()
    while True:
        step += 1
        for p in (p for p in model.parameters() if p.numel()):
            p.data.fill_(float(step))
            optimizer.state[p]["exp_avg"].fill_(float(step))
        checkpoints.save(step, model, optimizer, JOB, float(step % 7))
        say(f"complete {step - 1}", flush=True)  # the one before, for which save has waited
        time.sleep(random.uniform(0, 0.02))


def _say_nothing(*_: object, **__: object) -> None:
    """Drop what rank 0 says."""


def start(folder: Path, ranks: int) -> subprocess.Popen[str]:
    """Return a new job, whose output can be read."""
    command = [sys.executable, __file__, "--train", str(folder), "--ranks", str(ranks)]
    if ranks > 1:
        command = [find_mpirun() or "mpirun", "-n", str(ranks), *command]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


class Trial:
    """One job that is killed.

    Args:
        folder: where it saves.
        ranks: how many.
        rng: says when it is killed, and which rank.
    """

    def __init__(self, folder: Path, ranks: int, rng: random.Random) -> None:
        self.folder, self.ranks, self.rng = folder, ranks, rng
        self.resumed, self.complete = -1, 0  # steps that it says
        self.job = start(folder, ranks)

    def run(self) -> None:
        """Let the job save a few times, and kill it."""
        assert self.job.stdout is not None
        saves = self.rng.randint(1, 4)
        for line in self.job.stdout:
            saves -= self.hear(line)
            if not saves:
                break
        if self.resumed < 0:
            raise SystemExit("the job did not go on")
        time.sleep(self.rng.uniform(0, 0.06))
        self.kill()
        for line in self.job.stdout:  # what was said before it died
            self.hear(line)
        try:
            self.job.wait(20)
        finally:
            if self.job.poll() is None:
                os.killpg(self.job.pid, signal.SIGKILL)
                self.job.wait()

    def hear(self, line: str) -> bool:
        """Take note of a line of the job; return whether it tells of a save."""
        word, _, number = line.partition(" ")
        if not line.endswith("\n"):
            return False
        if word == "resumed":
            self.resumed = int(number)
        elif word == "complete":
            self.complete = max(self.complete, int(number))
            return True
        elif word == "warning:":
            print(line.rstrip())
        return False

    def kill(self) -> None:
        """Kill one rank, or all."""
        rank = self.rng.randrange(self.ranks + 1)
        for victim in range(self.ranks) if rank == self.ranks else [rank]:
            os.kill(int((self.folder / f"pid{victim}").read_text()), signal.SIGKILL)

    @property
    def half(self) -> bool:
        """Whether a checkpoint was left half written."""
        return any(p.name.endswith(".tmp") for p in self.folder.iterdir())


def main() -> None:
    """Kill jobs and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=Path)
    options = parser.parse_args()
    if options.train is not None:
        train(options.train, options.ranks)
    rng, began = random.Random(options.seed), time.perf_counter()
    complete, went_on, halves = 0, 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(options.kills + 1):
            trial = Trial(folder, options.ranks, rng)
            trial.run()
            went_on += number > 0 and trial.resumed >= complete
            halves += number < options.kills and trial.half
            complete = max(trial.complete, trial.resumed)
            if len(list(folder.glob("step_*[0-9]"))) > KEEP + 2:
                raise SystemExit(f"old ones stay: {sorted(p.name for p in folder.iterdir())}")
    print(
        f"{options.kills} kills, {went_on} went on from the last complete checkpoint or a newer "
        f"one; {halves} kills left a half one behind; last step {complete}; "
        f"{time.perf_counter() - began:.0f} s"
    )
    raise SystemExit(went_on < options.kills)


if __name__ == "__main__":
    main()
