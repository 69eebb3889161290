"""The training loop that the built-in jobs share.

A global batch is cut into micro-batches, always the same ones; each rank takes a run of them and
adds up their gradients.  So the number of ranks changes who computes what, and nothing else.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from distgrad import optim
from distgrad.autograd.mode import no_grad
from distgrad.backend.device import cuda_device_count, namespace_of
from distgrad.backend.device import device as Device
from distgrad.config import switch
from distgrad.distributed.group import ProcessGroup, check_same
from distgrad.distributed.reducer import WAIT, Reducer
from distgrad.errors import CheckpointError, ConfigError, DeviceError, RankLost
from distgrad.launch import checkpoint, plot
from distgrad.launch.checkpoint import Checkpoints, Resumed
from distgrad.launch.jobs import Context, Preempted, micro_batches, turns
from distgrad.launch.jobs.survival import is_loss, survival_of
from distgrad.launch.rundir import Metrics, read_metrics, write_text
from distgrad.launch.supervise import pulse
from distgrad.launch.trace import ALL_REDUCE, COMPUTE, Trace, merge
from distgrad.nn.module import Module
from distgrad.nn.modules.container import ModuleList, Sequential
from distgrad.nn.parallel.distributed import DistributedDataParallel
from distgrad.nn.parallel.fsdp.conductor import Conductor
from distgrad.nn.parallel.fsdp.fully_shard import fully_shard, summon_full_params
from distgrad.nn.parallel.fsdp.module import conductor_of
from distgrad.nn.parallel.fsdp.spare import SpareParts
from distgrad.nn.utils import clip_grad_norm_
from distgrad.ops.random import set_rng_state
from distgrad.optim.zero import ZeroRedundancyOptimizer
from distgrad.tensor import Tensor


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """What every job has to know; a job's own settings come on top."""

    steps: int = 600
    global_batch: int = 32
    micro_batch: int = 4
    lr: float = 3e-3
    warmup: int = 60
    min_lr: float = 1e-4
    weight_decay: float = 0.01
    beta2: float = 0.99
    clip: float = 1.0
    seed: int = 1
    device: str = "auto"
    data: str | None = None
    log_every: int = 50
    eval_every: int = 100
    save_every: int = 200
    keep: int = 3
    save_async: bool = True  # write checkpoints while training goes on
    bucket_cap_mb: float = 0.125
    zero: int = 0  # 1: ranks share the optimizer's state, 2: and gradients, 3: and parameters


class Task(Protocol):
    """What differs between jobs: data, loss and evaluation."""

    metric: str  # the one that decides which model is the best: smaller is better

    @property
    def model(self) -> Module:
        """The model to train."""

    @property
    def baselines(self) -> Mapping[str, float]:
        """Losses of models that only count, by name."""

    def batch(self, step: int, rows: slice) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of these rows of the global batch of ``step``."""

    def loss(self, output: Tensor, target: Tensor) -> tuple[Tensor, int]:
        """Return the summed loss and how many units it is a sum over."""

    @property
    def parts(self) -> int:
        """How many parts the held-out data is cut into, for every number of ranks the same."""

    def score(self, part: int) -> Sequence[float]:
        """Return the sums over a part of the held-out data that metrics are made of."""

    def metrics(self, total: Sequence[float]) -> dict[str, float]:
        """Return the metrics of all parts, from the totals of their sums."""

    def finish(self, say: Callable[[str], None]) -> None:
        """Show what the trained model can do."""


def choose_device(name: str, group: ProcessGroup) -> Device:
    """Return the device of this rank; with ``auto`` a GPU where there is one.

    Raises:
        ConfigError: a GPU is asked for and cannot be used.
    """
    count = 0 if name == "cpu" else cuda_device_count()
    if name == "cpu" or (name == "auto" and not count):
        return Device("cpu")
    device = Device("cuda", group.local_rank % max(1, count))
    try:
        namespace_of(device)
    except DeviceError as error:
        raise ConfigError(f"--device {name}: {error}") from None
    return device


class Trainer:
    """Trains the model of a task on all ranks of a group."""

    def __init__(self, config: Any, context: Context, task: Task) -> None:
        """Lay out the model, the optimizer and the share of this rank."""
        self.config, self.context, self.task = config, context, task
        self.group = group = context.group
        self.shares = micro_batches(config.global_batch, config.micro_batch, group.size)
        self.rows = [rows for share in self.shares for rows in share]  # of all micro-batches
        self.determinism = switch("determinism") or "world"
        self.size = sum(p.numel() for p in task.model.parameters())
        self.parallel, self.reducer = self._share_out()
        self.turns = self._turns()
        self.params = list(task.model.parameters())
        self.survival = survival_of(self)
        self.optimizer = _optimizer(self.params, config, redundant=self.survival is not None)
        parts = config.zero == 3 and self.survival is not None
        self.spare = SpareParts(self.parallel, self.optimizer) if parts else None
        self.schedule = optim.lr_scheduler.LambdaLR(self.optimizer, self._lr_factor)
        self.metrics = Metrics(context.rundir.metrics if group.rank == 0 else None)
        self.checkpoints = Checkpoints(
            group, context.rundir.checkpoints, config.keep, config.save_async
        )
        self.best = math.inf
        self.step = 0  # the one at hand
        self.trained = 0  # the last one whose update is made
        self.steps = config.steps
        self.row: dict[str, Any] = {}  # metrics of that one
        self.stop = False
        self.after = {
            "report": self._report, "evaluate": self._evaluate, "tell": self._tell,
            "write": self._write, "save": self._save_if_due,
        }  # fmt: skip
        self.left: list[str] = []  # of these, since the last update
        self.scores: dict[int, Sequence[float]] = {}  # of parts of the held-out data, since then
        self.saved = 0  # the step of the last checkpoint that was begun
        self.owed = False  # it was lost with the rank that wrote it
        self.trace = Trace(group.rank)
        self.since = (time.perf_counter(), 0)

    def _share_out(self) -> tuple[Any, Reducer | Conductor]:
        """Return the model on all ranks, and what reduces its gradients."""
        config, model = self.config, self.task.model
        if config.zero == 3:
            for layer in _layers(model):
                fully_shard(layer, mesh=self.group)
            sharded = fully_shard(model, mesh=self.group, reduction="sum", shards=len(self.rows))
            return sharded, conductor_of(sharded)
        ddp = DistributedDataParallel(
            model, process_group=self.group, reduction="sum", bucket_cap_mb=config.bucket_cap_mb,
            determinism=self.determinism,
            shards=len(self.rows) if self.determinism == "world" else None,
            shard_gradients=config.zero == 2,
        )  # fmt: skip
        return ddp, ddp.reducer

    def _turns(self) -> list[int]:
        """Return the numbers of this rank's micro-batches, in its order."""
        if isinstance(self.reducer, Conductor):
            return self.reducer.local_shards
        first = sum(map(len, self.shares[: self.group.rank]))
        return list(range(first, first + len(self.shares[self.group.rank])))

    def _whole(self) -> AbstractContextManager[None]:
        """Return a block in which each rank has all parameters."""
        if isinstance(self.reducer, Conductor):
            return summon_full_params(self.task.model, writeback=False)
        return nullcontext()

    def _lr_factor(self, step: int) -> float:
        """Return linear warm-up, then a cosine down to ``min_lr``, as a factor of ``lr``."""
        c = self.config
        if step < c.warmup:
            return float((step + 1) / c.warmup)
        done = (step - c.warmup) / max(1, c.steps - c.warmup)
        low: float = c.min_lr / c.lr if c.lr else 0.0
        factor: float = low + (1 - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return factor

    # ------------------------------------------------------------------ the whole run
    def run(self) -> dict[str, float]:
        """Train to the end and return the final metrics."""
        context, config = self.context, self.config
        self.checkpoints.tidy()
        if context.resume_from is not None:
            self._resume(context.resume_from)
        if self.spare is not None:
            self.spare.refresh()
        self._announce()
        self.steps = min(config.steps, self.step + 1) if context.dry_run else config.steps
        began = time.perf_counter()
        self.since = (began, self.step)
        while True:
            try:
                self._train()
                seconds = time.perf_counter() - began
                return self._dry_end(seconds) if context.dry_run else self._finish(seconds)
            except (RankLost, CheckpointError) as error:
                if self.survival is None or not is_loss(error):
                    raise
                self.survival.recover()

    def _train(self) -> None:
        """Do the steps that are left; a rank that is lost meanwhile may leave some for later."""
        first, last = self.context.profile_steps or (20, 25)
        while self.step < self.steps or self.left:
            if not self.left:
                self.step += 1
                if self.survival is not None:
                    self.survival.begin_step()
                self._profile(first <= self.step < last)
                self.row, self.stop = self._train_step()
                self.left = list(self.after)
            while self.left:
                self.after[self.left[0]]()
                self.left.pop(0)

    def _due(self, every: int) -> bool:
        return self.step == self.steps or (every > 0 and self.step % every == 0)

    def update(self) -> None:
        """Make the update of the step at hand, for which all ranks have the gradients."""
        self.optimizer.step()
        self.schedule.step()
        self.trained = self.step
        self.scores = {}

    def regroup(self, group: ProcessGroup) -> None:
        """Share the work out anew among the ranks that are left."""
        config, task = self.config, self.task
        task.model.train()
        self.shares = micro_batches(config.global_batch, config.micro_batch, group.size)
        if self.spare is not None:
            self.spare.rebuild(group, self.trained)
        else:
            self.parallel.rebuild(group, self.trained)
            self.reducer = self.parallel.reducer
        if isinstance(self.optimizer, ZeroRedundancyOptimizer):
            self.optimizer.rebuild(group)
        self.turns = self._turns()
        for scores in group.all_gather_object(self.scores):
            self.scores |= scores
        self.checkpoints.regroup(group)
        place = self.checkpoints.directory.path(self.saved)
        self.owed = group.broadcast_object(self.saved > 0 and not place.is_dir())
        if self.owed and "save" not in self.left:
            self.left.append("save")
        if group.rank == 0 and not self.metrics.open:
            self._take_over()

    def _take_over(self) -> None:
        """Be rank 0 in place of one that was lost: write what that one has not written."""
        self.metrics = Metrics(self.context.rundir.metrics)
        self.metrics.keep_until(self.trained)
        written = read_metrics(self.context.rundir.metrics)
        if not any(row["step"] == self.trained for row in written) and self.row:
            missing = {"report", "tell", "write", *self.left}
            self.left = [name for name in self.after if name in missing]

    def _train_step(self) -> tuple[dict[str, Any], bool]:
        """Do one optimizer step and return its row of metrics and whether to stop."""
        span = self._span
        each = np.zeros((len(self.rows), 2))  # loss and units of each micro-batch
        in_turns = self.determinism == "world" or isinstance(self.reducer, Conductor)
        pulse.at(self.step, "training")
        self.optimizer.zero_grad()
        for turn, number in enumerate(self.turns, 1):
            quiet = not in_turns and turn < len(self.turns)  # the last backward communicates
            with self.parallel.no_sync() if quiet else nullcontext():
                with span("forward"):
                    x, y = self.task.batch(self.step, self.rows[number])
                    loss, units = self.task.loss(self.parallel(x), y)
                self.parallel.add_count(units)
                with span("backward"):
                    loss.backward()
            each[number] = loss.item(), units
        sums = np.append(each, self.context.stop_requested())
        control = self.group.channel("control")
        agreed = control.start_all_reduce(sums) if self.survival is None else None
        with span("optimizer"):
            norm = float(clip_grad_norm_(self.params, self.config.clip))
            lr = self.optimizer.param_groups[0]["lr"]
            if self.survival is not None:
                self.survival.vote(sums)
            self.update()
        if agreed is not None:
            agreed.wait()
        # Each number comes from one rank, and fsum rounds once: the bits are those of one rank.
        loss_mean = math.fsum(sums[:-1:2]) / math.fsum(sums[1:-1:2])
        if not math.isfinite(loss_mean):
            raise FloatingPointError(
                f"step {self.step}: the loss is {loss_mean}, gradient norm {norm:.3g}; lower --lr "
                f"(now {lr:.3g})"
            )
        row = {"step": self.step, "loss": loss_mean, "lr": lr, "grad_norm": norm}
        return row, bool(sums[-1])

    # ------------------------------------------------------------------ evaluation and report
    def _evaluate(self) -> None:
        """Add exact metrics of the whole held-out set, each sample counted once, if it is time."""
        if not self._due(self.config.eval_every):
            return
        pulse.at(self.step, "evaluation")
        self.task.model.eval()
        with no_grad(), self._span("evaluate"):
            self._score()
        self.task.model.train()
        rows = [self.scores[part] for part in range(self.task.parts)]
        self.row |= self.task.metrics([math.fsum(column) for column in zip(*rows, strict=True)])
        self.best = min(self.best, self.row[self.task.metric])

    def _score(self) -> None:
        """Compute the parts that nobody has computed yet, and tell each other."""
        group, count = self.group, self.task.parts
        missing = [part for part in range(count) if part not in self.scores]
        if not missing:
            return
        mine = {}
        for part, counts in turns(missing, group.rank, group.size):
            row = self.task.score(part)
            if counts:
                mine[part] = self.scores[part] = row
        sums = np.zeros((count, len(row)))
        for part, row in mine.items():
            sums[part] = row
        group.all_reduce(sums)
        self.scores |= {part: sums[part] for part in missing}

    def _tell(self) -> None:
        """Say what evaluation has found, if it is time."""
        if not self._due(self.config.eval_every):
            return
        row = self.row
        known = ", ".join(f"{k} {v:.2f}" for k, v in self.task.baselines.items())
        shown = "  ".join(f"{k} {row[k]:.4f}" for k in row if k.startswith("val_"))
        self.context.say(f"eval  {shown}" + (f"  ({known})" if known else ""))

    def _write(self) -> None:
        """Write the metrics of the step."""
        self.metrics.write(self.row)

    def _announce(self) -> None:
        config, say = self.config, self.context.say
        each = sorted({len(s) for s in self.shares}, reverse=True)
        counts = "/".join(map(str, each))
        say(
            f"model {self.size:,} parameters; global batch {config.global_batch} = micro-batch "
            f"{config.micro_batch} x {counts} x {self.group.size} "
            f"rank{'s' * (self.group.size > 1)}; {config.steps} steps"
        )
        if self.step:
            say(f"goes on after step {self.step}")

    def _report(self) -> None:
        if not self._due(self.config.log_every) and self.step != 1:
            return
        row, steps = self.row, self.steps
        now, (before, last) = time.perf_counter(), self.since
        each = (now - before) / max(1, self.step - last)
        waited, under_way = _take_times(self.reducer)
        hidden = f" (hidden {max(0.0, 1 - waited / under_way):.0%})" if under_way else ""
        self.since = (now, self.step)
        self.context.say(
            f"step {self.step}/{steps}  loss {row['loss']:.4f}  lr {row['lr']:.2e}  "
            f"gnorm {row['grad_norm']:.2f}  {each * 1e3:.1f} ms/step  "
            f"comm exposed {waited / (now - before):.0%}{hidden}  mem {_peak_mib():.0f} MiB  "
            f"eta {each * (steps - self.step):.0f} s"
        )

    def _profile(self, on: bool) -> None:
        """Record spans of the steps that are to be traced."""
        reducer = self.reducer
        if on and reducer.timeline is None:
            self.group.barrier()
            self.trace.align()
            reducer.timeline = []
        elif not on and reducer.timeline is not None:
            for b, _, _, started, done in reducer.timeline:
                if b == WAIT:
                    self.trace.add(COMPUTE, "waits for all-reduce", started, done)
                else:
                    self.trace.add(ALL_REDUCE, f"bucket {b}", started, done)
            reducer.timeline = None

    def _span(self, name: str) -> Any:
        on = self.reducer.timeline is not None
        return self.trace.span(COMPUTE, name) if on else nullcontext()

    # ------------------------------------------------------------------ checkpoints
    def _save_if_due(self) -> None:
        """Save if it is time, or if the job is asked to stop.

        Raises:
            Preempted: it is.
        """
        stops = self.stop and self.step < self.steps
        if stops or self.owed or self.context.dry_run or self._due(self.config.save_every):
            self.saved = self.step
            last = stops or self.context.dry_run or self.step == self.steps
            self._save(self.row, wait=last)
            self.owed = False
        if stops:
            raise Preempted(f"saved step {self.step} of {self.steps}, asked to stop by a signal")

    def _save(self, row: Mapping[str, Any], wait: bool) -> None:
        """Save this step; writing may go on beside the next steps unless asked to ``wait``."""
        job = {
            "config": asdict(self.config),
            "schedule": self.schedule.state_dict(),
            "best": self.best,
        }
        self.checkpoints.save(
            self.step, self.task.model, self.optimizer, job, row.get(self.task.metric), wait
        )

    def _resume(self, first: Path) -> None:
        """Go on from a checkpoint: from ``first``, or from an older one if any will do."""
        found: Resumed | None
        if self.context.any_checkpoint:
            found = self.checkpoints.load_newest(
                first, self.task.model, self.optimizer, self.context.say
            )
        else:
            found = self.checkpoints.load(first, self.task.model, self.optimizer)
        if found is None:
            self.context.say("warning: no checkpoint of this run is whole; it begins anew")
            self.metrics.keep_until(0)
            return
        self.schedule.load_state_dict(dict(found.job["schedule"]))
        set_rng_state(found.random)
        self.step, self.best = found.job["step"], found.job["best"]
        self.trained = self.step
        self.reducer.reductions = self.step  # the random numbers of forward go by it
        self.metrics.keep_until(self.step)
        if self.determinism != "world" and found.world != self.group.size:
            self.context.say(
                f"random numbers go on as those of {found.world} ranks, now there are "
                f"{self.group.size}"
            )

    # ------------------------------------------------------------------ the end
    def _finish(self, seconds: float) -> dict[str, float]:
        """Show the result, write plot and trace, and compare the weights of all ranks."""
        group = self.group
        weights = checkpoint.digest(self.task.model.state_dict())
        check_same(group, "weights at the end", weights)
        self._write_trace()
        if self.survival is not None:
            self.survival.tidy()
        self.metrics.write({"step": self.step, "sha256": weights, "seconds": seconds})
        self.metrics.close()
        with self._whole():
            return self._conclude(weights, seconds) if group.rank == 0 else {}

    def _conclude(self, weights: str, seconds: float) -> dict[str, float]:
        """Return the final metrics, after a last word on rank 0."""
        context = self.context
        rows = read_metrics(context.rundir.metrics)
        write_text(context.rundir.loss_svg, plot.loss_svg(rows, self.task.baselines, "loss"))
        losses = [r["loss"] for r in rows if "loss" in r]
        final = {k: v for r in rows for k, v in r.items() if k.startswith("val_")}
        shown = "  ".join(f"{k} {v:.4f}" for k, v in final.items())
        context.say(
            f"done  {shown}  best {self.best:.4f}  in {seconds:.1f} s  "
            f"peak {_peak_mib():.0f} MiB\nloss  {plot.sparkline(losses)}\nweights sha256 {weights}"
        )
        self.task.finish(context.say)
        context.say(f"files in {context.rundir.path}: metrics.jsonl, loss.svg, trace.json, logs")
        return final | {"loss": losses[-1]}

    def _write_trace(self) -> None:
        self._profile(False)
        if not self.trace.spans:
            return
        run, group = self.context.rundir, self.group
        self.trace.save(run.rank_trace(group.rank))
        group.barrier()
        if group.rank == 0:
            merge([run.rank_trace(rank) for rank in range(group.size)], run.trace)

    def _dry_end(self, seconds: float) -> dict[str, float]:
        """Read the checkpoint back and say what the whole run would take."""
        checkpoint.verify(self.checkpoints.directory.path(self.step))
        self.metrics.close()
        self.context.say(
            f"one step {seconds:.2f} s, peak {_peak_mib():.0f} MiB a rank; {self.config.steps} "
            f"steps would take less than {seconds * self.config.steps / 60:.1f} min"
        )
        return {}


def _optimizer(params: Sequence[Tensor], config: Any, redundant: bool) -> optim.Optimizer:
    """Return AdamW, with its state on each rank or shared out, if redundant twice."""
    options = {
        "lr": config.lr, "betas": (0.9, config.beta2), "weight_decay": config.weight_decay,
    }  # fmt: skip
    if config.zero in (0, 3):  # the parameters of stage 3 are parts themselves
        return optim.AdamW(params, **options)
    return ZeroRedundancyOptimizer(
        params, optim.AdamW, overlap_with_ddp=True, redundant=redundant, **options
    )


def _layers(model: Module) -> list[Module]:
    """Return the parts of a model that follow each other, the deepest first."""
    lists = [m for m in model.modules() if isinstance(m, ModuleList | Sequential)]
    layers = [m for group in reversed(lists) for m in group.children() if list(m.parameters())]
    return list(dict.fromkeys(layers))


def _take_times(reducer: Reducer | Conductor) -> tuple[float, float]:
    """Return the seconds that communication was exposed, and under way, since the last call.

    Fully sharded models communicate all the time; for them the second number is 0.
    """
    waited, reducer.waited_s = reducer.waited_s, 0.0
    if not isinstance(reducer, Reducer):
        return waited, 0.0
    under_way, reducer.under_way_s = reducer.under_way_s, 0.0
    waited += reducer.gathering.waited_s
    reducer.gathering.waited_s = 0.0
    return waited, under_way


def _peak_mib() -> float:
    """Return the peak resident memory of this process in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
