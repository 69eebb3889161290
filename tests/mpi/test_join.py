"""Join under real MPI: uneven numbers of batches."""

import numpy as np
import pytest

import distgrad as dg
from distgrad.distributed.optim import ZeroRedundancyOptimizer
from distgrad.errors import DistributedError
from distgrad.nn.parallel import DistributedDataParallel

pytestmark = pytest.mark.mpi


def model():
    rng = np.random.default_rng(0)
    net = dg.nn.Sequential(dg.nn.Linear(5, 7), dg.nn.BatchNorm1d(7), dg.nn.Linear(7, 3)).double()
    for p in net.parameters():
        p.data.copy_(dg.from_numpy(rng.standard_normal(p.shape)))
    return net


def test_all_ranks_end_with_the_weights_and_buffers_of_the_last_one(group):
    ddp = DistributedDataParallel(model(), process_group=group, bucket_cap_mb=1e-4)
    optimizer = dg.optim.SGD(ddp.parameters(), lr=0.01)
    rng = np.random.default_rng(group.rank)
    with ddp.join():
        for _ in range(3 * group.rank):  # rank 0 has none
            optimizer.zero_grad()
            ddp(dg.from_numpy(rng.standard_normal((4, 5)))).square().sum(1).mean().backward()
            optimizer.step()
    state = np.concatenate([t.numpy(force=True).ravel() for t in ddp.state_dict().values()])
    rows = group.all_gather(state)
    for row in rows:
        np.testing.assert_array_equal(row, rows[0])
    counted = ddp.module[1].num_batches_tracked
    assert int(counted) == 3 * (group.size - 1)


def test_all_ranks_raise_when_one_has_left(group):
    if group.size == 1:
        return
    ddp = DistributedDataParallel(model(), process_group=group)
    made = 0
    with (
        pytest.raises(DistributedError, match="exhausted inputs"),
        ddp.join(throw_on_early_termination=True),
    ):
        for _ in range(1 + group.rank):
            ddp(dg.ones(2, 5, dtype=dg.float64)).sum().backward()
            made += 1
    assert made == 1


@pytest.mark.parametrize("zero", [1, 2])
def test_ranks_that_have_left_go_on_with_the_part_of_the_optimizer_that_is_theirs(group, zero):
    """Also where a step follows two forwards."""

    def train(zero):
        net = dg.nn.Sequential(dg.nn.Linear(5, 9), dg.nn.Tanh(), dg.nn.Linear(9, 3)).double()
        net.load_state_dict({n: dg.ones_like(p) / 9 for n, p in net.state_dict().items()})
        ddp = DistributedDataParallel(
            net, process_group=group, bucket_cap_mb=1e-4, shard_gradients=zero == 2
        )
        options = {"lr": 0.01}
        kind = dg.optim.AdamW
        params = ddp.parameters()
        optimizer = (
            ZeroRedundancyOptimizer(params, kind, **options) if zero else kind(params, **options)
        )
        rng = np.random.default_rng(group.rank)
        with ddp.join():
            for _ in range(2 * ((group.rank + 1) % group.size)):  # the last rank has none
                with ddp.no_sync():
                    ddp(dg.from_numpy(rng.standard_normal((2, 5)))).square().mean().backward()
                ddp(dg.from_numpy(rng.standard_normal((3, 5)))).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
        return b"".join(p.numpy(force=True).tobytes() for p in net.parameters())

    weights = train(zero)
    assert group.all_gather_object(weights) == [train(0)] * group.size
