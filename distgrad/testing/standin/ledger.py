"""What happened on the stand-in device, and what is forbidden there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn


class HostSync(RuntimeError):
    """The host waits for the device where it was forbidden to."""


class StreamHazard(RuntimeError):
    """A stream uses memory that another stream may still be using, as no event orders the two."""


class _Rule(threading.local):
    """What a thread may do."""

    may_sync = True


class Ledger:
    """What happened on the stand-in device: waits of the host, copies, and what CuPy refuses."""

    def __init__(self) -> None:
        self.syncs = 0
        self.uploads = 0  # arrays of the host that became arrays of the device
        self.refused: list[str] = []
        self.hazards: list[str] = []
        self.contexts: set[int] = set()  # devices on which a thread has made memory, or looked
        self.trace: list[str] = []  # copies and collectives on streams, in the order of their calls
        self.launches: list[str] = []  # kernels in CUDA C++, by name
        self.kernels: list[str] = []  # kernels of CuPy's own, by the function that launches one
        self.products: list[str] = []  # matrix products by cuBLAS: the names of their epilogues
        self.latency = 2  # looks at an event before its work is seen done
        self.replays = 0  # launches of graphs
        self.cublas_captures = False  # whether CuPy lets its matrix products be captured
        self.seed = 0  # of the order in which threads of kernels take turns

    def thread_order(self) -> int:
        """Return the seed of the order of threads in the next kernel."""
        return self.seed * 1_000_003 + len(self.launches) & 0xFFFFFFFF

    def sync(self, what: str) -> None:
        """Note that the host waits for the device."""
        self.syncs += 1
        for guard in guards:
            guard(what)
        if not _rule.may_sync:
            raise HostSync(f"{what}: the host waits for the device")

    def refuse(self, what: str, kind: type[Exception] = TypeError) -> NoReturn:
        """Raise as CuPy does, and note it, for a caller may swallow the exception."""
        self.refused.append(what)
        raise kind(what)

    def hazard(self, what: str) -> NoReturn:
        """Raise for work that no event orders, and note it."""
        self.hazards.append(what)
        raise StreamHazard(what)


guards: list[Callable[[str], None]] = []  # called before the host waits; they may raise
_rule = _Rule()
ledger = Ledger()


@contextmanager
def no_syncs() -> Iterator[None]:
    """Raise ``HostSync`` inside the block wherever this thread waits for the device."""
    before, _rule.may_sync = _rule.may_sync, False
    try:
        yield
    finally:
        _rule.may_sync = before
