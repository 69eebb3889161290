"""``python -m distgrad.doctor``: what is installed, whether it fits together, and the fix if not.

Under ``mpirun -n 2`` it all-reduces instead; ``--test`` starts that by itself.  With ``--hosts`` it
also asks these hosts whether a job could run on them.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from distgrad import distributed
from distgrad.backend.device import cupy_wheels
from distgrad.config import nearest, unknown_variables
from distgrad.distributed.cuda_aware import in_words
from distgrad.distributed.env import world_from_env
from distgrad.errors import ConfigError, DistgradError, MissingExtra
from distgrad.launch import blas, spawn
from distgrad.launch.rundir import RUNS
from distgrad.launch.supervise import hosts, visit
from distgrad.version import __version__

USAGE = """usage: python -m distgrad.doctor [--json] [--test] [--hosts H1,H2] [--hostfile FILE]
                                 [--run-dir DIR] [--ssh PROGRAM]"""
SHM = "/dev/shm"
SHM_LEAST_MB = 256
_TEST_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; ``fix`` says what to do unless all is well."""

    name: str
    state: Literal["ok", "absent", "warn", "fail"]
    text: str
    fix: str = ""


def software() -> dict[str, Any]:
    """Return the versions of what runs here; starts neither MPI nor CUDA."""
    found: dict[str, Any] = {
        "distgrad": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": blas.cores(),
        "blas": blas_name(),
    }
    for package in ("numpy", "safetensors", "mpi4py", "cupy-cuda12x", "cupy-cuda13x"):
        found[package] = _version(package)
    mpi = sys.modules.get("mpi4py.MPI")
    library = spawn.identify(mpi.Get_library_version(), "") if mpi is not None else None
    found["mpi"] = f"{library.family} {library.version}" if library else None
    return found


def blas_name() -> str:
    """Return name and version of the BLAS that NumPy was built with."""
    config: Any = np.show_config(mode="dicts")
    library = config.get("Build Dependencies", {}).get("blas", {})
    return f"{library.get('name', 'unknown')} {library.get('version', '')}".strip()


def checks() -> list[Check]:
    """Return every finding about this machine."""
    found = [
        _python(),
        _numpy(),
        _safetensors(),
        *_mpi(),
        _cupy(),
        *_gpu_ways(),
        _cores(),
        *_shared_memory(),
    ]
    return found + [
        Check("environment", "warn", text, "correct or unset it") for text in unknown_variables()
    ]


# ------------------------------------------------------------------ the checks


def _python() -> Check:
    return Check("python", "ok", f"{platform.python_version()} ({sys.executable})")


def _numpy() -> Check:
    return Check("numpy", "ok", f"{np.__version__}, BLAS {blas_name()}")


def _safetensors() -> Check:
    version = _version("safetensors")
    if version is None:
        return Check("safetensors", "fail", "is not installed", "pip install safetensors")
    return Check("safetensors", "ok", version)


def _mpi() -> list[Check]:
    """Return what there is to say about mpi4py, its library and mpirun."""
    version = _version("mpi4py")
    if version is None:
        fix = 'for several ranks: pip install "distgrad[mpich]"'
        return [Check("mpi4py", "absent", "is not installed; one process works without", fix)]
    try:
        library = spawn.loaded_library()
    except MissingExtra as error:
        fix = 'pip install "distgrad[mpich]", or load the MPI module of the site'
        return [Check("mpi4py", "fail", f"{version}: {error}", fix)]
    return [Check("mpi4py", "ok", f"{version} with {library}"), _mpirun(library)]


def _mpirun(library: spawn.Mpi) -> Check:
    on_path = shutil.which("mpirun")
    try:
        mpirun = spawn.matching_mpirun()
    except DistgradError as error:
        if shutil.which("srun"):
            return Check("mpirun", "warn", str(error), "start the ranks with srun")
        fix = f'put the mpirun of {library.family} on PATH, or pip install "distgrad[mpich]"'
        return Check("mpirun", "fail", str(error), fix)
    if on_path is None or os.path.realpath(on_path) == os.path.realpath(mpirun.path):
        return Check("mpirun", "ok", str(mpirun))
    first = next(m for m in spawn.mpiruns() if m.path == on_path)
    if first.starts(library):
        return Check("mpirun", "ok", f"{mpirun}; first on PATH is {first}, which fits too")
    text = f"first on PATH is {first}, but mpi4py loads {library}"
    return Check("mpirun", "fail", text, f"start with {mpirun.path}, or put it first on PATH")


def _cupy() -> Check:
    wheels = cupy_wheels()
    driver = shutil.which("nvidia-smi") is not None
    if len(wheels) > 1:
        text = f"{' and '.join(wheels)} are installed and break each other"
        return Check("cupy", "fail", text, f"pip uninstall {' '.join(wheels)}, then install one")
    if not wheels:
        text = "is not installed" + ("; this machine has a GPU" if driver else "")
        fix = 'for a GPU: pip install "distgrad[cuda12]" or "distgrad[cuda13]"'
        return Check("cupy", "warn" if driver else "absent", text, fix)
    return _cuda(f"{wheels[0]} {_version(wheels[0])}")


def _cuda(wheel: str) -> Check:
    """Return what a fresh process finds when it starts CUDA."""
    program = (
        "import cupy; r = cupy.cuda.runtime; n = r.getDeviceCount(); "
        "name = r.getDeviceProperties(0)['name'].decode(); "
        "print(n, 'x', name, '- CUDA', r.runtimeGetVersion(), 'driver', r.driverGetVersion())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_TEST_TIMEOUT_S,
        check=False,
    )
    if done.returncode == 0:
        return Check("cupy", "ok", f"{wheel}, {done.stdout.strip()}")
    reason = (done.stderr.strip().splitlines() or ["no answer"])[-1]
    fix = "install an NVIDIA driver that knows this CUDA, or stay with --device cpu"
    return Check("cupy", "warn", f"{wheel}: {reason}", fix)


def _gpu_ways() -> list[Check]:
    """Return what helps CuPy: cuDNN, NCCL, and an MPI that takes tensors on GPUs."""
    wheel = next((d for d in ("cupy-cuda12x", "cupy-cuda13x", "cupy") if _version(d)), None)
    if wheel is None:
        return []
    major = "13" if "13" in wheel else "12"
    version = _number(
        "from cupy.cuda import nccl; print(nccl.get_version() if nccl.available else 0)"
    )
    text = f"{version // 10000}.{version // 100 % 100}.{version % 100}"
    fix = f"for several GPUs: pip install nvidia-nccl-cu{major}"
    nccl = Check("nccl", "ok", text) if version else Check("nccl", "absent", "is not found", fix)
    found = [_cudnn(major), nccl]
    if _version("mpi4py") is not None:
        found.append(Check("CUDA-aware MPI", "ok", in_words()))
    return found


def _cudnn(major: str) -> Check:
    """Return whether convolutions and attention on a GPU are computed by cuDNN."""
    version = _number("import cudnn; print(cudnn.backend_version())")
    if version:
        return Check("cudnn", "ok", f"{version // 10000}.{version // 100 % 100}.{version % 100}")
    text = "is not found; convolutions and attention are computed without it, more slowly"
    fix = f"pip install 'nvidia-cudnn-frontend<1.29' nvidia-cudnn-cu{major}"
    return Check("cudnn", "warn", text, fix)


def _number(program: str) -> int:
    """Return the number that a program prints in a fresh process; 0 if it cannot."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TEST_TIMEOUT_S,
        check=False,
    )  # fmt: skip
    text = done.stdout.strip()
    return int(text) if text.isdigit() else 0


def _cores() -> Check:
    count = blas.cores()
    chosen = {name: os.environ[name] for name in blas.VARIABLES if name in os.environ}
    text = f"{count}; BLAS threads of a rank: {count} / ranks on the host"
    if chosen:
        text += "; set: " + " ".join(f"{name}={value}" for name, value in chosen.items())
    return Check("cores", "ok", text)


def _shared_memory() -> list[Check]:
    if not os.path.isdir(SHM):
        return []
    size_mb = shutil.disk_usage(SHM).total // 2**20
    if size_mb < SHM_LEAST_MB:
        fix = "give the container more, such as docker run --shm-size 1g"
        return [Check("shared memory", "warn", f"{SHM} has {size_mb} MiB", fix)]
    return [Check("shared memory", "ok", f"{SHM} has {size_mb} MiB")]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


# ------------------------------------------------------------------ two ranks that add


def all_reduce_test() -> Check:
    """Return whether two ranks under mpirun get the sum of what both have."""
    try:
        mpirun = spawn.matching_mpirun()
    except DistgradError as error:
        return Check("all-reduce", "fail", str(error), 'pip install "distgrad[mpich]"')
    words = [*spawn.command(mpirun, 2, None, None), sys.executable, "-m", "distgrad.doctor"]
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_TEST_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        fix = "look for a firewall between the ranks, and for /dev/shm that is full"
        return Check("all-reduce", "fail", f"no result after {_TEST_TIMEOUT_S} s", fix)
    text = done.stdout.strip()
    if done.returncode:
        return Check("all-reduce", "fail", text, f"run {' '.join(words)} by hand")
    return Check("all-reduce", "ok", text)


def _as_rank() -> int:
    """Add numbers with the other ranks and measure how fast that is."""
    group = distributed.init_process_group()
    speeds = []
    for size_kib in (64, 1024, 16 * 1024):
        numbers = np.full(size_kib * 256, group.rank + 1.0, np.float32)
        group.barrier()
        start = time.perf_counter()
        group.all_reduce(numbers)
        seconds = time.perf_counter() - start
        expected = group.size * (group.size + 1) / 2
        if not (numbers == expected).all():
            raise DistgradError(f"all_reduce of {size_kib} KiB: gave {numbers[0]}, not {expected}")
        speeds.append(f"{size_kib} KiB in {seconds * 1e3:.2f} ms")
    if group.rank == 0:
        print(f"{group.size} ranks, backend {group.backend}: {', '.join(speeds)}")
    distributed.destroy_process_group()
    return 0


# ------------------------------------------------------------------ other hosts


def _hosts(options: Mapping[str, str]) -> list[Check]:
    """Return what there is to say about the hosts that are asked for."""
    names = [host.name for host in hosts.parse(options["--hosts"], options["--hostfile"])]
    if not names:
        return []
    try:
        mpirun = spawn.matching_mpirun().path
    except DistgradError:  # which is a finding of its own
        mpirun = ""
    run_dir = options["--run-dir"] or str(RUNS)
    remote = hosts.Remote(options["--ssh"] or "ssh")
    try:
        found = visit.visit(names, remote, run_dir, _with_mpi(), mpirun)
    finally:
        remote.close()
    return [Check(f"host {one.host}", one.state, one.text, one.fix) for one in found]


def _with_mpi() -> dict[str, Any]:
    """Return the versions of what is here, with the MPI that ranks would load."""
    try:
        library = spawn.loaded_library()
    except DistgradError:
        return software()
    return software() | {"mpi": f"{library.family} {library.version}"}


# ------------------------------------------------------------------ the command


def _options(argv: Sequence[str]) -> dict[str, str]:
    """Return the text of each option; empty if it is not given."""
    with_value = ("--hosts", "--hostfile", "--run-dir", "--ssh", "--as-host")
    found = dict.fromkeys((*with_value, "--json", "--test"), "")
    words = list(argv)
    while words:
        name, equals, text = words.pop(0).partition("=")
        if name not in found:
            raise ConfigError(f"{name}: unknown option{nearest(name, found)}")
        if name in with_value and not equals:
            if not words:
                raise ConfigError(f"{name}: needs a value")
            text = words.pop(0)
        found[name] = text or "yes"
    return found


def as_text(found: list[Check]) -> str:
    """Return ``found`` as lines to read, or to paste into a report."""
    marks = {"ok": "ok   ", "absent": "-    ", "warn": "warn ", "fail": "FAIL "}
    lines = [f"distgrad {__version__} on {platform.platform()}"]
    for check in found:
        lines.append(f"{marks[check.state]} {check.name:<14} {check.text}")
        if check.fix:
            lines.append(f"{'':<21}{check.fix}")
    broken = [check.name for check in found if check.state == "fail"]
    lines.append(f"broken: {', '.join(broken)}" if broken else "ready for training")
    return "\n".join(lines)


def as_json(found: list[Check]) -> str:
    """Return ``found`` and the versions as JSON."""
    return json.dumps({"software": software(), "checks": [asdict(c) for c in found]}, indent=2)


def main(argv: list[str]) -> int:
    """Return 0 if nothing that is needed is broken."""
    if argv in (["--help"], ["-h"]):
        print(USAGE)
        return 0
    try:
        options = _options(argv)
    except ConfigError as error:
        print(f"distgrad.doctor: {error}\n{USAGE}", file=sys.stderr)
        return 2
    if options["--as-host"]:
        print(visit.answer(options["--as-host"], _with_mpi()))
        return 0
    if (world_from_env().size or 1) > 1:
        return _as_rank()
    found = checks()
    if options["--test"]:
        found.append(all_reduce_test())
    try:
        found += _hosts(options)
    except ConfigError as error:
        found.append(Check("hosts", "fail", str(error), "correct it"))
    show: Callable[[list[Check]], str] = as_json if options["--json"] else as_text
    print(show(found))
    return int(any(check.state == "fail" for check in found))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
