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

from distgrad.backend.device import device_of
from distgrad.distributed.bucket import Flat
from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.halves import gather_parts
from distgrad.distributed.nccl import Turn, meet
from distgrad.distributed.progress import Progress
from distgrad.distributed.reduction import PHASES, Exchange, Reduction
from distgrad.distributed.staging import Passage, Stage, Staged, pinned_zeros
from distgrad.distributed.waiting import watched
from distgrad.distributed.work import HostArray, Work


class _Open(NamedTuple):
    """A flat array that is being gathered, and what lets readers have it after that."""

    flat: Flat
    job: Work | None
    arrive: Callable[[], None]


class Gathering:
    """Gathers flat arrays on a channel.

    Args:
        channel: where the messages go.
        progress: moves them; without one, `start` returns when an array is whole.
    """

    def __init__(self, channel: ProcessGroup, progress: Progress | None) -> None:
        self.channel, self._progress = channel, progress
        self._open: dict[int, _Open] = {}
        self._ways: dict[int, tuple[Passage, HostArray]] = {}  # of flat arrays on a GPU
        self._stages: dict[int, Stage] = {}
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
            on_host = isinstance(flat.values, np.ndarray)
            self._open[flat.index] = self._on_host(flat) if on_host else self._on_gpu(flat)
        if self._progress is None:
            self.wait()

    def _on_host(self, flat: Flat) -> _Open:
        return _Open(flat, self._job(self._beginning(flat, flat.values)), lambda: None)

    def _on_gpu(self, flat: Flat) -> _Open:
        """Gather by NCCL, or by way of the host: out what this rank owns, back what others do."""
        values, call = flat.values, f"all_gather(parameters of {flat.describe()})"
        index = device_of(values).index or 0
        link = meet(self.channel, index, "parameters").link
        if link is not None:
            turn = Turn(link)
            turn.take()
            turn.gather_slices(call, values, flat.owned)
            return _Open(flat, None, turn.arrive)
        passage, host = self._way(flat, index)
        mine = flat.owned[self.channel.rank]
        passage.fetch([(values[mine], host[mine])])
        others = (slice(0, mine.start), slice(mine.stop, values.size))
        brings = [(values[part], host[part]) for part in others if part.stop > part.start]
        begin = self._beginning(flat, host)
        job = self._job(lambda: Staged(passage, begin, brings, self.channel, call))
        return _Open(flat, job, passage.arrive)

    def _way(self, flat: Flat, index: int) -> tuple[Passage, HostArray]:
        """Return events and pinned memory for a flat array, the same as the last time."""
        values, way = flat.values, self._ways.get(flat.index)
        if way is None or (way[1].size, way[1].dtype) != (values.size, values.dtype):
            stage = self._stages.setdefault(index, Stage(index))
            stage.settle()  # or memory would be freed while it is copied
            way = Passage(stage), pinned_zeros(values.size, values.dtype)
            self._ways[flat.index] = way
        return way

    def _job(self, begin: Callable[[], Work]) -> Work:
        return begin() if self._progress is None else self._progress.submit(begin)

    def _beginning(self, flat: Flat, host: HostArray) -> Callable[[], Work]:
        channel, call = self.channel, f"all_gather(parameters of {flat.describe()})"
        alone: list[list[Any]] = [[] for _ in range(channel.size)]

        def begin() -> Work:
            x = Exchange(channel, [host], alone, np.add, flat.index * PHASES, call)
            return Reduction(x, gather_parts(x, flat.owned))

        return begin

    def forget(self) -> None:
        """Let arrays be torn that are not whole: a rank that had a part of them has ended."""
        self._open.clear()

    def wait(self, indices: Iterable[int] | None = None) -> None:
        """Return when the arrays of these numbers, by default all, are whole."""
        began = time.perf_counter()
        for index in list(self._open) if indices is None else indices:
            if index not in self._open:
                continue
            flat, job, arrive = self._open[index]
            call = f"all_gather(parameters of {flat.describe()})"
            if job is not None:
                with watched(self.channel, call, time.monotonic()):
                    job.wait()
            del self._open[index]
            arrive()
        self.waited_s += time.perf_counter() - began
