"""Collectives on every backend: one process, threads, and MPI."""

from __future__ import annotations

import functools
import time

import ml_dtypes
import numpy as np
import pytest

from distgrad.distributed import (
    CommunicationThread,
    InlineProgress,
    ProcessGroup,
    check_same,
    get_group,
    get_rank,
    get_world_size,
    start_progress,
)
from distgrad.errors import ArgumentError, DistributedError, DtypeError

pytestmark = pytest.mark.mpi

DTYPES = ["float16", "float32", "float64", "int8", "int32", "int64", "uint8", "complex64"]
UFUNCS = {
    "sum": np.add,
    "prod": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
    "band": np.bitwise_and,
    "bor": np.bitwise_or,
}


def of_rank(rank: int, dtype: str, shape: tuple[int, ...] = (3, 5)) -> np.ndarray:
    """Small integers, so that any order of summation gives the exact result."""
    numbers = np.random.default_rng(rank).integers(0, 3, shape)
    return np.asarray(numbers).astype(dtype)


def expected(group: ProcessGroup, op: str, dtype: str) -> np.ndarray:
    arrays = [of_rank(rank, dtype) for rank in range(group.size)]
    return functools.reduce(UFUNCS[op], arrays)


def test_group_knows_its_place(group: ProcessGroup) -> None:
    assert 0 <= group.rank < group.size
    assert (group.local_rank, group.local_size) == (group.rank, group.size)  # one host
    assert (get_group(), get_rank(), get_world_size()) == (group, group.rank, group.size)


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_reduce_sums_every_dtype(group: ProcessGroup, dtype: str) -> None:
    array = of_rank(group.rank, dtype)
    group.all_reduce(array)
    assert array.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(array, expected(group, "sum", dtype))


@pytest.mark.parametrize("op", list(UFUNCS))
def test_all_reduce_takes_every_op_on_integers(group: ProcessGroup, op: str) -> None:
    array = of_rank(group.rank, "int32")
    group.all_reduce(array, op)
    np.testing.assert_array_equal(array, expected(group, op, "int32"))


@pytest.mark.parametrize("op", ["min", "max", "band", "bor"])
def test_all_reduce_takes_logical_ops_on_bool(group: ProcessGroup, op: str) -> None:
    array = of_rank(group.rank, "bool")
    group.all_reduce(array, op)
    np.testing.assert_array_equal(array, expected(group, op, "bool"))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "complex64"])
def test_avg_divides_the_sum_once(group: ProcessGroup, dtype: str) -> None:
    array = of_rank(group.rank, dtype)
    group.all_reduce(array, "avg")
    want = expected(group, "sum", dtype) / np.dtype(dtype).type(group.size)
    np.testing.assert_array_equal(array, want)


def test_bfloat16_is_added_in_float32(group: ProcessGroup) -> None:
    # 256 + 1 is no bfloat16: added one by one in bfloat16 the ones would be lost
    value = 256.0 if group.rank == 0 else 1.0
    array = np.full(4, value, ml_dtypes.bfloat16)
    group.all_reduce(array)
    want = np.float32(256 + group.size - 1).astype(ml_dtypes.bfloat16)
    assert array.dtype == ml_dtypes.bfloat16
    assert (array == want).all()


def test_all_reduce_gives_every_rank_the_same_bits(group: ProcessGroup) -> None:
    array = np.random.default_rng(group.rank).standard_normal(1001).astype(np.float32)
    group.all_reduce(array)
    assert len(set(group.all_gather_object(array.tobytes()))) == 1


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (7,)])
def test_collectives_take_scalars_and_empty_arrays(
    group: ProcessGroup, shape: tuple[int, ...]
) -> None:
    array = np.full(shape, group.rank, np.float32)
    assert group.all_gather(array).shape == (group.size, *shape)
    group.broadcast(array, group.size - 1)
    np.testing.assert_array_equal(array, np.full(shape, group.size - 1))
    group.all_reduce(array)
    np.testing.assert_array_equal(array, np.full(shape, group.size * (group.size - 1)))


@pytest.mark.parametrize("dtype", [*DTYPES, "bool", "complex128", "S3", "U2", "datetime64[s]"])
def test_broadcast_moves_every_dtype(group: ProcessGroup, dtype: str) -> None:
    src = group.size - 1
    array = of_rank(group.rank, "int8").astype(dtype)
    group.broadcast(array, src)
    np.testing.assert_array_equal(array, of_rank(src, "int8").astype(dtype))


def test_all_gather_stacks_in_rank_order(group: ProcessGroup) -> None:
    columns = np.arange(6, dtype=np.int64).reshape(2, 3).T + 100 * group.rank  # not contiguous
    rows = group.all_gather(columns)
    assert rows.shape == (group.size, 3, 2)
    for rank in range(group.size):
        np.testing.assert_array_equal(rows[rank], columns + 100 * (rank - group.rank))


def test_gather_gives_all_to_one_rank(group: ProcessGroup) -> None:
    dst = group.size - 1
    rows = group.gather(np.array([group.rank, 7]), dst)
    if group.rank != dst:
        assert rows is None
        return
    assert rows is not None
    np.testing.assert_array_equal(rows, [[rank, 7] for rank in range(group.size)])


@pytest.mark.parametrize("dtype", ["float16", "float32", "int64"])
def test_reduce_scatter_gives_each_rank_its_slice(group: ProcessGroup, dtype: str) -> None:
    shape = (group.size * 2, 3)
    array = of_rank(group.rank, dtype, shape)
    before = array.copy()
    part = group.reduce_scatter(array)
    total = sum(of_rank(rank, dtype, shape) for rank in range(group.size))
    np.testing.assert_array_equal(part, total[group.rank * 2 : group.rank * 2 + 2])
    np.testing.assert_array_equal(array, before)


def test_send_and_recv_go_round_the_ring(group: ProcessGroup) -> None:
    if group.size == 1:
        pytest.skip("a ring of one")
    right, left = (group.rank + 1) % group.size, (group.rank - 1) % group.size
    mine, theirs = np.full(3, group.rank, np.float64), np.empty(3)
    if group.rank % 2 == 0:
        group.send(mine, right, tag=5)
        group.recv(theirs, left, tag=5)
    else:
        group.recv(theirs, left, tag=5)
        group.send(mine, right, tag=5)
    assert (theirs == left).all()


def test_recv_refuses_a_message_of_another_size(group: ProcessGroup) -> None:
    if group.size == 1:
        pytest.skip("one rank has nobody to write to")
    if group.rank == 0:
        group.send(np.zeros(3, np.float32), 1)
    if group.rank == 1:
        with pytest.raises(DistributedError, match=r"recv\(array: float32\[4\], src=0"):
            group.recv(np.zeros(4, np.float32), 0)


def test_objects_of_any_size_are_gathered_and_broadcast(group: ProcessGroup) -> None:
    values = group.all_gather_object({"rank": group.rank, "text": "x" * group.rank * 1000})
    assert [value["rank"] for value in values] == list(range(group.size))
    src = group.size - 1
    assert group.broadcast_object(("from", group.rank), src) == ("from", src)


def test_barrier_waits_for_the_last_rank(group: ProcessGroup) -> None:
    if group.rank == group.size - 1:
        time.sleep(0.1)
    arrived = time.time()
    group.barrier()
    left = time.time()
    assert max(group.all_gather_object(arrived)) <= left + 1e-3


def test_channels_do_not_mix(group: ProcessGroup) -> None:
    buckets, user = group.channel("buckets"), group.channel("user")
    a, b = np.ones(4, np.float32), np.full(4, 10, np.float32)
    if group.rank % 2 == 0:  # the order across channels differs from rank to rank
        work = buckets.start_all_reduce(a)
        user.all_reduce(b)
    else:
        works = [buckets.start_all_reduce(a)]
        group.all_reduce(b)
        work = works[0]
    work.wait()
    assert (a == group.size).all()
    assert (b == 10 * group.size).all()
    assert group.channel("control").channel("user") is group


def test_started_work_completes_by_testing_alone(group: ProcessGroup) -> None:
    array = np.full(1000, group.rank + 1.0)
    work = group.channel("buckets").start_all_reduce(array, tag="bucket 0")
    deadline = time.monotonic() + 20
    while not work.test():
        assert time.monotonic() < deadline
        time.sleep(1e-4)
    assert work.is_completed()
    assert work.sequence == 1
    assert "bucket 0" in work.call
    assert (array == sum(range(1, group.size + 1))).all()


@pytest.mark.parametrize("kind", [CommunicationThread, InlineProgress])
def test_progress_sees_many_jobs_through(
    group: ProcessGroup, kind: type[CommunicationThread | InlineProgress]
) -> None:
    buckets = group.channel("buckets")
    progress = kind(timeout_s=20)
    arrays = [np.full(100 + i, group.rank + i, np.float32) for i in range(20)]
    jobs = [progress.submit(functools.partial(buckets.start_all_reduce, a)) for a in arrays]
    for i, (array, job) in enumerate(zip(arrays, jobs, strict=True)):
        job.wait()
        assert job.is_completed()
        assert job.sequence == i + 1
        assert (array == group.size * (group.size - 1) / 2 + group.size * i).all()
    progress.close()


def test_user_collectives_run_beside_the_communication_thread(group: ProcessGroup) -> None:
    buckets = group.channel("buckets")
    progress = start_progress(group)
    for step in range(20):
        arrays = [np.full(1 << 12, group.rank, np.float32) for _ in range(3)]
        jobs = [progress.submit(functools.partial(buckets.start_all_reduce, a)) for a in arrays]
        total = np.array([step + group.rank])
        group.all_reduce(total)
        assert total[0] == step * group.size + group.size * (group.size - 1) // 2
        for job in jobs:
            job.wait()
        assert all((a == group.size * (group.size - 1) / 2).all() for a in arrays)
    progress.close()


def same_error(group: ProcessGroup, error: BaseException) -> str:
    texts = group.channel("control").all_gather_object(str(error))
    assert len(set(texts)) == 1, texts
    return texts[0]


def test_a_shape_that_differs_is_raised_by_all_ranks_alike(group: ProcessGroup) -> None:
    if group.size == 1:
        pytest.skip("one rank agrees with itself")
    array = np.full(4 if group.rank != 1 else 5, 1.0, np.float32)
    with pytest.raises(DistributedError) as caught:
        group.all_reduce(array)
    text = same_error(group, caught.value)
    assert "rank 1 differs from rank 0" in text
    assert "float32[4]" in text
    assert "float32[5]" in text
    assert (array == 1).all()


def test_another_dtype_op_or_collective_is_raised_by_all_ranks_alike(group: ProcessGroup) -> None:
    if group.size == 1:
        pytest.skip("one rank agrees with itself")
    odd = group.rank == group.size - 1
    calls = [
        lambda: group.all_reduce(np.ones(4, np.float64 if odd else np.float32)),
        lambda: group.all_reduce(np.ones(4), "max" if odd else "sum"),
        lambda: group.barrier() if odd else group.broadcast(np.ones(4)),
        lambda: group.broadcast(np.ones(4), src=1 if odd else 0),
    ]
    for call in calls:
        with pytest.raises(DistributedError, match=f"rank {group.size - 1} differs") as caught:
            call()
        same_error(group, caught.value)
    group.barrier()  # and the channel is still in step


def test_check_same_names_the_first_rank_that_differs(group: ProcessGroup) -> None:
    check_same(group, "parameters", "weight float32[3, 4]")
    if group.size == 1:
        return
    mine = "weight float32[3, 4]" if group.rank < group.size - 1 else "weight float32[4, 3]"
    with pytest.raises(DistributedError, match=f"rank {group.size - 1} differs") as caught:
        check_same(group, "parameters", mine)
    text = same_error(group, caught.value)
    assert "parameters: weight float32[3, 4]" in text
    assert "parameters: weight float32[4, 3]" in text


def test_check_same_shows_where_long_texts_part(group: ProcessGroup) -> None:
    if group.size == 1:
        pytest.skip("one rank agrees with itself")
    with pytest.raises(DistributedError, match=r"the texts part at .*x1x.* against .*x0x"):
        check_same(group, "plan", "x" * 1000 + str(int(group.rank == 0)) + "x" * 1000)


def test_a_wait_ends_with_an_error_in_words(group: ProcessGroup) -> None:
    if group.size == 1:
        pytest.skip("one rank never waits")
    buckets = group.channel("buckets")
    array = np.zeros(3, np.float32)
    if group.rank == 0:
        work = buckets.start_all_reduce(array, tag="bucket 7")
        with pytest.raises(DistributedError, match=r"bucket 7.*rank 0 of \d waited 0.1 s"):
            work.wait(0.1)
        group.barrier()
        work.wait()
    else:
        group.barrier()
        buckets.start_all_reduce(array, tag="bucket 7").wait()


def test_wrong_arguments_are_refused_before_anything_is_sent(group: ProcessGroup) -> None:
    floats, bools = np.zeros((4, 4), np.float32), np.zeros(3, np.bool_)
    refusals = [
        (ArgumentError, "did you mean sum", lambda: group.all_reduce(floats, "summ")),
        (DtypeError, "avg does not take int64", lambda: group.all_reduce(np.arange(3), "avg")),
        (DtypeError, "sum does not take bool", lambda: group.all_reduce(bools)),
        (ArgumentError, "C-contiguous", lambda: group.all_reduce(floats.T[1:])),
        (ArgumentError, "read-only", lambda: group.broadcast(np.frombuffer(b"12345678"))),
        (ArgumentError, "no rank of a group", lambda: group.broadcast(floats, group.size)),
        (ArgumentError, "with itself", lambda: group.send(floats, group.rank)),
        (DtypeError, "array of objects", lambda: group.all_gather(np.array([{}]))),
        (TypeError, "not list", lambda: group.all_reduce([1.0])),
        (ArgumentError, "did you mean buckets", lambda: group.channel("bucket")),
    ]
    for kind, text, call in refusals:
        with pytest.raises(kind, match=text):
            call()
    if group.size > 1:
        with pytest.raises(ArgumentError, match="equal slices, one for each rank"):
            group.reduce_scatter(np.zeros(group.size + 1))
    group.barrier()


def test_a_closed_group_refuses_to_communicate(group: ProcessGroup) -> None:
    group.barrier()
    group.close()
    with pytest.raises(DistributedError, match="is closed"):
        group.channel("control").barrier()
    group.close()


def test_shared_folder_is_the_same_on_all_ranks(group: ProcessGroup, shared_tmp_path) -> None:
    assert len(set(group.all_gather_object(str(shared_tmp_path)))) == 1
    if group.rank == 0:
        (shared_tmp_path / "file").write_text("here")
    group.barrier()
    assert (shared_tmp_path / "file").read_text() == "here"
