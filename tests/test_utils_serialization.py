"""Saving and loading: exact, whole or not at all, and nothing executed."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distgrad as dg
from distgrad import nn
from distgrad.errors import CheckpointError
from distgrad.utils import serialization
from distgrad.utils.serialization import load_file, save_file


def test_every_layout_and_dtype_comes_back(tmp_path: Path) -> None:
    values = {
        "plain": dg.arange(6).reshape(2, 3),
        "transposed": dg.arange(6).reshape(2, 3).t(),
        "strided": dg.arange(10)[::3],
        "scalar": dg.tensor(2.5),
        "empty": dg.zeros(0, 3),
        "half": dg.ones(3, dtype=dg.float16),
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


def test_views_of_one_memory_that_differ_are_both_written(tmp_path: Path) -> None:
    flat = dg.arange(6)
    save_file({"a": flat[:3], "b": flat[3:], "c": flat[:3].reshape(3, 1)}, tmp_path / "x")
    state = load_file(tmp_path / "x")
    assert state["b"].tolist() == [3, 4, 5] and state["c"].shape == (3, 1)


def test_nested_containers_come_back_as_they_were(tmp_path: Path) -> None:
    net = nn.Linear(2, 2)
    saved = {
        "model": net.state_dict(),
        "numbers": [1, 2.5, -0.0, math.inf, 1e-320, True, None, "text", 2**70],
        "tuple": (1, (dg.ones(2), [])),
        7: {None: "none", True: dg.zeros(1, requires_grad=True)},
    }
    dg.save(saved, tmp_path / "x")
    again = dg.load(tmp_path / "x")
    assert list(again) == ["model", "numbers", "tuple", 7]
    assert type(again["model"]) is OrderedDict and type(again["tuple"]) is tuple
    assert again["numbers"] == saved["numbers"]
    assert math.copysign(1, again["numbers"][2]) == -1 and again["numbers"][5] is True
    assert again["tuple"][1][0].tolist() == [1.0, 1.0]
    assert again[7][True].requires_grad and again[7][None] == "none"
    nn.Linear(2, 2).load_state_dict(again["model"])
    assert math.isnan(_through(math.nan, tmp_path))
    assert _through(dg.tensor(3.0), tmp_path).item() == 3.0
    assert _through({"a.b": dg.ones(1), "a": {"b": dg.zeros(1)}}, tmp_path)["a.b"].item() == 1.0


def _through(value: Any, tmp_path: Path) -> Any:
    dg.save(value, tmp_path / "y")
    return dg.load(tmp_path / "y")


def test_an_optimizer_goes_on_from_its_file(tmp_path: Path) -> None:
    p = dg.ones(3, requires_grad=True)
    optimizer = dg.optim.AdamW([p])
    (p * p).sum().backward()
    optimizer.step()
    dg.save(optimizer.state_dict(), tmp_path / "x")
    other = dg.optim.AdamW([dg.ones(3, requires_grad=True)], lr=9.0)
    other.load_state_dict(dg.load(tmp_path / "x"))
    assert other.param_groups[0]["lr"] == 1e-3
    state = next(iter(other.state.values()))
    np.testing.assert_array_equal(state["exp_avg"].array, optimizer.state[p]["exp_avg"].array)


def test_plain_state_dicts_can_be_read_by_other_programs(tmp_path: Path) -> None:
    from safetensors import safe_open

    dg.save(nn.Linear(2, 3).state_dict(), tmp_path / "x")
    with safe_open(str(tmp_path / "x"), framework="numpy") as file:
        assert sorted(file.keys()) == ["bias", "weight"]
        assert file.metadata()["format"] == "pt"


def test_metadata_is_kept(tmp_path: Path) -> None:
    from safetensors import safe_open

    save_file({"a": dg.ones(1)}, tmp_path / "x", {"step": "7"})
    with safe_open(str(tmp_path / "x"), framework="numpy") as file:
        assert file.metadata()["step"] == "7"


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


def test_a_disk_that_is_really_full_is_an_error_that_leaves_nothing() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with pytest.raises(CheckpointError, match="could not be written"):
        save_file({"a": dg.ones(1)}, "/proc/no/such/place")


def test_things_that_are_no_data_are_refused_by_their_path(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"save\(\): a\.0 is a object"):
        dg.save({"a": [object()]}, tmp_path / "x")
    with pytest.raises(TypeError, match="the key"):
        dg.save({(1, 2): 3}, tmp_path / "x")
    with pytest.raises(TypeError, match="takes a dict of tensors by name"):
        save_file({"a": 3}, tmp_path / "x")  # type: ignore[dict-item]
    deep: Any = []
    for _ in range(200):
        deep = [deep]
    with pytest.raises(TypeError, match="nested deeper"):
        dg.save(deep, tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_missing_torn_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such file"):
        dg.load(tmp_path / "none")
    dg.save({"a": dg.ones(100)}, tmp_path / "x")
    whole = (tmp_path / "x").read_bytes()
    for torn in (whole[:-10], whole[:20], b"", b"PK\x03\x04 something else"):
        (tmp_path / "x").write_bytes(torn)
        with pytest.raises(CheckpointError, match="not a whole safetensors file"):
            dg.load(tmp_path / "x")


@pytest.mark.parametrize(
    "head",
    ["{", '{"tensor": "b"}', '{"evil": []}', '{"float": "x"}', "{}", '{"dict": [1]}', "[" * 10**5],
)
def test_a_damaged_head_is_refused(tmp_path: Path, head: str) -> None:
    save_file({"a": dg.ones(1)}, tmp_path / "x", {"distgrad.tree": head})
    with pytest.raises(CheckpointError, match="its head is damaged"):
        dg.load(tmp_path / "x")
    save_file({"a": dg.ones(1)}, tmp_path / "x", {"distgrad.aliases": json.dumps({"b": "c"})})
    with pytest.raises(CheckpointError):
        dg.load(tmp_path / "x")


def test_atomic_path_keeps_the_old_file_when_its_block_fails(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")
    with pytest.raises(ZeroDivisionError), serialization.atomic_path(tmp_path / "x") as path:
        Path(path).write_text("new")
        raise ZeroDivisionError
    assert [f.read_text() for f in tmp_path.iterdir()] == ["old"]
