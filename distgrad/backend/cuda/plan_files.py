"""Plans of cuDNN on disk: a kernel of attention takes seconds to compile, and 10 ms to read.

A file's name is a digest of what the plan is for: the description, the kind of GPU and cuDNN's
versions.  A file that cannot be read, or not be written, costs a compilation and nothing else.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from distgrad.config import switch

__all__ = ["read", "write"]


def _file(purpose: str) -> Path | None:
    folder = switch("plan_folder")
    name = hashlib.sha256(purpose.encode()).hexdigest()[:40]
    return Path(folder).expanduser() / f"{name}.plan" if folder else None


def read(purpose: str, graph: Any, handle: Any) -> bool:
    """Make of an empty graph what was kept for a purpose; return whether anything was."""
    file = _file(purpose)
    try:
        data = b"" if file is None else file.read_bytes()
        if not data:
            return False
        graph.deserialize(handle, list(data))  # the frontend's form: a list of numbers
    except Exception:  # another version's file, half a file: whatever is wrong, it is not used
        return False
    return True


def write(purpose: str, graph: Any) -> None:
    """Keep a built graph for a purpose."""
    file, data = _file(purpose), bytes(graph.serialize())  # it gives a list of numbers
    if file is None or not data:
        return
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        # Renamed when whole: other ranks write the same file, and may be reading it.
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as made:
            made.write(data)
        os.replace(made.name, file)
