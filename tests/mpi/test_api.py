"""PyTorch's functions on tensors: one process, threads, and MPI."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import pytest

import distgrad as dg
from distgrad import distributed as dist
from distgrad.distributed import ProcessGroup, ReduceOp
from distgrad.errors import (
    ArgumentError,
    ArgumentTypeError,
    DistgradError,
    DistributedError,
    DtypeError,
    ShapeError,
)

pytestmark = pytest.mark.mpi

REAL = ["float16", "bfloat16", "float32", "float64", "int8", "uint8", "int32", "int64"]
DTYPES = [*REAL, "complex64", "complex128"]
UFUNCS: dict[ReduceOp, Callable[..., Any]] = {
    ReduceOp.SUM: np.add,
    ReduceOp.PRODUCT: np.multiply,
    ReduceOp.MIN: np.minimum,
    ReduceOp.MAX: np.maximum,
    ReduceOp.BAND: np.bitwise_and,
    ReduceOp.BOR: np.bitwise_or,
    ReduceOp.BXOR: np.bitwise_xor,
}


def numbers(rank: int, shape: tuple[int, ...] = (3, 4)) -> np.ndarray:
    """Small integers, so that any order of summation gives the exact result."""
    return np.random.default_rng(rank).integers(0, 4, shape)


def tensor(rank: int, dtype: str = "float32", shape: tuple[int, ...] = (3, 4)) -> dg.Tensor:
    return dg.tensor(numbers(rank, shape).tolist()).to(getattr(dg, dtype))


def values(t: dg.Tensor) -> np.ndarray:
    wide = t.array.astype(np.float64 if t.array.dtype.kind not in "c" else np.complex128)
    return np.asarray(wide)


def reduced(group: ProcessGroup, op: ReduceOp, shape: tuple[int, ...] = (3, 4)) -> np.ndarray:
    arrays = [numbers(rank, shape) for rank in range(group.size)]
    return np.asarray(functools.reduce(UFUNCS[op], arrays))


def same_everywhere(group: ProcessGroup, t: dg.Tensor) -> bool:
    return len(set(group.all_gather_object(t.array.tobytes()))) == 1


def raised_by(function: Callable[[], object]) -> Exception:
    try:
        function()
    except DistgradError as error:
        return error
    raise AssertionError("nothing was raised")


# Reductions


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", [ReduceOp.SUM, ReduceOp.PRODUCT])
def test_all_reduce_of_every_dtype(group: ProcessGroup, op: ReduceOp, dtype: str) -> None:
    t = tensor(group.rank, dtype)
    assert dist.all_reduce(t, op) is None
    assert t.dtype == getattr(dg, dtype)
    np.testing.assert_array_equal(values(t), reduced(group, op))


@pytest.mark.parametrize("op", list(UFUNCS))
def test_all_reduce_with_every_operation(group: ProcessGroup, op: ReduceOp) -> None:
    t = tensor(group.rank, "int64")
    dist.all_reduce(t, op)
    np.testing.assert_array_equal(t.array, reduced(group, op))


@pytest.mark.parametrize("op", [ReduceOp.MIN, ReduceOp.MAX, ReduceOp.BAND, ReduceOp.BXOR])
def test_all_reduce_of_bool(group: ProcessGroup, op: ReduceOp) -> None:
    t = dg.tensor([bool(n % 2) for n in range(group.rank, group.rank + 5)])
    dist.all_reduce(t, op)
    rows = [np.arange(r, r + 5) % 2 == 1 for r in range(group.size)]
    np.testing.assert_array_equal(t.array, functools.reduce(UFUNCS[op], rows))


def test_all_reduce_gives_the_same_bits_on_every_rank(group: ProcessGroup) -> None:
    t = dg.from_numpy(np.random.default_rng(group.rank).standard_normal(1001))
    dist.all_reduce(t, ReduceOp.AVG)
    assert same_everywhere(group, t)


def test_tensors_that_are_not_contiguous_are_changed_in_place(group: ProcessGroup) -> None:
    base = tensor(group.rank)
    version = base._version
    dist.all_reduce(base.t())
    np.testing.assert_array_equal(base.array, reduced(group, ReduceOp.SUM))
    every_second = dg.zeros(6)
    dist.broadcast(every_second[::2].detach().copy_(dg.ones(3) * group.rank), 0)
    assert every_second.tolist() == [0.0] * 6
    assert base._version > version


def test_a_saved_tensor_that_was_reduced_is_refused(group: ProcessGroup) -> None:
    x = dg.ones(3, requires_grad=True)
    factor = dg.ones(3)
    y = (x * factor).sum()
    dist.all_reduce(factor)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_reduce_changes_the_destination_alone(group: ProcessGroup) -> None:
    for dst in range(group.size):
        t = tensor(group.rank)
        dist.reduce(t, dst)
        want = reduced(group, ReduceOp.SUM) if group.rank == dst else numbers(group.rank)
        np.testing.assert_array_equal(t.array, want)


def test_reduce_takes_avg_and_bfloat16(group: ProcessGroup) -> None:
    t = tensor(group.rank, "bfloat16")
    dist.reduce(t, group.size - 1, ReduceOp.AVG)
    if group.rank == group.size - 1:
        want = dg.tensor(reduced(group, ReduceOp.SUM) / group.size).to(dg.bfloat16)
        np.testing.assert_array_equal(values(t), values(want))


def test_all_reduce_coalesced(group: ProcessGroup) -> None:
    ts = [tensor(group.rank), tensor(group.rank, shape=(5,)), tensor(group.rank, shape=())]
    dist.all_reduce_coalesced(ts)
    for t in ts:
        np.testing.assert_array_equal(t.array, reduced(group, ReduceOp.SUM, tuple(t.shape)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_reduce_scatter(group: ProcessGroup, dtype: str) -> None:
    n = group.size
    whole = tensor(group.rank, dtype, (n, 2, 3))
    want = reduced(group, ReduceOp.SUM, (n, 2, 3))[group.rank]
    out = dg.zeros(2, 3, dtype=getattr(dg, dtype))
    dist.reduce_scatter(out, list(whole.unbind(0)))
    np.testing.assert_array_equal(values(out), want)
    for shape in ((n, 2, 3), (n * 2, 3)):
        out.zero_()
        dist.reduce_scatter_tensor(out, whole.reshape(shape))
        np.testing.assert_array_equal(values(out), want)


# Movements


@pytest.mark.parametrize("dtype", [*DTYPES, "bool"])
def test_broadcast_of_every_dtype(group: ProcessGroup, dtype: str) -> None:
    src = group.size - 1
    t = tensor(group.rank, dtype)
    dist.broadcast(t, src)
    np.testing.assert_array_equal(values(t), values(tensor(src, dtype)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool", "complex128"])
def test_all_gather(group: ProcessGroup, dtype: str) -> None:
    into = [dg.zeros(4, 3, dtype=getattr(dg, dtype)).t() for _ in range(group.size)]
    dist.all_gather(into, tensor(group.rank, dtype))
    for rank, t in enumerate(into):
        np.testing.assert_array_equal(values(t), values(tensor(rank, dtype)))


def test_all_gather_into_tensor_takes_both_shapes(group: ProcessGroup) -> None:
    want = np.stack([numbers(rank) for rank in range(group.size)])
    for shape in ((group.size, 3, 4), (group.size * 3, 4)):
        out = dg.zeros(*shape)
        dist.all_gather_into_tensor(out, tensor(group.rank))
        np.testing.assert_array_equal(out.array, want.reshape(shape))


def test_gather_and_scatter(group: ProcessGroup) -> None:
    for root in range(group.size):
        here = group.rank == root
        into = [dg.zeros(3, 4) for _ in range(group.size)] if here else None
        dist.gather(tensor(group.rank), into, dst=root)
        for rank, t in enumerate(into or ()):
            np.testing.assert_array_equal(t.array, numbers(rank))
        out = dg.zeros(3, 4)
        dist.scatter(out, into, src=root)
        np.testing.assert_array_equal(out.array, numbers(group.rank))


@pytest.mark.parametrize("dtype", ["float32", "complex128", "bool"])
def test_all_to_all(group: ProcessGroup, dtype: str) -> None:
    n, me = group.size, group.rank
    given = [tensor(10 * me + peer, dtype, (me + 1, peer + 1)) for peer in range(n)]
    into = [dg.zeros(peer + 1, me + 1, dtype=getattr(dg, dtype)) for peer in range(n)]
    dist.all_to_all(into, given)
    for peer, t in enumerate(into):
        want = values(tensor(10 * peer + me, dtype, (peer + 1, me + 1)))
        np.testing.assert_array_equal(values(t), want)


def test_all_to_all_single_with_equal_parts(group: ProcessGroup) -> None:
    n = group.size
    source, out = tensor(group.rank, shape=(2 * n, 3)), dg.zeros(2 * n, 3)
    dist.all_to_all_single(out, source)
    mine = slice(2 * group.rank, 2 * group.rank + 2)
    want = np.concatenate([numbers(rank, (2 * n, 3))[mine] for rank in range(n)])
    np.testing.assert_array_equal(out.array, want)


def test_all_to_all_single_with_split_sizes(group: ProcessGroup) -> None:
    n, me = group.size, group.rank
    sends = [(me + peer) % 3 for peer in range(n)]  # symmetric, with zeros
    rows = dg.arange(sum(sends) * 2).reshape(-1, 2) + 100 * me
    out = dg.zeros(sum(sends), 2, dtype=rows.dtype)
    dist.all_to_all_single(out, rows, sends, sends)
    want = []
    for peer in range(n):
        theirs = [(peer + r) % 3 for r in range(n)]
        begin = sum(theirs[:me])
        whole = np.arange(sum(theirs) * 2).reshape(-1, 2) + 100 * peer
        want.append(whole[begin : begin + theirs[me]])
    np.testing.assert_array_equal(out.array, np.concatenate(want))


# Messages


def test_send_and_recv_around_a_ring(group: ProcessGroup) -> None:
    if group.size == 1:
        return
    after, before = (group.rank + 1) % group.size, (group.rank - 1) % group.size
    out = dg.zeros(4, 3).t()
    work = dist.isend(tensor(group.rank), after, tag=3)
    assert work is not None
    assert dist.recv(out, before, tag=3) == before
    assert work.wait() is True
    np.testing.assert_array_equal(out.array, numbers(before))


def test_recv_from_anybody_says_from_whom(group: ProcessGroup) -> None:
    if group.rank > 0:
        dist.send(dg.tensor([group.rank]), 0)
        return
    got = []
    for _ in range(group.size - 1):
        t = dg.tensor([0])
        got.append((dist.recv(t), t.item()))
    assert sorted(got) == [(rank, rank) for rank in range(1, group.size)]


def test_batch_isend_irecv(group: ProcessGroup) -> None:
    if group.size == 1:
        return
    after, before = (group.rank + 1) % group.size, (group.rank - 1) % group.size
    out = dg.zeros(3, 4)
    works = dist.batch_isend_irecv(
        [
            dist.P2POp(dist.irecv, out, before),
            dist.P2POp(dist.isend, tensor(group.rank), group_peer=after),
        ]
    )
    for work in works:
        work.wait()
    np.testing.assert_array_equal(out.array, numbers(before))
    assert works[0].source_rank() == before


def test_messages_between_some_ranks_leave_collectives_in_step(group: ProcessGroup) -> None:
    if group.size > 1 and group.rank < 2:
        peer, t = 1 - group.rank, dg.zeros(2)
        work = dist.isend(dg.ones(2), peer)
        dist.recv(t, peer)
        assert work is not None
        work.wait()
    total = dg.ones(1)
    dist.all_reduce(total)
    assert total.item() == group.size


# Objects


def test_object_collectives(group: ProcessGroup) -> None:
    n, me = group.size, group.rank
    mine = {"rank": me, "long": "x" * (100 * me)}
    everyone: list[Any] = [None] * n
    dist.all_gather_object(everyone, mine)
    assert [one["rank"] for one in everyone] == list(range(n))
    assert [len(one["long"]) for one in everyone] == [100 * rank for rank in range(n)]

    gathered: list[Any] | None = [None] * n if me == n - 1 else None
    dist.gather_object(mine, gathered, dst=n - 1)
    assert gathered is None or gathered == everyone

    shared = [me, "text", {"t": dg.tensor([float(me)])}]
    dist.broadcast_object_list(shared, src=n - 1)
    assert shared[:2] == [n - 1, "text"]
    assert shared[2]["t"].tolist() == [n - 1]

    out: list[Any] = [None]
    dist.scatter_object_list(out, [("for", rank) for rank in range(n)] if me == 0 else None)
    assert out == [("for", me)]


def test_object_messages(group: ProcessGroup) -> None:
    if group.rank == 0:
        for dst in range(1, group.size):
            dist.send_object_list(["to", dst], dst)
    else:
        found: list[Any] = [None, None]
        src = None if group.rank % 2 else 0
        assert dist.recv_object_list(found, src) == 0
        assert found == ["to", group.rank]


# Works


def test_async_collectives_complete_in_any_order(group: ProcessGroup) -> None:
    ts = [dg.ones(5) * (k + group.rank) for k in range(4)]
    works = [dist.all_reduce(t, async_op=True) for t in ts]
    gathered = [dg.zeros(2) for _ in range(group.size)]
    works.append(dist.all_gather(gathered, dg.ones(2) * group.rank, async_op=True))
    order = works[::-1] if group.rank % 2 else works
    for work in order:
        assert isinstance(work, dist.Work)
        assert work.wait(timedelta(seconds=30)) is True
        assert work.is_completed()
        assert work.is_success()
    ranks = sum(range(group.size))
    assert [t[0].item() for t in ts] == [k * group.size + ranks for k in range(4)]
    assert [t[0].item() for t in gathered] == list(range(group.size))


def test_is_completed_pushes(group: ProcessGroup) -> None:
    t = dg.ones(3)
    work = dist.all_reduce(t, async_op=True)
    assert work is not None
    while not work.is_completed():
        pass
    assert t.tolist() == [group.size] * 3
    assert work.exception() is None
    assert work.result() == [t]


def test_a_rank_that_waits_for_something_else_pushes(group: ProcessGroup) -> None:
    if group.size == 1:
        return
    t = dg.ones(3)
    work = dist.all_reduce(t, async_op=True)
    assert work is not None
    if group.rank == 0:  # waits for a message that is sent after the all-reduce is complete
        dist.recv(dg.zeros(1), 1)
        work.wait()
    else:
        work.wait()
        if group.rank == 1:
            dist.send(dg.ones(1), 0)
    assert t.tolist() == [group.size] * 3


def test_arrays_of_the_group_wait_for_tensors_under_way(group: ProcessGroup) -> None:
    t = dg.ones(3)
    work = dist.all_reduce(t, async_op=True)
    array = np.ones(4)
    group.all_reduce(array)
    group.barrier()
    assert array.tolist() == [group.size] * 4
    assert work is not None
    work.wait()
    assert t.tolist() == [group.size] * 3


def test_futures_of_works(group: ProcessGroup) -> None:
    t = dg.ones(2)
    work = dist.all_reduce(t, async_op=True)
    assert work is not None
    mean = work.get_future().then(lambda future: future.value()[0] / group.size)
    assert mean.wait().tolist() == [1.0, 1.0]


# Groups


def test_new_group(group: ProcessGroup) -> None:
    evens = list(range(0, group.size, 2))
    made = dist.new_group(evens[::-1])
    if group.rank not in evens:
        assert made is dist.GroupMember.NON_GROUP_MEMBER
        assert (dist.get_rank(made), dist.get_world_size(made)) == (-1, -1)
        t = dg.ones(1)
        with pytest.warns(UserWarning, match=f"global rank {group.rank} which does not belong"):
            assert dist.all_reduce(t, group=made) is None
        assert t.item() == 1.0
        return
    assert isinstance(made, ProcessGroup)
    assert dist.get_process_group_ranks(made) == evens
    assert dist.get_rank(made) == group.rank // 2
    assert dist.get_group_rank(made, evens[-1]) == len(evens) - 1
    assert dist.get_global_rank(made, len(evens) - 1) == evens[-1]
    assert dist.get_backend(made) == group.backend
    t = dg.tensor([float(group.rank)])
    dist.all_reduce(t, group=made)
    assert t.item() == sum(evens)
    dist.broadcast(t.fill_(group.rank), evens[-1], group=made)  # a global rank
    assert t.item() == evens[-1]
    dist.broadcast(t.fill_(group.rank), group_src=0, group=made)
    assert t.item() == 0.0
    with pytest.raises(ArgumentError, match="not part of"):
        dist.get_group_rank(made, group.size + 1)
    dist.destroy_process_group(made)
    with pytest.raises(DistributedError, match="is closed"):
        dist.barrier(made)


def test_groups_do_not_disturb_each_other(group: ProcessGroup) -> None:
    world = dg.ones(1)
    pending = dist.all_reduce(world, async_op=True)
    mine, groups = dist.new_subgroups_by_enumeration([[r] for r in range(group.size)])
    assert len(groups) == group.size
    pairs = dist.split_group(
        split_ranks=[
            [r for r in range(group.size) if r % 2 == k] for k in range(min(2, group.size))
        ]
    )
    assert isinstance(mine, ProcessGroup)
    assert pairs is not None
    for turn in range(group.rank + 1):  # as often as each likes
        t = dg.ones(1) * turn
        dist.all_reduce(t, group=mine)
        assert t.item() == turn
    t = dg.ones(1)
    dist.all_reduce(t, group=pairs)
    assert t.item() == len(range(group.rank % 2, group.size, 2))
    assert pending is not None
    pending.wait()
    assert world.item() == group.size
    assert dist.get_pg_count() == 3
    assert mine.hosts == [[0]]


def test_new_subgroups_of_equal_size(group: ProcessGroup) -> None:
    mine, groups = dist.new_subgroups(1)
    assert [made is mine for made in groups] == [r == group.rank for r in range(group.size)]
    whole, everyone = dist.new_subgroups()  # one host
    assert len(everyone) == 1
    assert dist.get_world_size(whole) == group.size


def test_members_alone_may_make_a_group(group: ProcessGroup) -> None:
    ranks = [0, group.size - 1] if group.size > 1 else [0]
    if group.rank in ranks:
        made = dist.new_group(ranks, use_local_synchronization=True)
        t = dg.ones(2)
        dist.all_reduce(t, group=made)
        assert t.tolist() == [len(ranks)] * 2


def test_ranks_in_the_order_given(group: ProcessGroup) -> None:
    ranks = list(range(group.size))[::-1]
    made = dist.new_group(ranks, sort_ranks=False)
    assert dist.get_rank(made) == group.size - 1 - group.rank
    t = dg.tensor([float(group.rank)])
    dist.broadcast(t, group_src=0, group=made)
    assert t.item() == group.size - 1


def test_world_has_names(group: ProcessGroup) -> None:
    assert dist.GroupMember.WORLD is group
    assert dist.group.WORLD is group
    assert dist.get_rank() == group.rank
    assert dist.get_backend() in ("mpi", "threads", "local")
    dist.barrier(dist.group.WORLD)


# Mistakes


def wrong_on_one_rank(
    group: ProcessGroup, call: Callable[[bool], object], kind: type[Exception]
) -> list[str]:
    """Make ``call(whether it is to be wrong)``; check who raises what; return all messages."""
    wrong = group.rank == group.size - 1
    error = raised_by(lambda: call(wrong))
    assert isinstance(error, kind if wrong else DistributedError)
    after = dg.ones(1)
    dist.all_reduce(after)  # the group is in step
    assert after.item() == group.size
    return group.all_gather_object(str(error))


def test_another_shape_or_dtype_is_named_on_every_rank(group: ProcessGroup) -> None:
    if group.size == 1:
        return
    last = group.size - 1
    for bad, text in ((dg.ones(4), "float32[4]"), (dg.ones(3, dtype=dg.float64), "float64[3]")):
        for call in (
            lambda wrong, bad=bad: dist.all_reduce(bad if wrong else dg.ones(3)),
            lambda wrong, bad=bad: dist.broadcast(bad if wrong else dg.ones(3), 0),
            lambda wrong, bad=bad: dist.reduce(bad if wrong else dg.ones(3), 0),
        ):
            said = wrong_on_one_rank(group, call, DistributedError)
            assert len(set(said)) == 1
            assert f"rank {last} differs from rank 0" in said[0]
            assert text in said[0]


def test_another_function_is_named_on_every_rank(group: ProcessGroup) -> None:
    if group.size == 1:
        return

    def call(wrong: bool) -> None:
        work = dist.barrier(async_op=True) if wrong else dist.all_reduce(dg.ones(3), async_op=True)
        assert work is not None
        work.wait()

    said = wrong_on_one_rank(group, call, DistributedError)
    assert len(set(said)) == 1
    assert "barrier()" in said[0]


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: dist.all_reduce([1.0]), ArgumentTypeError, "tensor must be a Tensor, not list"),
        (lambda: dist.all_reduce(dg.ones(3), "summ"), ArgumentError, "op 'summ' is none of"),
        (lambda: dist.all_reduce(dg.ones(3), ReduceOp.BAND), DtypeError, "BAND does not take"),
        (
            lambda: dist.all_reduce(dg.ones(3, dtype=dg.complex64), ReduceOp.MAX),
            ArgumentError,
            "MAX does not take complex64",
        ),
        (lambda: dist.broadcast(dg.ones(3), 99), ArgumentError, "src=99"),
        (lambda: dist.broadcast(dg.ones(3)), ArgumentError, "neither is given"),
        (lambda: dist.broadcast(dg.ones(1).expand(3), 0), ArgumentError, "pass a clone"),
        (lambda: dist.all_gather([], dg.ones(3)), ArgumentError, "0 tensors"),
        (
            lambda: dist.all_gather_into_tensor(dg.ones(97), dg.ones(3)),
            ArgumentError,
            "must be",
        ),
        (
            lambda: dist.all_to_all_single(dg.ones(5), dg.ones(5), [1] * 99, [1] * 99),
            ShapeError,
            "numbers of rows",
        ),
        (lambda: dist.all_gather_object([], 1), ArgumentError, "0 objects"),
        (lambda: dist.scatter_object_list((), [1]), ArgumentTypeError, "must be a list"),
        (lambda: dist.new_group([0, 0]), ArgumentError, "appears twice"),
        (lambda: dist.new_group([99]), ArgumentError, "99 is no rank"),
        (lambda: dist.new_group([0], backend="ucc"), ArgumentError, "sub-groups have"),
        (lambda: dist.split_group(split_ranks=None), ArgumentTypeError, "must be lists"),
        (lambda: dist.barrier(device_ids=[0]), ArgumentError, "leave device_ids out"),
        (lambda: dist.all_reduce(dg.ones(3), ReduceOp.PREMUL_SUM), ArgumentError, "multiply by"),
        (lambda: dist.all_reduce_coalesced([]), ArgumentError, "one tensor or more"),
        (
            lambda: dist.all_reduce_coalesced([dg.ones(1), dg.ones(1, dtype=dg.int64)]),
            DtypeError,
            "several dtypes",
        ),
        (lambda: dist.all_gather_coalesced([], [dg.ones(2)]), ArgumentError, "0 lists"),
        (
            lambda: dist.all_gather(
                [dg.zeros(2 + r) for r in range(dist.get_world_size())], dg.ones(3)
            ),
            ShapeError,
            "must have the shape of the other tensor",
        ),
        (lambda: dist.reduce_scatter_tensor(dg.ones(2), dg.ones(97)), ArgumentError, "must be"),
        (lambda: dist.gather(dg.ones(3), [dg.ones(3)] * 99, 0), ArgumentError, ""),
        (lambda: dist.scatter(dg.ones(3), [dg.ones(3)] * 99, 0), ArgumentError, ""),
        (lambda: dist.reduce(dg.ones(3), -1), ArgumentError, "dst=-1"),
        (lambda: dist.broadcast_object_list((), 0), ArgumentTypeError, "must be a list"),
        (lambda: dist.broadcast_object_list([1], 99), ArgumentError, "src=99"),
        (lambda: dist.gather_object(1, [], 99), ArgumentError, "dst=99"),
        (
            lambda: dist.scatter_object_list([], [1], group_src=0),
            ArgumentError,
            "needs a place for the object",
        ),
        (lambda: dist.new_group([0], timeout="long"), ArgumentTypeError, "datetime.timedelta"),
        (lambda: dist.new_group([0], pg_options=1), ArgumentError, "leave it out"),
        (
            lambda: dist.new_subgroups_by_enumeration([[0], [0]]),
            ArgumentError,
            "rank 0 appears twice",
        ),
        (lambda: dist.new_subgroups(97), ArgumentError, "are no whole number of"),
    ],
)
def test_a_wrong_argument_is_heard_of_everywhere(
    group: ProcessGroup, call: Callable[[], object], kind: type[Exception], text: str
) -> None:
    last = group.size - 1
    errors = group.all_gather_object(str(raised_by(call)))  # wrong on all: each raises its own
    assert all(text in error for error in errors)

    def one(wrong: bool) -> None:
        call() if wrong else dist.all_reduce(dg.ones(3))

    if group.size > 1:
        said = wrong_on_one_rank(group, one, kind)
        assert text in said[last]
        assert len(set(said[:last])) == 1
        assert f"rank {last} differs from rank 0" in said[0]


MIXED: list[Callable[[dg.Tensor, Any], object]] = [
    lambda t, g: dist.all_reduce(t, group=g),
    lambda t, g: dist.all_reduce(t, ReduceOp.MAX, group=g),
    lambda t, g: dist.all_reduce(t, group=g, async_op=True).wait(),
    lambda t, g: dist.broadcast(t, group_src=0, group=g),
    lambda t, g: dist.broadcast(t, group_src=1, group=g),
    lambda t, g: dist.reduce(t, group_dst=1, group=g),
    lambda t, g: dist.all_gather([t.clone() for _ in range(g.size)], t, group=g),
    lambda t, g: dist.all_gather_into_tensor(dg.zeros(g.size, *t.shape), t, group=g),
    lambda t, g: dist.reduce_scatter_tensor(t, dg.zeros(g.size, *t.shape), group=g),
    lambda t, g: dist.all_reduce_coalesced([t, t.clone()], group=g),
    lambda t, g: dist.all_to_all_single(t.reshape(-1)[: g.size], dg.zeros(g.size), group=g),
    lambda t, g: dist.all_gather_object([None] * g.size, 1, group=g),
    lambda t, g: dist.broadcast_object_list([1], group_src=0, group=g),
    lambda t, g: dist.barrier(group=g),
    lambda t, g: g.all_reduce(t.array),
]


def test_any_two_calls_in_a_sub_group_that_differ_are_named_on_both(group: ProcessGroup) -> None:
    """Also when both made them before; and nothing else is disturbed."""
    if group.size == 1:
        return
    mine = dist.new_group([0, group.size - 1])
    if isinstance(mine, ProcessGroup):
        for shift in range(1, len(MIXED)):
            for number, call in enumerate(MIXED):
                other = MIXED[(number + shift) % len(MIXED)]
                asynchronous = {number, (number + shift) % len(MIXED)} == {0, 2}
                t = dg.ones(4)
                if asynchronous:  # the same call
                    call(t, mine) if mine.rank == 0 else other(t, mine)
                    continue
                with pytest.raises(DistributedError, match="rank 1 differs from rank 0"):
                    call(t, mine) if mine.rank == 0 else other(t, mine)
            after = dg.ones(4)
            dist.all_reduce(after, group=mine)
            assert (after == 2).all()
    group.barrier()


def test_a_rank_that_does_not_come_is_waited_for_in_vain(group: ProcessGroup) -> None:
    if group.size == 1:
        return
    mine = dist.new_group([0, group.size - 1], timeout=0.3)
    if group.rank == 0:
        for call in (MIXED[0], MIXED[2], MIXED[3], MIXED[11], MIXED[13]):
            with pytest.raises(DistributedError, match=r"waited 0\.3 s"):
                call(dg.ones(4), mine)
    group.barrier()


def test_coalesced_collectives_return_futures(group: ProcessGroup) -> None:
    n = group.size
    parts = [dg.ones(2) * group.rank, dg.ones(3, 1) * 2]
    future = dist.all_reduce_coalesced(parts, async_op=True)
    assert isinstance(future, dg.futures.Future)
    assert future.wait() == parts or all(a is b for a, b in zip(future.wait(), parts, strict=True))
    assert parts[0].tolist() == [n * (n - 1) / 2] * 2
    assert parts[1].tolist() == [[2.0 * n]] * 3
    rows = [[dg.zeros(2), dg.zeros(1)] for _ in range(n)]
    sent = [dg.ones(2) * group.rank, dg.ones(1) * -group.rank]
    assert dist.all_gather_coalesced(rows, sent) is None
    for rank, (a, b) in enumerate(rows):
        assert (a.tolist(), b.tolist()) == ([rank, rank], [-rank])
    wrong = dist.all_reduce_coalesced([], async_op=True)
    assert wrong is not None
    with pytest.raises(ArgumentError, match="one tensor or more"):
        wrong.wait()


def test_an_async_call_raises_when_it_is_waited_for(group: ProcessGroup) -> None:
    work = dist.all_reduce("text", async_op=True)  # type: ignore[arg-type]
    assert work is not None
    with pytest.raises(ArgumentTypeError, match="must be a Tensor"):
        work.wait()
    assert isinstance(work.exception(), ArgumentTypeError)
    assert work.is_completed()
    assert not work.is_success()


def test_split_sizes_that_do_not_fit_are_named_on_every_rank(group: ProcessGroup) -> None:
    if group.size == 1:
        return
    n, last = group.size, group.size - 1

    def call(wrong: bool) -> None:
        takes = [2, *[1] * (n - 1)] if wrong else [1] * n
        dist.all_to_all_single(dg.zeros(sum(takes)), dg.ones(n), takes, [1] * n)

    said = wrong_on_one_rank(group, call, DistributedError)
    assert len(set(said)) == 1
    assert f"rank {last} takes 2 elements from rank 0, which sends it 1" in said[0]


def test_messages_to_oneself_are_refused(group: ProcessGroup) -> None:
    for call in (dist.send, dist.recv, dist.isend, dist.irecv):
        with pytest.raises(ArgumentError, match="with itself"):
            call(dg.ones(1), group.rank)  # type: ignore[operator]
    with pytest.raises(ArgumentError, match="isend or irecv"):
        dist.P2POp(dist.send, dg.ones(1), 0)
    with pytest.raises(ArgumentError, match="list of P2POp"):
        dist.batch_isend_irecv([])


def test_a_message_of_another_size_is_named(group: ProcessGroup) -> None:
    if group.rank == 1:
        dist.send(dg.ones(2), 0)
    elif group.rank == 0 and group.size > 1:
        with pytest.raises(DistributedError, match="same dtype and shape"):
            dist.recv(dg.ones(3), 1)


def test_monitored_barrier(group: ProcessGroup) -> None:
    for _ in range(3):
        dist.monitored_barrier(timeout=timedelta(seconds=20))


def test_monitored_barrier_names_who_is_missing(group: ProcessGroup) -> None:
    if group.size == 1:
        return
    last = group.size - 1
    here = group.rank != last
    if here:
        error = raised_by(lambda: dist.monitored_barrier(timeout=0.2))
        assert f"rank {last} of {group.size} failed to reach it within 0.2 s" in str(error)
    group.barrier()
    if not here:  # late: it hears of it too
        with pytest.raises(DistributedError, match=f"rank {last} of {group.size}"):
            dist.monitored_barrier(timeout=0.2)
    with warnings.catch_warnings():
        dist.monitored_barrier()
