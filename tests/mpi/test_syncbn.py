"""SyncBatchNorm under real MPI, beside buckets that travel."""

import numpy as np
import pytest

import distgrad as dg
from distgrad.nn.parallel import DistributedDataParallel

pytestmark = pytest.mark.mpi


def network(norm):
    net = dg.nn.Sequential(
        dg.nn.Linear(5, 6), norm, dg.nn.Tanh(), dg.nn.Linear(6, 6), dg.nn.Linear(6, 2)
    ).double()
    rng = np.random.default_rng(1)
    for p in net.parameters():
        p.data.copy_(dg.from_numpy(rng.standard_normal(p.shape)))
    return net


def test_steps_on_uneven_parts_are_those_of_batch_norm_on_the_big_batch(group):
    rng = np.random.default_rng(2)
    alone = network(dg.nn.BatchNorm1d(6))
    ddp = DistributedDataParallel(
        network(dg.nn.SyncBatchNorm(6)), process_group=group, bucket_cap_mb=1e-5
    )
    nets = (ddp, alone)
    optimizers = [dg.optim.SGD(net.parameters(), lr=0.05, momentum=0.9) for net in nets]
    cuts = np.linspace(0, 17, group.size + 1).astype(int) if group.size < 4 else (0, 9, 9, 16, 17)
    mine = slice(cuts[group.rank], cuts[group.rank + 1])
    for _ in range(3):
        x, y = rng.standard_normal((17, 5)), rng.standard_normal((17, 2))
        for net, optimizer, part in zip(nets, optimizers, (mine, slice(None)), strict=True):
            optimizer.zero_grad()
            out = net(dg.from_numpy(x[part]))
            ((out - dg.from_numpy(y[part])) ** 2).sum(1).mean().backward()
            optimizer.step()
    for got, want in zip(
        ddp.module.state_dict().values(), alone.state_dict().values(), strict=True
    ):
        np.testing.assert_allclose(got.numpy(force=True), want.numpy(force=True), rtol=1e-9)


def test_all_ranks_get_the_same_statistics(group):
    rng = np.random.default_rng(group.rank)
    norm = dg.nn.SyncBatchNorm(3, process_group=group)
    norm(dg.from_numpy(rng.standard_normal((4 + group.rank, 3, 5)).astype(np.float32)))
    rows = group.all_gather(norm.running_var.numpy())
    for row in rows[1:]:
        np.testing.assert_array_equal(row, rows[0])
