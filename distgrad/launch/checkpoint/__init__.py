"""Checkpoints of the built-in jobs: directories that are complete or not there at all.

``step_00000200/`` holds ``model.safetensors``, ``optim.safetensors`` and so on, which are several
files where ranks have parts, and ``index.json`` with the sums of all of them; see
`distgrad.distributed.checkpoint`. Beside it are the links ``latest`` and ``best``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from distgrad.distributed.checkpoint.exchange import together
from distgrad.distributed.local import local_group
from distgrad.launch.checkpoint.directory import Directory
from distgrad.launch.checkpoint.job import Checkpoints, Resumed
from distgrad.launch.checkpoint.source import source
from distgrad.tensor import Tensor


def verify(path: Path) -> None:
    """Return if the checkpoint ``path`` is whole.

    Raises:
        CheckpointError: it is missing, torn, or its files do not have their sums.
    """

    def check() -> None:
        with closing(source(path)) as found:
            found.verify()

    together(local_group(), f"load({path})", check)


def digest(model: Mapping[str, Tensor]) -> str:
    """Return the sha256 over names, dtypes, shapes and bytes of all tensors."""
    total = hashlib.sha256()
    for name in sorted(model):
        array = model[name].detach().cpu().numpy()
        total.update(f"{name} {array.dtype} {array.shape};".encode())
        total.update(array.tobytes())
    return total.hexdigest()


__all__: list[Any] = ["Checkpoints", "Directory", "Resumed", "digest", "source", "verify"]
