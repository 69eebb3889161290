"""Collectives on the board of a host: values, bits, mistakes, and boards without end."""

from __future__ import annotations

import glob
import os
import time

import numpy as np
import pytest

import distgrad as dg
from distgrad import distributed as dist
from distgrad.distributed import board
from distgrad.distributed.group import tree_reduce
from distgrad.errors import DistributedError

pytestmark = pytest.mark.mpi(sizes=(2, 3))
LONG = board.HALF_BYTES // 4 * 2 + 77  # three pieces of float32, the last one short


@pytest.mark.parametrize("dtype", ["float32", "int8", "complex64", "float16"])
@pytest.mark.parametrize("shape", [(), (0,), (7, 3), (5003,), (LONG,)])
def test_every_rank_gets_the_bits_of_the_tree(group, dtype, shape):
    if group.board is None:
        pytest.skip("has no common memory")
    values = np.random.default_rng(group.rank).standard_normal(shape) * 9
    array = np.asarray(values).astype(dtype)
    for op in ("sum", "max", "avg"):
        if (op == "max" and array.dtype.kind == "c") or (op == "avg" and array.dtype.kind == "i"):
            continue
        want = tree_reduce(op, list(group.all_gather(array)))
        got = array.copy()
        group.all_reduce(got, op)
        again = array.copy()
        group.all_reduce(again, op)
        assert again.tobytes() == got.tobytes()
        if dtype != "float16":  # MPI adds those in an order of its own
            assert got.tobytes() == np.asarray(want).tobytes()


def test_calls_that_differ_are_named_on_every_rank_and_nothing_is_added(group):
    if group.board is None:
        pytest.skip("has no common memory")
    array = np.full(3 + (group.rank == 1), 5.0)
    for _ in range(2):  # the second time the call is known
        with pytest.raises(DistributedError, match=r"rank 1 differs from rank 0.*float64\[4\]"):
            group.all_reduce(array)
        assert (array == 5.0).all()
    with pytest.raises(DistributedError, match="broadcast"):
        if group.rank:
            group.broadcast(array)
        else:
            group.all_reduce(array)
    group.barrier()


def test_other_transfers_move_while_a_rank_waits_at_the_board(group):
    if group.board is None:
        pytest.skip("has no common memory")
    big = np.arange(1 << 20, dtype=np.float64)
    if group.rank == 0:
        work = group.start_send(big, 1, 7, "a test")
        group.barrier()
        work.wait()
    elif group.rank == 1:
        got = np.empty_like(big)
        group.recv(got, 0, 7)
        group.barrier()
        assert (got == big).all()
    else:
        group.barrier()


def test_strided_and_read_only_arrays_are_refused_also_when_their_kind_is_known(group):
    group.all_reduce(np.ones(4))
    with pytest.raises(ValueError, match="contiguous"):
        group.all_reduce(np.ones(8)[::2])
    fixed = np.ones(4)
    fixed.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        group.all_reduce(fixed)


LENGTHS = [1, 1000, board.HALF_BYTES // 4 * 2 + 77]


@pytest.mark.parametrize("length", LENGTHS)
def test_every_collective_in_one_piece_and_in_many(group, length):
    """Asynchronous ones too: all are under way at once."""
    n, me = group.size, group.rank
    of = [dg.arange(length, dtype=dg.float32) % 97 + rank for rank in range(n)]
    total = sum(of[1:], of[0])
    wide = [dg.stack([part * (rank + 1) for part in of]) for rank in range(n)]

    summed, mean, sent, at_last = (of[me].clone() for _ in range(4))
    rows, mine = dg.zeros(n, length), dg.zeros(length)
    room = [dg.zeros(length) for _ in range(n)] if me == n - 1 else None
    given = list(wide[0]) if me == 0 else None
    scattered = dg.zeros(length)
    works = [
        dist.all_reduce(summed, async_op=True),
        dist.all_reduce(mean, "avg", async_op=True),
        dist.broadcast(sent, n - 1, async_op=True),
        dist.reduce(at_last, 0, async_op=True),
        dist.all_gather_into_tensor(rows, of[me], async_op=True),
        dist.gather(of[me], room, n - 1, async_op=True),
        dist.reduce_scatter_tensor(mine, wide[me], async_op=True),
        dist.scatter(scattered, given, 0, async_op=True),
        dist.barrier(async_op=True),
    ]
    for work in reversed(works):
        work.wait()
    assert (summed == total).all()
    np.testing.assert_allclose(mean.array, total.array / n, rtol=1e-6)
    assert (sent == of[n - 1]).all()
    assert (at_last == (total if me == 0 else of[me])).all()
    assert (rows == dg.stack(of)).all()
    assert room is None or (dg.stack(room) == dg.stack(of)).all()
    assert (mine == of[me] * (n * (n + 1) / 2)).all()
    assert (scattered == of[me]).all()
    if group.backend == "mpi":
        assert group.board is not None
        assert group.board.turn >= len(works)


@pytest.mark.parametrize("op", [dist.ReduceOp.SUM, dist.ReduceOp.AVG, dist.ReduceOp.MAX])
def test_a_tensor_reduced_again_takes_the_same_way_with_the_same_result(group, op):
    n, me = group.size, group.rank
    want = {"sum": n * (n + 1) / 2, "avg": (n + 1) / 2, "max": float(n)}[op.value]
    saved = dg.ones(3, requires_grad=True) * 2
    for number in range(4):
        value = dg.full((3,), me + 1.0)
        work = dist.all_reduce(value, op, async_op=number == 2)
        assert work is None or work.wait()
        assert value.tolist() == [want] * 3
    loss = (saved * saved).sum()
    dist.all_reduce(saved.detach(), op)
    with pytest.raises(RuntimeError, match=r"changed|modified"):
        loss.backward()


def test_half_precision_is_added_in_float32(group):
    """2048 + 1 is no float16: added one by one the ones would be lost."""
    for collective in ("all_reduce", "reduce_scatter_tensor"):
        value = dg.full((group.size,), 2048.0 if group.rank == 0 else 1.0, dtype=dg.float16)
        if collective == "all_reduce":
            dist.all_reduce(value)
        else:
            dist.reduce_scatter_tensor(part := dg.zeros(1, dtype=dg.float16), value)
            value = part
        if group.backend == "mpi":  # threads add in the dtype itself
            want = np.float16(2048 + group.size - 1)
            assert (value.array == want).all()


def test_after_calls_that_differ_the_ranks_still_read_what_was_written_last(group):
    if group.size == 1:
        pytest.skip("one rank agrees with itself")
    array = np.full(5, 1.0 + group.rank)
    with pytest.raises(DistributedError, match="differs"):
        group.all_reduce(array) if group.rank else group.barrier()
    for _ in range(3):
        got = array.copy()
        group.all_reduce(got)
        assert (got == group.size * (group.size + 1) / 2).all()


def test_forty_sub_groups_come_and_go_and_leave_nothing(group):
    if group.size == 1:
        pytest.skip("has no sub-groups of two")
    n, me = group.size, group.rank
    kept = []
    for number in range(40):
        pair = [number % n, (number + 1) % n]
        mine = dist.new_group(pair)
        kept.append(mine)
        if me in pair:
            value = dg.ones(1000) * (me + 1)
            dist.all_reduce(value, group=mine)
            assert (value == sum(pair) + 2).all()
            assert group.backend != "mpi" or mine.board is not None
        if number % 4 != 3:
            continue
        for made in kept[:3]:  # every fourth one lives on: ten at the end
            if made is not dist.GroupMember.NON_GROUP_MEMBER:
                dist.destroy_process_group(made)
        del kept[:]
    group.barrier()
    for path in glob.glob("/dev/shm/distgrad-*"):  # of another job, for a moment
        deadline = time.monotonic() + 5
        while os.path.exists(path):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_host_without_common_memory_sends_messages(group, monkeypatch):
    from distgrad.distributed import shared

    monkeypatch.setattr(shared, "new_file", lambda nbytes: "")
    mine = dist.new_group(list(range(group.size)))
    assert isinstance(mine, dist.ProcessGroup)
    assert mine.board is None
    value = dg.ones(3)
    dist.all_reduce(value, group=mine)
    assert (value == group.size).all()
