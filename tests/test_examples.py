"""The examples run as their first lines say."""

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from distgrad.distributed.env import find_mpirun

ROOT = Path(__file__).parents[1]


def start(name, *arguments, ranks=1):
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)]
    if ranks > 1:
        command = [find_mpirun(), "-n", str(ranks), *command]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip


def run(name, *arguments, ranks=1):
    done = start(name, *arguments, ranks=ranks)
    assert done.returncode == 0, done.stderr
    return done.stdout


def numbers(word, text):
    """Return the numbers after a word, wherever it stands."""
    return [float(x) for x in re.findall(rf"{word} ([-+.\de]+)", text)]


def test_regression_learns_the_same_on_one_rank_and_on_three():
    alone = run("regression.py")
    assert float(alone.split()[-1]) < 0.1
    assert run("regression.py", ranks=3) == alone


def test_images_learns_the_digits():
    pytest.importorskip("sklearn")
    last = run("images.py").splitlines()[-1]
    assert float(last.split()[-1].rstrip("%")) > 97


def test_thermometer_finds_one_line_in_three_ways():
    losses = numbers("loss", run("thermometer.py"))
    assert losses == pytest.approx([2.9276] * 3, abs=1e-3)


def test_custom_function_fits_the_sine_and_finds_whole_numbers():
    text = run("custom_function.py")
    assert text.startswith("gradcheck True")
    assert numbers("loss", text)[-2] < 10
    assert text.endswith("whole numbers [1.0, 2.0, 3.0] loss 0.0\n")


def test_second_gradient_solves_the_equation():
    text = run("second_gradient.py")
    assert float(re.search(r"sin\(x\): (\S+)", text)[1]) < 1e-3
    assert "minimum [1.0, 1.0]" in text


def test_vae_learns_the_digits():
    pytest.importorskip("sklearn")
    losses = numbers("loss per image", run("vae.py", 5))
    assert losses[-1] < 30 < losses[0]


@pytest.fixture
def poem(tmp_path):
    """A text that can be learnt."""
    path = tmp_path / "poem.txt"
    path.write_text("the cat sat on the mat and the dog saw the cat .\n" * 60, "utf-8")
    return path


def test_lstm_learns_a_text(poem):
    text = run("lstm.py", poem, 6)
    assert "10 different" in text
    assert numbers("perplexity", text)[-1] < 1.6


def test_gpt_learns_a_text(poem):
    losses = numbers("loss", run("gpt.py", poem, 60))
    assert losses[0] > 2.5 and losses[-1] < 1.5


def _write_cifar(folder, count):
    """Write files like those of CIFAR-10, in which brightness tells the class."""
    draw = np.random.default_rng(0)
    for name in ("data_batch_1", "data_batch_2", "test_batch"):
        labels = draw.integers(0, 10, count)
        pixels = draw.integers(0, 60, (count, 3, 32, 32)) + (labels * 19)[:, None, None, None]
        rows = {b"data": pixels.astype("uint8").reshape(count, -1), b"labels": labels.tolist()}
        (folder / name).write_bytes(pickle.dumps(rows, protocol=2))


def test_cifar_trains_on_a_folder(tmp_path):
    _write_cifar(tmp_path, 64)
    text = run("cifar.py", tmp_path, 2, 1)
    assert len(numbers("accuracy", text)) == 2
    assert numbers("loss", text)[-1] < 2.3


def test_cifar_refuses_a_file_that_wants_to_run_a_program(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "done"),)

    _write_cifar(tmp_path, 4)
    (tmp_path / "test_batch").write_bytes(pickle.dumps(Hostile(), protocol=2))
    done = start("cifar.py", tmp_path, 1, 1)
    assert "mkdir, which is no array" in done.stderr
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize("ranks", [1, 3])
def test_accumulation_learns(ranks):
    losses = numbers("loss", run("accumulation.py", ranks=ranks))
    assert len(losses) == 5
    assert losses[-1] < 0.08
