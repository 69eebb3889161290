"""Local SGD on ranks that are threads: gradients of subgroups, averages of models."""

import pickle

import numpy as np
import pytest

import distgrad as dg
from distgrad.distributed.algorithms.ddp_comm_hooks.post_localSGD_hook import (
    PostLocalSGDState,
    post_localSGD_hook,
)
from distgrad.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from distgrad.distributed.algorithms.model_averaging.hierarchical_model_averager import (
    HierarchicalModelAverager,
)
from distgrad.distributed.algorithms.model_averaging.utils import (
    average_parameters,
    get_params_to_average,
)
from distgrad.distributed.optim import PostLocalSGDOptimizer
from distgrad.distributed.threads import run_ranks
from distgrad.errors import ArgumentError, ArgumentTypeError
from distgrad.nn.parallel import DistributedDataParallel

RATE, SIZE = 0.125, 4


class Given(dg.nn.Module):
    """Its gradient is the mean of the rows it gets, whatever the parameters are."""

    def __init__(self):
        super().__init__()
        self.weight = dg.nn.Parameter(dg.zeros(3, dtype=dg.float64))
        self.bias = dg.nn.Parameter(dg.zeros(2, 1, dtype=dg.float64))

    def forward(self, rows):
        both = (self.weight * rows[:, :3]).sum(1) + (self.bias.reshape(2) * rows[:, 3:]).sum(1)
        return both.mean()


def rows_of(step, rank):
    """Uneven: rank r has r + 1 rows."""
    return np.random.default_rng([step, rank]).standard_normal((rank + 1, 5))


def values(net):
    return np.concatenate([p.numpy(force=True).ravel() for p in net.parameters()])


def train(group, steps, start, averager, subgroup=None, share=True):
    """Return the parameters after each step."""
    net = Given()
    ddp = DistributedDataParallel(net, process_group=group, bucket_cap_mb=1e-5)
    state = PostLocalSGDState(None, subgroup, start, share)
    ddp.register_comm_hook(state, post_localSGD_hook)
    optimizer = PostLocalSGDOptimizer(dg.optim.SGD(net.parameters(), lr=RATE), averager())
    seen = []
    for step in range(steps):
        optimizer.zero_grad()
        ddp(dg.from_numpy(rows_of(step, group.rank))).backward()
        optimizer.step()
        seen.append(values(net))
    return seen


def modelled(steps, start, average, teams):
    """The same in NumPy: the parameters of each rank after each step."""
    here, seen = np.zeros((SIZE, 5)), []
    total = sum(range(1, SIZE + 1))
    for step in range(steps):
        sums = np.stack([rows_of(step, rank).sum(0) for rank in range(SIZE)])
        for team in teams if step >= start else [range(SIZE)]:
            team = list(team)
            here[team] -= RATE * sums[team].sum(0) * SIZE / (len(team) * total)
        for team in average(step):
            here[list(team)] = here[list(team)].mean(0)
        seen.append(here.copy())
    return seen


@pytest.mark.parametrize("per_host, share", [(2, True), (1, True), (None, True), (2, False)])
def test_subgroups_go_on_alone_and_meet_in_each_period(per_host, share):
    def body(group):
        averager = lambda: PeriodicModelAverager(3, warmup_steps=2, process_group=group)  # noqa: E731
        return train(group, 9, 2, averager, share=share)

    width = (per_host or SIZE) if share else 1
    teams = [range(a, a + width) for a in range(0, SIZE, width)]
    want = modelled(
        9, 2, lambda step: [range(SIZE)] if step >= 2 and (step - 2) % 3 == 0 else [], teams
    )
    for rank, seen in enumerate(run_ranks(SIZE, body, ranks_per_host=per_host)):
        for got, here in zip(seen, want, strict=True):
            np.testing.assert_allclose(got, here[rank], rtol=1e-12, atol=1e-14)


def test_large_groups_meet_less_often_than_small_ones():
    def body(group):
        averager = lambda: HierarchicalModelAverager({2: 2, 6: 4}, 1, group)  # noqa: E731
        return train(group, 9, 1, averager, share=False)

    def average(step):
        if step < 1 or (step - 1) % 2:
            return []
        return [range(4)] if (step - 1) % 6 == 0 else [range(2), range(2, 4)]

    want = modelled(9, 1, average, [[rank] for rank in range(SIZE)])
    for rank, seen in enumerate(run_ranks(SIZE, body)):
        for got, here in zip(seen, want, strict=True):
            np.testing.assert_allclose(got, here[rank], rtol=1e-12, atol=1e-14)


def test_a_subgroup_may_be_given():
    def body(group):
        mine, _ = dg.distributed.new_subgroups(2)
        averager = lambda: PeriodicModelAverager(100, 100, group)  # noqa: E731
        return train(group, 3, 0, averager, subgroup=mine)

    want = modelled(3, 0, lambda step: [], [range(2), range(2, 4)])
    for rank, seen in enumerate(run_ranks(SIZE, body)):
        np.testing.assert_allclose(seen[-1], want[-1][rank], rtol=1e-12)


def test_the_mean_of_parameters_has_the_same_bits_on_all_ranks():
    def body(group):
        rng = np.random.default_rng(group.rank)
        shapes = [(3, 5), (), (0, 2), (7,)]
        params = [
            dg.nn.Parameter(dg.from_numpy(np.array(rng.standard_normal(s), dtype)))
            for dtype in ("float32", "float64")
            for s in shapes
        ]
        fixed = dg.tensor([1.0 * group.rank])
        own = [p.numpy(force=True).copy() for p in params]
        versions = [p._version for p in params]
        average_parameters(get_params_to_average([*params, fixed]), group)
        assert all(p._version > v for p, v in zip(params, versions, strict=True))
        assert fixed.item() == group.rank
        return own, [p.numpy(force=True).copy() for p in params]

    results = run_ranks(3, body)
    for i, mean in enumerate(results[0][1]):
        np.testing.assert_allclose(mean, sum(own[i] for own, _ in results) / 3, rtol=1e-6)
        for _, other in results[1:]:
            np.testing.assert_array_equal(other[i], mean)


def test_the_step_of_the_averager_is_saved_with_the_optimizer():
    def made():
        net = Given()
        sgd = dg.optim.SGD(net.parameters(), lr=RATE, momentum=0.9)
        averager = PeriodicModelAverager(2, process_group=dg.distributed.local_group())
        return net, PostLocalSGDOptimizer(sgd, averager)

    net, optimizer = made()
    for _ in range(3):
        net(dg.ones(2, 5, dtype=dg.float64)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert net.weight.grad is None
    saved = optimizer.state_dict()
    other, again = made()
    again.load_state_dict(saved)
    assert (saved["step"], again.averager.step) == (3, 3)
    moment = again.state[other.weight]["momentum_buffer"]
    np.testing.assert_array_equal(
        moment.numpy(), optimizer.state[net.weight]["momentum_buffer"].numpy()
    )
    again.load_state_dict({k: v for k, v in saved.items() if k != "step"})
    assert again.averager.step == 0
    again.param_groups[0]["lr"] = 0.5
    assert again.optim.param_groups[0]["lr"] == 0.5
    again.add_param_group({"params": [dg.nn.Parameter(dg.zeros(1))]})
    assert len(again.param_groups) == len(again.optim.param_groups) == 2
    state = PostLocalSGDState(dg.distributed.local_group(), None, 7)
    state.iter = 5
    copied = pickle.loads(pickle.dumps(state))
    assert (copied.iter, copied.start_localSGD_iter, copied.process_group) == (5, 7, None)


def test_what_does_not_fit_is_named():
    alone = dg.distributed.local_group()
    with pytest.raises(ArgumentError, match=r"start_localSGD_iter=-1"):
        PostLocalSGDState(None, None, -1)
    with pytest.raises(ArgumentError, match=r"period=0"):
        PeriodicModelAverager(0)
    with pytest.raises(ArgumentError, match=r"warmup_steps=-1"):
        PeriodicModelAverager(2, -1)
    for sizes, why in (
        ({}, "periods and sizes of 1 or more"),
        ({2: 1, 4: 2}, "the last size is 2, and there are 1 ranks"),
        ({4: 1, 2: 2}, "must grow"),
        ({2: 2, 4: 3}, "each size divide the next"),
    ):
        with pytest.raises(ArgumentError, match=why):
            HierarchicalModelAverager(sizes, process_group=alone)
    with pytest.raises(ArgumentTypeError, match="takes parameters"):
        get_params_to_average([3])
