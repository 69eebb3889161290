"""fully_shard under real MPI: the bits of plain data parallelism, and state that goes anywhere."""

from itertools import pairwise

import numpy as np
import pytest

import distgrad as dg
from distgrad.distributed import local_group
from distgrad.distributed.fsdp import fully_shard
from distgrad.errors import DistributedError
from distgrad.nn.parallel import DistributedDataParallel
from distgrad.nn.utils import clip_grad_norm_
from distgrad.optim import SGD, AdamW
from distgrad.optim.parts import full_optim_state_dict, load_full_optim_state_dict

pytestmark = pytest.mark.mpi
V = 4
RULES = [(SGD, {"lr": 0.01, "momentum": 0.9}), (AdamW, {"lr": 0.01})]


class Run:
    """A model and its optimizer on some ranks, which cut each batch into V parts."""

    def __init__(self, group, sharded, cls=AdamW, shards=V, **options):
        rng = np.random.default_rng(0)
        sizes = [64, 200, 133, 65, 3]
        net = dg.nn.Sequential(*[dg.nn.Linear(a, b) for a, b in pairwise(sizes)])
        for p in net.parameters():
            p.data.copy_(dg.from_numpy(rng.standard_normal(p.shape).astype("float32") / 10))
        self.group, self.shards, self.net = group, shards, net
        if sharded:
            for layer in net[1:]:
                fully_shard(layer, mesh=group)
            self.model = fully_shard(net, mesh=group, reduction="sum", shards=shards)
        else:
            self.model = DistributedDataParallel(
                net, process_group=group, determinism="world" if shards else "run", shards=shards,
                reduction="sum", bucket_cap_mb=0.03,
            )  # fmt: skip
        self.optimizer = cls(net.parameters(), **options)

    def step(self, number):
        x = np.random.default_rng(number).standard_normal((16, 64)).astype("float32")
        self.optimizer.zero_grad()
        many = self.shards or self.group.size
        for part in self.model.local_shards:
            rows = dg.from_numpy(x[16 * part // many : 16 * (part + 1) // many])
            self.model(rows).square().sum().backward()
        norm = clip_grad_norm_(self.model.parameters(), 1.0).item()
        self.optimizer.step()
        return norm

    def steps(self, first, last):
        norms = [self.step(number) for number in range(first, last)]
        flat = [value.numpy().ravel() for value in self.net.state_dict().values()]
        return np.concatenate([*flat, np.array(norms)]).tobytes()


@pytest.mark.parametrize(("cls", "options"), RULES, ids=["SGD", "AdamW"])
def test_the_bits_are_those_of_one_rank(group, cls, options):
    alone = Run(local_group(), False, cls, **options).steps(0, 4)
    assert Run(group, True, cls, **options).steps(0, 4) == alone


def test_without_shards_the_bits_are_those_of_plain_data_parallelism(group):
    plain = Run(group, False, AdamW, None, lr=0.01).steps(0, 3)
    assert Run(group, True, AdamW, None, lr=0.01).steps(0, 3) == plain


@pytest.mark.parametrize("back", [False, True])
def test_state_goes_to_another_kind_and_back(group, back):
    alone = Run(local_group(), False, lr=0.01)
    alone.steps(0, 2)
    run = Run(group, True, lr=0.01)
    run.steps(0, 2)
    state = full_optim_state_dict(run.optimizer, None)
    for number, row in alone.optimizer.state_dict()["state"].items():
        for name, value in row.items():
            np.testing.assert_array_equal(value.numpy(), state["state"][number][name].numpy())
    other = Run(group, back, lr=0.5)
    other.net.load_state_dict(run.net.state_dict())
    load_full_optim_state_dict(other.optimizer, state)
    assert other.steps(2, 4) == alone.steps(2, 4)


def test_different_groups_are_named_on_every_rank(group):
    if group.size == 1:
        return
    with pytest.raises(DistributedError, match=r"differs from rank 0.*fully_shard\(Linear\)"):
        fully_shard(dg.nn.Linear(2, 3 if group.rank else 4), mesh=group)
