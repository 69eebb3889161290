"""The speed of all-reduces by size: distgrad's and the MPI library's, below what memory allows.

    python -m distgrad.launch --nproc 2 --job allreduce-bench

``all_reduce`` is the blocking call on an array of the user, ``bucket`` the reduction of a bucket of
gradients by the algorithm that DistributedDataParallel would use, ``library`` the MPI library's
``Allreduce`` in place, and ``memcpy`` a copy of the array on every rank at the same time.

Note [Bus bandwidth]: 2 (P-1)/P n bytes have to leave and enter each of P ranks in an all-reduce of
n bytes. Divided by the time this is comparable between numbers of ranks. The bandwidth of the copy
is n bytes by its time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from distgrad.distributed.bucket import Memory
from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.mpi import MpiGroup
from distgrad.distributed.reduction import PHASES, Exchange, Reduction
from distgrad.distributed.tree import Tree
from distgrad.errors import ConfigError
from distgrad.launch import plot
from distgrad.launch.jobs import Context
from distgrad.launch.rundir import Metrics, write_text

COPY = "memcpy"
_TAG = 1000 * PHASES  # beyond those of a reducer
_CALLS_BYTES = 1 << 22  # shorter all-reduces are timed several at a time: ranks start unevenly
_MOST_CALLS = 20


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """Settings of the job."""

    least_kb: float = 1.0
    most_kb: float = 65536.0
    factor: int = 4  # from one size to the next
    repeats: int = 60  # of each size; large ones fewer
    most_mb: float = 2048.0  # moved for a size at most


DEFAULTS = BenchConfig()
Method = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Timing:
    """The time of one all-reduce in seconds, that of the slowest rank."""

    median_s: float
    fastest_s: float


def time_methods(
    group: ProcessGroup, methods: Mapping[str, Method], nbytes: int, repeats: int
) -> dict[str, Timing]:
    """Return how long each method takes; they take turns, so that all see the same machine.

    Args:
        group: the ranks, which start together.
        methods: by name, the same ones on all ranks.
        nbytes: that one call reduces; small ones are timed several at a time.
        repeats: turns.
    """
    calls = int(min(_MOST_CALLS, max(1, _CALLS_BYTES // nbytes)))
    seconds = np.zeros((len(methods), repeats))
    for method in methods.values():
        method()
    for turn in range(repeats):
        for row, method in enumerate(methods.values()):
            group.barrier()
            began = time.perf_counter()
            for _ in range(calls):
                method()
            seconds[row, turn] = (time.perf_counter() - began) / calls
    group.all_reduce(seconds, "max")
    return {
        name: Timing(float(np.median(row)), float(row.min()))
        for name, row in zip(methods, seconds, strict=True)
    }


def bandwidth_gb_s(method: str, nbytes: int, seconds: float, ranks: int) -> float:
    """Return the bus bandwidth in 10^9 bytes a second; see Note [Bus bandwidth].

    Example:
        >>> bandwidth_gb_s("library", 10**9, 2.0, 4), bandwidth_gb_s("memcpy", 10**9, 0.5, 4)
        (0.75, 2.0)
    """
    volume = nbytes if method == COPY else 2 * (ranks - 1) / ranks * nbytes
    return volume / seconds / 1e9


class Arrays:
    """What the methods work on, for all sizes.

    Args:
        group: the ranks.
        every: the sizes in bytes, the greatest last.
    """

    def __init__(self, group: ProcessGroup, every: list[int]) -> None:
        self.group, self.channel = group, group.channel("buckets")
        self.tree = Tree(group.size, group.size)
        self.memory = Memory(self.channel, self.tree, every[-1], len(every))
        self.whole = np.zeros(every[-1] // 4, np.float32)
        self.copy = np.zeros_like(self.whole)

    def methods(self, count: int) -> dict[str, Method]:
        """Return what is timed for ``count`` elements.

        Ranks: all.
        """
        group, array, copy = self.group, self.whole[:count], self.copy[:count]
        found: dict[str, Method] = {
            "all_reduce": lambda: group.all_reduce(array),
            "bucket": self._bucket(count),
        }
        if isinstance(group, MpiGroup):
            comm, in_place = group.comm, group._mpi.IN_PLACE
            found["library"] = lambda: comm.Allreduce(in_place, array)
        found[COPY] = lambda: np.copyto(copy, array)
        return found

    def _bucket(self, count: int) -> Method:
        """Return the reduction of a bucket of ``count`` elements."""
        self.memory.reuse()
        wire, _, common = self.memory.take(count, np.float32)
        channel, parts, arrays = self.channel, self.tree.parts, [wire]

        def reduce() -> None:
            exchange = Exchange(channel, arrays, parts, np.add, _TAG, "a bucket", common=common)
            Reduction(exchange).wait()

        return reduce


def sizes(config: BenchConfig) -> list[int]:
    """Return the numbers of bytes to measure.

    Example:
        >>> sizes(BenchConfig(least_kb=1, most_kb=20))
        [1024, 4096, 16384]
    """
    if config.factor < 2 or not 0 < config.least_kb <= config.most_kb or config.repeats < 1:
        raise ConfigError(
            f"allreduce-bench(least_kb={config.least_kb}, most_kb={config.most_kb}, factor="
            f"{config.factor}, repeats={config.repeats}): gives no sizes to measure; use 0 < "
            "least_kb <= most_kb, a factor of 2 or more and at least one repeat"
        )
    found, size = [], config.least_kb * 1024
    while size <= config.most_kb * 1024:
        found.append(max(4, int(size) // 4 * 4))
        size *= config.factor
    return found


def run(config: BenchConfig, context: Context) -> dict[str, float]:
    """Measure, print a table, write metrics and picture; every rank calls it."""
    group, every = context.group, sizes(config)
    if context.dry_run:
        every = every[:1]
    arrays = Arrays(group, every)
    metrics = Metrics(context.rundir.metrics if group.rank == 0 else None)
    curves: dict[str, plot.Points] = {}
    ratio = 0.0
    for nbytes in every:
        most = int(config.most_mb * 2**20 / nbytes)
        methods = arrays.methods(nbytes // 4)
        timings = time_methods(group, methods, nbytes, max(3, min(config.repeats, most)))
        if not curves:
            context.say(_head(list(timings), group.size))
        context.say(_line(nbytes, timings, group.size))
        for name, timing in timings.items():
            speed = bandwidth_gb_s(name, nbytes, timing.median_s, group.size)
            curves.setdefault(name, []).append((nbytes, speed))
            metrics.write({
                "method": name, "bytes": nbytes, "ranks": group.size, "bus_gb_s": speed,
                "median_s": timing.median_s, "fastest_s": timing.fastest_s,
            })  # fmt: skip
        if "library" in timings:
            ratio = max(ratio, timings["all_reduce"].median_s / timings["library"].median_s)
    metrics.close()
    if group.rank == 0:
        path = context.rundir.path / "allreduce.svg"
        write_text(path, _picture(curves, every, group.size))
        context.say(f"files in {context.rundir.path}: metrics.jsonl, allreduce.svg")
    return {"worst_ratio": ratio, "bus_gb_s": max(y for _, y in curves["all_reduce"])}


def _head(names: list[str], ranks: int) -> str:
    columns = "".join(f"{name:>22}" for name in names)
    return f"median us and GB/s of the bus, {ranks} ranks\n{'size':>9}{columns}   against library"


def _line(nbytes: int, timings: Mapping[str, Timing], ranks: int) -> str:
    text = f"{plot.human_bytes(nbytes):>9}"
    for name, timing in timings.items():
        speed = bandwidth_gb_s(name, nbytes, timing.median_s, ranks)
        text += f"{timing.median_s * 1e6:>14.1f}{speed:>8.2f}"
    if "library" not in timings:
        return text
    ratio = timings["library"].median_s / timings["all_reduce"].median_s
    return f"{text}   {ratio:.2f} x as fast"


def _picture(curves: Mapping[str, plot.Points], every: list[int], ranks: int) -> str:
    speeds = [y for points in curves.values() for _, y in points if y > 0]
    across = plot.BytesAxis("bytes of the array", every[0], 2 * every[-1], plot.human_bytes)
    up = plot.LogAxis("GB/s of the bus", min(speeds, default=1) / 1.5, max(speeds, default=1) * 1.5)
    return plot.curves_svg(curves, {}, f"All-reduce, {ranks} ranks", across, up)
