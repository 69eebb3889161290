"""The run directory: where it is, what is resumed, what survives a kill."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from distgrad.errors import ConfigError
from distgrad.launch import rundir
from distgrad.launch.rundir import Metrics, RunDir, choose, latest_checkpoint, read_metrics


@pytest.fixture(autouse=True)
def _in_an_empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def a_run(path: str, *steps: int) -> RunDir:
    run = RunDir(rundir.Path(path))
    run.make()
    run.metrics.write_text("")
    for step in steps:
        (run.checkpoints / f"step_{step:08d}").mkdir(parents=True)
    return run


def test_a_new_run_has_the_time_and_the_name_and_is_never_an_old_one():
    first, checkpoint = choose(None, "auto", "textgpt")
    assert checkpoint is None
    assert first.path.parent == rundir.RUNS
    assert first.path.name.endswith("-textgpt")
    assert not first.path.exists()
    first.make()
    assert choose(None, "auto", "textgpt")[0].path != first.path


def test_auto_goes_on_in_the_directory_that_is_named():
    run = a_run("runs/a", 100, 200)
    assert choose("runs/a", "auto", "x") == (run, run.checkpoints / "step_00000200")
    assert choose("runs/b", "auto", "x") == (RunDir(rundir.Path("runs/b")), None)


def test_a_checkpoint_that_is_still_written_is_not_resumed():
    run = a_run("runs/a", 100)
    (run.checkpoints / "step_00000200.tmp").mkdir()
    assert latest_checkpoint(run) == run.checkpoints / "step_00000100"


def test_the_link_says_which_checkpoint_is_the_latest():
    run = a_run("runs/a", 100, 200)
    (run.checkpoints / "latest").symlink_to("step_00000100")
    assert latest_checkpoint(run) == run.checkpoints / "step_00000100"


def test_latest_is_the_run_that_was_linked_last():
    a_run("runs/a", 100).link_as_latest()
    run = a_run("runs/b", 50)
    run.link_as_latest()
    found, checkpoint = choose(None, "latest", "x")
    assert found.path.samefile("runs/b")
    assert checkpoint is not None and checkpoint.name == "step_00000050"


def test_resume_takes_a_run_or_a_checkpoint_by_its_path():
    run = a_run("runs/a", 100, 200)
    early = run.checkpoints / "step_00000100"
    assert choose(None, "runs/a", "x") == (run, run.checkpoints / "step_00000200")
    assert choose(None, str(early), "x") == (run, early)
    assert choose("runs/c", str(early), "x") == (RunDir(rundir.Path("runs/c")), early)


@pytest.mark.parametrize(
    ("run_dir", "resume", "message"),
    [
        (None, "latest", "there is no directory runs/latest"),
        (None, "runs/none", "there is no directory runs/none"),
        (None, "runs/empty", "holds no checkpoint"),
        ("runs/a", "never", "holds an earlier run"),
    ],
)
def test_a_resume_that_cannot_be_is_an_error(run_dir, resume, message):
    a_run("runs/a", 100)
    a_run("runs/empty")
    with pytest.raises(ConfigError, match=message):
        choose(run_dir, resume, "x")


@pytest.mark.skipif(os.name == "nt", reason="needs a path below a file")
def test_a_directory_that_cannot_be_made_is_an_error():
    rundir.Path("file").write_text("")
    with pytest.raises(ConfigError, match="--run-dir file/run: cannot be made"):
        RunDir(rundir.Path("file/run")).make()


def test_discarding_an_unused_run_points_latest_to_the_run_before():
    old, new = a_run("runs/old", 100), RunDir(rundir.Path("runs/new"))
    (old.path / "config.json").write_text("{}")
    new.make()
    (new.path / "config.json").write_text("{}")
    new.log(0).write_text("")
    new.link_as_latest()
    assert new.is_unused()
    assert not old.is_unused()
    new.discard()
    assert sorted(p.name for p in rundir.RUNS.iterdir()) == ["latest", "old"]
    assert (rundir.RUNS / "latest").resolve() == old.path.resolve()


def test_discarding_keeps_the_files_of_others():
    run = RunDir(rundir.Path("mine"))
    run.make()
    (run.path / "config.json").write_text("{}")
    (run.path / "thesis.tex").write_text("")
    run.discard()
    assert [p.name for p in run.path.iterdir()] == ["thesis.tex"]


def test_only_the_first_rank_that_fails_reports_it_until_the_run_goes_on():
    run = a_run("runs/a")
    assert [run.first_failure(rank) for rank in (2, 0)] == [True, False]
    run.forget_end()
    assert run.first_failure(0)


def test_rows_of_metrics_are_json_lines_that_are_there_at_once(tmp_path):
    metrics = Metrics(tmp_path / "m.jsonl")
    metrics.write({"step": 1, "loss": np.float32(0.5), "bad": float("nan"), "worse": np.inf})
    row = '{"step": 1, "loss": 0.5, "bad": null, "worse": null}\n'
    assert (tmp_path / "m.jsonl").read_text() == row
    metrics.close()


def test_going_on_drops_later_rows_the_end_and_the_torn_line(tmp_path):
    path = tmp_path / "m.jsonl"
    rows = [{"step": 1}, {"step": 2, "loss": 1.5}, {"step": 3}, {"sha256": "ab"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "lo')
    assert read_metrics(path) == rows
    metrics = Metrics(path)
    metrics.keep_until(2)
    metrics.write({"step": 3, "again": True})
    metrics.close()
    assert read_metrics(path) == [*rows[:2], {"step": 3, "again": True}]


def test_ranks_without_a_file_write_nothing(tmp_path):
    metrics = Metrics(None)
    metrics.write({"step": 1})
    metrics.keep_until(0)
    metrics.close()
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_old_text_and_no_part(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    rundir.write_json(path, {"a": 1})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        rundir.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]
