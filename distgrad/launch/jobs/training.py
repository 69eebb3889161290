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
from typing import Any, Protocol

import numpy as np

from distgrad import optim
from distgrad.autograd.mode import no_grad
from distgrad.backend.device import cuda_device_count, namespace_of
from distgrad.backend.device import device as Device
from distgrad.config import switch
from distgrad.distributed.group import ProcessGroup, check_same
from distgrad.distributed.reducer import WAIT, Reducer
from distgrad.errors import ConfigError, DeviceError
from distgrad.launch import checkpoint, plot
from distgrad.launch.jobs import Context, Preempted, micro_batches
from distgrad.launch.rundir import Metrics, read_metrics, write_text
from distgrad.launch.trace import ALL_REDUCE, COMPUTE, Trace, merge
from distgrad.nn.module import Module
from distgrad.nn.modules.container import ModuleList, Sequential
from distgrad.nn.parallel.distributed import DistributedDataParallel
from distgrad.nn.parallel.fsdp.conductor import Conductor
from distgrad.nn.parallel.fsdp.fully_shard import fully_shard, summon_full_params
from distgrad.nn.parallel.fsdp.module import conductor_of
from distgrad.nn.utils import clip_grad_norm_
from distgrad.ops.random import get_rng_state, set_rng_state
from distgrad.optim.parts import full_optim_state_dict, load_full_optim_state_dict
from distgrad.optim.zero import ZeroRedundancyOptimizer
from distgrad.tensor import Tensor, wrap


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

    def evaluate(self, rank: int, size: int) -> tuple[np.ndarray[Any, Any], Callable[..., Any]]:
        """Return a row of sums for each part of the held-out data, and what makes metrics of all.

        The parts are the same for every number of ranks; rows of other ranks' parts are 0. All
        ranks call the model as often.
        """

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
        self.optimizer = _optimizer(self.params, config)
        self.schedule = optim.lr_scheduler.LambdaLR(self.optimizer, self._lr_factor)
        self.metrics = Metrics(context.rundir.metrics if group.rank == 0 else None)
        self.best = math.inf
        self.step = 0
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
        if context.resume_from is not None:
            self._load(context.resume_from)
        self._announce()
        steps = min(config.steps, self.step + 1) if context.dry_run else config.steps
        first, last = context.profile_steps or (20, 25)
        began = time.perf_counter()
        self.since = (began, self.step)
        while self.step < steps:
            self.step += 1
            self._profile(first <= self.step < last)
            row, stop = self._train_step()
            self._report(row, steps)
            if self._due(config.eval_every, steps):
                self._evaluate(row)
            self.metrics.write(row)
            if stop and self.step < steps:
                self._save()
                raise Preempted(f"saved step {self.step} of {steps}, asked to stop by a signal")
            if self._due(config.save_every, steps) or context.dry_run:
                self._save()
        if context.dry_run:
            return self._dry_end(time.perf_counter() - began)
        return self._finish(time.perf_counter() - began)

    def _due(self, every: int, steps: int) -> bool:
        return self.step == steps or (every > 0 and self.step % every == 0)

    def _train_step(self) -> tuple[dict[str, Any], bool]:
        """Do one optimizer step and return its row of metrics and whether to stop."""
        span = self._span
        each = np.zeros((len(self.rows), 2))  # loss and units of each micro-batch
        in_turns = self.determinism == "world" or isinstance(self.reducer, Conductor)
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
        agreed = self.group.channel("control").start_all_reduce(sums)
        with span("optimizer"):
            norm = float(clip_grad_norm_(self.params, self.config.clip))
            lr = self.optimizer.param_groups[0]["lr"]
            self.optimizer.step()
            self.schedule.step()
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
    def _evaluate(self, row: dict[str, Any]) -> None:
        """Add exact metrics of the whole held-out set, each sample counted once."""
        self.task.model.eval()
        with no_grad(), self._span("evaluate"):
            sums, finish = self.task.evaluate(self.group.rank, self.group.size)
        self.task.model.train()
        self.group.all_reduce(sums)
        row |= finish([math.fsum(column) for column in sums.T])
        self.best = min(self.best, row[self.task.metric])
        known = ", ".join(f"{k} {v:.2f}" for k, v in self.task.baselines.items())
        shown = "  ".join(f"{k} {row[k]:.4f}" for k in row if k.startswith("val_"))
        self.context.say(f"eval  {shown}" + (f"  ({known})" if known else ""))

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

    def _report(self, row: Mapping[str, Any], steps: int) -> None:
        if not self._due(self.config.log_every, steps) and self.step != 1:
            return
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
    def _save(self) -> None:
        """Write a checkpoint on rank 0; the others wait until it is there."""
        if isinstance(self.optimizer, ZeroRedundancyOptimizer):
            self.optimizer.consolidate_state_dict()
        model = self.task.model.state_dict()  # on all ranks, which may have a part each
        optimizer = self._optimizer_state()
        if self.group.rank == 0:
            state = {
                "config": asdict(self.config),
                "schedule": self.schedule.state_dict(),
                "best": self.best,
                "rng": get_rng_state().tolist(),
            }
            checkpoint.save(
                self.context.rundir.checkpoints, self.step, model, optimizer, state,
                self.config.keep,
            )  # fmt: skip
        self.group.barrier()

    def _optimizer_state(self) -> dict[str, Any]:
        """Return the whole state of the optimizer on rank 0."""
        if isinstance(self.reducer, Conductor):
            return full_optim_state_dict(self.optimizer)
        return self.optimizer.state_dict() if self.group.rank == 0 else {}

    def _load(self, path: Any) -> None:
        model, optimizer, state = checkpoint.load(path)
        check_same(self.group, "checkpoint", f"{path.name} {state['sha256']}")
        self.task.model.load_state_dict(model)
        if isinstance(self.reducer, Conductor):
            load_full_optim_state_dict(self.optimizer, optimizer)
        else:
            self.optimizer.load_state_dict(optimizer)
        self.schedule.load_state_dict(state["schedule"])
        set_rng_state(wrap(np.array(state["rng"], np.uint8)))
        self.step, self.best = state["step"], state["best"]
        self.reducer.reductions = self.step  # the random numbers of forward go by it
        self.metrics.keep_until(self.step)

    # ------------------------------------------------------------------ the end
    def _finish(self, seconds: float) -> dict[str, float]:
        """Show the result, write plot and trace, and compare the weights of all ranks."""
        group = self.group
        weights = checkpoint.digest(self.task.model.state_dict())
        check_same(group, "weights at the end", weights)
        self.metrics.write({"step": self.step, "sha256": weights, "seconds": seconds})
        self.metrics.close()
        self._write_trace()
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
        checkpoint.load(self.context.rundir.checkpoints / f"step_{self.step:08d}")
        self.metrics.close()
        self.context.say(
            f"one step {seconds:.2f} s, peak {_peak_mib():.0f} MiB a rank; {self.config.steps} "
            f"steps would take less than {seconds * self.config.steps / 60:.1f} min"
        )
        return {}


def _optimizer(params: Sequence[Tensor], config: Any) -> optim.Optimizer:
    """Return AdamW, with its state on each rank or shared out."""
    options = {
        "lr": config.lr, "betas": (0.9, config.beta2), "weight_decay": config.weight_decay,
    }  # fmt: skip
    if config.zero in (0, 3):  # the parameters of stage 3 are parts themselves
        return optim.AdamW(params, **options)
    return ZeroRedundancyOptimizer(params, optim.AdamW, overlap_with_ddp=True, **options)


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
