"""Where a rank's output goes: the console shows rank 0 and all errors, a file holds everything.

Programs of PyTorch print on every rank, as under torchrun: there the console shows all of them.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


class Tee(io.TextIOBase):
    """A text stream that writes to a console and to a log."""

    def __init__(self, console: TextIO, log: TextIO) -> None:
        self._console, self._log = console, log

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the console."""
        return self._console.encoding

    @property
    def buffer(self) -> io.BufferedIOBase:
        """The bytes of the console, past the log."""
        return self._console.buffer  # type: ignore[return-value]

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, text: str) -> int:
        """Write ``text`` to both and return its length."""
        self._log.write(text)
        self._console.write(text)
        if "\n" in text:
            self._console.flush()  # mpirun reads a pipe, which Python would buffer by the block
        return len(text)

    def flush(self) -> None:
        """Flush both."""
        self._log.flush()
        self._console.flush()

    def isatty(self) -> bool:
        """Return whether the console is a terminal."""
        return self._console.isatty()

    def fileno(self) -> int:
        """Return the descriptor of the console."""
        return self._console.fileno()


class PrefixedTee(Tee):
    """A `Tee` whose console lines start with the rank.

    A line goes out in one write, so lines of several ranks never mix.  One that ends in a carriage
    return, as progress bars print them, is a line too.
    """

    def __init__(self, console: TextIO, log: TextIO, prefix: str) -> None:
        super().__init__(console, log)
        self._prefix, self._open_line, self._lock = prefix, "", threading.Lock()

    def write(self, text: str) -> int:
        """Write the complete lines of ``text`` and keep the rest for later."""
        self._log.write(text)
        with self._lock:
            *lines, self._open_line = _split(self._open_line + text)
            for line in lines:
                self._console_line(line)
        return len(text)

    def finish(self) -> None:
        """Write a last line that has no end."""
        with self._lock:
            if self._open_line:
                self._console_line(self._open_line + "\n")
                self._open_line = ""
        self.flush()

    def _console_line(self, line: str) -> None:
        head = "" if line.startswith(self._prefix) else self._prefix
        data = (head + line).encode(self.encoding or "utf-8", "backslashreplace")
        os.write(self._console.fileno(), data)


class LineTee(PrefixedTee):
    """A `Tee` whose console lines go out whole, or as far as they are when it is flushed."""

    def __init__(self, console: TextIO, log: TextIO) -> None:
        super().__init__(console, log, "")

    def flush(self) -> None:
        """Write what there is of a line."""
        with self._lock:
            if self._open_line:
                self._console_line(self._open_line)
                self._open_line = ""
        super().flush()


def _split(text: str) -> list[str]:
    """Return ``text`` cut behind each line end; the last piece has none."""
    lines = text.replace("\r\n", "\n").splitlines(keepends=True)
    if not lines or lines[-1].endswith(("\n", "\r")):
        lines.append("")
    return lines


@contextmanager
def captured(rank: int, size: int, log: Path, *, shown: bool) -> Iterator[Callable[[], None]]:
    """Return a context in which the output of ``rank`` of ``size`` goes where it belongs.

    A rank that is ``shown`` prints to the console and its log, others to their log only, C code and
    children included; errors of all ranks are shown, with the rank before each line where there are
    several. The context gives a function that shows the rank from then on.
    """
    before = sys.stdout, sys.stderr
    hidden = [] if shown else [os.dup(1)]
    with log.open("a", encoding="utf-8", buffering=1, errors="backslashreplace") as file:
        if size > 1:
            errors: Tee = PrefixedTee(before[1], file, f"[rank {rank}] ")
        else:
            errors = Tee(before[1], file)
        if shown:
            sys.stdout = LineTee(before[0], file) if size > 1 else Tee(before[0], file)
        else:
            before[0].flush()
            os.dup2(file.fileno(), 1)
            sys.stdout = file
        sys.stderr = errors

        def show() -> None:
            if hidden:
                sys.stdout.flush()
                os.dup2(hidden[0], 1)
                os.close(hidden.pop())
                sys.stdout = LineTee(before[0], file)

        try:
            yield show
        finally:
            sys.stdout.flush()
            if isinstance(errors, PrefixedTee):
                errors.finish()
            sys.stdout, sys.stderr = before
            if hidden:
                os.dup2(hidden[0], 1)
                os.close(hidden[0])
