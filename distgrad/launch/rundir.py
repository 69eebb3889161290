"""The directory of a run: settings, environment, metrics, logs, checkpoints, pictures."""

from __future__ import annotations

import json
import math
import os
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from distgrad.errors import ConfigError
from distgrad.launch.supervise.wire import JOB

RUNS = Path("runs")
_SEEN_S = 5.0  # until network file systems show on one host what another has written
_OWN = (
    "config.json", "env.json", "metrics.jsonl", "logs/failed", "done.json", "supervisor.jsonl",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class RunDir:
    """The places in a run directory."""

    path: Path

    @property
    def metrics(self) -> Path:
        """One JSON object a line: what was measured, and when."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """One directory a checkpoint, ``step_00000200``, and the link ``latest``."""
        return self.path / "checkpoints"

    @property
    def loss_svg(self) -> Path:
        """The loss curve."""
        return self.path / "loss.svg"

    @property
    def trace(self) -> Path:
        """The Chrome trace of all ranks."""
        return self.path / "trace.json"

    def rank_trace(self, rank: int) -> Path:
        """Return the Chrome trace of one rank."""
        return self.path / "logs" / f"trace_{rank:04d}.json"

    def log(self, rank: int) -> Path:
        """Return the file with everything that ``rank`` printed."""
        return self.path / "logs" / f"rank_{rank:04d}.log"

    def first_failure(self, rank: int) -> bool:
        """Return whether ``rank`` is the first to report a failure in this run."""
        try:
            with (self.path / "logs" / "failed").open("x") as file:
                file.write(f"rank {rank}\n")
        except (FileExistsError, FileNotFoundError):  # the first one may have tidied up
            return False
        except OSError:  # a full disk must not hide the failure
            return True
        return True

    def make(self) -> None:
        """Make the directories; rank 0 first, then the others, whose disk may be another."""
        try:
            (self.path / "logs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"--run-dir {self.path}: cannot be made ({error.strerror}); choose another"
            ) from None

    @property
    def done(self) -> Path:
        """What rank 0 writes once all ranks agree on the end: only then was the run a success."""
        return self.path / "done.json"

    def check_shared(self, job: str) -> None:
        """Return if this host sees what rank 0 has written for ``job``.

        Raises:
            ConfigError: it does not, so a job that starts again elsewhere would find no checkpoint.
        """
        until = time.monotonic() + _SEEN_S
        while True:
            with suppress(OSError, ValueError):
                if json.loads((self.path / "env.json").read_text("utf-8")).get("job") == job:
                    return
            if time.monotonic() > until:
                raise ConfigError(
                    f"--run-dir {self.path}: {socket.gethostname()} does not see what rank 0 has "
                    f"written there, so a restart could not find the checkpoints; choose a "
                    f"directory that all hosts share"
                )
            time.sleep(0.1)

    def forget_end(self) -> None:
        """Forget how an earlier run has ended that this one goes on from."""
        (self.path / "logs" / "failed").unlink(missing_ok=True)
        self.done.unlink(missing_ok=True)

    def write_done(self, status: int, step: int, ranks: int) -> None:
        """Write down the end on which all ranks agree."""
        end = {"status": status, "step": step, "ranks": ranks, "job": os.environ.get(JOB, "")}
        try:
            write_json(self.done, end | {"time": time.time()})
        except OSError as error:  # the supervisor hears of it by another way
            print(f"warning: {self.done} cannot be written ({error.strerror})", file=sys.stderr)

    def link_as_latest(self) -> None:
        """Let ``latest`` beside the run directory point to it."""
        # some file systems know no links; the run does not depend on this one
        with suppress(OSError):
            _link(self.path.parent / "latest", self.path.name)

    def is_unused(self) -> bool:
        """Return whether no step of the run has left a trace here."""
        measured = self.metrics.exists() and self.metrics.stat().st_size > 0
        return not measured and not self.checkpoints.exists()

    def discard(self) -> None:
        """Remove what the launcher wrote into an unused directory; files of others stay."""
        for file in (*map(self.path.joinpath, _OWN), *self.path.glob("logs/rank_*.log")):
            file.unlink(missing_ok=True)
        with suppress(OSError):  # not empty: the user has files here
            (self.path / "logs").rmdir()
            self.path.rmdir()
            self._link_newest()

    def _link_newest(self) -> None:
        """Let ``latest`` point to the newest other run, or be gone."""
        runs = self.path.parent
        link = runs / "latest"
        if link.is_symlink() and not link.exists():
            others = sorted(runs.glob("*/config.json"), key=lambda file: file.stat().st_mtime)
            if others:
                _link(link, others[-1].parent.name)
            else:
                link.unlink()


# ------------------------------------------------------------------ which directory


def choose(run_dir: str | None, resume: str, name: str) -> tuple[RunDir, Path | None]:
    """Return the directory of a run and the checkpoint to go on from, by ``--resume``.

    Nothing is written.  Only rank 0 calls it: the name holds the time.

    Raises:
        ConfigError: if there is nothing to resume from, or ``never`` meets an earlier run.
    """
    if resume == "auto":
        run = RunDir(Path(run_dir)) if run_dir else _new(name)
        return run, latest_checkpoint(run)
    if resume == "never":
        run = RunDir(Path(run_dir)) if run_dir else _new(name)
        if run.metrics.exists() or run.checkpoints.exists():
            raise ConfigError(
                f"--resume never: {run.path} holds an earlier run; remove it, choose another "
                f"--run-dir, or go on with --resume auto"
            )
        return run, None
    start = (Path(run_dir).parent if run_dir else RUNS) / "latest" if resume == "latest" else None
    return _resumed(run_dir, Path(resume) if start is None else start, resume)


def choose_again(run_dir: str, resume: str, name: str) -> tuple[RunDir, Path | None]:
    """Return the directory of a run that a supervisor starts again, and where it goes on.

    That is its newest checkpoint whatever ``--resume`` says; if it has none, it begins as it did.
    """
    run = RunDir(Path(run_dir))
    newest = latest_checkpoint(run)
    if newest is not None or resume in ("auto", "never"):
        return run, newest
    return choose(run_dir, resume, name)


def _resumed(run_dir: str | None, start: Path, resume: str) -> tuple[RunDir, Path]:
    """Return run directory and checkpoint for ``start``, which is one of either."""
    if not start.is_dir():
        raise ConfigError(f"--resume {resume}: there is no directory {start}")
    start = start.resolve() if start.is_symlink() else start
    if start.parent.name == "checkpoints":
        return RunDir(Path(run_dir) if run_dir else start.parent.parent), start
    checkpoint = latest_checkpoint(RunDir(start))
    if checkpoint is None:
        raise ConfigError(f"--resume {resume}: {start} holds no checkpoint")
    return RunDir(Path(run_dir) if run_dir else start), checkpoint


def latest_checkpoint(run: RunDir) -> Path | None:
    """Return the newest complete checkpoint of ``run``, or None."""
    link = run.checkpoints / "latest"
    if link.is_dir():
        return run.checkpoints / os.path.basename(os.path.realpath(link))
    done = [p for p in run.checkpoints.glob("step_*") if p.is_dir() and p.name[5:].isdigit()]
    return max(done, key=lambda p: int(p.name[5:]), default=None)


def _new(name: str) -> RunDir:
    stamp = time.strftime("%Y-%m-%d_%H%M%S")
    path = RUNS / f"{stamp}-{name}"
    count = 1
    while path.exists():
        count += 1
        path = RUNS / f"{stamp}-{name}-{count}"
    return RunDir(path)


# ------------------------------------------------------------------ what is written


class Metrics:
    """The file of metrics, open for more lines; on ranks without a file lines are dropped.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
        >>> metrics = Metrics(path)
        >>> metrics.write({"step": 1, "loss": 4.5})
        >>> metrics.write({"step": 2, "loss": 4.25})
        >>> metrics.keep_until(1)
        >>> metrics.close()
        >>> read_metrics(path)
        [{'step': 1, 'loss': 4.5}]
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: TextIO | None = None
        if path is not None:
            self._file = path.open("a", encoding="utf-8")

    def write(self, row: Mapping[str, Any]) -> None:
        """Write ``row`` as one line that survives a kill of the process."""
        if self._file is not None:
            clean = {key: _finite(value) for key, value in row.items()}
            self._file.write(json.dumps(clean, default=_scalar) + "\n")
            self._file.flush()

    def keep_until(self, step: int) -> None:
        """Drop what was written after ``step``, and the torn line of a killed run."""
        if self._path is None:
            return
        self.close()
        rows = [row for row in read_metrics(self._path) if row.get("step", step + 1) <= step]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        write_text(self._path, text)
        self._file = self._path.open("a", encoding="utf-8")

    @property
    def open(self) -> bool:
        """Whether lines are written."""
        return self._file is not None

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file of metrics; a torn last line is left out."""
    text = path.read_text("utf-8")
    whole = text[: text.rfind("\n") + 1]
    return [json.loads(line) for line in whole.splitlines() if line]


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON, all of it or nothing."""
    write_text(path, json.dumps(value, indent=2, default=_scalar) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path``, all of it or nothing."""
    part = path.with_name(path.name + ".tmp")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def _link(link: Path, target: str) -> None:
    part = link.with_name(f"{link.name}.{os.getpid()}.tmp")
    part.symlink_to(target)
    try:
        os.replace(part, link)
    except OSError:
        part.unlink()
        raise


def _finite(value: Any) -> Any:
    """Return ``value``, or None for a number that JSON cannot write."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _scalar(value: Any) -> Any:
    """Return a NumPy number as Python's own, anything else as text."""
    return _finite(value.item()) if hasattr(value, "item") else str(value)
