"""Communication hooks against NumPy models of the same mathematics."""

import math
import pickle
import threading

import numpy as np
import pytest

import distgrad as dg
from distgrad.backend.device import CPU, to_device
from distgrad.distributed.algorithms.ddp_comm_hooks import (
    DDPCommHookType,
    default_hooks,
    register_ddp_comm_hook,
)
from distgrad.distributed.algorithms.ddp_comm_hooks.debugging_hooks import noop_hook
from distgrad.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import (
    PowerSGDState,
    batched_powerSGD_hook,
    orthogonalize,
    powerSGD_hook,
)
from distgrad.distributed.algorithms.ddp_comm_hooks.quantization_hooks import (
    packed,
    quantization_perchannel_hook,
    quantization_pertensor_hook,
    unpacked,
)
from distgrad.distributed.algorithms.ddp_comm_hooks.topk_hook import TopKState, topk_hook
from distgrad.distributed.threads import run_ranks
from distgrad.errors import ArgumentError, ArgumentTypeError, DistributedError
from distgrad.futures import Future
from distgrad.nn.parallel import DistributedDataParallel
from distgrad.testing import standin

EVERY = {
    "allreduce": lambda: (None, default_hooks.allreduce_hook),
    "fp16": lambda: (None, default_hooks.fp16_compress_hook),
    "bf16": lambda: (None, default_hooks.bf16_compress_hook),
    "power": lambda: (PowerSGDState(None, 2, start_powerSGD_iter=2), powerSGD_hook),
    "batched": lambda: (PowerSGDState(None, 4, start_powerSGD_iter=2), batched_powerSGD_hook),
    "power in fp16": lambda: (
        PowerSGDState(None, 2, start_powerSGD_iter=2, orthogonalization_epsilon=1e-6),
        default_hooks.fp16_compress_wrapper(powerSGD_hook),
    ),
    "topk": lambda: (TopKState(ratio=0.2), topk_hook),
    "8 bits": lambda: (None, quantization_pertensor_hook),
    "8 bits in rows": lambda: (None, quantization_perchannel_hook),
}


def model(dtype=dg.float64, width=24):
    rng = np.random.default_rng(0)
    net = dg.nn.Sequential(dg.nn.Linear(5, width), dg.nn.Tanh(), dg.nn.Linear(width, 3)).to(dtype)
    for p in net.parameters():
        p.data.copy_(dg.from_numpy(rng.standard_normal(p.shape) / 2))
    return net


def data(n, rank=0):
    rng = np.random.default_rng(100 + rank)
    return rng.standard_normal((n, 5)), rng.standard_normal((n, 3))


def step(net, x, y, reduction="mean"):
    dtype = next(net.parameters()).dtype
    each = ((net(dg.tensor(x, dtype=dtype)) - dg.tensor(y, dtype=dtype)) ** 2).sum(1)
    (each.mean() if reduction == "mean" else each.sum()).backward()


def grads(net):
    return [p.grad.numpy().copy() for p in net.parameters()]


def wrapped(group, hook=None, dtype=dg.float64, **options):
    ddp = DistributedDataParallel(model(dtype), process_group=group, **options)
    if hook is not None:
        ddp.register_comm_hook(*hook)
    return ddp


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("determinism", ["run", "off"])
def test_allreduce_hook_is_the_plain_path_also_for_uneven_and_changing_counts(
    size, reduction, determinism
):
    def body(group):
        got = []
        for hook in (None, EVERY["allreduce"]()):
            ddp = wrapped(
                group, hook, bucket_cap_mb=1e-4, reduction=reduction, determinism=determinism
            )
            for n in (4 + group.rank, 3, 2 * group.rank + (group.size == 1)):
                ddp.zero_grad()
                x, y = data(n, group.rank)
                step(ddp, x, y, reduction)
                got.append(grads(ddp.module))
        return got[:3], got[3:]

    for plain, hooked in run_ranks(size, body):
        for a, b in zip(plain, hooked, strict=True):
            for p, q in zip(a, b, strict=True):
                np.testing.assert_allclose(p, q, rtol=1e-12, atol=1e-14)


def test_even_counts_give_the_very_bits_of_the_plain_path():
    def body(group):
        got = []
        for hook in (None, EVERY["allreduce"]()):
            ddp = wrapped(group, hook, dg.float32, bucket_cap_mb=1e-4)
            for i in range(3):
                ddp.zero_grad()
                step(ddp, *data(8, 10 * i + group.rank))
            got.append(grads(ddp.module))
        return got

    for plain, hooked in run_ranks(4, body):
        for p, q in zip(plain, hooked, strict=True):
            np.testing.assert_array_equal(p, q)


def shard_steps(ddp, shards, reduction, counts=(4, 3, 6)):
    """Return the gradients of three steps: of each step, shard i has ``n + i`` samples."""
    got = []
    for number, n in enumerate(counts):
        ddp.zero_grad()
        for shard in ddp.local_shards:
            step(ddp, *data(n + shard % 3, 10 * number + shard), reduction)
        if ddp.shard_gradients:
            pieces = [ddp.reducer.piece(p) for p in ddp.module.parameters()]
            got.append([None if p is None else p.copy() for p in pieces])
        else:
            got.append(grads(ddp.module))
    return got


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("size, shards", [(1, 3), (2, 5), (3, 4), (2, 2)])
def test_a_linear_hook_keeps_the_means_of_several_shards_and_of_owners(
    size, shards, reduction, sharded
):
    options = {"determinism": "world", "shards": shards, "reduction": reduction}

    def body(group, hook):
        ddp = wrapped(group, hook, bucket_cap_mb=1e-4, shard_gradients=sharded, **options)
        return shard_steps(ddp, shards, reduction)

    plain, hooked = run_ranks(size, body, None), run_ranks(size, body, EVERY["allreduce"]())
    for a, b in zip(plain, hooked, strict=True):
        for first, second in zip(a, b, strict=True):
            for p, q in zip(first, second, strict=True):
                if p is None:
                    assert q is None
                else:
                    np.testing.assert_allclose(p, q, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", ["fp16", "power", "topk"])
@pytest.mark.parametrize("size", [1, 2])
def test_owners_get_their_part_of_what_a_hook_makes(size, name):
    """Gradients kept by owners are those that all ranks have without, bit by bit."""

    def body(group, sharded):
        ddp = wrapped(group, EVERY[name](), dg.float32, bucket_cap_mb=1e-3, shard_gradients=sharded)
        kind = dg.distributed.optim.ZeroRedundancyOptimizer if sharded else None
        params = ddp.parameters()
        optimizer = kind(params, dg.optim.SGD, lr=0.1) if kind else dg.optim.SGD(params, lr=0.1)
        for i in range(5):
            optimizer.zero_grad()
            step(ddp, *data(8, 10 * i + group.rank))
            optimizer.step()
        return [p.numpy(force=True).copy() for p in ddp.parameters()]

    for got, want in zip(run_ranks(size, body, True), run_ranks(size, body, False), strict=True):
        for p, q in zip(got, want, strict=True):
            np.testing.assert_array_equal(p, q)


def test_a_parameter_nobody_used_has_no_gradient():
    class Branches(dg.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (dg.nn.Linear(2, 1, bias=False) for _ in range(3))

        def forward(self, x, name):
            return getattr(self, name)(x)

    def body(group):
        ddp = DistributedDataParallel(Branches(), process_group=group)
        ddp.register_comm_hook(None, default_hooks.allreduce_hook)
        for _ in range(2):
            ddp.zero_grad()
            ddp(dg.ones(2, 2), "ab"[group.rank]).sum(1).mean().backward()
        return [getattr(ddp.module, n).weight.grad for n in "abc"]

    for a, b, c in run_ranks(2, body):
        assert a.tolist() == b.tolist() == [[0.5, 0.5]]
        assert c is None


@pytest.mark.parametrize("kind, eps", [("fp16", 2**-10), ("bf16", 2**-7)])
def test_half_precision_is_the_mean_within_its_rounding(kind, eps):
    if kind == "bf16":
        pytest.importorskip("ml_dtypes")

    def body(group):
        ddp = wrapped(group, EVERY[kind](), dg.float32)
        step(ddp, *data(4, group.rank))
        local = model(dg.float32)
        step(local, *data(4, group.rank))
        return grads(ddp.module), grads(local)

    results = run_ranks(2, body)
    half = np.float16 if kind == "fp16" else dg.bfloat16.numpy
    for i, got in enumerate(results[0][0]):
        parts = [(local[i] / 2).astype(half) for _, local in results]
        np.testing.assert_array_equal(got, (parts[0] + parts[1]).astype(np.float32))
        np.testing.assert_allclose(got, sum(local[i] / 2 for _, local in results), atol=4 * eps)
        assert got.dtype == np.float32


class Given(dg.nn.Module):
    """Its gradient is what the input says, whatever the parameters are."""

    def __init__(self):
        super().__init__()
        self.weight = dg.nn.Parameter(dg.zeros(12, 10, dtype=dg.float64))
        self.bias = dg.nn.Parameter(dg.zeros(12, dtype=dg.float64))

    def forward(self, g):
        return (self.weight * g[0, :120].reshape(12, 10)).sum() + (self.bias * g[0, 120:]).sum()


def run_given(size, hook, steps):
    """Return for each step the reduced [weight, bias] and the local gradients [step][rank]."""
    given = np.random.default_rng(7).standard_normal((steps, size, 132))

    def body(group):
        net = Given()
        ddp = DistributedDataParallel(net, process_group=group)
        ddp.register_comm_hook(*hook())
        out = []
        for t in range(steps):
            ddp.zero_grad()
            ddp(dg.from_numpy(given[t, group.rank][None])).backward()
            out.append((net.weight.grad.numpy().copy(), net.bias.grad.numpy().copy()))
        return out, ddp.reducer.buckets[0].names

    results = run_ranks(size, body)
    for other, _ in results[1:]:  # the same bits on all ranks
        for a, b in zip(other, results[0][0], strict=True):
            np.testing.assert_array_equal(a[0], b[0])
            np.testing.assert_array_equal(a[1], b[1])
    return results[0][0], given, results[0][1]


def test_top_k_is_its_model():
    steps, size, ratio = 4, 3, 0.1
    got, given, names = run_given(size, lambda: (TopKState(ratio=ratio), topk_hook), steps)
    k = math.ceil(ratio * 132)
    errors = np.zeros((size, 132))
    for t in range(steps):
        if t == 1 and names != ["bias", "weight"]:  # laid out anew, so nothing is held back
            errors[...] = 0
        total = np.zeros(132)
        for rank in range(size):
            held = given[t, rank] + errors[rank]
            sent = np.argsort(-np.abs(held))[:k]
            total[sent] += held[sent]
            errors[rank] = held
            errors[rank][sent] = 0
        np.testing.assert_allclose(got[t][0].ravel(), total[:120] / size, rtol=1e-12)
        np.testing.assert_allclose(got[t][1], total[120:] / size, rtol=1e-12)


@pytest.mark.parametrize("width", [None, 16])
def test_8_bits_are_their_model(width):
    def hook():
        if width is None:
            return None, quantization_pertensor_hook
        return None, lambda group, bucket: quantization_perchannel_hook(group, bucket, width)

    got, given, _ = run_given(3, hook, 2)
    order = [*range(120, 132), *range(120)]  # the bias is first in the bucket
    for t in range(2):
        total, wrong = np.zeros(132), np.zeros(132)
        for flat in given[t][:, order]:
            rows = np.zeros(144 if width else 132)
            rows[:132] = flat
            rows = rows.reshape(-1, width or 132)
            low, high = np.minimum(rows.min(1), 0), np.maximum(rows.max(1), 0)
            scale = ((high - low) / 255)[:, None]
            total += (np.rint((rows - low[:, None]) / scale) * scale + low[:, None]).ravel()[:132]
            wrong += np.broadcast_to(scale / 2, rows.shape).ravel()[:132]
        mean = np.concatenate([got[t][1], got[t][0].ravel()])
        np.testing.assert_allclose(mean, total / 3, atol=1e-6)
        assert (np.abs(mean - given[t].mean(0)[order]) <= wrong / 3 + 1e-6).all()


def test_a_row_that_is_not_finite_is_no_number_and_the_others_are():
    flat = np.array([1, np.inf, 0, 3, 255, 0, -1, 254], np.float32)
    out = unpacked(packed(flat, 4, 2), 4, 2)
    assert np.isnan(out[:2]).all()
    np.testing.assert_array_equal(out[2:], flat[2:])


def test_no_communication_leaves_each_rank_its_own():
    def body(group):
        ddp = wrapped(group, (None, noop_hook))
        step(ddp, *data(4, group.rank))
        local = model()
        step(local, *data(4, group.rank))
        return grads(ddp.module), grads(local)

    for got, want in run_ranks(2, body):
        for p, q in zip(got, want, strict=True):
            np.testing.assert_allclose(p, q, rtol=1e-12)


@pytest.mark.parametrize("kind", DDPCommHookType)
def test_hooks_are_registered_by_name(kind):
    if kind is DDPCommHookType.BF16_COMPRESS:
        pytest.importorskip("ml_dtypes")

    def body(group):
        ddp = wrapped(group)
        register_ddp_comm_hook(kind, ddp)
        step(ddp, *data(4, 3))
        return grads(ddp.module)

    reference = model()
    step(reference, *data(4, 3))
    for p, want in zip(run_ranks(2, body)[1], grads(reference), strict=True):
        np.testing.assert_allclose(p, want, atol=0.02 * np.abs(want).max() + 0.02)


def qr(m):
    return np.linalg.qr(m)[0]


@pytest.mark.parametrize("rank_of_matrix", [1, 3])
@pytest.mark.parametrize("feedback", [True, False])
def test_power_sgd_is_its_model(rank_of_matrix, feedback):
    steps, size, start = 5, 3, 2

    def hook():
        state = PowerSGDState(
            None, rank_of_matrix, start_powerSGD_iter=start, min_compression_rate=1,
            use_error_feedback=feedback, random_seed=3,
        )  # fmt: skip
        return state, powerSGD_hook

    got, given, _ = run_given(size, hook, steps)
    errors = np.zeros((size, 12, 10))
    q = np.random.default_rng([3, start, 0]).standard_normal((10, rank_of_matrix))
    for t in range(steps):
        mean = given[t].mean(0)
        np.testing.assert_allclose(got[t][1], mean[120:], rtol=1e-12)  # a vector goes as it is
        if t < start:
            np.testing.assert_allclose(got[t][0].ravel(), mean[:120], rtol=1e-12)
            continue
        m = given[t, :, :120].reshape(size, 12, 10) + errors
        p = qr((m @ qr(q)).mean(0))
        q = (m.transpose(0, 2, 1) @ p).mean(0)
        np.testing.assert_allclose(got[t][0], p @ q.T, rtol=1e-9, atol=1e-12)
        if feedback:
            errors = m - p @ q.T


def test_power_sgd_of_full_rank_loses_nothing():
    def hook():
        state = PowerSGDState(None, 10, start_powerSGD_iter=2, min_compression_rate=0.1)
        return state, powerSGD_hook

    got, given, _ = run_given(2, hook, 4)
    for t in range(4):
        np.testing.assert_allclose(got[t][0].ravel(), given[t].mean(0)[:120], atol=1e-12)


def test_what_travels_in_full_leaves_no_error():
    states = []

    def hook():
        states.append(PowerSGDState(None, start_powerSGD_iter=2, min_compression_rate=1))
        return states[-1], powerSGD_hook

    _, _, names = run_given(2, hook, 4)
    for state in states:
        bias = slice(12) if names[0] == "bias" else slice(120, 132)
        error = state.errors._held[0][1]
        assert np.abs(error).max() > 0.1
        assert np.abs(error[bias]).max() == 0


@pytest.mark.parametrize("epsilon", [0, 1e-12])
def test_columns_become_orthonormal(epsilon):
    m = np.random.default_rng(0).standard_normal((9, 4))
    q = m.copy()
    orthogonalize(q, epsilon)
    np.testing.assert_allclose(q.T @ q, np.eye(4), atol=1e-10)
    np.testing.assert_allclose(q @ (q.T @ m), m, atol=1e-10)


@pytest.mark.parametrize("name", EVERY)
def test_a_regression_converges_with_equal_bits_on_all_ranks(name):
    def body(group):
        rng = np.random.default_rng(3)
        truth = rng.standard_normal((16, 12))
        net = dg.nn.Linear(16, 12, bias=True)
        ddp = DistributedDataParallel(net, process_group=group)
        net.weight.data.zero_()
        ddp.register_comm_hook(*EVERY[name]())
        optimizer = dg.optim.SGD(net.parameters(), lr=0.05)
        mine = np.random.default_rng(group.rank)
        for _ in range(200):
            x = mine.standard_normal((16, 16)).astype(np.float32)
            y = (x @ truth).astype(np.float32)
            optimizer.zero_grad()
            loss = ((ddp(dg.from_numpy(x)) - dg.from_numpy(y)) ** 2).sum(1).mean()
            loss.backward()
            optimizer.step()
        return float(np.abs(net.weight.numpy(force=True) - truth.T).max()), net.weight.numpy(
            force=True
        ).tobytes()

    results = run_ranks(2, body)
    assert results[0][0] < 0.05, results[0][0]
    assert results[0][1] == results[1][1]


def bytes_sent(hook, width=64):
    """Return the bytes that a rank of two sends in the fourth backward."""

    def body(group):
        channel = group.channel("buckets")
        sent, start_send = [], channel.start_send

        def counted(array, dst, tag, call):
            sent.append(array.nbytes)
            return start_send(array, dst, tag, call)

        channel.start_send = counted
        net = dg.nn.Linear(width, width)
        ddp = DistributedDataParallel(net, process_group=group)
        if hook is not None:
            ddp.register_comm_hook(*hook())
        for _ in range(4):
            sent.clear()
            ddp(dg.ones(2, width)).sum().backward()
        return sum(sent)

    return run_ranks(2, body, ranks_per_host=1)[0]


def test_fewer_bytes_are_sent():
    plain = bytes_sent(EVERY["allreduce"])
    gradients = 4 * (64 * 64 + 64)
    assert gradients <= plain <= gradients + 64
    assert bytes_sent(None) == plain
    for half in ("fp16", "bf16"):
        assert plain - bytes_sent(EVERY[half]) == pytest.approx(gradients / 2, rel=0.01)
    assert bytes_sent(lambda: (TopKState(ratio=0.01), topk_hook)) < plain / 40
    power = bytes_sent(lambda: (PowerSGDState(None, 1, start_powerSGD_iter=2), powerSGD_hook))
    assert power == 4 * (64 + 64 + 64) + plain - gradients  # P, Q and the bias


def test_the_hook_runs_in_backward_and_its_result_on_the_communication_thread():
    seen = []

    def hook(state, bucket):
        assert threading.current_thread().name.startswith("rank")
        assert bucket.buffer().numel() == sum(g.numel() for g in bucket.gradients())
        assert [p.shape for p in bucket.parameters()] == [g.shape for g in bucket.gradients()]
        first_layer = state.module[0].weight.grad is None

        def divide(done):
            here = threading.current_thread().name
            if bucket._wire.group.rank == 0:
                seen.append((bucket.index(), bucket.is_last(), first_layer, here))
            return done.value() / 2

        return bucket.all_reduce(bucket.buffer()).then(divide)

    def body(group):
        ddp = DistributedDataParallel(model(), process_group=group, bucket_cap_mb=1e-4)
        ddp.register_comm_hook(ddp, hook)
        step(ddp, *data(4, group.rank))
        return grads(ddp.module)

    a, b = run_ranks(2, body)
    reference = model()
    step(reference, *[np.concatenate(pair) for pair in zip(data(4, 0), data(4, 1), strict=True)])
    for p, q, want in zip(a, b, grads(reference), strict=True):
        np.testing.assert_array_equal(p, q)
        np.testing.assert_allclose(p, want, rtol=1e-12)
    seen.sort()
    assert [index for index, *_ in seen] == list(range(len(seen)))
    assert len(seen) > 1
    assert [last for _, last, *_ in seen] == [False] * (len(seen) - 1) + [True]
    assert seen[0][2]  # sent before the gradient of the first layer was there
    assert seen[0][3] == "distgrad-communication"


def test_mistakes_with_hooks_are_named():
    def twice(group):
        ddp = wrapped(group, EVERY["allreduce"]())
        ddp.register_comm_hook(None, default_hooks.fp16_compress_hook)

    with pytest.raises(DistributedError, match="can only be called once"):
        run_ranks(2, twice)

    def different(group):
        wrapped(group, EVERY["fp16" if group.rank else "bf16"]())

    with pytest.raises(DistributedError, match="rank 1 differs from rank 0"):
        run_ranks(2, different)

    def no_future(group):
        step(wrapped(group, (None, lambda state, bucket: bucket.buffer())), *data(3))

    with pytest.raises(ArgumentTypeError, match="and not a Future"):
        run_ranks(2, no_future)

    def wrong_length(group):
        def hook(state, bucket):
            return bucket.all_reduce(bucket.buffer()).then(lambda done: done.value()[1:])

        step(wrapped(group, (None, hook)), *data(3))

    with pytest.raises(ArgumentTypeError, match="not a tensor of"):
        run_ranks(2, wrong_length)
    with pytest.raises(ArgumentTypeError, match="must be callable"):
        wrapped(None, (None, 3))
    with pytest.raises(ArgumentError, match="above 0"):
        TopKState(ratio=0)
    with pytest.raises(ArgumentError, match=r"start_powerSGD_iter` > 1"):
        PowerSGDState(None, start_powerSGD_iter=1)


def test_an_error_in_a_callback_ends_every_rank():
    def hook(state, bucket):
        def fail(done):
            raise ZeroDivisionError("mine")

        return bucket.all_reduce(bucket.buffer()).then(fail if state else lambda f: f.value())

    def body(group):
        ddp = wrapped(group, (group.rank == 1, hook))
        for _ in range(2):
            ddp.zero_grad()
            step(ddp, *data(3))

    with pytest.raises(ZeroDivisionError, match="mine"):
        run_ranks(2, body, timeout_s=20)


def test_a_state_survives_a_checkpoint():
    state = PowerSGDState(dg.distributed.local_group(), 2)
    state.iter = 7
    again = pickle.loads(pickle.dumps(state))
    assert (again.iter, again.process_group, again.matrix_approximation_rank) == (7, None, 2)


def test_futures():
    future = Future()
    chained = future.then(lambda f: f.value() + 1)
    inner = Future()
    flattened = chained.then(lambda f: inner)
    broken = future.then(lambda f: 1 // 0)
    together = dg.futures.collect_all([future, chained])
    assert not future.done()
    with pytest.raises(DistributedError, match="no value yet"):
        future.value()
    with pytest.raises(DistributedError, match=r"no value after 0\.01 s"):
        future.wait(0.01)
    threading.Timer(0.05, future.set_result, [1]).start()
    assert chained.wait(5) == 2
    assert dg.futures.wait_all([future, chained]) == [1, 2]
    assert [f.value() for f in together.wait()] == [1, 2]
    assert not flattened.done()
    inner.set_result("x")
    assert flattened.value() == "x"
    with pytest.raises(ZeroDivisionError):
        broken.wait()
    with pytest.raises(ZeroDivisionError):
        broken.then(lambda f: f.value()).wait()
    with pytest.raises(DistributedError, match="done already"):
        future.set_result(2)
    seen = []
    future.add_done_callback(lambda f: seen.append(f.value()))
    assert seen == [1]
    stuck = future.then(lambda f: Future().wait(5))
    with pytest.raises(DistributedError, match="a callback cannot wait"):
        stuck.wait()
    left = [3]
    pushed = Future(push=lambda: left.append(left[-1] - 1) or left[-1] or pushed.set_result("y"))
    assert pushed.wait(5) == "y"


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("name", EVERY)
def test_a_device_gives_the_hosts_numbers(name, sharded):
    def body(group, device):
        net = model(dg.float32).to(device)
        ddp = DistributedDataParallel(
            net, process_group=group, bucket_cap_mb=1e-3, shard_gradients=sharded
        )
        ddp.register_comm_hook(*EVERY[name]())
        for i in range(4):
            ddp.zero_grad()
            x, y = (dg.tensor(a, dtype=dg.float32).to(device) for a in data(4, 10 * i + group.rank))
            (net_out := ddp(x) - y).square().sum(1).mean().backward()
            assert net_out.device.type == device
        if sharded:
            return [to_device(b.shard, CPU).copy() for b in ddp.reducer.buckets]
        return [p.grad.cpu().numpy() for p in net.parameters()]

    host = run_ranks(2, body, "cpu")
    with standin.installed():
        there = run_ranks(2, body, "cuda")
    for rank in range(2):
        for p, q in zip(host[rank], there[rank], strict=True):
            np.testing.assert_allclose(p, q, rtol=1e-4, atol=1e-4)


def test_a_hook_may_use_the_collectives_of_the_package():
    def hook(state, bucket):
        work = dg.distributed.all_reduce(bucket.buffer(), async_op=True)
        return work.get_future().then(lambda done: done.value()[0] / 2)

    def body(group):
        ddp = wrapped(group, (None, hook), bucket_cap_mb=1e-4)
        for _ in range(2):
            ddp.zero_grad()
            step(ddp, *data(4, group.rank))
        return grads(ddp.module)

    reference = model()
    step(reference, *[np.concatenate(pair) for pair in zip(data(4, 0), data(4, 1), strict=True)])
    for got in run_ranks(2, body):
        for p, want in zip(got, grads(reference), strict=True):
            np.testing.assert_allclose(p, want, rtol=1e-12)
