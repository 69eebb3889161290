"""The compiled source of operations, kept between runs beside Python's own bytecode.

Compiling some 300 generated functions takes a third of ``import distgrad``.  Like bytecode, the
file lies in ``__pycache__``, is written only where Python may write bytecode, and is made anew when
anything about it is unexpected.
"""

from __future__ import annotations

import importlib.util
import marshal
import os
import sys
from contextlib import suppress
from pathlib import Path
from types import CodeType

Codes = dict[tuple[str, str], CodeType]

_PLACE = Path(importlib.util.cache_from_source(__file__)).with_name("operations.marshal")
_HEAD = importlib.util.MAGIC_NUMBER


def _read() -> Codes:
    try:
        data = _PLACE.read_bytes()
        if not data.startswith(_HEAD):
            return {}
        codes: Codes = marshal.loads(data[len(_HEAD) :])
        return codes if isinstance(codes, dict) else {}
    except (OSError, EOFError, ValueError, TypeError):
        return {}


_known = _read()
_used: Codes = {}


def code_of(source: str, filename: str) -> CodeType:
    """Return the code of ``source``: as kept from an earlier run, or compiled now."""
    key = (filename, source)
    code = _used.get(key) or _known.get(key)
    if not isinstance(code, CodeType):
        code = compile(source, filename, "exec")
    _used[key] = code
    return code


def keep() -> None:
    """Write down what was used so far, if the file does not hold just that."""
    if sys.dont_write_bytecode or _used.keys() == _known.keys():
        return
    part = _PLACE.with_name(f"{_PLACE.name}.{os.getpid()}")
    with suppress(OSError):  # a place that cannot be written: the next run compiles again
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(_HEAD + marshal.dumps(_used))
        os.replace(part, _PLACE)
