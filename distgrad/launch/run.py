"""Run a program as one rank: its output, its settings, and the end of the job when it fails."""

from __future__ import annotations

import faulthandler
import os
import runpy
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path

from distgrad import distributed
from distgrad.as_torch import as_torch
from distgrad.config import SWITCHES, unknown_variables
from distgrad.distributed.env import WorldHint, world_from_env
from distgrad.distributed.failure import exit_status
from distgrad.distributed.group import ProcessGroup
from distgrad.doctor import software
from distgrad.errors import CheckpointError, ConfigError, DistributedError, MissingExtra
from distgrad.launch import blas, jobs, ranks, rundir, signals, spawn, streams
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

OK, ERROR, USAGE, MISSED, PREEMPTED = 0, 1, 2, 3, 75
# their text says all; where they rose says nothing
_MESSAGE_ONLY = (CheckpointError, ConfigError, MissingExtra)
_HEAD_START_S = 0.1  # a rank waits so long for each rank before it to report the same failure
_DRAIN_S = 0.1  # Hydra drops what it has not forwarded when a rank aborts: 1 traceback in 40
_DEFER_S = 0.4  # Open MPI ends all ranks when one exits with an error; rank 0 speaks before that
_MERCY_S = 1.0  # a rank that is not the first to fail waits so long to be ended by the first


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
        return _refused(hint, error, USAGE if isinstance(error, ConfigError) else ERROR)
    blas.limit(_threads(resolved, hint.local_size or 1))
    if resolved["determinism"]:
        os.environ[SWITCHES["determinism"].env] = resolved["determinism"]
    spawn.close_input(hint)
    faulthandler.enable(file=sys.__stderr__ or sys.stderr)
    try:
        group = _group(job, hint)
    except (DistributedError, MissingExtra) as error:  # the ranks do not know of each other
        return _refused(hint, error, ERROR)
    return Launch(command.target, job, resolved).run(group)


def _threads(resolved: Resolved, local_size: int) -> int:
    """Return the BLAS threads of this rank.

    BLAS adds in another order with more threads, so a job whose bits must not depend on the number
    of ranks has one thread however few ranks share the host.
    """
    if resolved["threads"]:
        return int(resolved["threads"])
    job = resolved.config is not None
    if (resolved["determinism"] or ("world" if job else "run")) == "world":
        return 1
    return blas.threads(local_size)


def _group(job: jobs.Job | None, hint: WorldHint) -> ProcessGroup:
    """Return the group of the job, its default one, or a group of the launcher's for a script.

    A script makes its default group itself, as it does without the launcher.
    """
    if job is not None:
        return distributed.init_process_group()
    return distributed.mpi_group() if (hint.size or 1) > 1 else distributed.local_group()


def _refused(hint: WorldHint, error: Exception, status: int) -> int:
    """Return ``status`` once one rank has said what all of them found wrong."""
    if hint.rank:
        time.sleep(_DEFER_S)
    else:
        print(f"distgrad.launch: {error}", file=sys.stderr)
    return status


def _printed(command: Command) -> str | None:
    """Return what ``command`` asks to print without running, if anything."""
    if command.action == "help":
        return help_text()
    if command.action == "version":
        return f"distgrad {__version__}"
    if command.action == "list_jobs":
        return "\n".join(f"{name:<16} {doc}" for name, doc in jobs.JOBS.items())
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
        spawn.start(nproc, hosts, resolved["hostfile"], _threads(resolved, nproc))


class Launch:
    """One run of a program on this rank."""

    def __init__(self, target: Target, job: jobs.Job | None, resolved: Resolved) -> None:
        self.target, self.job, self.resolved = target, job, resolved
        self.rundir: RunDir | None = None

    def run(self, group: ProcessGroup) -> int:
        """Return the exit status on which all ranks agree; a failure ends the whole job."""
        with ExitStack() as stack:
            try:
                return self._script(stack, group) if self.job is None else self._job(stack, group)
            except BaseException as error:
                return self._end(group, error)

    def _end(self, group: ProcessGroup, error: BaseException) -> int:
        """Return the exit status of ``error`` once it is reported and no other rank runs."""
        status, text = _verdict(error)
        if status == OK:
            return OK
        if self._speaks(group):
            if text:
                print(text.rstrip(), file=sys.stderr)
        elif self.rundir is not None:
            with suppress(OSError), self.rundir.log(group.rank).open("a") as log:
                log.write(text)
            time.sleep(_MERCY_S)
        if group.size > 1:
            time.sleep(_DRAIN_S)
        self._tidy(status)
        if group.size > 1:
            group.abort(status, f"{type(error).__name__} ended this rank, so the job ends")
        return status

    def _tidy(self, status: int) -> None:
        """Remove the directory of a dry run, or of a run that a wrong setting stopped at once."""
        run = self.rundir
        if run is None or self.job is None:
            return
        if self.resolved["dry_run"]:
            shutil.rmtree(run.path, ignore_errors=True)
        elif status == USAGE and run.is_unused():
            run.discard()

    def _speaks(self, group: ProcessGroup) -> bool:
        """Return whether this rank reports its failure: only one does if several fail at once."""
        if group.size > 1 and self.rundir is not None:
            return self.rundir.first_failure(group.rank)
        time.sleep(_HEAD_START_S * min(group.rank, 4))
        return True

    # ---------------------------------------------------------------- a script of the user

    def _script(self, stack: ExitStack, group: ProcessGroup) -> int:
        name, module = self.target.name, self.target.kind == "module"
        if not module and not Path(name).is_file():
            raise ConfigError(f"{name}: there is no such script; --help says how to call it")
        if group.size > 1 or self.resolved["run_dir"]:
            self._open(stack, group, name if module else Path(name).stem)
        sys.argv = [name, *self.target.argv]
        if self.resolved["as_torch"]:
            as_torch()
        if group.size > 1 or self.resolved["nproc"]:
            os.environ.update(ranks.variables(group))
        if module:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            sys.path[0] = str(Path(name).resolve().parent)
            runpy.run_path(name, run_name="__main__")
        return OK

    # ---------------------------------------------------------------- a job

    def _job(self, stack: ExitStack, group: ProcessGroup) -> int:
        assert self.job is not None
        resolved = self.resolved
        run, resume_from = self._open(stack, group, resolved["job"].rpartition(".")[2])
        stack.enter_context(signals.handling())
        say = print if group.rank == 0 else _say_nothing
        context = jobs.Context(
            group=group,
            rundir=run,
            resume_from=resume_from,
            dry_run=resolved["dry_run"],
            profile_steps=resolved["profile_steps"],
            stop_requested=signals.stop_requested,
            say=say,
        )
        say(banner(group, run, resume_from))
        try:
            metrics = group.broadcast_object(self.job.run(resolved.config, context))
        except jobs.Preempted as stop:
            say(f"stopped: {stop}; go on with --run-dir {run.path}")
            return PREEMPTED
        if resolved["dry_run"]:
            group.barrier()
            if group.rank == 0:
                shutil.rmtree(run.path)
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

    def _open(self, stack: ExitStack, group: ProcessGroup, name: str) -> tuple[RunDir, Path | None]:
        """Make the run directory on all ranks, send the output there, say what to resume."""
        chosen = None
        if group.rank == 0:
            chosen = self._choose(name)
            chosen[0].make()
            chosen[0].forget_failure()
        agreed = group.broadcast_object(chosen)
        assert agreed is not None
        run = self.rundir = agreed[0]
        run.make()
        shown = group.rank == 0 or bool(self.resolved["as_torch"])
        log = run.log(group.rank)
        stack.enter_context(streams.captured(group.rank, group.size, log, shown=shown))
        if group.rank == 0:
            settings = {key: asdict(value) for key, value in self.resolved.settings.items()}
            rundir.write_json(run.path / "config.json", settings)
            rundir.write_json(run.path / "env.json", {**software(), "argv": sys.orig_argv[1:]})
            if self.job is None or not self.resolved["dry_run"]:
                run.link_as_latest()
            for warning in unknown_variables():
                print(f"warning: {warning}", file=sys.stderr)
        group.barrier()  # a rank that fails at once finds the directory complete
        return agreed

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
    threads = os.environ.get("OMP_NUM_THREADS", blas.threads(group.local_size))
    return "\n".join(
        [
            "  ".join(parts),
            f"world {group.size} = {count}, backend {group.backend}, BLAS threads {threads} a rank",
            f"run directory {run.path}"
            + (f", goes on from {resume_from.name}" if resume_from else ""),
        ]
    )


def _verdict(error: BaseException) -> tuple[int, str]:
    """Return the exit status that ``error`` stands for, and what to print."""
    if isinstance(error, ConfigError):
        return USAGE, f"distgrad.launch: {error}"
    if isinstance(error, _MESSAGE_ONLY):
        return ERROR, f"distgrad.launch: {error}"
    if isinstance(error, SystemExit):
        return exit_status(error), error.code if isinstance(error.code, str) else ""
    text = "interrupted" if isinstance(error, KeyboardInterrupt) else _traceback(error)
    return exit_status(error), text


def _traceback(error: BaseException) -> str:
    """Return the traceback of ``error`` without the frames of the launcher."""
    frames = error.__traceback__
    own = (__file__, runpy.__file__, "<frozen runpy>")
    while frames is not None and frames.tb_frame.f_code.co_filename in own:
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames))


def _say_nothing(text: str) -> None:
    """Drop ``text``: rank 0 says it."""
