"""JSON of strangers: read without surprises, or refused."""

from __future__ import annotations

import json
import re
from typing import Any

from distgrad.errors import CheckpointError

MOST_DEPTH = 64
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[\]{}]', re.DOTALL)
LARGEST = 1 << 62


def parsed(text: bytes, title: str) -> Any:
    """Return the value that ``text`` stands for.

    Raises:
        CheckpointError: it is no JSON, is nested too deeply, or says a key twice; ``title`` is the
            file.

    Example:
        >>> parsed(b'{"a": [1, 2]}', "state.json")
        {'a': [1, 2]}
    """
    check_depth(text, title)
    try:
        return json.loads(text, object_pairs_hook=_once)
    except CheckpointError as error:
        raise CheckpointError(f"{title} {error}") from None
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise CheckpointError(f"{title} is torn ({error})") from error


def check_depth(text: bytes, title: str) -> None:
    """Raise if ``text`` has brackets in brackets beyond `MOST_DEPTH`."""
    depth = 0
    for token in _TOKEN.finditer(text):
        sign = token[0]
        if sign in (b"[", b"{"):
            depth += 1
            if depth > MOST_DEPTH:
                raise CheckpointError(f"{title} is nested more than {MOST_DEPTH} deep")
        elif sign in (b"]", b"}"):
            depth -= 1


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise CheckpointError(f"says {twice[:80]!r} twice")
    return found


def count_in(value: Any, what: str) -> int:
    """Return ``value`` if it is a whole number from 0 to `LARGEST`."""
    if type(value) is not int or not 0 <= value <= LARGEST:
        raise CheckpointError(f"{what} is {str(value)[:80]}, no number of elements or bytes")
    return value


def table_in(value: Any, what: str) -> dict[str, Any]:
    """Return ``value`` if it is a JSON object."""
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} is no table")
    return value


def list_in(value: Any, what: str) -> list[Any]:
    """Return ``value`` if it is a JSON array."""
    if not isinstance(value, list):
        raise CheckpointError(f"{what} is no list")
    return value
