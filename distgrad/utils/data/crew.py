"""The workers of a loader: threads, or processes that keep away from MPI."""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distgrad.errors import ArgumentError, ArgumentTypeError
from distgrad.utils.data.worker import Failure, Job, work_in_process, work_in_thread

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

# Note [Workers and MPI]
# ~~~~~~~~~~~~~~~~~~~~~~
# A process that starts MPI with the variables of a rank in its environment takes itself for that
# rank: MPICH ends it with an error, Open MPI with a segmentation fault. A spawned worker imports
# the user's script again and may so import mpi4py. So the workers' environment has none of these
# variables, and mpi4py is told not to start MPI when it is imported.
_OF_MPI = ("PMI_", "PMIX_", "OMPI_", "HYDI_", "MPI_LOCAL")
_CALM = {"MPI4PY_RC_INITIALIZE": "0", "MPI4PY_RC_FINALIZE": "0"}

_GRACE_S = 5.0  # how long a worker may take to end
_LOOK_S = 1.0  # how often to look whether the other side still lives

_environment = threading.Lock()


@dataclass(frozen=True)
class Crew:
    """How a loader speaks with its workers, of either kind."""

    tasks: list[Callable[[Any], None]]  # one for each worker
    receive: Callable[[float], Any]  # raises queue.Empty after so many seconds
    dead: Callable[[], list[int]]  # the process ids of workers that are gone
    stop: Callable[[], Any]


# ---------------------------------------------------------------------- threads
def start_threads(job: Job) -> Crew:
    """Start one thread for each worker."""
    tasks: list[queue.SimpleQueue[Any]] = [queue.SimpleQueue() for _ in range(job.num_workers)]
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()
    stopped = threading.Event()
    for number, inbox in enumerate(tasks):
        take = _taker(inbox.get, stopped.is_set)
        name = f"DataLoader worker {number}"
        args = (job, number, take, results.put)
        threading.Thread(target=work_in_thread, args=args, name=name, daemon=True).start()

    def stop() -> None:
        stopped.set()
        for inbox in tasks:
            inbox.put(None)

    def receive(timeout_s: float) -> Any:
        return results.get(timeout=timeout_s)

    return Crew([inbox.put for inbox in tasks], receive, list, stop)


def _taker(get: Callable[[], Any], stopped: Callable[[], bool]) -> Callable[[], Any]:
    """Return a function that gets the next task, and None when the loader has stopped."""

    def take() -> Any:
        task = get()
        return None if stopped() else task

    return take


# ---------------------------------------------------------------------- processes
def start_processes(job: Job, context: BaseContext) -> Crew:
    """Start one process for each worker; see Note [Workers and MPI]."""
    results: Any = context.Queue()
    stopped = context.Event()
    tasks: list[Any] = []
    processes: list[Any] = []
    with _without_mpi():
        for number in range(job.num_workers):
            inbox, outbox = context.Pipe(duplex=False)
            args = (job, number, inbox, results, stopped, os.getpid())
            process = context.Process(target=_process, args=args, daemon=True)  # type: ignore[attr-defined]
            process.start()
            inbox.close()
            tasks.append(outbox)
            processes.append(process)

    def receive(timeout_s: float) -> Any:
        number, worker, data = results.get(timeout=timeout_s)
        return number, worker, pickle.loads(data)  # our own worker wrote it

    def dead() -> list[int]:
        return [p.pid for p in processes if not p.is_alive()]

    def stop() -> None:
        _stop(processes, tasks, stopped)

    return Crew([outbox.send for outbox in tasks], receive, dead, stop)


def _stop(processes: list[Any], tasks: list[Any], stopped: Any) -> None:
    stopped.set()
    for outbox in tasks:
        with contextlib.suppress(OSError):  # a worker that is gone
            outbox.send(None)
        outbox.close()
    for process in processes:
        process.join(_GRACE_S)
        if process.is_alive():
            process.terminate()
            process.join(_GRACE_S)


@contextlib.contextmanager
def _without_mpi() -> Iterator[None]:
    """Take the variables of MPI away from processes that are started inside."""
    with _environment:
        kept = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith(_OF_MPI)}
        before = {name: os.environ.get(name) for name in _CALM}
        os.environ.update(_CALM)
        try:
            yield
        finally:
            os.environ.update(kept)
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def _process(job: Job, number: int, inbox: Any, results: Any, stopped: Any, parent: int) -> None:
    """The whole life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the program decides
    for kind in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(kind, signal.SIG_DFL)  # a launcher's handlers are the rank's, not ours

    def get() -> Any:
        while not inbox.poll(_LOOK_S):  # the rank may have been killed
            if os.getppid() != parent or stopped.is_set():
                return None
        return inbox.recv()

    def give(answer: tuple[int, int, Any]) -> None:
        results.put((*answer[:2], _packed(answer[2], number)))

    work_in_process(job, number, _taker(get, stopped.is_set), give)
    results.cancel_join_thread()  # nobody reads what is left


def _packed(data: Any, number: int) -> bytes:
    """Return ``data`` as bytes; where it cannot be sent, the error that says so."""
    try:
        return pickle.dumps(data, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        where = f"in DataLoader worker process {number}, sending a batch"
        return pickle.dumps(Failure.of(error, where), protocol=pickle.HIGHEST_PROTOCOL)


def at_end_of(owner: object, crew: Crew) -> Callable[[], Any]:
    """Stop the workers when ``owner`` is gone, or when the returned function is called."""
    return weakref.finalize(owner, crew.stop)


def context_of(value: Any, num_workers: int) -> BaseContext:
    """Return the context of a start method; a context is one already.

    Raises:
        ArgumentError: there is no such start method, or there are no workers.
    """
    import multiprocessing  # it loads sockets, which `import distgrad` need not
    from multiprocessing.context import BaseContext

    if num_workers == 0:
        raise ArgumentError(
            "DataLoader(): multiprocessing_context can only be used with multi-process loading "
            f"(num_workers > 0), but got num_workers={num_workers}"
        )
    if isinstance(value, str):
        valid = multiprocessing.get_all_start_methods()
        if value not in valid:
            raise ArgumentError(
                "DataLoader(): multiprocessing_context option should specify a valid start method "
                f"in {valid!r}, but got multiprocessing_context={value!r}"
            )
        return multiprocessing.get_context(value)
    if not isinstance(value, BaseContext):
        raise ArgumentTypeError(
            "DataLoader(): multiprocessing_context option should be a valid context object or a "
            f"string specifying the start method, but got multiprocessing_context={value}"
        )
    return value
