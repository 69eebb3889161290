"""Run a program as one rank: its output, its settings, and the end of the job when it fails."""

from __future__ import annotations

import faulthandler
import os
import runpy
import shutil
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np

from distgrad import distributed
from distgrad.as_torch import as_torch
from distgrad.config import SWITCHES, unknown_variables
from distgrad.distributed.env import WorldHint, world_from_env
from distgrad.distributed.failure import exit_status
from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.shrink import LOST, end_with
from distgrad.doctor import software
from distgrad.errors import (
    CheckpointError,
    ConfigError,
    DistributedError,
    JobLost,
    MissingExtra,
    RankLost,
)
from distgrad.launch import blas, deadlines, jobs, ranks, rundir, signals, spawn, streams
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
from distgrad.launch.supervise import hosts, pulse, wire
from distgrad.launch.supervise.attempt import Limits
from distgrad.launch.supervise.pulse import Pulse
from distgrad.launch.supervise.supervisor import Plan, Supervisor
from distgrad.optim.optimizer import register_optimizer_step_post_hook
from distgrad.version import __version__

OK, ERROR, USAGE, MISSED, PREEMPTED = 0, 1, 2, 3, 75
# their text says all; where they rose says nothing
_MESSAGE_ONLY = (CheckpointError, ConfigError, MissingExtra)
_HEAD_START_S = 0.1  # a rank waits so long for each rank before it to report the same failure
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
        status = _become_ranks(command.target, job, resolved, hint)
        if status is not None:
            return status
    except _MESSAGE_ONLY as error:
        return _refused(hint, error, USAGE if isinstance(error, ConfigError) else ERROR)
    blas.limit(_threads(resolved, hint.local_size or 1))
    if resolved["determinism"]:
        os.environ[SWITCHES["determinism"].env] = resolved["determinism"]
    spawn.close_input(hint)
    faulthandler.enable(file=sys.__stderr__ or sys.stderr)
    return _as_rank(command.target, job, resolved, hint)


def _as_rank(target: Target, job: jobs.Job | None, resolved: Resolved, hint: WorldHint) -> int:
    """Return the exit status of this rank's life."""
    heart = None
    try:
        if wire.supervised():
            heart = _pulse(resolved, hint)
        with deadlines.starting(resolved["start_timeout"], "" if heart else _named(hint)):
            group = _group(job, hint)
    except (DistributedError, MissingExtra) as error:  # the ranks do not know of each other
        if heart is not None:
            heart.tell({"failed": ERROR, "usage": True, "error": str(error)})
        return _refused(hint, error, ERROR)
    if group.size > 1 and (job is not None or heart is not None):  # all come to the end together
        deadlines.bound_exit(resolved["exit_timeout"], lambda: _leave(heart))
    status = Launch(target, job, resolved, heart).run(group)
    end_with(status)
    return status


def _named(hint: WorldHint) -> str:
    """Return this rank in words; nothing if it is the only one, and waits for no other."""
    if (hint.size or 1) == 1:
        return ""
    return f"rank {hint.rank} of {hint.size} ({socket.gethostname()}, process {os.getpid()})"


def _leave(heart: Pulse | None) -> None:
    """Tell the supervisor that nothing but MPI is left to end here."""
    if heart is not None:
        heart.tell({"left": True})


def _pulse(resolved: Resolved, hint: WorldHint) -> Pulse:
    """Return the heartbeat of this rank.

    Raises:
        DistributedError: the supervisor cannot be reached.
    """
    have = software()
    versions = {name: have[name] for name in ("distgrad", "python", "numpy")}
    hello = {
        "rank": hint.rank or 0, "size": hint.size or 1, "host": socket.gethostname(),
        "versions": versions,
    }  # fmt: skip
    try:
        return Pulse(hello, resolved["orphans"])
    except DistributedError as error:
        print(f"distgrad.launch: rank {hint.rank}: {error}", file=sys.stderr, flush=True)
        raise


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


def _become_ranks(
    target: Target, job: jobs.Job | None, resolved: Resolved, hint: WorldHint
) -> int | None:
    """Start the ranks that are asked for if this is none; return the status of a supervised job.

    Without a supervisor this process is replaced by mpirun.
    """
    if wire.supervised():
        return None
    nproc, names, hostfile = (resolved[key] for key in ("nproc", "hosts", "hostfile"))
    supervised = _supervised(resolved)
    if hint.launcher is not None:
        if isinstance(nproc, int) and hint.size not in (None, nproc):
            raise ConfigError(
                f"--nproc {nproc}: {hint.launcher} has already started {hint.size} ranks; "
                f"leave --nproc out, or start without mpirun"
            )
        if supervised:
            raise ConfigError(
                f"{supervised}: {hint.launcher} has already started the ranks, and what started "
                f"them must watch them; start without mpirun, with --nproc N"
            )
        return None
    if hostfile and not isinstance(nproc, int):
        raise ConfigError("--hostfile: needs the number of ranks too; add --nproc N")
    if nproc == "auto" or (nproc is None and names):
        nproc = spawn.slots(names) if names else blas.cores()
    if supervised:
        return _supervisor(target, job, resolved, nproc or 1).run()
    if nproc is not None and (nproc > 1 or names or hostfile):
        threads, least = _threads(resolved, nproc), resolved["min_ranks"]
        spawn.start(nproc, names, hostfile, threads, least, resolved["ssh"])
    return None


def _supervised(resolved: Resolved) -> str:
    """Return the option that asks for a supervisor, or nothing."""
    for key in ("max_restarts", "stall_timeout"):
        if resolved.settings[key].origin != "default":
            return f"--{key.replace('_', '-')} {resolved[key]:g}"
    return ""


def _supervisor(target: Target, job: jobs.Job | None, resolved: Resolved, nproc: int) -> Supervisor:
    """Return the supervisor of the job, whose run directory is there from now on."""
    run, _ = _choose(target, job, resolved)
    run.make()
    limits = Limits(
        resolved["start_timeout"], resolved["stall_timeout"], resolved["exit_timeout"],
        shrinks=resolved["min_ranks"] is not None,
    )  # fmt: skip
    return Supervisor(
        Plan(
            nproc=nproc,
            hosts=tuple(hosts.parse(resolved["hosts"], resolved["hostfile"])),
            min_ranks=resolved["min_ranks"],
            max_restarts=resolved["max_restarts"] or 0,
            limits=limits,
            ssh=resolved["ssh"],
            threads=_threads(resolved, nproc),
            run=run,
        )
    )


def _choose(target: Target, job: jobs.Job | None, resolved: Resolved) -> tuple[RunDir, Path | None]:
    """Return the run directory and the checkpoint to go on from."""
    if job is None:
        name = target.name if target.kind == "module" else Path(target.name).stem
        return rundir.choose(resolved["run_dir"], SWITCHES["resume"].default, name)
    name = resolved["job"].rpartition(".")[2]
    if resolved["dry_run"]:
        return rundir.choose(None, "never", f"{name}-dry-run")
    if wire.attempt():
        return rundir.choose_again(resolved["run_dir"], resolved["resume"], name)
    return rundir.choose(resolved["run_dir"], resolved["resume"], name)


class Launch:
    """One run of a program on this rank."""

    def __init__(
        self,
        target: Target,
        job: jobs.Job | None,
        resolved: Resolved,
        heart: Pulse | None = None,
    ) -> None:
        self.target, self.job, self.resolved, self.heart = target, job, resolved, heart
        self.rundir: RunDir | None = None
        self.group: ProcessGroup
        self._show: Callable[[], None]  # lets this rank print to the console

    def run(self, group: ProcessGroup) -> int:
        """Return the exit status on which all ranks agree; a failure ends the whole job."""
        self.group = pulse.place.group = group
        pulse.place.size = group.size
        with ExitStack() as stack:
            try:
                program = self._script if self.job is None else self._job
                status = program(stack, group)
                return self._agree(self._left(), status)
            except BaseException as error:
                return self._end(self.group, error)

    def _left(self) -> ProcessGroup:
        """Return the ranks that are left, where a script has gone on without others."""
        group = distributed.get_group() if distributed.is_initialized() else self.group
        return group if len(group.origins) < len(self.group.origins) else self.group

    def _agree(self, group: ProcessGroup, status: int) -> int:
        """Return ``status`` once all ranks have come to the end and rank 0 has written that down.

        Only this counts as success: a rank that leaves early may look to mpirun as if it had
        finished.
        """
        mpi = sys.modules.get("mpi4py.MPI")
        if self.rundir is None or (self.job is None and self.heart is None):
            return status
        if group.backend == "mpi" and mpi is not None and mpi.Is_finalized():
            self._tell({"ended": status})  # the script has ended MPI itself
            return status
        worst = np.array([status])
        group.all_reduce(worst, "max")
        if group.rank == 0:
            self.rundir.write_done(int(worst[0]), pulse.place.step, group.size)
            self._tell({"agreed": int(worst[0])})
        self._tell({"ended": status})
        return status

    def _tell(self, message: dict[str, object]) -> None:
        """Tell the supervisor, if there is one."""
        if self.heart is not None:
            self.heart.tell(message)

    def _end(self, group: ProcessGroup, error: BaseException) -> int:
        """Return the exit status of ``error`` once it is reported and no other rank runs."""
        status, text = _verdict(error)
        if status == OK:
            return self._agree(group, OK)
        words = (str(error).strip().splitlines() or [""])[0]
        self._tell(
            {
                "failed": status,
                "usage": isinstance(error, ConfigError),
                "error": wire.clip(f"{type(error).__name__}: {words}"),
            }
        )
        if self._speaks(group):
            if text:
                print(text.rstrip(), file=sys.stderr)
        elif self.rundir is not None:
            with suppress(OSError), self.rundir.log(group.rank).open("a") as log:
                log.write(text)
            time.sleep(_MERCY_S)
        self._tidy(status)
        if status == LOST:  # all that are left end for the same reason
            sys.stdout.flush()
            os._exit(LOST)
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
            self._open(stack, group)
        if self.heart is not None:
            pulse.place.phase = pulse.SCRIPT
            self._tell({})
            register_optimizer_step_post_hook(pulse.counted)
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
        run, resume_from = self._open(stack, group)
        stack.enter_context(signals.handling())
        pulse.at(0, "begins")
        self._tell({})
        context = jobs.Context(
            group=group,
            rundir=run,
            resume_from=resume_from,
            dry_run=resolved["dry_run"],
            profile_steps=resolved["profile_steps"],
            stop_requested=signals.stop_requested,
            say=self._say,
            any_checkpoint=resolved["resume"] == "auto" or wire.attempt() > 0,
            min_ranks=resolved["min_ranks"],
            regrouped=self._regrouped,
        )
        say = self._say
        say(banner(group, run, resume_from))
        try:
            found = self.job.run(resolved.config, context)
            group = self.group  # some ranks may be lost by now
            metrics = group.broadcast_object(found)
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

    def _say(self, text: str) -> None:
        """Print ``text`` on rank 0, whichever that is by now."""
        if self.group.rank == 0:
            print(text)

    def _regrouped(self, group: ProcessGroup) -> None:
        """Go on with the ranks that are left."""
        self.group = pulse.place.group = group
        pulse.at(pulse.place.step, "goes on with fewer ranks")
        if group.rank == 0:
            self._show()
            if self.rundir is not None:
                self.rundir.forget_end()

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

    def _open(self, stack: ExitStack, group: ProcessGroup) -> tuple[RunDir, Path | None]:
        """Make the run directory on all ranks, send the output there, say what to resume."""
        chosen = None
        if group.rank == 0:
            chosen = _choose(self.target, self.job, self.resolved)
            chosen[0].make()
            chosen[0].forget_end()
            if wire.attempt() and chosen[1] is None:
                chosen[0].metrics.unlink(missing_ok=True)  # of an attempt that saved nothing
        agreed = group.broadcast_object(chosen)
        assert agreed is not None
        run = self.rundir = agreed[0]
        run.make()
        shown = group.rank == 0 or bool(self.resolved["as_torch"])
        log = run.log(group.rank)
        captured = streams.captured(group.rank, group.size, log, shown=shown)
        self._show = stack.enter_context(captured)
        if group.rank == 0:
            settings = {key: asdict(value) for key, value in self.resolved.settings.items()}
            rundir.write_json(run.path / "config.json", settings)
            mark = {"argv": sys.orig_argv[1:], "job": os.environ.get(wire.JOB, "")}
            rundir.write_json(run.path / "env.json", {**software(), **mark})
            if self.job is None or not self.resolved["dry_run"]:
                run.link_as_latest()
            for warning in unknown_variables():
                print(f"warning: {warning}", file=sys.stderr)
        group.barrier()  # a rank that fails at once finds the directory complete
        if self.heart is not None and group.local_size < group.size:
            run.check_shared(os.environ.get(wire.JOB, ""))
        return agreed


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
    if isinstance(error, JobLost | RankLost):
        return LOST, f"distgrad.launch: {error}"
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
