"""The directory of a run's checkpoints: which there are, which stay, and where links lead."""

from __future__ import annotations

import contextlib
import math
import re
from dataclasses import dataclass
from pathlib import Path

from distgrad.distributed.checkpoint.folder import clean, flush, link, remove
from distgrad.distributed.checkpoint.index import Index
from distgrad.errors import CheckpointError
from distgrad.launch.checkpoint.first_format import FirstFormat
from distgrad.launch.checkpoint.source import source

LATEST, BEST = "latest", "best"
_STEP = re.compile(r"step_[0-9]{8,18}")
_MOST = 1e300


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a checkpoint without reading its tensors."""

    serial: int | None  # -1: of the first format; None: its index cannot be read
    step: int
    metric: float  # infinite without an evaluation
    readable: bool


class Directory:
    """Checkpoints by their steps, as rank 0 sees them.

    Args:
        folder: where they are; it need not be there.
        keep: how many stay, the newest.
    """

    def __init__(self, folder: Path, keep: int = 3) -> None:
        self.folder, self.keep = folder, max(1, keep)
        self._known: dict[str, Known] = {}

    def path(self, step: int) -> Path:
        """Return where the checkpoint of a step is."""
        return self.folder / f"step_{step:08d}"

    def newest_first(self) -> list[Path]:
        """Return the checkpoints in the order in which to try them.

        The one that was written last comes first, whatever its step: a run that went on from an
        older one has left the newer ones behind.
        """
        found = [p for p in self.folder.glob("step_*") if _is_step(p)]
        for path in found:
            self._look(path.name)
        return sorted(found, key=lambda p: self._order(p.name), reverse=True)

    def next_serial(self) -> int:
        """Return the serial of the checkpoint that is written next."""
        return 1 + max((self._look(p.name).serial or 0 for p in self.newest_first()), default=0)

    def tidy(self) -> int:
        """Remove what killed writers have left; return how many."""
        return clean(self.folder)

    def finished(self, path: Path, index: Index, token: str) -> None:
        """Take note of a checkpoint that is complete: links, and old ones that go."""
        self._known[path.name] = _known(path.name, index)
        # some file systems know no links; nothing depends on them
        with contextlib.suppress(OSError):
            link(self.folder / LATEST, path.name, token)
            best = self.best()
            if best is not None:
                link(self.folder / BEST, best.name, token)
            flush(self.folder)
        self._drop_old(token)

    def best(self) -> Path | None:
        """Return the checkpoint with the least metric, the first of equals."""
        rated = [
            (self._look(p.name).metric, self._order(p.name), p)
            for p in self.newest_first()
            if math.isfinite(self._look(p.name).metric)
        ]
        return min(rated)[2] if rated else None

    def _drop_old(self, token: str) -> None:
        """Remove what is older than the ``keep`` newest readable ones, but for the best."""
        kept, best = 0, self.best()
        for path in self.newest_first():
            if kept >= self.keep and path != best:
                with contextlib.suppress(OSError):  # a later save tries again
                    if remove(path, token):
                        self._known.pop(path.name, None)
            kept += self._look(path.name).readable

    def _order(self, name: str) -> tuple[int, int, int]:
        """Return what tells which of two checkpoints is newer.

        One that does not say when it was written comes right after the last step before its own.
        """
        known = self._look(name)
        if known.serial is not None:
            return known.serial, known.step, 0
        others = [k for k in self._known.values() if k.serial is not None and k.step <= known.step]
        before = max(others, key=lambda k: k.step, default=None)
        if before is None or before.serial is None:
            return -2, known.step, 0
        return before.serial, before.step, 1 + known.step

    def _look(self, name: str) -> Known:
        if name not in self._known:
            self._known[name] = _seen(self.folder / name)
        return self._known[name]


def _seen(path: Path) -> Known:
    """Return what is known of a checkpoint that another program wrote."""
    step, serial = int(path.name[5:]), None
    try:
        with contextlib.closing(source(path)) as found:
            if isinstance(found, FirstFormat):
                return Known(-1, step, math.inf, True)
            serial = found.index.serial
            for name in found.index.files:
                found.file(name)
            return _known(path.name, found.index)
    except (CheckpointError, OSError):
        return Known(serial, step, math.inf, False)


def _known(name: str, index: Index) -> Known:
    job = index.objects.get("job")
    metric = job.get("metric") if isinstance(job, dict) else None
    rated = math.inf
    if isinstance(metric, int | float) and abs(metric) < _MOST:
        rated = float(metric)
    return Known(index.serial, int(name[5:]), rated, True)


def _is_step(path: Path) -> bool:
    return _STEP.fullmatch(path.name) is not None and path.is_dir() and not path.is_symlink()
