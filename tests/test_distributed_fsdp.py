"""fully_shard on threads as ranks: the bits of plain data parallelism, a part of the memory."""

import copy
import math
from functools import partial

import numpy as np
import pytest

import distgrad as dg
from distgrad.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    FullyShardedDataParallel,
    MixedPrecisionPolicy,
    ModuleWrapPolicy,
    ShardingStrategy,
    fully_shard,
    register_fsdp_forward_method,
    size_based_auto_wrap_policy,
    summon_full_params,
)
from distgrad.distributed.optim import ZeroRedundancyOptimizer, load_shards, save_shards
from distgrad.distributed.spread import spread_of
from distgrad.distributed.threads import run_ranks
from distgrad.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointError,
    DistributedError,
    GradError,
)
from distgrad.nn.parallel import DistributedDataParallel
from distgrad.nn.utils import clip_grad_norm_, clip_grad_value_
from distgrad.optim import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop
from distgrad.optim.parts import full_optim_state_dict, load_full_optim_state_dict
from distgrad.testing import device_ranks, standin
from distgrad.utils.checkpoint import checkpoint

V = 8
BATCH = 24


def fill(module, seed=0):
    rng = np.random.default_rng(seed)
    for p in module.parameters():
        p.data.copy_(dg.from_numpy(rng.standard_normal(p.shape).astype("float32")))
    return module


class Net(dg.nn.Module):
    """Layers of odd sizes, a number without a dimension, and a branch that may stay unused."""

    def __init__(self, seed=0):
        super().__init__()
        self.a, self.norm, self.b = dg.nn.Linear(9, 40), dg.nn.LayerNorm(40), dg.nn.Linear(40, 33)
        self.c, self.idle = dg.nn.Linear(33, 3), dg.nn.Linear(40, 5)
        self.scale = dg.nn.Parameter(dg.tensor(1.0))
        fill(self, seed)

    def forward(self, x, idle=False):
        x = self.norm(self.a(x).tanh() * self.scale)
        extra = self.idle(x).sum(1, keepdim=True) if idle else 0
        return self.c(self.b(x).tanh()) + extra


def data(seed):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((BATCH, n)).astype("float32") for n in (9, 3))


def shard(net, group, layers=("a", "b", "c", "idle"), **options):
    for name in layers:
        fully_shard(net.get_submodule(name), mesh=group)
    return fully_shard(net, mesh=group, **options)


def made(group, sharded, shards=V, seed=0, **options):
    """Return the model, by fully_shard or by DistributedDataParallel."""
    if sharded:
        return shard(Net(seed), group, reduction="sum", shards=shards, **options)
    return DistributedDataParallel(
        Net(seed), process_group=group, reduction="sum", shards=shards, bucket_cap_mb=0.003,
        determinism="world" if shards else "run",
    )  # fmt: skip


def rows_of(model, group, shards):
    parts, mine = (shards, model.local_shards) if shards else (group.size, [group.rank])
    return [slice(BATCH * i // parts, BATCH * (i + 1) // parts) for i in mine]


def backward(model, group, seed, idle=False, shards=V):
    x, y = data(seed)
    for rows in rows_of(model, group, shards):
        ((model(dg.from_numpy(x[rows]), idle) - dg.from_numpy(y[rows])) ** 2).sum().backward()


def inner(model):
    return model if isinstance(model, FSDPModule) else model.module


def weights(model):
    return b"".join(v.numpy().tobytes() for v in inner(model).state_dict().values())


def train(group, sharded, cls=AdamW, shards=V, steps=3, clip=1.0, schedule=False, **options):
    """Return the weights and the norms of gradients."""
    model = made(group, sharded, shards)
    optimizer = cls(model.parameters(), **options)
    rates = dg.optim.lr_scheduler.StepLR(optimizer, 1, 0.5) if schedule else None
    norms = []
    for step in range(steps):
        optimizer.zero_grad()
        backward(model, group, step, idle=step == 1, shards=shards)
        norms.append(clip_grad_norm_(model.parameters(), clip).item())
        optimizer.step()
        if rates:
            rates.step()
    return weights(model), norms


RULES = [
    (SGD, {"lr": 0.01}),
    (SGD, {"lr": 0.01, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    (Adadelta, {}),
    (Adagrad, {"initial_accumulator_value": 0.1}),
    (Adam, {"amsgrad": True, "maximize": True}),
    (AdamW, {"lr": 0.01}),
    (Adamax, {}),
    (NAdam, {}),
    (RAdam, {}),
    (RMSprop, {"momentum": 0.9, "centered": True}),
]


# ---------------------------------------------------------------------- the same bits
@pytest.mark.parametrize(("cls", "options"), RULES, ids=lambda v: getattr(v, "__name__", ""))
def test_every_update_rule_has_the_bits_of_one_rank(cls, options):
    (alone,) = run_ranks(1, lambda group: train(group, False, cls, schedule=True, **options))
    for result in run_ranks(3, lambda group: train(group, True, cls, schedule=True, **options)):
        assert result == alone


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8])
def test_any_number_of_ranks_has_the_same_bits(size):
    (alone,) = run_ranks(1, train, False)
    for result in run_ranks(size, train, True):
        assert result == alone


@pytest.mark.parametrize("size", [1, 2, 3])
def test_without_shards_the_bits_are_those_of_plain_data_parallelism(size):
    def body(group, sharded):
        return train(group, sharded, SGD, None, lr=0.01, momentum=0.9)

    assert run_ranks(size, body, True) == run_ranks(size, body, False)


@pytest.mark.parametrize("per_host", [1, 2])
def test_gradients_reach_their_owners_across_hosts(per_host):
    (alone,) = run_ranks(1, train, False)
    for result in run_ranks(4, train, True, ranks_per_host=per_host):
        assert result == alone


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, math.inf, 0.0])
def test_norms_are_those_of_whole_gradients(norm_type):
    def body(group, sharded):
        model = made(group, sharded)
        backward(model, group, 0)
        return clip_grad_norm_(model.parameters(), 0.5, norm_type).item()

    (alone,) = run_ranks(1, body, False)
    assert run_ranks(3, body, True) == [alone] * 3


def test_clipping_by_value_reaches_parts():
    def body(group, sharded):
        model = made(group, sharded)
        backward(model, group, 0)
        clip_grad_value_(model.parameters(), 1e-3)
        SGD(model.parameters(), lr=0.1).step()
        return weights(model)

    (alone,) = run_ranks(1, body, False)
    assert run_ranks(3, body, True) == [alone] * 3


def test_means_of_uneven_batches_are_those_of_the_big_batch():
    def body(group, sharded):
        net = fill(dg.nn.Linear(9, 4))
        x = np.random.default_rng(0).standard_normal((BATCH, 9)).astype("float32")
        if not sharded:
            net(dg.from_numpy(x)).square().mean().backward()
            return net.weight.grad.numpy()
        fully_shard(net, mesh=group)
        rows = slice(0, 5) if not group.rank else slice(5, BATCH)
        net(dg.from_numpy(x[rows])).square().mean().backward()
        SGD(net.parameters(), lr=1.0).step()
        return fill(dg.nn.Linear(9, 4)).weight.detach().numpy() - net.state_dict()["weight"].numpy()

    (alone,) = run_ranks(1, body, False)
    for result in run_ranks(2, body, True):
        np.testing.assert_allclose(result, alone, rtol=1e-5, atol=1e-6)


def test_random_numbers_belong_to_the_shard():
    def body(group):
        net = dg.nn.Sequential(fill(dg.nn.Linear(9, 30)), dg.nn.Dropout(0.5))
        model = fully_shard(net, mesh=group, reduction="sum", shards=4)
        optimizer = SGD(model.parameters(), lr=0.1)
        for step in range(2):
            x = np.random.default_rng(step).standard_normal((8, 9)).astype("float32")
            optimizer.zero_grad()
            for part in model.local_shards:
                model(dg.from_numpy(x[2 * part : 2 * part + 2])).square().sum().backward()
            optimizer.step()
        return weights(model)

    dg.manual_seed(3)
    (alone,) = run_ranks(1, body)
    for size in (2, 3):
        assert run_ranks(size, body) == [alone] * size


def test_one_thread_is_enough():
    def body(group):
        for channel in group.siblings.values():
            channel.thread_safe = False
        return train(group, True)

    (alone,) = run_ranks(1, train, False)
    assert run_ranks(3, body) == [alone] * 3


def test_training_goes_on_after_an_error_in_backward():
    def body(group, fails):
        model = made(group, True)
        optimizer = AdamW(model.parameters(), lr=0.01)
        if fails:

            def fail(grad):
                raise ValueError("by the test")

            x = dg.ones(2, 9, requires_grad=True)
            loss = model(x).square().sum()
            x.register_hook(fail)
            with pytest.raises(ValueError, match="by the test"):
                loss.backward()
            with model.no_sync():
                model(dg.ones(2, 9)).sum().backward()
            model.zero_grad()
        for step in range(2):
            optimizer.zero_grad()
            backward(model, group, step)
            optimizer.step()
        return weights(model)

    (alone,) = run_ranks(1, body, False)
    assert run_ranks(3, body, False) == [alone] * 3
    assert run_ranks(1, body, True) == [alone]
    assert run_ranks(3, body, True) == [alone] * 3


# ---------------------------------------------------------------------- accumulation
def test_accumulation_without_sync_has_the_same_bits():
    def body(group, sharded):
        model = made(group, sharded, None)
        optimizer = AdamW(model.parameters(), lr=0.01)
        for step in range(3):
            optimizer.zero_grad()
            with model.no_sync():
                backward(model, group, 10 + step, idle=group.rank == 1, shards=None)
                backward(model, group, 20 + step, shards=None)
            backward(model, group, step, shards=None)
            optimizer.step()
        return weights(model)

    def uniform(group, sharded):  # with fully_shard all ranks gather the same groups
        model = made(group, sharded, None)
        optimizer = AdamW(model.parameters(), lr=0.01)
        for step in range(3):
            optimizer.zero_grad()
            with model.no_sync():
                backward(model, group, 10 + step, idle=True, shards=None)
            backward(model, group, step, shards=None)
            optimizer.step()
        return weights(model)

    assert run_ranks(1, body, True) == run_ranks(1, body, False)
    assert run_ranks(3, uniform, True) == run_ranks(3, uniform, False)


def test_means_add_up_until_they_are_dropped():
    def body(group):
        model = fully_shard(fill(dg.nn.Linear(9, 3)), mesh=group)
        x = dg.from_numpy(next(data(0)))
        model(x).sum().backward()
        once = model.weight.grad.clone()
        model(x).sum().backward()
        assert dg.equal(model.weight.grad, 2 * once)
        model.zero_grad()
        assert model.weight.grad is None

    run_ranks(2, body)


def test_a_switch_turns_the_reduction_off():
    def body(group):
        model = fully_shard(fill(dg.nn.Linear(9, 3)), mesh=group)
        model.set_requires_gradient_sync(False)
        model(dg.ones(2, 9)).sum().backward()
        assert model.weight.grad is None
        model.set_requires_gradient_sync(True)
        model(dg.ones(2, 9)).sum().backward()
        assert model.weight.grad is not None
        with pytest.raises(ArgumentError, match="outermost"):
            model.set_requires_gradient_sync(False, recurse=False)

    run_ranks(2, body)


# ---------------------------------------------------------------------- what is where
def test_a_rank_keeps_a_part_and_whole_parameters_while_a_module_computes():
    def body(group):
        seen = []

        class Watched(dg.nn.Module):
            def __init__(self):
                super().__init__()
                self.low, self.high = (dg.nn.Linear(64, 64, bias=False) for _ in "ab")

            def forward(self, x):
                x = self.low(x)
                seen.append(unit(self.low).gathered)
                return self.high(x)

        model = Watched()
        fully_shard(model.low, mesh=group)
        fully_shard(model.high, mesh=group)
        fully_shard(model, mesh=group)
        assert sum(p.numel() for p in model.parameters()) == 2 * 64 * 64 // group.size
        optimizer = Adam(model.parameters())
        out = model(dg.ones(2, 64))
        assert seen == [False]
        assert not unit(model.high).gathered
        assert model.low.weight.shape == (32 * 64,)
        out.sum().backward()
        assert not any(unit(m).gathered for m in (model.low, model.high))
        optimizer.step()
        kept = sum(t.numel() for row in optimizer.state.values() for t in row.values() if t.ndim)
        assert kept == 2 * 2 * 64 * 64 // group.size

    run_ranks(2, body)


def unit(module):
    return module._fsdp.unit


def test_the_outermost_group_stays_whole_until_backward_is_over():
    def body(group):
        net = Net()
        model = shard(net, group)
        loss = model(dg.ones(2, 9)).sum()
        assert unit(model).gathered
        assert not unit(net.b).gathered
        loss.backward()
        assert not unit(model).gathered
        model.set_reshard_after_forward(True)
        model(dg.ones(2, 9))
        assert not unit(model).gathered
        model.set_reshard_after_forward(False)
        model(dg.ones(2, 9))
        assert unit(net.b).gathered
        with dg.no_grad():
            model(dg.ones(2, 9))
        assert not unit(net.b).gathered

    run_ranks(2, body)


def test_groups_are_gathered_once_for_forward_and_once_for_backward():
    def body(group):
        net = Net()
        model = shard(net, group)
        for _ in range(3):
            model(dg.ones(2, 9), True).sum().backward()
            model.zero_grad()
        return [unit(m).gathers for m in (model, net.a, net.b, net.c, net.idle)]

    assert run_ranks(2, body) == [[3, 6, 6, 6, 6]] * 2


def test_groups_are_dropped_as_backward_passes():
    def body(group):
        model = dg.nn.Sequential(*[fully_shard(dg.nn.Linear(9, 9), mesh=group) for _ in range(4)])
        fully_shard(model, mesh=group)
        seen = []
        x = dg.ones(1, 9, requires_grad=True)
        h = x * 1
        h.register_hook(lambda g: seen.append([unit(m).gathered for m in model]))
        model(h).sum().backward()
        assert seen == [[False] * 4]

    run_ranks(2, body)


def test_the_next_group_is_gathered_while_one_computes():
    def body(group):
        open_ = []

        class Layer(dg.nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = dg.nn.Linear(9, 9)

            def forward(self, x):
                open_.append([unit(m)._host is not None for m in model])
                return self.linear(x)

        model = dg.nn.Sequential(*[fully_shard(Layer(), mesh=group) for _ in range(3)])
        fully_shard(model, mesh=group)
        model(dg.ones(1, 9)).sum().backward()
        assert not any(any(row) for row in open_)  # nobody knows the order yet
        open_.clear()
        model(dg.ones(1, 9)).sum().backward()
        assert [row.index(True) if True in row else None for row in open_] == [1, 2, None]
        model[0].set_modules_to_forward_prefetch([model[1], model[2]])
        open_.clear()
        model(dg.ones(1, 9))
        assert open_[0] == [False, True, True]

    run_ranks(2, body)


def test_parameters_keep_their_identity():
    net = Net()
    before = list(net.parameters())
    optimizer = SGD(net.parameters(), lr=0.1)
    model = shard(net, None)
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
    model(dg.ones(2, 9)).sum().backward()
    was = model.state_dict()["a.weight"].clone()
    optimizer.step()
    assert not dg.equal(model.state_dict()["a.weight"], was)
    assert spread_of(net.a.weight) is unit(net.a).spread


def test_a_group_that_stays_gathered_follows_updates():
    def body(group, stays):
        model = fully_shard(fill(dg.nn.Linear(9, 3)), mesh=group)
        model.set_reshard_after_backward(not stays)
        optimizer = SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(dg.ones(2, 9)).square().sum().backward()
            optimizer.step()
        return weights(model)

    assert run_ranks(2, body, True) == run_ranks(2, body, False)


# ---------------------------------------------------------------------- kinds of modules
def test_shared_parameters_in_one_group():
    class Tied(dg.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = dg.nn.Embedding(11, 6), dg.nn.Linear(6, 11, bias=False)
            self.head.weight = self.embed.weight
            self.mix = dg.nn.Linear(6, 6)
            fill(self)

        def forward(self, ids):
            return self.head(self.mix(self.embed(ids)).tanh())

    def body(group, sharded):
        net = Tied()
        if sharded:
            fully_shard(net.mix, mesh=group)
            model = fully_shard(net, mesh=group, shards=4)
        else:
            model = DistributedDataParallel(net, process_group=group, determinism="world", shards=4)
        optimizer = Adam(model.parameters())
        ids = np.random.default_rng(0).integers(0, 11, (8, 3))
        for _ in range(2):
            optimizer.zero_grad()
            for part in model.local_shards:
                model(dg.from_numpy(ids[2 * part : 2 * part + 2])).square().mean().backward()
            optimizer.step()
        return weights(model)

    (alone,) = run_ranks(1, body, False)
    assert run_ranks(3, body, True) == [alone] * 3


def test_a_parameter_shared_with_another_group_is_refused():
    net = Net()
    net.c.weight = dg.nn.Parameter(dg.zeros(33, 33))
    net.b.extra = net.c.weight
    fully_shard(net.c)
    with pytest.raises(ArgumentError, match="extra is in another group"):
        fully_shard(net.b)
    with pytest.raises(ArgumentError, match="extra is in another group"):
        fully_shard(net)


def test_several_modules_make_one_group():
    def body(group, sharded):
        net = Net()
        if sharded:
            fully_shard([net.b, net.c], mesh=group)
            model = shard(net, group, ("a",), reduction="sum", shards=V)
            assert unit(net.b) is unit(net.c)
        else:
            model = made(group, False)
        backward(model, group, 0)
        SGD(model.parameters(), lr=0.1).step()
        return weights(model)

    (alone,) = run_ranks(1, body, False)
    assert run_ranks(3, body, True) == [alone] * 3


class Block(dg.nn.Module):
    """Adds something to its input, computed again in backward, inside or outside of the call."""

    def __init__(self, again=None):
        super().__init__()
        self.up, self.down, self.again = dg.nn.Linear(9, 20), dg.nn.Linear(20, 9), again

    def inner(self, x):
        return self.down(self.up(x).tanh())

    def forward(self, x):
        return x + (self.inner(x) if self.again is None else self.again(self.inner, x))


class Stack(dg.nn.Module):
    def __init__(self, blocks, again=None):
        super().__init__()
        self.blocks, self.again = dg.nn.ModuleList(blocks), again
        fill(self)

    def forward(self, x):
        for block in self.blocks:
            x = block(x) if self.again is None else self.again(block, x)
        return x


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("outside", [False, True])
def test_checkpointed_segments_have_the_same_bits(reentrant, outside):
    again = partial(checkpoint, use_reentrant=reentrant)

    def body(group, sharded):
        blocks = [Block(None if outside else again) for _ in range(3)]
        net = Stack(blocks, again if outside else None)
        if sharded:
            for block in blocks:
                fully_shard(block, mesh=group)
            model = fully_shard(net, mesh=group, shards=4)
        else:
            model = DistributedDataParallel(net, process_group=group, determinism="world", shards=4)
        optimizer = Adam(model.parameters())
        for step in range(2):
            optimizer.zero_grad()
            x = np.random.default_rng(step).standard_normal((8, 9)).astype("float32")
            for part in model.local_shards:
                rows = dg.from_numpy(x[2 * part : 2 * part + 2]).requires_grad_()
                model(rows).square().mean().backward()
            optimizer.step()
        return weights(model)

    (alone,) = run_ranks(1, body, False)
    assert run_ranks(3, body, True) == [alone] * 3


def test_frozen_parameters_are_shared_out_and_stay():
    def body(group, sharded):
        net = Net()
        net.b.weight.requires_grad_(False)
        net.a.requires_grad_(False)
        if sharded:
            model = shard(net, group, reduction="sum", shards=V)
        else:
            model = DistributedDataParallel(
                net, process_group=group, determinism="world", shards=V, reduction="sum"
            )
        backward(model, group, 0)
        SGD(model.parameters(), lr=0.1).step()
        return weights(model)

    (alone,) = run_ranks(1, body, False)
    assert run_ranks(3, body, True) == [alone] * 3


def test_ignored_parameters_are_left_alone():
    net = Net()
    model = fully_shard(net, ignored_params={net.scale})
    assert spread_of(net.scale) is None
    model(dg.ones(2, 9)).sum().backward()
    assert net.scale.grad.shape == net.scale.shape


def test_results_in_containers_reach_backward():
    class Pair(dg.nn.Module):
        def __init__(self):
            super().__init__()
            self.one = fill(dg.nn.Linear(9, 3))

        def forward(self, x):
            return {"y": [self.one(x)], "n": 1}

    def body(group):
        inside = fully_shard(Pair(), mesh=group)
        model = fully_shard(dg.nn.Sequential(inside), mesh=group)
        model(dg.ones(2, 9))["y"][0].square().sum().backward()
        assert not unit(inside).gathered
        assert unit(inside).gathers == 2

    run_ranks(2, body)


def test_a_parameter_that_backward_reads_without_warning_is_gathered():
    def body(group):
        kept = []

        class Leaky(dg.nn.Module):
            def __init__(self):
                super().__init__()
                self.one = dg.nn.Linear(9, 3)

            def forward(self, x):
                kept.append(self.one(x))
                return x.sum()

        inside = fully_shard(fill(Leaky()), mesh=group)
        model = fully_shard(dg.nn.Sequential(inside), mesh=group)
        x = dg.ones(2, 9, requires_grad=True)
        model(x)
        assert not unit(inside).gathered
        kept[0].sum().backward()
        return x.grad.numpy().tobytes()

    assert len(set(run_ranks(2, body) + run_ranks(1, body))) == 1


def test_another_method_can_be_the_forward():
    def body(group):
        class Coder(dg.nn.Module):
            def __init__(self):
                super().__init__()
                self.one = dg.nn.Linear(9, 3)

            def encode(self, x):
                return self.one(x)

        model = fully_shard(fill(Coder()), mesh=group)
        register_fsdp_forward_method(model, "encode")
        model.encode(dg.ones(2, 9)).sum().backward()
        return model.one.bias.grad is not None

    assert all(run_ranks(2, body))


def test_buffers_of_rank_0_are_the_start():
    def body(group):
        net = dg.nn.Sequential(dg.nn.Linear(4, 4), dg.nn.BatchNorm1d(4))
        net[1].running_mean += group.rank
        with dg.no_grad():
            net[0].weight += group.rank
        model = fully_shard(net, mesh=group)
        model(dg.ones(3, 4))
        return model.state_dict()["1.running_mean"].numpy().tobytes(), weights(model)

    first, second = run_ranks(2, body)
    assert first == second


# ---------------------------------------------------------------------- the older interface
@pytest.mark.parametrize("strategy", list(ShardingStrategy)[:2])
def test_a_wrapped_model_has_the_same_bits(strategy):
    def body(group, sharded):
        if not sharded:
            model = made(group, False)
        else:
            model = FullyShardedDataParallel(
                Net(), group, strategy, ModuleWrapPolicy({dg.nn.Linear}),
                reduction="sum", shards=V,
            )  # fmt: skip
            assert isinstance(model.module.a, FSDPModule)
            assert not isinstance(model.module.norm, FSDPModule)
            assert [n for n, _ in model.named_parameters()] == [
                n for n, _ in Net().named_parameters()
            ]
        optimizer = AdamW(model.parameters())
        backward(model.module if sharded else model, group, 0)
        clip = model.clip_grad_norm_ if sharded else partial(clip_grad_norm_, model.parameters())
        norm = clip(1.0)
        optimizer.step()
        if sharded:
            model.load_state_dict(model.state_dict())
            model(dg.ones(1, 9))
            assert unit(model.module.b).gathered == (strategy is ShardingStrategy.SHARD_GRAD_OP)
        return norm.item(), weights(model)

    (alone,) = run_ranks(1, body, False)
    assert run_ranks(3, body, True) == [alone] * 3


def test_groups_by_size():
    def policy(module, recurse, nonwrapped_numel):
        return size_based_auto_wrap_policy(module, recurse, nonwrapped_numel, 300)

    net = Net()
    model = FullyShardedDataParallel(net, auto_wrap_policy=policy)
    groups = [name for name, m in net.named_modules() if isinstance(m, FSDPModule)]
    assert groups == ["", "a", "b"]
    with model.summon_full_params(model):
        assert net.a.weight.shape == (40, 9)
    with pytest.raises(ArgumentError, match="takes FULL_SHARD or SHARD_GRAD_OP"):
        FullyShardedDataParallel(Net(), sharding_strategy=ShardingStrategy.NO_SHARD)


# ---------------------------------------------------------------------- precision
def test_mixed_precision_computes_narrow_and_keeps_wide():
    def body(group):
        seen = []

        class Seen(dg.nn.Linear):
            def forward(self, x):
                seen.append((x.dtype, self.weight.dtype))
                return super().forward(x)

        policy = MixedPrecisionPolicy(dg.float16, dg.float32, dg.float32)
        model = fully_shard(fill(Seen(9, 3)), mesh=group, mp_policy=policy)
        out = model(dg.ones(2, 9))
        assert seen == [(dg.float16, dg.float16)]
        assert out.dtype == model.state_dict()["weight"].dtype == dg.float32
        out.sum().backward()
        assert model.weight.grad.dtype == dg.float32
        return model.bias.grad.tolist()

    grads = [g for part in run_ranks(2, body) for g in part]
    assert grads == [2.0] * 3


# ---------------------------------------------------------------------- state
@pytest.mark.parametrize(("before", "after"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("sizes", [(3, 2), (1, 4), (4, 1)])
def test_whole_state_goes_to_any_number_of_ranks_and_any_kind(sizes, before, after):
    def first(group):
        model = made(group, before)
        optimizer = AdamW(model.parameters(), lr=0.01)
        for step in range(2):
            optimizer.zero_grad()
            backward(model, group, step)
            optimizer.step()
        whole = full_optim_state_dict(optimizer, None)
        saved = copy.deepcopy((inner(model).state_dict(), whole))
        optimizer.zero_grad()
        backward(model, group, 2)
        optimizer.step()
        return saved, weights(model)

    def second(group, saved):
        model = made(group, after, seed=7)
        optimizer = AdamW(model.parameters(), lr=0.5)
        inner(model).load_state_dict(saved[0])
        load_full_optim_state_dict(optimizer, saved[1])
        backward(model, group, 2)
        optimizer.step()
        return weights(model)

    saved, expected = run_ranks(sizes[0], first)[0]
    assert run_ranks(sizes[1], second, saved) == [expected] * sizes[1]


@pytest.mark.parametrize(("before", "after"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("sizes", [(3, 2), (2, 4)])
def test_files_of_parts_are_read_by_any_number_of_ranks(sizes, before, after, tmp_path):
    def first(group):
        model = made(group, before)
        optimizer = AdamW(model.parameters(), lr=0.01)
        backward(model, group, 0)
        optimizer.step()
        if before or group.rank == 0:
            save_shards(inner(model), tmp_path / "model")
            save_shards(optimizer, tmp_path / "state")
        optimizer.zero_grad()
        backward(model, group, 2)
        optimizer.step()
        return weights(model)

    def second(group):
        model = made(group, after, seed=7)
        optimizer = AdamW(model.parameters(), lr=0.5)
        load_shards(inner(model), tmp_path / "model")
        load_shards(optimizer, tmp_path / "state")
        backward(model, group, 2)
        optimizer.step()
        with pytest.raises(CheckpointError, match=r"elements there|other names"):
            load_shards(inner(model), tmp_path / "state")
        return weights(model)

    expected = run_ranks(sizes[0], first)[0]
    assert run_ranks(sizes[1], second) == [expected] * sizes[1]
    if before:
        sizes_of = [f.stat().st_size for f in sorted(tmp_path.glob("model/rank*"))]
        assert max(sizes_of) < 2 * min(sizes_of)


def test_state_goes_to_one_rank():
    def body(group):
        model = made(group, True)
        optimizer = Adam(model.parameters())
        backward(model, group, 0)
        optimizer.step()
        state = full_optim_state_dict(optimizer, 1)
        with pytest.raises(ArgumentError, match="is no rank"):
            full_optim_state_dict(optimizer, 2)
        return [row["exp_avg"].shape for row in state["state"].values()] if state else None

    nothing, shapes = run_ranks(2, body)
    assert nothing is None
    net = Net()
    used = [p for n, p in net.named_parameters() if not n.startswith("idle")]
    assert shapes == [p.shape for p in used]


def test_summoned_parameters_are_whole_and_written_back():
    def body(group):
        model = made(group, True)
        with summon_full_params(model), dg.no_grad():
            assert model.a.weight.shape == (40, 9)
            model.a.weight.fill_(2.0)
            if group.rank == 0:  # needs no other rank
                model(dg.ones(1, 9))
        assert model.a.weight.ndim == 1
        assert (model.a.weight == 2).all()
        with summon_full_params(model, writeback=False), dg.no_grad():
            model.a.weight.fill_(3.0)
        return (model.state_dict()["a.weight"] == 2).all().item()

    assert all(run_ranks(3, body))


def test_unshard_and_reshard_by_hand():
    def body(group):
        layer = fully_shard(fill(dg.nn.Linear(9, 3)), mesh=group)
        handle = layer.unshard(async_op=True)
        handle.wait()
        assert layer.weight.shape == (3, 9)
        layer.reshard()
        assert layer.weight.ndim == 1
        assert layer.unshard() is None
        assert layer.weight.shape == (3, 9)

    run_ranks(2, body)


def test_hooks_of_parts_see_means():
    def body(group):
        model = fully_shard(fill(dg.nn.Linear(9, 3)), mesh=group)
        seen = []
        model.weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
        model(dg.ones(2, 9)).sum().backward()
        return len(seen) == 1 and dg.equal(seen[0], model.weight.grad)

    assert all(run_ranks(2, body))


# ---------------------------------------------------------------------- on GPUs
@pytest.mark.parametrize("gpus", [1, 3])
def test_models_on_gpus_take_the_hosts_steps(gpus):
    def body(group, count):
        place = device_ranks.place_of(group, count)
        net = Net().to(place)
        model = shard(net, group, reduction="sum", shards=V)
        optimizer = AdamW(model.parameters(), lr=0.01)
        for step in range(2):
            optimizer.zero_grad()
            x, y = (dg.from_numpy(a).to(place) for a in data(step))
            for rows in rows_of(model, group, V):
                ((model(x[rows]) - y[rows]) ** 2).sum().backward()
            clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        assert model.a.weight.device.type == place.type
        model.load_state_dict(model.state_dict())
        return [v.cpu().numpy() for v in model.state_dict().values()]

    want = run_ranks(3, body, 0)
    with standin.installed(gpus) as machine:
        device_ranks.check_close(run_ranks(3, body, gpus), want)
        assert not machine.hazards


# ---------------------------------------------------------------------- with torch
@pytest.mark.torch
def test_weights_agree_with_torch():
    torch = pytest.importorskip("torch")
    x, y = data(0)
    net = Net()
    state = {k: torch.tensor(v.numpy().copy()) for k, v in net.state_dict().items()}
    leaves = {k: v.requires_grad_() for k, v in state.items() if not k.startswith("idle")}
    optimizer = torch.optim.AdamW(leaves.values(), lr=0.01)
    F = torch.nn.functional
    for _ in range(3):
        optimizer.zero_grad()
        h = torch.tanh(F.linear(torch.tensor(x), leaves["a.weight"], leaves["a.bias"]))
        h = F.layer_norm(h * leaves["scale"], (40,), leaves["norm.weight"], leaves["norm.bias"])
        h = torch.tanh(F.linear(h, leaves["b.weight"], leaves["b.bias"]))
        out = F.linear(h, leaves["c.weight"], leaves["c.bias"])
        ((out - torch.tensor(y)) ** 2).mean().backward()
        optimizer.step()

    def body(group):
        model = shard(Net(), group)
        ours = AdamW(model.parameters(), lr=0.01)
        for _ in range(3):
            ours.zero_grad()
            rows = rows_of(model, group, None)[0]
            ((model(dg.from_numpy(x[rows])) - dg.from_numpy(y[rows])) ** 2).mean().backward()
            ours.step()
        return {k: v.numpy() for k, v in model.state_dict().items()}

    for result in run_ranks(3, body):
        for name, value in leaves.items():
            np.testing.assert_allclose(result[name], value.detach().numpy(), rtol=2e-4, atol=2e-5)


# ---------------------------------------------------------------------- mistakes
def test_different_models_are_named_on_every_rank():
    def body(group):
        with pytest.raises(DistributedError, match=r"rank 1 differs.*fully_shard\(Linear\)"):
            fully_shard(dg.nn.Linear(3 + group.rank, 2), mesh=group)

    run_ranks(2, body)


def test_different_groups_and_options_are_named_on_every_rank():
    def body(group):
        net = Net()
        if group.rank:
            fully_shard(net.a, mesh=group.siblings["user"])
        else:
            fully_shard(net.b, mesh=group)

    with pytest.raises(DistributedError, match="differs from rank 0"):
        run_ranks(2, body)

    def options(group):
        model = shard(Net(), group, reduction="sum" if group.rank else "mean")
        with pytest.raises(DistributedError, match=r"differs.*groups of fully_shard: mean"):
            model(dg.ones(1, 9))

    run_ranks(2, options)


def test_what_is_not_offered_is_refused():
    with pytest.raises(ArgumentError, match="shard_placement_fn"):
        fully_shard(Net(), shard_placement_fn=lambda p: None)
    with pytest.raises(ArgumentError, match="no smaller group"):
        fully_shard(Net(), reshard_after_forward=2)
    with pytest.raises(ArgumentError, match="device of the parameters"):
        fully_shard(Net(), offload_policy=CPUOffloadPolicy())
    with pytest.raises(ArgumentTypeError, match="takes a Module"):
        fully_shard(dg.ones(2))
    net = Net()
    net.a.double()
    with pytest.raises(ArgumentError, match="uniform original parameter dtype"):
        fully_shard(net)
    model = fully_shard(Net())
    with pytest.raises(ArgumentError, match="is a group already"):
        fully_shard(model)
    with pytest.raises(DistributedError, match="does not support deepcopy"):
        copy.deepcopy(model)
    with pytest.raises(ArgumentError, match="divided by the number of samples"):
        model.set_gradient_divide_factor(2.0)
    with pytest.raises(ArgumentError, match="copied into"):
        model.load_state_dict(model.state_dict(), assign=True)
    with pytest.raises(ArgumentError, match="0 or more"):
        model.add_count(-1)


def test_options_of_the_outermost_module_belong_there():
    net = Net()
    fully_shard(net.a, reduction="sum")
    with pytest.raises(ArgumentError, match="belong to the outermost"):
        fully_shard(net)(dg.ones(1, 9))
    net = Net()
    fully_shard(net.a)(dg.ones(1, 9))
    with pytest.raises(ArgumentError, match="before that of the outermost"):
        fully_shard(net)(dg.ones(1, 9))
    with pytest.raises(ArgumentError, match="takes one of mean, sum"):
        fully_shard(Net(), reduction="max")(dg.ones(1, 9))
    with pytest.raises(ArgumentError, match="no parameters"):
        fully_shard(dg.nn.Tanh())(dg.ones(1, 9))

    def body(group):
        with pytest.raises(ArgumentError, match="at least as many shards"):
            fully_shard(Net(), mesh=group, shards=1)(dg.ones(1, 9))

    run_ranks(2, body)


def test_backward_after_an_update_is_refused():
    def body(group):
        model = shard(Net(), group)
        optimizer = SGD(model.parameters(), lr=0.1)
        model(dg.ones(2, 9)).sum().backward()
        loss = model(dg.ones(2, 9)).sum()
        optimizer.step()
        with pytest.raises(GradError, match="modified by an inplace operation"):
            loss.backward()

    run_ranks(2, body)


@pytest.mark.filterwarnings("ignore:Using backward")
def test_gradients_with_a_history_are_refused():
    model = fully_shard(Net())
    with pytest.raises(GradError, match="create_graph=True"):
        model(dg.ones(1, 9)).sum().backward(create_graph=True)


def test_parameters_that_were_moved_are_named():
    model = fully_shard(Net())
    model.double()
    with pytest.raises(DistributedError, match="memory of scale is no longer"):
        model(dg.ones(1, 9))


def test_optimizers_that_need_whole_parameters_are_refused():
    model = fully_shard(dg.nn.Linear(3, 2))
    for cls in (dg.optim.LBFGS, dg.optim.Adafactor):
        with pytest.raises(ArgumentError, match="looks at whole parameters"):
            cls(model.parameters())
    with pytest.raises(ArgumentError, match="use AdamW itself"):
        ZeroRedundancyOptimizer(model.parameters(), AdamW)


def test_nothing_to_count_is_an_error():
    def body(group):
        model = fully_shard(Net(), mesh=group)
        loss = model(dg.ones(2, 9)).sum()
        model.add_count(0)
        with pytest.raises(GradError, match="global sample count is 0"):
            loss.backward()

    run_ranks(2, body)
