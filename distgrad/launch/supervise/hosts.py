"""The hosts of a job: which there are, which answer, and what an attempt has left on them.

Everything that is done on another host is one short shell command over ssh, on all hosts at the
same time, and takes no longer than `LIMIT_S`.  The host of this process is never asked over ssh.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from distgrad.errors import ConfigError
from distgrad.launch.supervise.wire import JOB

CONNECT_S = 2
LIMIT_S = 4.0
AT_ONCE = 64
_COMMENT = re.compile(r"#.*")
_SLOTS = re.compile(r"(?:\s+|:)(?:slots\s*=\s*)?(\d+)")
# files of MPI libraries; what users keep there is theirs
_SHARED = re.compile(r"/dev/shm/(mpich|vader_segment|sm_segment|ucx_shm)[A-Za-z0-9_.+-]*")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Host:
    """A host and how many ranks it has room for."""

    name: str
    slots: int = 1

    def __str__(self) -> str:
        return f"{self.name}:{self.slots}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back from a host: ``ok``, or why not; ``text`` is what it printed."""

    ok: bool
    text: str
    reason: str = ""


def parse(hosts: str | None, hostfile: str | None) -> list[Host]:
    """Return the hosts that ``--hosts`` or ``--hostfile`` name; none are this host alone.

    Raises:
        ConfigError: they cannot be read.

    Example:
        >>> [str(host) for host in parse("alpha:2,beta", None)]
        ['alpha:2', 'beta:1']
    """
    if hosts:
        return [_host(part, f"--hosts {hosts}") for part in hosts.split(",")]
    if not hostfile:
        return []
    try:
        lines = Path(hostfile).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"--hostfile {hostfile}: cannot be read ({why})") from None
    found = [_COMMENT.sub("", line).strip() for line in lines]
    listed = [_host(line, f"--hostfile {hostfile}") for line in found if line]
    if not listed:
        raise ConfigError(f"--hostfile {hostfile}: names no host")
    return listed


def _host(text: str, origin: str) -> Host:
    """Return the host that ``alpha``, ``alpha:2`` or ``alpha slots=2`` stands for."""
    name = re.match(r"[^\s:,]+|\[[^\]]+\]", text.strip())
    slots = _SLOTS.match(text.strip(), name.end()) if name else None
    rest = text.strip()[slots.end() if slots else name.end() if name else 0 :].strip()
    if name is None or (rest and slots is None) or name[0].startswith("-"):
        raise ConfigError(f"{origin}: {text.strip()!r} is no host; write HOST:RANKS")
    return Host(name[0], max(1, int(slots[1])) if slots else 1)


def is_here(name: str) -> bool:
    """Return whether ``name`` is this host."""
    if name in ("localhost", "127.0.0.1", "::1", socket.gethostname()):
        return True
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return any(_is_mine(family, str(address[0])) for family, _, _, _, address in found)


def _is_mine(family: int, address: str) -> bool:
    """Return whether ``address`` is one of this host: the way there begins where it ends."""
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # sends nothing: it looks the route up
        return address.startswith("127.") or probe.getsockname()[0] == address
    return False


def addresses(name: str) -> list[str]:
    """Return the addresses of a host; none if its name means nothing here."""
    try:
        return [str(found[4][0]) for found in socket.getaddrinfo(name, None)]
    except OSError:
        return []


def address_for(hosts: Sequence[Host]) -> str:
    """Return the address of this host that the others reach: loopback if there are none."""
    for host in hosts:
        with suppress(OSError):
            family, _, _, _, address = socket.getaddrinfo(host.name, 9, type=socket.SOCK_DGRAM)[0]
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect(address)
                mine = str(probe.getsockname()[0])
            if not mine.startswith("127.") and mine != "::1":
                return mine
    return "127.0.0.1"


def placed(hosts: Sequence[Host], everyone: Sequence[Host], nproc: int) -> int:
    """Return how many of ``nproc`` ranks the ``hosts`` take that are left of ``everyone``.

    Example:
        >>> placed([Host("a", 2)], [Host("a", 2), Host("b", 2)], 4)
        2
    """
    if not everyone:
        return nproc
    room = sum(host.slots for host in everyone)
    each = -(-nproc // room)  # ranks on a slot, if more are asked for than there is room
    return min(nproc, each * sum(host.slots for host in hosts))


# ------------------------------------------------------------------ commands on hosts


class Remote:
    """Runs commands on hosts.

    Args:
        ssh: the words that reach a host, such as ``ssh``.
    """

    def __init__(self, ssh: str) -> None:
        self.words = shlex.split(ssh)
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="distgrad-ssh")

    def options(self) -> list[str]:
        """Return the words that reach a host and give up in time; other programs take none."""
        if Path(self.words[0]).name != "ssh":
            return self.words
        keep = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_S}"]
        return [*self.words, *keep, "-o", "ServerAliveInterval=3", "-o", "ServerAliveCountMax=2"]

    def ask(self, name: str, command: str, limit_s: float = LIMIT_S) -> Answer:
        """Return what the shell command ``command`` prints on the host ``name``."""
        here = is_here(name)
        words = ["sh", "-c", command] if here else [*self.options(), name, command]
        try:
            done = subprocess.run(
                words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                timeout=limit_s, check=False, start_new_session=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return Answer(False, "", f"{name} does not answer within {limit_s:.0f} s; is it up?")
        except OSError as error:
            return Answer(False, "", no_ssh(words[0], error))
        if done.returncode:
            return Answer(False, done.stdout, why_ssh_failed(name, done.returncode, done.stderr))
        return Answer(True, done.stdout)

    def ask_all(self, hosts: Sequence[str], command: str) -> dict[str, Answer]:
        """Return the answers of all ``hosts``, asked at the same time."""
        return self.each(hosts, lambda name: self.ask(name, command))

    def each(self, names: Sequence[str], function: Callable[[str], T]) -> dict[str, T]:
        """Return ``function(name)`` for each name, all at the same time."""
        return dict(zip(names, self._pool.map(function, names), strict=True))

    def close(self) -> None:
        """Wait for nothing that is still under way."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def no_ssh(program: str, error: OSError) -> str:
    """Return the sentence for an ssh that cannot be started."""
    if isinstance(error, FileNotFoundError):
        return (
            f"{program} is not installed; other hosts are reached by it (apt-get install "
            f"openssh-client, or --ssh PROGRAM)"
        )
    return f"{program} cannot be started ({error.strerror})"


_SSH_FAILURES = (
    (r"Could not resolve hostname|Name or service not known|Temporary failure in name",
     "its name cannot be resolved; correct --hosts, or add the host to DNS or /etc/hosts"),
    (r"REMOTE HOST IDENTIFICATION HAS CHANGED",
     "its host key is not the one that ssh knows; find out why, then forget the old one with: "
     "ssh-keygen -R {name}"),
    (r"Host key verification failed|No \S+ host key is known",
     "ssh does not trust its host key; add it once with: ssh-keyscan {name} >> ~/.ssh/known_hosts"),
    (r"Permission denied|Too many authentication failures",
     "ssh refuses the key; copy yours there with: ssh-copy-id {name}"),
    (r"Connection refused", "no ssh server listens there; start sshd, or name its port in "
     "~/.ssh/config"),
    (r"timed out|No route to host|Network is unreachable|Host is down",
     "it cannot be reached over the network; is it up, and does a firewall let port 22 through?"),
    (r"Bad owner or permissions|UNPROTECTED PRIVATE KEY",
     "ssh finds its own files too open; chmod 600 the key and ~/.ssh/config"),
    (r"Connection closed|Connection reset|kex_exchange_identification",
     "its ssh server closes the connection; see its log, and MaxStartups in sshd_config"),
)  # fmt: skip


def why_ssh_failed(name: str, status: int, stderr: str) -> str:
    """Return in words why a command on a host failed, with the fix.

    Example:
        >>> why_ssh_failed("beta", 255, "Permission denied (publickey).")
        'host beta: ssh refuses the key; copy yours there with: ssh-copy-id beta'
    """
    for pattern, sentence in _SSH_FAILURES:
        if re.search(pattern, stderr):
            return f"host {name}: {sentence.format(name=name)}"
    said = (stderr.strip().splitlines() or ["nothing"])[-1]
    return f"host {name}: the command ended with status {status} and said {said!r}"


# ------------------------------------------------------------------ processes


def mark_of(pid: int, variable: str = JOB) -> str:
    """Return what the environment of a process says of ``variable``; empty if it is not mine."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return ""
    head = f"{variable}=".encode()
    found = [part for part in environment.split(b"\0") if part.startswith(head)]
    return found[0][len(head) :].decode(errors="replace") if found else ""


def sweep_here(job: str) -> int:
    """End every process of the attempt ``job`` on this host but this one; return how many.

    What such a process has in /dev/shm goes with it: an MPI library that is killed leaves it there.
    """
    mine = {os.getpid(), os.getppid()}
    pids = [int(p.name) for p in Path("/proc").glob("[0-9]*")]
    found = [pid for pid in pids if pid not in mine and mark_of(pid) == job]
    shared: set[str] = set()
    for pid in found:
        with suppress(OSError):
            maps = Path(f"/proc/{pid}/maps").read_text(errors="replace")
            shared.update(match[0] for match in _SHARED.finditer(maps))
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    for file in shared:
        with suppress(OSError):
            os.unlink(file)
    return len(found)


def sweep_command(job: str) -> str:
    """Return the shell command that does what `sweep_here` does, on another host."""
    mark = shlex.quote(f"{JOB}={job}")
    return (
        f"for p in $(grep -lzxF -e {mark} /proc/[0-9]*/environ 2>/dev/null); do p=${{p%/environ}}; "
        f"f=$(grep -oE '{_SHARED.pattern}' $p/maps 2>/dev/null | sort -u); "
        f"kill -9 ${{p#/proc/}} 2>/dev/null; rm -f $f; done; true"
    )


_STATES = {
    "T": "is stopped (SIGSTOP)",
    "t": "is stopped by a debugger",
    "Z": "has ended",
    "X": "has ended",
    "D": "waits for a disk or a network file system",
    "R": "computes without letting other Python threads run",
    "S": "sleeps without letting other Python threads run",
}
GONE = "has ended"
STOPPED = (_STATES["T"], _STATES["t"])
FINAL = (GONE, *STOPPED)  # it will not beat again by itself


def state_in_words(stat: str) -> str:
    """Return what the line ``/proc/PID/stat`` says of a process that does not beat.

    Example:
        >>> state_in_words("17 (python) T 1 17")
        'is stopped (SIGSTOP)'
    """
    if not stat.strip():
        return GONE
    letter = stat.rpartition(")")[2].split()[:1]
    return _STATES.get(letter[0] if letter else "", "is in an unknown state")


def state_here(pid: int) -> str:
    """Return the state of a process of this host in words."""
    try:
        return state_in_words(Path(f"/proc/{pid}/stat").read_text(errors="replace"))
    except OSError:
        return GONE


def end_here(pids: Sequence[int], job: str) -> None:
    """End these processes of this host as far as they belong to the attempt ``job``."""
    for pid in pids:
        if mark_of(pid) == job:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
