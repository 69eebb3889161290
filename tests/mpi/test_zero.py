"""ZeRO under real MPI: the bits of plain data parallelism, and state that goes anywhere."""

from itertools import pairwise

import numpy as np
import pytest

import distgrad as dg
from distgrad.distributed import local_group
from distgrad.distributed.optim import ZeroRedundancyOptimizer, load_shards, save_shards
from distgrad.nn.parallel import DistributedDataParallel
from distgrad.nn.utils import clip_grad_norm_
from distgrad.optim import SGD, AdamW

pytestmark = pytest.mark.mpi
V = 4
RULES = [(SGD, {"lr": 0.01, "momentum": 0.9}), (AdamW, {"lr": 0.01})]


class Run:
    """A model and its optimizer on some ranks, which cut each batch into V parts."""

    def __init__(self, group, zero, cls=AdamW, overlap=False, **options):
        rng = np.random.default_rng(0)
        sizes = [64, 200, 133, 65, 3]
        net = dg.nn.Sequential(*[dg.nn.Linear(a, b) for a, b in pairwise(sizes)])
        for p in net.parameters():
            p.data.copy_(dg.from_numpy(rng.standard_normal(p.shape).astype("float32") / 10))
        self.group, self.zero = group, zero
        self.ddp = DistributedDataParallel(
            net, process_group=group, determinism="world", shards=V, reduction="sum",
            bucket_cap_mb=0.03, shard_gradients=zero == 2,
        )  # fmt: skip
        if zero:
            self.optimizer = ZeroRedundancyOptimizer(
                net.parameters(), cls, overlap_with_ddp=overlap, **options
            )
        else:
            self.optimizer = cls(net.parameters(), **options)

    def steps(self, first, last):
        norms = []
        for step in range(first, last):
            x = np.random.default_rng(step).standard_normal((16, 64)).astype("float32")
            self.optimizer.zero_grad()
            for part in self.ddp.local_shards:
                rows = dg.from_numpy(x[16 * part // V : 16 * (part + 1) // V])
                self.ddp(rows).square().sum().backward()
            norms.append(clip_grad_norm_(self.ddp.parameters(), 1.0).item())
            self.optimizer.step()
        if self.zero:
            self.optimizer.wait()
        flat = [p.detach().numpy().ravel() for p in self.ddp.parameters()]
        return np.concatenate([*flat, np.array(norms)]).tobytes()


@pytest.mark.parametrize(("cls", "options"), RULES, ids=["SGD", "AdamW"])
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("zero", [1, 2])
def test_the_bits_are_those_of_one_rank(group, zero, overlap, cls, options):
    alone = Run(local_group(), 0, cls, **options).steps(0, 4)
    run = Run(group, zero, cls, overlap, **options)
    assert len(run.ddp.reducer.buckets) > 2
    assert run.steps(0, 4) == alone


@pytest.mark.parametrize("zero", [1, 2])
def test_state_is_taken_to_one_rank_and_back(group, zero):
    alone = Run(local_group(), 0, lr=0.01)
    alone.steps(0, 2)
    run = Run(group, zero, lr=0.01)
    run.steps(0, 2)
    run.optimizer.consolidate_state_dict(to=group.size - 1)
    state = run.optimizer.state_dict() if group.rank == group.size - 1 else None
    state = group.broadcast_object(state, group.size - 1)
    for number, row in alone.optimizer.state_dict()["state"].items():
        for name, value in row.items():
            np.testing.assert_array_equal(value.numpy(), state["state"][number][name].numpy())
    other = Run(group, 3 - zero, lr=0.5)
    other.ddp.module.load_state_dict(run.ddp.module.state_dict())
    other.optimizer.load_state_dict(state)
    other.ddp.reducer.reductions = 2
    assert other.steps(2, 4) == alone.steps(2, 4)


def test_files_of_shards_are_read_by_another_kind(group, tmp_path_factory):
    folder = group.broadcast_object(str(tmp_path_factory.mktemp("zero") / "state"))
    run = Run(group, 2, lr=0.01)
    run.steps(0, 2)
    save_shards(run.optimizer, folder)
    other = Run(group, 1, lr=0.5)
    other.ddp.module.load_state_dict(run.ddp.module.state_dict())
    load_shards(other.optimizer, folder)
    alone = Run(local_group(), 0, lr=0.5)
    alone.ddp.module.load_state_dict(run.ddp.module.state_dict())
    load_shards(alone.optimizer, folder)
    other.ddp.reducer.reductions = alone.ddp.reducer.reductions = 2
    assert other.steps(2, 4) == alone.steps(2, 4)


def test_other_modes_have_the_bits_of_plain_data_parallelism(group):
    def train(zero):
        net = dg.nn.Linear(300, 70)
        net.load_state_dict({n: dg.ones_like(p) / 100 for n, p in net.state_dict().items()})
        ddp = DistributedDataParallel(
            net, process_group=group, determinism="run", shard_gradients=zero == 2
        )
        optimizer = (
            ZeroRedundancyOptimizer(net.parameters(), AdamW) if zero else AdamW(net.parameters())
        )
        for step in range(3):
            optimizer.zero_grad()
            x = np.random.default_rng([step, group.rank]).standard_normal((3 + group.rank, 300))
            ddp(dg.from_numpy(x.astype("float32"))).square().mean().backward()
            optimizer.step()
        return net.weight.detach().numpy().tobytes()

    assert train(1) == train(2) == train(0)
