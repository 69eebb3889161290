"""NVIDIA's libraries on a machine without a GPU: a driver that only says that there is an H200.

cuDNN chooses and compiles plans, and cuBLASLt algorithms, without running anything.  They ask the
driver (``libcuda.so.1``) and the runtime (``libcudart``) what to compile for; gcc makes both from
the C files beside this one.  ``h200.json`` is what cuDNN's frontend calls device properties.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

__all__ = ["H200", "environment", "missing"]

FOLDER = Path(__file__).parent
H200 = FOLDER / "h200.json"
_LIBRARIES = {"libcuda.c": "libcuda.so.1", "libcudart.c": "libcudart.so.13"}


def missing() -> str:
    """Return why there can be no such driver here; nothing where there can."""
    return "" if shutil.which("gcc") else "gcc is not installed"


def environment(folder: Path) -> dict[str, str]:
    """Return an environment for processes that find the libraries, made in ``folder``."""
    for source, library in _LIBRARIES.items():
        made, text = str(folder / library), str(FOLDER / source)
        subprocess.run(["gcc", "-shared", "-fPIC", "-w", "-o", made, text, "-ldl"], check=True)
    paths = [str(folder), os.environ.get("LD_LIBRARY_PATH", "")]
    return os.environ | {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, paths))}
