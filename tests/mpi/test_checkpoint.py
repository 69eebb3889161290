"""Checkpoints under real MPI: written beside training, by all ranks, complete or not at all."""

import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import distgrad as dg
from distgrad.distributed import checkpoint as dcp
from distgrad.distributed import local_group
from distgrad.distributed.checkpoint import Shard, saving
from distgrad.distributed.checkpoint.saving import Saver
from distgrad.errors import CheckpointError
from distgrad.launch.checkpoint import Checkpoints

pytestmark = pytest.mark.mpi
SIZE = 100_003


@contextmanager
def shared_folder(group):
    """Give a directory that all ranks see."""
    made = tempfile.TemporaryDirectory() if group.rank == 0 else None
    yield Path(group.broadcast_object(made.name if made else ""))
    group.barrier()
    if made:
        made.cleanup()


def part_of(group, value):
    a, b = (SIZE * r // group.size for r in (group.rank, group.rank + 1))
    return Shard(dg.full((b - a,), float(value)), (SIZE,), a)


def test_writing_goes_on_beside_collectives(group):
    with shared_folder(group) as folder:
        _test_writing_goes_on_beside_collectives(group, folder)


def _test_writing_goes_on_beside_collectives(group, folder):
    saver = Saver(group)
    state = {"x": part_of(group, 0), "same": dg.zeros(7)}
    sums = []
    for step in range(8):
        state["x"].tensor.fill_(float(step))
        state["same"].fill_(float(step))
        saver.save(state, folder / str(step), background=True)
        for _ in range(20):  # what training does meanwhile
            total = np.array([1.0 + step])
            group.channel("control").all_reduce(total)
            group.all_reduce(total)
            sums.append(total[0])
    saver.wait()
    assert sums == [(1.0 + step) * group.size**2 for step in range(8) for _ in range(20)]
    group.barrier()
    for step in range(8):
        found = {"x": dg.zeros(SIZE), "same": dg.zeros(7)}
        dcp.load(found, checkpoint_id=folder / str(step), process_group=group)
        assert (found["x"] == step).all()
        assert (found["same"] == step).all()
    assert len(saver.group.all_gather_object(0)) == group.size


def test_a_rank_that_cannot_write_fails_it_on_all(group, monkeypatch):
    with shared_folder(group) as folder:
        _test_a_rank_that_cannot_write_fails_it_on_all(group, folder, monkeypatch)


def _test_a_rank_that_cannot_write_fails_it_on_all(group, folder, monkeypatch):
    write, victim = saving.write_part, group.size - 1
    who = f"rank {victim}: " if group.size > 1 else ""

    def full(part, plan, rank, arrays):
        if rank == victim and part.name.startswith("b"):
            raise OSError(28, "No space left on device")
        return write(part, plan, rank, arrays)

    monkeypatch.setattr(saving, "write_part", full)
    saver = Saver(group)
    for name in ("a", "b"):
        saver.save({"x": part_of(group, 1)}, folder / name, background=True)
    with pytest.raises(CheckpointError, match=who + "No space left on device"):
        saver.wait()
    group.barrier()
    assert [p.name for p in folder.iterdir()] == ["a"]
    group.barrier()


def test_one_rank_reads_what_all_wrote(group):
    with shared_folder(group) as folder:
        _test_one_rank_reads_what_all_wrote(group, folder)


def _test_one_rank_reads_what_all_wrote(group, folder):
    model = dg.nn.Linear(50, 30)
    optimizer = dg.optim.AdamW(model.parameters())
    job = {"schedule": {}, "best": 1.0}
    dg.manual_seed(group.rank)
    random = dg.get_rng_state()
    checkpoints = Checkpoints(group, folder)
    for step in (1, 2):
        for p in model.parameters():
            p.data.fill_(float(step))
        checkpoints.save(step, model, optimizer, job, metric=1.0 / step)
    checkpoints.wait()
    group.barrier()
    newest = checkpoints.directory.path(2)
    found = checkpoints.load(newest, model, optimizer)
    if group.backend != "threads":  # they have one generator together
        assert found.random.tolist() == random.tolist()
    alone = Checkpoints(local_group(), folder).load(newest, model, optimizer)
    assert (alone.world, alone.job["step"]) == (group.size, 2)
    assert (folder / "best").resolve() == newest.resolve()
    group.barrier()
