"""Record when a rank computes and when it communicates, for chrome://tracing and Perfetto."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COMPUTE, ALL_REDUCE = "compute", "all-reduce"


class Trace:
    """The spans of one rank, in seconds of ``time.perf_counter``.

    Spans may be added from any thread.  Ranks on several hosts have clocks of their own, so each
    calls ``align`` right after the same barrier.

    Example:
        >>> trace = Trace(rank=0)
        >>> trace.add(COMPUTE, "backward", 0.0, 4.0)
        >>> trace.add(ALL_REDUCE, "bucket 0", 3.0, 5.0)
        >>> trace.communication()
        (2.0, 1.0)
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.origin = 0.0
        self.spans: list[tuple[str, str, float, float]] = []

    def align(self) -> None:
        """Make now the zero of this rank's clock."""
        self.origin = time.perf_counter()

    def add(self, track: str, name: str, start: float, stop: float) -> None:
        """Add the span ``name`` from ``start`` to ``stop``."""
        self.spans.append((track, name, start, stop))

    @contextmanager
    def span(self, track: str, name: str) -> Iterator[None]:
        """Return a context whose duration becomes the span ``name``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(track, name, start, time.perf_counter())

    def communication(self) -> tuple[float, float]:
        """Return the seconds spent in all-reduces and those of them hidden behind compute."""
        busy = _union((a, b) for track, _, a, b in self.spans if track == COMPUTE)
        wire = _union((a, b) for track, _, a, b in self.spans if track == ALL_REDUCE)
        hidden = sum(max(0.0, min(b, d) - max(a, c)) for a, b in wire for c, d in busy)
        return sum(b - a for a, b in wire), hidden

    def save(self, path: Path) -> None:
        """Write the spans of this rank as a Chrome trace."""
        _write(path, self._events())

    def _events(self) -> list[dict[str, Any]]:
        name = {"name": "process_name", "args": {"name": f"rank {self.rank}"}}
        order = {"name": "process_sort_index", "args": {"sort_index": self.rank}}
        lanes = _lanes(self.spans)
        events: list[dict[str, Any]] = [name, order]
        events += [
            {"name": "thread_name", "tid": tid, "args": {"name": track}}
            for tid, (track, _) in enumerate(lanes)
        ]
        head = {"ph": "M", "pid": self.rank}
        events = [head | event for event in events]
        for tid, (track, spans) in enumerate(lanes):
            for span, start, stop in spans:
                at = {"ts": _us(start - self.origin), "dur": _us(stop - start)}
                events.append(
                    {"ph": "X", "pid": self.rank, "tid": tid, "name": span, "cat": track} | at
                )
        return events


def _lanes(
    spans: Iterable[tuple[str, str, float, float]],
) -> list[tuple[str, list[tuple[str, float, float]]]]:
    """Return the rows that viewers draw: what crosses something of its track gets one of its own.

    A viewer takes the events of a row for calls, of which one lies in the other or behind it.
    """
    lanes: list[tuple[str, list[tuple[str, float, float]]]] = []
    for track in (COMPUTE, ALL_REDUCE):
        rows: list[list[tuple[str, float, float]]] = [[]]
        mine = [span[1:] for span in spans if span[0] == track]
        for span in sorted(mine, key=lambda span: (span[1], -span[2])):
            row = next((row for row in rows if not _crosses(row, span)), None)
            if row is None:
                rows.append(row := [])
            row.append(span)
        lanes += [(track, row) for row in rows]
    return lanes


def _crosses(row: list[tuple[str, float, float]], span: tuple[str, float, float]) -> bool:
    """Return whether ``span`` begins within one of ``row`` and ends after it."""
    return any(span[1] < stop < span[2] for _, _, stop in row)


def merge(parts: Iterable[Path], path: Path) -> int:
    """Write the traces ``parts`` of several ranks as one file and return how many there were.

    A part that does not exist is left out: without a shared file system each host has its own.
    """
    found = [part for part in parts if part.exists()]
    events = [event for part in found for event in json.loads(part.read_text())["traceEvents"]]
    _write(path, events)
    return len(found)


def _write(path: Path, events: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"displayTimeUnit": "ms", "traceEvents": events}))


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 1)


def _union(spans: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return ``spans`` with those that touch made one."""
    joined: list[tuple[float, float]] = []
    for start, stop in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]))
        else:
            joined.append((start, stop))
    return joined
