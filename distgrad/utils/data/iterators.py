"""One pass over a loader: in the program itself, or with workers that fetch ahead."""

from __future__ import annotations

import queue
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from distgrad.backend.device import current_gpu, is_cuda_available
from distgrad.config import switch
from distgrad.errors import DistgradError
from distgrad.utils.data.crew import Crew, at_end_of, context_of, start_processes, start_threads
from distgrad.utils.data.fetch import DatasetKind, Recipe, fetcher
from distgrad.utils.data.pin import pin_memory
from distgrad.utils.data.sampler import draw_seed
from distgrad.utils.data.worker import Ended, Failure, Job, Restart

if TYPE_CHECKING:
    from distgrad.utils.data.dataloader import DataLoader

_LOOK_S = 1.0  # how often to look whether the workers still live


class WorkerLost(DistgradError, RuntimeError):
    """A worker that is gone, or takes longer than the loader's timeout."""


def recipe_of(loader: DataLoader[Any]) -> Recipe:
    """Return what fetchers need to know about a loader."""
    return Recipe(
        loader.dataset,
        loader._dataset_kind,
        loader._auto_collation,
        loader.collate_fn,
        loader.drop_last,
    )


class _Pass:
    """Counts the batches of one pass, and checks them against the length that was promised."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader
        self._num_yielded = 0
        self._pins = loader.pin_memory and is_cuda_available()
        self._indices: Iterator[Any] = iter(loader._index_sampler)
        if loader.pin_memory and loader.pin_memory_device:
            warnings.warn(
                "pin_memory_device is deprecated, the current accelerator will be used as the "
                f"device, ignore pin_memory_device={loader.pin_memory_device!r}.",
                stacklevel=4,
            )
        if loader.pin_memory and not self._pins:
            warnings.warn(
                "'pin_memory' argument is set as true but no accelerator is found, then device "
                "pinned memory won't be used.",
                stacklevel=4,
            )

    def __iter__(self) -> Any:
        return self

    def __len__(self) -> int:
        return len(self._loader._index_sampler)

    def _given(self, data: Any) -> Any:
        self._num_yielded += 1
        self._loader._count(self._num_yielded)
        return pin_memory(data) if self._pins else data


class DirectPass(_Pass):
    """Fetches each batch when it is asked for."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        super().__init__(loader)
        self._base_seed = draw_seed(loader.generator)
        self._fetch = fetcher(recipe_of(loader))

    def __next__(self) -> Any:
        try:
            data = self._fetch(next(self._indices))
        except StopIteration:
            self._loader._end()
            raise
        return self._given(data)

    def skip(self, batches: int) -> None:
        """Go on after so many batches."""
        for _ in range(batches):
            indices = next(self._indices, None)
            if self._loader._dataset_kind == DatasetKind.Iterable:
                self._fetch(indices)
        self._num_yielded = batches


class WorkersPass(_Pass):
    """Lets workers fetch batches ahead: batch ``i`` by worker ``i`` modulo their number."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        super().__init__(loader)
        count = loader.num_workers
        self._base_seed = draw_seed(loader.generator)
        job = Job(recipe_of(loader), count, self._base_seed, loader.worker_init_fn)
        context, kind = loader.multiprocessing_context, switch("loader_workers")
        if context is None and kind != "threads":
            context = context_of(kind, count)
        if self._pins and context is None:  # threads do it, beside the program
            self._pins, job = False, replace(job, pins_for=current_gpu())
        self._crew: Crew = start_threads(job) if context is None else start_processes(job, context)
        self._shutdown = at_end_of(self, self._crew)
        self._begin()

    def _begin(self) -> None:
        count = self._loader.num_workers
        self._sent = 0  # batches asked for
        self._next = 0  # the batch to give next
        self._worker_of: dict[int, int] = {}  # batches that are on their way
        self._arrived: dict[int, Any] = {}
        self._active = [True] * count  # False: its stream has ended
        self._load = [0] * count
        self._turn = 0

    def start(self, skip: int = 0) -> None:
        """Ask for the first batches, after ``skip`` others that are not wanted."""
        self._num_yielded = skip if self._loader._dataset_kind == DatasetKind.Map else 0
        if self._loader._dataset_kind == DatasetKind.Map:
            for _ in range(skip):
                next(self._indices, None)
                self._turn += 1  # as if that worker had fetched it
            skip = 0
        for _ in range(self._loader.num_workers * (self._loader.prefetch_factor or 2)):
            self._ask()
        for _ in range(skip):
            next(self, None)

    def restart(self) -> None:
        """Begin the next pass with the same workers."""
        while self._worker_of:  # of a pass that was left
            number, _, _ = self._receive()
            self._worker_of.pop(number)
        for tell in self._crew.tasks:
            tell(Restart())
        self._indices = iter(self._loader._index_sampler)
        self._num_yielded = 0
        self._begin()

    def __next__(self) -> Any:
        while True:
            self._pass_over_ended()
            if self._next == self._sent and not self._arrived:
                if not self._loader.persistent_workers:
                    self._shutdown()
                self._loader._end()
                raise StopIteration
            number = self._ready()
            if number is None:
                self._take_in(*self._receive())
            else:
                return self._hand_out(number)

    def _pass_over_ended(self) -> None:
        """Leave out batches that were asked of a worker whose stream had ended."""
        while self._next < self._sent:
            here = self._next in self._arrived or self._next in self._worker_of
            if here:
                return
            self._next += 1

    def _ready(self) -> int | None:
        """Return the number of a batch that can be given now."""
        if self._loader.in_order:
            return self._next if self._next in self._arrived else None
        return next(iter(self._arrived), None)

    def _take_in(self, number: int, worker: int, data: Any) -> None:
        self._worker_of.pop(number)
        self._load[worker] -= 1
        if not isinstance(data, Ended):
            self._arrived[number] = data
            return
        self._active[worker] = False
        self._ask()

    def _hand_out(self, number: int) -> Any:
        data = self._arrived.pop(number)
        self._ask()
        if isinstance(data, Failure):
            data.reraise()
        return self._given(data)

    def _ask(self) -> None:
        """Ask the next worker for the next batch, if there is one."""
        worker = self._next_worker()
        if worker is None:
            return
        try:
            indices = next(self._indices)
        except StopIteration:
            return
        self._crew.tasks[worker]((self._sent, indices))
        self._worker_of[self._sent] = worker
        self._load[worker] += 1
        self._sent += 1

    def _next_worker(self) -> int | None:
        count = self._loader.num_workers
        limit = self._loader.prefetch_factor or 2
        for _ in range(count):
            worker = self._turn % count
            self._turn += 1
            if self._active[worker] and (self._loader.in_order or self._load[worker] < limit):
                return worker
        return None

    def _receive(self) -> Any:
        """Wait for the next answer of any worker."""
        timeout_s = self._loader.timeout
        end = time.monotonic() + timeout_s if timeout_s else float("inf")
        while True:
            try:
                return self._crew.receive(min(_LOOK_S, max(end - time.monotonic(), 0.0)))
            except queue.Empty:
                pass
            if time.monotonic() >= end:
                raise WorkerLost(
                    f"DataLoader timed out after {timeout_s} seconds; give it a longer timeout, or "
                    "look what the dataset waits for"
                )
            if gone := self._crew.dead():
                ids = ", ".join(map(str, gone))
                raise WorkerLost(
                    f"DataLoader worker (pid(s) {ids}) exited unexpectedly; look for a crash or a "
                    "killed process (out of memory)"
                )
