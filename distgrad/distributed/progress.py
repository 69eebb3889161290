"""Progress: the thread that keeps transfers moving while backward computes.

MPI moves data only inside its own calls, so a started transfer stands still until somebody tests it
again. The thread here starts the jobs it is given and tests the open ones with naps in between.

Note [Switch interval]: a Python thread that wants the interpreter waits up to
``sys.getswitchinterval()``, 5 ms by default, while another one computes. A transfer that needs ten
tests would need 50 ms. While jobs are open the interval is therefore 0.1 ms.

Note [Timed get]: up to Python 3.12, ``SimpleQueue.get(timeout=...)`` waits without end when the
time runs out between its two looks at its lock, as what is left of it is then negative. With naps
of 50 us that stopped one process in some hundred. So the thread sleeps, and waits in the queue only
while there is nothing else to do.
"""

from __future__ import annotations

import sys
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TypeVar

from distgrad.distributed.group import DEFAULT_TIMEOUT_S, ProcessGroup
from distgrad.distributed.waiting import nap_s, watched
from distgrad.distributed.work import Work
from distgrad.errors import DistributedError

_PATIENCE_S = 0.25  # between two looks of a rank that waits for a job
CLOSE_TIMEOUT_S = 5.0
_FAST_SWITCH_S = 1e-4
_REST = 9.0  # the thread sleeps so much longer than it works, for backward needs the core,
_MOST_REST_S = 1e-3  # but never so long that a network's buffers run empty
J = TypeVar("J", bound="Job")


class Job(Work):
    """Work that a `Progress` starts and tests on behalf of the one who submitted it."""

    __slots__ = ("_done", "_error", "_group", "_start", "_timeout_s", "_work")

    def __init__(
        self, start: Callable[[], Work], timeout_s: float, group: ProcessGroup | None = None
    ) -> None:
        super().__init__("", -1)
        self._start = start
        self._work: Work | None = None
        self._error: BaseException | None = None
        self._timeout_s, self._group = timeout_s, group
        self._done = threading.Event()

    def test(self) -> bool:
        """Return whether the job is complete; raises what its transfer raised."""
        if not self._done.is_set():
            return False
        if self._error is not None:
            raise self._error
        return True

    def is_completed(self) -> bool:
        """Return whether the job is over, well or not."""
        return self._done.is_set()

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when the job is complete; raises what its transfer raised."""
        limit = self._timeout_s if timeout_s is None else timeout_s
        started = time.monotonic()
        if self._done.wait(min(limit, _PATIENCE_S)) or self._group is None:
            if not self._done.wait(limit):
                raise self._late(limit)
        else:
            with watched(self._group, self.call, started) as check:
                while not self._done.wait(_PATIENCE_S):
                    check()
                    if time.monotonic() - started > limit:
                        raise self._late(limit)
        self.test()

    def _late(self, limit: float) -> DistributedError:
        return DistributedError(
            f"{self.call or 'a transfer that is not started yet'}: not complete after {limit} s; "
            "another rank is late, stuck or has ended: look at the last line of every rank's log"
        )

    def _step(self) -> bool:
        """Start or test the transfer once and return whether the job is over."""
        try:
            if self._work is None:
                self._work = self._start()
                self.call, self.sequence = self._work.call, self._work.sequence
            if self._work.test():
                self._finish(None)
        except BaseException as error:  # belongs to the waiter, whatever it is
            self._finish(error)
        return self._done.is_set()

    def _finish(self, error: BaseException | None) -> None:
        if not self._done.is_set():
            self._error = error
            _switching.release()
            self._done.set()


class Progress(ABC):
    """Starts jobs in the order of submission and moves them until they are complete."""

    timeout_s: float

    @abstractmethod
    def submit(self, start: Callable[[], Work]) -> Job:
        """Return the job that will call ``start`` and see its work through.

        Ranks: every rank must submit the same jobs; in the same order if they are the library's.
        """

    @abstractmethod
    def poll(self) -> None:
        """Give open jobs a push from the calling thread, where no other thread does so."""

    @abstractmethod
    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Complete open jobs for at most ``timeout_s``, give up the rest, accept no more."""


class CommunicationThread(Progress):
    """A daemon thread that starts and tests jobs.

    It ends with `close`, with the object's last reference, or before the interpreter ends, and so
    before MPI is finalised.
    """

    def __init__(
        self, timeout_s: float = DEFAULT_TIMEOUT_S, group: ProcessGroup | None = None
    ) -> None:
        self.timeout_s, self._group = timeout_s, group
        self._queue: SimpleQueue[Job | float] = SimpleQueue()
        self._closed = False
        # The thread knows the queue and not this object, or the object could never be dropped.
        self._thread = threading.Thread(
            target=_serve, args=(self._queue,), name="distgrad-communication", daemon=True
        )
        self._thread.start()
        self._stop = weakref.finalize(self, _stop, self._queue, self._thread, CLOSE_TIMEOUT_S)

    def submit(self, start: Callable[[], Work]) -> Job:
        """Return the job that the thread will start after those submitted before."""
        job = _new_job(Job(start, self.timeout_s, self._group), self._closed)
        self._queue.put(job)
        return job

    def poll(self) -> None:
        """Do nothing: the thread does it."""

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Complete open jobs for at most ``timeout_s``, give up the rest, end the thread."""
        self._closed = True
        if self._stop.detach() is not None:
            _stop(self._queue, self._thread, timeout_s)


class InlineProgress(Progress):
    """The same where MPI allows only one thread: jobs move when `poll` or ``wait`` is called."""

    def __init__(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self.timeout_s = timeout_s
        self._jobs: deque[Job] = deque()
        self._closed = False

    def submit(self, start: Callable[[], Work]) -> Job:
        """Return the job, started at once if few enough are open."""
        job = _new_job(InlineJob(start, self), self._closed)
        self._jobs.append(job)
        self.poll()
        return job

    def poll(self) -> None:
        """Start and test the open jobs once."""
        _step_all(self._jobs)

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Complete open jobs for at most ``timeout_s`` and give up the rest."""
        self._closed = True
        started = time.monotonic()
        while self._jobs and (waited := time.monotonic() - started) < timeout_s:
            time.sleep(nap_s(waited))
            self.poll()
        _give_up(self._jobs)


class InlineJob(Job):
    """A job that moves only while it is tested or waited for."""

    __slots__ = ("_progress",)

    def __init__(self, start: Callable[[], Work], progress: InlineProgress) -> None:
        super().__init__(start, progress.timeout_s)
        self._progress = progress

    def test(self) -> bool:
        """Return whether the job is complete, after moving all open jobs."""
        if not self._done.is_set():
            self._progress.poll()
        return super().test()

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when the job is complete, moving all open jobs meanwhile."""
        limit = self._timeout_s if timeout_s is None else timeout_s
        started = time.monotonic()
        while not self.test():
            waited = time.monotonic() - started
            if waited > limit:
                raise self._late(limit)
            time.sleep(nap_s(waited))


def start_progress(group: ProcessGroup) -> Progress:
    """Return the progress that suits ``group``: a thread where its backend allows one."""
    if group.thread_safe:
        return CommunicationThread(group.timeout_s, group)
    return InlineProgress(group.timeout_s)


class _SwitchInterval:
    """Keeps the interpreter's switch interval short while anybody holds it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._usual = 0.0

    def hold(self) -> None:
        with self._lock:
            if self._holders == 0:
                self._usual = sys.getswitchinterval()
                sys.setswitchinterval(min(self._usual, _FAST_SWITCH_S))
            self._holders += 1

    def release(self) -> None:
        with self._lock:
            self._holders -= 1
            if self._holders == 0:
                sys.setswitchinterval(self._usual)


_switching = _SwitchInterval()


def _new_job(job: J, closed: bool) -> J:
    if closed:
        raise DistributedError("submit(): the progress is closed; submit before close()")
    _switching.hold()  # in the submitter's thread: the server may have to wait for the interpreter
    return job


def _step_all(jobs: deque[Job]) -> bool:
    """Start and test all jobs, drop those that are over; return whether any was.

    All of them: ranks may submit in different orders, so none may wait for another.
    """
    over = [job for job in list(jobs) if job._step()]
    for job in over:
        jobs.remove(job)
    return bool(over)


def _serve(queue: SimpleQueue[Job | float]) -> None:
    """Run jobs from ``queue`` until a number comes: the seconds left for the open ones."""
    jobs: deque[Job] = deque()
    progressed, spent = time.monotonic(), 0.0
    deadline: float | None = None
    while deadline is None or (jobs and time.monotonic() < deadline):
        try:
            item = queue.get(block=not jobs)  # see Note [Timed get]
        except Empty:
            time.sleep(max(min(_REST * spent, _MOST_REST_S), nap_s(time.monotonic() - progressed)))
        else:
            progressed = time.monotonic()
            if isinstance(item, Job):
                jobs.append(item)
            else:
                deadline = progressed + item
            del item  # or the last job, and all it knows, would live as long as this thread
        began = time.thread_time()  # on a busy core most of a wall clock's time is others'
        over = _step_all(jobs)
        spent = time.thread_time() - began
        if over:
            progressed = time.monotonic()
    _give_up(jobs)


def _give_up(jobs: deque[Job]) -> None:
    for job in jobs:
        job._finish(
            DistributedError(
                f"{job.call or 'a transfer that was not started'}: given up, as communication was "
                "closed before it was complete; wait for every job before close()"
            )
        )
    jobs.clear()


def _stop(queue: SimpleQueue[Job | float], thread: threading.Thread, timeout_s: float) -> None:
    queue.put(timeout_s)
    if thread is not threading.current_thread():
        thread.join(timeout_s + 1.0)
