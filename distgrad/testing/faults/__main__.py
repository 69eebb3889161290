"""``python -m distgrad.testing.faults``: inject every fault, print what became of the jobs."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from distgrad.launch.spawn import identify
from distgrad.testing.faults import plan, report, trial
from distgrad.testing.faults.plan import Fault


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m distgrad.testing.faults", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few faults only")
    parser.add_argument("--only", default="", help="faults whose text matches this expression")
    parser.add_argument(
        "--python", action="append", default=[], help="another interpreter, with another MPI"
    )
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    parser.add_argument("--write", type=Path, help="write the table into this file")
    parser.add_argument("--lines", type=Path, help="append each outcome to this file, as JSON")
    parser.add_argument("--list", action="store_true", help="list the faults only")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Return 0 if every job ended as it must, else 1."""
    options = _arguments(argv)
    pythons = _interpreters([sys.executable, *options.python])
    faults = [f for f in (plan.sample() if options.quick else plan.whole()) if f.mpi in pythons]
    faults = [f for f in faults if re.search(options.only, str(f)) and _possible(f)]
    if options.list:
        print("\n".join(map(str, faults)))
        return 0
    expected = {mpi: trial.undisturbed(python) for mpi, python in pythons.items()}
    if len(set(expected.values())) != 1:
        print(f"the weights differ without any fault: {expected}", file=sys.stderr)
        return 1
    began = time.monotonic()

    def one(fault: Fault) -> trial.Outcome:
        outcome, output = trial.attempt(pythons[fault.mpi], fault, expected[fault.mpi])
        print(report.line(fault, outcome), flush=True)
        if not outcome.good:
            print(output, file=sys.stderr, flush=True)
        if options.lines:
            with options.lines.open("a") as file:
                file.write(json.dumps({**asdict(fault), **asdict(outcome)}) + "\n")
        return outcome

    with ThreadPoolExecutor(options.jobs) as pool:
        outcomes = dict(zip(faults, pool.map(one, faults), strict=True))
    text = report.table(outcomes, time.monotonic() - began)
    print(text)
    if options.write:
        options.write.write_text(text)
    return 0 if all(outcome.good for outcome in outcomes.values()) else 1


def _interpreters(places: Sequence[str]) -> dict[str, str]:
    """Return the interpreter for each MPI library."""
    found = {}
    for place in places:
        words = [place, "-m", "mpi4py", "--mpi-lib-version"]
        said = subprocess.run(words, capture_output=True, text=True, check=False)
        mpi = identify(said.stdout + said.stderr, place)
        if mpi is not None:
            found[mpi.family] = place
    return found


def _possible(fault: Fault) -> bool:
    """Return whether this machine lets us do it; says once what it does not."""
    if (fault.kind == "disk full" or fault.victim == "host") and os.geteuid() != 0:
        print(f"skipped: {fault} (needs root)")
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
