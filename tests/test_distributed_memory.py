"""How many bytes of arrays a rank holds, at its peak, while it trains.

Threads post copies of their messages, as no network does; those are not counted.
"""

import gc
import mmap
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

import distgrad as dg
from distgrad.distributed.optim import ZeroRedundancyOptimizer
from distgrad.distributed.threads import ThreadGroup, run_ranks
from distgrad.nn.parallel import DistributedDataParallel

WIDTH, LAYERS, BATCH = 256, 32, 2
N = 4 * LAYERS * (WIDTH * WIDTH + WIDTH)  # bytes of the parameters
SLACK = 0.1 * N  # activations, the gradient at hand, Python's objects
BLOCK = 4 << 16  # bytes that an update rule takes at a time, for each of its temporary arrays


class Posted(np.ndarray):
    """An array whose copy is not traced."""

    def copy(self, order="C"):
        box = np.frombuffer(mmap.mmap(-1, max(1, self.nbytes)), self.dtype, self.size)
        box[...] = self.reshape(-1)
        return box.reshape(self.shape)


@pytest.fixture(autouse=True)
def untraced_messages(monkeypatch):
    start = ThreadGroup._start

    def posted(self, transfer):
        if transfer.collective == "send":
            transfer = replace(transfer, source=transfer.source.view(Posted))
        return start(self, transfer)

    monkeypatch.setattr(ThreadGroup, "_start", posted)


def peak_of(size, zero, rule, backwards=1, shards=None, steps=3):
    """Return the peak of all ranks together, per rank, after the model was there."""
    peaks = []

    def body(group):
        net = dg.nn.Sequential(*[dg.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)])
        ddp = DistributedDataParallel(
            net, process_group=group, bucket_cap_mb=0.25, shard_gradients=zero == 2,
            determinism="world" if shards else "run", shards=shards,
        )  # fmt: skip
        make, options = rule
        params = net.parameters()
        optimizer = (
            ZeroRedundancyOptimizer(params, make, **options) if zero else make(params, **options)
        )
        x = dg.from_numpy(np.ones((BATCH, WIDTH), np.float32))
        for step in range(steps):
            if step == steps - 1:  # the layout is learnt and the state is there
                group.barrier()
                if group.rank == 0:
                    gc.collect()
                    tracemalloc.reset_peak()
                group.barrier()
            for _ in range(backwards):
                for _ in ddp.local_shards:
                    ddp(x).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        group.barrier()
        if group.rank == 0:
            peaks.append(tracemalloc.get_traced_memory()[1])
        group.barrier()
        return True

    gc.collect()
    tracemalloc.start()
    try:
        run_ranks(size, body)
    finally:
        tracemalloc.stop()
    return peaks[0] / size


SGD = dg.optim.SGD, {"lr": 0.01}
ADAM = dg.optim.AdamW, {"lr": 0.01}


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("rule, state", [(SGD, 0), (ADAM, 2)])
def test_the_peak_is_parameters_one_gradient_and_the_state(size, rule, state):
    want = (2 + state) * N
    assert want <= peak_of(size, 0, rule) < want + SLACK + (1 + 2 * state) * BLOCK


@pytest.mark.parametrize("size", [4])
@pytest.mark.parametrize("rule, state", [(SGD, 0), (ADAM, 2)])
def test_zero_1_divides_the_state(size, rule, state):
    want = (2 + state / size) * N
    assert want <= peak_of(size, 1, rule) < want + SLACK + (1 + 2 * state) * BLOCK


@pytest.mark.parametrize("size", [4])
@pytest.mark.parametrize("rule, state", [(SGD, 0), (ADAM, 2)])
def test_zero_2_divides_the_gradients_too(size, rule, state):
    regions = (
        2 * 2 * 0.25 * 2**20
    )  # two, each of one bucket, and gradients of a bucket not full yet
    want = (1 + (1 + state) / size) * N
    assert want <= peak_of(size, 2, rule) < want + regions + SLACK + (1 + 2 * state) * BLOCK


def test_means_of_several_backwards_take_two_parts_and_not_a_whole():
    one, three = peak_of(4, 2, SGD), peak_of(4, 2, SGD, backwards=3)
    assert three - one == pytest.approx(N / 4, abs=SLACK)


def test_sums_of_shards_that_wait_are_whole():
    one, several = peak_of(2, 0, SGD), peak_of(2, 0, SGD, shards=8)
    assert several - one == pytest.approx(2 * N, abs=SLACK)  # 2 of 4 subtrees wait at most
