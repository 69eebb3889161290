"""Runs the tests of this folder on a GPU, in sections, and writes down what each test said.

    python tests/gpu                                     # everything, what matters most first
    python tests/gpu --sections gemm cudnn --out /tmp/gpu.jsonl --budget 120

A section is one or more processes of pytest.  What a kernel breaks, it breaks for its process: that
one is started again behind the test that broke it.  A section that takes too long is ended, and the
others run all the same.  The file gets one line of JSON for each test as soon as it has run.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
# What pytest is asked, and how many processes share it.
SECTIONS = {
    "gemm": (["test_gemm.py"], 2),
    "cudnn": (["test_cudnn.py"], 4),
    "optim": (["test_optim.py"], 2),
    "training": (["test_cuda.py", "-k", "not operations and not many_operations"], 4),
    "capture": (["test_capture.py"], 2),
    "processes": (["test_processes.py"], 1),
    "ranks": (["test_ranks.py"], 2),
    "operations": (["test_cuda.py", "-k", "operations or many_operations"], 10),
}
WRONG = {"failed", "error", "ended", "without result"}
ONE_TEST_S = 150  # where pytest-timeout is installed, which ends the process
FINISHED = "finished"  # as conftest.py says it
STARTS = 20  # of one process, when tests break the device


class Share:
    """One process of a section, and those that follow where it breaks.

    Args:
        name: of the section.
        number, count: which share of the tests it runs.
        results: the file for all results.
        folder: for what it notes.
        under: the words of a tool that runs it.
    """

    def __init__(
        self, name: str, number: int, count: int, results: Path, folder: Path, under: list[str]
    ) -> None:
        files, *more = SECTIONS[name][0]
        self.words = [
            *under, sys.executable, "-m", "pytest", str(HERE / files), *more, "-q", "-W", "default",
            "-p", "no:cacheprovider", "-o", "addopts=", "--tb=short", "--rootdir", str(ROOT),
            "-c", str(ROOT / "pyproject.toml"), "-o", f"timeout={ONE_TEST_S}", "-o",
            "timeout_method=thread",
        ]  # fmt: skip
        self.log, begun = folder / f"{name}-{number}.log", folder / f"{name}-{number}.begun"
        self.environment = os.environ | {
            "DISTGRAD_GPU_RESULTS": str(results),
            "DISTGRAD_GPU_BEGUN": str(begun),
            "DISTGRAD_GPU_SHARE": f"{number}/{count}",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }
        self.starts, self.begun = 0, begun
        self.start()

    def start(self) -> None:
        """Begin, or go on behind the last test that began."""
        self.starts += 1
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.words, env=self.environment, cwd=ROOT, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def over(self) -> bool:
        """Return whether it has run all; starts it again where a test broke it."""
        if self.process.poll() is None:
            return False
        if self.starts >= STARTS or not self.tests() or FINISHED in self.tests():
            return True
        self.start()
        return False

    def tests(self) -> list[str]:
        """Return the names of the tests that began."""
        return self.begun.read_text().splitlines() if self.begun.exists() else []

    def end(self) -> None:
        """End it, with what it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def run(
    name: str, results: Path, folder: Path, seconds: float, under: list[str]
) -> dict[str, object]:
    """Run a section; return what became of it."""
    before = results.stat().st_size if results.exists() else 0
    began, count = time.monotonic(), SECTIONS[name][1]
    shares = [Share(name, number, count, results, folder, under) for number in range(count)]
    waiting = list(shares)
    while waiting and time.monotonic() - began < seconds:
        waiting = [share for share in waiting if not share.over()]
        time.sleep(0.2)
    for share in waiting:
        share.end()
    text = results.read_bytes()[before:] if results.exists() else b""
    rows = [json.loads(line) for line in text.splitlines()]
    started = {test for share in shares for test in share.tests()} - {FINISHED}
    counts: dict[str, object] = dict(Counter(row["outcome"] for row in rows))
    silent = sorted(started - {row["test"] for row in rows})  # died, hung, or passed by nobody
    found = {"section": name, **counts, "s": round(time.monotonic() - began, 1)}
    if silent:
        found["without result"] = silent[:5]
    if under:  # compute-sanitizer begins its lines so
        said = "\n".join(share.log.read_text(errors="replace") for share in shares)
        found["tool"] = [line for line in said.splitlines() if line.startswith("=====")][:40]
    if waiting:
        found["ended"] = f"after {seconds:.0f} s"
    if not rows:
        found["log"] = shares[0].log.read_text(errors="replace")[-1500:]
    for row in [row for row in rows if row["outcome"] == "failed"][:8]:
        print(f"    {row['test'].split('::')[-1]}: {row['why'].splitlines()[0][:200]}")
    return found


def main() -> int:
    """Run sections and print what became of each; return 1 if anything is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--out", type=Path, default=Path("gpu-tests.jsonl"))
    parser.add_argument("--budget", type=float, default=240, help="seconds for each section")
    parser.add_argument("--total", type=float, default=3600, help="seconds for all of them")
    parser.add_argument("--under", default="", help='a tool: "compute-sanitizer --tool memcheck"')
    options = parser.parse_args()
    began, right = time.monotonic(), True
    with tempfile.TemporaryDirectory() as folder:
        for name in options.sections:
            left = options.total - (time.monotonic() - began)
            if left < 5:
                print(json.dumps({"section": name, "ended": "no time was left"}), flush=True)
                right = False
                continue
            try:
                seconds, under = min(options.budget, left), shlex.split(options.under)
                found = run(name, options.out.resolve(), Path(folder), seconds, under)
            except Exception as error:  # the other sections run all the same
                found = {"section": name, "error": repr(error)}
            print(json.dumps(found), flush=True)
            right &= bool(found.get("passed")) and not WRONG & set(found)
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
