"""Safetensors files: exact, whole or not at all, and as other programs know them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distgrad as dg
from distgrad import nn
from distgrad.errors import CheckpointError
from distgrad.serialization import (
    atomic_path,
    load_file,
    load_model,
    save_file,
    save_model,
)


def test_every_layout_and_dtype_comes_back(tmp_path: Path) -> None:
    values = {
        "plain": dg.arange(6).reshape(2, 3),
        "transposed": dg.arange(6).reshape(2, 3).t(),
        "strided": dg.arange(10)[::3],
        "scalar": dg.tensor(2.5),
        "empty": dg.zeros(0, 3),
        "half": dg.ones(3, dtype=dg.float16),
        "brain": dg.arange(3).to(dg.bfloat16),
        "bool": dg.tensor([True, False]),
    }
    save_file(values, tmp_path / "x.safetensors")
    again = load_file(tmp_path / "x.safetensors")
    assert again.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(again[name].array, value.array, strict=True)


def test_tied_weights_are_written_once_and_tied_again(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(30, 30, bias=False), nn.Linear(30, 30, bias=False))
    net[1].weight = net[0].weight
    save_file(net.state_dict(), tmp_path / "x")
    assert (tmp_path / "x").stat().st_size < 2 * 30 * 30 * 4
    state = load_file(tmp_path / "x")
    assert list(state) == ["0.weight", "1.weight"]
    assert np.shares_memory(state["0.weight"].array, state["1.weight"].array)


def test_a_model_takes_the_first_name_of_tied_weights_for_both(tmp_path: Path) -> None:
    from safetensors.numpy import save_file as write

    def tied() -> Any:
        net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
        net[1].weight = net[0].weight
        return net

    weight = np.arange(9, dtype=np.float32).reshape(3, 3)
    for name in ("0.weight", "1.weight"):
        net = tied()
        write({name: weight}, tmp_path / "x")
        assert load_model(net, tmp_path / "x") == (set(), [])
        np.testing.assert_array_equal(net[1].weight.detach().array, weight)
    save_model(net, tmp_path / "y")
    assert load_model(tied(), tmp_path / "y") == (set(), [])
    with pytest.raises(RuntimeError, match="Missing key"):
        load_model(nn.Linear(2, 2), tmp_path / "y")
    missing, unexpected = load_model(nn.Linear(2, 2), tmp_path / "y", strict=False)
    assert missing == {"weight", "bias"} and unexpected == ["0.weight", "1.weight"]


def test_views_of_one_memory_that_differ_are_both_written(tmp_path: Path) -> None:
    flat = dg.arange(6)
    save_file({"a": flat[:3], "b": flat[3:], "c": flat[:3].reshape(3, 1)}, tmp_path / "x")
    state = load_file(tmp_path / "x")
    assert state["b"].tolist() == [3, 4, 5] and state["c"].shape == (3, 1)


def test_files_go_to_pytorch_and_back(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors import torch as theirs

    x = dg.randn(3, 4)
    save_file({"a": x.t(), "b": x.to(dg.bfloat16)}, tmp_path / "x")
    read = theirs.load_file(tmp_path / "x")
    assert read["a"].tolist() == x.t().tolist() and read["b"].dtype == torch.bfloat16
    theirs.save_file(read, tmp_path / "y")
    again = load_file(tmp_path / "y")
    assert again["a"].tolist() == x.t().tolist()
    assert again["b"].dtype is dg.bfloat16 and again["b"].tolist() == x.to(dg.bfloat16).tolist()


def test_metadata_is_kept(tmp_path: Path) -> None:
    from safetensors import safe_open

    save_file({"a": dg.ones(1)}, tmp_path / "x", {"step": "7"})
    with safe_open(str(tmp_path / "x"), framework="numpy") as file:
        assert file.metadata() == {"step": "7", "format": "pt"}


def test_load_takes_safetensors_as_well(tmp_path: Path) -> None:
    save_file({"a": dg.ones(1)}, tmp_path / "x")
    assert dg.load(tmp_path / "x", map_location="cpu")["a"].item() == 1.0


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({"a": dg.ones(1)}, tmp_path / "x")

    def full(*args: Any, **options: Any) -> None:
        Path(args[1]).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save_file({"a": dg.zeros(1)}, tmp_path / "x")
    assert [f.name for f in tmp_path.iterdir()] == ["x"]
    assert load_file(tmp_path / "x")["a"].item() == 1.0


def test_what_is_no_tensor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="takes a dict of tensors by name"):
        save_file({"a": 3}, tmp_path / "x")  # type: ignore[dict-item]
    assert not list(tmp_path.iterdir())


def test_missing_torn_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        load_file(tmp_path / "none")
    save_file({"a": dg.ones(100)}, tmp_path / "x")
    whole = (tmp_path / "x").read_bytes()
    for torn in (whole[:-10], whole[:20], b"", b"PK\x03\x04 something else"):
        (tmp_path / "x").write_bytes(torn)
        with pytest.raises(CheckpointError, match="not a whole safetensors file"):
            load_file(tmp_path / "x")
    save_file({"a": dg.ones(1)}, tmp_path / "x", {"distgrad.aliases": json.dumps({"b": "c"})})
    with pytest.raises(CheckpointError):
        load_file(tmp_path / "x")


def test_atomic_path_keeps_the_old_file_when_its_block_fails(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "x") as path:
        Path(path).write_text("new")
        raise ZeroDivisionError
    assert [f.read_text() for f in tmp_path.iterdir()] == ["old"]


def test_atomic_path_keeps_links_and_devices(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with atomic_path(tmp_path / "link") as path:
        Path(path).write_text("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"
    with atomic_path("/dev/null") as path:
        assert path == "/dev/null"
