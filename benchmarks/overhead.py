"""What the engine adds to one small operation, beside PyTorch's, in one run.

    python benchmarks/overhead.py

Prints microseconds per operation for a chain of 50 operations on 8 float32 elements: recording it,
backward through it, and the same without recording.  The two libraries take turns; medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import distgrad as dg

LENGTH, REPEATS = 50, 40
TARGETS = {"record": 1.0, "backward": 3.0, "no_grad": 0.65}


def chain(x: Any, w: Any) -> Any:
    """Return ``x`` after 50 operations: mul and add in turn."""
    for _ in range(LENGTH // 2):
        x = x * w
        x = x + w
    return x


def measure(library: Any, rounds: int) -> dict[str, float]:
    """Return the medians of one batch of repetitions, in microseconds per operation."""
    x = library.ones(8, requires_grad=True)
    w = library.full((8,), 1.01)
    g = library.ones(8)

    def backward() -> float:
        out = chain(x, w)
        begin = time.perf_counter()
        out.backward(g)
        taken = time.perf_counter() - begin
        x.grad = None
        return taken

    def without() -> float:
        with library.no_grad():
            return timed(lambda: chain(x, w))

    kinds: dict[str, Callable[[], float]] = {
        "record": lambda: timed(lambda: chain(x, w)),
        "backward": backward,
        "no_grad": without,
    }
    medians = {kind: statistics.median(f() for _ in range(rounds)) for kind, f in kinds.items()}
    return {kind: seconds / LENGTH * 1e6 for kind, seconds in medians.items()}


def timed(function: Callable[[], Any]) -> float:
    """Return the seconds of one call; the result dies after the clock has stopped."""
    begin = time.perf_counter()
    result = function()
    taken = time.perf_counter() - begin
    del result
    return taken


def main() -> None:
    """Measure both in turn and print them side by side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=15)
    turns = parser.parse_args().turns
    torch.set_num_threads(1)
    found: dict[str, list[dict[str, float]]] = {"distgrad": [], "torch": []}
    for library in (dg, torch):
        measure(library, 3)
    for _ in range(turns):
        found["distgrad"].append(measure(dg, REPEATS))
        found["torch"].append(measure(torch, REPEATS))
    print(f"distgrad {dg.__version__}, torch {torch.__version__}, µs per operation, "
          f"median of {turns} turns")  # fmt: skip
    print(f"{'':10}{'distgrad':>10}{'torch':>10}{'ratio':>8}{'target':>8}")
    for kind, target in TARGETS.items():
        ours, theirs = (statistics.median(r[kind] for r in found[n]) for n in found)
        print(f"{kind:10}{ours:10.2f}{theirs:10.2f}{theirs / ours:7.1f}x{target:8.2f}")


if __name__ == "__main__":
    main()
