"""Communication hooks under real MPI: they converge, with the same bits on all ranks."""

import numpy as np
import pytest

import distgrad as dg
from distgrad.distributed.algorithms.ddp_comm_hooks import default_hooks
from distgrad.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import (
    PostLocalSGDState,
    post_localSGD_hook,
)
from distgrad.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import (
    PowerSGDState,
    powerSGD_hook,
)
from distgrad.distributed.algorithms.ddp_comm_hooks.quantization_hooks import (
    quantization_perchannel_hook,
)
from distgrad.distributed.algorithms.ddp_comm_hooks.topk_hook import TopKState, topk_hook
from distgrad.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from distgrad.distributed.optim import PostLocalSGDOptimizer
from distgrad.errors import DistributedError
from distgrad.nn.parallel import DistributedDataParallel

pytestmark = pytest.mark.mpi

HOOKS = {
    "fp16": lambda: (None, default_hooks.fp16_compress_hook),
    "bf16": lambda: (None, default_hooks.bf16_compress_hook),
    "power": lambda: (PowerSGDState(None, 2, start_powerSGD_iter=2), powerSGD_hook),
    "topk": lambda: (TopKState(ratio=0.2), topk_hook),
    "8 bits": lambda: (None, quantization_perchannel_hook),
}


@pytest.mark.parametrize("name", HOOKS)
def test_a_regression_converges_with_equal_bits_on_all_ranks(group, name):
    if name == "bf16":
        pytest.importorskip("ml_dtypes")
    truth = np.random.default_rng(3).standard_normal((16, 12))
    net = dg.nn.Sequential(dg.nn.Linear(16, 12), dg.nn.Linear(12, 12, bias=False))
    ddp = DistributedDataParallel(net, process_group=group, bucket_cap_mb=5e-4)
    net[0].weight.data.zero_()
    net[1].weight.data.copy_(dg.eye(12))
    ddp.register_comm_hook(*HOOKS[name]())
    optimizer = dg.optim.SGD(net[0].parameters(), lr=0.05)
    mine = np.random.default_rng(group.rank)
    for _ in range(100):
        x = mine.standard_normal((16 + group.rank, 16)).astype(np.float32)
        y = (x @ truth).astype(np.float32)
        ddp.zero_grad()
        ((ddp(dg.from_numpy(x)) - dg.from_numpy(y)) ** 2).sum(1).mean().backward()
        optimizer.step()
    weight = net[0].weight.numpy(force=True)
    assert np.abs(weight - truth.T).max() < 0.2
    for row in group.all_gather(weight):
        np.testing.assert_array_equal(row, weight)


def test_allreduce_hook_is_the_plain_path(group):
    got = []
    for hook in (None, default_hooks.allreduce_hook):
        rng = np.random.default_rng(1)
        net = dg.nn.Sequential(dg.nn.Linear(5, 7), dg.nn.Tanh(), dg.nn.Linear(7, 3)).double()
        for p in net.parameters():
            p.data.copy_(dg.from_numpy(rng.standard_normal(p.shape)))
        ddp = DistributedDataParallel(net, process_group=group, bucket_cap_mb=1e-5)
        if hook is not None:
            ddp.register_comm_hook(None, hook)
        rng = np.random.default_rng(group.rank)
        for n in (3 + group.rank, 2):
            ddp.zero_grad()
            ddp(dg.from_numpy(rng.standard_normal((n, 5)))).square().sum(1).mean().backward()
            got.append([p.grad.numpy().copy() for p in net.parameters()])
    for plain, hooked in ((got[0], got[2]), (got[1], got[3])):
        for a, b in zip(plain, hooked, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)


def test_ranks_that_go_on_alone_meet_again(group):
    net = dg.nn.Linear(4, 2, bias=False).double()
    net.weight.data.zero_()
    ddp = DistributedDataParallel(net, process_group=group, check_every=1)
    state = PostLocalSGDState(None, None, 2, post_local_gradient_allreduce=False)
    ddp.register_comm_hook(state, post_localSGD_hook)
    averager = PeriodicModelAverager(2, 3, group)
    optimizer = PostLocalSGDOptimizer(dg.optim.SGD(net.parameters(), lr=0.5), averager)
    x = dg.full((1, 4), float(group.rank), dtype=dg.float64)
    for step in range(5):
        optimizer.zero_grad()
        if group.size > 1 and step == 3:  # after one step alone the ranks differ
            with pytest.raises(DistributedError, match=r"parameter weight .* is not the same"):
                ddp(x).sum().backward()
            break
        ddp(x).sum().backward()
        optimizer.step()
    averager.average_parameters(optimizer.param_groups)
    rows = group.all_gather(net.weight.numpy(force=True))
    for row in rows:
        np.testing.assert_array_equal(row, rows[0])
