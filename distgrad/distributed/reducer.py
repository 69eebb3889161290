"""The reducer: takes each gradient the moment it is complete, and all-reduces it during backward.

The way of a gradient: the engine accumulates it into the slice of a bucket and calls the leaf's
hook; when a bucket's last parameter has reported, the bucket goes to the communication thread;
at the end of backward the rest follows, everything is waited for, and one division by the global
count makes sums into means.

Note [Means are exact]
    Ranks never average averages.  With ``reduction="sum"`` every rank brings the gradient of a sum
    over its samples; with ``"mean"`` that of a mean, which is multiplied by the rank's count first.
    Sums and counts are all-reduced together, and the quotient is the gradient of the big batch,
    however unevenly samples lie on the ranks.

Note [Determinism]
    "off"    the MPI library may add, in an order of its own.
    "run"    the same ranks give the same bits: they are added in the order of a tree over ranks.
    "world"  any number of ranks gives the same bits: the tree is over V shards of the batch, and a
             rank runs one backward for each of its shards, always the same ones. The gradients of
             each shard are kept apart until both halves of a larger subtree are there (`tree`).

Note [Order of buckets]
    Gradients come in about the reverse order of registration, so the first plan fills buckets that
    way, and they are sent from the first backward on. After it, the plan follows the order in which
    gradients came on rank 0. As messages carry their bucket's number, ranks may differ in it.

Note [Lost step]
    Buckets are matched by number, so ranks may fill them in any order. The last one carries the
    number of this reduction, to which a digest of the optimizers' settings is added, and its
    square: the sum of the squares is the square of the sum over P only if all ranks have the same
    number. Otherwise all ranks see so, and say where each one is.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn
from weakref import WeakValueDictionary

import numpy as np

from distgrad.autograd.engine import queue_callback
from distgrad.backend.device import CPU, device_of, to_device
from distgrad.config import nearest
from distgrad.distributed.agreement import check_values
from distgrad.distributed.bucket import Bucket, Memory, Summed, Tail, let_go, plan_buckets
from distgrad.distributed.comm_hooks import HookedReduction
from distgrad.distributed.gathering import Gathering
from distgrad.distributed.group import ProcessGroup, check_same
from distgrad.distributed.nccl import link_between
from distgrad.distributed.progress import start_progress
from distgrad.distributed.reduction import PHASES, Exchange, Reduction
from distgrad.distributed.tree import Subtree, Tree
from distgrad.distributed.waiting import watched
from distgrad.distributed.work import HostArray, Work
from distgrad.errors import ArgumentError, GradError
from distgrad.tensor import Tensor, wrap

if TYPE_CHECKING:
    from distgrad.distributed.algorithms.join import Joinable

REDUCTIONS = ("mean", "sum")
DETERMINISM = ("off", "run", "world")


WAIT = -1  # in place of a bucket's number: backward waited for all of them


class Span(NamedTuple):
    """What one bucket did, in seconds of ``time.perf_counter``."""

    bucket: int
    nbytes: int
    ready: float
    started: float
    done: float


class Standing(NamedTuple):
    """How far a reducer has come, as its host counts; a captured step takes it there and back."""

    counts: tuple[int, bool, bool, bool]  # count, explicit_count, reduced, spent
    shards: tuple[int, int, list[bool]]  # the next one; samples and used parameters before it
    sums: list[list[Any]]  # of each bucket, of shards
    means: tuple[Any, ...] = ()  # of a subclass


class Timed(Work):
    """A transfer that notes when it was seen complete."""

    __slots__ = ("_inner", "done", "started")

    def __init__(self, inner: Work, started: float) -> None:
        super().__init__(inner.call, inner.sequence)
        self._inner, self.started, self.done = inner, started, 0.0

    def test(self) -> bool:
        """Return whether the transfer is complete."""
        complete = self._inner.test()
        if complete and not self.done:
            self.done = time.perf_counter()
        return complete

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when the transfer is complete."""
        self._inner.wait(timeout_s)
        self.test()

    def is_completed(self) -> bool:
        """Return whether the transfer is known to be over."""
        return self._inner.is_completed()


class Reducer:
    """Averages the gradients of parameters over the ranks of a group while backward runs.

    Args:
        named: names and leaves, in the same order on all ranks.
        group: the ranks.
        reduction: "mean" where the loss is a mean over the local samples, "sum" where it is a sum.
        bucket_cap_mb: MiB of a bucket (default 25, the first one 1).
        determinism: "off", "run" or "world"; see Note [Determinism].
        shards: V, of "world": how many backwards all ranks together make up one reduction.
        check_every: after how many reductions to compare the values of the parameters.
        plan: which parameters share a bucket, on all ranks alike; default is about the reverse
            order of registration.

    Ranks: all, with the same parameters; compared here, and every rank raises on a difference.
    Cost: one all-reduce of the gradients per synchronised backward, or per V of them.
    """

    def __init__(
        self,
        named: Sequence[tuple[str, Tensor]],
        group: ProcessGroup,
        reduction: str = "mean",
        bucket_cap_mb: float | None = None,
        determinism: str = "run",
        shards: int | None = None,
        check_every: int | None = None,
        plan: list[list[int]] | None = None,
    ) -> None:
        """Compare and lay out the parameters, and hook their gradients."""
        self.named = [(n, p) for n, p in named if p.requires_grad]
        if not self.named:
            raise ArgumentError("Reducer(): no parameter requires a gradient; nothing to reduce")
        self.group, self.reduction, self.determinism = group, reduction, determinism
        self.tree = _tree(group, reduction, determinism, shards)
        if check_every is not None and check_every < 1:
            raise ArgumentError(f"check_every={check_every}: a number of reductions is 1 or more")
        self.check_every = check_every
        self.enabled = True  # False inside no_sync
        self.count = 0  # samples since the last backward that was not in no_sync
        self.explicit_count = False  # the user counts
        self.reduced = False  # the gradients are means, not sums
        self.spent = False  # an optimizer that shares its work has stepped with them
        self.reductions = 0  # since the beginning
        self.timeline: list[Span] | None = None  # set to a list to record
        self.comm: HookedReduction | None = None  # the user's way to average a bucket
        self._declared: dict[int, str] = {}
        self._followers: WeakValueDictionary[int, Joinable] = WeakValueDictionary()
        self.waited_s = 0.0  # backward stood still for communication: exposed, in seconds
        self.under_way_s = 0.0  # from the first bucket's start to the last one's end, in seconds
        check_same(group, "parameters of the model", _fingerprint(self))
        self.channel = group.channel("buckets")
        self._cap_mb, self._order = bucket_cap_mb, list[int]()
        self.plan, self.version = plan or plan_buckets(self.named, bucket_cap_mb), 0
        self._lay_out()
        self._next_step()
        self._progress = start_progress(self.channel) if group.size > 1 else None
        self.gathering = Gathering(self.channel, self._progress)
        self._running = False
        self._handles = [p.register_post_accumulate_grad_hook(self._hook) for _, p in self.named]

    def _allocate(self) -> None:
        """Take memory for the gradients."""
        params = [p for _, p in self.named]
        link = link_between(self.channel, params, self.determinism, self.tree)
        nbytes = sum(p.array.nbytes for p in params if link is None or not p.is_cuda)
        longest = max(p.array.itemsize for _, p in self.named)
        self.tails = {
            p.array.dtype: Tail(p.array.dtype, self.group.size, len(self.named))
            for _, p in self.named
        }
        extra = longest * max(tail.length for tail in self.tails.values())
        count = len(self.named) + 1
        self.memory = Memory(self.channel, self.tree, nbytes + extra, count, link)

    def _lay_out(self) -> None:
        """Make the buckets of the plan."""
        if not self.version:
            self._allocate()
        self.tail = self.tails[self.named[self.plan[-1][0]][1].array.dtype]
        self.buckets: list[Any] = []  # of Bucket; a subclass has others
        for index, places in enumerate(self.plan):
            names, params = zip(*(self.named[i] for i in places), strict=True)
            tail = self.tail.length if index == len(self.plan) - 1 else 0
            self.buckets.append(Bucket(index, params, names, self.memory, tail))
        self._register(self.buckets)

    def _register(self, buckets: Sequence[Summed]) -> None:
        """Note where each parameter is."""
        self._place = {id(p): (b, i) for b in buckets for i, p in enumerate(b.params)}
        self._index = {id(p): i for i, (_, p) in enumerate(self.named)}
        for _, p in self.named:
            _reducers[id(p)] = self

    def _learn_order(self) -> None:
        """Plan the buckets anew, in the order in which gradients came on rank 0."""
        missing = [i for i in reversed(range(len(self.named))) if i not in set(self._order)]
        order = self.group.channel("control").broadcast_object(self._order + missing)
        plan = plan_buckets(self.named, self._cap_mb, order)
        if plan != self.plan:
            self.gathering.wait()
            self._take_plan(plan)

    def _take_plan(self, plan: list[list[int]]) -> None:
        """Lay out the buckets anew, with the gradients that there are."""
        # The new buckets lie where the old ones do, and no rank reads those any more.
        for _, p in self.named:
            if p.grad is not None:
                p.grad = wrap(p.grad.array.copy())
        before, self.plan, self.version = self.buckets, plan, self.version + 1
        self.memory.reuse()
        self._lay_out()
        let_go(before)

    def broadcast_parameters(self, src: int = 0) -> None:
        """Give every rank the parameter values of rank ``src``."""
        self.gathering.wait()
        for bucket in self.buckets:
            host = to_device(bucket.values, CPU)
            self.group.broadcast(host, src)
            if host is not bucket.values:
                bucket.values[...] = to_device(host, device_of(bucket.values))

    @property
    def followers(self) -> list[Joinable]:
        """Those that communicate after its reductions; on all ranks the same, in one order."""
        return list({id(one): one for _, one in sorted(self._followers.items())}.values())

    def follow(self, param: Tensor, follower: Joinable) -> None:
        """Note that ``follower``, and none before it, updates ``param`` together with all ranks."""
        self._followers[self._index[id(param)]] = follower

    def declare(self, param: Tensor, text: str) -> None:
        """Note how ``param`` is updated; the next reduction sees to it that all ranks say so."""
        self._declared[self._index[id(param)]] = text

    def wait_for(self, params: Iterable[Tensor]) -> None:
        """Return when the values of ``params`` are whole, as far as they are gathered."""
        places = [self._place[id(p)] for p in params if id(p) in self._place]
        self.gathering.wait({bucket.index for bucket, _ in places})

    def drop(self) -> None:
        """Forget gradients that are not in ``grad``; there are none."""

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Only accumulate: no communication for backwards inside the block."""
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before

    def add_count(self, samples: int) -> None:
        """Count ``samples`` towards the next reduction, instead of what ``count`` has."""
        if samples < 0:
            raise ArgumentError(f"add_count({samples}): a count of samples is 0 or more")
        self.count = samples + (self.count if self.explicit_count else 0)
        self.explicit_count = True

    def begin(self) -> None:
        """Get ready for a forward that trains.

        Raises:
            GradError: sums would be added to gradients that are means already.
        """
        if self._running:  # an exception left the backward before
            self.reset()
            self._next_step()
            self.count, self.explicit_count = 0, False  # what it would have brought is lost
        grad = self.named[-1][1].grad
        if grad is None:
            self.reduced = False
        elif self.reduced and self.only_sums and grad.array.any():
            raise GradError(
                "forward(): the gradients were already reduced to means, and sums cannot be "
                "added to them; call optimizer.zero_grad() first, or accumulate in no_sync()"
            )

    def reset(self) -> None:
        """Forget the backward that is running."""
        self._running = False
        for bucket in self.buckets:
            bucket.ready.clear()
            bucket.job, bucket.launched = None, False
            if bucket.turn is not None:
                bucket.turn.launched, bucket.turn.work = False, None

    def _next_step(self) -> None:
        """Begin with the first shard."""
        self.shard = self.local_shards[0]  # the one that the next backward belongs to
        self._total = 0  # samples of the shards before this one
        self._used = [False] * len(self.named)  # in the shards before this one
        for bucket in self.buckets:
            bucket.total.stack.clear()

    @property
    def stage(self) -> tuple[Any, ...]:
        """What a backward that begins now depends on; to be compared."""
        return self.enabled, self.count, self.explicit_count, self.shard

    def standing(self) -> Standing:
        """Return how far the reducer has come."""
        counts = self.count, self.explicit_count, self.reduced, self.spent
        sums = [[*bucket.total.stack] for bucket in self.buckets]
        return Standing(counts, (self.shard, self._total, [*self._used]), sums)

    def stand(self, at: Standing) -> None:
        """Be where it was, or would be, between two backwards."""
        self.count, self.explicit_count, self.reduced, self.spent = at.counts
        self.shard, self._total, used = at.shards
        self._used = [*used]
        for bucket, sums in zip(self.buckets, at.sums, strict=True):
            bucket.total.stack[:] = sums

    def shadow(self) -> None:
        """Take part in a reduction without a backward: for a rank whose samples ran out.

        It brings what it has accumulated in no_sync, if anything.
        """
        if not self.count:
            for _, p in self.named:
                p.grad = None
        self.begin()
        self._finish()

    def close(self) -> None:
        """Remove the hooks and end the communication thread."""
        self.gathering.forget()
        for handle in self._handles:
            handle.remove()
        if self._progress is not None:
            self._progress.close()

    @property
    def only_sums(self) -> bool:
        """True where what ranks bring are sums over samples before they meet in a bucket."""
        return self.reduction == "sum" or self.tree.shards > self.group.size

    @property
    def samples(self) -> int:
        """How many samples this rank has had since the last reduction."""
        return self._total + self.count

    @property
    def local_shards(self) -> range:
        """The shards of this rank."""
        bounds, rank = self.tree.bounds, self.group.rank
        return range(bounds[rank], bounds[rank + 1])

    # ------------------------------------------------------------------ during backward
    def _hook(self, param: Tensor) -> None:
        """Note that ``param.grad`` is complete; send its bucket when it is the last one."""
        if not self.enabled:
            return
        if not self._running:
            self._running = True
            queue_callback(self._finish)
        bucket, place = self._place[id(param)]
        if bucket.launched:
            raise GradError(
                f"backward({bucket.names[place]}): its gradient came again after it was sent, as "
                "of a parameter in several checkpoints; use checkpoint(use_reentrant=False)"
            )
        if not self.reductions and self._last_shard:
            self._order.append(self._index[id(param)])
        self._adopt(param)
        bucket.ready.add(place)
        if bucket.full and not bucket.tail:
            self._launch_what_may(bucket)
        if self._progress is not None:
            self._progress.poll()

    def _launch_what_may(self, bucket: Summed) -> None:
        """Launch a full bucket; all-reduces of MPI and NCCL need one order on all ranks."""
        if self.determinism != "off" and self.comm is None and self.memory.ways.link is None:
            self._launch(bucket)
            return
        for following in self.buckets:
            if following.tail or not following.full:
                return
            if not following.launched:
                self._launch(following)

    @property
    def _last_shard(self) -> bool:
        return self.shard == self.local_shards[-1]

    def _adopt(self, param: Tensor) -> None:
        """Move a gradient that does not lie in its bucket (set by hand, or a graph) there."""
        view, grad = param._grad_buffer, param.grad
        if grad is None or grad is view:
            return
        assert view is not None
        if grad.requires_grad:
            self._refuse_history(param)
        view.array[...] = grad.array
        param.grad = view

    def _refuse_history(self, param: Tensor) -> NoReturn:
        raise GradError(
            f"backward({self.named[self._index[id(param)]][0]}): create_graph=True makes "
            "gradients with a history, which are not reduced across ranks; use no_sync() and "
            "autograd.grad()"
        )

    def _launch(self, bucket: Summed) -> None:
        """Add a bucket that is full to this rank's sums; with the last shard, send them."""
        bucket.launched = True
        several = self.tree.shards > self.group.size
        if self.comm is None or several:
            self._weigh(bucket)
        part = Subtree(self.shard, 1)
        if not self._last_shard:
            bucket.keep(part)
        elif self.comm is not None:
            if several:
                bucket.reduce_alone(part)
            self.comm.launch(bucket)
        elif self._progress is not None:
            self._send(bucket, bucket.settle(part))
        elif several:
            bucket.reduce_alone(part)

    def _weigh(self, bucket: Summed) -> None:
        """Make gradients of a mean over samples into sums over them."""
        if self.reduction != "mean" or self.group.size * self.tree.shards == 1:
            return
        gradients = bucket.gradients
        if self.count:
            gradients *= self.count
        else:
            gradients[...] = 0  # the mean of no samples is not a number

    def _send(self, bucket: Summed, arrays: list[HostArray]) -> None:
        """Hand a bucket to the communication thread."""
        assert self._progress is not None
        bucket.filled_at = time.perf_counter()
        hosts = bucket.leave(arrays)

        def start() -> Work:
            began = time.perf_counter()
            timed = bucket.work = Timed(self._exchange(bucket, hosts), began)
            return timed

        if hosts:
            bucket.job = self._progress.submit(bucket.behind(start))

    def _exchange(self, bucket: Summed, arrays: list[HostArray]) -> Work:
        """Return the started sum of a bucket over the ranks."""
        if self.determinism == "off" and bucket.common is None:
            return self.channel.start_all_reduce(bucket.wire, "sum", f"bucket {bucket.index}")
        call = f"all_reduce({bucket.describe()})"
        exchange = Exchange(
            self.channel, arrays, self.tree.parts, np.add, bucket.index * PHASES, call,
            common=bucket.common,
        )  # fmt: skip
        return Reduction(exchange)

    def _finish(self) -> None:
        """Send what is left at the end of backward, wait for all, and divide."""
        for i, (_, p) in enumerate(self.named):
            self._used[i] |= p.grad is not None
        for bucket in self.buckets:
            if not bucket.launched:
                self._fill(bucket)
                self._launch(bucket)
        if self._last_shard:
            self._complete()
        else:
            self.shard += 1
            self._total += self.count
            for _, p in self.named:
                p.grad = None
        self.count, self.explicit_count = 0, False
        self.reset()

    def _fill(self, bucket: Bucket) -> None:
        """Put zeros where a parameter has no gradient."""
        for param, span in zip(bucket.params, bucket.spans, strict=True):
            if param.grad is None:
                bucket.flat[span] = 0
            else:
                self._adopt(param)
        if bucket.tail:
            self._write_tail(bucket.end)

    def _write_tail(self, end: Any) -> None:
        """Write flags, the count, and the number that all ranks must have alike."""
        number = self.reductions + zlib.crc32(self._settings.encode())
        self.tail.write(end, self._used, self.samples, number, self._last_shard)

    @property
    def _settings(self) -> str:
        return "; ".join(text for _, text in sorted(self._declared.items()))

    def _complete(self) -> None:
        """Wait for all buckets and divide."""
        began = time.perf_counter()
        call = f"all_reduce of the gradients, reduction {self.reductions}"
        for bucket in self.buckets:
            with watched(self.channel, call, time.monotonic(), bucket.describe()):
                self._wait(bucket)
        self._note_times(began, time.perf_counter())
        self._divide()
        self.reduced = True
        if self.check_every and (self.reductions + 1) % self.check_every == 0:
            when = f"in backward {self.reductions + 1}"
            check_values(self.group.channel("control"), self.named, when)
        if self.reductions == 0 and self.group.size > 1:
            self._learn_order()
        self.reductions += 1
        self._next_step()

    def _note_times(self, began: float, ended: float) -> None:
        """Count how long buckets were under way, and how long backward stood still for them."""
        self.waited_s += ended - began
        works = [b.work for b in self.buckets if isinstance(b.work, Timed)]
        if works:
            first = min(work.started for work in works)
            self.under_way_s += max(work.done for work in works) - first
        if self.timeline is not None:
            self.timeline.append(Span(WAIT, 0, began, began, ended))

    def _wait(self, bucket: Summed) -> None:
        if not bucket.under_way:
            return
        if bucket.job is not None:
            bucket.job.wait()
        if self.timeline is not None and bucket.job is not None:
            work, filled = bucket.work, bucket.filled_at
            span = Span(bucket.index, bucket.wire.nbytes, filled, work.started, work.done)
            self.timeline.append(span)
        if self.comm is None:
            bucket.stage_in()

    def _divide(self) -> None:
        """Turn sums into means; leave ``None`` where no rank has a gradient."""
        used, divisor = self._agreed(self.buckets[-1].end)
        if divisor is not None:
            for bucket in self.buckets:
                gradients = bucket.gradients
                gradients /= divisor
        for (_, param), anywhere in zip(self.named, used, strict=True):
            param.grad = param._grad_buffer if anywhere else None

    def _agreed(self, end: Any) -> tuple[list[bool], float | None]:
        """Return which parameters any rank used, and what to divide by, None for nothing."""
        used, total, together = self.tail.read(end)
        if not together:
            what, here, settings = (
                "reductions before this backward",
                self.reductions,
                self._settings,
            )
            if settings:
                check_same(self.group, f"{what}, and settings of optimizers", f"{here}; {settings}")
            check_same(self.group, what, str(here))
        if self.reduction == "mean" and self.group.size * self.tree.shards == 1:
            return used, None
        if total < 1:
            raise GradError(
                "backward(): the global sample count is 0, so there is no mean; call the "
                "DistributedDataParallel module itself, or add_count(samples) before backward"
            )
        return used, total if self.comm is None else self.comm.divisor(total)


_reducers: WeakValueDictionary[int, Reducer] = WeakValueDictionary()  # it keeps its parameters


def reducer_of(param: Tensor) -> Reducer | None:
    """Return the reducer that takes the gradients of ``param``."""
    return _reducers.get(id(param))


def _tree(group: ProcessGroup, reduction: str, determinism: str, shards: int | None) -> Tree:
    """Return who has which shards, or raise on what was asked for."""
    for name, value, known in (
        ("reduction", reduction, REDUCTIONS),
        ("determinism", determinism, DETERMINISM),
    ):
        if value not in known:
            raise ArgumentError(
                f"{name}={value!r}: takes one of {', '.join(known)}{nearest(value, known)}"
            )
    if shards is not None and determinism != "world":
        raise ArgumentError(
            f"shards={shards}, determinism={determinism!r}: shards belong to determinism='world'"
        )
    return Tree(group.size if shards is None else shards, group.size)


def _fingerprint(reducer: Reducer) -> str:
    params = "; ".join(
        f"{n} {p.array.dtype}{list(p.array.shape)}{' on a GPU' * p.is_cuda}"
        for n, p in reducer.named
    )
    how = f"{reducer.determinism}, {reducer.tree.shards} shards, {reducer.reduction}"
    return f"{params}; {how}"
