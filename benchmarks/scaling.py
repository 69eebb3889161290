"""The scaling model against real runs, on hosts with a limited network.

    python benchmarks/scaling.py --mbit 200 --delay-us 500        # needs root, and a C compiler

The job ``scaling`` runs on two hosts and measures the network. With what it found there, steps on
more hosts are predicted, and beside them stands what real runs on so many hosts take. All hosts
share this machine's cores, so compute, and how much ranks slow each other down, are measured anew
for each number of ranks; the communication that a step waits for is what the model has to know.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from distgrad.testing.hosts import Hosts, possible

sys.path.insert(0, str(Path(__file__).parents[1]))
from distgrad.launch.jobs.scaling import Network, Step, crowded, exposed_s, predicted_s

JOB = ["-m", "distgrad.launch", "--job", "scaling", "--micro-batch", "2"]


def run(hosts: Hosts, ranks: int, steps: int) -> dict[str, Any]:
    """Return what the job measured on ``ranks`` hosts."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--run-dir", f"{folder}/run", "--steps", str(steps)]
        hosts.run(ranks, [sys.executable, *JOB, *options])
        text = Path(folder, "run", "metrics.jsonl").read_text()
    found: dict[str, Any] = json.loads(text.splitlines()[0])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mbit", type=float, default=200.0, help="rate of each host's network")
    parser.add_argument("--delay-us", type=float, default=500.0, help="of each packet; 0: none")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--steps", type=int, default=15)
    options = parser.parse_args()
    if not possible():
        sys.exit("scaling.py: makes network namespaces, which needs root on Linux")
    with Hosts(max(options.ranks), options.mbit, options.delay_us) as hosts:
        found = [run(hosts, ranks, options.steps) for ranks in options.ranks]
    network = Network(**found[0]["network"])
    print(
        f"{options.mbit:g} Mbit/s, {options.delay_us:g} us, load {os.getloadavg()[0]:.1f}; on "
        f"{options.ranks[0]} hosts: alpha {network.alpha * 1e6:.0f} us, gap "
        f"{network.gap * 1e6:.1f} us, {8e-6 / network.beta:.0f} Mbit/s"
    )
    print(
        "ranks  crowding  compute ms  exposed: predicted  measured   step: predicted  measured  off"
    )
    for row in found:
        ranks, measured = row["ranks"], row["measured_s"]
        step = Step(**row["step"])
        there = crowded(network, row["network"]["crowding"])
        waits, whole = exposed_s(there, step, ranks), predicted_s(there, step, ranks)
        print(
            f"{ranks:>5}{there.crowding:10.2f}{step.seconds * 1e3:12.1f}{waits * 1e3:20.1f}"
            f"{(measured - step.seconds) * 1e3:10.1f}{whole * 1e3:18.1f}{measured * 1e3:10.1f}"
            f"{whole / measured - 1:5.0%}"
        )


if __name__ == "__main__":
    main()
