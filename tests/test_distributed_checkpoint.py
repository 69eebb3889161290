"""Checkpoints of what is spread over ranks: what is written, by whom, and who can read it."""

import errno
import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import distgrad as dg
from distgrad.distributed import checkpoint as dcp
from distgrad.distributed import local_group
from distgrad.distributed.checkpoint import Shard, saving
from distgrad.distributed.checkpoint.folder import clean
from distgrad.distributed.checkpoint.loading import Checkpoint
from distgrad.distributed.checkpoint.saving import Saver
from distgrad.distributed.checkpoint.state import decoded, encoded
from distgrad.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from distgrad.distributed.fsdp import fully_shard
from distgrad.distributed.optim import ZeroRedundancyOptimizer
from distgrad.distributed.threads import run_ranks
from distgrad.errors import ArgumentError, CheckpointError
from distgrad.nn.parallel import DistributedDataParallel
from distgrad.optim import SGD, AdamW

V = 4  # parts of a batch


def arrays_of(state):
    return {k: v.numpy() for k, v in state.items()}


# ---------------------------------------------------------------------- values
@pytest.mark.parametrize(
    "value",
    [
        None, True, -3, 2.5, float("inf"), "text", [1, [2, "x"]], (1, (2,), []), {"a": (1,)}, {},
        {1: "one", (2, 3): None}, {"$odd": 1}, {1, 2}, frozenset({"a"}), b"\0\xff", 1 + 2j,
        dg.float32, dg.bfloat16, dg.device("cpu"), 10**40,
    ],
    ids=repr,
)  # fmt: skip
def test_values_come_back_with_their_types(value):
    back = decoded(encoded(value, "key"))
    assert back == value
    assert type(back) is type(value)


def test_numpys_values_come_back():
    assert np.isnan(decoded(encoded(float("nan"), "key")))
    array = np.arange(6, dtype=np.uint16).reshape(2, 3)
    back = decoded(encoded(array, "key"))
    np.testing.assert_array_equal(back, array)
    assert back.dtype == array.dtype
    assert decoded(encoded(np.float32(0.5), "key")) == 0.5


def test_what_cannot_be_saved_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"'sched/fn' is of builtins.function.*state_dict"):
        dcp.save(
            {"sched": {"fn": test_numpys_values_come_back, "x": 1}}, checkpoint_id=tmp_path / "a"
        )
    with pytest.raises(CheckpointError, match="two values have the key '1'"):
        dcp.save({1: dg.ones(1), "1": dg.ones(1)}, checkpoint_id=tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_state_comes_back_in_place(tmp_path):
    weight, mixed = dg.arange(6.0).reshape(2, 3), [dg.ones(2), 7, (dg.zeros(()), "x")]
    state = {"model": {"w": weight, "n/b": dg.tensor(3)}, "mixed": mixed, "step": 5, "more": {}}
    index = dcp.save(state, checkpoint_id=tmp_path / "a")
    assert set(index.files) == {"model.safetensors", "mixed.safetensors"}
    found = load_file(tmp_path / "a" / "model.safetensors")  # any program can read it
    np.testing.assert_array_equal(found["w"], weight.numpy())
    target = dg.zeros(2, 3)
    other = {
        "model": {"w": target, "n/b": dg.tensor(0)}, "mixed": [dg.zeros(2), 0, (dg.ones(()), "")],
        "step": 0, "more": {},
    }  # fmt: skip
    dcp.load(other, checkpoint_id=tmp_path / "a")
    assert other["model"]["w"] is target
    assert target.tolist() == weight.tolist()
    assert other["model"]["n/b"].item() == 3
    assert (other["mixed"][0].tolist(), other["mixed"][1]) == ([1, 1], 7)
    assert (other["mixed"][2][0].item(), other["mixed"][2][1]) == (0, "x")
    assert (other["step"], other["more"]) == (5, {})


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", "int8", "bool", "complex64"])
def test_every_type_keeps_its_bits(tmp_path, dtype):
    pytest.importorskip("ml_dtypes")
    kind = getattr(dg, dtype)
    a = dg.tensor([0, 1, 1, 0, 1]).to(kind)
    dcp.save({"a": a, "none": dg.zeros(0, 3)}, checkpoint_id=tmp_path / "a")
    b = dg.zeros(5, dtype=kind)
    dcp.load({"a": b, "none": dg.zeros(0, 3)}, checkpoint_id=tmp_path / "a")
    assert b.numpy().tobytes() == a.numpy().tobytes()


def test_what_a_checkpoint_lacks_is_named_and_nothing_changes(tmp_path):
    dcp.save({"weight": dg.ones(2), "step": 1}, checkpoint_id=tmp_path / "a")
    state = {"weight": dg.zeros(2), "steps": 0}
    with pytest.raises(CheckpointError, match="no value 'steps'; did you mean step"):
        dcp.load(state, checkpoint_id=tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"\[2\] there and \[3\] here"):
        dcp.load({"weight": dg.zeros(3)}, checkpoint_id=tmp_path / "a")
    assert state["weight"].tolist() == [0, 0]
    partial = dcp.DefaultLoadPlanner(allow_partial_load=True)
    dcp.load(state, storage_reader=dcp.FileSystemReader(tmp_path / "a"), planner=partial)
    assert state["weight"].tolist() == [1, 1]


def test_overwrite_false_keeps_what_is_there(tmp_path):
    dcp.save({"a": 1}, checkpoint_id=tmp_path / "a")
    with pytest.raises(CheckpointError, match="overwrite is False"):
        dcp.save({"a": 2}, storage_writer=dcp.FileSystemWriter(tmp_path / "a", overwrite=False))
    dcp.save({"a": 2}, storage_writer=dcp.FileSystemWriter(tmp_path / "a"))
    assert Checkpoint(tmp_path / "a").object("a") == 2
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


# ---------------------------------------------------------------------- ranks
def cut(group, size, ends=None):
    """Return this rank's part of arange(size), cut at odd places."""
    ends = ends or [0, *sorted({size * (r * r + 1) // group.size**2 for r in range(1, group.size)})]
    ends = [*ends, *[size] * (group.size + 1 - len(ends))]
    a, b = ends[group.rank], ends[group.rank + 1]
    return Shard(dg.arange(float(a), float(b)), (size,), a)


def test_parts_of_any_number_of_ranks_are_read_by_any_other(tmp_path):
    def save(group):
        state = {"x": cut(group, 23), "same": dg.full((3,), 4.0), str(group.rank): group.rank}
        dcp.save({"s": state}, checkpoint_id=tmp_path / f"from{group.size}")

    def load(group, source):
        state = {"x": cut(group, 23), "same": dg.zeros(3)}
        state["x"].tensor.zero_()
        dcp.load({"s": state}, checkpoint_id=tmp_path / f"from{source}")
        assert state["same"].tolist() == [4, 4, 4]
        return state["x"].tensor.tolist()

    for source in (1, 2, 3):
        run_ranks(source, save)
        files = {p.name for p in (tmp_path / f"from{source}").iterdir()} - {"index.json"}
        assert len(files) == source
        for target in (1, 2, 4):
            parts = run_ranks(target, load, source)
            assert [x for part in parts for x in part] == list(range(23))


def test_parts_that_are_missing_or_twice_are_refused(tmp_path):
    def save(group, a, b):
        state = {"x": Shard(dg.zeros((b if group.rank else a) - 0), (10,), group.rank * 5)}
        dcp.save(state, checkpoint_id=tmp_path / "a")

    with pytest.raises(ArgumentError, match="elements 9 to 10 of x are on no rank"):
        run_ranks(2, save, 5, 4)
    with pytest.raises(ArgumentError, match="elements 5 to 6 of x are on no rank or on several"):
        run_ranks(2, save, 6, 5)
    with pytest.raises(ArgumentError, match=r"x is F32\[2\] on one rank and F32\[3\] on rank 1"):
        run_ranks(
            2, lambda group: dcp.save({"x": dg.zeros(group.rank + 2)}, checkpoint_id=tmp_path / "a")
        )
    assert not list(tmp_path.iterdir())


def test_big_whole_tensors_are_written_by_several_ranks(tmp_path, monkeypatch):
    monkeypatch.setattr("distgrad.distributed.checkpoint.plan.SHARE", 80)

    def save(group):
        return dcp.save(
            {"m": {str(n): dg.full((10,), float(n)) for n in range(6)}},
            checkpoint_id=tmp_path / "a",
        )

    index = run_ranks(3, save)[0]
    count = {name: sum(p.file == name for t in index.tensors.values() for p in t.pieces)
             for name in index.files}  # fmt: skip
    assert list(count.values()) == [2, 2, 2]


# ---------------------------------------------------------------------- models and optimizers
class Net(dg.nn.Module):
    """Layers of odd sizes, tied weights and a buffer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = dg.nn.Linear(5, 13), dg.nn.Linear(13, 5)
        self.norm = dg.nn.BatchNorm1d(13)
        rng = np.random.default_rng(0)
        for p in self.parameters():
            p.data.copy_(dg.from_numpy(rng.standard_normal(p.shape).astype("float32")))

    def forward(self, x):
        return self.b(self.norm(self.a(x)).tanh())


class Run:
    """A model and its optimizer on some ranks, which cut each batch into V parts."""

    def __init__(self, group, zero, cls=AdamW, **options):
        net = Net().eval()
        if zero == 3:
            fully_shard(net.a, mesh=group)
            self.model = fully_shard(net, mesh=group, reduction="sum", shards=V)
        else:
            self.model = DistributedDataParallel(
                net, process_group=group, determinism="world", shards=V, reduction="sum",
                bucket_cap_mb=0.0003, shard_gradients=zero == 2, broadcast_buffers=False,
            )  # fmt: skip
        params = net.parameters()
        if zero in (1, 2):
            self.optimizer = ZeroRedundancyOptimizer(params, cls, process_group=group, **options)
        else:
            self.optimizer = cls(params, **options)

    def steps(self, first, last):
        for step in range(first, last):
            x = np.random.default_rng(step).standard_normal((16, 5)).astype("float32")
            self.optimizer.zero_grad()
            for part in self.model.local_shards:
                rows = dg.from_numpy(x[16 * part // V : 16 * (part + 1) // V])
                self.model(rows).square().sum().backward()
            self.optimizer.step()

    def bits(self):
        state = get_model_state_dict(self.model, options=StateDictOptions(full_state_dict=True))
        return {name: value.numpy().tobytes() for name, value in state.items()}

    def whole_state(self):
        full = StateDictOptions(full_state_dict=True)
        return get_optimizer_state_dict(self.model, self.optimizer, options=full)


@pytest.mark.parametrize(("cls", "options"), [(AdamW, {"lr": 0.01}), (SGD, {"lr": 0.01})])
@pytest.mark.parametrize("before", [0, 1, 2, 3])
def test_a_run_goes_on_with_other_ranks_and_other_sharing(tmp_path, before, cls, options):
    alone = Run(local_group(), 0, cls, **options)
    alone.steps(0, 5)
    want = alone.bits()

    def save(group):
        run = Run(group, before, cls, **options)
        run.steps(0, 3)
        model, optim = get_state_dict(run.model, run.optimizer)
        future = dcp.async_save({"m": model, "o": optim}, checkpoint_id=tmp_path / "a")
        run.steps(3, 5)  # what is on its way does not change with it
        assert run.bits() == want
        future.result()

    def load(group, after):
        run = Run(group, after, cls, lr=0.5)
        model, optim = get_state_dict(run.model, run.optimizer)
        dcp.load({"m": model, "o": optim}, checkpoint_id=tmp_path / "a")
        set_state_dict(run.model, run.optimizer, model_state_dict=model, optim_state_dict=optim)
        assert run.optimizer.param_groups[0]["lr"] == 0.01
        run.steps(3, 5)
        return run.bits()

    run_ranks(4, save)
    for after in range(4):
        for got in run_ranks(2, load, after):
            assert got == want


def test_whole_states_are_gathered_and_given_back():
    def body(group, zero):
        run = Run(group, zero, lr=0.01)
        run.steps(0, 2)
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        model, optim = get_state_dict(run.model, run.optimizer, options=options)
        assert bool(model) == (group.rank == 0)
        flat = get_optimizer_state_dict(
            run.model, run.optimizer,
            options=StateDictOptions(full_state_dict=True, flatten_optimizer_state_dict=True),
        )  # fmt: skip
        other = Run(group, 3 - zero, lr=0.5)
        given = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(other.model, model, options=given)
        set_optimizer_state_dict(other.model, other.optimizer, optim, options=given)
        third = Run(group, 0, lr=0.5)
        set_model_state_dict(third.model, model, options=given)
        set_optimizer_state_dict(third.model, third.optimizer, flat)
        for each in (run, other, third):
            each.steps(2, 4)
        assert run.bits() == other.bits() == third.bits()
        return arrays_of(run.whole_state()["state"]["a.weight"])

    alone = Run(local_group(), 0, lr=0.01)
    alone.steps(0, 4)
    want = arrays_of(alone.whole_state()["state"]["a.weight"])
    for zero in (0, 1, 3):
        for got in run_ranks(2, body, zero):
            assert {k: v.tobytes() for k, v in got.items()} == {
                k: v.tobytes() for k, v in want.items()
            }


def test_a_state_of_another_model_changes_nothing():
    run, other = Run(local_group(), 0, lr=0.1), dg.nn.Linear(2, 2)
    before = run.bits()
    model, optim = get_state_dict(run.model, run.optimizer)
    with pytest.raises(CheckpointError, match=r"missing \['weight', 'bias'\]"):
        set_model_state_dict(other, model)
    wrong = {k: v if k != "b.bias" else dg.zeros(9) for k, v in model.items()}
    with pytest.raises(CheckpointError, match=r"b.bias: is \[9\] there and \[5\] here"):
        set_state_dict(run.model, run.optimizer, model_state_dict=wrong, optim_state_dict=optim)
    groups = [{**optim["param_groups"][0], "params": ["a.weight"]}]
    zeros = {k: dg.zeros_like(v) for k, v in model.items()}
    with pytest.raises(CheckpointError, match="group 0 of the optimizer has other parameters"):
        set_state_dict(
            run.model, run.optimizer, model_state_dict=zeros,
            optim_state_dict={**optim, "param_groups": groups},
        )  # fmt: skip
    assert run.bits() == before


# ---------------------------------------------------------------------- in the background
def everything(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("zero", [0, 1, 3])
def test_in_the_background_the_same_bytes_are_written(tmp_path, zero):
    def body(group):
        run = Run(group, zero, lr=0.01)
        run.steps(0, 2)
        model, optim = get_state_dict(run.model, run.optimizer)
        saver = Saver(group)
        for number, background in enumerate((False, True, True)):
            saver.save({"m": model, "o": optim}, tmp_path / str(number), background)
        saver.wait()
        return saver.copied_bytes

    copied = run_ranks(3, body)
    first = everything(tmp_path / "0")
    assert first == everything(tmp_path / "1") == everything(tmp_path / "2")
    size = sum(len(data) for name, data in first.items() if name != "index.json")
    heads = sum(8 + int.from_bytes(data[:8], "little") for name, data in first.items()
                if name != "index.json")  # fmt: skip
    assert sum(copied) == 2 * (size - heads)  # each byte is copied once for each save


def test_one_is_on_its_way_at_a_time_and_its_error_comes_with_the_next(tmp_path, monkeypatch):
    gate, order = threading.Event(), []
    write = saving.write_part

    def slow(part, *rest):
        order.append(f"begin {part.name[0]}")
        assert gate.wait(30)
        order.append(f"end {part.name[0]}")
        if part.name[0] == "b":
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        return write(part, *rest)

    monkeypatch.setattr(saving, "write_part", slow)
    saver, x = Saver(local_group()), dg.ones(3)
    first = saver.save({"x": x}, tmp_path / "a", background=True)
    x.zero_()  # the copy was made
    assert not first.future.done()
    gate.set()
    saver.save({"x": x}, tmp_path / "b", background=True)
    assert order[:3] == ["begin a", "end a", "begin b"]
    with pytest.raises(CheckpointError, match=r"save\(b\).*Disk quota exceeded.*untouched"):
        saver.save({"x": x}, tmp_path / "c", background=True)
    saver.save({"x": x}, tmp_path / "d", background=True)
    saver.wait()
    assert Checkpoint(tmp_path / "a").read("x").tolist() == [1, 1, 1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "d"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), SystemExit(3)])
@pytest.mark.parametrize("victim", [0, 2])
def test_a_rank_that_cannot_write_fails_the_checkpoint_on_all(tmp_path, monkeypatch, victim, error):
    write = saving.write_part

    def full(part, plan, rank, arrays):
        if rank == victim and part.name.startswith("b"):
            raise error
        return write(part, plan, rank, arrays)

    monkeypatch.setattr(saving, "write_part", full)

    def body(group):
        saver, said = Saver(group), []
        for name in ("a", "b", "a", "c"):
            try:
                saver.save({"x": cut(group, 12)}, tmp_path / name, background=True)
            except CheckpointError as wrong:
                said.append(str(wrong))
        saver.wait()
        return said

    said = run_ranks(3, body)
    assert said[0] == said[1] == said[2]
    assert len(said[0]) == 1
    text = "No space left" if isinstance(error, OSError) else "3"
    assert f"rank {victim}: {text}" in said[0][0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "c"]


def test_rank_0_that_cannot_finish_fails_the_checkpoint_on_all(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "put", lambda *_: os.stat("/nowhere"))

    def body(group):
        with pytest.raises(CheckpointError, match=r"rank 0: No such file.*/nowhere"):
            dcp.save({"x": cut(group, 12)}, checkpoint_id=tmp_path / "a")

    run_ranks(3, body)
    assert not list(tmp_path.iterdir())


def test_a_rank_whose_files_nobody_sees_is_named(tmp_path, monkeypatch):
    write = saving.write_part

    def elsewhere(part, plan, rank, arrays):
        return write(part if rank == 0 else tmp_path / "own disk", plan, rank, arrays)

    monkeypatch.setattr(saving, "write_part", elsewhere)

    def body(group):
        with pytest.raises(
            CheckpointError, match=r"rank 1 wrote.*file system that all hosts share"
        ):
            dcp.save({"x": cut(group, 12)}, checkpoint_id=tmp_path / "a")

    run_ranks(2, body)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True
    )
    if done.returncode:
        pytest.skip("nobody here may mount a file system")
    yield folder
    gc.collect()
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("background", [False, True])
def test_a_disk_that_is_full_leaves_what_is_there(small_disk, background):
    def body(group):
        saver = Saver(group)
        size = 100_000  # 400 kB: twice is too much
        saver.save({"x": cut(group, size)}, small_disk / "a", background)
        with pytest.raises(CheckpointError, match=r"No space left on device.*earlier checkpoints"):
            saver.save({"x": cut(group, 2 * size)}, small_disk / "b", background)
            saver.wait()
        state = {"x": dg.zeros(size)}
        dcp.load(state, checkpoint_id=small_disk / "a", process_group=group)
        assert state["x"][-1].item() == size - 1
        saver.save({"x": cut(group, 50_000)}, small_disk / "c", background)  # what failed is gone
        saver.wait()

    run_ranks(2, body)
    assert sorted(p.name for p in small_disk.iterdir()) == ["a", "c"]


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path):
    dcp.save({"a": 1}, checkpoint_id=tmp_path / "mine")
    for name in ("mine.0a1b2c3d.tmp", "step_00000004.tmp", "step_00000004.0a1b2c3d.del.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.safetensors").write_text("half")
    (tmp_path / "latest.0a1b2c3d.tmp").symlink_to("mine")
    for name in ("notes.tmp", "step_notes.tmp", "other.12.tmp"):
        (tmp_path / name).write_text("of the user")
    assert clean(tmp_path) == 4
    assert {p.name for p in tmp_path.iterdir()} == {
        "mine", "notes.tmp", "step_notes.tmp", "other.12.tmp"
    }  # fmt: skip


@pytest.mark.parametrize("swaps", [True, False])
def test_what_is_replaced_is_there_until_the_new_one_is(tmp_path, monkeypatch, swaps):
    if not swaps:
        monkeypatch.setattr("distgrad.distributed.checkpoint.folder._swapped", lambda *_: False)
    dcp.save({"a": 1}, checkpoint_id=tmp_path / "x")
    dcp.save({"a": 2}, checkpoint_id=tmp_path / "x")
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    rename, gone = os.rename, []

    def dies(a, b):
        gone.append((a, b))
        if swaps or len(gone) == 2:
            raise KeyboardInterrupt
        rename(a, b)

    with monkeypatch.context() as patch, pytest.raises(CheckpointError):
        patch.setattr(os, "rename", dies)
        patch.setattr(saving, "drop", lambda path: None)  # as if killed
        dcp.save({"a": 3}, checkpoint_id=tmp_path / "x")
    clean(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    assert Checkpoint(tmp_path / "x").object("a") == (3 if swaps else 2)


def test_savers_of_one_group_take_turns(tmp_path):
    def body(group):
        future = dcp.async_save({"x": cut(group, 50_000)}, checkpoint_id=tmp_path / "a")
        dcp.save({"x": cut(group, 12)}, checkpoint_id=tmp_path / "b")
        return future.result().name

    assert run_ranks(3, body) == ["a"] * 3
    assert Checkpoint(tmp_path / "b").index.tensors["x"].size == 12


def test_plans_are_made_again_when_the_state_changes(tmp_path):
    def body(group):
        saver = Saver(group)
        for number, size in enumerate((12, 12, 30)):
            saver.save({"x": cut(group, size)}, tmp_path / str(number), background=True)
        saver.wait()

    run_ranks(2, body)
    assert [Checkpoint(tmp_path / n).index.tensors["x"].size for n in "012"] == [12, 12, 30]


# ---------------------------------------------------------------------- whole programs
def test_scaler_schedule_loader_and_random_numbers_go_on(tmp_path):
    def program():
        dg.manual_seed(3)
        model = dg.nn.Linear(4, 1)
        optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
        schedule = dg.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        scaler = dg.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
        data = dg.utils.data.TensorDataset(dg.arange(48.0).reshape(12, 4) / 48)
        loader = dg.utils.data.DataLoader(data, batch_size=2, shuffle=True)
        return {"model": model, "optimizer": optimizer, "schedule": schedule, "scaler": scaler,
                "loader": loader}  # fmt: skip

    def whole(p):
        state = get_optimizer_state_dict(p["model"], p["optimizer"])
        return {**p, "optimizer": state, "rng": {"0": dg.get_rng_state()}}

    def train(p, save_at=None):
        seen = []
        for (x,) in p["loader"]:
            loss = (p["model"](dg.nn.functional.dropout(x)) ** 2).mean()
            p["optimizer"].zero_grad()
            p["scaler"].scale(loss).backward()
            p["scaler"].step(p["optimizer"])
            p["scaler"].update()
            p["schedule"].step()
            seen.append(loss.item())
            if len(seen) == save_at:
                dcp.save(whole(p), checkpoint_id=tmp_path / "a")
        return seen

    want = train(program(), save_at=3)
    second = program()
    dg.manual_seed(99)
    with pytest.raises(CheckpointError, match=r"'optimizer' but tensors.*get_optimizer_state_dict"):
        dcp.load({"optimizer": second["optimizer"]}, checkpoint_id=tmp_path / "a")
    found = whole(second)
    dcp.load(found, checkpoint_id=tmp_path / "a")
    set_optimizer_state_dict(second["model"], second["optimizer"], found["optimizer"])
    dg.set_rng_state(found["rng"]["0"])
    assert second["scaler"].get_scale() == 16
    assert second["schedule"].last_epoch == 3
    assert train(second) == want[3:]


PROGRAM = """
import distgrad
distgrad.as_torch()
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load


class AppState(Stateful):
    def __init__(self, model, optimizer):
        self.model, self.optimizer = model, optimizer

    def state_dict(self):
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optim": optimizer}

    def load_state_dict(self, state):
        set_state_dict(
            self.model, self.optimizer, model_state_dict=state["model"],
            optim_state_dict=state["optim"],
        )


def make(steps):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(steps):
        model(torch.ones(2, 3)).sum().backward()
        optimizer.step()
    return AppState(model, optimizer)


first, second = make(3), make(0)
dcp.async_save({"app": first, "epoch": 3}, checkpoint_id="a").result()
state = {"app": second, "epoch": 0}
load(state, storage_reader=FileSystemReader("a"))
same = zip(first.model.parameters(), second.model.parameters())
print(all((a == b).all() for a, b in same), state["epoch"],
      second.optimizer.state_dict()["state"][0]["step"].item())
dcp.async_save({"x": torch.ones(3)}, checkpoint_id="b")  # the program ends before it is asked for
"""


def test_programs_for_pytorch_save_and_load(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(dg.__file__).parents[1])},
    )  # fmt: skip
    assert done.stdout.split() == ["True", "3", "3.0"], done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    assert Checkpoint(tmp_path / "b").read("x").tolist() == [1, 1, 1]
