"""A worker of a loader: what it does, in a thread or in a process of its own."""

from __future__ import annotations

import copy
import pickle
import random
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import numpy

from distgrad.backend.device import bind_gpu
from distgrad.backend.device import device as Device
from distgrad.backend.random import Generator, default_generator, use_generator
from distgrad.utils.data.fetch import DatasetKind, Fetcher, Recipe, fetcher
from distgrad.utils.data.pin import pin_memory


@dataclass
class WorkerInfo:
    """What ``get_worker_info`` tells: which worker this is, of how many."""

    id: int
    num_workers: int
    seed: int
    dataset: Any


class _Here(threading.local):
    info: WorkerInfo | None = None


_here = _Here()
_of_process: list[WorkerInfo] = []  # in a worker process, for threads that its dataset starts


def get_worker_info() -> WorkerInfo | None:
    """Return which worker runs this; None in the program itself.

    ``info.dataset`` is the worker's own copy of the dataset (in a thread a shallow one, so that
    attributes can be set and large arrays are shared).
    """
    return _here.info or (_of_process[0] if _of_process else None)


# ---------------------------------------------------------------------- messages
@dataclass(frozen=True)
class Ended:
    """Instead of a batch: the worker's stream has ended."""


@dataclass(frozen=True)
class Restart:
    """Instead of indices: begin the dataset anew, for the next epoch."""


class Failure:
    """Instead of a batch: what the worker raised."""

    def __init__(self, kind: type[BaseException], text: str, where: str) -> None:
        self.kind = kind
        self.text = text
        self.where = where

    @staticmethod
    def of(error: BaseException, where: str) -> Failure:
        """Return what tells of ``error``."""
        return Failure(type(error), "".join(traceback.format_exception(error)), where)

    def __reduce__(self) -> tuple[Any, ...]:
        kind = self.kind
        try:  # the class of the error may be unknown to the other process
            pickle.dumps(kind)
        except Exception:
            kind = RuntimeError
        return Failure, (kind, self.text, self.where)

    def reraise(self) -> NoReturn:
        """Raise an error of the same class whose message holds the worker's traceback."""
        text = f"Caught {self.kind.__name__} {self.where}.\nOriginal {self.text}"
        try:
            error = self.kind(_Verbatim(text) if issubclass(self.kind, KeyError) else text)
        except Exception:  # its constructor takes something else
            raise RuntimeError(text) from None
        raise error


class _Verbatim(str):
    """A text that KeyError shows as it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


# ---------------------------------------------------------------------- the worker
@dataclass(frozen=True)
class Job:
    """What the workers of one loader do."""

    recipe: Recipe
    num_workers: int
    base_seed: int
    init_fn: Callable[[int], Any] | None
    pins_for: Device | None = None  # the GPU beside which threads put batches in pinned memory


def work_in_thread(
    job: Job, number: int, take: Callable[[], Any], give: Callable[[Any], None]
) -> None:
    """Fetch batches until ``take`` gives None.

    Tensors' random numbers are those of a process with this worker's seed.  Python's and NumPy's
    global generators belong to the whole program and are not seeded.
    """
    if job.pins_for is not None:
        bind_gpu(job.pins_for)  # or pinning would start another one
    dataset = copy.copy(job.recipe.dataset)
    info = WorkerInfo(number, job.num_workers, job.base_seed + number, dataset)
    _here.info = info
    with use_generator(Generator().manual_seed(info.seed)):
        _work(job, info, take, give, f"in DataLoader worker thread {number}")


def work_in_process(
    job: Job, number: int, take: Callable[[], Any], give: Callable[[Any], None]
) -> None:
    """Fetch batches until ``take`` gives None, with the seeds that PyTorch gives a worker."""
    info = WorkerInfo(number, job.num_workers, job.base_seed + number, job.recipe.dataset)
    _here.info = info
    _of_process[:] = [info]
    random.seed(info.seed)
    words = [number, job.base_seed & 0xFFFFFFFF, job.base_seed >> 32, 0]
    numpy.random.seed(numpy.random.SeedSequence(words).generate_state(4))  # noqa: NPY002  (users')
    default_generator.manual_seed(info.seed)
    with use_generator(default_generator):
        _work(job, info, take, give, f"in DataLoader worker process {number}")


def _work(
    job: Job,
    info: WorkerInfo,
    take: Callable[[], Any],
    give: Callable[[Any], None],
    where: str,
) -> None:
    recipe = replace(job.recipe, dataset=info.dataset)
    broken: Failure | None = None
    fetch: Fetcher | None = None
    try:
        if job.init_fn is not None:
            job.init_fn(info.id)
        fetch = fetcher(recipe)
    except BaseException as error:  # also SystemExit: nobody would see it here
        broken = Failure.of(error, where)
    while (task := take()) is not None:
        if isinstance(task, Restart):
            fetch = None
            continue
        place, indices = task
        answer: Any = broken
        if broken is None:
            try:
                fetch = fetch or fetcher(recipe)
                answer = _fetched(fetch, indices, recipe.kind)
                answer = answer if job.pins_for is None else pin_memory(answer)
            except BaseException as error:
                answer = Failure.of(error, where)
        give((place, info.id, answer))


def _fetched(fetch: Fetcher, indices: Any, kind: DatasetKind) -> Any:
    try:
        return fetch(indices)
    except StopIteration:
        if kind == DatasetKind.Iterable:
            return Ended()
        raise
