"""Python's multiprocessing, with tensors that can be shared and ``spawn``.

Processes that were spawned find ``torch`` to be distgrad too.  To communicate, they call
``init_process_group`` with their rank and the number of ranks, as with PyTorch; the ranks of a
launcher exist already, so there ``spawn`` runs the function once in each of them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing import *  # noqa: F403  PyTorch's module has all of it
from multiprocessing import connection, get_context
from typing import Any

from distgrad.distributed.env import world_from_env
from distgrad.errors import ArgumentError, DistgradError

_STRATEGY = "file_system"
__all__ = [
    *multiprocessing.__all__, "ProcessContext", "ProcessExitedException", "ProcessRaisedException",
    "SpawnContext", "get_all_sharing_strategies", "get_sharing_strategy", "set_sharing_strategy",
    "spawn", "start_processes",
]  # fmt: skip


class ProcessException(DistgradError):
    """A process that ``spawn`` started has failed."""

    def __init__(self, msg: str, error_index: int, pid: int) -> None:
        super().__init__(msg)
        self.msg, self.error_index, self.error_pid = msg, error_index, pid


class ProcessRaisedException(ProcessException):
    """A process has raised an exception."""


class ProcessExitedException(ProcessException):
    """A process has exited, or was killed."""

    def __init__(
        self, msg: str, error_index: int, error_pid: int, exit_code: int, signal_name: str | None
    ) -> None:
        super().__init__(msg, error_index, error_pid)
        self.exit_code, self.signal_name = exit_code, signal_name


def get_all_sharing_strategies() -> set[str]:
    """Return the one way in which tensors are shared: files in memory."""
    return {_STRATEGY}


def get_sharing_strategy() -> str:
    """Return the one way in which tensors are shared: files in memory."""
    return _STRATEGY


def set_sharing_strategy(new_strategy: str) -> None:
    """Accept PyTorch's names; tensors are shared by files in memory."""
    if new_strategy not in ("file_system", "file_descriptor"):
        raise ArgumentError(f"set_sharing_strategy({new_strategy!r}): is no strategy")


class ProcessContext:
    """The processes that ``spawn(join=False)`` started."""

    def __init__(self, processes: list[Any], errors: list[Any]) -> None:
        self.processes, self._errors = processes, errors
        self._left = {process.sentinel: index for index, process in enumerate(processes)}

    def pids(self) -> list[int]:
        """Return the numbers of the processes."""
        return [int(process.pid) for process in self.processes]

    def join(self, timeout: float | None = None, grace_period: float | None = None) -> bool:
        """Return whether all are done, once one or more of them are.

        Args:
            timeout: seconds to wait at most.
            grace_period: seconds that the others get to end by themselves after a failure.

        Raises:
            ProcessRaisedException, ProcessExitedException: one has failed; the others are ended.
        """
        if not self._left:
            return True
        failed = None
        for sentinel in connection.wait(list(self._left), timeout):
            index = self._left.pop(sentinel)
            self.processes[index].join()
            if self.processes[index].exitcode:
                failed = index
        if failed is None:
            return not self._left
        for process in self.processes:
            if process.is_alive():
                process.join(grace_period or 0)
                process.terminate()
        for process in self.processes:
            process.join()
        raise self._failure(failed)

    def _failure(self, index: int) -> ProcessException:
        process, errors = self.processes[index], self._errors[index]
        if errors.poll():
            told = f"\n\n-- Process {index} terminated with the following error:\n{errors.recv()}"
            return ProcessRaisedException(told, index, process.pid)
        code = process.exitcode
        name = signal.Signals(-code).name if code < 0 else None
        how = f"signal {name}" if name else f"exit code {code}"
        told = f"process {index} terminated with {how}"
        return ProcessExitedException(told, index, process.pid, code, name)


SpawnContext = ProcessContext


def _run(fn: Callable[..., Any], index: int, args: tuple[Any, ...], errors: Any) -> None:
    try:
        fn(index, *args)
    except KeyboardInterrupt:
        pass  # the parent was told too
    except Exception:
        errors.send(traceback.format_exc())
        sys.exit(1)


def start_processes(
    fn: Callable[..., Any],
    args: tuple[Any, ...] = (),
    nprocs: int = 1,
    join: bool = True,
    daemon: bool = False,
    start_method: str = "spawn",
) -> ProcessContext | None:
    """Run ``fn(index, *args)`` in each of ``nprocs`` processes; see ``spawn``."""
    if (world_from_env().size or 1) > 1:
        _run_here(fn, args, nprocs)
        return None
    context: Any = get_context(start_method)
    processes, errors = [], []
    for index in range(nprocs):
        reader, writer = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(fn, index, args, writer), daemon=daemon)
        process.start()
        writer.close()
        processes.append(process)
        errors.append(reader)
    made = ProcessContext(processes, errors)
    if not join:
        return made
    while not made.join():
        pass
    return None


def _run_here(fn: Callable[..., Any], args: tuple[Any, ...], nprocs: int) -> None:
    """Run the function of this rank of a launcher."""
    hint = world_from_env()
    if nprocs not in (hint.size, hint.local_size):
        raise ArgumentError(
            f"spawn(nprocs={nprocs}): {hint.launcher} has started {hint.size} ranks already, so "
            f"spawn runs the function once in each; ask for nprocs={hint.size}, or start the "
            "program without --nproc"
        )
    os.environ.setdefault("LOCAL_RANK", str(hint.local_rank))
    fn(hint.rank if nprocs == hint.size else hint.local_rank, *args)


def spawn(
    fn: Callable[..., Any],
    args: tuple[Any, ...] = (),
    nprocs: int = 1,
    join: bool = True,
    daemon: bool = False,
    start_method: str = "spawn",
) -> ProcessContext | None:
    """Run ``fn(index, *args)`` in each of ``nprocs`` new processes.

    Under ``mpirun`` or ``--nproc`` the ranks are there already: each runs its own function, here.

    Args:
        fn: a function of a module, or of the script.
        args: what follows the index.
        nprocs: how many.
        join: wait for all of them; else return a ``ProcessContext``.
        daemon: end them with this process.
        start_method: how processes are started.

    Raises:
        ProcessRaisedException, ProcessExitedException: one has failed; the others are ended.
    """
    return start_processes(fn, args, nprocs, join, daemon, start_method)
