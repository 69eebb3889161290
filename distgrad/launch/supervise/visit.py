"""Whether a job could run on these hosts: everything that would stop it, found before it starts."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from distgrad.launch.supervise import hosts
from distgrad.launch.supervise.hosts import Answer, Host, Remote

LIMIT_S = 20.0  # Python and NumPy may come over a network file system
_BACK_S = 3.0
_COMPARED = ("distgrad", "python", "numpy", "mpi4py", "mpi")


@dataclass(frozen=True, slots=True)
class Finding:
    """What there is to say about a host."""

    host: str
    state: Literal["ok", "warn", "fail"]
    text: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """What a host is asked.

    Args:
        run_dir: where runs are kept.
        mark: the name of a file there.
        back: an address of the asking host.
        helpers: programs that mpirun starts on other hosts.
    """

    run_dir: str
    mark: str
    back: str
    helpers: tuple[str, ...]


def visit(
    names: Sequence[str], remote: Remote, run_dir: str, versions: Mapping[str, Any], mpirun: str
) -> list[Finding]:
    """Return what is wrong with hosts, or that all is well.

    Args:
        names: of the hosts, as ``--hosts`` has them.
        run_dir: where runs are kept.
        versions: of the software here.
        mpirun: which will start the ranks.
    """
    others = [Host(name) for name in names if not hosts.is_here(name)]
    with _marked(run_dir) as mark, _door(hosts.address_for(others)) as back:
        beside = Path(mpirun).parent
        helpers = [beside / name for name in ("hydra_pmi_proxy", "prted")]
        there = tuple(str(helper) for helper in helpers if helper.exists())
        question = Question(os.path.abspath(run_dir), mark, back, there)
        command = _command(question)
        answers = remote.each(names, lambda name: remote.ask(name, command, LIMIT_S))
    return [finding for name in names for finding in judge(name, answers[name], question, versions)]


def judge(
    name: str, answer: Answer, question: Question, versions: Mapping[str, Any]
) -> list[Finding]:
    """Return what the answer of a host means."""
    if not answer.ok:
        return [_unanswered(name, answer)]
    try:
        told = json.loads(answer.text.strip().splitlines()[-1])
        theirs: Mapping[str, Any] = told["software"]
    except (ValueError, KeyError, IndexError, TypeError):
        fix = "install the same version everywhere; its shell may print things too, look there"
        return [Finding(name, "fail", "distgrad there gives no answer that this one knows", fix)]
    found = []
    unlike = [k for k in _COMPARED if theirs.get(k) != versions.get(k)]
    if unlike:
        parts = ", ".join(f"{k} {theirs.get(k)} (here {versions.get(k)})" for k in unlike)
        fix = "install the same environment on every host"
        found.append(Finding(name, "fail", f"has different software: {parts}", fix))
    if not told.get("shared"):
        fix = "choose a --run-dir on a file system that all hosts share"
        text = f"does not see the files of this host in {question.run_dir}"
        found.append(Finding(name, "warn", text, fix))
    if told.get("back"):
        fix = "let hosts connect to any port of the one that starts the job"
        text = f"cannot connect back to {question.back} ({told['back']})"
        found.append(Finding(name, "fail", text, fix))
    for helper in told.get("missing", []):
        fix = "install the same environment under the same path on every host"
        found.append(Finding(name, "fail", f"has no {helper}, which mpirun starts there", fix))
    cores = f"{told.get('cores')} cores"
    return found or [Finding(name, "ok", f"{cores}, same software, run directory shared")]


def _unanswered(name: str, answer: Answer) -> Finding:
    """Return the finding for a host on which the question could not be asked."""
    if "No module named" in answer.reason:
        fix = "install the same environment there, under the same path"
        return Finding(name, "fail", "has no distgrad in this Python", fix)
    if "status 127" in answer.reason or "status 126" in answer.reason:
        fix = "install the same environment there, under the same path"
        return Finding(name, "fail", f"has no {sys.executable}", fix)
    text, _, fix = answer.reason.partition("; ")
    return Finding(name, "fail", text.removeprefix(f"host {name}: "), fix)


def _command(question: Question) -> str:
    """Return the shell command that asks a host."""
    words = [sys.executable, "-m", "distgrad.doctor", "--as-host", json.dumps(asdict(question))]
    path = os.environ.get("PYTHONPATH")
    given = f"PYTHONPATH={shlex.quote(path)} " if path else ""
    return f"cd {shlex.quote(os.getcwd())} 2>/dev/null; {given}{shlex.join(words)}"


def answer(text: str, software: Mapping[str, Any]) -> str:
    """Return what this host has to say to the question ``text``."""
    asked = json.loads(text)
    host, _, port = str(asked["back"]).rpartition(":")
    back = ""
    try:
        socket.create_connection((host, int(port)), _BACK_S).close()
    except OSError as error:
        back = error.strerror or str(error)
    return json.dumps(
        {
            "software": dict(software),
            "cores": software.get("cores"),
            "shared": Path(asked["run_dir"], asked["mark"]).exists(),
            "back": back,
            "missing": [path for path in asked["helpers"] if not os.path.exists(path)],
        }
    )


@contextmanager
def _marked(run_dir: str) -> Iterator[str]:
    """Return a block in which a file lies in the run directory, or the nearest one above it."""
    name = f".distgrad-{secrets.token_hex(8)}"
    place = Path(run_dir)
    made = [part for part in (place, *place.parents) if not part.exists()]
    with suppress(OSError):
        place.mkdir(parents=True, exist_ok=True)
        (place / name).touch()
    try:
        yield name
    finally:
        with suppress(OSError):
            (place / name).unlink()
            for part in made:
                part.rmdir()


@contextmanager
def _door(address: str) -> Iterator[str]:
    """Return a block in which this host can be connected to, as by the heartbeats of ranks."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family, backlog=1024) as door:
        yield f"{address}:{door.getsockname()[1]}"
