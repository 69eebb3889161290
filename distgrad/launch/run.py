"""Run a program as one rank: its output, its settings, and the end of the job when it fails."""

from __future__ import annotations

import faulthandler
import runpy
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from distgrad import distributed
from distgrad.config import SWITCHES, unknown_variables
from distgrad.distributed.env import WorldHint, world_from_env
from distgrad.distributed.group import ProcessGroup
from distgrad.doctor import software
from distgrad.errors import ConfigError, MissingExtra
from distgrad.launch import blas, jobs, rundir, signals, spawn, streams
from distgrad.launch.args import (
    Command,
    Expectation,
    Resolved,
    Target,
    as_toml,
    help_text,
    job_name,
    parse,
    resolve,
)
from distgrad.launch.rundir import RunDir
from distgrad.version import __version__

OK, ERROR, USAGE, MISSED, PREEMPTED, INTERRUPTED = 0, 1, 2, 3, 75, 130
_MESSAGE_ONLY = (ConfigError, MissingExtra)  # their text says all; where they rose says nothing
_HEAD_START_S = 0.15  # a rank waits so long for each rank before it to report the same failure


def main(argv: list[str]) -> int:
    """Return the exit status of ``python -m distgrad.launch`` with these arguments."""
    hint = world_from_env()
    try:
        command = parse(argv)
        text = _printed(command)
        if text is not None:
            return _print_once(hint, text)
        job, resolved = _resolved(command)
        if command.action == "print_config":
            return _print_once(hint, as_toml(resolved))
        _become_ranks(resolved, hint)
    except _MESSAGE_ONLY as error:
        if not hint.rank:
            print(f"distgrad.launch: {error}", file=sys.stderr)
        return USAGE if isinstance(error, ConfigError) else ERROR
    blas.limit(hint.local_size or 1)
    return Launch(command.target, job, resolved).run()


def _printed(command: Command) -> str | None:
    """Return what ``command`` asks to print without running, if anything."""
    if command.action == "help":
        return help_text()
    if command.action == "version":
        return f"distgrad {__version__}"
    if command.action == "list_jobs":
        return "\n".join(f"{name:<10} {doc}" for name, doc in jobs.JOBS.items())
    return None


def _print_once(hint: WorldHint, text: str) -> int:
    if not hint.rank:
        print(text)
    return OK


def _resolved(command: Command) -> tuple[jobs.Job | None, Resolved]:
    """Return the job, if it is one, and all settings."""
    if command.target.kind != "job":
        return None, resolve(command, None)
    job = jobs.load(job_name(command))
    return job, resolve(command, job.DEFAULTS)


def _become_ranks(resolved: Resolved, hint: WorldHint) -> None:
    """Replace this process by mpirun if ranks are asked for and this is none."""
    nproc, hosts = resolved["nproc"], resolved["hosts"]
    if hint.launcher is not None:
        if isinstance(nproc, int) and hint.size not in (None, nproc):
            raise ConfigError(
                f"--nproc {nproc}: {hint.launcher} has already started {hint.size} ranks; "
                f"leave --nproc out, or start without mpirun"
            )
        return
    if resolved["hostfile"] and not isinstance(nproc, int):
        raise ConfigError("--hostfile: needs the number of ranks too; add --nproc N")
    if nproc == "auto" or (nproc is None and hosts):
        nproc = spawn.slots(hosts) if hosts else blas.cores()
    if nproc is not None and (nproc > 1 or hosts or resolved["hostfile"]):
        spawn.start(nproc, hosts, resolved["hostfile"])


class Launch:
    """One run of a program on this rank."""

    def __init__(self, target: Target, job: jobs.Job | None, resolved: Resolved) -> None:
        self.target, self.job, self.resolved = target, job, resolved
        self.group: ProcessGroup | None = None
        self.rundir: RunDir | None = None

    def run(self) -> int:
        """Return the exit status; a failure of this rank alone ends the whole job instead."""
        faulthandler.enable(file=sys.__stderr__ or sys.stderr)
        body = self._script if self.job is None else self._job
        with ExitStack() as stack:
            status, failure = _attempt(lambda: body(stack))
            if failure is None and not self._failed_alone(status):
                return status
            return self._end(status, failure or f"exit status {status}")

    def _failed_alone(self, status: int) -> bool:
        """Return whether the other ranks cannot know of this exit status."""
        return status not in (OK, MISSED, PREEMPTED) if self.job else status != OK

    def _end(self, status: int, failure: str) -> int:
        """Report the failure and take all other ranks along."""
        group, run = self.group, self.rundir
        several = group is not None and group.size > 1
        if several and group is not None and run is None:
            time.sleep(_HEAD_START_S * min(group.rank, 4))
        if run is None or not several or (group and run.first_failure(group.rank)):
            print(failure.rstrip(), file=sys.stderr)
        elif group is not None:
            with run.log(group.rank).open("a") as log:
                log.write(failure)
        if run is not None and self.job and self.resolved["dry_run"]:
            shutil.rmtree(run.path, ignore_errors=True)
        if several and group is not None:
            group.abort(status, failure.rstrip().splitlines()[-1])
        return status

    # ---------------------------------------------------------------- a script of the user

    def _script(self, stack: ExitStack) -> int:
        group = self.group = distributed.init_process_group()
        name = self.target.name
        if group.size > 1 or self.resolved["run_dir"]:
            self._open(stack, group, Path(name).stem if self.target.kind == "script" else name)
        if self.target.kind == "script" and not Path(name).is_file():
            raise ConfigError(f"{name}: there is no such script; --help says how to call it")
        sys.argv = [name, *self.target.argv]
        if self.target.kind == "module":
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            sys.path[0] = str(Path(name).resolve().parent)
            runpy.run_path(name, run_name="__main__")
        return OK

    # ---------------------------------------------------------------- a job

    def _job(self, stack: ExitStack) -> int:
        assert self.job is not None
        group = self.group = distributed.init_process_group()
        name = self.resolved["job"].rpartition(".")[2]
        resume_from = self._open(stack, group, name)
        stack.enter_context(signals.handling())
        assert self.rundir is not None
        say = print if group.rank == 0 else _say_nothing
        context = jobs.Context(
            group=group,
            rundir=self.rundir,
            resume_from=resume_from,
            dry_run=self.resolved["dry_run"],
            profile_steps=self.resolved["profile_steps"],
            stop_requested=signals.stop_requested,
            say=say,
        )
        say(banner(group, self.rundir, resume_from))
        metrics = group.broadcast_object(self.job.run(self.resolved.config, context))
        if self.resolved["dry_run"]:
            group.barrier()
            if group.rank == 0:
                shutil.rmtree(self.rundir.path)
            say("dry run passed")
            return OK
        return self._judge(metrics, say)

    def _judge(self, metrics: dict[str, float], say: Callable[[str], None]) -> int:
        status = OK
        for text in self.resolved["expect"]:
            expected = Expectation.parse(text)
            met = expected.met(metrics)
            found = f"{metrics[expected.metric]:.6g}"
            say(f"expected {expected}: {'met' if met else 'missed'} with {found}")
            status = status if met else MISSED
        return status

    # ---------------------------------------------------------------- both

    def _open(self, stack: ExitStack, group: ProcessGroup, name: str) -> Path | None:
        """Make the run directory on all ranks and send the output there."""
        resolved, chosen = self.resolved, None
        if group.rank == 0:
            chosen = self._choose(name)
            chosen[0].make()
        run, resume_from = group.broadcast_object(chosen)
        run.make_logs()
        self.rundir = run
        stack.enter_context(streams.captured(group.rank, group.size, run.log(group.rank)))
        if group.rank == 0:
            settings = {k: asdict(s) for k, s in resolved.settings.items()}
            rundir.write_json(run.path / "config.json", settings)
            rundir.write_json(run.path / "env.json", {**software(), "argv": sys.orig_argv[1:]})
            if not (self.job and resolved["dry_run"]):
                run.link_as_latest()
            for warning in unknown_variables():
                print(f"warning: {warning}", file=sys.stderr)
        return resume_from

    def _choose(self, name: str) -> tuple[RunDir, Path | None]:
        if self.job is None:
            return rundir.choose(self.resolved["run_dir"], SWITCHES["resume"].default, name)
        if self.resolved["dry_run"]:
            return rundir.choose(None, "never", f"{name}-dry-run")
        return rundir.choose(self.resolved["run_dir"], self.resolved["resume"], name)


def banner(group: ProcessGroup, run: RunDir, resume_from: Path | None) -> str:
    """Return the lines that say what runs where."""
    have = software()
    parts = [f"{name} {have[name]}" for name in ("distgrad", "python", "numpy")]
    if group.backend == "mpi":
        parts += [f"mpi4py {have['mpi4py']}", str(have["mpi"])]
    hosts = -(-group.size // group.local_size)
    count = f"{hosts} host{'s' * (hosts > 1)} x {group.local_size}"
    threads = blas.threads(group.local_size)
    return "\n".join(
        [
            "  ".join(parts),
            f"world {group.size} = {count}, backend {group.backend}, BLAS threads {threads} a rank",
            f"run directory {run.path}"
            + (f", goes on from {resume_from.name}" if resume_from else ""),
        ]
    )


def _attempt(body: Callable[[], int]) -> tuple[int, str | None]:
    """Return the exit status of ``body`` and, if it failed, what to print."""
    try:
        return body(), None
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return int(error.code or 0), None
        return ERROR, str(error.code)
    except jobs.Preempted as error:
        print(f"stopped: {error}", file=sys.stderr)
        return PREEMPTED, None
    except KeyboardInterrupt:
        return INTERRUPTED, "KeyboardInterrupt"
    except _MESSAGE_ONLY as error:
        return USAGE if isinstance(error, ConfigError) else ERROR, f"distgrad.launch: {error}"
    except BaseException as error:
        return ERROR, _traceback(error)


def _traceback(error: BaseException) -> str:
    """Return the traceback of ``error`` without the frames of the launcher."""
    frames = error.__traceback__
    own = (__file__, runpy.__file__, "<frozen runpy>")
    while frames is not None and frames.tb_frame.f_code.co_filename in own:
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames))


def _say_nothing(text: str) -> None:
    """Drop ``text``: rank 0 says it."""
