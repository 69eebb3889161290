"""The worlds that a test on several ranks runs in."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

DEFAULT_SIZES = (2, 3, 4)


@dataclass(frozen=True, slots=True)
class World:
    """A backend and a number of ranks; its name can be given to ``pytest -k``."""

    backend: str
    size: int

    def __str__(self) -> str:
        return self.backend if self.backend == "local" else f"{self.backend}-{self.size}"


IN_PROCESS = (World("local", 1), *(World("threads", size) for size in DEFAULT_SIZES))


def world_of(item: pytest.Item) -> World | None:
    """Return the world of a test, None for a test that has none."""
    callspec = getattr(item, "callspec", None)
    world: World | None = callspec.params.get("rank_world") if callspec is not None else None
    return world


def drop_foreign_skip(items: list[pytest.Item]) -> None:
    """Remove the marks by which pytest-mpi skips ``mpi`` tests outside of mpirun."""
    for item in items:
        item.own_markers[:] = [
            mark
            for mark in item.own_markers
            if not (
                mark.name == "skip"
                and str(mark.kwargs.get("reason", "")).startswith("need --with-mpi")
            )
        ]
