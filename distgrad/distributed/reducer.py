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
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from distgrad.autograd.engine import queue_callback
from distgrad.backend.device import CPU, device_of, to_device
from distgrad.distributed.bucket import (
    Bucket,
    plan_buckets,
    read_tail,
    tail_length,
    write_tail,
)
from distgrad.distributed.group import ProcessGroup, Work, check_same
from distgrad.distributed.progress import start_progress
from distgrad.errors import ArgumentError, GradError
from distgrad.tensor import Tensor

REDUCTIONS = ("mean", "sum")


class Span(NamedTuple):
    """What one bucket did, in seconds of ``time.perf_counter``."""

    bucket: int
    nbytes: int
    ready: float
    started: float
    done: float


class _Timed(Work):
    """A transfer that notes when it was seen complete."""

    __slots__ = ("_inner", "done", "started")

    def __init__(self, inner: Work) -> None:
        super().__init__(inner.call, inner.sequence)
        self._inner, self.started, self.done = inner, time.perf_counter(), 0.0

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

    Ranks: all, with the same parameters; compared here, and every rank raises on a difference.
    Cost: one all-reduce of the gradients per synchronised backward.
    """

    def __init__(
        self,
        named: Sequence[tuple[str, Tensor]],
        group: ProcessGroup,
        reduction: str = "mean",
        bucket_cap_mb: float | None = None,
    ) -> None:
        """Compare and lay out the parameters, and hook their gradients."""
        if reduction not in REDUCTIONS:
            raise ArgumentError(f"reduction={reduction!r}: takes one of {', '.join(REDUCTIONS)}")
        self.named = [(n, p) for n, p in named if p.requires_grad]
        if not self.named:
            raise ArgumentError("Reducer(): no parameter requires a gradient; nothing to reduce")
        self.group, self.reduction = group, reduction
        self.enabled = True  # False inside no_sync
        self.count = 0  # samples since the last reduction
        self.explicit_count = False  # the user counts
        self.reduced = False  # the gradients are means, not sums
        self.timeline: list[Span] | None = None  # set to a list to record
        self.waited_s = 0.0  # backward stood still for communication: exposed, in seconds
        check_same(group, "parameters of the model", _fingerprint(self.named))
        self.channel = group.channel("buckets")
        self.buckets = self._make_buckets(bucket_cap_mb)
        self._place = {id(p): (b, i) for b in self.buckets for i, p in enumerate(b.params)}
        self._index = {id(p): i for i, (_, p) in enumerate(self.named)}
        self._progress = start_progress(self.channel) if group.size > 1 else None
        self._running, self._launched = False, 0
        self._handles = [p.register_post_accumulate_grad_hook(self._hook) for _, p in self.named]

    def _make_buckets(self, cap_mb: float | None) -> list[Bucket]:
        plan = plan_buckets(self.named, cap_mb)
        buckets = []
        for index, places in enumerate(plan):
            params = [self.named[i][1] for i in places]
            names = [self.named[i][0] for i in places]
            last = index == len(plan) - 1
            size = self.group.size
            tail = tail_length(params[0].array.dtype, size, len(self.named)) if last else 0
            buckets.append(Bucket(index, params, names, tail))
        return buckets

    def broadcast_parameters(self, src: int = 0) -> None:
        """Give every rank the parameter values of rank ``src``."""
        for bucket in self.buckets:
            host = to_device(bucket.values, CPU)
            self.group.broadcast(host, src)
            if host is not bucket.values:
                bucket.values[...] = to_device(host, device_of(bucket.values))

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
            GradError: with ``reduction="sum"``, gradients that are means already would be added to.
        """
        if self._running:  # an exception left the backward before
            self.reset()
        grad = self.named[-1][1].grad
        if grad is None:
            self.reduced = False
        elif self.reduced and self.reduction == "sum" and grad.array.any():
            raise GradError(
                "forward(): the gradients were already reduced to means, and sums cannot be "
                "added to them; call optimizer.zero_grad() first, or accumulate in no_sync()"
            )

    def reset(self) -> None:
        """Forget the backward that is running."""
        self._running, self._launched = False, 0
        for bucket in self.buckets:
            bucket.ready.clear()
            bucket.job = None

    def close(self) -> None:
        """Remove the hooks and end the communication thread."""
        for handle in self._handles:
            handle.remove()
        if self._progress is not None:
            self._progress.close()

    # ------------------------------------------------------------------ during backward
    def _hook(self, param: Tensor) -> None:
        """Note that ``param.grad`` is complete; send its bucket when it is the last one."""
        if not self.enabled:
            return
        if not self._running:
            self._running = True
            queue_callback(self._finish)
        bucket, place = self._place[id(param)]
        self._adopt(param)
        bucket.ready.add(place)
        while self._next.full and not self._next.tail:
            self._launch()
        if self._progress is not None:
            self._progress.poll()

    @property
    def _next(self) -> Bucket:
        """The bucket to send next: in the same order on all ranks, or sums would get mixed."""
        return self.buckets[self._launched]

    def _adopt(self, param: Tensor) -> None:
        """Move a gradient that does not lie in its bucket (set by hand, or a graph) there."""
        view, grad = param._grad_buffer, param.grad
        if grad is None or grad is view:
            return
        assert view is not None
        if grad.requires_grad:
            raise GradError(
                f"backward({self.named[self._index[id(param)]][0]}): create_graph=True makes "
                "gradients with a history, which are not reduced across ranks; use no_sync() and "
                "autograd.grad()"
            )
        view.array[...] = grad.array
        param.grad = view

    def _launch(self) -> None:
        """Hand the next bucket to the communication thread."""
        bucket = self._next
        self._launched += 1
        if self._progress is None:
            return
        if self.reduction == "mean":
            gradients = bucket.gradients
            if self.count:
                gradients *= self.count
            else:
                gradients[...] = 0  # the mean of no samples is not a number
        bucket.filled_at = time.perf_counter()
        tag = f"bucket {bucket.index}"

        def start() -> Work:
            work = bucket.work = _Timed(
                self.channel.start_all_reduce(bucket.stage_out(), "sum", tag)
            )
            return work

        bucket.job = self._progress.submit(start)

    def _finish(self) -> None:
        """Send what is left at the end of backward, wait for all, and divide."""
        used = [p.grad is not None for _, p in self.named]
        for bucket in self.buckets[self._launched :]:
            for param, span in zip(bucket.params, bucket.spans, strict=True):
                if param.grad is None:
                    bucket.flat[span] = 0
                else:
                    self._adopt(param)
            if bucket.tail:
                tail = bucket.flat[bucket.spans[-1].stop :]
                write_tail(tail, used, self.count, self.group.size)
        while self._launched < len(self.buckets):
            self._launch()
        began = time.perf_counter()
        for bucket in self.buckets:
            self._wait(bucket)
        self.waited_s += time.perf_counter() - began
        self._divide()
        self.reduced = True
        self.count, self.explicit_count = 0, False
        self.reset()

    def _wait(self, bucket: Bucket) -> None:
        if bucket.job is None:
            return
        bucket.job.wait()
        if self.timeline is not None:
            work, filled = bucket.work, bucket.filled_at
            span = Span(bucket.index, bucket.flat.nbytes, filled, work.started, work.done)
            self.timeline.append(span)
        bucket.stage_in()

    def _divide(self) -> None:
        """Turn sums into means; leave ``None`` where no rank has a gradient."""
        last = self.buckets[-1]
        used, total = read_tail(last.flat[last.spans[-1].stop :], len(self.named), self.group.size)
        if self.reduction == "sum" or self.group.size > 1:
            if total < 1:
                raise GradError(
                    "backward(): the global sample count is 0, so there is no mean; call the "
                    "DistributedDataParallel module itself, or add_count(samples) before backward"
                )
            for bucket in self.buckets:
                gradients = bucket.gradients
                gradients /= total
        for (_, param), anywhere in zip(self.named, used, strict=True):
            param.grad = param._grad_buffer if anywhere else None


def _fingerprint(named: Sequence[tuple[str, Tensor]]) -> str:
    return "; ".join(f"{n} {p.array.dtype}{list(p.array.shape)}" for n, p in named)
