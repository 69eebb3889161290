"""How writers on all ranks agree while training goes on.

Note [Messages]: collectives match by the order of calls, and training makes its own meanwhile. The
writers therefore send messages with tags of their own: each tells rank 0, which tells all. A rank
looks for its message from time to time and sleeps in between, so that waiting costs nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.work import Work
from distgrad.errors import CheckpointError, DistributedError

T = TypeVar("T")
_CALL = "messages of checkpoint writers"
_LENGTH, _BODY = 0x3C01, 0x3C02  # tags
_FIRST_NAP_S, _NAP_S = 2e-4, 5e-3


def told_by_all(group: ProcessGroup, value: Any) -> list[Any]:
    """Return the values, as JSON, of all ranks in rank order; may run beside other calls.

    Ranks: all, one after the other where there are several.
    """
    mine = json.dumps(value).encode()
    if group.size == 1:
        return [json.loads(mine)]
    if group.rank:
        _send(group, mine, 0)
        told: list[Any] = json.loads(_receive(group, 0))
        return told
    texts = [mine, *(_receive(group, rank) for rank in range(1, group.size))]
    everything = b"[" + b",".join(texts) + b"]"
    for rank in range(1, group.size):
        _send(group, everything, rank)
    told = json.loads(everything)
    return told


def _send(group: ProcessGroup, text: bytes, to: int) -> None:
    length = np.array([len(text)], np.int64)
    body = np.frombuffer(text, np.uint8).copy()
    works = group.start_send(length, to, _LENGTH, _CALL), group.start_send(body, to, _BODY, _CALL)
    for work in works:
        _wait(group, work)


def _receive(group: ProcessGroup, source: int) -> bytes:
    length = np.zeros(1, np.int64)
    _wait(group, group.start_recv(length, source, _LENGTH, _CALL))
    body = np.empty(int(length[0]), np.uint8)
    _wait(group, group.start_recv(body, source, _BODY, _CALL))
    return body.tobytes()


def _wait(group: ProcessGroup, work: Work) -> None:
    """Return when ``work`` is complete; look seldom."""
    started, nap = time.monotonic(), _FIRST_NAP_S
    while not work.test():
        if time.monotonic() - started > group.timeout_s:
            raise DistributedError(
                f"rank {group.rank} waited {group.timeout_s} s for the writers of other ranks; "
                "do all ranks save?"
            )
        time.sleep(nap)
        nap = min(2 * nap, _NAP_S)


def together(group: ProcessGroup, head: str, act: Callable[[], T]) -> T:
    """Return what ``act`` returns, or raise on all ranks; for the thread that trains.

    Raises:
        CheckpointError: it failed on a rank, which is named.
    """
    result: Any = None
    why = ""
    try:
        result = act()
    except DistributedError:  # the others cannot be told
        raise
    except Exception as error:  # a file of strangers may lead to any
        why = reason(error)
        if group.size == 1:
            raise CheckpointError(f"{head}: {why}") from error
    said = group.all_gather_object(why) if group.size > 1 else [why]
    raise_first(head, said)
    kept: T = result
    return kept


def reason(error: BaseException) -> str:
    """Return what went wrong, in words."""
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}"
    return str(error) or type(error).__name__


def raise_first(head: str, said: list[str], then: str = "") -> None:
    """Raise what the first rank that failed said, if any did."""
    for rank, text in enumerate(said):
        if text:
            who = f"rank {rank}: " if len(said) > 1 else ""
            raise CheckpointError(f"{head}: {who}{text}{then}")
