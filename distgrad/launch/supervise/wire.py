"""What ranks and supervisor say to each other: JSON objects, one a line, of bounded length.

A rank begins with the token of its attempt, which it finds in its environment; whoever does not
know it is not heard.  Nothing that is read is ever executed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SUPERVISOR = "_DISTGRAD_SUPERVISOR"  # host:port
TOKEN = "_DISTGRAD_TOKEN"  # of one attempt
ATTEMPT = "_DISTGRAD_ATTEMPT"  # counts from 0
JOB = "_DISTGRAD_JOB"  # marks the processes of one attempt; no secret
LINE_BYTES = 1 << 16
TEXT_CHARACTERS = 10_000  # of a stack in a message: escaped, a character takes six bytes at most


class WireError(Exception):
    """What came is no message."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where the supervisor listens."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Return the address that ``text`` spells.

        Example:
            >>> Address.parse("10.0.0.7:4711")
            Address(host='10.0.0.7', port=4711)
        """
        host, _, port = text.rpartition(":")
        if not host or not port.isdigit():
            raise WireError(f"{text!r} is no HOST:PORT")
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def attempt() -> int:
    """Return which attempt of a supervised job this process belongs to; 0 without a supervisor."""
    text = os.environ.get(ATTEMPT, "")
    return int(text) if text.isdigit() else 0


def supervised() -> bool:
    """Return whether a supervisor has started this process as a rank."""
    return SUPERVISOR in os.environ


def pack(message: Mapping[str, Any]) -> bytes:
    """Return ``message`` as one line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def clip(text: str) -> str:
    """Return the end of ``text``, as much as a message takes.

    Example:
        >>> len(clip("x" * 10**6))
        10000
    """
    return text[-TEXT_CHARACTERS:]


class Lines:
    """Bytes as they come, and the messages in them.

    Example:
        >>> lines = Lines()
        >>> lines.feed(b'{"step":'), lines.feed(b'7}' + bytes([10]))
        ([], [{'step': 7}])
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """Return the messages that ``data`` completes.

        Raises:
            WireError: a line is too long or holds no JSON object.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        if any(len(line) > LINE_BYTES for line in (*lines, self._rest)):
            raise WireError(f"a line is longer than {LINE_BYTES} bytes")
        return [_message(line) for line in lines if line]


def _message(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise WireError(f"a line is no JSON ({error})") from None
    if not isinstance(value, dict):
        raise WireError("a line is no JSON object")
    return value
