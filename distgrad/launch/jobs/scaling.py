"""How the job textgpt would scale: measured on a few ranks, predicted for up to 10,000.

    python -m distgrad.launch --nproc 2 --job scaling

Every rank keeps the work it has now while ranks are added, so the efficiency is the time of a step
without communication divided by that with it.

Note [The model]
    A round of messages costs ``alpha`` until the first is there and ``gap`` for each message that a
    rank sends in it; a byte costs ``beta`` on the wire and ``gamma`` to be added. All four are
    measured between ranks of different hosts where there are several, on all ranks at once. The
    rounds, messages and bytes of an all-reduce are those of Note [Which algorithm] in
    `distgrad.distributed.reduction`. Ranks of a host that share memory cut a bucket into slices,
    so that each exchanges one slice with the other hosts.

    Ranks that share cores and memory slow each other down. How much is measured with work that one
    rank does alone and then all at once: ``crowding``. A step is measured crowded, so it needs no
    correction. What a message costs is nearly all done by the ranks' own cores: where more ranks
    share them than when messages were measured, ``crowded`` makes messages and additions dearer
    in that proportion. Bytes on the wire cost what they did.

    A bucket can start when its gradients are ready, at a time that is measured in real steps. The
    wire carries one bucket after the other, while the latencies of several overlap. What is not
    over when backward ends is exposed and makes the step longer.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from distgrad import optim
from distgrad.config import switch
from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.reducer import WAIT
from distgrad.distributed.reduction import MANY_RANKS, PHASES, SMALL_BYTES, block_width
from distgrad.distributed.waiting import wait_for
from distgrad.distributed.work import HostArray
from distgrad.errors import ConfigError
from distgrad.launch import plot
from distgrad.launch.jobs import Context, micro_batches
from distgrad.launch.jobs.textgpt import TextGPTConfig, TextTask
from distgrad.launch.rundir import Metrics, write_text
from distgrad.nn.parallel.distributed import DistributedDataParallel


@dataclass(frozen=True, slots=True)
class ScalingConfig(TextGPTConfig):
    """Settings of the job: those of textgpt, and how much is measured."""

    steps: int = 30  # of each kind
    message_kb: float = 1024.0  # of which the time of a byte is taken
    most_ranks: int = 10_000


DEFAULTS = ScalingConfig()
_TURNS = 8  # ranks that do the work of `measure_crowding` alone


# ------------------------------------------------------------------ the model


@dataclass(frozen=True, slots=True)
class Network:
    """What messages cost, in seconds; see Note [The model].

    Args:
        alpha: latency of a round.
        gap: of each message.
        beta: of each byte on the wire, in both directions at once.
        gamma: of each byte that is added.
        sharing: ranks of a host that share memory, or 1.
        crowding: how many times as long work took when all ranks did it at once.
    """

    alpha: float
    gap: float
    beta: float
    gamma: float
    sharing: int = 1
    crowding: float = 1.0


@dataclass(frozen=True, slots=True)
class Cost:
    """An all-reduce: how long it lasts at least, and how long it keeps the wire busy."""

    latency: float
    busy: float


@dataclass(frozen=True, slots=True)
class Step:
    """A step of training without communication, in seconds from its beginning.

    Args:
        seconds: its whole duration.
        backward_end: when backward ends.
        buckets: when each is ready, and its bytes.
    """

    seconds: float
    backward_end: float
    buckets: tuple[tuple[float, int], ...] = field(default=())


def crowded(network: Network, crowding: float) -> Network:
    """Return what messages cost when ranks slow each other down so much.

    Example:
        >>> crowded(Network(1e-3, 1e-5, 1e-9, 1e-10), 2.0)
        Network(alpha=0.002, gap=2e-05, beta=1e-09, gamma=2e-10, sharing=1, crowding=2.0)
    """
    more = crowding / network.crowding
    return replace(
        network,
        alpha=network.alpha * more,
        gap=network.gap * more,
        gamma=network.gamma * more,
        crowding=crowding,
    )


def all_reduce_cost(network: Network, nbytes: int, ranks: int) -> Cost:
    """Return what an all-reduce of ``nbytes`` costs on ``ranks`` ranks.

    Example:
        >>> all_reduce_cost(Network(1e-3, 0, 1e-9, 0), 10**6, 2)  # two rounds of half a megabyte
        Cost(latency=0.002, busy=0.001)
    """
    together = min(network.sharing, ranks)
    local = (2 * together - 1) / together * nbytes * network.gamma if together > 1 else 0.0
    hosts, part = ranks // together, nbytes / together
    if hosts == 1:
        return Cost(0.0, local)
    others = hosts - 1
    if part <= SMALL_BYTES and hosts <= MANY_RANKS:
        rounds, messages, volume, added = 1, others, others * part, others * part
    else:
        volume, added = 2 * others / hosts * part, others / hosts * part
        rounds, messages = _rounds(hosts)
    busy = messages * network.gap + volume * network.beta + added * network.gamma
    return Cost(rounds * network.alpha, local + busy)


def _rounds(ranks: int) -> tuple[int, int]:
    """Return the rounds of a long all-reduce, and the messages that a rank sends in them."""
    width = block_width(ranks)
    if ranks > MANY_RANKS and ranks & (ranks - 1) == 0:
        halvings = 2 * round(math.log2(ranks))
        return halvings, halvings
    if ranks > MANY_RANKS and width > 1:
        rounds, messages = _rounds(ranks // width)
        return rounds + 2, messages + 2 * (width - 1)
    return 2, 2 * (ranks - 1)


def exposed_s(network: Network, step: Step, ranks: int) -> float:
    """Return how long communication lasts beyond the end of backward.

    Example:
        >>> network = Network(alpha=0, gap=0, beta=1e-9, gamma=0)
        >>> step = Step(1.0, 1.0, ((0.5, 10**8), (1.0, 10**8)))
        >>> round(exposed_s(network, step, 2), 6)  # the first is hidden, the second is not
        0.1
    """
    if ranks == 1:
        return 0.0
    free = last = 0.0
    for ready, nbytes in sorted(step.buckets):
        cost = all_reduce_cost(network, nbytes, ranks)
        free = max(ready, free) + cost.busy
        last = max(last, free + cost.latency)
    return max(0.0, last - step.backward_end)


def predicted_s(network: Network, step: Step, ranks: int) -> float:
    """Return the seconds of a step on ``ranks`` ranks."""
    return step.seconds + exposed_s(network, step, ranks)


def alone_s(network: Network, step: Step, ranks: int) -> float:
    """Return the seconds of a step that communicates after backward and not during it."""
    whole = Step(step.seconds, 0.0, tuple((0.0, nbytes) for _, nbytes in step.buckets))
    return step.seconds + exposed_s(network, whole, ranks)


def world_sizes(most: int) -> list[int]:
    """Return the numbers of ranks to predict.

    Example:
        >>> world_sizes(100)
        [1, 2, 4, 8, 16, 32, 64, 100]
    """
    return [2**i for i in range(most.bit_length()) if 2**i < most] + [most]


# ------------------------------------------------------------------ measurements


def measure_network(group: ProcessGroup, message_bytes: int, repeats: int = 30) -> Network:
    """Return what messages cost between ranks of this group.

    Ranks: all.
    """
    apart = group.local_size if group.size > group.local_size else 1
    ahead, behind = (group.rank + apart) % group.size, (group.rank - apart) % group.size

    def exchange(count: int, nbytes: int) -> Callable[[], None]:
        give = [np.zeros(nbytes, np.uint8) for _ in range(count)]
        take = [np.empty(nbytes, np.uint8) for _ in range(count)]
        channel, call = group.channel("buckets"), "a measurement"

        def run() -> None:
            tags = range(PHASES, PHASES + count)
            works = [
                channel.start_recv(a, behind, tag, call)
                for tag, a in zip(tags, take, strict=True)
            ]  # fmt: skip
            works += [
                channel.start_send(a, ahead, tag, call) for tag, a in zip(tags, give, strict=True)
            ]
            for work in works:
                wait_for(work, channel, channel.timeout_s)

        return run

    few, many, long = 1, 9, max(message_bytes, 4 * SMALL_BYTES)
    first, all_, large = (
        median_s(group, exchange(*what), repeats) for what in ((few, 8), (many, 8), (few, long))
    )
    numbers = np.zeros(long // 4, np.float32)
    adding = median_s(group, lambda: np.add(numbers, numbers, out=numbers), repeats)
    gap = max(0.0, (all_ - first) / (many - few))
    return Network(
        max(0.0, first - gap), gap, max(0.0, large - first) / long, adding / long, sharing(group),
        measure_crowding(group, max(5, repeats // 10)),
    )  # fmt: skip


def measure_crowding(group: ProcessGroup, repeats: int) -> float:
    """Return how many times as long the same work takes when all ranks do it at once.

    Ranks: all.
    """
    square, line = np.ones((192, 192), np.float32), np.ones(1 << 20, np.float32)

    def work() -> None:
        for _ in range(8):
            np.matmul(square, square)
            np.add(line, line, out=line)
            line.fill(1.0)

    work()
    together = median_s(group, work, repeats)
    alone = np.zeros(1)
    turns = min(group.size, _TURNS)
    for turn in range(turns):
        group.barrier()
        if group.rank == turn:
            alone[0] = np.median([_seconds(work) for _ in range(repeats)])
    group.barrier()
    group.all_reduce(alone)
    return max(1.0, together / (float(alone[0]) / turns))


def sharing(group: ProcessGroup) -> int:
    """Return how many ranks of a host share memory in a reduction, or 1.

    Ranks: all.
    """
    slab = group.shared_memory(64, 1)
    return 1 if slab is None else len(slab.memory)


def median_s(group: ProcessGroup, call: Callable[[], object], repeats: int) -> float:
    """Return the median time of ``call`` on the slowest rank; all begin together."""
    return float(np.median(_slowest(group, [_timed(group, call) for _ in range(repeats)])))


def _timed(group: ProcessGroup, call: Callable[[], object]) -> float:
    group.barrier()
    return _seconds(call)


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _slowest(group: ProcessGroup, seconds: Sequence[float]) -> HostArray:
    """Return for each repetition the time of the slowest rank."""
    times = np.array(seconds)
    group.all_reduce(times, "max")
    return times


class Steps:
    """Runs steps of the job, with communication and without."""

    def __init__(self, config: ScalingConfig, context: Context) -> None:
        self.group = group = context.group
        self.task = TextTask(config, context)
        self.mine = micro_batches(config.global_batch, config.micro_batch, group.size)[group.rank]
        self.ddp = DistributedDataParallel(
            self.task.model, process_group=group, reduction="sum",
            bucket_cap_mb=config.bucket_cap_mb, determinism=switch("determinism") or "run",
        )  # fmt: skip
        self.optimizer = optim.AdamW(self.task.model.parameters(), lr=0.0)
        self.began = self.backward_end = 0.0

    def run(self, alone: bool) -> None:
        """Do one step; ``alone`` leaves all communication out."""
        self.began = time.perf_counter()
        self.optimizer.zero_grad()
        for number, rows in enumerate(self.mine):
            quiet = alone or number < len(self.mine) - 1
            with self.ddp.no_sync() if quiet else nullcontext():
                x, y = self.task.batch(0, rows)
                loss, units = self.task.loss(self.ddp(x), y)
                self.ddp.add_count(units)
                loss.backward()
        self.backward_end = time.perf_counter()
        self.optimizer.step()

    def measure(self, repeats: int) -> tuple[Step, float]:
        """Return a step without communication, and the seconds of one with it.

        Both kinds take turns. The first real step is left out: it learns the order of buckets.
        """
        self.run(alone=False)
        reducer = self.ddp.reducer
        reducer.timeline = []
        alone, ends, real, ready = [], [], [], []
        for _ in range(repeats):
            alone.append(_timed(self.group, lambda: self.run(alone=True)))
            ends.append(self.backward_end - self.began)
            reducer.reset()
            reducer.count, reducer.explicit_count = 0, False
            real.append(_timed(self.group, lambda: self.run(alone=False)))
            spans = sorted(span for span in reducer.timeline if span.bucket != WAIT)
            ready.append([span.ready - self.began for span in spans])
            reducer.timeline.clear()
        nbytes = [bucket.wire.nbytes for bucket in reducer.buckets]
        at = np.median(np.array(ready), axis=0) if self.group.size > 1 else np.zeros(len(nbytes))
        end = float(np.median(ends))
        buckets = tuple((min(float(t), end), n) for t, n in zip(at, nbytes, strict=True))
        step = Step(float(np.median(_slowest(self.group, alone))), end, buckets)
        return step, float(np.median(_slowest(self.group, real)))

    def close(self) -> None:
        """End the communication thread."""
        self.ddp.reducer.close()


# ------------------------------------------------------------------ the job


def run(config: ScalingConfig, context: Context) -> dict[str, float]:
    """Measure, predict, write metrics and picture; every rank calls it."""
    group, say = context.group, context.say
    if group.size < 2:
        raise ConfigError(
            "--job scaling: one rank sends no messages, so nothing can be measured; "
            "start at least two, best on different hosts, with --nproc"
        )
    repeats = 2 if context.dry_run else config.steps
    network = measure_network(group, int(config.message_kb * 1024), 10 * repeats)
    steps = Steps(config, context)
    step, measured = steps.measure(repeats)
    steps.close()
    predicted = predicted_s(network, step, group.size)
    say(_described(network, step, group))
    say(
        f"step on {group.size} ranks: predicted {predicted * 1e3:.2f} ms, measured "
        f"{measured * 1e3:.2f} ms, {abs(predicted / measured - 1):.0%} off"
    )
    rows = [
        {
            "ranks": ranks,
            "predicted_s": predicted_s(network, step, ranks),
            "not_overlapped_s": alone_s(network, step, ranks),
            "efficiency": step.seconds / predicted_s(network, step, ranks),
        }
        for ranks in world_sizes(config.most_ranks)
    ]
    metrics = Metrics(context.rundir.metrics if group.rank == 0 else None)
    metrics.write({"network": asdict(network), "step": asdict(step), "ranks": group.size,
                   "measured_s": measured, "predicted_s": predicted})  # fmt: skip
    for row in rows:
        metrics.write(row)
        say(f"{row['ranks']:>7,.0f} ranks  {row['predicted_s'] * 1e3:10.2f} ms a step  "
            f"efficiency {row['efficiency']:.1%}")  # fmt: skip
    metrics.close()
    if group.rank == 0:
        path = context.rundir.path / "scaling.svg"
        write_text(path, _picture(rows, step.seconds, (group.size, step.seconds / measured)))
        say(f"files in {context.rundir.path}: metrics.jsonl, scaling.svg")
    error = abs(predicted / measured - 1)
    return {"efficiency": float(rows[-1]["efficiency"]), "model_error": error}


def _described(network: Network, step: Step, group: ProcessGroup) -> str:
    total = sum(nbytes for _, nbytes in step.buckets)
    where = "different hosts" if group.size > group.local_size else "one host"
    return (
        f"messages between ranks of {where}: alpha {network.alpha * 1e6:.1f} us, "
        f"{network.gap * 1e6:.2f} us a message, {1e-9 / max(network.beta, 1e-15):.2f} GB/s; "
        f"adding {1e-9 / max(network.gamma, 1e-15):.1f} GB/s; {network.sharing} ranks share "
        f"memory; all at once, work takes {network.crowding:.2f} times as long"
        f"\nstep without communication {step.seconds * 1e3:.2f} ms, "
        f"{plot.human_bytes(round(total, -2))} of gradients in {len(step.buckets)} buckets"
    )


def _picture(
    rows: Sequence[dict[str, float]], compute: float, measured: tuple[float, float]
) -> str:
    most = rows[-1]["ranks"]
    curves = {
        "predicted": [(row["ranks"], row["efficiency"]) for row in rows],
        "no overlap": [(row["ranks"], compute / row["not_overlapped_s"]) for row in rows],
    }
    across = plot.LogAxis("ranks, each with the same work", 1, max(most, 10), "{:,.0f}".format)
    up = plot.Axis("efficiency", 0, 1.05, "{:.0%}".format)
    title = "Efficiency predicted from measured messages and steps"
    dots = {f"measured, {measured[0]}": [(float(measured[0]), min(1.05, measured[1]))]}
    return plot.curves_svg(curves, dots, title, across, up)
