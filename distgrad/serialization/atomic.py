"""Files that appear under their name only when they are complete."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

FilePath = str | os.PathLike[str]


@contextlib.contextmanager
def atomic_path(path: FilePath) -> Iterator[str]:
    """Give a temporary path whose file takes the name ``path`` when the block ends well.

    After an error (a full disk, say) nothing new is left behind and an old file is as it was.  A
    link stays a link; a device or a pipe is written to directly.
    """
    target = os.path.realpath(path)
    if os.path.exists(target) and not os.path.isfile(target):
        yield target
        return
    folder, name = os.path.split(target)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, target)
        _flush(folder)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
        raise


def _flush(path: str) -> None:
    """Wait until a file, or the entries of a directory, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        if not os.path.isdir(path):  # some file systems cannot flush directories
            raise
    finally:
        os.close(handle)
