"""DistributedDataParallel under real MPI: exact means, the same bits, nothing forgotten."""

import numpy as np
import pytest

import distgrad as dg
from distgrad.backend.random import use_generator
from distgrad.errors import DistributedError
from distgrad.nn.parallel import DistributedDataParallel

pytestmark = pytest.mark.mpi


def model(seed=0):
    rng = np.random.default_rng(seed)
    net = dg.nn.Sequential(dg.nn.Linear(5, 7), dg.nn.Tanh(), dg.nn.Linear(7, 3)).double()
    for p in net.parameters():
        p.data.copy_(dg.from_numpy(rng.standard_normal(p.shape)))
    return net


def loss(output, y, reduction):
    each = ((output - dg.from_numpy(y)) ** 2).sum(1)
    return each.mean() if reduction == "mean" else each.sum()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("cap", [None, 1e-5])
def test_steps_on_uneven_parts_are_those_of_the_big_batch(group, reduction, cap):
    rng = np.random.default_rng(1)
    alone = model()
    reference = dg.optim.SGD(alone.parameters(), lr=0.1, momentum=0.9)
    ddp = DistributedDataParallel(
        model(seed=group.rank), process_group=group, reduction=reduction, bucket_cap_mb=cap
    )
    ddp.module.load_state_dict(model().state_dict())
    optimizer = dg.optim.SGD(ddp.parameters(), lr=0.1, momentum=0.9)
    for step in range(4):
        x, y = rng.standard_normal((23, 5)), rng.standard_normal((23, 3))
        cut = np.linspace(0, 23, group.size + 1).astype(int)
        mine = slice(cut[group.rank], cut[group.rank + 1])
        optimizer.zero_grad(set_to_none=bool(step % 2))
        loss(ddp(dg.from_numpy(x[mine])), y[mine], reduction).backward()
        optimizer.step()
        reference.zero_grad()
        loss(alone(dg.from_numpy(x)), y, "mean").backward()
        reference.step()
        for p, q in zip(ddp.module.parameters(), alone.parameters(), strict=True):
            np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=1e-11)


@pytest.mark.parametrize("determinism", ["off", "run", "world"])
def test_all_ranks_have_the_same_bits_after_many_buckets(group, determinism):
    dg.manual_seed(0)
    net = dg.nn.Sequential(*[dg.nn.Linear(64, 64) for _ in range(6)])
    ddp = DistributedDataParallel(
        net, process_group=group, bucket_cap_mb=0.01, determinism=determinism
    )
    optimizer = dg.optim.AdamW(ddp.parameters(), lr=1e-2)
    rng = np.random.default_rng(group.rank)
    for _ in range(3):
        optimizer.zero_grad()
        x = dg.from_numpy(rng.standard_normal((8 + group.rank, 64)).astype(np.float32))
        ddp(x).square().mean().backward()
        dg.nn.utils.clip_grad_norm_(ddp.parameters(), 0.5)
        optimizer.step()
    assert len(ddp.reducer.buckets) > 3
    flat = np.concatenate([p.detach().numpy().ravel() for p in net.parameters()])
    rows = group.all_gather(flat)
    for row in rows[1:]:
        np.testing.assert_array_equal(row, rows[0])


def test_a_different_model_is_named_on_every_rank(group):
    width = 8 if group.rank == group.size - 1 and group.size > 1 else 7
    net = dg.nn.Linear(5, width)
    if group.size == 1:
        DistributedDataParallel(net, process_group=group)
        return
    with pytest.raises(DistributedError, match=rf"rank {group.size - 1} differs from rank 0"):
        DistributedDataParallel(net, process_group=group)


def test_the_last_bucket_travels_while_backward_goes_on(group):
    net = dg.nn.Sequential(*[dg.nn.Linear(256, 256) for _ in range(4)])
    ddp = DistributedDataParallel(net, process_group=group, bucket_cap_mb=0.2)
    order = []
    first = net[0].weight
    first.register_post_accumulate_grad_hook(
        lambda p: order.append([b.job is not None for b in ddp.reducer.buckets])
    )
    ddp(dg.ones(4, 256)).sum().backward()
    if group.size > 1:
        assert order[0][0]
        assert not order[0][-1]


def trained_in_shards(group, clip):
    """Return the bytes of the weights after steps on eight shards, with dropout."""
    with use_generator(dg.Generator().manual_seed(3)):  # ranks may be threads of one process
        return _trained_in_shards(group, clip)


def _trained_in_shards(group, clip):
    net = dg.nn.Sequential(
        dg.nn.Linear(5, 300), dg.nn.Dropout(0.3), dg.nn.GELU(), dg.nn.Linear(300, 3)
    )
    ddp = DistributedDataParallel(
        net, process_group=group, bucket_cap_mb=1e-3, determinism="world", shards=8
    )
    optimizer = dg.optim.AdamW(net.parameters(), lr=0.01)
    rng = np.random.default_rng(1)
    for _ in range(4):
        x = rng.standard_normal((43, 5)).astype(np.float32)
        y = rng.standard_normal((43, 3)).astype(np.float32)
        optimizer.zero_grad()
        for shard in ddp.local_shards:
            rows = slice(shard * 43 // 8, (shard + 1) * 43 // 8)
            loss(ddp(dg.from_numpy(x[rows])), y[rows], "mean").backward()
        if clip:
            dg.nn.utils.clip_grad_norm_(net.parameters(), 0.1)
        optimizer.step()
    return b"".join(p.numpy(force=True).tobytes() for p in net.parameters())


@pytest.mark.parametrize("clip", [False, True])
def test_world_mode_gives_the_bits_of_one_rank(group, clip):
    assert trained_in_shards(group, clip) == trained_in_shards(dg.distributed.local_group(), clip)
