"""Files that mean harm, or are damaged: refused by name, nothing run, nothing changed."""

from __future__ import annotations

import io
import os
import pickle
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distgrad as dg
from distgrad.errors import CheckpointError
from distgrad.serialization import RefusedGlobal, safe_globals
from distgrad.serialization.rebuild import tensor_v2


def archive(content: bytes, **records: bytes) -> io.BytesIO:
    """Return a file of PyTorch's format around a pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as out:
        out.writestr("archive/data.pkl", content)
        for name, data in ({"version": b"3\n"} | records).items():
            out.writestr(f"archive/{name}", data)
    file.seek(0)
    return file


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.what = function, args

    def __reduce__(self) -> Any:
        return self.what


def touch(path: str) -> None:
    Path(path).touch()


class Plain:
    def __init__(self) -> None:
        raise AssertionError("a constructor was called")


@pytest.mark.parametrize("weights_only", [True, False])
@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(
    ("call", "name"),
    [
        (Calls(os.system, "touch here"), "posix.system|nt.system"),
        (Calls(eval, "open('here', 'w')"), r"(__builtin__|builtins).eval"),
        (Calls(getattr, os, "system"), "cannot pickle"),
        (Calls(os.mkdir, "here"), "posix.mkdir|nt.mkdir"),
        (Calls(__import__, "antigravity"), "__import__"),
        (Calls(touch, "here"), "touch"),
        (Calls(Path.touch, Path("here")), "touch|getattr"),
        (Calls(np.save, "here", 1), "numpy.save"),
        (Calls(dg.save, 1, "here"), "save"),
        (Calls(Plain), "Plain"),
    ],
)
def test_no_function_of_a_files_choosing_is_called(
    call: Calls, name: str, protocol: int, weights_only: bool, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    try:
        content = pickle.dumps({"a": [call]}, protocol=protocol)
    except TypeError:  # a module is no argument
        content = b"\x80\x02c__builtin__\ngetattr\n(cposix\nsystem\nX\x01\x00\x00\x00xtR."
        name = "getattr"
    with pytest.raises(RefusedGlobal, match=name):
        dg.load(archive(content), weights_only=weights_only)
    assert not list(tmp_path.iterdir())


PICKLES = {
    "obj": b"(cos\nsystem\nX\x01\x00\x00\x00xo.",
    "inst": b"(X\x01\x00\x00\x00xios\nsystem\n.",
    "extension": b"\x82\x01.",
    "persistent text": b"Pstorage\n.",
    "old int": b"I5\n.",
    "float text": b"F1.0\n.",
    "out of band": b"\x97.",
    "empty": b"",
    "no stop": b"\x80\x02]",
    "stack underflow": b"\x80\x02\x85.",
    "no value": b"\x80\x02.",
    "unknown memo": b"\x80\x02h\x07.",
    "new version": b"\x80\x09N.",
    "not a list": b"\x80\x02}NaN.",
    "no mark": b"\x80\x02]Ne.",
    "list as key": b"\x80\x02}]Ns.",
    "odd items": b"\x80\x02}(Nu.",
    "long text": b"\x80\x02X\xff\xff\xff\x7fabc.",
    "long bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**63) + b".",
    "long number": b"\x80\x02\x8b" + struct.pack("<i", 2**30) + b".",
    "negative length": b"\x80\x02\x8b" + struct.pack("<i", -1) + b".",
    "no utf-8": b"\x80\x02X\x01\x00\x00\x00\xff.",
    "name without end": b"\x80\x02ctorch",
    "name of no text": b"\x80\x04NN\x93.",
    "arguments of no tuple": b"\x80\x02ctorch\nSize\nNR.",
    "nested keys": b"\x80\x02}N\x85\x85Ns.",
}


@pytest.mark.parametrize("name", PICKLES)
@pytest.mark.parametrize("weights_only", [True, False])
def test_damaged_pickles_are_named(name: str, weights_only: bool) -> None:
    with pytest.raises(CheckpointError, match=r"load\(BytesIO\)"):
        dg.load(archive(PICKLES[name]), weights_only=weights_only)


LONG_RANGE = b"c__builtin__\nxrange\nJ\xff\xff\xff\x7f\x85R"
REFUSED = {
    "a function gets attributes": b"ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aNsb.",
    "a class gets attributes": b"ctorch\nTensor\n}X\x01\x00\x00\x00aNsb.",
    "a dtype gets attributes": b"ctorch\nfloat32\n}X\x01\x00\x00\x00aNsb.",
    "a dtype is called": b"ctorch\nfloat32\n)R.",
    "a class of values is called": b"c__builtin__\nlist\n)R.",
    "a tensor is called": b"ctorch\nTensor\n)R.",
    "an instance of no class": b"ctorch\nSize\n)\x81.",
    "an instance of a text": b"X\x01\x00\x00\x00a)\x81.",
    "a text is called": b"X\x01\x00\x00\x00a)R.",
    "a list is changed": b"]}b.",
    "a default of our choosing": b"ccollections\ndefaultdict\ncnumpy\nndarray\n\x85R.",
    "the set of a long range": b"c__builtin__\nset\n" + LONG_RANGE + b"\x85R.",
    "the size of a long range": b"ctorch\nSize\n" + LONG_RANGE + b"\x85R.",
    "a function as a class of tensors": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch\nSize\ncnumpy\nndarray\n))tR."
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("weights_only", [True, False])
def test_what_a_file_names_is_neither_changed_nor_called(name: str, weights_only: bool) -> None:
    before = tensor_v2.__dict__.copy(), dict(dg.Tensor.__dict__)
    with pytest.raises(RefusedGlobal):
        dg.load(archive(b"\x80\x02" + REFUSED[name]), weights_only=weights_only)
    assert (tensor_v2.__dict__.copy(), dict(dg.Tensor.__dict__)) == before


def test_only_what_a_file_has_made_is_changed() -> None:
    kept = object.__new__(Plain)
    with safe_globals([Plain, (kept, "a.kept")]):
        with pytest.raises(RefusedGlobal, match="wants to change"):
            dg.load(archive(b"\x80\x02" + _global(Plain) + b"0ca\nkept\n}X\x01\x00\x00\x00aNsb."))
        made = dg.load(archive(b"\x80\x02" + _global(Plain) + b")\x81}X\x01\x00\x00\x00aNsb."))
    assert type(made) is Plain and made.__dict__ == {"a": None} and not kept.__dict__


def _global(kind: type) -> bytes:
    return f"c{kind.__module__}\n{kind.__qualname__}\n".encode()


@pytest.mark.parametrize(
    "target", ["os\nsystem", "sys\nmodules", "builtins\nopen", "subprocess\nPopen",
               "distgrad.serialization.files\nos.system", "distgrad.serialization.files\nopen",
               "pathlib\nPath.unlink", "numpy\nload", "no.such.module\nThing", "__main__\nno"],
)  # fmt: skip
def test_classes_and_functions_of_others_are_refused_by_name(target: str) -> None:
    content = b"\x80\x02c" + target.encode() + b"\n."
    with pytest.raises(RefusedGlobal, match=target.replace("\n", r"\.")):
        dg.load(archive(content), weights_only=False)


def key(kind: bytes = b"FloatStorage", count: bytes = b"K\x04", place: bytes = b"cpu") -> bytes:
    """Return the pickle of a storage's key."""
    text = b"X\x07\x00\x00\x00storage"
    where = b"X" + struct.pack("<I", len(place)) + place
    return b"(" + text + b"ctorch\n" + kind + b"\nX\x01\x00\x00\x000" + where + count + b"tQ"


def tensor(storage: bytes, offset: bytes, size: bytes, stride: bytes) -> bytes:
    head = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n("
    return head + storage + offset + size + stride + b"\x89}tR."


ZERO, TWO, FOUR = b"K\x00", b"K\x02\x85", b"K\x04\x85"
ONE = b"K\x01\x85"
HUGE = b"\x8a\x09" + b"\xff" * 8 + b"\x00\x85"


def test_the_tensor_that_the_next_tests_spoil_is_good() -> None:
    data = np.arange(4, dtype=np.float32).tobytes()
    content = tensor(key(), ZERO, FOUR, ONE)
    assert dg.load(archive(content, **{"data/0": data})).tolist() == [0, 1, 2, 3]


TENSORS = {
    "too long": tensor(key(), ZERO, b"K\x05\x85", ONE),
    "too far": tensor(key(), b"K\x01", FOUR, ONE),
    "too wide": tensor(key(), ZERO, FOUR, TWO),
    "negative size": tensor(key(), ZERO, b"J\xff\xff\xff\xff\x85", ONE),
    "negative stride": tensor(key(), b"K\x03", FOUR, b"J\xff\xff\xff\xff\x85"),
    "negative offset": tensor(key(), b"J\xff\xff\xff\xff", TWO, ONE),
    "huge": tensor(key(), ZERO, HUGE, ONE),
    "huge and empty stride": tensor(key(), ZERO, HUGE, b"K\x00\x85"),
    "sizes of texts": tensor(key(), ZERO, b"X\x01\x00\x00\x00a\x85", ONE),
    "no sizes": tensor(key(), ZERO, b"N", ONE),
    "two strides": tensor(key(), ZERO, FOUR, b"K\x01K\x01\x86"),
    "storage too long": tensor(key(count=b"K\x05"), ZERO, FOUR, ONE),
    "storage huge": tensor(key(count=b"J\xff\xff\xff\x7f"), ZERO, FOUR, ONE),
    "storage negative": tensor(key(count=b"J\xff\xff\xff\xff"), ZERO, FOUR, ONE),
    "storage of texts": tensor(key(count=b"N"), ZERO, FOUR, ONE),
    "no storage": tensor(b"N", ZERO, FOUR, ONE),
    "key of nothing": tensor(b"NQ", ZERO, FOUR, ONE),
}  # fmt: skip


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_stay_inside_their_storage(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"load\(BytesIO\)"):
        dg.load(archive(TENSORS[name], **{"data/0": bytes(16)}))


def spoiled(change: Any) -> io.BytesIO:
    """Return a good file after ``change`` of its zip."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as out, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out.writestr("archive/data.pkl", tensor(key(), ZERO, FOUR, ONE))
        out.writestr("archive/data/0", bytes(16))
        change(out)
    file.seek(0)
    return file


ARCHIVES = {
    "twice": lambda z: z.writestr("archive/data/0", bytes(16)),
    "outside": lambda z: z.writestr("archive/../../x", b""),
    "absolute": lambda z: z.writestr("/etc/x", b""),
    "windows": lambda z: z.writestr("archive\\..\\x", b""),
    "compressed": lambda z: z.writestr("archive/data/1", bytes(10**6), zipfile.ZIP_DEFLATED),
    "two pickles": lambda z: z.writestr("other/data.pkl", b"N."),
    "program": lambda z: z.writestr("archive/constants.pkl", b"N."),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_that_pytorch_never_writes_are_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"load\(BytesIO\)"):
        dg.load(spoiled(ARCHIVES[name]))


def test_records_that_lie_about_their_size_are_refused() -> None:
    whole = bytearray(spoiled(lambda z: None).getvalue())
    place = whole.rindex(b"PK\x01\x02")  # the entry of data/0 in the table
    for value in (15, 10**6, 2**31):
        for fields in ((24,), (20, 24)):  # the size; both sizes
            lying = bytearray(whole)
            for field in fields:
                lying[place + field : place + field + 4] = struct.pack("<I", value)
            with pytest.raises(CheckpointError):
                dg.load(io.BytesIO(bytes(lying)))


def test_a_changed_byte_of_a_storage_is_noticed(tmp_path: Path) -> None:
    dg.save(dg.ones(100), tmp_path / "x")
    whole = bytearray((tmp_path / "x").read_bytes())
    whole[whole.index(np.ones(3, np.float32).tobytes()) + 40] ^= 1
    (tmp_path / "x").write_bytes(bytes(whole))
    with pytest.raises(CheckpointError, match="cut off or damaged"):
        dg.load(tmp_path / "x")


@pytest.mark.parametrize("legacy", [False, True])
def test_torn_and_scrambled_files_raise_one_class(legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "x"
    value = {"a": dg.arange(20), "b": [dg.ones(3), np.arange(3), "text", (1, 2.5)]}
    if legacy:
        torch = pytest.importorskip("torch")
        theirs = {"a": torch.arange(20), "b": [torch.ones(3), np.arange(3), "text", (1, 2.5)]}
        torch.save(theirs, path, _use_new_zipfile_serialization=False)
    else:
        dg.save(value, path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 37):
        with pytest.raises(CheckpointError):
            dg.load(io.BytesIO(whole[:length]))
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        changed = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            changed[place] = rng.integers(256)
        try:
            dg.load(io.BytesIO(bytes(changed)))
        except CheckpointError:
            refused += 1
        except dg.errors.DeviceError:  # the name of a device was hit
            refused += 1
    assert refused > 30


def test_files_of_other_kinds_and_missing_ones(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        dg.load(tmp_path / "none")
    with pytest.raises(RuntimeError, match="cannot be read"):
        dg.load(tmp_path)
    for content in (b"", b"hello", pickle.dumps([1]), b"PK\x05\x06" + bytes(18)):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(RuntimeError, match=r"the file is empty|neither a file|data\.pkl"):
            dg.load(tmp_path / "x")
    with pytest.raises(TypeError, match="takes a path"):
        dg.load(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("end", [b"}h\x00Ns.", b"c__builtin__\nset\n]h\x00a\x85R."])
def test_keys_that_take_forever_to_hash_are_refused(end: bytes) -> None:
    doubled = b"\x80\x02)" + b"q\x00h\x00\x86" * 60 + b"q\x00"
    with pytest.raises(CheckpointError, match="a tuple is no key"):
        dg.load(archive(doubled + end))
