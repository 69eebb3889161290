"""Times of statements: PyTorch's ``Timer``, by Python's ``timeit``."""

from __future__ import annotations

import statistics
import timeit
from typing import Any


class Measurement:
    """Times of a statement, in seconds a run."""

    def __init__(self, times: list[float], number_per_run: int, title: str) -> None:
        self.times, self.number_per_run, self.title = times, number_per_run, title

    @property
    def median(self) -> float:
        """The time in the middle."""
        return statistics.median(self.times)

    @property
    def mean(self) -> float:
        """The mean time."""
        return statistics.fmean(self.times)

    def __repr__(self) -> str:
        return (
            f"{self.title}\n  Median: {self.median * 1e6:.2f} us ({len(self.times)} measurements)"
        )


class Timer:
    """Times a statement, as ``timeit.Timer`` does."""

    def __init__(
        self,
        stmt: str = "pass",
        setup: str = "pass",
        global_setup: str = "",
        globals: dict[str, Any] | None = None,
        label: str | None = None,
        sub_label: str | None = None,
        description: str | None = None,
        env: str | None = None,
        num_threads: int = 1,
    ) -> None:
        self._timer = timeit.Timer(stmt, setup, globals=globals)
        self._title = " ".join(filter(None, (label or stmt, sub_label, description)))

    def timeit(self, number: int = 1_000_000) -> Measurement:
        """Return the mean time of ``number`` runs."""
        return Measurement([self._timer.timeit(number) / number], number, self._title)

    def blocked_autorange(self, callback: Any = None, min_run_time: float = 0.2) -> Measurement:
        """Return the times of blocks of runs that take ``min_run_time`` seconds in all."""
        number, _ = self._timer.autorange()
        times: list[float] = []
        while sum(times) * number < min_run_time:
            times.append(self._timer.timeit(number) / number)
        return Measurement(times, number, self._title)
