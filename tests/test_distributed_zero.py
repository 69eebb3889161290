"""ZeRO on ranks that are threads: the bits of plain data parallelism, with a part of the memory."""

import math
from itertools import pairwise

import numpy as np
import pytest

import distgrad as dg
from distgrad.distributed.algorithms.join import Join
from distgrad.distributed.bucket import Bucket, owned_slices
from distgrad.distributed.halves import doubling, gather
from distgrad.distributed.optim import ZeroRedundancyOptimizer
from distgrad.distributed.redistribute import redistribute
from distgrad.distributed.reduction import Exchange, Reduction
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
from distgrad.nn.utils.exact import exact_sum, exact_total, rounded
from distgrad.optim import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, RAdam, RMSprop
from distgrad.optim.shards import load_shards, save_shards

V = 8
BATCH = 24
CAP = 0.003


class Net(dg.nn.Module):
    """Layers of odd sizes, a number without a dimension, and a branch that may stay unused."""

    def __init__(self, seed=0):
        super().__init__()
        self.a, self.norm, self.b = dg.nn.Linear(9, 40), dg.nn.LayerNorm(40), dg.nn.Linear(40, 33)
        self.c, self.idle = dg.nn.Linear(33, 3), dg.nn.Linear(40, 5)
        self.scale = dg.nn.Parameter(dg.tensor(1.0))
        rng = np.random.default_rng(seed)
        for p in self.parameters():
            p.data.copy_(dg.from_numpy(rng.standard_normal(p.shape).astype("float32")))

    def forward(self, x, idle=False):
        x = self.norm(self.a(x).tanh() * self.scale)
        extra = self.idle(x).sum(1, keepdim=True) if idle else 0
        return self.c(self.b(x).tanh()) + extra


def data(seed):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((BATCH, n)).astype("float32") for n in (9, 3))


def wrapped(group, zero, determinism="world", **options):
    return DistributedDataParallel(
        Net(), process_group=group, determinism=determinism, bucket_cap_mb=CAP, reduction="sum",
        shards=V if determinism == "world" else None, shard_gradients=zero == 2, **options,
    )  # fmt: skip


def rows_of(ddp):
    group, world = ddp.process_group, ddp.reducer.determinism == "world"
    parts, mine = (V, ddp.local_shards) if world else (group.size, [group.rank])
    return [slice(BATCH * i // parts, BATCH * (i + 1) // parts) for i in mine]


def backward(ddp, seed, idle=False):
    x, y = data(seed)
    for rows in rows_of(ddp):
        ((ddp(dg.from_numpy(x[rows]), idle) - dg.from_numpy(y[rows])) ** 2).sum().backward()


def weights(ddp):
    return b"".join(p.detach().numpy().tobytes() for p in ddp.parameters())


def made(zero, params, cls, overlap=False, **options):
    if not zero:
        return cls(params, **options)
    return ZeroRedundancyOptimizer(params, cls, overlap_with_ddp=overlap, **options)


def train(group, zero, cls=AdamW, determinism="world", overlap=False, clip=1.0, steps=3, **options):
    """Return the weights and the norms of gradients."""
    ddp = wrapped(group, zero, determinism)
    optimizer = made(zero, ddp.parameters(), cls, overlap, **options)
    norms = []
    for step in range(steps):
        optimizer.zero_grad()
        backward(ddp, step, idle=step == 1)
        norms.append(clip_grad_norm_(ddp.parameters(), clip).item())
        optimizer.step()
    if zero:
        optimizer.wait()
    return weights(ddp), norms


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


@pytest.mark.parametrize(("cls", "options"), RULES, ids=lambda v: getattr(v, "__name__", ""))
@pytest.mark.parametrize("zero", [1, 2])
def test_every_update_rule_has_the_bits_of_one_rank(zero, cls, options):
    (alone,) = run_ranks(1, _with(cls, options, 0))
    for result in run_ranks(3, _with(cls, options, zero)):
        assert result == alone


def _with(cls, options, zero, **more):
    return lambda group: train(group, zero, cls, **more, **options)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("zero", [1, 2])
def test_world_mode_has_the_same_bits_on_any_number_of_ranks(size, zero, overlap):
    (alone,) = run_ranks(1, train, 0)
    for result in run_ranks(size, lambda group: train(group, zero, overlap=overlap)):
        assert result == alone


@pytest.mark.parametrize("determinism", ["run", "off"])
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("zero", [1, 2])
def test_other_modes_have_the_bits_of_plain_data_parallelism(size, zero, determinism):
    def body(group, zero):
        return train(group, zero, SGD, determinism, lr=0.01, momentum=0.9)

    plain = run_ranks(size, body, 0)
    assert run_ranks(size, body, zero) == plain


@pytest.mark.parametrize("per_host", [1, 2])
def test_gradients_reach_their_owners_across_hosts(per_host):
    (alone,) = run_ranks(1, train, 0)
    for result in run_ranks(4, train, 2, ranks_per_host=per_host):
        assert result == alone


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.0, math.inf, 0.0])
def test_norms_of_sharded_gradients_are_those_of_whole_ones(norm_type):
    def body(group, zero):
        ddp = wrapped(group, zero)
        backward(ddp, 0)
        return clip_grad_norm_(ddp.parameters(), 0.5, norm_type).item()

    (alone,) = run_ranks(1, body, 0)
    assert run_ranks(3, body, 2) == [alone] * 3


def test_clipping_by_value_reaches_sharded_gradients():
    def body(group, zero):
        ddp = wrapped(group, zero)
        optimizer = made(zero, ddp.parameters(), SGD, lr=0.1)
        backward(ddp, 0)
        clip_grad_value_(ddp.parameters(), 1e-3)
        optimizer.step()
        return weights(ddp)

    (alone,) = run_ranks(1, body, 0)
    assert run_ranks(3, body, 2) == [alone] * 3


def test_a_norm_that_is_no_number_is_handed_on():
    def body(group):
        ddp = wrapped(group, 2, "run")
        x = np.full((2, 9), np.nan if group.rank else 1.0, "float32")
        ddp(dg.from_numpy(x)).sum().backward()
        return math.isnan(clip_grad_norm_(ddp.parameters(), 1.0).item())

    assert run_ranks(2, body) == [True, True]


@pytest.mark.parametrize("zero", [1, 2])
def test_accumulation_without_sync_has_the_same_bits(zero):
    def body(group, zero):
        ddp = wrapped(group, zero, "run")
        optimizer = made(zero, ddp.parameters(), AdamW, lr=0.01)
        for step in range(3):
            optimizer.zero_grad()
            with ddp.no_sync():
                backward(ddp, 10 + step, idle=group.rank == 1)
                backward(ddp, 20 + step)
            backward(ddp, step)
            optimizer.step()
        return weights(ddp)

    assert run_ranks(3, body, zero) == run_ranks(3, body, 0)


@pytest.mark.parametrize("zero", [1, 2])
def test_groups_schedules_and_parts_of_a_model_keep_their_options(zero):
    def body(group, zero):
        ddp = wrapped(group, zero, "run")
        net = ddp.module
        optimizer = made(
            zero, [{"params": net.a.parameters(), "lr": 0.1}, {"params": [net.scale]}], SGD,
            lr=0.01, momentum=0.9,
        )  # fmt: skip
        schedule = dg.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        for step in range(4):
            if step == 2:
                optimizer.add_param_group({"params": net.b.parameters(), "weight_decay": 0.1})
            ddp.zero_grad()
            backward(ddp, step)
            optimizer.step()
            schedule.step()
        return weights(ddp)

    assert run_ranks(3, body, zero) == run_ranks(3, body, 0)


def test_parameters_without_a_reducer_are_shared_out_too():
    def body(group, zero):
        net = Net()
        optimizer = (
            ZeroRedundancyOptimizer(net.parameters(), Adam, group)
            if zero
            else Adam(net.parameters())
        )
        x, y = data(0)
        for _ in range(3):
            optimizer.zero_grad()
            optimizer.step(
                lambda: ((net(dg.from_numpy(x)) - dg.from_numpy(y)) ** 2).sum().backward()
            )
        return weights(net)

    assert run_ranks(3, body, 1) == run_ranks(3, body, 0)


@pytest.mark.parametrize("zero", [1, 2])
def test_a_rank_without_batches_goes_on_with_what_it_owns(zero):
    def body(group, zero):
        ddp = wrapped(group, zero, "run")
        optimizer = made(zero, ddp.parameters(), AdamW, lr=0.01)
        with Join([ddp, optimizer] if zero else [ddp]):
            for step in range(2 + group.rank):
                optimizer.zero_grad()
                x = np.random.default_rng([step, group.rank]).standard_normal((4, 9))
                ddp(dg.from_numpy(x.astype("float32"))).square().sum().backward()
                optimizer.step()
        return weights(ddp)

    assert run_ranks(3, body, zero) == run_ranks(3, body, 0)


# ---------------------------------------------------------------------- memory
def nbytes(tensors):
    return sum(t.array.nbytes for t in tensors if t.array.ndim)


@pytest.mark.parametrize("size", [2, 4])
def test_state_and_gradients_are_a_part_of_the_whole(size):
    def body(group):
        net = dg.nn.Sequential(*[dg.nn.Linear(128, 128) for _ in range(6)])
        ddp = DistributedDataParallel(
            net, process_group=group, bucket_cap_mb=0.05, shard_gradients=True
        )
        optimizer = ZeroRedundancyOptimizer(net.parameters(), Adam)
        ddp(dg.ones(2, 128)).sum().backward()
        optimizer.step()
        entries = (t for row in optimizer._inner.state.values() for t in row.values())
        shards = sum(bucket.shard.nbytes for bucket in ddp.reducer.buckets)
        assert all(p.grad is None and p._grad_buffer is None for p in net.parameters())
        regions = {id(bucket.region) for bucket in ddp.reducer.buckets}
        return nbytes(entries), shards, nbytes(net.parameters()), len(regions)

    results = run_ranks(size, body)
    whole = results[0][2]
    assert sum(state for state, *_ in results) == 2 * whole
    assert sum(shards for _, shards, *_ in results) == whole
    for state, shards, _, regions in results:
        assert state < 2.2 * whole / size
        assert shards < 1.1 * whole / size
        assert regions == 2


def test_owned_slices_cover_everything_and_cut_between_blocks():
    rng = np.random.default_rng(0)
    for _ in range(200):
        ends = np.cumsum([0, *rng.integers(0, 400, rng.integers(1, 9))]).tolist()
        spans = [slice(a, b) for a, b in pairwise(ends)]
        owned = owned_slices(spans, int(rng.integers(1, 12)))
        cuts = [s.start for s in owned] + [owned[-1].stop]
        assert cuts == sorted(cuts) and cuts[0] == 0 and cuts[-1] == ends[-1]
        for cut in cuts:
            assert any(
                cut == s.stop or (cut - s.start) % 64 == 0
                for s in spans
                if s.start <= cut <= s.stop
            )


# ---------------------------------------------------------------------- state
def flat_state(state):
    return {
        (number, name): np.asarray(value.array).tobytes()
        for number, row in state["state"].items()
        for name, value in row.items()
    }


@pytest.mark.parametrize("zero", [1, 2])
def test_state_goes_from_any_number_of_ranks_to_any_other(zero):
    def begin(group, zero):
        ddp = wrapped(group, zero)
        optimizer = made(zero, ddp.parameters(), Adam, lr=0.01)
        for step in range(2):
            optimizer.zero_grad()
            backward(ddp, step)
            optimizer.step()
        if zero:
            optimizer.consolidate_state_dict(to=group.size - 1)
        if group.rank == group.size - 1:
            return ddp.module.state_dict(), optimizer.state_dict()
        return None

    def go_on(group, zero, saved):
        ddp = wrapped(group, zero)
        optimizer = made(zero, ddp.parameters(), Adam, lr=0.5)
        ddp.module.load_state_dict(saved[0])
        optimizer.load_state_dict(saved[1])
        ddp.reducer.reductions = 2
        for step in range(2, 4):
            optimizer.zero_grad()
            backward(ddp, step)
            optimizer.step()
        return weights(ddp)

    plain = run_ranks(1, begin, 0)[-1]
    sharded = run_ranks(3, begin, zero)[-1]
    assert flat_state(plain[1]) == flat_state(sharded[1])
    assert plain[1]["param_groups"] == sharded[1]["param_groups"]
    shapes = {k: v["exp_avg"].shape for k, v in plain[1]["state"].items()}
    assert shapes == {k: v["exp_avg"].shape for k, v in sharded[1]["state"].items()}
    (whole,) = run_ranks(1, go_on, 0, plain)
    assert run_ranks(1, go_on, 0, sharded) == [whole]
    assert run_ranks(2, go_on, zero, sharded) == [whole] * 2
    assert run_ranks(4, go_on, zero, plain) == [whole] * 4


def trained(group, zero, steps):
    """Return a model and its optimizer after some steps."""
    ddp = wrapped(group, zero)
    optimizer = made(zero, ddp.parameters(), Adam, lr=0.01)
    for step in steps:
        optimizer.zero_grad()
        backward(ddp, step)
        optimizer.step()
    return ddp, optimizer


@pytest.mark.parametrize(("zero", "size"), [(0, 1), (1, 3), (2, 4)])
def test_files_of_shards_are_read_by_any_number_of_ranks(zero, size, tmp_path):
    def begin(group):
        ddp, optimizer = trained(group, zero, range(2))
        for _ in range(2):  # the second time over the first
            save_shards(optimizer, tmp_path / "state")
        return ddp.module.state_dict()

    def go_on(group, zero, saved):
        ddp = wrapped(group, zero)
        ddp.module.load_state_dict(saved)
        optimizer = made(zero, ddp.parameters(), Adam, lr=0.5)
        load_shards(optimizer, tmp_path / "state")
        ddp.reducer.reductions = 2
        for step in range(2, 4):
            optimizer.zero_grad()
            backward(ddp, step)
            optimizer.step()
        return weights(ddp)

    saved = run_ranks(size, begin)[0]
    assert {p.name for p in tmp_path.iterdir()} == {"state"}
    assert len(list((tmp_path / "state").glob("rank*.safetensors"))) == size
    (whole,) = run_ranks(1, lambda group: weights(trained(group, 0, range(4))[0]))
    assert run_ranks(1, go_on, 0, saved) == [whole]
    assert run_ranks(2, go_on, 2, saved) == [whole] * 2
    assert run_ranks(5, go_on, 1, saved) == [whole] * 5


def test_damaged_or_foreign_files_are_refused_on_all_ranks(tmp_path):
    folder = tmp_path / "state"
    run_ranks(3, lambda group: save_shards(trained(group, 1, range(1))[1], folder))

    def load(group, match, cls=Net):
        optimizer = ZeroRedundancyOptimizer(cls().parameters(), Adam, group)
        with pytest.raises(CheckpointError, match=match):
            load_shards(optimizer, folder)

    run_ranks(2, load, "load it into the model it was saved from", lambda: dg.nn.Linear(3, 3))
    file = folder / "rank00002.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    run_ranks(2, load, r"rank \d: rank00002.safetensors is damaged")
    file.unlink()
    run_ranks(2, load, r"rank \d: .*No such file")
    (folder / "index.json").write_text("{")
    run_ranks(2, load, "load_shards.*rank 0: ")


def _full_disk():
    raise OSError("no space left on device")


def test_a_disk_that_refuses_leaves_the_old_files(tmp_path):
    folder = tmp_path / "state"

    def body(group):
        _, optimizer = trained(group, 1, range(1))
        save_shards(optimizer, folder)
        before = (folder / "index.json").read_bytes()
        group.barrier()
        if group.rank == 1:
            optimizer.local_state = _full_disk
        with pytest.raises(CheckpointError, match="rank 1: "):
            save_shards(optimizer, folder)
        assert (folder / "index.json").read_bytes() == before

    run_ranks(2, body)


def test_state_that_is_not_here_is_not_given_out():
    def body(group):
        ddp = wrapped(group, 1, "run")
        optimizer = ZeroRedundancyOptimizer(ddp.parameters(), Adam)
        backward(ddp, 0)
        optimizer.step()
        optimizer.consolidate_state_dict(to=1)
        if group.rank == 0:
            with pytest.raises(DistributedError, match="rank 0 has a part of the state only"):
                optimizer.state_dict()
        else:
            assert optimizer.state_dict()["state"]
        with pytest.raises(ArgumentError, match="no rank of a group of 2"):
            optimizer.consolidate_state_dict(to=2)
        optimizer.step()
        with pytest.raises(DistributedError, match="after the last step"):
            optimizer.state_dict()

    run_ranks(2, body)


def test_redistribution_moves_every_element_to_where_it_is_wanted():
    rng = np.random.default_rng(0)
    sizes = {0: 100, 1: 7, 2: 1}

    def cut(ranks):
        rows = [{} for _ in range(ranks)]
        for number, size in sizes.items():
            ends = np.sort(rng.integers(0, size + 1, ranks - 1)).tolist()
            for row, a, b in zip(rows, [0, *ends], [*ends, size], strict=True):
                if a < b:
                    row[number] = slice(a, b)
        return rows

    whole = {number: rng.standard_normal(size) for number, size in sizes.items()}

    def body(group, have, want):
        entries = {
            number: {"x": whole[number][s], "step": np.full((), number)}
            for number, s in have[group.rank].items()
            if number != 2
        }
        got = redistribute(group, have, want, entries)
        for number, where in want[group.rank].items():
            if number == 2:
                assert got[2] == {}
            else:
                np.testing.assert_array_equal(got[number]["x"], whole[number][where])
                assert got[number]["step"] == number

    for _ in range(5):
        run_ranks(4, body, cut(4), cut(4))


# ---------------------------------------------------------------------- parts
@pytest.mark.parametrize("rounds", [gather, doubling])
def test_gathering_brings_all_slices_to_all(rounds):
    def body(group):
        owned = [slice(10 * r * r, 10 * (r + 1) ** 2) for r in range(group.size)]
        out = np.where(np.arange(160) // 1 < 0, 0.0, -1.0)
        out[owned[group.rank]] = group.rank
        exchange = Exchange(group, [out], [[]] * group.size, np.add, 0, "gather")
        Reduction(exchange, rounds(exchange, owned)).wait()
        for rank, where in enumerate(owned):
            assert (out[where] == rank).all()

    run_ranks(4, body)


def test_sums_without_rounding_do_not_depend_on_their_order():
    rng = np.random.default_rng(0)
    values = rng.standard_normal(1000) * 10.0 ** rng.integers(-300, 300, 1000)
    parts = [exact_sum(part) for part in np.split(rng.permutation(values), 10)]
    assert exact_total(parts) == exact_sum(values)
    assert rounded(exact_sum(values)) == math.fsum(values)
    assert rounded(exact_sum(np.array([5e-324, 5e-324]))) == 1e-323
    assert rounded(exact_sum(np.array([1.7e308, 1.7e308]))) == math.inf
    assert rounded(exact_total([exact_sum(values), exact_sum(np.array([math.inf]))])) == math.inf


def test_parameters_are_gathered_while_the_caller_goes_on():
    def body(group):
        ddp = wrapped(group, 1, "run")
        optimizer = ZeroRedundancyOptimizer(ddp.parameters(), SGD, overlap_with_ddp=True, lr=0.1)
        backward(ddp, 0)
        optimizer.step()
        backward(ddp, 0)
        group.barrier()
        if group.rank == 0:  # the others cannot have what this rank owns before it steps
            group.barrier()
            optimizer.step()
        else:
            optimizer.step()
        before = len(ddp.reducer.gathering._open)
        if group.rank == 1:
            group.barrier()
        ddp.module.state_dict()
        return before, len(ddp.reducer.gathering._open)

    before, after = run_ranks(2, body)[1]
    assert before > 1
    assert after == 0


def test_a_module_waits_for_its_own_parameters_only():
    def body(group):
        ddp = wrapped(group, 1, "run")
        optimizer = ZeroRedundancyOptimizer(ddp.parameters(), SGD, overlap_with_ddp=True, lr=0.1)
        backward(ddp, 0)
        optimizer.step()
        gathering, reducer = ddp.reducer.gathering, ddp.reducer
        all_open = set(gathering._open)
        ddp.module.a(dg.ones(1, 9))
        mine = {reducer._place[id(p)][0].index for p in ddp.module.a.parameters()}
        assert mine <= all_open
        assert set(gathering._open) == all_open - mine
        optimizer.wait()

    run_ranks(2, body)


# ---------------------------------------------------------------------- mistakes
def test_a_class_with_a_step_of_its_own_is_refused():
    class Odd(SGD):
        def step(self, closure=None):
            return None

    net = Net()
    with pytest.raises(ArgumentError, match="has a step\\(\\) of its own"):
        ZeroRedundancyOptimizer(net.parameters(), Odd, lr=0.1)
    with pytest.raises(ArgumentTypeError, match="takes a class of optimizers"):
        ZeroRedundancyOptimizer(net.parameters(), "SGD")
    with pytest.raises(ArgumentError, match="Invalid learning rate"):
        ZeroRedundancyOptimizer(net.parameters(), SGD, lr=-1.0)
    with pytest.raises(ArgumentError, match="nobody would wait"):
        DistributedDataParallel(net).reducer.gathering.guard = None
        ZeroRedundancyOptimizer(net.parameters(), SGD, overlap_with_ddp=True)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_means_of_several_backwards_are_added_by_their_owners(size):
    """As PyTorch does without no_sync(); DistributedDataParallel adds in another order."""

    def body(group, zero):
        ddp = DistributedDataParallel(
            Net(), process_group=group, bucket_cap_mb=CAP, shard_gradients=zero == 2
        )
        optimizer = made(zero, ddp.parameters(), SGD, lr=1e-4)
        for step in range(2):
            for micro in range(3):
                backward(ddp, 3 * step + micro, idle=micro == 1)
            optimizer.step()
            optimizer.zero_grad()
        return np.frombuffer(weights(ddp), np.float32)

    for got, want in zip(run_ranks(size, body, 2), run_ranks(size, body, 0), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("per_host", [None, 1])
@pytest.mark.parametrize("size", [2, 3])
def test_owners_follow_the_learnt_order_with_the_means_that_there_are(size, per_host):
    class Turned(Net):
        """Registered in the order in which gradients come: the first plan is wrong everywhere."""

        def __init__(self):
            super().__init__()
            params = dict(reversed(list(self._modules.items())))
            self._modules.clear()
            self._modules.update(params)

    def body(group, zero):
        ddp = DistributedDataParallel(
            Turned(), process_group=group, bucket_cap_mb=CAP, reduction="sum",
            shard_gradients=zero == 2,
        )  # fmt: skip
        optimizer = made(zero, ddp.parameters(), AdamW, lr=0.01)
        for step in range(3):
            optimizer.zero_grad()
            backward(ddp, step, idle=step == 1)
            optimizer.step()
        order = [name for bucket in ddp.reducer.buckets for name in bucket.names]
        return weights(ddp), ddp.reducer.version, order

    for got, want in zip(
        run_ranks(size, body, 2, ranks_per_host=per_host),
        run_ranks(size, body, 0, ranks_per_host=per_host), strict=True,
    ):  # fmt: skip
        assert got == want
        assert got[1] == 1


def test_state_loaded_between_the_first_backward_and_the_step_lies_where_it_should(tmp_path):
    def train_of(group, load_at):
        ddp = wrapped(group, 2, "run")
        optimizer = made(2, ddp.parameters(), AdamW)
        for step in range(3):
            optimizer.zero_grad()
            backward(ddp, step)
            if load_at == step:
                load_shards(optimizer, tmp_path / "state")
            optimizer.step()
        if load_at is None:
            save_shards(optimizer, tmp_path / "state")
        optimizer.consolidate_state_dict()
        return optimizer.state_dict() if group.rank == 0 else None

    run_ranks(3, train_of, None)
    first, later = run_ranks(2, train_of, 0)[0], run_ranks(2, train_of, 0)[0]
    for number, row in first["state"].items():
        assert row["step"] == 6
        for name, t in row.items():
            np.testing.assert_array_equal(t.numpy(), later["state"][number][name].numpy())


@pytest.mark.parametrize("zero", [1, 2])
def test_options_that_differ_between_ranks_are_named_on_all_of_them(zero):
    said = []

    def body(group):
        ddp = wrapped(group, zero, "run")
        optimizer = made(zero, ddp.parameters(), AdamW, lr=0.01)
        schedule = dg.optim.lr_scheduler.StepLR(optimizer, 1, 0.5 if group.rank == 1 else 0.1)
        for step in range(4):
            optimizer.zero_grad()
            try:
                backward(ddp, step)
            except DistributedError as error:
                said.append((step, str(error).split("\n")[0]))
                raise
            optimizer.step()
            schedule.step()

    with pytest.raises(DistributedError, match="settings of optimizers"):
        run_ranks(3, body)
    assert {step for step, _ in said} == {2}  # the step after the first with the wrong rate
    assert len({text for _, text in said}) == 1
    assert "rank 1 differs from rank 0" in said[0][1]
    assert "'lr': 0.005" in said[0][1]


def test_means_that_are_there_already_are_not_overwritten():
    ddp = wrapped(None, 2, "run")
    optimizer = ZeroRedundancyOptimizer(ddp.parameters(), SGD, lr=0.1)
    for drop in (ddp.zero_grad, optimizer.zero_grad):
        backward(ddp, 0)
        with pytest.raises(GradError, match="are means already"):
            backward(ddp, 0)
        drop()
    backward(ddp, 0)


@pytest.mark.filterwarnings("ignore:Using backward")
def test_gradients_with_a_history_are_refused():
    ddp = wrapped(None, 2, "run")
    with pytest.raises(GradError, match="create_graph=True"):
        ddp(dg.ones(1, 9)).sum().backward(create_graph=True)


def test_parameters_that_were_moved_are_named():
    ddp = wrapped(None, 1, "run")
    optimizer = ZeroRedundancyOptimizer(ddp.parameters(), SGD, lr=0.1)
    backward(ddp, 0)
    ddp.module.a.weight.array = ddp.module.a.weight.array.copy()
    with pytest.raises(DistributedError, match="no longer where"):
        optimizer.step()


def test_plain_buckets_are_what_they_were():
    ddp = wrapped(None, 1, "run")
    assert all(isinstance(bucket, Bucket) for bucket in ddp.reducer.buckets)
