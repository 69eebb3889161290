"""DistributedDataParallel on ranks that are threads: exact means, views, unused parameters."""

import numpy as np
import pytest

import distgrad as dg
from distgrad.distributed.bucket import Tail, plan_buckets
from distgrad.distributed.threads import run_ranks
from distgrad.errors import ArgumentError, DistributedError, GradError
from distgrad.nn.parallel import DistributedDataParallel

SIZES = (1, 2, 3, 4)


def model(seed=0):
    rng = np.random.default_rng(seed)
    net = dg.nn.Sequential(dg.nn.Linear(5, 7), dg.nn.Tanh(), dg.nn.Linear(7, 3)).double()
    for p in net.parameters():
        p.data.copy_(dg.from_numpy(rng.standard_normal(p.shape)))
    return net


def data(n):
    rng = np.random.default_rng(1)
    return rng.standard_normal((n, 5)), rng.standard_normal((n, 3))


def reference(n, reduction="mean"):
    net, (x, y) = model(), data(n)
    loss = ((net(dg.from_numpy(x)) - dg.from_numpy(y)) ** 2).sum(1)
    loss.mean().backward()
    return [p.grad.numpy() for p in net.parameters()]


def parts(n, rank, size):
    """Uneven parts: rank r gets about r + 1 shares."""
    cuts = np.cumsum([0, *range(1, size + 1)]) * n // sum(range(1, size + 1))
    x, y = data(n)
    return x[cuts[rank] : cuts[rank + 1]], y[cuts[rank] : cuts[rank + 1]]


def step(ddp, x, y, reduction):
    loss = ((ddp(dg.from_numpy(x)) - dg.from_numpy(y)) ** 2).sum(1)
    (loss.mean() if reduction == "mean" else loss.sum()).backward()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("cap", [None, 1e-5])
def test_uneven_parts_give_the_gradient_of_the_big_batch(size, reduction, cap):
    def body(group):
        ddp = DistributedDataParallel(
            model(seed=group.rank), process_group=group, bucket_cap_mb=cap, reduction=reduction
        )
        ddp.module.load_state_dict(model().state_dict())
        step(ddp, *parts(20, group.rank, size), reduction)
        return [p.grad.numpy().copy() for p in ddp.module.parameters()]

    for grads in run_ranks(size, body):
        for got, want in zip(grads, reference(20), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("size", SIZES)
def test_all_ranks_start_from_rank_0_and_get_the_same_bits(size):
    def body(group):
        ddp = DistributedDataParallel(model(seed=group.rank), process_group=group)
        step(ddp, *parts(17, group.rank, size), "mean")
        return np.concatenate(
            [np.concatenate([p.numpy(force=True).ravel(), p.grad.numpy().ravel()])
             for p in ddp.module.parameters()]
        )  # fmt: skip

    results = run_ranks(size, body)
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


@pytest.mark.parametrize("size", [1, 3])
def test_accumulation_communicates_only_in_the_last_backward(size):
    def body(group):
        ddp = DistributedDataParallel(model(), process_group=group, reduction="sum")
        x, y = parts(24, group.rank, size)
        before = group.channel("buckets").sequence
        with ddp.no_sync():
            for i in range(len(x) - 1):
                step(ddp, x[i : i + 1], y[i : i + 1], "sum")
        assert group.channel("buckets").sequence == before
        step(ddp, x[-1:], y[-1:], "sum")
        assert size == 1 or group.channel("buckets").sequence > before
        return [p.grad.numpy().copy() for p in ddp.module.parameters()]

    for grads in run_ranks(size, body):
        for got, want in zip(grads, reference(24), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-15)


def test_gradients_are_views_of_the_buckets_and_stay_so():
    ddp = DistributedDataParallel(model())
    bucket = ddp.reducer.buckets[0]
    x, y = data(4)
    for set_to_none in (True, False):
        step(ddp, x, y, "mean")
        for p in ddp.module.parameters():
            assert np.shares_memory(p.grad.array, bucket.flat)
            assert np.shares_memory(p.array, bucket.values)
        ddp.module.zero_grad(set_to_none=set_to_none)
    step(ddp, x, y, "mean")
    for got, want in zip(ddp.module.parameters(), reference(4), strict=True):
        np.testing.assert_allclose(got.grad.numpy(), want, rtol=1e-12)


class Branches(dg.nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (dg.nn.Linear(2, 1, bias=False) for _ in range(3))

    def forward(self, x, names):
        return sum(getattr(self, n)(x) for n in names)


@pytest.mark.parametrize("cap", [None, 1e-6])
def test_parameters_unused_everywhere_keep_none_and_others_get_the_mean(cap):
    def body(group):
        dg.manual_seed(0)
        ddp = DistributedDataParallel(Branches(), process_group=group, bucket_cap_mb=cap)
        ddp(dg.ones(2, 2), "ab" if group.rank == 0 else "a").mean().backward()
        m = ddp.module
        return m.a.weight.grad.tolist(), m.b.weight.grad.tolist(), m.c.weight.grad

    for a, b, c in run_ranks(2, body):
        assert a == [[1.0, 1.0]]
        assert b == [[0.5, 0.5]]
        assert c is None


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_a_rank_without_samples_has_no_weight():
    def scaled(net, module, x, y):  # the mean of nothing is nan, and so is the gradient of a factor
        loss = ((net(dg.from_numpy(x)) - dg.from_numpy(y)) ** 2).sum(1).mean()
        (loss * module[0].bias.square().sum()).backward()
        return [p.grad.numpy().copy() for p in module.parameters()]

    def body(group):
        ddp = DistributedDataParallel(model(), process_group=group)
        x, y = data(2)
        mine = slice(group.rank, group.rank + 1)
        return scaled(ddp, ddp.module, x[mine], y[mine])

    net = model()
    wanted = scaled(net, net, *data(2))
    for grads in run_ranks(4, body):
        for got, want in zip(grads, wanted, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-11)


def test_several_backwards_add_up_in_the_mean():
    def body(group):
        ddp = DistributedDataParallel(model(), process_group=group)
        x, y = data(8)
        mine = slice(group.rank * 4, group.rank * 4 + 4)
        step(ddp, x[mine], y[mine], "mean")
        step(ddp, x[mine], y[mine], "mean")
        return [p.grad.numpy().copy() for p in ddp.module.parameters()]

    for grads in run_ranks(2, body):
        for got, want in zip(grads, reference(8), strict=True):
            np.testing.assert_allclose(got, 2 * want, rtol=1e-12)


def test_sums_are_not_added_to_means():
    ddp = DistributedDataParallel(model(), reduction="sum")
    x, y = data(4)
    step(ddp, x, y, "sum")
    with pytest.raises(GradError, match="already reduced to means"):
        step(ddp, x, y, "sum")
    ddp.zero_grad()
    step(ddp, x, y, "sum")


def test_different_models_are_named_on_every_rank():
    def body(group):
        width = 7 if group.rank != 1 else 8
        try:
            DistributedDataParallel(dg.nn.Linear(5, width), process_group=group)
        except DistributedError as error:
            return str(error)
        return ""

    texts = run_ranks(3, body)
    assert len(set(texts)) == 1
    assert "rank 1 differs from rank 0" in texts[0]
    assert "weight float32[8, 5]" in texts[0]


def test_buffers_follow_rank_0():
    def body(group):
        net = dg.nn.BatchNorm1d(3)
        ddp = DistributedDataParallel(net, process_group=group)
        rng = np.random.default_rng(group.rank)
        x = dg.from_numpy(rng.standard_normal((6, 3)).astype(np.float32))
        ddp(x)
        ddp(x)
        ddp(x).sum().backward()
        with dg.no_grad():
            ddp.eval()(x)
        ddp._broadcast_buffers()
        return net.running_mean.tolist(), int(net.num_batches_tracked)

    results = run_ranks(2, body)
    assert results[0] == results[1]
    assert results[0][1] == 3


def test_wrong_arguments_are_refused():
    with pytest.raises(ArgumentError, match="takes one of mean, sum"):
        DistributedDataParallel(model(), reduction="average")
    with pytest.raises(GradError, match="not needed when a module doesn't have any parameters"):
        DistributedDataParallel(dg.nn.Tanh())


def test_the_plan_goes_backward_through_the_parameters_and_keeps_dtypes_apart():
    big = dg.zeros(2**18, requires_grad=True)  # 1 MiB
    small = dg.zeros(4, requires_grad=True)
    double = dg.zeros(4, dtype=dg.float64, requires_grad=True)
    named = [("a", small), ("b", big), ("c", double), ("d", big), ("e", small)]
    assert plan_buckets(named) == [[4, 3], [2], [1, 0]] or plan_buckets(named) == [
        [4, 3], [1, 0], [2],
    ]  # fmt: skip
    assert plan_buckets(named, cap_mb=1e-9) == [[4], [3], [2], [1], [0]]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("world", [1, 3, 128])
def test_flags_and_counts_survive_the_sum_exactly(dtype, world):
    used = [[(r + i) % 3 == 0 and i != 4 for i in range(5)] for r in range(world)]
    counts = [10**9 + 7 * r for r in range(world)]
    tail = Tail(np.dtype(dtype), world, 5)

    def summed(numbers):
        total = np.zeros(tail.length, dtype)
        for rank, number in enumerate(numbers):
            part = np.zeros_like(total)
            tail.write(part, used[rank], counts[rank], number, True)
            total += part
        return tail.read(total)

    flags, count, together = summed([2**16 - 1] * world)
    assert count == sum(counts)
    assert flags == [any(u[i] for u in used) for i in range(5)]
    assert together
    assert world == 1 or not summed([7] * (world - 1) + [8])[2]


# ---------------------------------------------------------------------- determinism
SHARDS = 8


def shard_of(net, x, y, shard, ddp=None):
    """Run the backward of one eighth of the batch, with random numbers in it."""
    rows = slice(shard * len(x) // SHARDS, (shard + 1) * len(x) // SHARDS)
    out = (ddp or net)(dg.from_numpy(x[rows]).float())
    noise = dg.rand(out.shape, generator=dg.Generator().manual_seed(shard))
    ((out + noise - dg.from_numpy(y[rows]).float()) ** 2).mean().backward()


def trained(group, steps=3, cap=1e-4):
    """Return the bytes of the weights after some steps in "world" mode."""
    net = model().float()
    ddp = DistributedDataParallel(
        net, process_group=group, bucket_cap_mb=cap, determinism="world", shards=SHARDS
    )
    optimizer = dg.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    x, y = data(43)
    for _ in range(steps):
        optimizer.zero_grad()
        for shard in ddp.local_shards:
            shard_of(net, x, y, shard, ddp)
        optimizer.step()
    return b"".join(p.numpy(force=True).tobytes() for p in net.parameters())


@pytest.mark.parametrize("size", range(1, SHARDS + 1))
@pytest.mark.parametrize("per_host", [1, 2, 8])
def test_world_mode_gives_the_same_bits_on_any_number_of_ranks(size, per_host):
    want = run_ranks(1, trained)[0]
    got = run_ranks(size, trained, ranks_per_host=min(per_host, size))
    assert got == [want] * size


def test_world_mode_adds_in_the_order_of_the_tree():
    net = model().float()
    x, y = data(43)
    leaves = []
    for shard in range(SHARDS):
        net.zero_grad()
        shard_of(net, x, y, shard)
        rows = (shard + 1) * 43 // SHARDS - shard * 43 // SHARDS
        leaves.append(net[0].weight.grad.numpy() * np.float32(rows))
    while len(leaves) > 1:
        leaves = [a + b for a, b in zip(leaves[::2], leaves[1::2], strict=True)]

    def body(group):
        ddp = DistributedDataParallel(
            model().float(), process_group=group, determinism="world", shards=SHARDS
        )
        for shard in ddp.local_shards:
            shard_of(None, x, y, shard, ddp)
        return ddp.module[0].weight.grad.numpy().copy()

    for grad in run_ranks(3, body):
        np.testing.assert_array_equal(grad, leaves[0] / np.float32(43))


@pytest.mark.parametrize("determinism", ["off", "run", "world"])
def test_buckets_may_be_full_in_another_order_on_each_rank(determinism):
    """Random orders, unused parameters and sizes: every rank gets the mean over the big batch."""
    shapes = [(3,), (2, 5), (1,), (7,), (4, 2), (6,)]

    def body(group, seed):
        rng = np.random.default_rng([seed, group.rank])
        names = dg.nn.ParameterList([dg.nn.Parameter(dg.ones(*s)) for s in shapes])

        class Any(dg.nn.Module):
            def __init__(self):
                super().__init__()
                self.weights = names

            def forward(self, x, order):
                out = x.sum()
                for i in order:  # the gradient of the last one comes first
                    out = out + (self.weights[i] * (i + 1) * x.sum()).sum()
                return out

        ddp = DistributedDataParallel(
            Any(), process_group=group, bucket_cap_mb=1e-6, determinism=determinism
        )
        for _ in range(3):
            ddp.zero_grad()
            order = rng.permutation(len(shapes))[: rng.integers(1, len(shapes) + 1)]
            ddp(dg.ones(1 + group.rank), order).backward()
            used = group.all_gather_object([int(i) for i in order])
            weights = [1 + r for r in range(group.size)]
            for i, w in enumerate(names):
                ranks = [r for r in range(group.size) if i in used[r]]
                if not ranks:
                    assert w.grad is None
                    continue
                want = sum(weights[r] ** 2 for r in ranks) * (i + 1) / sum(weights)
                np.testing.assert_allclose(w.grad.numpy(), want, rtol=1e-6)

    for seed in range(5):
        run_ranks(2 + seed % 3, body, seed)


def test_ranks_that_lost_step_all_raise_the_same_message():
    def body(group):
        ddp = DistributedDataParallel(model(), process_group=group)
        x, y = data(4)
        if group.rank == 1:
            ddp.reducer.reductions += 1  # as if another rank had left out a backward
        with pytest.raises(DistributedError) as caught:
            step(ddp, x, y, "mean")
        return str(caught.value)

    first, *others = run_ranks(3, body)
    assert "rank 1: reductions before this backward: 1" in first
    assert all(text == first for text in others)


def test_world_mode_refuses_fewer_shards_than_ranks_and_shards_without_it():
    def body(group, **options):
        DistributedDataParallel(model(), process_group=group, **options)

    with pytest.raises(ArgumentError, match="a rank would have no shard"):
        run_ranks(3, lambda g: body(g, determinism="world", shards=2))
    with pytest.raises(ArgumentError, match="shards belong to determinism='world'"):
        run_ranks(1, lambda g: body(g, shards=2))
    with pytest.raises(ArgumentError, match="did you mean world"):
        run_ranks(1, lambda g: body(g, determinism="wold"))


class Crossed(dg.nn.Module):
    """Two layers, registered the other way round than they are used."""

    def __init__(self):
        super().__init__()
        self.late, self.early = (dg.nn.Linear(4, 4, bias=False) for _ in range(2))
        for p in self.parameters():
            dg.nn.init.constant_(p, 0.5)

    def forward(self, x):
        return self.late(self.early(x).tanh())


def three_steps(net, loss):
    """Return the gradients of three steps."""
    optimizer = dg.optim.AdamW(net.parameters(), lr=0.1)
    grads = []
    for _ in range(3):
        optimizer.zero_grad()
        loss().backward()
        grads += [p.grad.numpy().copy() for p in net.parameters()]
        optimizer.step()
    return grads


@pytest.mark.parametrize("size", [1, 2, 3])
def test_buckets_follow_the_order_in_which_gradients_came(size):
    def body(group):
        net = Crossed()
        ddp = DistributedDataParallel(net, process_group=group, bucket_cap_mb=1e-6)
        before = [b.names for b in ddp.reducer.buckets]
        grads = three_steps(net, lambda: ddp(dg.ones(2, 4) * (group.rank + 1)).sum())
        for b in ddp.reducer.buckets:
            assert all(np.shares_memory(p.grad.array, b.flat) for p in b.params)
            assert all(np.shares_memory(p.array, b.values) for p in b.params)
        return before, [b.names for b in ddp.reducer.buckets], ddp.reducer.version, grads

    net = Crossed()
    x = dg.cat([dg.ones(2, 4) * (r + 1) for r in range(size)])
    want = three_steps(net, lambda: net(x).sum() / size)
    for before, after, version, grads in run_ranks(size, body):
        assert before == [["early.weight"], ["late.weight"]]
        assert after == ([["late.weight"], ["early.weight"]] if size > 1 else before)
        assert version == (size > 1)
        for got, expected in zip(grads, want, strict=True):
            np.testing.assert_allclose(got, expected, rtol=2e-5)


@pytest.mark.parametrize("sharded", [False, True])
def test_weights_that_differ_are_named_on_all_ranks_at_the_next_comparison(sharded):
    said = []

    def body(group, wrong):
        ddp = DistributedDataParallel(
            model(), process_group=group, check_every=2, shard_gradients=sharded
        )
        for number in range(4):
            ddp.zero_grad()
            try:
                step(ddp, *parts(12, group.rank, 3), "mean")
            except DistributedError as error:
                said.append((number, str(error).split("\n")[0]))
                raise
            for p in ddp.parameters():
                p.data.add_(0.1)
            if wrong and group.rank == 2 and number == 1:
                ddp.module[2].weight.data[1, 3] *= 1 + 1e-15
        return True

    assert run_ranks(3, body, False) == [True] * 3
    with pytest.raises(DistributedError, match="is not the same on all ranks"):
        run_ranks(3, body, True)
    assert {number for number, _ in said} == {3}
    assert len({text for _, text in said}) == 1
    assert "in backward 4, parameter 2.weight (float64[3, 7])" in said[0][1]
    assert "rank 2 (norm" in said[0][1]


def test_a_comparison_is_made_as_often_as_asked_for():
    def body(group, every):
        ddp = DistributedDataParallel(model(), process_group=group, check_every=every)
        calls, channel = [], group.channel("control")
        for _ in range(6):
            before = channel.sequence
            step(ddp, *parts(12, group.rank, 2), "mean")
            ddp.zero_grad()
            calls.append(channel.sequence - before)
        return calls[1:]  # the first one agrees on the order of buckets

    assert run_ranks(2, body, None)[0] == [0] * 5
    assert run_ranks(2, body, 3)[0] == [0, 1, 0, 0, 1]
    with pytest.raises(ArgumentError, match="check_every=0"):
        DistributedDataParallel(model(), check_every=0)
