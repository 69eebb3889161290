"""Random training runs: bit by bit the same on any number of ranks, and close to one plain loop.

``FUZZ_CASES=2000 pytest tests/test_distributed_fuzz.py`` runs more of them, and ``FUZZ_FIRST=17``
begins with number 17; a failure names its case, which is its seed.
"""

import os
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import pytest

import distgrad as dg
from distgrad.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from distgrad.distributed.optim import ZeroRedundancyOptimizer
from distgrad.distributed.threads import run_ranks
from distgrad.nn.parallel import DistributedDataParallel
from distgrad.nn.utils import clip_grad_norm_
from distgrad.utils.checkpoint import checkpoint

CASES = int(os.environ.get("FUZZ_CASES", "48"))
FIRST = int(os.environ.get("FUZZ_FIRST", "0"))
SHAPES = [(), (1,), (0,), (7,), (3, 5), (64,), (130,), (2, 0, 3), (9, 11), (2, 3, 4), (300,)]
STEPS = 3


@dataclass(frozen=True)
class Case:
    """One way to train; everything random in it comes from ``seed``."""

    seed: int
    shapes: tuple[tuple[int, ...], ...]
    turned: tuple[bool, ...]  # parameters that are no contiguous arrays
    dtypes: tuple[str, ...]
    idle: tuple[bool, ...]  # used by nobody
    shards: int
    micro: int  # backwards for each shard
    forwards: int  # for each backward
    reduction: str
    cap: float
    clip: float | None
    rule: str
    recompute: bool


def case_of(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 9))
    picks = rng.integers(0, len(SHAPES), n)
    double = rng.random() < 0.5
    shards = int(rng.integers(1, 7))
    forwards = int(rng.choice([1, 1, 2]))
    return Case(
        seed=seed,
        shapes=tuple(SHAPES[i] for i in picks),
        turned=tuple(bool(b) for b in rng.random(n) < 0.3),
        dtypes=tuple("float64" if double or b else "float32" for b in rng.random(n) < 0.2),
        idle=tuple([False, *(bool(b) for b in rng.random(n - 1) < 0.25)]),
        shards=shards,
        micro=int(rng.choice([1, 1, 2, 3])),
        forwards=forwards,
        reduction="sum" if forwards > 1 else str(rng.choice(["mean", "sum"])),
        cap=float(rng.choice([1e-5, 3e-4, 1e-3, 25])),
        clip=float(rng.choice([0.05, 1.0])) if rng.random() < 0.5 else None,
        rule=str(rng.choice(["SGD", "AdamW"])),
        recompute=bool(rng.random() < 0.3),
    )


class Net(dg.nn.Module):
    """Adds a term for each parameter in use, in an order that the caller gives."""

    def __init__(self, case):
        super().__init__()
        rng = np.random.default_rng([case.seed, 1])
        self.recompute, self.dtypes, self.factors = case.recompute, case.dtypes, []
        for i, (shape, dtype) in enumerate(zip(case.shapes, case.dtypes, strict=True)):
            values = dg.from_numpy(np.asarray(rng.standard_normal(shape), dtype))
            if case.turned[i] and len(shape) > 1:
                values = values.transpose(0, -1)
            self.register_parameter(f"p{i}", dg.nn.Parameter(values))
            factor = np.asarray(rng.standard_normal(tuple(values.shape)), dtype)
            self.factors.append(dg.from_numpy(factor))

    def term(self, i, x):
        p = getattr(self, f"p{i}")
        inner = (p * self.factors[i]).sum() + (p * p).mean() if p.numel() else p.sum()
        return (x[:, 0] * inner + x[:, 1]).tanh()

    def forward(self, x, order):
        total = 0
        for i in order:
            own = x.to(getattr(dg, self.dtypes[i]))
            if self.recompute and i % 2:
                term = checkpoint(self.term, i, own, use_reentrant=False)
            else:
                term = self.term(i, own)
            total = total + term.double()
        return total


def inputs(case, step, shard, micro, forward):
    """Return the rows of one forward, and which parameters it uses in which order."""
    rng = np.random.default_rng([case.seed, 2, step, shard, micro, forward])
    rows = int(rng.integers(1, 5))
    usable = [i for i, idle in enumerate(case.idle) if not idle]
    used = [i for i in usable if i == 0 or rng.random() < 0.7]
    used = [i for i in used if rng.random() < 0.9] or used  # also the first is missing at times
    used += [i for i in used if rng.random() < 0.15]  # shared: used twice
    return dg.from_numpy(rng.standard_normal((rows, 2))), [int(i) for i in rng.permutation(used)]


def backward(case, net, step, shard, micro):
    terms = []
    for forward in range(case.forwards):
        x, order = inputs(case, step, shard, micro, forward)
        terms.append(net(x, order))
    total = dg.cat(terms)
    (total.sum() if case.reduction == "sum" else total.mean()).backward()


def optimizer_of(case, params, zero):
    make = getattr(dg.optim, case.rule)
    options = {"lr": 0.05, "momentum": 0.9} if case.rule == "SGD" else {"lr": 0.05}
    return ZeroRedundancyOptimizer(params, make, **options) if zero else make(params, **options)


def finish(case, params, optimizer):
    if case.clip is not None:
        clip_grad_norm_(params, case.clip)
    optimizer.step()
    optimizer.zero_grad()


def train(group, case, zero, determinism="world", steps=None, hook=None):
    """Return the weights on a rank, which makes as many steps as ``steps`` says, or all."""
    net = Net(case)
    ddp = DistributedDataParallel(
        net, process_group=group, reduction=case.reduction, determinism=determinism,
        bucket_cap_mb=case.cap, shards=case.shards if determinism == "world" else None,
        shard_gradients=zero == 2, check_every=1 if steps is None else None,
    )  # fmt: skip
    if hook is not None:
        ddp.register_comm_hook(None, hook)
    optimizer = optimizer_of(case, net.parameters(), zero)
    with nullcontext() if steps is None else ddp.join():
        for step in range(STEPS if steps is None else steps[group.rank]):
            for shard in ddp.local_shards:
                for micro in range(case.micro):
                    last = micro == case.micro - 1
                    with nullcontext() if last else ddp.no_sync():
                        backward(case, ddp, step, shard, micro)
            finish(case, list(net.parameters()), optimizer)
    return weights(net)


def plain(case, shards, steps=None):
    """Return the weights of one loop over everything, without any of the machinery."""
    net = Net(case)
    optimizer = optimizer_of(case, net.parameters(), 0)
    for step in range(STEPS if steps is None else max(steps)):
        terms = []
        for shard in range(shards):
            if steps is not None and step >= steps[shard]:
                continue
            mean_of = []
            for micro in range(case.micro):
                for forward in range(case.forwards):
                    mean_of.append(net(*inputs(case, step, shard, micro, forward)))
            # With "mean" a rank's gradient is the sum of its backwards' means, weighed by its rows.
            rows = sum(len(term) for term in mean_of)
            scaled = [t * rows / len(t) if case.reduction == "mean" else t for t in mean_of]
            terms.append((dg.cat(scaled).sum(), rows))
        (sum(t for t, _ in terms) / sum(rows for _, rows in terms)).backward()
        finish(case, list(net.parameters()), optimizer)
    return weights(net)


def weights(net):
    return [p.numpy(force=True).copy() for p in net.parameters()]


def assert_same(got, want, case):
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        np.testing.assert_array_equal(a, b, f"parameter {i} of {case}")


def assert_close(got, want, case):
    """Sums in another order: exact enough for AdamW, whose first steps are signs, in float64."""
    for i, (a, b, dtype) in enumerate(zip(got, want, case.dtypes, strict=True)):
        tolerance = 1e-8 if dtype == "float64" else 2e-4 if case.rule == "SGD" else 2e-2
        np.testing.assert_allclose(a, b, tolerance, tolerance, err_msg=f"parameter {i} of {case}")


@pytest.mark.parametrize("seed", range(FIRST, FIRST + CASES))
def test_any_number_of_ranks_has_the_bits_of_one_and_the_weights_of_a_plain_loop(seed):
    case, rng = case_of(seed), np.random.default_rng([seed, 3])
    (one,) = run_ranks(1, train, case, 0)
    assert_close(one, plain(case, case.shards), case)
    for zero in rng.permutation(3)[:2]:
        size = int(rng.integers(1, min(case.shards, 5) + 1))
        per_host = int(rng.choice([d for d in range(1, size + 1) if size % d == 0]))
        for got in run_ranks(size, train, case, int(zero), ranks_per_host=per_host):
            assert_same(got, one, case)
    size, determinism = int(rng.integers(1, 6)), str(rng.choice(["run", "off"]))
    hook = allreduce_hook if rng.random() < 0.3 else None
    results = run_ranks(size, train, case, int(rng.integers(0, 3)), determinism, None, hook)
    assert_close(results[0], plain(case, size), case)
    for got in results[1:]:
        assert_same(got, results[0], case)


@pytest.mark.parametrize("seed", range(FIRST, FIRST + CASES // 3))
def test_ranks_with_different_numbers_of_steps_train_on_the_samples_that_are_there(seed):
    """The last rank goes on longest, and all end with its weights."""
    rng = np.random.default_rng([seed, 4])
    case = replace(case_of(seed), forwards=1)  # one backward belongs to each forward
    steps = sorted(int(n) for n in rng.integers(0, STEPS + 1, int(rng.integers(2, 5))))
    want = plain(case, len(steps), steps)
    for zero in range(3 if case.clip is None else 2):  # clipping is a collective of ZeRO-2
        for got in run_ranks(len(steps), train, case, zero, "run", steps):
            assert_close(got, want, case)
