"""Memory of one rank with and without ZeRO: parameters, gradients, optimizer state, and the peak.

Ranks are threads, so one process shows all of them; ``tracemalloc`` sees every array, and the
figures are those of all ranks divided by their number.

    python benchmarks/zero_memory.py [--ranks 4] [--width 512] [--layers 8]
"""

from __future__ import annotations

import argparse
import gc
import tracemalloc
from typing import Any

import distgrad as dg
from distgrad.distributed.optim import ZeroRedundancyOptimizer
from distgrad.distributed.threads import run_ranks
from distgrad.nn.parallel import DistributedDataParallel

MIB = 2**20


def train(group: Any, zero: int, width: int, layers: int) -> dict[str, float]:
    """Return MiB of this rank after some steps."""
    net = dg.nn.Sequential(*[dg.nn.Linear(width, width, bias=False) for _ in range(layers)])
    ddp = DistributedDataParallel(
        net, process_group=group, bucket_cap_mb=width * width * 4 / MIB, shard_gradients=zero == 2
    )
    params = list(net.parameters())
    if zero:
        optimizer: Any = ZeroRedundancyOptimizer(params, dg.optim.Adam)
        states = lambda: optimizer._inner.state.values()  # noqa: E731
    else:
        optimizer = dg.optim.Adam(params)
        states = lambda: optimizer.state.values()  # noqa: E731
    group.barrier()
    if group.rank == 0:
        gc.collect()
        tracemalloc.reset_peak()
    group.barrier()
    for _ in range(3):
        optimizer.zero_grad()
        ddp(dg.ones(1, width)).sum().backward()
        optimizer.step()
        group.barrier()
    peak = tracemalloc.get_traced_memory()[1] / group.size
    buckets = ddp.reducer.buckets
    if zero == 2:
        regions = {id(b.region): b.region.arrays[b.region.mine].nbytes for b in buckets}
        gradients = sum(b.shard.nbytes for b in buckets) + sum(regions.values())
    else:
        gradients = sum(b.flat.nbytes for b in buckets)
    found = {
        "parameters": sum(p.array.nbytes for p in params),
        "gradients": gradients,
        "state": sum(t.array.nbytes for row in states() for t in row.values()),
        "peak": peak,
    }
    group.barrier()
    return {name: nbytes / MIB for name, nbytes in found.items()}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    options = parser.parse_args()
    tracemalloc.start()
    print(f"MiB of a rank, Adam, {options.ranks} ranks, {options.layers} layers of {options.width}")
    print(f"{'':8}{'parameters':>12}{'gradients':>12}{'state':>12}{'peak':>12}")
    for zero, name in enumerate(("DDP", "ZeRO-1", "ZeRO-2")):
        rows = run_ranks(options.ranks, train, zero, options.width, options.layers)
        gc.collect()
        most = {key: max(row[key] for row in rows) for key in rows[0]}
        print(f"{name:8}" + "".join(f"{value:12.2f}" for value in most.values()))


if __name__ == "__main__":
    main()
