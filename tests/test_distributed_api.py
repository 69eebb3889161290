"""PyTorch's functions of a process group that need no second process, and differentiable ones."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import pytest

import distgrad as dg
from distgrad import distributed as dist
from distgrad.distributed import ProcessGroup, ReduceOp, run_ranks
from distgrad.distributed.nn import functional
from distgrad.errors import (
    ArgumentError,
    ArgumentTypeError,
    DeviceError,
    DistributedError,
)

# The default group


@pytest.mark.parametrize("backend", ["gloo", "nccl", "cpu:gloo,cuda:nccl", "GLOO", None])
def test_pytorchs_backends_stand_for_what_fits(backend: str | None) -> None:
    group = dist.init_process_group(backend, "env://", timedelta(seconds=9), 1, 0)
    try:
        assert dist.get_backend() == "local"
        assert group.timeout_s == 9.0
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()
    assert run_ranks(2, lambda g: dist.init_process_group(backend, world_size=2) is g) == [True] * 2


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        ({"backend": "ucc"}, ArgumentError, "is none of mpi, local"),
        ({"init_method": "http://x"}, ArgumentError, "env://, tcp://, file://"),
        ({"store": object()}, ArgumentError, "leave store out"),
        ({"pg_options": 1}, ArgumentError, "leave pg_options out"),
        ({"timeout": "long"}, ArgumentTypeError, "must be a datetime.timedelta"),
        ({"timeout": timedelta(0)}, ArgumentError, "more than 0 seconds"),
        ({"world_size": 2}, DistributedError, "there are 1 ranks and not world_size=2"),
        ({"rank": 1}, DistributedError, "this is rank 0 of 1 and not rank=1"),
        ({"device_id": "tpu"}, DeviceError, "tpu"),
    ],
)
def test_what_cannot_be_true_is_refused(
    arguments: dict[str, Any], kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text):
        dist.init_process_group(**{"backend": "local", **arguments})
    assert not dist.is_initialized()


def test_ranks_of_torchrun_do_not_train_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert dist.is_torchelastic_launched()
    with pytest.raises(DistributedError, match="torchrun started 4 processes"):
        dist.init_process_group("gloo")


def test_without_a_group_calls_say_so() -> None:
    for call in (lambda: dist.all_reduce(dg.ones(1)), dist.get_rank, dist.new_group):
        with pytest.raises(ValueError, match="call init_process_group"):
            call()  # type: ignore[operator]
    dist.init_process_group("local")
    with pytest.raises(ValueError, match="call destroy_process_group"):
        dist.init_process_group("local")
    dist.destroy_process_group()
    assert dist.get_pg_count() == 0
    assert dist.group.WORLD is None


def test_what_is_available() -> None:
    assert dist.is_available()
    assert dist.is_gloo_available()
    assert not dist.is_nccl_available()
    assert dist.is_backend_available("gloo")
    assert not dist.is_backend_available("ucc")
    assert not dist.is_torchelastic_launched()
    assert dist.supports_complex(ReduceOp.SUM)
    assert not dist.supports_complex(ReduceOp.MAX)


def test_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(RuntimeError, match="LOCAL_RANK is not in the environment"):
        dist.get_node_local_rank()
    assert dist.get_node_local_rank(fallback_rank=3) == 3
    assert run_ranks(2, lambda g: dist.get_node_local_rank()) == [0, 1]
    monkeypatch.setenv("LOCAL_RANK", "5")
    assert dist.get_node_local_rank() == 5


def test_destroying_the_world_ends_its_groups() -> None:
    def body(group: ProcessGroup) -> str:
        mine = dist.new_group([0, 1], group_desc="both")
        assert "both" in repr(mine)
        assert dist.get_pg_count() == 2
        dist.destroy_process_group()
        with pytest.raises(DistributedError, match="is closed") as caught:
            dist.barrier(mine)
        return str(caught.value)

    run_ranks(2, body)


def test_a_failing_rank_is_seen_in_sub_groups() -> None:
    def body(group: ProcessGroup) -> None:
        mine = dist.new_group([1, 2])
        if group.rank == 0:
            raise KeyError("rank 0 fails")
        if group.rank == 1:
            dist.barrier(mine)
        group.barrier()

    with pytest.raises(KeyError, match="rank 0 fails"):
        run_ranks(3, body, timeout_s=20)


def test_hosts_of_a_sub_group() -> None:
    def body(group: ProcessGroup) -> object:
        mine = dist.new_group([0, 1, 3])
        return mine.hosts if isinstance(mine, ProcessGroup) else None

    assert run_ranks(4, body, ranks_per_host=2) == [
        [[0, 1], [2]],
        [[0, 1], [2]],
        None,
        [[0, 1], [2]],
    ]


# Differentiable collectives. The loss of all ranks is the sum of theirs, so on one process the same
# function of all inputs at once gives the gradients.


def inputs(rank: int) -> np.ndarray:
    return np.random.default_rng(rank).standard_normal((3, 2))


def leaf(rank: int) -> dg.Tensor:
    return dg.tensor(inputs(rank), requires_grad=True)


def after(xs: list[dg.Tensor], name: str) -> list[dg.Tensor]:
    """What the collective ``name`` gives each rank, in plain operations on the inputs of all."""
    n = len(xs)
    total = sum(xs[1:], xs[0])
    zero = xs[0] * 0
    whole = dg.stack(xs)
    each: dict[str, list[dg.Tensor]] = {
        "sum": [total] * n,
        "avg": [total / n] * n,
        "max": [whole.amax(0)] * n,
        "min": [whole.amin(0)] * n,
        "broadcast": [xs[1]] * n,
        "reduce": [total if r == 1 else zero for r in range(n)],
        "all_gather": [whole] * n,
        "gather": [whole if r == 1 else whole * 0 for r in range(n)],
        "scatter": [xs[1][r] for r in range(n)],
        "reduce_scatter": [total[r] for r in range(n)],
        "all_to_all": [dg.stack([x[r] for x in xs]) for r in range(n)],
    }
    return each[name]


def collective(x: dg.Tensor, name: str) -> dg.Tensor:
    n = 3
    rows = [x[r] for r in range(n)]
    room = [dg.zeros(2, dtype=x.dtype) for _ in range(n)]
    if name in ("sum", "avg", "max", "min"):
        return functional.all_reduce(x, ReduceOp(name))
    if name in ("broadcast", "reduce"):
        return getattr(functional, name)(x, 1)  # type: ignore[no-any-return]
    if name == "all_gather":
        return dg.stack(functional.all_gather(x))
    if name == "gather":
        return dg.stack(functional.gather(x, 1))
    if name == "scatter":
        return functional.scatter(rows, 1)
    if name == "reduce_scatter":
        return functional.reduce_scatter(room[0], rows)
    return dg.stack(functional.all_to_all(room, rows))


NAMES = ["sum", "avg", "max", "min", "broadcast", "reduce", "all_gather", "gather", "scatter",
         "reduce_scatter", "all_to_all"]  # fmt: skip


def loss_of(y: dg.Tensor, x: dg.Tensor, rank: int) -> dg.Tensor:
    return (y**3).sum() * (rank + 1) + (y.sum() * x.sum()) ** 2


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_first_and_second_order(name: str) -> None:
    def body(group: ProcessGroup) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x = leaf(group.rank)
        y = collective(x, name)
        (first,) = dg.autograd.grad(loss_of(y, x, group.rank), x, create_graph=True)
        (second,) = dg.autograd.grad((first**2).sum(), x)
        return y.detach().array, first.detach().array, second.array

    xs = [leaf(rank) for rank in range(3)]
    ys = after(xs, name)
    loss = sum(
        (loss_of(y, x, r) for r, (x, y) in enumerate(zip(xs, ys, strict=True))), dg.zeros(())
    )
    first = dg.autograd.grad(loss, xs, create_graph=True)
    second = dg.autograd.grad(sum(((g**2).sum() for g in first), dg.zeros(())), xs)
    for rank, (y, g, gg) in enumerate(run_ranks(3, body)):
        np.testing.assert_allclose(y, ys[rank].detach().array, rtol=1e-12)
        np.testing.assert_allclose(g, first[rank].detach().array, rtol=1e-12)
        np.testing.assert_allclose(gg, second[rank].array, rtol=1e-11)


def test_all_to_all_single_is_differentiable_with_splits() -> None:
    def body(group: ProcessGroup) -> tuple[list[float], list[float]]:
        me = group.rank
        sends, receives = ([1, 2], [1, 1]) if me == 0 else ([1, 3], [2, 3])
        x = dg.arange(float(sum(sends))).requires_grad_()
        out = dg.zeros(sum(receives))
        y = functional.all_to_all_single(out, x, receives, sends)
        (y * (10.0 ** (me + 1)) * dg.arange(1.0, len(out) + 1)).sum().backward()
        assert x.grad is not None
        assert out.tolist() == y.tolist()
        return y.tolist(), x.grad.tolist()

    assert run_ranks(2, body) == [
        ([0.0, 0.0], [10.0, 100.0, 200.0]),
        ([1.0, 2.0, 1.0, 2.0, 3.0], [20.0, 300.0, 400.0, 500.0]),
    ]


def test_reductions_without_a_gradient_are_refused() -> None:
    dist.init_process_group("local")
    try:
        with pytest.raises(ArgumentError, match="has no gradient"):
            functional.all_reduce(dg.ones(1), ReduceOp.PRODUCT)
        with pytest.raises(ArgumentError, match="is no member"):
            functional.all_reduce(dg.ones(1), group=dist.GroupMember.NON_GROUP_MEMBER)
    finally:
        dist.destroy_process_group()


# Gradients of gradients across ranks

BATCH, FEATURES = 12, 4


def problem() -> tuple[dg.Tensor, dg.Tensor, list[np.ndarray]]:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((BATCH, FEATURES)), rng.standard_normal((BATCH, 1))
    weights = [rng.standard_normal(shape) for shape in ((FEATURES, 5), (5,), (5, 1))]
    return dg.tensor(x), dg.tensor(y), weights


def mean_loss(x: dg.Tensor, y: dg.Tensor, params: list[dg.Tensor]) -> dg.Tensor:
    hidden = (x @ params[0] + params[1]).tanh()
    return ((hidden @ params[2] - y) ** 2).mean()


def penalty_of(grads: Any) -> dg.Tensor:
    total: dg.Tensor = sum(((g**2).sum() for g in grads), dg.zeros((), dtype=dg.float64))
    return total.sqrt()


def on_the_big_batch() -> tuple[float, list[np.ndarray]]:
    x, y, weights = problem()
    params = [dg.tensor(w, requires_grad=True) for w in weights]
    penalty = penalty_of(dg.autograd.grad(mean_loss(x, y, params), params, create_graph=True))
    return penalty.item(), [g.array for g in dg.autograd.grad(penalty, params)]


@pytest.mark.parametrize("cuts", [(0, 4, 8, 12), (0, 1, 9, 12)])
def test_a_gradient_penalty_over_ranks_is_that_of_the_big_batch(cuts: tuple[int, ...]) -> None:
    even = cuts == (0, 4, 8, 12)

    def body(group: ProcessGroup) -> tuple[float, list[np.ndarray]]:
        x, y, weights = problem()
        mine = slice(cuts[group.rank], cuts[group.rank + 1])
        params = [dg.tensor(w, requires_grad=True) for w in weights]
        loss = mean_loss(x[mine], y[mine], params)
        grads = dg.autograd.grad(loss, params, create_graph=True)
        count = None if even else mine.stop - mine.start
        means = dist.average_gradients(grads, count=count)
        penalty = penalty_of(means)
        seconds = dist.average_gradients(dg.autograd.grad(penalty, params))
        return penalty.item(), [g.array for g in seconds if g is not None]

    value, gradients = on_the_big_batch()
    found = run_ranks(3, body)
    for penalty, seconds in found:
        assert penalty == pytest.approx(value, rel=1e-12)
        assert penalty == found[0][0]
        for got, first, want in zip(seconds, found[0][1], gradients, strict=True):
            np.testing.assert_array_equal(got, first)
            np.testing.assert_allclose(got, want, rtol=1e-10)


def test_average_gradients_of_what_some_ranks_did_not_use() -> None:
    def body(group: ProcessGroup) -> list[Any]:
        one = dg.ones(2, dtype=dg.float32) * 3 if group.rank == 1 else None
        two = dg.tensor(float(group.rank), dtype=dg.float64)
        found = dist.average_gradients((one, None, two))
        return [None if g is None else (str(g.dtype), g.tolist()) for g in found]

    want = [("distgrad.float32", [1.0, 1.0]), None, ("distgrad.float64", 1.0)]
    assert run_ranks(3, body) == [want] * 3


def test_average_gradients_of_different_models_is_refused() -> None:
    def body(group: ProcessGroup, *shapes: int) -> str:
        with pytest.raises(DistributedError) as caught:
            dist.average_gradients([dg.ones(2 + n) for n in range(shapes[group.rank])])
        return str(caught.value)

    def other(group: ProcessGroup) -> str:
        with pytest.raises(DistributedError) as caught:
            dist.average_gradients(dg.ones(2 + group.rank))
        return str(caught.value)

    lengths = run_ranks(2, body, 1, 2)
    assert lengths[0] == lengths[1]
    assert "rank 1 gives 2 gradients" in lengths[0]
    shapes = run_ranks(2, other)
    assert shapes[0] == shapes[1]
    assert "gradient 0 is ('float32', (3,)) on rank 1" in shapes[0]
