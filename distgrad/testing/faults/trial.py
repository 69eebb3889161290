"""One job with one fault: run it, see how it ended, judge."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from distgrad.errors import CheckpointError
from distgrad.launch import checkpoint
from distgrad.testing.faults.plan import Fault
from distgrad.testing.faults.strike import BALLAST, STEPS, STRUCK
from distgrad.testing.hosts import Hosts

RANKS = 3
STEP = 6  # the fault comes in this step, or in the first after it that has the phase
STEPS_TO_DO = 12
STALL_S = 4.0
LIMIT_S = 90.0  # what is still there then hangs
DISK_MIB = 24
JOB = (
    "--job", "textgpt", "--steps", str(STEPS_TO_DO), "--save-every", "4", "--eval-every", "4",
    "--log-every", "1", "--global-batch", "8", "--micro-batch", "2", "--set", "bucket_cap_mb=0.02",
    "--set", "width=32", "--set", "layers=1", "--set", "context=32", "--set", "sample=8",
)  # fmt: skip
RECOVERED, SHRUNK, ENDED = "recovered", "shrunk", "ended with the reason"
HANG, WRONG, TORN, SILENT, LEFT = "HANG", "WRONG BITS", "TORN", "NO REASON", "LEFTOVERS"
NOT_STRUCK, GAVE_UP = "never struck", "GAVE UP"
GOOD = (RECOVERED, SHRUNK, ENDED)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job.

    Args:
        verdict: one of `GOOD`, or what is wrong.
        seconds: the whole job took.
        back_s: from the fault to the next training step; None if there was none.
        lost: completed steps that had to be done again.
        reason: the last line that says why it ended or went on.
    """

    verdict: str
    seconds: float
    back_s: float | None = None
    lost: int | None = None
    reason: str = ""

    @property
    def good(self) -> bool:
        """Return whether the job ended as it must."""
        return self.verdict in GOOD


def healthy(python: str, folder: Path, *extra: str) -> list[str]:
    """Return the words that start the job."""
    words = [python, "-m", "distgrad.launch", "--nproc", str(RANKS)]
    return [*words, "--run-dir", str(folder / "run"), *JOB, *extra]


def faulty(python: str, fault: Fault, folder: Path, hosts: Hosts | None) -> list[str]:
    """Return the words that start the job under the supervisor, with a fault in it."""
    head = ["-m", "distgrad.testing.faults.rank", fault.dumps(), str(STEP), str(folder)]
    words = [python, *head, *healthy(python, folder)[3:]]
    words += ["--max-restarts", "3", "--stall-timeout", str(STALL_S)]
    words += ["--min-ranks", "1"] if fault.shrink or hosts else []
    words += ["--zero", str(fault.zero)] if fault.zero else []
    if hosts is not None:
        names = ",".join(f"{address}:1" for address in hosts.addresses)
        words = [*hosts.outside, *words, "--hosts", names, "--ssh", hosts.ssh]
    return words


def run(words: Sequence[str], environ: Mapping[str, str] | None = None) -> tuple[int | None, str]:
    """Return the exit status (None if it had to be killed) and the output of a command."""
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            env=os.environ | dict(environ or {}),
        )  # fmt: skip
        status: int | None
        try:
            status = child.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            status = None
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        output.seek(0)
        return status, output.read().decode(errors="replace")


def weights(output: str) -> str:
    """Return the hash of the final weights that a job printed last."""
    found = re.findall(r"weights sha256 (\w+)", output)
    return found[-1] if found else ""


def undisturbed(python: str) -> str:
    """Return the hash of the final weights of the job without a fault.

    Raises:
        RuntimeError: the job does not even run without one.
    """
    with tempfile.TemporaryDirectory(prefix="distgrad-faults-") as folder:
        status, output = run(healthy(python, Path(folder)))
    if status != 0 or not weights(output):
        raise RuntimeError(f"the job fails without a fault (exit status {status}):\n{output}")
    return weights(output)


def attempt(python: str, fault: Fault, expected: str) -> tuple[Outcome, str]:
    """Return what became of the job with ``fault``, and its output."""
    with _folder(fault) as folder, _hosts(fault) as hosts:
        began = time.monotonic()
        environ = None if hosts is None else hosts.environ
        status, output = run(faulty(python, fault, folder, hosts), environ)
        seconds = time.monotonic() - began
        left = _leftovers(folder)
        if fault.kind == "disk full" and status:
            output += _go_on_with_room(python, folder, expected)
        return _judge(fault, folder, status, output, expected, seconds, left), output


def _hosts(fault: Fault) -> AbstractContextManager[Hosts | None]:
    """Return the hosts that the fault needs."""
    return Hosts(RANKS) if fault.victim == "host" else nullcontext()


@contextmanager
def _folder(fault: Fault) -> Iterator[Path]:
    """Give the trial a folder; one on a small disk of its own if the disk is to be full."""
    folder = Path(tempfile.mkdtemp(prefix="distgrad-faults-"))
    small = fault.kind == "disk full"
    if small:
        words = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "distgrad", str(folder)]
        subprocess.run(words, check=True)
    try:
        yield folder
    finally:
        if small:
            subprocess.run(["umount", "-l", str(folder)], check=False)
        shutil.rmtree(folder, ignore_errors=True)


def _go_on_with_room(python: str, folder: Path, expected: str) -> str:
    """Return what is wrong with the job if it goes on once the disk has room again."""
    (folder / BALLAST).unlink(missing_ok=True)
    status, output = run(healthy(python, folder, "--resume", "auto"))
    if status == 0 and weights(output) == expected:
        return "\nwith room on the disk again it went on to the same weights\n"
    return f"\nWITH ROOM ON THE DISK IT DID NOT GO ON ({status}):\n{output}"


def _judge(
    fault: Fault,
    folder: Path,
    status: int | None,
    output: str,
    expected: str,
    seconds: float,
    left: list[str],
) -> Outcome:
    back_s, lost, shrunk = _progress(folder)
    reason = _reason(output)
    verdict = _verdict(fault, folder, status, output, expected, shrunk)
    if verdict in GOOD and left:
        verdict, reason = LEFT, "; ".join(left)
    return Outcome(verdict, seconds, back_s, lost, reason)


def _verdict(
    fault: Fault, folder: Path, status: int | None, output: str, expected: str, shrunk: bool
) -> str:
    if not (folder / STRUCK).exists():
        return NOT_STRUCK
    if status is None:
        return HANG
    torn = [p.name for p in (folder / "run" / "checkpoints").glob("step_*") if _is_torn(p)]
    if torn:
        return TORN
    if status == 0:
        if weights(output) != expected:
            return WRONG
        return SHRUNK if shrunk else RECOVERED
    if not _reason(output) or "DID NOT GO ON" in output:
        return SILENT
    return ENDED if fault.kind == "disk full" else GAVE_UP


def _is_torn(path: Path) -> bool:
    """Return whether ``path`` has the name of a whole checkpoint and is none."""
    if not path.name[5:].isdigit():
        return False
    try:
        checkpoint.verify(path)
    except CheckpointError:
        return True
    return False


def _progress(folder: Path) -> tuple[float | None, int | None, bool]:
    """Return seconds without training, steps done again, and whether ranks shrank in place."""
    try:
        at, struck = (folder / STRUCK).read_text().split()
        lines = [line.split() for line in (folder / STEPS).read_text().splitlines()]
    except OSError:
        return None, None, False
    after = [
        (float(t) - float(at), int(step), int(start))
        for t, step, size, start in lines
        if float(t) > float(at) and (int(start) or int(size) < RANKS)
    ]
    if not after:
        return None, None, False
    back_s, step, _ = after[0]
    return back_s, max(0, int(struck) - step), after[-1][2] == 0


def _reason(output: str) -> str:
    """Return the line in which the launcher or a rank says why it ended."""
    lines = [line for line in output.splitlines() if "distgrad" in line or "Error" in line]
    return lines[-1].strip() if lines else ""


def _leftovers(folder: Path) -> list[str]:
    """Return the processes that still belong to the trial after a moment, and end them."""
    time.sleep(0.5)
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(folder) in words and int(place.name) != os.getpid():
                found.append(f"{place.name} {words[:80]}")
                os.kill(int(place.name), signal.SIGKILL)
    return found
