"""PyTorch's files, both ways, bit by bit."""

from __future__ import annotations

import argparse
import collections
import enum
import fractions
import io
import os
import pathlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest

import distgrad as dg
from distgrad import nn, serialization
from distgrad.errors import CheckpointError
from distgrad.serialization import safe_globals

torch = pytest.importorskip("torch")


def through(value: Any, **options: Any) -> Any:
    """Return ``value`` after a journey through a file of ours."""
    file = io.BytesIO()
    dg.save(value, file)
    file.seek(0)
    return dg.load(file, **options)


def from_torch(value: Any, legacy: bool = False, **options: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=not legacy)
    file.seek(0)
    return dg.load(file, **options)


def to_torch(value: Any) -> Any:
    file = io.BytesIO()
    dg.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def bits(tensor: Any) -> Any:
    """Return what a tensor of either library is, its bytes included."""
    flat = tensor.detach().contiguous()
    if isinstance(tensor, dg.Tensor):
        data = flat.array.tobytes()
    else:
        data = bytes(flat.reshape(-1).view(torch.uint8).numpy())
    name = str(tensor.dtype).split(".")[-1]
    stride = tensor.stride() if tensor.numel() else ()  # NumPy has none of its own there
    return name, tuple(tensor.shape), stride, tensor.storage_offset(), tensor.requires_grad, data


KINDS = ["float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8",
         "uint16", "uint32", "uint64", "bool", "complex64", "complex128"]  # fmt: skip

TENSORS: dict[str, Callable[[Any], Any]] = {
    "matrix": lambda m: m.arange(6.0).reshape(2, 3),
    "transposed": lambda m: m.arange(6.0).reshape(2, 3).t(),
    "slice": lambda m: m.arange(10)[3:8:2],
    "row": lambda m: m.arange(6.0).reshape(2, 3)[1],
    "expanded": lambda m: m.arange(3.0).expand(2, 3),
    "scalar": lambda m: m.tensor(2.5),
    "empty": lambda m: m.zeros(0, 3),
    "grad": lambda m: m.ones(2, requires_grad=True),
    "many dimensions": lambda m: m.arange(24).reshape(2, 3, 4).permute(2, 0, 1)[1:],
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_dtype_goes_both_ways(kind: str) -> None:
    numbers = [0, 1, 3]
    theirs = torch.tensor(numbers).to(getattr(torch, kind))
    ours = dg.tensor(numbers).to(getattr(dg, kind))
    assert bits(from_torch(theirs)) == bits(theirs)
    assert bits(to_torch(ours)) == bits(theirs)
    assert bits(through(ours)) == bits(ours)
    if kind not in ("uint16", "uint32", "uint64"):
        assert bits(from_torch(theirs, legacy=True)) == bits(theirs)


@pytest.mark.parametrize("name", TENSORS)
def test_every_view_goes_both_ways(name: str) -> None:
    theirs, ours = TENSORS[name](torch), TENSORS[name](dg)
    expected = bits(theirs)
    assert bits(from_torch(theirs)) == expected
    assert bits(from_torch(theirs, legacy=True)) == expected
    assert bits(to_torch(ours)) == expected
    assert bits(through(ours)) == expected


def both(m: Any) -> Any:
    return [
        {"a": 1, 2: (3, 4.5), None: [True, None]},
        OrderedDict(x=m.ones(2)),
        collections.Counter("aab"),
        {1, 2},
        2**80,
        -7,
        1e-320,
        float("inf"),
        1 + 2j,
        "text ü",
        b"bytes\x00\xff",
        bytearray(b"more"),
        m.Size([2, 3]),
        m.device("cpu"),
        m.device("cuda:1"),
        m.float16,
        m.bfloat16,
        m.strided,
    ]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dg.Tensor | torch.Tensor):
        return bool(bits(a) == bits(b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    plain = str(a).replace("distgrad", "torch") == str(b).replace("distgrad", "torch")
    return plain and type(a).__name__ == type(b).__name__


@pytest.mark.parametrize("place", range(len(both(dg))))
def test_plain_values_go_both_ways(place: int) -> None:
    ours, theirs = both(dg)[place], both(torch)[place]
    assert same(through(ours), ours)
    assert same(from_torch(theirs), ours)
    if type(ours) is not complex:
        assert same(to_torch(ours), theirs)
    assert same(from_torch(theirs, legacy=True), ours)


def test_tensors_on_one_memory_share_it_again() -> None:
    x = dg.arange(6)
    a, b, c = through([x[:4], x[2:], x.view(2, 3)])
    a[2] = 100
    assert b.tolist() == [100, 3, 4, 5] and c.tolist() == [[0, 1, 100], [3, 4, 5]]
    a, b, c = to_torch([x[:4], x[2:], x.view(2, 3)])
    a[2] = 100
    assert b.tolist() == [100, 3, 4, 5] and c.tolist() == [[0, 1, 100], [3, 4, 5]]
    y = torch.arange(6)
    a, b = from_torch([y[:4], y[2:]])
    a[2] = 100
    assert b.tolist() == [100, 3, 4, 5]
    same_object = through([x, x])
    assert same_object[0] is same_object[1]


def test_parts_of_one_memory_that_do_not_touch_are_written_apart() -> None:
    flat = np.zeros(10**6, np.float32)  # such as a data set, or the bucket of a gradient
    file = io.BytesIO()
    dg.save([dg.from_numpy(flat[:10]), dg.from_numpy(flat[-10:])], file)
    assert len(file.getvalue()) < 4000


def test_a_model_and_its_optimizer_go_both_ways() -> None:
    results = []
    for m in (torch, dg):
        net = m.nn.Sequential(m.nn.Linear(3, 4), m.nn.BatchNorm1d(4), m.nn.Linear(4, 1))
        for p in net.parameters():
            p.data.fill_(0.1)
        optimizer = m.optim.Adam(net.parameters())
        net(m.ones(2, 3)).sum().backward()
        optimizer.step()
        results.append((net, optimizer))
    (theirs, their_optimizer), (ours, our_optimizer) = results
    state = from_torch({"model": theirs.state_dict(), "optimizer": their_optimizer.state_dict()})
    assert type(state["model"]) is OrderedDict and state["model"]._metadata  # type: ignore[attr-defined]
    ours.load_state_dict(state["model"])
    our_optimizer.load_state_dict(state["optimizer"])
    back = to_torch({"model": ours.state_dict(), "optimizer": our_optimizer.state_dict()})
    theirs.load_state_dict(back["model"])
    their_optimizer.load_state_dict(back["optimizer"])
    for name, value in theirs.state_dict().items():
        assert bits(ours.state_dict()[name].clone()) == bits(value.clone()), name


def test_parameters_buffers_and_attributes_are_kept() -> None:
    parameter = nn.Parameter(dg.ones(2), requires_grad=False)
    parameter.note = "mine"  # type: ignore[attr-defined]
    buffer = nn.Buffer(dg.ones(2), persistent=False)
    tensor = dg.ones(2)
    tensor.note = [1]  # type: ignore[attr-defined]
    p, b, t = through([parameter, buffer, tensor])
    assert type(p) is nn.Parameter and not p.requires_grad and p.note == "mine"
    assert type(b) is nn.Buffer and b.persistent is False
    assert type(t) is dg.Tensor and t.note == [1]
    p, b, t = to_torch([parameter, buffer, tensor])
    assert isinstance(p, torch.nn.Parameter) and p.note == "mine" and t.note == [1]
    assert isinstance(b, torch.nn.Buffer) and not b.persistent
    tied = nn.Linear(2, 2).weight
    first, second = through([tied, tied])
    assert first is second


def test_conjugates_are_written_out() -> None:
    x = torch.tensor([1 + 2j, 3 - 1j])
    assert from_torch(x.conj()).tolist() == x.conj().tolist()
    assert from_torch(x.conj().imag).tolist() == x.conj().imag.tolist()


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6).reshape(2, 3),
        np.arange(6.0).reshape(2, 3).T,
        np.array(["ab", "c"]),
        np.array([b"ab", b"c"]),
        np.float32(2.5),
        np.array(3, ">i4"),
        np.bool_(True),
        np.zeros((0, 2)),
    ],
    ids=str,
)
def test_numpy_arrays_come_back(array: Any) -> None:
    for again in (through(array), from_torch(array), from_torch(array, legacy=True)):
        assert type(again) is type(array) and again.dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(again, array)


# ---------------------------------------------------------------------- places
def test_files_and_paths_of_every_kind(tmp_path: pathlib.Path) -> None:
    value = {"a": dg.ones(2)}
    dg.save(value, str(tmp_path / "x.pt"))
    dg.save(value, tmp_path / "y.pt")
    with open(tmp_path / "z.pt", "wb") as file:
        dg.save(value, file)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.pt", "y.pt", "z.pt"]
    for name in ("x.pt", "y.pt", "z.pt"):
        assert torch.load(tmp_path / name)["a"].tolist() == [1, 1]
        with open(tmp_path / name, "rb") as file:
            assert dg.load(file)["a"].tolist() == [1, 1]
        assert dg.load(str(tmp_path / name), mmap=True)["a"].tolist() == [1, 1]
        assert torch.load(tmp_path / name, mmap=True)["a"].tolist() == [1, 1]
    later = io.BytesIO(b"head" + (tmp_path / "x.pt").read_bytes())
    later.seek(4)
    assert dg.load(later)["a"].tolist() == [1, 1]


def test_a_mapped_file_is_not_changed(tmp_path: pathlib.Path) -> None:
    torch.save({"a": torch.arange(5), "b": torch.zeros(0)}, tmp_path / "x")
    before = (tmp_path / "x").read_bytes()
    a = dg.load(tmp_path / "x", mmap=True)["a"]
    a += 1
    assert a.tolist() == [1, 2, 3, 4, 5]
    assert (tmp_path / "x").read_bytes() == before
    with pytest.raises(ValueError, match="must be a file path"):
        dg.load(io.BytesIO(before), mmap=True)
    torch.save({"a": torch.arange(5)}, tmp_path / "x", _use_new_zipfile_serialization=False)
    with pytest.raises(RuntimeError, match="mmap needs"):
        dg.load(tmp_path / "x", mmap=True)


def test_storages_are_aligned(tmp_path: pathlib.Path) -> None:
    dg.save([dg.ones(n, dtype=dg.float64) for n in (1, 3, 5)], tmp_path / "x")
    for tensor in dg.load(tmp_path / "x", mmap=True):
        assert tensor.data_ptr() % 64 == 0


@pytest.mark.parametrize("legacy", [True, False])
def test_map_location_in_all_forms(legacy: bool) -> None:
    value = torch.ones(2)
    cpu = dg.device("cpu")
    forms: list[Any] = [None, "cpu", cpu, {"cpu": "cpu"}, {"cuda:0": "cpu"}]
    forms += [lambda storage, place: storage, lambda storage, place: None]
    forms += [lambda storage, place: storage.cpu()]
    for form in forms:
        assert from_torch(value, legacy, map_location=form).tolist() == [1, 1]
    seen = []
    from_torch(
        value, legacy, map_location=lambda storage, place: seen.append((place, len(storage)))
    )
    assert seen == [("cpu", 8)]
    with pytest.raises(TypeError, match="map_location"):
        from_torch(value, legacy, map_location=3.5)
    with pytest.raises(TypeError, match="return the storage"):
        from_torch(value, legacy, map_location=lambda storage, place: 3)


def test_a_file_from_a_gpu_says_how_to_load_it_without_one() -> None:
    if dg.cuda.is_available():
        pytest.skip("there is a GPU")
    file = io.BytesIO()
    torch.save(torch.ones(2), file)
    data = _with_pickle(
        file, lambda p: p.replace(b"\x03\x00\x00\x00cpu", b"\x06\x00\x00\x00cuda:0")
    )
    with pytest.raises(RuntimeError, match=r"map_location=device\('cpu'\)"):
        dg.load(data)
    data.seek(0)
    assert dg.load(data, map_location="cpu").tolist() == [1, 1]
    data.seek(0)
    assert dg.load(data, map_location={"cuda:0": "cpu"}).tolist() == [1, 1]


def _with_pickle(file: io.BytesIO, change: Callable[[bytes], bytes]) -> io.BytesIO:
    """Return the archive with another pickle."""
    import zipfile

    out = io.BytesIO()
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            new.writestr(info.filename, change(content) if "data.pkl" in info.filename else content)
    out.seek(0)
    return out


def test_a_file_of_the_other_byte_order() -> None:
    import zipfile

    file, out = io.BytesIO(), io.BytesIO()
    torch.save([torch.arange(3, dtype=torch.int32), torch.tensor([1 + 2j])], file)
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            if "data/" in info.filename and not info.filename.endswith("id"):
                width = 4
                content = np.frombuffer(content, f"<i{width}").astype(f">i{width}").tobytes()
            new.writestr(info.filename, b"big" if "byteorder" in info.filename else content)
    out.seek(0)
    a, b = dg.load(out)
    assert a.tolist() == [0, 1, 2] and b.tolist() == [1 + 2j]


# ---------------------------------------------------------------------- classes
class Colour(enum.Enum):
    RED = 1


class Pair(NamedTuple):
    a: int
    b: Any


@dataclass
class Settings:
    width: int
    names: list[str]

    def __post_init__(self) -> None:
        raise AssertionError("no constructor is called")


@dataclass(frozen=True, slots=True)
class Small:
    x: int


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.norm_class = nn.LayerNorm
        self.act = nn.functional.relu
        self.colour = Colour.RED
        self.register_buffer("seen", dg.zeros(1))

    def forward(self, x: Any) -> Any:
        return self.act(self.layer(x)) + self.seen


def _settings() -> Settings:
    made = object.__new__(Settings)
    made.__dict__.update(width=3, names=["a"])
    return made


def test_whole_modules_come_back_when_classes_are_wanted() -> None:
    net = Net()
    with pytest.raises(serialization.RefusedGlobal, match="Net, which is not allowed"):
        through(net)
    again = through(net, weights_only=False)
    x = dg.ones(1, 2)
    assert type(again) is Net and again(x).tolist() == net(x).tolist()
    assert again.norm_class is nn.LayerNorm and again.colour is Colour.RED
    assert list(again.state_dict()) == list(net.state_dict())
    value = {"net": net, "pair": Pair(1, dg.ones(1)), "set": _settings(), "small": Small(4)}
    found = through(value, weights_only=False)
    assert found["pair"].b.item() == 1 and type(found["pair"]) is Pair
    assert found["set"].width == 3 and found["small"] == Small(4)


def test_whole_models_of_pytorchs_layers_become_ours() -> None:
    theirs = torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 3),
    ).eval()  # fmt: skip
    with pytest.raises(serialization.RefusedGlobal, match=r"container\.Sequential"):
        from_torch(theirs)
    ours = from_torch(theirs, weights_only=False)
    x = torch.randn(2, 2, 5, 5)
    found = ours(dg.from_numpy(x.numpy())).detach().numpy()
    np.testing.assert_allclose(found, theirs(x).detach().numpy(), rtol=1e-5, atol=1e-6)
    assert type(ours[0]) is nn.Conv2d and list(ours.state_dict()) == list(theirs.state_dict())


def test_options_paths_and_dicts_with_defaults_come_back() -> None:
    options = argparse.Namespace(lr=0.1, names=["a"])
    grouped = collections.defaultdict(list, a=[1])
    queue = collections.deque([1, ((2,),)], maxlen=3)
    value = [options, pathlib.Path("a/b"), grouped, range(3), queue, {(1, 2)}, {(1, 2): ((3,),)}]
    assert through(value) == value


def test_users_may_allow_classes_and_functions() -> None:
    value = fractions.Fraction(1, 3)
    with pytest.raises(serialization.RefusedGlobal, match=r"fractions\.Fraction"):
        through(value)
    with pytest.raises(serialization.RefusedGlobal, match=r"fractions\.Fraction"):
        through(value, weights_only=False)
    with safe_globals([fractions.Fraction, (Settings, "elsewhere.Settings")]):
        assert serialization.get_safe_globals() == [fractions.Fraction, Settings]
        assert through(value) == value
    assert serialization.get_safe_globals() == []
    serialization.add_safe_globals([fractions.Fraction])
    assert through(value) == value
    serialization.clear_safe_globals()
    file = io.BytesIO()
    dg.save([value, os.path.join], file)
    file.seek(0)
    unsafe = serialization.get_unsafe_globals_in_checkpoint(file)
    assert unsafe == ["fractions.Fraction", "posixpath.join"]


def test_what_cannot_be_pickled_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(TypeError, match="cannot be pickled"):
        dg.save({"f": lambda: 1}, tmp_path / "x")
    deep: Any = []
    for _ in range(2000):
        deep = [deep]
    with pytest.raises(TypeError, match="nested too deeply"):
        dg.save(deep, tmp_path / "x")
    with pytest.raises(ValueError, match="only Python's pickle"):
        dg.save(1, tmp_path / "x", pickle_module=np)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dg.save(dg.ones(1), tmp_path / "x")

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("distgrad.serialization.archive._put", full)
    with pytest.raises(CheckpointError, match="No space left"):
        dg.save(dg.zeros(1), tmp_path / "x")
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["x"] and dg.load(tmp_path / "x").item() == 1
    with pytest.raises(RuntimeError, match="could not be written"):
        dg.save(1, tmp_path / "no" / "folder")


def test_large_records_are_aligned_too(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zipfile.ZIP64_LIMIT", 1000)  # records above it have longer heads
    dg.save([dg.ones(n) for n in (3, 1000, 7)], tmp_path / "x")
    monkeypatch.undo()
    for tensor in dg.load(tmp_path / "x", mmap=True):
        assert tensor.data_ptr() % 64 == 0 and tensor.sum().item() == tensor.numel()
    assert torch.load(tmp_path / "x")[1].sum() == 1000
