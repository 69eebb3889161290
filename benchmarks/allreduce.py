"""All-reduce on one host by size: distgrad beside the MPI library and torch's gloo, in one run.

    python benchmarks/allreduce.py --ranks 2 --most-kb 262144

All work on the same array, in place and blocking, one after the other in turns. Printed are medians
over the turns of the time on the slowest rank, and how many times as fast distgrad is.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def gloo(rank: int, size: int, address: str) -> Any:
    """Return torch.distributed with its gloo group of all ranks, or None without torch."""
    try:
        import torch
        import torch.distributed as dist
    except ImportError:
        return None
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=size)
    return dist


def worker(options: argparse.Namespace) -> None:
    """Measure on this rank."""
    from distgrad.distributed import init_process_group
    from distgrad.launch.jobs.allreduce_bench import Arrays, BenchConfig, sizes, time_methods
    from distgrad.launch.plot import human_bytes

    group = init_process_group("mpi")
    every = sizes(BenchConfig(most_kb=options.most_kb))
    arrays = Arrays(group, every)
    dist = gloo(group.rank, group.size, options.address)
    if group.rank == 0:
        names = "".join(f"{name:>12}" for name in ("all_reduce", "bucket", "library", "gloo"))
        print(f"median us, {group.size} ranks, load {os.getloadavg()[0]:.1f}\n{'size':>9}{names}")
    for nbytes in every:
        methods = arrays.methods(nbytes // 4)
        del methods["memcpy"]
        if dist is not None:
            import torch

            tensor = torch.from_numpy(arrays.whole[: nbytes // 4])
            methods["gloo"] = lambda tensor=tensor: dist.all_reduce(tensor)
        turns = max(5, min(options.repeats, int(options.most_mb * 2**20 / nbytes)))
        timings = time_methods(group, methods, nbytes, turns)
        if group.rank == 0:
            ours = timings["all_reduce"].median_s
            row = "".join(f"{t.median_s * 1e6:12.1f}" for t in timings.values())
            ratios = "  ".join(
                f"{name} {timings[name].median_s / ours:5.2f} x"
                for name in ("library", "gloo")
                if name in timings
            )
            print(f"{human_bytes(nbytes):>9}{row}   all_reduce is as fast as {ratios}", flush=True)
    group.barrier()
    if dist is not None:
        dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--most-kb", type=float, default=65536.0)
    parser.add_argument("--most-mb", type=float, default=2048.0, help="moved for a size at most")
    parser.add_argument("--repeats", type=int, default=200, help="turns at most")
    parser.add_argument("--address", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.address:
        worker(options)
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    mpirun = Path(sys.executable).with_name("mpirun")
    words = [str(mpirun), "-n", str(options.ranks), sys.executable, *sys.argv]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    sys.exit(subprocess.run([*words, "--address", address], env=environ).returncode)


if __name__ == "__main__":
    main()
