"""Do one fault inside a rank, when its training comes to the phase.

The phases are found by the functions that they begin with, which are wrapped from outside: the
package itself knows nothing of faults.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from distgrad.distributed import reducer
from distgrad.launch.jobs import training
from distgrad.launch.supervise.wire import ATTEMPT
from distgrad.nn.parallel.fsdp.conductor import Conductor
from distgrad.nn.parallel.fsdp.unit import Unit
from distgrad.optim import runs
from distgrad.testing.faults.plan import Fault

SECOND = {
    "mid-bucket",
    "gathering",
    "optimizer",
    "checkpoint write",
}  # strike at the second call of a step
STEPS = "steps.txt"  # one line per step and start, of rank 0
STRUCK = "struck.txt"  # when the fault happened
BALLAST = "ballast"  # what fills the disk


def _start() -> int:
    """Return how often the supervisor has started the job before."""
    return int(os.environ.get(ATTEMPT) or 0)


def _cut() -> None:
    """Pull the network cable of this rank's host."""
    subprocess.run(["ip", "link", "set", "eth0", "down"], check=True)


def _slow_down() -> None:
    """Leave this rank's host 2 Mbit/s."""
    limit = ["root", "tbf", "rate", "2mbit", "burst", "128kb", "latency", "1s"]
    subprocess.run(["tc", "qdisc", "replace", "dev", "eth0", *limit], check=True)


def _lose() -> None:
    """End every process of this rank's host, this one last."""
    _cut()
    here = os.readlink("/proc/self/ns/net")
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if os.readlink(place / "ns/net") == here and int(place.name) != os.getpid():
                os.kill(int(place.name), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


HOST_STRIKES = {"link down": _cut, "slow link": _slow_down, "host lost": _lose}


class Striker:
    """Counts calls in the chosen step and strikes at the right one."""

    def __init__(self, fault: Fault, step: int, folder: Path) -> None:
        self.fault, self.step, self.folder = fault, step, folder
        self.now, self.calls, self.armed = 0, 0, False
        self._lock = threading.Lock()

    def arm(self) -> None:
        """Wrap the functions that the phases begin with, in this process."""
        striker = self
        begin = training.Trainer.__init__

        def made(trainer: Any, config: Any, context: Any, task: Any) -> None:
            begin(trainer, config, context, task)
            ranks = striker.fault.ranks(context.group.size)
            striker.armed = _start() == 0 and context.group.rank in ranks
            for phase, name in (
                ("data loading", "batch"), ("forward", "loss"), ("evaluation", "score"),
            ):  # fmt: skip
                setattr(task, name, striker.before(phase, getattr(task, name)))

        def step(trainer: Any, *args: Any) -> Any:
            striker.now, striker.calls = trainer.step, 0
            if trainer.group.rank == 0:
                striker.note(STEPS, f"{trainer.step} {trainer.group.size} {_start()}")
            return stepping(trainer, *args)

        stepping = training.Trainer._train_step
        vars_of: Any = training.Trainer
        vars_of.__init__, vars_of._train_step = made, step
        for phase, owner, name in (
            ("mid-bucket", reducer.Reducer, "_launch"),
            ("mid-bucket", Conductor, "_launch"),
            ("gathering", Unit, "gather"),
            ("after the vote", training.Trainer, "update"),
            ("before the step", training, "clip_grad_norm_"),
            ("optimizer", runs.Run, "apply"),
            ("checkpoint write", os, "fsync"),
        ):
            setattr(owner, name, self.before(phase, getattr(owner, name)))

    def before(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return ``function``, which strikes first if it is the fault's turn."""

        def struck(*args: Any, **options: Any) -> Any:
            if self.armed and phase == self.fault.phase and self.now >= self.step:
                self._count()
            return function(*args, **options)

        return struck

    def _count(self) -> None:
        with self._lock:
            self.calls += 1
            if self.calls < (2 if self.fault.phase in SECOND else 1):
                return
            self.armed = False
        self.note(STRUCK, f"{self.now}")
        self._strike(self.fault.kind)

    def note(self, name: str, text: str) -> None:
        """Append a line with the time to a file of the trial."""
        line = f"{time.time():.3f} {text}\n".encode()
        handle = os.open(self.folder / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, line)
        os.close(handle)

    def _strike(self, kind: str) -> None:
        if kind == "exception":
            raise RuntimeError("a fault on purpose")
        if kind == "sys.exit(3)":
            sys.exit(3)
        if kind == "os._exit(0)":
            os._exit(0)
        if kind == "disk full":
            self._fill()
            return
        if kind in HOST_STRIKES:
            HOST_STRIKES[kind]()
            return
        os.kill(os.getpid(), signal.Signals[kind])
        time.sleep(30 if kind == "SIGSTOP" else 5)  # until the signal is here

    def _fill(self) -> None:
        """Leave no free byte on the disk of the trial."""
        try:
            with (self.folder / BALLAST).open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(1 << 16))
        except OSError:  # the disk is full now
            return
