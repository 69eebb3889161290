"""Start the ranks: find the mpirun that belongs to the MPI library of mpi4py and become it."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NoReturn

from distgrad.distributed.env import WorldHint
from distgrad.errors import ConfigError, MissingExtra
from distgrad.launch import blas

STARTED = "_DISTGRAD_STARTED"  # set for the ranks, so that a rank never starts ranks
_FAMILIES = (
    ("Open MPI", r"(?:Open MPI|OpenRTE)\)? v?(\d[\w.]*)"),
    ("Intel MPI", r"Intel\(R\) MPI Library\D*(\d[\w.]*)"),
    ("MVAPICH", r"MVAPICH\S*\s+Version\s*:\s*(\S+)"),
    ("MPICH", r"(?:MPICH Version:|HYDRA build details:\s+Version:)\s*(\S+)"),
)
_TIMEOUT_S = 20


@dataclass(frozen=True, slots=True)
class Mpi:
    """An MPI library or its mpirun: which, of what version, where."""

    family: str
    version: str
    path: str

    def __str__(self) -> str:
        return f"{self.family} {self.version} ({self.path})"

    def starts(self, library: Mpi) -> bool:
        """Return whether ranks that load ``library`` find each other under this mpirun."""
        open_mpi = "Open MPI"  # all others descend from MPICH and speak its protocol
        return (self.family == open_mpi) == (library.family == open_mpi)


def identify(text: str, path: str) -> Mpi | None:
    """Return what ``text``, the version text of a library or an mpirun, stands for.

    Example:
        >>> print(identify("mpirun (Open MPI) 5.0.11", "/usr/bin/mpirun"))
        Open MPI 5.0.11 (/usr/bin/mpirun)
    """
    for family, pattern in _FAMILIES:
        found = re.search(pattern, text)
        if found:
            return Mpi(family, found[1], path)
    return None


@cache
def loaded_library() -> Mpi:
    """Return the MPI library that mpi4py loads; asks in a child, so MPI does not start here.

    Raises:
        MissingExtra: if mpi4py or its library is not there.
    """
    hint = 'pip install "distgrad[mpich]" brings one along'
    if importlib.util.find_spec("mpi4py") is None:
        raise MissingExtra(f"mpi4py is not installed, which several ranks need; {hint}")
    version = _output(sys.executable, "-m", "mpi4py", "--mpi-lib-version")
    path = _output(sys.executable, "-m", "mpi4py", "--mpi-library").strip()
    library = identify(version, path)
    if library is None:
        reason = version.strip().splitlines()[-1:] or ["no answer"]
        raise MissingExtra(
            f"mpi4py finds no MPI library ({reason[0]}); load your site's MPI module, or {hint}"
        )
    return library


def mpiruns() -> list[Mpi]:
    """Return every mpirun at hand: the one beside Python first, then those on PATH."""
    places = [str(Path(sys.executable).parent), *os.environ.get("PATH", "").split(os.pathsep)]
    found: dict[str, Mpi] = {}
    for place in places:
        path = shutil.which("mpirun", path=place) if place else None
        if path and path not in found:
            mpi = identify(_output(path, "--version"), path)
            found[path] = mpi or Mpi("an unknown MPI", "of unknown version", path)
    return list(found.values())


def matching_mpirun() -> Mpi:
    """Return the first mpirun that starts the library of mpi4py.

    Raises:
        MissingExtra, ConfigError: if there is no MPI, or no mpirun that fits it.
    """
    library, every = loaded_library(), mpiruns()
    for mpirun in every:
        if mpirun.starts(library):
            return mpirun
    seen = ", ".join(map(str, every)) or "none on PATH"
    raise ConfigError(
        f"mpirun: mpi4py loads {library}, but the mpirun found is {seen}; put the mpirun of "
        f'{library.family} first on PATH, or pip install "distgrad[mpich]"'
    )


def command(mpirun: Mpi, ranks: int, hosts: str | None, hostfile: str | None) -> list[str]:
    """Return the words that start ``ranks`` ranks, up to the program."""
    words = [mpirun.path, "-n", str(ranks)]
    open_mpi = mpirun.family == "Open MPI"
    if hosts:
        words += ["--host" if open_mpi else "-hosts", hosts]
    if hostfile:
        words += ["--hostfile" if open_mpi else "-f", hostfile]
    if open_mpi:
        words += _open_mpi_options(ranks, local=not (hosts or hostfile))
    return words


def _open_mpi_options(ranks: int, local: bool) -> list[str]:
    words = []
    if local and ranks > blas.cores():
        words.append("--oversubscribe")
    if os.geteuid() == 0:
        words.append("--allow-run-as-root")
    if not local:  # Hydra forwards the environment by itself
        names = (STARTED, *blas.VARIABLES)
        for name in sorted(os.environ):
            if name.startswith("DISTGRAD_") or name in names:
                words += ["-x", name]
    return words


def start(ranks: int, hosts: str | None, hostfile: str | None, threads: int) -> NoReturn:
    """Become the mpirun that runs this very command line on ``ranks`` ranks.

    Args:
        threads: BLAS threads of each rank, if all are on this host.

    Raises:
        ConfigError: if this process is itself such a rank and knows of no others.
    """
    mpirun = matching_mpirun()
    if STARTED in os.environ:
        raise ConfigError(
            f"--nproc {ranks}: mpirun started this rank, but its environment does not say so "
            f"({mpirun}); mpi4py loads {loaded_library()}"
        )
    os.environ[STARTED] = "1"
    if not (hosts or hostfile):
        os.environ.update(blas.missing(threads))
    words = command(mpirun, ranks, hosts, hostfile)
    sys.stdout.flush()
    _read_nothing()  # an mpirun that reads the terminal stops in the background
    os.execv(mpirun.path, [*words, sys.executable, *sys.orig_argv[1:]])


def close_input(hint: WorldHint) -> None:
    """Let this rank read nothing, unless it is rank 0 of an mpirun that the user started.

    The input of the other ranks is a pipe that mpirun never closes.
    """
    if hint.rank or STARTED in os.environ:
        _read_nothing()


def _read_nothing() -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


def slots(hosts: str) -> int:
    """Return how many ranks ``hosts`` has room for.

    Example:
        >>> slots("alpha:2,beta:4,gamma")
        7
    """
    counts = [host.partition(":")[2] or "1" for host in hosts.split(",")]
    if not all(count.isdigit() and int(count) for count in counts):
        raise ConfigError(f"--hosts {hosts}: write HOST:RANKS,HOST:RANKS")
    return sum(map(int, counts))


def _output(*words: str) -> str:
    """Return what a program prints on both streams; what goes wrong is part of the answer."""
    try:
        done = subprocess.run(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stdout.decode(errors="replace")
