"""Blocking all-reduces on the board of a host: values, bits, mistakes."""

from __future__ import annotations

import numpy as np
import pytest

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
