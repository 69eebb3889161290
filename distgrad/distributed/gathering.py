"""Gathering parameters whose parts other ranks have updated.

Note [Gathered while forward begins]
    The parts go to the communication thread in the order in which forward needs them. Until a flat
    array is whole, its values are torn between two steps: whoever reads them waits for it first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from distgrad.backend.device import CPU, device_of, to_device
from distgrad.distributed.bucket import Flat
from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.halves import gather_parts
from distgrad.distributed.progress import Progress
from distgrad.distributed.reduction import PHASES, Exchange, Reduction
from distgrad.distributed.waiting import watched
from distgrad.distributed.work import HostArray, Work


class _Open(NamedTuple):
    """A flat array that is being gathered, and where on the host."""

    flat: Flat
    job: Work
    host: HostArray


class Gathering:
    """Gathers flat arrays on a channel.

    Args:
        channel: where the messages go.
        progress: moves them; without one, `start` returns when an array is whole.
    """

    def __init__(self, channel: ProcessGroup, progress: Progress | None) -> None:
        self.channel, self._progress = channel, progress
        self._open: dict[int, _Open] = {}
        self.waited_s = 0.0  # somebody stood still for parameters: exposed, in seconds
        self.guard: Callable[[], None] | None = None  # makes readers wait from then on

    def __bool__(self) -> bool:
        """Return whether any array is not whole."""
        return bool(self._open)

    def start(self, flats: Iterable[Flat]) -> None:
        """Start to make arrays whole.

        Ranks: all, with the same arrays in the same order.
        Cost: (P-1)/P of their bytes to each rank, and from it.
        """
        if self.channel.size == 1:
            return
        for flat in flats:
            values = flat.values
            host = values if isinstance(values, np.ndarray) else to_device(values, CPU)
            begin = self._beginning(flat, host)
            if self._progress is None:
                job: Work = begin()
            else:
                job = self._progress.submit(begin)
            self._open[flat.index] = _Open(flat, job, host)
        if self._progress is None:
            self.wait()

    def _beginning(self, flat: Flat, host: HostArray) -> Callable[[], Work]:
        channel, call = self.channel, f"all_gather(parameters of {flat.describe()})"
        alone: list[list[Any]] = [[] for _ in range(channel.size)]

        def begin() -> Work:
            x = Exchange(channel, [host], alone, np.add, flat.index * PHASES, call)
            return Reduction(x, gather_parts(x, flat.owned))

        return begin

    def wait(self, indices: Iterable[int] | None = None) -> None:
        """Return when the arrays of these numbers, by default all, are whole."""
        began = time.perf_counter()
        for index in list(self._open) if indices is None else indices:
            if index not in self._open:
                continue
            flat, job, host = self._open[index]
            call = f"all_gather(parameters of {flat.describe()})"
            with watched(self.channel, call, time.monotonic()):
                job.wait()
            del self._open[index]
            if host is not flat.values:
                flat.values[...] = to_device(host, device_of(flat.values))
        self.waited_s += time.perf_counter() - began
