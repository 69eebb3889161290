"""The child of the supervisor: mpirun, or the one rank if there is only one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_TAIL_BYTES = 1 << 16
_POLITE_S = 1.0  # mpirun whose ranks are gone ends by itself, and tidies up


class Child:
    """A program in a session of its own, with a directory for the files that it leaves behind.

    Its stderr goes through a file and not through a pipe, so that ranks which are to finish without
    their supervisor can go on speaking.

    Args:
        words: the command.
        environment: of the command.
        folder: where it may leave files, which go with it.
    """

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        self.folder = folder
        self._errors = (folder / "stderr").open("w+b")
        self._shown = 0
        self.process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stderr=self._errors,
            env=dict(environment),
            start_new_session=True,
        )

    def status(self) -> int | None:
        """Return the exit status, or None while it runs."""
        return self.process.poll()

    def forward(self) -> None:
        """Show what it has written to stderr since the last time."""
        with suppress(OSError):
            data = os.pread(self._errors.fileno(), 1 << 20, self._shown)
            self._shown += len(data)
            data = data.replace(b"\0", b"")  # PRRTE ends its notices with one
            while data:
                data = data[os.write(2, data) :]

    def said(self) -> str:
        """Return the end of what it has written to stderr."""
        with suppress(OSError):
            size = os.fstat(self._errors.fileno()).st_size
            data = os.pread(self._errors.fileno(), _TAIL_BYTES, max(0, size - _TAIL_BYTES))
            return data.decode(errors="replace")
        return ""

    def wait(self, limit_s: float) -> bool:
        """Return whether it has ended within ``limit_s``."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(limit_s)
        return self.process.poll() is not None

    def end(self) -> None:
        """End it and its process group, once its ranks are gone."""
        if not self.wait(_POLITE_S):
            with suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        with suppress(OSError):  # children of an mpirun that ended before them
            os.killpg(self.process.pid, signal.SIGKILL)
        self.forward()

    def close(self) -> None:
        """Remove its files; twice, for a process on its way out may write one more."""
        self._errors.close()
        for _ in range(2):
            shutil.rmtree(self.folder, ignore_errors=True)
            if not self.folder.exists():
                return
            time.sleep(0.1)


def new_folder() -> Path:
    """Return a new directory for temporary files; its name is short, as it is part of sockets'."""
    return Path(tempfile.mkdtemp(prefix="dg-"))


def program() -> list[str]:
    """Return the words that run this very command line again."""
    return [sys.executable, *sys.orig_argv[1:]]
