"""``torch.profiler``: where the time of a program goes, counted by Python's own profiler."""

from __future__ import annotations

import cProfile
import enum
import io
import pstats
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from distgrad.as_torch.extra.autograd.profiler import record_function
from distgrad.errors import ArgumentError

__all__ = [
    "ProfilerAction", "ProfilerActivity", "kineto_available", "profile",
    "record_function", "schedule", "supported_activities", "tensorboard_trace_handler",
]  # fmt: skip


class ProfilerActivity(enum.Enum):
    """What PyTorch's profiler can watch."""

    CPU = 0
    CUDA = 1
    XPU = 2


class ProfilerAction(enum.Enum):
    """What the profiler does in a step."""

    NONE = 0
    WARMUP = 1
    RECORD = 2
    RECORD_AND_SAVE = 3


def supported_activities() -> set[ProfilerActivity]:
    """Return the CPU: calls of Python functions are counted."""
    return {ProfilerActivity.CPU}


def kineto_available() -> bool:
    """Return False: PyTorch's library for timelines is not here."""
    return False


def schedule(
    *, wait: int, warmup: int, active: int, repeat: int = 0, skip_first: int = 0
) -> Callable[[int], ProfilerAction]:
    """Return what says for a number of a step what the profiler does in it.

    Example:
        >>> from distgrad.as_torch.extra.profiler import schedule
        >>> plan = schedule(wait=1, warmup=0, active=2, repeat=1)
        >>> [plan(step).name for step in range(4)]
        ['NONE', 'RECORD', 'RECORD_AND_SAVE', 'NONE']
    """

    def action(step: int) -> ProfilerAction:
        step -= skip_first
        length = wait + warmup + active
        if step < 0 or (repeat > 0 and step // length >= repeat):
            return ProfilerAction.NONE
        place = step % length
        if place < wait:
            return ProfilerAction.NONE
        if place < wait + warmup:
            return ProfilerAction.WARMUP
        last = place == length - 1
        return ProfilerAction.RECORD_AND_SAVE if last else ProfilerAction.RECORD

    return action


def tensorboard_trace_handler(
    dir_name: str, worker_name: str | None = None, use_gzip: bool = False
) -> Callable[[profile], None]:
    """Return what writes the table of times into a folder, as ``STEP.txt``."""

    def write(profiler: profile) -> None:
        from pathlib import Path  # only programs that write tables

        folder = Path(dir_name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{profiler.step_num}.txt").write_text(profiler.key_averages().table())

    return write


class Averages:
    """The counted calls."""

    def __init__(self, counted: cProfile.Profile) -> None:
        self._counted = counted

    def table(self, sort_by: str | None = None, row_limit: int = 100, **options: Any) -> str:
        """Return calls and seconds per function, those with the most time of their own first."""
        text = io.StringIO()
        key = "cumulative" if sort_by and "self" not in sort_by else "tottime"
        pstats.Stats(self._counted, stream=text).sort_stats(key).print_stats(row_limit)
        return text.getvalue()


class profile:
    """Counts the calls of Python functions and their time in a ``with`` block.

    Args:
        activities, record_shapes, profile_memory, with_stack, with_flops, with_modules: PyTorch's;
            functions are counted whatever they say.
        schedule: says which steps are counted (default: all).
        on_trace_ready: is called with the profiler when a counted stretch is over.

    Example:
        >>> import distgrad as dg
        >>> from distgrad.as_torch.extra.profiler import profile
        >>> with profile() as counted:
        ...     _ = dg.ones(3).exp()
        >>> "function calls" in counted.key_averages().table()
        True
    """

    def __init__(
        self,
        *,
        activities: Iterable[ProfilerActivity] | None = None,
        schedule: Callable[[int], ProfilerAction] | None = None,
        on_trace_ready: Callable[[profile], Any] | None = None,
        record_shapes: bool = False,
        profile_memory: bool = False,
        with_stack: bool = False,
        with_flops: bool = False,
        with_modules: bool = False,
        **options: Any,
    ) -> None:
        self.step_num = 0
        self._schedule, self._ready = schedule, on_trace_ready
        self._counted, self._on = cProfile.Profile(), False

    def _set(self) -> None:
        action = self._schedule(self.step_num) if self._schedule else ProfilerAction.RECORD
        on = action in (ProfilerAction.RECORD, ProfilerAction.RECORD_AND_SAVE)
        if on != self._on:
            (self._counted.enable if on else self._counted.disable)()
            self._on = on

    def start(self) -> None:
        """Begin to count."""
        self._set()

    def step(self) -> None:
        """Say that a step is over."""
        saves = self._schedule is not None and (
            self._schedule(self.step_num) is ProfilerAction.RECORD_AND_SAVE
        )
        self.step_num += 1
        self._set()
        if saves and self._ready is not None:
            self._ready(self)

    def stop(self) -> None:
        """End counting."""
        if self._on:
            self._counted.disable()
            self._on = False
        if self._schedule is None and self._ready is not None:
            self._ready(self)

    def __enter__(self) -> profile:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def key_averages(self, *args: Any, **options: Any) -> Averages:
        """Return calls and times per function."""
        return Averages(self._counted)

    def export_chrome_trace(self, path: str) -> NoReturn:
        """Raise: calls are counted, not dated.

        Raises:
            ArgumentError: always.
        """
        raise ArgumentError(
            f"export_chrome_trace({path!r}): calls are counted, not dated; take "
            "key_averages().table(), or the trace of python -m distgrad.launch"
        )
