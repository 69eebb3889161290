"""Start the ranks: find the mpirun that belongs to the MPI library of mpi4py and become it."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NoReturn

from distgrad.config import SWITCHES
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
_SSH_OF_OPEN_MPI = "PRTE_MCA_plm_ssh_agent"
_NO_TREE_OF_OPEN_MPI = "PRTE_MCA_plm_ssh_no_tree_spawn"
_OPTIONS_OF_MPICH = "HYDRA_LAUNCHER_EXTRA_ARGS"
_TIMEOUT_S = 20
_ALLOCATIONS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")  # in which mpirun reaches hosts by itself
# OPENBLAS_CORETYPE chooses the kernels of BLAS, and with them the last bits; a rank that was not
# told by OMPI_MCA_btl_tcp_if_include which network to take waits for the others on a wrong one
_FORWARDED = (
    "DISTGRAD_", "_DISTGRAD_", "OPENBLAS_", "OMP_", "MKL_", "BLIS_", "OMPI_MCA_", "UCX_", "FI_",
)  # fmt: skip


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


def command(
    mpirun: Mpi,
    ranks: int,
    hosts: str | None,
    hostfile: str | None,
    also: Collection[str] = (),
    min_ranks: int | None = None,
) -> list[str]:
    """Return the words that start ``ranks`` ranks, up to the program.

    Args:
        also: variables of this package that mpirun will have and this process has not.
        min_ranks: the others shall go on without a rank that ends, where this MPI can do that.
    """
    words = [mpirun.path, "-n", str(ranks)]
    open_mpi = mpirun.family == "Open MPI"
    if open_mpi and min_ranks is not None:
        words += ["--with-ft", "ulfm"]
    if hosts:
        words += ["--host" if open_mpi else "-hosts", hosts]
    if hostfile:
        words += ["--hostfile" if open_mpi else "-f", hostfile]
    if open_mpi:
        words += _open_mpi_options(ranks, not (hosts or hostfile), also)
    return words


def kept_apart(
    mpirun: Mpi, folder: Path, ssh: Sequence[str], here: str
) -> tuple[list[str], dict[str, str]]:
    """Return options and variables with which an mpirun leaves files in ``folder`` only.

    Args:
        ssh: the words that reach other hosts; empty if there are none.
        here: an address of this host that the others reach.
    """
    words, variables = _reaching(mpirun, folder, ssh) if ssh else ([], {})
    if mpirun.family == "Open MPI":
        return words, {"PRTE_MCA_prte_local_tmpdir_base": str(folder), **variables}
    if ssh:  # the others may know this host's name as another address, such as their own
        words += ["-localhost", here]
    usual = ["-genv", "TMPDIR", tempfile.gettempdir()]  # the ranks' own place is the usual one
    return [*usual, *words], {"TMPDIR": str(folder), **variables}


def _reaching(mpirun: Mpi, folder: Path, ssh: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return options and variables with which an mpirun runs the words ``ssh`` to reach hosts.

    A script in ``folder`` does so only where an mpirun takes no options of this program: the
    folder may be on a disk that runs no programs, and other hosts have not got it.
    """
    plain = not any(set(word) & set(" \t:'\"\\") for word in ssh)
    if mpirun.family == "Open MPI":
        return [], _agent(" ".join(ssh) if plain else _ssh_script(folder, ssh))
    words = ["-launcher", "ssh", "-launcher-exec"]
    if len(ssh) == 1:
        return [*words, ssh[0]], {}
    if plain and mpirun.family == "MPICH" and Path(ssh[0]).name == "ssh":
        more = [os.environ.get(_OPTIONS_OF_MPICH, ""), *ssh[1:]]
        return [*words, ssh[0]], {_OPTIONS_OF_MPICH: " ".join(more).strip()}
    return [*words, _ssh_script(folder, ssh)], {}


def _agent(command: str) -> dict[str, str]:
    """Return the variables by which Open MPI's daemons run ``command`` to reach hosts.

    Daemons on other hosts end if they have not got that program, even if they need not start any,
    unless they know that they will start none.
    """
    alone = {} if Path(command.split()[0]).name == "ssh" else {_NO_TREE_OF_OPEN_MPI: "1"}
    return {_SSH_OF_OPEN_MPI: command, **alone}


def _ssh_script(folder: Path, ssh: Sequence[str]) -> str:
    """Write the program that runs the words ``ssh``; return where it is.

    Raises:
        ConfigError: programs cannot be run from ``folder``.
    """
    script = folder / "run-ssh"
    script.write_text(f'#!/bin/sh\nexec {shlex.join(ssh)} "$@"\n')
    script.chmod(0o700)
    if not os.access(script, os.X_OK):  # no file of a disk that is mounted with noexec can be run
        raise ConfigError(
            f"--ssh {shlex.join(ssh)}: mpirun needs this as one program, and none can be run from "
            f"{folder.parent} (mounted with noexec?); set TMPDIR to a place where programs can be "
            f"run, or let --ssh name one program"
        )
    return str(script)


def _open_mpi_options(ranks: int, local: bool, also: Collection[str]) -> list[str]:
    words = []
    if local and ranks > blas.cores():
        words.append("--oversubscribe")
    if os.geteuid() == 0:
        words.append("--allow-run-as-root")
    if not local:  # Hydra forwards the environment by itself
        words += ["-x", "PYTHONPATH"] if "PYTHONPATH" in os.environ else []
        for name in sorted({*os.environ, *also}):
            if name.startswith(_FORWARDED) or name in blas.VARIABLES:
                words += ["-x", name]
    return words


def start(
    ranks: int,
    hosts: str | None,
    hostfile: str | None,
    threads: int,
    min_ranks: int | None,
    ssh: str,
) -> NoReturn:
    """Become the mpirun that runs this very command line on ``ranks`` ranks.

    Args:
        threads: BLAS threads of each rank, if all are on this host.
        min_ranks: as for `command`.
        ssh: the program that reaches other hosts.

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
    words = command(mpirun, ranks, hosts, hostfile, min_ranks=min_ranks)
    if hosts or hostfile:
        words += _reached_by(mpirun, ssh)
    sys.stdout.flush()
    _read_nothing()  # an mpirun that reads the terminal stops in the background
    os.execv(mpirun.path, [*words, sys.executable, *sys.orig_argv[1:]])


def _reached_by(mpirun: Mpi, ssh: str) -> list[str]:
    """Return the options by which mpirun reaches hosts.

    Raises:
        ConfigError: the program for it is not there.
    """
    if shutil.which(ssh) is None and not any(name in os.environ for name in _ALLOCATIONS):
        raise ConfigError(
            f"--ssh {ssh}: is not installed, and other hosts are reached by it; install it "
            f"(apt-get install openssh-client), or name another program"
        )
    if ssh == SWITCHES["ssh"].default:
        return []
    if mpirun.family == "Open MPI":
        os.environ.update(_agent(ssh))
        return []
    return ["-launcher", "ssh", "-launcher-exec", ssh]


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
