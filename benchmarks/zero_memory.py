"""Memory of one rank with and without ZeRO: parameters, gradients, optimizer state, and the peak.

With ZeRO-3, each layer is a group; parameters and gradients of the groups at work are in the peak.

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
from distgrad.distributed.fsdp import fully_shard
from distgrad.distributed.optim import ZeroRedundancyOptimizer
from distgrad.distributed.threads import run_ranks
from distgrad.nn.parallel import DistributedDataParallel
from distgrad.nn.parallel.fsdp.module import conductor_of

MIB = 2**20


def train(group: Any, zero: int, width: int, layers: int) -> dict[str, float]:
    """Return MiB of this rank after some steps."""
    net = dg.nn.Sequential(*[dg.nn.Linear(width, width, bias=False) for _ in range(layers)])
    if zero == 3:
        for layer in net:
            fully_shard(layer, mesh=group)
        optimizer = dg.optim.Adam(net.parameters())
        peak = run(group, fully_shard(net, mesh=group), optimizer, width)
        units = [layer._fsdp.unit for layer in net]
        regions = conductor_of(net)._regions
        gradients = sum(u.grad.nbytes for u in units) + sum(r.arrays[0].nbytes for r in regions)
        return in_mib(group, net.parameters(), gradients, optimizer.state.values(), peak)
    ddp = DistributedDataParallel(
        net, process_group=group, bucket_cap_mb=width * width * 4 / MIB, shard_gradients=zero == 2
    )
    params = list(net.parameters())
    made: Any = ZeroRedundancyOptimizer(params, dg.optim.Adam) if zero else dg.optim.Adam(params)
    peak = run(group, ddp, made, width)
    buckets = ddp.reducer.buckets
    if zero == 2:
        held = {id(b.region): b.region.arrays[b.region.mine].nbytes for b in buckets}
        gradients = sum(b.shard.nbytes for b in buckets) + sum(held.values())
    else:
        gradients = sum(b.flat.nbytes for b in buckets)
    states = (made._inner if zero else made).state.values()
    return in_mib(group, params, gradients, states, peak)


def run(group: Any, model: Any, optimizer: Any, width: int) -> float:
    """Return the peak of bytes in some steps, of each rank."""
    group.barrier()
    if group.rank == 0:
        gc.collect()
        tracemalloc.reset_peak()
    group.barrier()
    for _ in range(3):
        optimizer.zero_grad()
        model(dg.ones(1, width)).sum().backward()
        optimizer.step()
        group.barrier()
    return tracemalloc.get_traced_memory()[1] / group.size


def in_mib(group: Any, params: Any, gradients: int, states: Any, peak: float) -> dict[str, float]:
    """Return what a rank holds, in MiB."""
    found = {
        "parameters": sum(p.array.nbytes for p in params),
        "gradients": gradients,
        "state": sum(t.array.nbytes for row in states for t in row.values()),
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
    for zero, name in enumerate(("DDP", "ZeRO-1", "ZeRO-2", "ZeRO-3")):
        rows = run_ranks(options.ranks, train, zero, options.width, options.layers)
        gc.collect()
        most = {key: max(row[key] for row in rows) for key in rows[0]}
        print(f"{name:8}" + "".join(f"{value:12.2f}" for value in most.values()))


if __name__ == "__main__":
    main()
