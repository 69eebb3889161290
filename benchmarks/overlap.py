"""How much of the communication of a training step is hidden behind its backward.

    python benchmarks/overlap.py --mbit 400          # needs root: two network namespaces, tc tbf

Two hosts with a limited network train a stack of linear layers. Timed in turns on both ranks: the
step without communication, all buckets alone, the step with DistributedDataParallel, and a step
that communicates when backward is over. Hidden is what the step with communication costs more than
the one without, as a part of the communication alone.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

WIDTH, LAYERS, BUCKET_MB = 384, 16, 0.5
COMPUTE_SHARE = 2.0  # of the time of communication: how long backward shall last
TAG = 500  # numbers of buckets from here on are of the benchmark


class Bench:
    """One rank's model and what is timed."""

    def __init__(self) -> None:
        import distgrad as dg
        from distgrad import distributed as dist

        self.dg, self.group = dg, dist.init_process_group()
        layers: list[Any] = []
        for _ in range(LAYERS):
            layers += [dg.nn.Linear(WIDTH, WIDTH), dg.nn.ReLU()]
        self.ddp = dg.nn.parallel.DistributedDataParallel(
            dg.nn.Sequential(*layers), bucket_cap_mb=BUCKET_MB
        )
        self.optimizer = dg.optim.SGD(self.ddp.parameters(), lr=1e-3)
        self.batch = dg.randn(32, WIDTH)
        self.step()  # the first one learns the order of buckets
        self.progress = dist.start_progress(self.ddp.reducer.channel)
        self.scratch = [np.zeros_like(bucket.wire) for bucket in self.ddp.reducer.buckets]

    def step(self) -> None:
        """Do a step with communication during backward."""
        self.optimizer.zero_grad()
        self.ddp(self.batch).square().mean().backward()
        self.optimizer.step()

    def compute(self) -> None:
        """Do a step without communication."""
        with self.ddp.no_sync():
            self.step()
        self.ddp.reducer.count = 0

    def communicate(self) -> None:
        """Reduce all buckets, without a step."""
        from distgrad.distributed.reduction import PHASES, Exchange, Reduction

        reducer = self.ddp.reducer

        def start(index: int, array: Any) -> Callable[[], Reduction]:
            tag, parts = (TAG + index) * PHASES, reducer.tree.parts
            return lambda: Reduction(
                Exchange(reducer.channel, [array], parts, np.add, tag, "alone")
            )

        jobs = [self.progress.submit(start(i, a)) for i, a in enumerate(self.scratch)]
        for job in jobs:
            job.wait()

    def one_after_the_other(self) -> None:
        """Do a step and then reduce all buckets."""
        self.compute()
        self.communicate()

    def seconds(self, call: Callable[[], None]) -> float:
        """Return the time of a call on the slower rank."""
        self.group.barrier()
        began = time.perf_counter()
        call()
        took = np.array([time.perf_counter() - began])
        self.group.all_reduce(took, "max")
        return float(took[0])

    def choose_batch(self) -> None:
        """Make backward, two thirds of a step, as long as it is to be beside communication."""
        alone = min(self.seconds(self.communicate) for _ in range(3))
        for _ in range(3):
            step = min(self.seconds(self.compute) for _ in range(3))
            rows = len(self.batch) * COMPUTE_SHARE * 1.5 * alone / step
            self.batch = self.dg.randn(min(1 << 14, max(32, int(rows))), WIDTH)


def worker(repeats: int) -> None:
    """Measure on this rank, and print the times on rank 0."""
    bench = Bench()
    bench.choose_batch()
    calls = {
        "compute alone": bench.compute,
        "communication alone": bench.communicate,
        "with overlap": bench.step,
        "without overlap": bench.one_after_the_other,
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    waited = []
    for _ in range(repeats):
        for name, call in calls.items():
            bench.ddp.reducer.waited_s = 0.0
            times[name].append(bench.seconds(call))
            if name == "with overlap":
                waited.append(bench.ddp.reducer.waited_s)
    if bench.group.rank == 0:
        nbytes = sum(array.nbytes for array in bench.scratch)
        result = {"times": times, "waited": waited, "bytes": nbytes, "rows": len(bench.batch)}
        print("RESULT " + json.dumps(result), flush=True)
    bench.group.barrier()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mbit", type=float, default=400.0, help="rate of each host's network")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.repeats)
        return
    from distgrad.testing.hosts import Hosts, possible

    if not possible():
        sys.exit("overlap.py: makes network namespaces, which needs root on Linux")
    with Hosts(2, options.mbit) as hosts:
        words = [sys.executable, __file__, "--worker", "--repeats", str(options.repeats)]
        text = hosts.run(2, words)
    found = json.loads(
        next(line for line in text.splitlines() if "RESULT" in line).split(None, 1)[1]
    )
    median = {name: float(np.median(times)) for name, times in found["times"].items()}
    print(
        f"2 hosts, {options.mbit:g} Mbit/s, {found['bytes'] / 2**20:.1f} MiB of gradients in "
        f"{BUCKET_MB} MiB buckets, batch {found['rows']}, load {os.getloadavg()[0]:.1f}"
    )
    for name, seconds in median.items():
        print(f"{name:<20} {seconds * 1e3:8.1f} ms (fastest {min(found['times'][name]) * 1e3:.1f})")
    more = median["with overlap"] - median["compute alone"]
    print(f"hidden               {1 - more / median['communication alone']:8.1%}")
    print(
        f"waited in backward   {np.median(found['waited']) * 1e3:8.1f} ms, as reported by the job"
    )


if __name__ == "__main__":
    main()
