"""SyncBatchNorm on ranks that are threads: the batch norm of the big batch, however it is cut."""

import copy
import pickle

import numpy as np
import pytest

import distgrad as dg
from distgrad.distributed.threads import run_ranks
from distgrad.errors import ArgumentError
from distgrad.nn.parallel import DistributedDataParallel
from distgrad.testing import standin

CUTS = {2: (0, 7, 9), 3: (0, 5, 5, 9), 4: (0, 1, 4, 4, 9)}  # uneven, and ranks without samples


def data(shape=(9, 3, 4)):
    rng = np.random.default_rng(0)
    return rng.standard_normal(shape) + 10, rng.standard_normal(shape)


def first_and_second_gradients(norm, x, w):
    """Return what a loss of ``norm(x)`` and a penalty on its gradient give."""
    x = dg.from_numpy(x.copy()).requires_grad_()
    out = norm(x)
    loss = (out * dg.from_numpy(w)).sin().sum()
    first = dg.autograd.grad(loss, [x, norm.weight, norm.bias], retain_graph=True)
    (g,) = dg.autograd.grad(loss, x, create_graph=True)
    second = dg.autograd.grad((g**3).sum(), [x, norm.weight])
    return [t.numpy(force=True) for t in (out, first[0], g, second[0], *first[1:], second[1])]


@pytest.mark.parametrize("size", CUTS)
def test_output_and_two_orders_of_gradients_are_those_of_the_big_batch(size):
    x, w = data()

    def body(group):
        part = slice(CUTS[size][group.rank], CUTS[size][group.rank + 1])
        norm = dg.nn.SyncBatchNorm(3).double()
        norm.weight.data.copy_(dg.tensor([1.0, 2.0, -0.5]))
        return first_and_second_gradients(norm, x[part], w[part])

    norm = dg.nn.BatchNorm1d(3).double()
    norm.weight.data.copy_(dg.tensor([1.0, 2.0, -0.5]))
    want = first_and_second_gradients(norm, x, w)
    got = run_ranks(size, body)
    for i in range(4):  # along the batch
        np.testing.assert_allclose(np.concatenate([r[i] for r in got]), want[i], atol=2e-11)
        if i < 3:
            np.testing.assert_allclose(np.concatenate([r[i] for r in got]), want[i], atol=1e-12)
    for i in range(4, 7):  # sums over it
        np.testing.assert_allclose(sum(r[i] for r in got), want[i], atol=1e-9, rtol=1e-12)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_are_those_of_the_big_batch_on_every_rank(momentum):
    x, _ = data((9, 3))

    def body(group):
        norm = dg.nn.SyncBatchNorm(3, momentum=momentum).double()
        for scale in (1, 2):
            norm(dg.from_numpy(scale * x[3 * group.rank : 3 * group.rank + 3]))
        return [b.numpy() for b in norm.buffers()]

    norm = dg.nn.BatchNorm1d(3, momentum=momentum).double()
    for scale in (1, 2):
        norm(dg.from_numpy(scale * x))
    for buffers in run_ranks(3, body):
        for got, want in zip(buffers, norm.buffers(), strict=True):
            np.testing.assert_allclose(got, want.numpy(), rtol=1e-13)


def test_a_mean_far_from_zero_cancels_nothing():
    rng = np.random.default_rng(2)
    x = (rng.standard_normal((64, 2)) + 4096).astype(np.float32)

    def body(group):
        norm = dg.nn.SyncBatchNorm(2)
        norm(dg.from_numpy(x[32 * group.rank : 32 * group.rank + 32]))
        return norm.running_var.numpy()

    want = 0.9 + 0.1 * x.astype(np.float64).var(0, ddof=1)
    for got in run_ranks(2, body):
        np.testing.assert_allclose(got, want, rtol=1e-5)  # E[x²] - E[x]² would miss by 1


def test_evaluation_is_local_and_halves_keep_their_dtype():
    def body(group):
        norm = dg.nn.SyncBatchNorm(2).half()
        x = dg.ones(3, 2, dtype=dg.float16) * (group.rank + 1.0)
        assert norm(x).dtype is dg.float16
        before = group.channel("control").sequence
        norm.eval()
        if group.rank == 0:
            norm(x)  # alone
        assert group.channel("control").sequence == before
        return norm.running_mean.numpy()

    for mean in run_ranks(2, body):
        np.testing.assert_allclose(mean, 0.15, rtol=1e-3)


class Net(dg.nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.a, self.norm, self.b = dg.nn.Linear(3, 4), norm, dg.nn.Linear(4, 2)
        rng = np.random.default_rng(5)
        self.double()
        for p in self.parameters():
            p.data.copy_(dg.from_numpy(rng.standard_normal(p.shape)))

    def forward(self, x):
        return self.b(self.norm(self.a(x)).tanh())


def step(net, x, y, reduction):
    each = ((net(dg.from_numpy(x)) - dg.from_numpy(y)) ** 2).sum(1)
    (each.mean() if reduction == "mean" else each.sum()).backward()


@pytest.mark.parametrize("size", CUTS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_inside_ddp_uneven_parts_give_the_gradient_of_the_big_batch(size, reduction):
    x, y = data((9, 3))[0], data((9, 2))[1]

    def body(group):
        net = dg.nn.SyncBatchNorm.convert_sync_batchnorm(Net(dg.nn.BatchNorm1d(4)))
        ddp = DistributedDataParallel(
            net, process_group=group, reduction=reduction, bucket_cap_mb=1e-5
        )
        part = slice(CUTS[size][group.rank], CUTS[size][group.rank + 1])
        for _ in range(2):
            ddp.zero_grad()
            step(ddp, x[part], y[part], reduction)
        return [p.grad.numpy().copy() for p in net.parameters()]

    alone = Net(dg.nn.BatchNorm1d(4))
    step(alone, x, y, "mean")
    for grads in run_ranks(size, body):
        for got, p in zip(grads, alone.parameters(), strict=True):
            np.testing.assert_allclose(got, p.grad.numpy(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("size", [2, 3])
def test_a_penalty_on_gradients_is_that_of_the_big_batch_too(size):
    x = data((9, 3))[0]

    def step_with_penalty(net, x):
        x = dg.from_numpy(x.copy()).requires_grad_()
        inner = (net(x) ** 2).sum(1).mean() if len(x) else (net(x) ** 2).sum()
        (g,) = dg.autograd.grad(inner, x, create_graph=True)
        ((len(x) * g) ** 2).sum(1).mean().backward()

    def body(group):
        net = Net(dg.nn.SyncBatchNorm(4))
        ddp = DistributedDataParallel(net, process_group=group)
        step_with_penalty(ddp, x[CUTS[size][group.rank] : CUTS[size][group.rank + 1]])
        return [np.zeros(1) if p.grad is None else p.grad.numpy().copy() for p in net.parameters()]

    alone = Net(dg.nn.BatchNorm1d(4))
    step_with_penalty(alone, x)
    for grads in run_ranks(size, body):
        for got, p in zip(grads, alone.parameters(), strict=True):
            want = np.zeros(1) if p.grad is None else p.grad.numpy()
            np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10)


def test_a_loss_of_nothing_does_no_harm_to_the_others():
    def body(group):
        ddp = DistributedDataParallel(Net(dg.nn.SyncBatchNorm(4)), process_group=group)
        out = ddp(dg.from_numpy(data((4, 3))[0]))
        ddp.add_count(4 * (1 - group.rank))
        (out.sum(1).mean() * (float("nan") if group.rank else 1.0)).backward()
        return [p.grad.numpy().copy() for p in ddp.module.parameters()]

    for grads in run_ranks(2, body):
        assert all(np.isfinite(g).all() for g in grads)


def test_conversion_keeps_parameters_buffers_and_state():
    net = dg.nn.Sequential(dg.nn.Linear(2, 3), dg.nn.Sequential(dg.nn.BatchNorm1d(3, eps=0.1)))
    before = net.state_dict()
    weight = net[1][0].weight
    net.eval()
    new = dg.nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert new is net
    assert type(net[1][0]) is dg.nn.SyncBatchNorm
    assert net[1][0].weight is weight
    assert net[1][0].eps == 0.1
    assert not net[1][0].training
    assert list(net.state_dict()) == list(before)
    bare = dg.nn.SyncBatchNorm.convert_sync_batchnorm(dg.nn.BatchNorm2d(3, affine=False))
    assert bare.weight is None
    assert type(pickle.loads(pickle.dumps(copy.deepcopy(net)))[1][0]) is dg.nn.SyncBatchNorm


def test_what_cannot_be_normalised_is_named():
    def one_value(group):
        dg.nn.SyncBatchNorm(2)(dg.ones(1 - group.rank, 2))

    with pytest.raises(ArgumentError, match="Expected more than 1 value per channel"):
        run_ranks(2, one_value)
    with pytest.raises(ArgumentError, match="3 channels and num_features is 2"):
        run_ranks(2, lambda group: dg.nn.SyncBatchNorm(2)(dg.ones(4, 3)))
    with pytest.raises(ArgumentError, match="at least 2D"):
        run_ranks(2, lambda group: dg.nn.SyncBatchNorm(2)(dg.ones(4)))


def test_shards_one_after_the_other_are_refused():
    def body(group):
        net = Net(dg.nn.SyncBatchNorm(4))
        DistributedDataParallel(net, process_group=group, determinism="world", shards=4)

    with pytest.raises(ArgumentError, match="SyncBatchNorm needs all shards at once"):
        run_ranks(2, body)


def test_a_device_gives_the_hosts_numbers():
    def body(group, device):
        x, w = data()
        part = slice(4 * group.rank, 4 * group.rank + 4)
        norm = dg.nn.SyncBatchNorm(3).double().to(device)
        x = dg.from_numpy(x[part].copy()).to(device).requires_grad_()
        out = norm(x)
        (out * dg.from_numpy(w[part]).to(device)).sum().backward()
        assert {t.device.type for t in (out, x.grad, norm.running_var)} == {device}
        return [
            t.cpu().numpy(force=True) for t in (out, x.grad, norm.weight.grad, norm.running_var)
        ]

    host = run_ranks(2, body, "cpu")
    with standin.installed():
        there = run_ranks(2, body, "cuda")
    for a, b in zip(host, there, strict=True):
        for p, q in zip(a, b, strict=True):
            np.testing.assert_allclose(p, q, rtol=1e-12, atol=1e-14)
