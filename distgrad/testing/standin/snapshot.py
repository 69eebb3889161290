"""Write ``cupy_api.json``: what CuPy's namespaces hold, and the parameters of their functions.

``python -m distgrad.testing.standin.snapshot`` wherever CuPy is installed; no GPU is needed.  Names
that neither NumPy has nor the stand-in makes are left out.
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

TABLE = Path(__file__).with_name("cupy_api.json")
_SIGNATURE = re.compile(r"_ndarray_base\.\w+\(self,?\s*(.*?)\)(?: ->|$|\n)")
_MEMBER = re.compile(r"\w+\.\w+\((?:self|cls),?\s*(.*?)\)(?: ->|$|\n)")


def snapshot() -> dict[str, Any]:
    """Return the table: a version, ndarray's attributes, ufuncs with their types, functions."""
    import cupy  # here, so that the stand-in itself never looks for the real one
    import cupyx.scipy.special
    from cupy.cuda import nccl

    ufuncs = {
        n: o
        for n, o in vars(cupy).items()
        if _is_ufunc(o) and isinstance(getattr(np, n, None), np.ufunc)
    }
    return {
        "version": cupy.__version__,
        "ndarray": {n: _method(getattr(cupy.ndarray, n)) for n in dir(cupy.ndarray) if n[0] != "_"},
        "ufuncs": {n: " ".join(_types(u)) for n, u in sorted(ufuncs.items())},
        "reduces": sorted(n for n, u in ufuncs.items() if _reduces(u)),
        "cupy": _functions(cupy, np),
        "cupy.fft": _functions(cupy.fft, np.fft),
        "cupy.linalg": _functions(cupy.linalg, np.linalg),
        "cupyx": _functions(cupyx, cupyx),
        "cupy.cuda": {c.__name__: _members(c) for c in _classes(cupy.cuda, nccl)},
        "nccl": {n: v for n, v in sorted(vars(nccl).items()) if n.startswith("NCCL_")},
        "cupyx.scipy.special": sorted(n for n in dir(cupyx.scipy.special) if n[0] != "_"),
    }


def _is_ufunc(value: object) -> bool:
    return type(value).__name__ in ("ufunc", "_GUFunc")


def _types(ufunc: Any) -> list[str]:
    """Return the loops of a ufunc, without those of bfloat16, which come with ml_dtypes only."""
    return [t for t in dict.fromkeys(getattr(ufunc, "types", [])) if "E" not in t]


def _reduces(ufunc: Any) -> bool:
    """Return True unless CuPy refuses ``ufunc.reduce`` before it looks at the operand."""
    try:
        ufunc.reduce(1)
    except NotImplementedError:
        return False
    except Exception:  # what else is wrong with it does not matter here
        return hasattr(ufunc, "reduce")
    return True


def _functions(module: Any, model: Any) -> dict[str, str | None]:
    found = {}
    for name, value in sorted(vars(module).items()):
        plain = callable(value) and not isinstance(value, type) and not _is_ufunc(value)
        if plain and name[0] != "_" and hasattr(model, name):
            found[name] = _parameters(value)
    return found


def _parameters(function: Any) -> str | None:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    stars: dict[Any, str] = {
        inspect.Parameter.VAR_POSITIONAL: "*",
        inspect.Parameter.VAR_KEYWORD: "**",
    }
    return " ".join(stars.get(p.kind, "") + p.name for p in parameters)


def _classes(cuda: Any, nccl: Any) -> list[Any]:
    """Return the classes of streams, memory and communicators."""
    return [cuda.Stream, cuda.Event, cuda.Device, cuda.MemoryPointer, nccl.NcclCommunicator]


def _members(kind: Any) -> dict[str, str | None]:
    """Return the parameters of methods, None for what is no method."""
    found = {}
    for name in dir(kind):
        match = _MEMBER.match(getattr(getattr(kind, name), "__doc__", None) or "")
        if name[0] != "_":
            found[name] = None if match is None else _named(match[1])
    return found


def _named(signature: str) -> str:
    """Return the names of parameters that Cython wrote with types and defaults."""
    parts = [part.partition("=")[0].split() for part in signature.split(",")]
    return " ".join(part[-1] for part in parts if part and part[-1] != "*")


def _method(value: Any) -> str | None:
    """Return the parameters that Cython wrote into a docstring; None for what is no method."""
    match = _SIGNATURE.search(getattr(value, "__doc__", None) or "")
    if match is None or not callable(value):
        return None
    return _named(match[1])


if __name__ == "__main__":
    TABLE.write_text(json.dumps(snapshot(), indent=0) + "\n", encoding="utf-8")
