"""Checkpoints of jobs: which stay, which are gone on from, and what a kill leaves behind."""

import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import distgrad as dg
from distgrad.distributed import local_group
from distgrad.distributed.checkpoint import saving
from distgrad.distributed.checkpoint.folder import Folder
from distgrad.distributed.checkpoint.index import signed
from distgrad.distributed.threads import run_ranks
from distgrad.errors import CheckpointError
from distgrad.launch import checkpoint
from distgrad.launch.checkpoint import Checkpoints, Directory
from distgrad.serialization import save_file

JOB = {"config": {}, "schedule": {"last_epoch": 1}, "best": float("inf")}


def trained(lr=0.1, size=3):
    dg.manual_seed(0)
    model = dg.nn.Linear(size, 2)
    optimizer = dg.optim.AdamW(model.parameters(), lr=lr)
    model(dg.ones(1, size)).sum().backward()
    optimizer.step()
    return model, optimizer


def save(folder, *steps, keep=3, metrics=()):
    """Save at ``steps``; with weights that say the step."""
    model, optimizer = trained()
    checkpoints = Checkpoints(local_group(), folder, keep)
    rated = dict(metrics)
    for step in steps:
        model.bias.data.fill_(float(step))
        checkpoints.save(step, model, optimizer, JOB, rated.get(step))
    checkpoints.wait()
    return checkpoints


def names(folder):
    return {p.name for p in folder.iterdir()}


def steps_in(folder):
    return {int(p.name[5:]) for p in folder.glob("step_*")}


def spoil(path):
    data = bytearray((path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "model.safetensors").write_bytes(data)


def test_what_is_saved_comes_back(tmp_path):
    model, optimizer = trained()
    dg.manual_seed(5)
    random = dg.get_rng_state()
    Checkpoints(local_group(), tmp_path).save(7, model, optimizer, JOB, wait=True)
    path = tmp_path / "step_00000007"
    assert (tmp_path / "latest").resolve() == path
    checkpoint.verify(path)
    other, again = trained(lr=0.5)
    for p in other.parameters():
        p.data.zero_()
    found = Checkpoints(local_group(), tmp_path).load(path, other, again)
    np.testing.assert_array_equal(other.weight.detach().numpy(), model.weight.detach().numpy())
    assert again.param_groups[0]["lr"] == 0.1
    assert again.param_groups[0]["betas"] == (0.9, 0.999)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        for name, value in optimizer.state[p].items():
            np.testing.assert_array_equal(again.state[q][name].numpy(), value.numpy())
    assert (found.job["step"], found.job["best"], found.world) == (7, float("inf"), 1)
    assert found.random.tolist() == random.tolist()


# ---------------------------------------------------------------------- which stay
def test_only_the_newest_stay(tmp_path):
    save(tmp_path, 1, 2, 3, 10, keep=2)
    assert names(tmp_path) == {"step_00000003", "step_00000010", "latest"}


def test_the_best_stays_and_has_a_link(tmp_path):
    metrics = {1: 5.0, 2: 3.0, 3: 4.0, 4: 3.0, 6: float("nan")}
    save(tmp_path, *range(1, 8), keep=2, metrics=metrics)
    assert steps_in(tmp_path) == {2, 6, 7}
    assert (tmp_path / "best").resolve().name == "step_00000002"
    assert (tmp_path / "latest").resolve().name == "step_00000007"
    save(tmp_path, 8, keep=2, metrics={8: 1.0})  # another program goes on
    assert steps_in(tmp_path) == {7, 8}
    assert (tmp_path / "best").resolve().name == "step_00000008"


def test_damaged_ones_do_not_count_and_the_newest_good_one_stays(tmp_path):
    save(tmp_path, 1, 2, 3)
    for step in (2, 3):
        (tmp_path / f"step_{step:08d}" / "model.safetensors").unlink()
    save(tmp_path, 4, keep=2)
    assert steps_in(tmp_path) == {1, 2, 3, 4}
    save(tmp_path, 5, keep=2)
    assert steps_in(tmp_path) == {4, 5}


def test_one_that_is_read_stays(tmp_path):
    save(tmp_path, 1)
    with closing(Folder(tmp_path / "step_00000001")) as reader:
        save(tmp_path, 2, 3, keep=1)
        assert steps_in(tmp_path) == {1, 3}
        handle, _ = reader.open("model.safetensors")
        os.close(handle)
    save(tmp_path, 4, keep=1)
    assert steps_in(tmp_path) == {4}


def test_after_going_back_the_new_ones_are_the_newest(tmp_path):
    save(tmp_path, 4, 8, 12)
    save(tmp_path, 6, keep=2)  # a run that went on from step 4
    assert (tmp_path / "latest").resolve().name == "step_00000006"
    assert steps_in(tmp_path) == {6, 12}
    assert [p.name for p in Directory(tmp_path).newest_first()] == [
        "step_00000006",
        "step_00000012",
    ]


def test_a_step_that_is_saved_again_takes_the_place(tmp_path):
    save(tmp_path, 4, 8)
    before = (tmp_path / "step_00000004" / "index.json").read_bytes()
    save(tmp_path, 4)
    assert (tmp_path / "step_00000004" / "index.json").read_bytes() != before
    assert [p.name[-1] for p in Directory(tmp_path).newest_first()] == ["4", "8"]
    assert names(tmp_path) == {"step_00000004", "step_00000008", "latest"}


def test_a_file_system_without_links_or_locks_will_do(tmp_path, monkeypatch):
    def none(*_, **__):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(os, "symlink", none)
    monkeypatch.setattr(Path, "symlink_to", none)
    monkeypatch.setattr(fcntl, "flock", none)
    save(tmp_path, 1, 2, 3, keep=2)
    assert names(tmp_path) == {"step_00000002", "step_00000003"}


# ---------------------------------------------------------------------- which are gone on from
def newest(folder, say=lambda text: None, first=None, size=3, group=None):
    """Return the step that is loaded and what is said."""
    said = []
    model, optimizer = trained(lr=0.5, size=size)
    checkpoints = Checkpoints(group or local_group(), folder)
    first = first or checkpoints.directory.newest_first()[0]
    found = checkpoints.load_newest(first, model, optimizer, said.append)
    if found is not None:
        assert model.bias.tolist() == [float(found.job["step"])] * 2
        assert optimizer.param_groups[0]["lr"] == 0.1
    return (found and found.job["step"]), said


def test_damaged_and_unfinished_ones_are_skipped_by_name(tmp_path):
    save(tmp_path, 1, 2, 3, 4, 5, keep=5)
    spoil(tmp_path / "step_00000005")
    (tmp_path / "step_00000004" / "index.json").write_text('{"form')
    (tmp_path / "step_00000003" / "optim.safetensors").unlink()
    (tmp_path / "step_00000009").mkdir()
    shutil.copytree(tmp_path / "step_00000002", tmp_path / "step_00000010.0a1b2c3d.tmp")
    step, said = newest(tmp_path, first=tmp_path / "step_00000005")
    assert step == 2
    assert [text.split(":")[1].split()[0][-1] for text in said] == ["9", "5", "4", "3"]
    assert "sha256" in said[1]


def test_all_ranks_take_the_same_one(tmp_path):
    save(tmp_path, 1, 2, 3)
    spoil(tmp_path / "step_00000003")
    for step, said in run_ranks(3, lambda group: newest(tmp_path, group=group)):
        assert step == 2
        assert len(said) == 1


def test_without_a_good_one_none_is_loaded(tmp_path):
    save(tmp_path, 1, 2)
    for step in (1, 2):
        spoil(tmp_path / f"step_{step:08d}")
    assert newest(tmp_path)[0] is None


def test_leftovers_are_removed(tmp_path):
    checkpoints = save(tmp_path, 1)
    (tmp_path / "step_00000002.0a1b2c3d.tmp").mkdir()
    (tmp_path / "step_00000003.tmp").mkdir()  # of the first format
    (tmp_path / "latest.0a1b2c3d.tmp").symlink_to("step_00000001")
    checkpoints.tidy()
    assert names(tmp_path) == {"step_00000001", "latest"}


def test_a_load_that_fails_says_what_else_there_is_and_changes_nothing(tmp_path):
    checkpoints = save(tmp_path, 1, 2)
    spoil(tmp_path / "step_00000002")
    model, optimizer = trained(lr=0.5)
    before = model.bias.tolist(), optimizer.state[model.bias]["exp_avg"].tolist()
    with pytest.raises(
        CheckpointError, match=r"model.safetensors is damaged.*--resume .*_00000001"
    ):
        checkpoints.load(tmp_path / "step_00000002", model, optimizer)
    other = dg.nn.Sequential(model, dg.nn.ReLU())
    with pytest.raises(
        CheckpointError, match=r"is of another model: '0\.bias' is in the model only"
    ):
        checkpoints.load(tmp_path / "step_00000001", other, optimizer)
    wide, its = trained(size=5)
    with pytest.raises(
        CheckpointError, match=r"'model/weight' is \[2, 3\] there and \[2, 5\] here"
    ):
        checkpoints.load(tmp_path / "step_00000001", wide, its)
    assert (model.bias.tolist(), optimizer.state[model.bias]["exp_avg"].tolist()) == before
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("job", {"step": "2", "schedule": {}, "best": 1, "metric": None}, "its step"),
        ("job", {"step": 2, "schedule": [], "best": 1, "metric": 10**400}, "schedule"),
        ("job", {"step": 2}, "no value 'job/schedule'"),
        ("job", 3, "no value 'job/step'"),
        ("optim/param_groups", {"lr": 1}, "groups of the optimizer are none"),
        ("optim/param_groups", [{"params": 3}], "groups of the optimizer are none"),
        ("optim/param_groups", [], "group 0 of the optimizer has other parameters"),
        ("optim/param_groups", [{"params": [["weight"], "bias"]}], "."),
    ],
)
def test_a_job_of_strangers_is_refused_before_anything_changes(tmp_path, key, value, match):
    checkpoints = save(tmp_path, 1, 2)
    path = tmp_path / "step_00000002" / "index.json"
    index = json.loads(path.read_text())
    del index["sha256"]
    index["objects"][key] = value
    path.write_bytes(signed(json.dumps(index).encode()[:-1]))
    model, optimizer = trained(lr=0.5)
    before = model.bias.tolist()
    with pytest.raises(CheckpointError, match=match):
        checkpoints.load(path.parent, model, optimizer)
    assert model.bias.tolist() == before
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert newest(tmp_path)[0] == 1  # which a resume takes instead


def test_random_numbers_of_each_rank_come_back(tmp_path):
    def body(group, path):
        model, optimizer = trained()
        dg.manual_seed(group.rank)
        state = dg.get_rng_state().tolist()
        checkpoints = Checkpoints(group, tmp_path)
        if path is None:
            checkpoints.save(1, model, optimizer, JOB, wait=True)
            return state
        return checkpoints.load(path, model, optimizer).random.tolist()

    saved = [run_ranks(1, lambda group: body(group, None))[0]]
    path = tmp_path / "step_00000001"
    assert run_ranks(2, body, path) == saved * 2


# ---------------------------------------------------------------------- when writing fails
@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch, background):
    save(tmp_path, 1)

    def full(part, *_):
        part.mkdir(parents=True)
        (part / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(saving, "write_part", full)
    model, optimizer = trained()
    checkpoints = Checkpoints(local_group(), tmp_path, background=background)
    with pytest.raises(CheckpointError, match=r"No space left on device.*earlier checkpoints"):
        checkpoints.save(2, model, optimizer, JOB)
        checkpoints.wait()
    assert names(tmp_path) == {"step_00000001", "latest"}
    checkpoint.verify(tmp_path / "step_00000001")


def test_kills_while_checkpoints_are_written_leave_good_ones():
    program = Path(__file__).parents[1] / "benchmarks" / "checkpoint_kills.py"
    done = subprocess.run(
        [sys.executable, program, "--kills", "4"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 kills, 4 went on" in done.stdout


# ---------------------------------------------------------------------- the first format
@pytest.fixture
def first_format(tmp_path):
    """A checkpoint as the first format has it."""
    model, optimizer = trained()
    model.bias.data.fill_(7.0)
    path = tmp_path / "step_00000007"
    path.mkdir()
    state = optimizer.state_dict()
    flat = {f"{n}.{k}": v for n, row in state["state"].items() for k, v in row.items()}
    save_file(model.state_dict(), path / "model.safetensors")
    save_file(flat, path / "optim.safetensors")
    sums = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in path.iterdir()}
    rest = {"numbers": {}, "param_groups": state["param_groups"]}
    head = {"format": 1, "step": 7, "sha256": sums, "optimizer": rest, "config": {}, "best": 1.5,
            "schedule": {"last_epoch": 7}, "rng": dg.get_rng_state().tolist()}  # fmt: skip
    (path / "state.json").write_text(json.dumps(head))
    return path


def test_the_first_format_is_read(first_format):
    checkpoint.verify(first_format)
    model, optimizer = trained(lr=0.5)
    before = optimizer.state[model.weight]["exp_avg"].tolist()
    optimizer.state[model.weight]["exp_avg"].zero_()
    found = Checkpoints(local_group(), first_format.parent).load(first_format, model, optimizer)
    assert model.bias.tolist() == [7, 7]
    assert optimizer.state[model.weight]["exp_avg"].tolist() == before
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)
    assert found.job == {"step": 7, "best": 1.5, "schedule": {"last_epoch": 7}, "metric": None}
    save(first_format.parent, 8, keep=2)
    assert [p.name[-1] for p in Directory(first_format.parent).newest_first()] == ["8", "7"]


def instead(path, make):
    """Put something in the place of a file."""
    os.replace(path / "model.safetensors", path / "x")
    make(path / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "state.json").unlink(), "index.json is missing"),
        (lambda p: (p / "state.json").write_text('{"step": 1'), "state.json is torn"),
        (lambda p: (p / "optim.safetensors").unlink(), "optim.safetensors is missing"),
        (lambda p: (p / "model.safetensors").write_bytes(b"12345678"), "is damaged"),
        (lambda p: (p / "state.json").write_text(json.dumps({"format": 99})), "has format 99"),
        (
            lambda p: (p / "state.json").write_text('{"format": 1, "sha256": {"/etc/passwd": ""}}'),
            "speaks of other files",
        ),
        (lambda p: instead(p, os.mkfifo), "is a pipe"),
        (lambda p: instead(p, lambda path: path.symlink_to("x")), "is a symbolic link"),
    ],
)  # fmt: skip
def test_a_torn_one_of_the_first_format_names_what_is_wrong(first_format, damage, message):
    damage(first_format)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.verify(first_format)


# ------------------------------------------------------------------ what they cost


@pytest.fixture(scope="module")
def wall():
    """The benchmark that compares blocks of training with a save and without."""
    program = Path(__file__).parents[1] / "benchmarks" / "checkpoint_wall.py"
    spec = importlib.util.spec_from_file_location("checkpoint_wall", program)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_cost_of_saves_is_found_in_spite_of_drift(wall):
    rng = np.random.default_rng(1)
    each = [
        (1 + 0.04 * wall.is_b(n)) * (1 + 0.002 * n) * (1 + 0.04 * rng.standard_exponential())
        for n in range(wall.WARM + 4 * 90)
    ]
    marks = np.cumsum([0.0, *each]).tolist()
    found = wall.shares(marks)
    assert len(found) == 90
    low, high = wall.interval(found)
    assert low < 0.01 < high < 0.015
    assert wall.verdict(low, high) == "less than 2%"
    assert wall.verdict(0.021, 0.05) == "MORE than 2%"
    assert wall.verdict(0.01, 0.05).startswith("undecided")


def test_the_interval_holds_the_median_as_often_as_it_says(wall):
    rng = np.random.default_rng(2)
    draws = [(rng.standard_exponential(20) - np.log(2)).tolist() for _ in range(2000)]
    held = np.mean([low <= 0 <= high for low, high in map(wall.interval, draws)])
    assert 0.95 <= held < 0.975
    assert wall.interval([*map(float, range(2001))])[0] > 900
    assert wall.interval([1.0] * 5) == (-np.inf, np.inf)
