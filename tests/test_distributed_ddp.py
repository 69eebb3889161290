"""What of PyTorch's DistributedDataParallel a program may use beside forward and backward."""

import copy
import pickle

import numpy as np
import pytest

import distgrad as dg
from distgrad.distributed.threads import run_ranks
from distgrad.errors import ArgumentError, DistributedError, GradError
from distgrad.nn.parallel import DistributedDataParallel
from distgrad.utils.checkpoint import checkpoint


def model():
    rng = np.random.default_rng(0)
    net = dg.nn.Sequential(dg.nn.Linear(4, 4), dg.nn.Tanh(), dg.nn.Linear(4, 2)).double()
    for p in net.parameters():
        p.data.copy_(dg.from_numpy(rng.standard_normal(p.shape)))
    return net


def x_of(rank, n=3):
    return dg.from_numpy(np.random.default_rng(rank).standard_normal((n, 4)))


def grads(net):
    return [None if p.grad is None else p.grad.numpy().copy() for p in net.parameters()]


def same(got, want):
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_names_of_the_state_begin_with_module_and_load_back():
    ddp = DistributedDataParallel(model())
    names = list(model().state_dict())
    assert list(ddp.state_dict()) == [f"module.{name}" for name in names]
    other = DistributedDataParallel(dg.nn.Sequential(*[copy.deepcopy(m) for m in model()]))
    other.module[0].weight.data.zero_()
    other.load_state_dict(ddp.state_dict())
    same([p.numpy(force=True) for p in other.parameters()], [p.numpy(force=True) for p in
         ddp.parameters()])  # fmt: skip
    assert np.shares_memory(other.module[0].weight.array, other.reducer.buckets[0].values)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda ddp: pickle.loads(pickle.dumps(ddp))])
def test_a_copy_trains_on_its_own(how):
    def body(group):
        ddp = DistributedDataParallel(model(), process_group=group, bucket_cap_mb=1e-4)
        again = how(ddp)
        again(x_of(group.rank)).sum(1).mean().backward()
        assert ddp.module[0].weight.grad is None
        assert again.reducer is not ddp.reducer
        return grads(again)

    alone = model()
    alone(dg.cat([x_of(0), x_of(1)])).sum(1).mean().backward()
    for got in run_ranks(2, body):
        same(got, grads(alone))


def test_a_copy_needs_the_default_group():
    def body(group):
        ddp = DistributedDataParallel(model(), process_group=dg.distributed.local_group())
        copy.deepcopy(ddp)

    with pytest.raises(DistributedError, match="default process group"):
        run_ranks(2, body)


def test_ignored_parameters_and_buffers_stay_local():
    def body(group):
        net = dg.nn.Sequential(dg.nn.Linear(4, 4), dg.nn.BatchNorm1d(4), dg.nn.Linear(4, 1))
        net[0].bias.data.fill_(group.rank)
        net[1].running_mean.fill_(group.rank)
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
            net, ["0.bias", "1.running_mean"]
        )
        ddp = DistributedDataParallel(net, process_group=group)
        before = net[0].bias.tolist(), net[1].running_mean.tolist()
        out = ddp(x_of(group.rank).float())
        (out * (1 + group.rank)).sum(1).mean().backward()
        return before, net[2].bias.grad.tolist(), net[2].weight.tolist()

    results = run_ranks(2, body)
    assert [r[0] for r in results] == [([float(r)] * 4, [float(r)] * 4) for r in range(2)]
    assert results[0][1:] == results[1][1:]
    assert results[0][1] == [1.5]


def test_sync_can_be_switched_by_the_attribute():
    def body(group):
        ddp = DistributedDataParallel(model(), process_group=group, reduction="sum")
        ddp.require_backward_grad_sync = False
        assert not ddp.will_sync_module_buffers()
        before = group.channel("buckets").sequence
        ddp(x_of(group.rank)).sum().backward()
        assert group.channel("buckets").sequence == before
        ddp.require_backward_grad_sync = True
        ddp(x_of(10 + group.rank)).sum().backward()
        return grads(ddp)

    alone = model()
    alone(dg.cat([x_of(i) for i in (0, 1, 10, 11)])).sum(1).mean().backward()
    for got in run_ranks(2, body):
        same(got, grads(alone))


def test_two_forwards_before_one_backward():
    def body(group):
        ddp = DistributedDataParallel(model(), process_group=group)
        real, fake = ddp(x_of(group.rank)), ddp(x_of(10 + group.rank))
        (real.sum(1).mean() - fake.square().sum(1).mean()).backward()
        return grads(ddp)

    alone = model()
    real, fake = alone(dg.cat([x_of(0), x_of(1)])), alone(dg.cat([x_of(10), x_of(11)]))
    (real.sum(1).mean() - fake.square().sum(1).mean()).backward()
    for got in run_ranks(2, body):
        same(got, grads(alone))


def test_a_forward_without_grad_counts_nothing_and_tells_nobody():
    def body(group):
        net = dg.nn.Sequential(dg.nn.Linear(4, 2), dg.nn.BatchNorm1d(2)).double()
        ddp = DistributedDataParallel(net, process_group=group)
        before = group.channel("control").sequence
        if group.rank == 0:
            with dg.no_grad():
                ddp(x_of(0, 50))
        assert group.channel("control").sequence == before
        assert ddp.reducer.count == 0
        ddp(x_of(group.rank)).sum().backward()
        return grads(ddp)

    a, b = run_ranks(2, body)
    same(a, b)


class Segments(dg.nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.a, self.b, self.reentrant = dg.nn.Linear(4, 4).double(), model(), reentrant

    def forward(self, x):
        h = self.a(x)
        return h.sum(1) + checkpoint(self.b, h, use_reentrant=self.reentrant).sum(1)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_segments(reentrant):
    def body(group):
        net = Segments(reentrant)
        for p in net.a.parameters():
            p.data.fill_(0.5)
        ddp = DistributedDataParallel(net, process_group=group, bucket_cap_mb=1e-4)
        for _ in range(2):
            ddp.zero_grad()
            ddp(x_of(group.rank)).mean().backward()
        return grads(ddp)

    alone = Segments(False)
    for p in alone.a.parameters():
        p.data.fill_(0.5)
    alone(dg.cat([x_of(0), x_of(1)])).mean().backward()
    for got in run_ranks(2, body):
        same(got, grads(alone))


def test_a_gradient_that_comes_again_after_it_was_sent_is_named():
    def body(group, cap):
        net = Segments(True)
        ddp = DistributedDataParallel(net, process_group=group, bucket_cap_mb=cap)
        h = ddp(x_of(group.rank))
        (
            h + checkpoint(net.b, h[:, None].expand(3, 4), use_reentrant=True).sum(1)
        ).mean().backward()
        return grads(ddp)

    with pytest.raises(GradError, match="came again after it was sent"):
        run_ranks(2, body, 1e-5)
    a, b = run_ranks(2, body, 25)  # everything is sent at the end
    same(a, b)


def test_a_shared_parameter_travels_once():
    def body(group):
        net = model()
        net[0].weight = dg.nn.Parameter(net[0].weight.detach().clone())
        tied = dg.nn.Sequential(net[0], dg.nn.Tanh(), net[0])
        ddp = DistributedDataParallel(tied, process_group=group)
        assert sum(len(b.params) for b in ddp.reducer.buckets) == 2
        ddp(x_of(group.rank)).sum(1).mean().backward()
        return grads(ddp)

    net = model()
    alone = dg.nn.Sequential(net[0], dg.nn.Tanh(), net[0])
    alone(dg.cat([x_of(0), x_of(1)])).sum(1).mean().backward()
    for got in run_ranks(2, body):
        same(got, grads(alone))


def test_parameters_frozen_later_have_no_gradient_and_may_thaw():
    def body(group):
        ddp = DistributedDataParallel(model(), process_group=group)
        seen = []
        for frozen in (False, True, False):
            ddp.zero_grad()
            for p in ddp.module[0].parameters():
                p.requires_grad_(not frozen)
            ddp(x_of(group.rank)).sum(1).mean().backward()
            seen.append(grads(ddp))
        return seen

    alone = model()
    alone(dg.cat([x_of(0), x_of(1)])).sum(1).mean().backward()
    for first, second, third in run_ranks(2, body):
        same(first, grads(alone))
        assert second[:2] == [None, None]
        same(second[2:], grads(alone)[2:])
        same(third, grads(alone))


def test_arguments_of_pytorch():
    ddp = DistributedDataParallel(
        model(), None, None, 0, True, True, None, 25, True, False, True, True
    )
    assert ddp.static_graph and ddp.find_unused_parameters and ddp.gradient_as_bucket_view
    ddp._set_static_graph()
    with pytest.raises(ArgumentError, match="bf16_compress_hook"):
        DistributedDataParallel(model(), mixed_precision="bf16")
    frozen = model().requires_grad_(False)
    with pytest.raises(GradError, match="not needed when a module doesn't have any parameters"):
        DistributedDataParallel(frozen)


def test_samples_of_a_backward_that_failed_are_not_counted():
    class Fails(dg.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            raise ValueError("once")

    def body(group):
        layers = dg.nn.Sequential(*(dg.nn.Linear(1, 1, bias=False) for _ in range(2)))
        for p in layers.parameters():
            p.data.fill_(1.0)
        ddp = DistributedDataParallel(layers)
        failing = layers[0].register_forward_hook(lambda module, args, out: Fails.apply(out))
        with pytest.raises(ValueError, match="once"):
            ddp(dg.ones(3, 1)).mean().backward()
        failing.remove()
        ddp.zero_grad()
        x = dg.ones(1 + group.rank, 1) * (1.0 + 3 * group.rank)  # 1, and 4 and 4
        ddp(x).mean().backward()
        return layers[1].weight.grad.item()

    assert run_ranks(2, body) == [3.0, 3.0]


def test_buffers_are_the_same_though_ranks_have_different_numbers_of_shards():
    def body(group):
        net = dg.nn.Sequential(dg.nn.Linear(4, 3), dg.nn.BatchNorm1d(3))
        ddp = DistributedDataParallel(
            net, process_group=group, determinism="world", shards=4, reduction="sum"
        )
        before = []
        for _ in range(2):
            ddp.zero_grad()
            for shard in ddp.reducer.local_shards:
                before.append(net[1].running_mean.numpy().copy())
                ddp(x_of(shard, 5).float()).sum().backward()
        return before[0], before[-1]

    results = run_ranks(3, body)
    for first, _ in results:
        np.testing.assert_array_equal(first, results[0][0])
