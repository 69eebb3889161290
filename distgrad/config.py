"""Every switch of distgrad, typed, with its default and meaning, in one table.

A switch ``name`` is read from the environment as ``DISTGRAD_NAME``.  All but those of scope
``engine`` are also options ``--name`` of ``python -m distgrad.launch`` and keys of its TOML file.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from distgrad.errors import ConfigError

PREFIX = "DISTGRAD_"

# launch: of any program; run: of the launcher, for jobs; job: of the job, which has the default
Scope = Literal["engine", "launch", "run", "job"]


def flag(text: str) -> bool:
    """Return the truth value that ``text`` spells.

    Example:
        >>> flag("yes"), flag("0")
        (True, False)
    """
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off", ""):
        return False
    raise ValueError("is neither true nor false; write 1 or 0")


def number(kind: type[int] | type[float], least: float) -> Callable[[str], Any]:
    """Return a reader of numbers of type ``kind`` that are ``least`` or more."""

    def read(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            noun = "whole number" if kind is int else "number"
            raise ValueError(f"is not a {noun}") from None
        if not value >= least:
            raise ValueError(f"is below {least}, the least value")
        return value

    return read


def one_of(*words: str) -> Callable[[str], str]:
    """Return a reader that accepts only ``words``."""

    def read(text: str) -> str:
        if text not in words:
            raise ValueError(f"is none of {', '.join(words)}" + nearest(text, words))
        return text

    return read


def ranks(text: str) -> int | Literal["auto"]:
    """Return the number of ranks that ``text`` names, or ``"auto"``."""
    return "auto" if text == "auto" else int(number(int, 1)(text))


def step_range(text: str) -> tuple[int, int]:
    """Return first and last-plus-one step of ``FIRST:STOP``.

    Example:
        >>> step_range("20:25")
        (20, 25)
    """
    first, colon, stop = text.partition(":")
    if not (colon and first.isdigit() and stop.isdigit() and int(first) < int(stop)):
        raise ValueError("is not FIRST:STOP with FIRST < STOP, such as 20:25")
    return int(first), int(stop)


def nearest(word: str, words: Iterable[str]) -> str:
    """Return ``"; did you mean X?"`` for the word most like ``word``, or nothing.

    Example:
        >>> nearest("stpes", ["steps", "seed"])
        '; did you mean steps?'
    """
    like = difflib.get_close_matches(word, list(words), n=1)
    return f"; did you mean {like[0]}?" if like else ""


@dataclass(frozen=True, slots=True)
class Switch:
    """One row of the table."""

    name: str
    scope: Scope
    read: Callable[[str], Any]
    default: Any
    metavar: str
    doc: str
    short: str = ""
    many: bool = False

    @property
    def env(self) -> str:
        """The environment variable of this switch."""
        return PREFIX + self.name.upper()

    def parse(self, text: str, origin: str) -> Any:
        """Return the value that ``text``, written at ``origin``, stands for."""
        try:
            return self.read(text)
        except ValueError as error:
            raise ConfigError(f"{origin}: {text!r} {error}") from None


_COUNT, _EVERY, _NUMBER = number(int, 1), number(int, -1), number(float, 0)

_SAME = one_of("off", "run", "world")


def _stage(text: str) -> int:
    return int(one_of("0", "1", "2", "3")(text))


TABLE = (
    # of the library itself
    Switch("keep_memory", "engine", flag, True, "", "keep freed host memory for the next step"),
    Switch("stall_s", "engine", _NUMBER, 60.0, "S", "seconds until a waiting rank asks the others"),
    Switch(
        "cuda_aware",
        "engine",
        one_of("auto", "0", "1"),
        "auto",
        "auto|0|1",
        "whether MPI takes memory of a GPU (auto: if it says so)",
    ),
    Switch(
        "relu_epilogue", "engine", flag, False, "", "linear layers on a GPU do the ReLU after them"
    ),
    Switch(
        "gpu_window",
        "engine",
        _NUMBER,
        32.0,
        "MIB",
        "of GPU memory for ranks that share a GPU, on each channel; 0: they go by the host",
    ),
    Switch(
        "plan_folder",
        "engine",
        str,
        "~/.cache/distgrad/cudnn",
        "DIR",
        "where compiled plans of cuDNN are kept between runs; empty: nowhere",
    ),
    Switch(
        "loader_workers",
        "engine",
        one_of("threads", "fork", "spawn", "forkserver"),
        "threads",
        "KIND",
        "what a DataLoader's workers are, where the program does not say",
    ),
    # what to run and where
    Switch("nproc", "launch", ranks, None, "N|auto", "start N ranks with the matching mpirun", "n"),
    Switch("hosts", "launch", str, None, "H1:2,H2:2", "hosts and slots for --nproc"),
    Switch("hostfile", "launch", str, None, "FILE", "file of hosts for --nproc"),
    Switch("run_dir", "launch", str, None, "DIR", "run directory (default: runs/TIME-NAME)"),
    Switch("threads", "launch", _COUNT, None, "N", "BLAS threads of a rank (default: share cores)"),
    Switch("determinism", "launch", _SAME, None, "off|run|world", "where bits are the same"),
    Switch("max_restarts", "launch", number(int, 0), None, "N", "supervise, restart up to N times"),
    Switch("min_ranks", "launch", _COUNT, None, "N", "go on while so many ranks are left"),
    Switch("stall_timeout", "launch", _NUMBER, 300.0, "S", "supervise, end what hangs (0: no)"),
    Switch("start_timeout", "launch", _NUMBER, 120.0, "S", "until all ranks must have begun"),
    Switch("exit_timeout", "launch", _NUMBER, 15.0, "S", "that ranks have to exit at the end"),
    Switch(
        "orphans",
        "launch",
        one_of("end", "finish"),
        "end",
        "end|finish",
        "what supervised ranks do if the supervisor was killed",
    ),
    Switch("ssh", "launch", str, "ssh", "PROGRAM", "what reaches other hosts"),
    Switch("as_torch", "launch", flag, False, "", "let import torch mean distgrad"),
    # how to run a job
    Switch("job", "run", str, "textgpt", "NAME", "built-in job, or dotted path of your own"),
    Switch("resume", "run", str, "auto", "auto|latest|PATH|never", "checkpoint to go on from"),
    Switch("dry_run", "run", flag, False, "", "one step and one checkpoint, then clean up"),
    Switch("expect", "run", str, (), "METRIC<VALUE", "exit 3 if the result misses it", many=True),
    Switch("profile_steps", "run", step_range, None, "A:B", "trace steps A to B-1"),
    # settings of the job
    Switch("steps", "job", _COUNT, None, "N", "optimizer steps"),
    Switch("global_batch", "job", _COUNT, None, "N", "samples a step, over all ranks"),
    Switch("micro_batch", "job", _COUNT, None, "N", "samples a forward pass on one rank"),
    Switch("lr", "job", _NUMBER, None, "X", "peak learning rate"),
    Switch("seed", "job", number(int, 0), None, "N", "seed of initialisation and data order"),
    Switch("zero", "job", _stage, None, "0|1|2|3", "share out state, gradients, parameters"),
    Switch("device", "job", one_of("auto", "cpu", "cuda"), None, "auto|cpu|cuda", "device"),
    Switch("data", "job", str, None, "FILE", "your own data instead of the job's"),
    Switch("log_every", "job", _EVERY, None, "N", "steps between log lines, -1: never"),
    Switch("eval_every", "job", _EVERY, None, "N", "steps between evaluations, -1: at the end"),
    Switch("save_every", "job", _EVERY, None, "N", "steps between checkpoints, -1: at the end"),
)

SWITCHES = {row.name: row for row in TABLE}


def switch(name: str) -> Any:
    """Return the value of switch ``name``: from the environment, else its default."""
    row = SWITCHES[name]
    text = os.environ.get(row.env)
    return row.default if text is None else row.parse(text, row.env)


def unknown_variables() -> list[str]:
    """Return one warning for each ``DISTGRAD_*`` variable that no switch reads."""
    known = [row.env for row in TABLE]
    return [
        f"{name} is not a switch of distgrad{nearest(name, known)}"
        for name in sorted(os.environ)
        if name.startswith(PREFIX) and name not in known
    ]
