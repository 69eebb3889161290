"""The built-in jobs as a user starts them: resume, preemption, expectations, bad input."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distgrad.distributed.env import find_mpirun

ROOT = Path(__file__).parents[1]
SMALL = ["--steps", "12", "--save-every", "4", "--eval-every", "6", "--set", "sample=40",
         "--set", "width=32", "--set", "layers=1", "--log-every", "1"]  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 400)
    return path


def launch(*options, ranks=1, wait=True, cwd=None):
    command = [sys.executable, "-m", "distgrad.launch", *map(str, options)]
    if ranks > 1:
        command = [find_mpirun(), "-n", str(ranks), *command]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd,
        stdin=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    if not wait:
        return process
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def curve(run):
    return {row["step"]: row["loss"] for row in metrics(run) if "loss" in row}


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory):
    """An uninterrupted run on one rank."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    code, out, err = launch(*SMALL, "--data", text, "--run-dir", run)
    assert code == 0, err
    return run, out


def test_a_run_leaves_everything_behind(whole):
    run, out = whole
    rows = metrics(run)
    assert [r["step"] for r in rows] == [*range(1, 13), 12]
    assert all({"loss", "lr"} <= set(r) for r in rows[:12])
    assert [r["step"] for r in rows if "val_loss" in r] == [6, 12]
    assert re.fullmatch("[0-9a-f]{64}", rows[-1]["sha256"])
    names = {p.name for p in run.iterdir()}
    assert {"config.json", "env.json", "metrics.jsonl", "loss.svg", "checkpoints", "logs"} <= names
    steps = {p.name for p in (run / "checkpoints").iterdir()}
    assert steps == {"step_00000004", "step_00000008", "step_00000012", "latest", "best"}
    assert "bigram" in out
    assert "sample" in out


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("determinism", ["world", "run"])
def test_the_loss_curve_does_not_depend_on_the_number_of_ranks(
    whole, text, ranks, determinism, tmp_path
):
    run = tmp_path / "run"
    options = [*SMALL, "--data", text, "--run-dir", run, "--determinism", determinism]
    code, _, err = launch(*options, ranks=ranks)
    assert code == 0, err
    want, got = curve(whole[0]), curve(run)
    assert set(want) == set(got)
    if determinism == "world":  # the default: not one bit differs
        assert got == want
        assert metrics(run)[-1]["sha256"] == metrics(whole[0])[-1]["sha256"]
    for step, loss in want.items():
        assert got[step] == pytest.approx(loss, rel=1e-5)


def test_a_killed_run_goes_on_with_the_same_bits(whole, text, tmp_path):
    run = tmp_path / "run"
    process = launch(*SMALL, "--data", text, "--run-dir", run, wait=False)
    deadline = time.monotonic() + 60
    while not (run / "checkpoints" / "step_00000004").is_dir() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.communicate()
    code, out, err = launch(*SMALL, "--data", text, "--run-dir", run, "--resume", "auto")
    assert code == 0, err
    assert "goes on after step" in out or "step_00000012" in out
    assert metrics(run)[-1]["sha256"] == metrics(whole[0])[-1]["sha256"]
    assert curve(run) == curve(whole[0])


@pytest.mark.parametrize(
    ("before", "after"),
    [((1, 2), (2, 3)), ((2, 3), (1, 1)), ((0, 1), (2, 2)), ((3, 3), (0, 1)), ((2, 2), (3, 2))],
)
def test_a_run_goes_on_on_other_ranks_with_state_shared_out_otherwise(
    whole, text, tmp_path, before, after
):
    options = [*SMALL, "--data", text]
    resume = "never"
    for name, (zero, ranks) in {"first": before, "second": after}.items():
        code, out, err = launch(
            *options, "--run-dir", tmp_path / name, "--zero", zero, "--resume", resume, ranks=ranks
        )
        assert code == 0, err
        assert metrics(tmp_path / name)[-1]["sha256"] == metrics(whole[0])[-1]["sha256"]
        resume = tmp_path / "first" / "checkpoints" / "step_00000008"
    assert "goes on after step 8" in out


def test_a_signal_saves_the_step_and_exits_75(whole, text, tmp_path):
    run = tmp_path / "run"
    many = [*SMALL[2:], "--steps", "4000", "--eval-every", "-1"]
    process = launch(*many, "--data", text, "--run-dir", run, wait=False)
    while not (run / "checkpoints" / "step_00000004").is_dir() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    saved = int(re.search(r"saved step (\d+) of 4000", out).group(1))
    assert (run / "checkpoints" / f"step_{saved:08d}" / "index.json").is_file()
    assert metrics(run)[-1]["step"] == saved


def test_expectations_decide_the_exit_code(text, tmp_path):
    options = [*SMALL, "--data", text, "--steps", "2"]
    code, out, _ = launch(*options, "--run-dir", tmp_path / "a", "--expect", "val_loss<9")
    assert (code, "met" in out) == (0, True)
    code, out, _ = launch(*options, "--run-dir", tmp_path / "b", "--expect", "val_loss<0.1")
    assert (code, "missed" in out) == (3, True)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_dry_run_leaves_nothing(text, tmp_path, ranks):
    code, out, err = launch("--dry-run", "--data", text, ranks=ranks, cwd=tmp_path)
    assert code == 0, err
    assert "dry run passed" in out
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--global-batch", "30"], "--global-batch 28 or 32"),
        (["--device", "cuda"], "cuda"),
        (["--set", "heads=5"], "not divisible by 5 heads"),
        (["--set", "lyers=5"], "did you mean layers"),
    ],
)
def test_bad_settings_say_what_to_do_and_train_nothing(options, message, text, tmp_path):
    code, out, err = launch(*options, "--data", text, "--run-dir", tmp_path / "run")
    assert code in (1, 2)
    assert message in err
    assert "Traceback" not in err
    assert "step 1/" not in out


def test_an_empty_text_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("")
    code, _, err = launch("--data", tmp_path / "empty.txt", "--run-dir", tmp_path / "run")
    assert code == 2
    assert "has 0 characters" in err


def test_a_torn_checkpoint_is_named_and_left_alone(whole, text, tmp_path):
    run = tmp_path / "run"
    code, _, err = launch(*SMALL, "--data", text, "--run-dir", run)
    assert code == 0, err
    torn = run / "checkpoints" / "step_00000012" / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-7])
    code, _, err = launch(*SMALL, "--data", text, "--run-dir", run, "--resume", "latest")
    assert code == 1
    assert "model.safetensors is damaged" in err
    assert "step_00000008" in err
    code, out, err = launch(*SMALL, "--data", text, "--run-dir", run, "--resume", "auto", ranks=2)
    assert code == 0, err
    assert "step_00000012 is skipped: " in out
    assert "goes on after step 8" in out
    assert metrics(run)[-1]["sha256"] == metrics(whole[0])[-1]["sha256"]


def test_digits_reaches_98_percent(tmp_path):
    pytest.importorskip("sklearn")
    options = ["--job", "digits", "--run-dir", tmp_path / "run", "--expect", "val_accuracy>0.98"]
    code, out, err = launch(*options, "--steps", "200")
    assert code == 0, out + err
