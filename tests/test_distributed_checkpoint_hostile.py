"""Checkpoints of strangers: refused by name before anything is allocated, opened or changed."""

import hashlib
import json
import os
import shutil
import socket
import sys
import threading
from contextlib import closing

import numpy as np
import pytest

import distgrad as dg
from distgrad.distributed import checkpoint as dcp
from distgrad.distributed.checkpoint import loading
from distgrad.distributed.checkpoint.folder import Folder
from distgrad.distributed.checkpoint.index import signed
from distgrad.distributed.checkpoint.strict import parsed
from distgrad.distributed.threads import run_ranks
from distgrad.errors import CheckpointError

FILE = "tensors.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of two ranks' parts."""
    folder = tmp_path_factory.mktemp("saved") / "good"

    def save(group):
        part = dcp.Shard(dg.full((5,), group.rank + 1.0), (10,), 5 * group.rank)
        state = {"x": part, "m": {"a": dg.ones(3), "b": dg.zeros(2, 2)}, "step": 3}
        dcp.save(state, checkpoint_id=folder)

    run_ranks(2, save)
    return folder


@pytest.fixture
def bad(saved, tmp_path):
    """A copy to be spoilt."""
    return shutil.copytree(saved, tmp_path / "bad")


def refused(folder, match):
    """Assert that loading says ``match``, and changes nothing."""
    state = {"x": dg.full((10,), 9.0), "m": {"a": dg.full((3,), 9.0), "b": dg.full((2, 2), 9.0)},
             "step": 9}  # fmt: skip
    with pytest.raises(CheckpointError, match=match) as caught:
        dcp.load(state, checkpoint_id=folder)
    assert str(caught.value).startswith(f"load({folder})")
    assert state["step"] == 9
    assert all((t == 9).all() for t in (state["x"], *state["m"].values()))


def change(folder, act):
    index = json.loads((folder / "index.json").read_text())
    act(index)
    index.pop("sha256", None)
    (folder / "index.json").write_bytes(signed(json.dumps(index).encode()[:-1]))


def setting(*way_and_value):
    *way, last, value = way_and_value

    def act(index):
        for step in way:
            index = index[step]
        index[last] = value

    return act


def renamed(old, new):
    """Let the index call a file otherwise, everywhere."""

    def act(index):
        index["files"][new] = index["files"].pop(old)
        for _, _, pieces in index["tensors"].values():
            for piece in pieces:
                piece[0] = new if piece[0] == old else piece[0]

    return act


X0, X1 = "tensors-00000-of-00002.safetensors", "tensors-00001-of-00002.safetensors"
M = "m.safetensors"


def test_the_good_one_is_taken(saved):
    state = {"x": dg.zeros(10), "m": {"a": dg.zeros(3), "b": dg.ones(2, 2)}, "step": 0}
    dcp.load(state, checkpoint_id=saved)
    assert state["x"].tolist() == [1] * 5 + [2] * 5
    assert sorted(os.listdir(saved)) == ["index.json", M, X0, X1]


@pytest.mark.parametrize(
    ("act", "match"),
    [
        # names that lead elsewhere
        (renamed(M, "/etc/passwd"), "'/etc/passwd' is no plain name"),
        (renamed(M, "../good/m.safetensors"), "is no plain name"),
        (renamed(M, ".."), "is no plain name"),
        (renamed(M, "a\0b"), "is no plain name"),
        (renamed(M, ".hidden"), "is no plain name"),
        (renamed(M, "x" * 5000), "is no plain name"),
        (renamed(M, ""), "is no plain name"),
        (renamed(M, "other.safetensors"), "other.safetensors is missing"),
        # sums and sizes
        (setting("files", M, 1, "0" * 64), f"{M} is damaged, its sha256"),
        (setting("files", M, 0, 10**9), f"{M} is damaged, it has .* and not 1000000000"),
        (setting("files", M, 0, 10**30), "no number of elements or bytes"),
        (setting("files", M, 0, -1), "no number of elements or bytes"),
        (setting("files", M, 0, 1.5), "no number of elements or bytes"),
        (setting("files", M, 0, True), "no number of elements or bytes"),
        (setting("files", M, None), "is no list"),
        (setting("files", M, [3]), "no size and sum"),
        # shapes and types
        (setting("tensors", "m/a", 1, [10**18]), "a shape that nothing can have"),
        (setting("tensors", "m/a", 1, [2**40, 2**40]), "a shape that nothing can have"),
        (setting("tensors", "m/a", 1, [1] * 65), "a shape that nothing can have"),
        (setting("tensors", "m/a", 1, [-3]), "no number of elements"),
        (setting("tensors", "m/a", 1, [0, 2**61]), "a shape that nothing can have"),
        (setting("tensors", "m/a", 1, "3"), "is no list"),
        (setting("tensors", "m/a", 0, "O"), "no known type"),
        (setting("tensors", "m/a", 0, ["F32"]), "no known type"),
        (setting("tensors", "m/a", ["F32", [3]]), "no known type"),
        (setting("tensors", "m/a", ["F64", [10**9], [[M, 0, 10**9]]]), "would need"),
        # pieces
        (setting("tensors", "x", 2, [[X0, 0, 5], [X0, 5, 10]]), "twice in one file"),
        (setting("tensors", "x", 2, [[X0, 0, 5], [X1, 4, 10]]), "twice or never, at 4"),
        (setting("tensors", "x", 2, [[X0, 0, 4], [X1, 5, 10]]), "twice or never, at 5"),
        (setting("tensors", "x", 2, [[X0, 0, 5]]), "has 5 of 10 elements"),
        (setting("tensors", "x", 2, [[X0, 0, 5], [X1, 5, 11]]), "has 11 of 10 elements"),
        (setting("tensors", "x", 2, [[X0, 5, 0], [X1, 0, 10]]), "twice or never"),
        (setting("tensors", "x", 2, [[X0, 0, 5], [M, 5, 10]]), "would need|not in both|table"),
        (setting("tensors", "x", 2, [["no.safetensors", 0, 10]]), "the index does not know"),
        (setting("tensors", "m/c", ["F32", [3], [[M, 0, 3]]]), "would need|room|not in both"),
        (setting("tensors", "y", ["F32", [0], []]), "nowhere"),
        # the index itself
        (setting("format", 3), "has format 3"),
        (setting("format", {"a": [1]}), "has format"),
        (setting("files", []), "files is no table"),
        (setting("tensors", 3), "tensors is no table"),
        (setting("objects", None), "objects is no table"),
        (setting("serial", "1"), "serial is 1, no number"),
        (setting("world", -1), "world is -1"),
        (setting("objects", "step", {"$import": "os"}), "something called '.import'"),
        (setting("objects", "step", {"$tuple": 3}), "that is none"),
        (setting("objects", "step", {"$set": [[1]]}), "that is none"),
        (setting("objects", "step", {"$dict": [[[1], 2]]}), "that is none"),
        (setting("objects", "step", {"$array": ["O", [1], "AAAA"]}), "that is none"),
        (setting("objects", "step", {"$array": ["F32", [2**40], "AAAA"]}), "that is none"),
        (setting("objects", "step", {"$bytes": "a b"}), "that is none"),
        (setting("objects", "step", {"$tuple": [], "x": 1}), "something called '.tuple'"),
        (setting("objects", "step", {"$dtype": "object"}), "that is none"),
        (setting("objects", "step", {"$device": "nowhere:7"}), "that is none|device"),
    ],
)  # fmt: skip
def test_an_index_that_lies_is_refused(bad, act, match):
    change(bad, act)
    refused(bad, match)


def header(folder, act, name=M, fix=True):
    """Change the table of a tensor file, with the right sum in the index if ``fix``."""
    data = (folder / name).read_bytes()
    length = int.from_bytes(data[:8], "little")
    head, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    text = act(head)
    text = json.dumps(head).encode() if text is None else text
    replace(folder, name, len(text).to_bytes(8, "little") + text + body, fix)


def replace(folder, name, data, fix=True):
    (folder / name).write_bytes(data)
    if fix:
        digest = hashlib.sha256(data).hexdigest()
        change(folder, setting("files", name, [len(data), digest]))


@pytest.mark.parametrize(
    ("act", "match"),
    [
        (setting("a", "data_offsets", [4, 16]), "overlap or leave gaps"),
        (setting("a", "data_offsets", [2**63, 2**63 + 12]), "no number of elements"),
        (setting("a", "data_offsets", [-12, 0]), "no number of elements"),
        (setting("a", "data_offsets", [16, 2**40]), "offsets that do not fit"),
        (setting("a", "data_offsets", [20, 32]), "overlap or leave gaps"),
        (setting("a", "data_offsets", [16]), "no offsets"),
        (setting("a", "shape", [2**50]), "another type or shape"),
        (setting("a", "dtype", "U32"), "another type or shape"),
        (setting("a", 3), "is no table"),
        (setting("c", {"dtype": "F32", "shape": [0]}), "'c' is in it or in"),
        (lambda head: head.pop("a") and None, "'a' is in it or in"),
        (lambda head: b'{"a": 1, "a": 2}', "says 'a' twice"),
        (lambda head: b"[" * 5000 + b"]" * 5000, "nested more than"),
        (lambda head: b"\xff\xfe", "is torn"),
        (lambda head: b"{", "is torn"),
        (lambda head: b"[]", "is no table"),
        (lambda head: b'{"a": 1' + b"0" * 9000 + b"}", "is torn"),
    ],
)  # fmt: skip
def test_a_tensor_file_that_lies_is_refused(bad, act, match):
    header(bad, act)
    refused(bad, match)


@pytest.mark.parametrize("length", [0, 7, 2**32, 2**63, 2**64 - 1])
def test_a_table_of_another_length_is_not_read(bad, length):
    data = (bad / M).read_bytes()
    replace(bad, M, length.to_bytes(8, "little") + data[8:])
    refused(bad, "its table has")


def test_a_huge_table_is_not_read(bad, monkeypatch):
    monkeypatch.setattr("distgrad.distributed.checkpoint.tensors.MOST_HEAD", 300)
    header(bad, lambda head: json.dumps(head).encode() + b" " * 400)
    refused(bad, "its table has")


def test_a_huge_index_is_not_read(bad, monkeypatch):
    monkeypatch.setattr(loading, "MOST_BYTES", 100)
    refused(bad, "its index has .* bytes, more than 100")


def test_nothing_is_allocated_for_sizes_that_are_not_there(bad, monkeypatch):
    def never(*_, **__):
        raise AssertionError("allocated")

    monkeypatch.setattr(np, "empty", never)
    monkeypatch.setattr(loading.np, "empty", never)
    change(bad, setting("tensors", "m/a", ["F64", [2**40], [[M, 0, 2**40]]]))
    change(bad, setting("files", M, 0, 2**44))
    refused(bad, "is damaged, it has")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"", "is torn"),
        (b"null", "is no table"),
        (b"[1", "is torn"),
        (b'{"format": 2', "is torn"),
        (b'{"format": 2, "format": 2}', "says 'format' twice"),
        (b"[" * 100_000, "nested more than 64 deep"),
        (b'{"a":' * 100_000, "nested more than 64 deep"),
        (b'{"a": "' + b"\\" * 100_001, "is torn"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is torn"),
        (b"\x80\x04cos\nsystem\n.", "is torn"),
        (b'{"format": NaN}', "has format nan"),
    ],
)  # fmt: skip
def test_an_index_that_is_none_is_refused(bad, text, match):
    (bad / "index.json").write_bytes(text)
    refused(bad, match)


def test_texts_with_brackets_are_not_deep():
    assert parsed(b'["' + b"[{" * 200 + b'", "\\"[["]', "x")[1] == '"[['


# ---------------------------------------------------------------------- what is no file
def linked(path, target):
    path.unlink()
    path.symlink_to(target)


@pytest.mark.parametrize("name", [M, "index.json"])
@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("link outside", "is a symbolic link"),
        ("link inside", "is a symbolic link"),
        ("dangling link", "is a symbolic link"),
        ("pipe", "is a pipe"),
        ("device", "is a device"),
        ("directory", "is a directory"),
        ("socket", "is a socket"),
        ("nothing", "is missing"),
    ],
)
def test_only_regular_files_are_opened(bad, saved, name, kind, match, monkeypatch):
    path = bad / name
    shutil.move(path, bad / "kept")
    if "link" in kind:
        path.symlink_to({"link outside": saved / name, "link inside": "kept"}.get(kind, "gone"))
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        try:
            os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))  # /dev/zero
        except PermissionError:
            pytest.skip("nobody here may make devices")
    elif kind == "directory":
        path.mkdir()
    elif kind == "socket":
        monkeypatch.chdir(bad)
        server = socket.socket(socket.AF_UNIX)
        server.bind(name)
        server.close()
    refused(bad, f"{name} {match}")


def test_a_directory_that_is_a_link_is_the_users_choice(saved, tmp_path):
    (tmp_path / "latest").symlink_to(saved)
    state = {"step": 0}
    dcp.load(state, checkpoint_id=tmp_path / "latest")
    assert state["step"] == 3


def test_no_directory_is_named(tmp_path):
    refused(tmp_path / "none", "there is no directory")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "there is no directory")


def test_a_file_that_shrinks_while_it_is_read_is_refused(bad, monkeypatch):
    pread = os.preadv

    def ends(handle, buffers, at):
        return 0 if at > 8 else pread(handle, buffers, at)

    monkeypatch.setattr(os, "preadv", ends)
    refused(bad, "ended while it was read")


def test_all_ranks_refuse_what_one_finds(bad):
    change(bad, setting("files", X1, 1, "0" * 64))

    def load(group):
        state = {"x": dg.full((10,), 9.0)}
        with pytest.raises(CheckpointError, match=f"{X1} is damaged"):
            dcp.load(state, checkpoint_id=bad)
        return state["x"].sum().item()

    assert run_ranks(3, load) == [90, 90, 90]


def test_ranks_that_see_different_checkpoints_are_refused(saved, bad):
    change(bad, setting("objects", "step", 4))

    def load(group):
        with pytest.raises(CheckpointError, match="rank 1 finds another checkpoint there"):
            dcp.load({"step": 0}, checkpoint_id=bad if group.rank else saved)

    run_ranks(2, load)


def test_nothing_is_run(bad, monkeypatch):
    """No event that begins a program, opens a socket or compiles code is seen while loading."""
    seen = []
    me = threading.get_ident()
    on = [True]

    def watch(event, args):
        if on[0] and threading.get_ident() == me:
            if event.startswith(("subprocess", "os.exec", "os.system", "socket", "pickle", "exec")):
                seen.append(event)

    state = {"step": 0, "x": dg.zeros(10)}
    dcp.load(state, checkpoint_id=bad)  # whatever is imported late is there now
    sys.addaudithook(watch)
    dcp.load(state, checkpoint_id=bad)
    on[0] = False
    assert seen == []


def test_handles_are_closed_after_refusals(bad):
    before = len(os.listdir("/proc/self/fd"))
    (bad / M).unlink()
    for _ in range(20):
        refused(bad, "is missing")
    assert len(os.listdir("/proc/self/fd")) <= before + 1


def test_the_folder_reads_no_more_than_asked(bad):
    with closing(Folder(bad)) as folder, pytest.raises(CheckpointError, match="more than 3"):
        folder.lead(3)


def test_no_byte_of_a_checkpoint_can_change_unseen(saved, bad):
    """Whatever byte of whatever file is another one: loading says so."""
    rng = np.random.default_rng(0)
    names = sorted(os.listdir(bad))
    for name in names * 25:
        data = bytearray((saved / name).read_bytes())
        place = int(rng.integers(len(data)))
        data[place] ^= int(rng.integers(1, 256))
        (bad / name).write_bytes(data)
        refused(bad, "load")
        shutil.copy(saved / name, bad / name)


def test_no_end_of_a_file_can_be_missing_unseen(saved, bad):
    for name in sorted(os.listdir(bad)):
        data = (saved / name).read_bytes()
        for length in {0, 1, 8, len(data) // 2, len(data) - 1}:
            (bad / name).write_bytes(data[:length])
            refused(bad, "load")
        (bad / name).write_bytes(data + b" ")
        refused(bad, "load")
        shutil.copy(saved / name, bad / name)
