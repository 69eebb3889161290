"""Checkpoints are complete or not there at all."""

import errno
import json

import numpy as np
import pytest

import distgrad as dg
from distgrad.errors import CheckpointError
from distgrad.launch import checkpoint


def trained():
    dg.manual_seed(0)
    model = dg.nn.Linear(3, 2)
    optimizer = dg.optim.AdamW(model.parameters(), lr=0.1)
    model(dg.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def save(folder, step, keep=3):
    model, optimizer = trained()
    return checkpoint.save(
        folder, step, model.state_dict(), optimizer.state_dict(), {"best": 1.5}, keep
    )


def test_what_is_saved_comes_back(tmp_path):
    model, optimizer = trained()
    path = save(tmp_path, 7)
    assert (tmp_path / "latest").resolve() == path
    weights, state, rest = checkpoint.load(path)
    np.testing.assert_array_equal(weights["weight"].numpy(), model.weight.detach().numpy())
    again = dg.optim.AdamW(model.parameters(), lr=0.5)
    again.load_state_dict(state)
    assert again.param_groups[0]["lr"] == 0.1
    assert again.param_groups[0]["betas"] == (0.9, 0.999)
    for p in model.parameters():
        for name, value in optimizer.state[p].items():
            np.testing.assert_array_equal(np.asarray(again.state[p][name]), np.asarray(value))
    assert rest["best"] == 1.5
    assert rest["step"] == 7


def test_only_the_newest_stay(tmp_path):
    for step in (1, 2, 3, 10):
        save(tmp_path, step, keep=2)
    assert {p.name for p in tmp_path.iterdir()} == {"step_00000003", "step_00000010", "latest"}


@pytest.mark.parametrize("kind", [OSError, CheckpointError])
def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch, kind):
    before = save(tmp_path, 1)

    def full(tensors, path, *rest):
        path.write_bytes(b"half")
        text = "No space left on device"
        raise OSError(errno.ENOSPC, text) if kind is OSError else CheckpointError(text)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*earlier checkpoints"):
        save(tmp_path, 2)
    assert {p.name for p in tmp_path.iterdir()} == {"step_00000001", "latest"}
    checkpoint.load(before)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "state.json").unlink(), "state.json cannot be read"),
        (lambda p: (p / "state.json").write_text('{"step": 1'), "state.json is torn"),
        (lambda p: (p / "optim.safetensors").unlink(), "optim.safetensors is missing"),
        (lambda p: (p / "model.safetensors").write_bytes(b"12345678"), "is damaged"),
        (lambda p: (p / "state.json").write_text(json.dumps({"format": 99})), "has format 99"),
    ],
)
def test_a_torn_checkpoint_names_what_is_wrong(tmp_path, damage, message):
    path = save(tmp_path, 3)
    damage(path)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load(path)
