"""Join on ranks that are threads: different numbers of batches, and nothing hangs."""

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

import distgrad as dg
from distgrad.distributed import find_mpirun
from distgrad.distributed.algorithms.ddp_comm_hooks import default_hooks
from distgrad.distributed.algorithms.join import Join, Joinable, JoinHook
from distgrad.distributed.threads import run_ranks
from distgrad.errors import ArgumentError, DistributedError
from distgrad.nn.parallel import DistributedDataParallel
from distgrad.nn.utils import clip_grad_norm_
from distgrad.optim.zero import ZeroRedundancyOptimizer

# batches of each rank: sizes in samples
PLANS = {
    "one without any": [[3, 2, 4], []],
    "staircase": [[2], [2, 3], [1, 4, 2, 5], [3, 3, 3]],
    "even": [[2, 2], [3, 1]],
    "rank 0 goes first": [[4], [2, 2, 2, 2, 2], [1, 1]],
}


def model():
    rng = np.random.default_rng(0)
    net = dg.nn.Sequential(dg.nn.Linear(5, 7), dg.nn.Tanh(), dg.nn.Linear(7, 3)).double()
    for p in net.parameters():
        p.data.copy_(dg.from_numpy(rng.standard_normal(p.shape)))
    return net


def batch(rank, number, n):
    rng = np.random.default_rng([rank, number])
    return rng.standard_normal((n, 5)), rng.standard_normal((n, 3))


def loss(net, x, y):
    return ((net(dg.from_numpy(x)) - dg.from_numpy(y)) ** 2).sum(1).mean()


def weights(net):
    return np.concatenate([p.numpy(force=True).ravel() for p in net.parameters()])


def momentum(params):
    return dg.optim.SGD(params, lr=0.1, momentum=0.9)


def alone(plan, make=momentum, loops=1):
    """The same steps on one rank, each on the samples that all ranks had together."""
    net = model()
    optimizer = make(net.parameters())
    for number in list(range(max(map(len, plan)))) * loops:
        parts = [batch(r, number, own[number]) for r, own in enumerate(plan) if number < len(own)]
        optimizer.zero_grad()
        loss(net, *map(np.concatenate, zip(*parts, strict=True))).backward()
        optimizer.step()
    return weights(net)


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("hook", [False, True])
@pytest.mark.parametrize("cap", [None, 1e-5])
def test_each_step_is_on_the_samples_that_were_there(name, hook, cap):
    plan = PLANS[name]

    def body(group):
        ddp = DistributedDataParallel(model(), process_group=group, bucket_cap_mb=cap)
        if hook:
            ddp.register_comm_hook(None, default_hooks.allreduce_hook)
        optimizer = dg.optim.SGD(ddp.parameters(), lr=0.1, momentum=0.9)
        with ddp.join():
            for number, n in enumerate(plan[group.rank]):
                optimizer.zero_grad()
                loss(ddp, *batch(group.rank, number, n)).backward()
                optimizer.step()
        before = group.channel("control").sequence
        ddp(dg.ones(2, 5, dtype=dg.float64))  # the block is over: nobody is told
        assert group.channel("control").sequence == before
        return weights(ddp.module)

    results = run_ranks(len(plan), body)
    np.testing.assert_allclose(results[0], alone(plan), rtol=1e-10)
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


def test_accumulation_without_sync_and_what_is_left_of_it():
    """Rank 0 has 2 + 2 batches; rank 1 stops in the middle of its second pair."""
    plan = [[1, 1, 1, 1], [1, 1, 1]]

    def body(group):
        ddp = DistributedDataParallel(model(), process_group=group, reduction="sum")
        sums = []
        with ddp.join():
            for number, n in enumerate(plan[group.rank]):
                if number % 2 == 0:
                    ddp.zero_grad()
                    with ddp.no_sync():
                        loss(ddp, *batch(group.rank, number, n)).backward()
                else:
                    loss(ddp, *batch(group.rank, number, n)).backward()
                    sums.append([p.grad.numpy().copy() for p in ddp.module.parameters()])
        return sums

    net = model()
    parts = [batch(0, 2, 1), batch(0, 3, 1), batch(1, 2, 1)]  # the second pair, all three
    loss(net, *map(np.concatenate, zip(*parts, strict=True))).backward()
    for got, p in zip(run_ranks(2, body)[0][1], net.parameters(), strict=True):
        np.testing.assert_allclose(got, p.grad.numpy(), rtol=1e-12)


def test_buffers_are_those_of_a_rank_that_trains():
    def body(group):
        net = dg.nn.Sequential(dg.nn.BatchNorm1d(2, momentum=1.0), dg.nn.Linear(2, 1))
        ddp = DistributedDataParallel(net, process_group=group)
        seen = []
        with ddp.join():
            for i in range(1 + group.rank):
                x = dg.arange(8.0).reshape(4, 2) * (1 + group.rank + 10 * i)
                ddp(x).sum().backward()
                seen.append(float(net[0].running_mean[0]))
        return seen, [b.tolist() for b in net.buffers()]

    results = run_ranks(3, body)
    assert results[0][1] == results[1][1] == results[2][1]
    assert results[2][1][0] == [3 * 23.0, 4 * 23.0]  # what rank 2 saw last


def test_nobody_goes_on_when_one_has_left():
    def body(group):
        ddp = DistributedDataParallel(model(), process_group=group)
        made = 0
        with (
            pytest.raises(DistributedError, match="at least one rank that exhausted inputs"),
            ddp.join(throw_on_early_termination=True),
        ):
            for number in range(2 + group.rank):
                loss(ddp, *batch(group.rank, number, 2)).backward()
                made += 1
        return made

    assert run_ranks(3, body) == [2, 2, 2]


def test_synchronised_batch_norm_needs_all_ranks():
    def body(group, throw):
        net = dg.nn.Sequential(dg.nn.Linear(5, 3), dg.nn.SyncBatchNorm(3)).double()
        ddp = DistributedDataParallel(net, process_group=group)
        with ddp.join(throw_on_early_termination=throw):
            for number in range(1 + group.rank):
                loss(ddp, *batch(group.rank, number, 4)).backward()

    with pytest.raises(DistributedError, match="exhausted inputs"):
        run_ranks(2, body, True)
    with pytest.raises(ArgumentError, match="throw_on_early_termination=True"):
        run_ranks(2, body, False)


def test_an_exception_inside_ends_every_rank():
    def body(group):
        ddp = DistributedDataParallel(model(), process_group=group)
        with ddp.join():
            for number in range(1 + group.rank):
                loss(ddp, *batch(group.rank, number, 2)).backward()
                if number == 1:
                    raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        run_ranks(3, body, timeout_s=20)


FAILS = """
import distgrad as dg
from distgrad.nn.parallel import DistributedDataParallel

group = dg.distributed.init_process_group("mpi")
ddp = DistributedDataParallel(dg.nn.Linear(2, 1))
with ddp.join():
    for i in range(2 * group.rank):
        ddp(dg.ones(3, 2)).sum().backward()
        if i == 1:
            raise ZeroDivisionError("in the block")
"""


def test_a_rank_that_raises_ends_the_job_of_ranks_that_shadow_it(tmp_path):
    command = find_mpirun()
    if command is None:
        pytest.skip("mpirun missing; pip install 'distgrad[mpich]'")
    script = tmp_path / "script.py"
    script.write_text(FAILS)
    root = str(Path(__file__).parent.parent)
    environ = {
        "PYTHONPATH": root, "OMP_NUM_THREADS": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": "node:oversubscribe",
    }  # fmt: skip
    done = subprocess.run(
        [command, "-n", "2", sys.executable, str(script)],
        capture_output=True, text=True, errors="replace", timeout=60, env={**os.environ, **environ},
    )  # fmt: skip
    assert done.returncode == 1
    assert "[rank 1] ZeroDivisionError: in the block" in done.stderr + done.stdout


def test_a_disabled_block_is_a_plain_one():
    def body(group):
        ddp = DistributedDataParallel(model(), process_group=group)
        before = group.channel("control").sequence
        with ddp.join(enable=False):
            ddp(dg.ones(2, 5, dtype=dg.float64))
        return group.channel("control").sequence - before

    assert run_ranks(2, body) == [0, 0]


class Counter(Joinable):
    """Adds up how many ranks train in each iteration."""

    def __init__(self, group, log):
        self.group, self.log, self.options = group, log, None

    @property
    def join_device(self):
        return dg.device("cpu")

    @property
    def join_process_group(self):
        return self.group

    def join_hook(self, **options):
        self.options = options
        return CounterHook(self)

    def count(self, here):
        Join.notify_join_context(self)
        self.add(here)

    def add(self, here):
        total = np.array([here])
        self.group.all_reduce(total)
        self.log.append(int(total[0]))


class CounterHook(JoinHook):
    def __init__(self, counter):
        self.counter = counter

    def main_hook(self):
        self.counter.add(0)

    def post_hook(self, is_last_joiner):
        self.counter.log.append(is_last_joiner)


def test_any_joinable_shadows_its_own_collectives():
    def body(group):
        counter = Counter(group, [])
        with Join([counter], factor=3):
            for _ in range(group.rank):
                counter.count(1)
        counter.count(1)  # outside, nobody is told
        return counter.log, counter.options

    for rank, (log, options) in enumerate(run_ranks(3, body)):
        assert log == [2, 1, rank == 2, 3]
        assert options == {"factor": 3}


@pytest.mark.parametrize("model_first", [True, False])
def test_several_joinables_go_in_their_order(model_first):
    plan = PLANS["staircase"]

    def body(group):
        ddp = DistributedDataParallel(model(), process_group=group)
        counter = Counter(group, [])
        optimizer = dg.optim.SGD(ddp.parameters(), lr=0.1, momentum=0.9)
        both = [ddp, counter] if model_first else [counter, ddp]
        with Join(both):
            for number, n in enumerate(plan[group.rank]):
                optimizer.zero_grad()
                if not model_first:
                    counter.count(1)
                output = loss(ddp, *batch(group.rank, number, n))
                output.backward()
                if model_first:
                    counter.count(1)
                optimizer.step()
        return weights(ddp.module), counter.log

    for rank, (got, log) in enumerate(run_ranks(4, body)):
        np.testing.assert_allclose(got, alone(plan), rtol=1e-10)
        assert log == [4, 3, 2, 1, rank == 2]


KINDS = {
    "ZeRO-1": {},
    "ZeRO-1, overlapping": {"overlap_with_ddp": True},
    "ZeRO-2": {"shard_gradients": True},
}


def sharded_run(plan, ways, kind, accumulate=1, loops=1):
    """Return each rank's weights after a loop in a block of ``ways``, "ddp", "both" or "turned"."""

    def body(group):
        sharded = kind is not None
        options = dict(KINDS[kind]) if sharded else {}
        level = {k: options.pop(k) for k in ("shard_gradients",) if k in options}
        ddp = DistributedDataParallel(model(), process_group=group, bucket_cap_mb=1e-4, **level)
        make = dg.optim.Adam
        optimizer = (
            ZeroRedundancyOptimizer(ddp.parameters(), make, lr=0.1, **options)
            if sharded
            else make(ddp.parameters(), lr=0.1)
        )
        for _ in range(loops):
            block = {
                "ddp": ddp.join,
                "both": lambda: Join([ddp, optimizer]),
                "turned": lambda: Join([optimizer, ddp]),
            }[ways]
            with block():
                for number, n in enumerate(plan[group.rank]):
                    whole = (number + 1) % accumulate == 0
                    with nullcontext() if whole else ddp.no_sync():
                        loss(ddp, *batch(group.rank, number, n)).backward()
                    if whole:
                        optimizer.step()
                        optimizer.zero_grad()
        return weights(ddp.module)

    return run_ranks(len(plan), body, timeout_s=20)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ways", ["ddp", "both", "turned"])
def test_a_sharded_optimizer_goes_on_with_the_parts_of_ranks_that_have_left(ways, kind):
    plan = PLANS["staircase"]
    plain = sharded_run(plan, "ddp", None)
    for got, want in zip(sharded_run(plan, ways, kind), plain, strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_block_begins_with_the_state_of_the_first(kind):
    """Without sharding, the state of ranks that had left is old there."""
    plan = PLANS["staircase"]
    want = alone(plan, lambda params: dg.optim.Adam(params, lr=0.1), loops=2)
    for got in sharded_run(plan, "ddp", kind, loops=2):
        np.testing.assert_allclose(got, want, rtol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sharded_optimizer_that_steps_after_several_forwards_is_shadowed_as_often(kind):
    plan = [[2, 1, 3, 2, 1, 1], [1, 2], [1, 1, 2, 2]]
    plain = sharded_run(plan, "ddp", None, accumulate=2)
    for got, want in zip(sharded_run(plan, "ddp", kind, accumulate=2), plain, strict=True):
        np.testing.assert_array_equal(got, want)


def test_what_was_done_to_gradients_reaches_the_parts_of_ranks_that_have_left():
    plan = PLANS["staircase"]

    def body(group, sharded):
        ddp = DistributedDataParallel(model(), process_group=group)
        params, options = list(ddp.parameters()), {"lr": 0.1}
        optimizer = (
            ZeroRedundancyOptimizer(params, dg.optim.SGD, **options)
            if sharded
            else dg.optim.SGD(params, **options)
        )
        with ddp.join():
            for number, n in enumerate(plan[group.rank]):
                optimizer.zero_grad()
                loss(ddp, *batch(group.rank, number, n)).backward()
                clip_grad_norm_(params, 0.1)
                params[0].grad *= 3
                optimizer.step()
        return weights(ddp.module)

    for got, want in zip(run_ranks(4, body, True), run_ranks(4, body, False), strict=True):
        np.testing.assert_array_equal(got, want)


def test_clipping_of_gradients_kept_by_owners_is_refused_where_ranks_have_left():
    def body(group):
        ddp = DistributedDataParallel(model(), process_group=group, shard_gradients=True)
        optimizer = ZeroRedundancyOptimizer(ddp.parameters(), dg.optim.SGD, lr=0.1)
        with ddp.join():
            for number in range(1 + group.rank):
                loss(ddp, *batch(group.rank, number, 2)).backward()
                clip_grad_norm_(ddp.parameters(), 0.1)
                optimizer.step()
                optimizer.zero_grad()

    with pytest.raises(DistributedError, match="rank 1 differs from rank 0"):
        run_ranks(3, body, timeout_s=20)


def test_ranks_at_different_joinables_are_told_so():
    def body(group):
        first, second = Counter(group, []), Counter(group, [])
        with Join([first, second]):
            (second if group.rank == 2 else first).count(1)

    with pytest.raises(DistributedError, match=r"rank 1: Counter \[0\], rank 2: Counter \[1\]"):
        run_ranks(3, body)


def test_the_block_follows_the_last_optimizer_of_a_parameter():
    ddp = DistributedDataParallel(model())
    first = ZeroRedundancyOptimizer(ddp.parameters(), dg.optim.SGD, lr=0.1)
    head, *rest = ddp.parameters()
    assert ddp.reducer.followers == [first]
    second = ZeroRedundancyOptimizer([head], dg.optim.SGD, lr=0.1)
    third = ZeroRedundancyOptimizer(rest, dg.optim.SGD, lr=0.1)
    assert ddp.reducer.followers == [second, third]
    assert third.join_device == ddp.join_device == dg.device("cpu")


def test_what_cannot_be_joined_is_refused():
    with pytest.raises(ArgumentError, match="at least one joinable"):
        Join([])
    group, other = dg.distributed.local_group(), dg.distributed.local_group()
    with pytest.raises(ArgumentError, match="multiple process groups"):
        Join([Counter(group, []), Counter(other, [])])
    ddp = DistributedDataParallel(model(), determinism="world", shards=2)
    with pytest.raises(ArgumentError, match="same number of steps"):
        ddp.join()
