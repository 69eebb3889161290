"""Stores: the same answers from each kind, across threads and processes, and their mistakes."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from distgrad import distributed as dist
from distgrad.distributed import FileStore, HashStore, PrefixStore, Store, TCPStore
from distgrad.errors import ArgumentError, ArgumentTypeError, DistributedError

KINDS: dict[str, Callable[[Path], Store]] = {
    "hash": lambda folder: HashStore(),
    "file": lambda folder: FileStore(str(folder / "store"), 1),
    "tcp": lambda folder: TCPStore("127.0.0.1", 0, 1, True),
    "prefix": lambda folder: PrefixStore("part", HashStore()),
}
SHORT = timedelta(seconds=0.05)


@pytest.fixture(params=list(KINDS))
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return KINDS[request.param](tmp_path)


# What PyTorch 2.13 answers to the same calls, except where noted.
CALLS: list[tuple[Callable[[Any], object], object]] = [
    (lambda s: s.set("a", "1"), None),
    (lambda s: s.get("a"), b"1"),
    (lambda s: s.set("b", b"\0z"), None),
    (lambda s: s.get("b"), b"\0z"),
    (lambda s: (s.add("c", 3), s.add("c", -5), s.get("c")), (3, -2, b"-2")),
    (lambda s: s.wait(["a", "b"], SHORT), None),
    (lambda s: (s.check(["a", "b"]), s.check(["a", "q"]), s.check([])), (True, False, True)),
    (lambda s: (s.compare_set("a", "1", "2"), s.get("a")), (b"2", b"2")),
    (lambda s: s.compare_set("a", "1", "3"), b"2"),
    (lambda s: (s.compare_set("n", "x", "3"), s.check(["n"])), (b"x", False)),
    (lambda s: (s.compare_set("n", "", "3"), s.get("n")), (b"3", b"3")),
    (lambda s: (s.delete_key("a"), s.delete_key("a")), (True, False)),
    (lambda s: (s.append("ap", "x"), s.append("ap", "y"), s.get("ap")), (None, None, b"xy")),
    (lambda s: s.multi_set(["m", "o"], ["v", "w"]), None),
    (lambda s: s.multi_get(["m", "o"]), [b"v", b"w"]),
    (lambda s: sorted(set(s.list_keys()) - {"init/"}), ["ap", "b", "c", "m", "n", "o"]),
    (lambda s: (s.queue_push("q", "1"), s.queue_push("q", "2"), s.queue_len("q")), (None, None, 2)),
    (lambda s: (s.queue_pop("q"), s.queue_pop("q"), s.queue_len("q")), (b"1", b"2", 0)),
    (lambda s: s.has_extended_api(), True),
    (lambda s: (s.clone().get("m"), s.clone().timeout), (b"v", timedelta(seconds=300))),
    (lambda s: s.barrier("all", 1), None),
    (lambda s: s.barrier("all", 1), None),
]


def test_every_kind_gives_the_same_answers(store: Store) -> None:
    for number, (call, want) in enumerate(CALLS):
        assert call(store) == want, number


def test_what_does_not_come_is_named(store: Store) -> None:
    store.set_timeout(SHORT)
    assert store.timeout == SHORT
    with pytest.raises(dist.DistStoreError, match=r"get\('no'\): wait timeout after 0.05 s"):
        store.get("no")
    store.set("yes", "1")
    with pytest.raises(RuntimeError, match=r"wait\('no'\)"):
        store.wait(["yes", "no"], SHORT)
    with pytest.raises(dist.QueueEmptyError, match="queue is empty"):
        store.queue_pop("q", block=False)
    with pytest.raises(dist.DistStoreError, match="queue_pop"):
        store.queue_pop("q")
    store.set("word", "x")
    with pytest.raises(ArgumentError, match="is b'x' and no number"):
        store.add("word", 1)
    with pytest.raises(ArgumentTypeError, match="must be str or bytes, not int"):
        store.set("a", 5)  # type: ignore[arg-type]
    assert store.get("yes") == b"1"  # and it still works


def test_threads_wait_for_each_other(store: Store) -> None:
    def other() -> None:
        mine = store.clone()  # type: ignore[attr-defined]
        mine.set("from there", mine.get("from here"))
        mine.barrier("end", 2)

    thread = threading.Thread(target=other)
    thread.start()
    store.set("from here", "hello")
    assert store.get("from there") == b"hello"
    store.barrier("end", 2)
    thread.join()


CHILD = """
import sys
from distgrad.distributed import FileStore, TCPStore
kind, place, me = sys.argv[1:]
if kind == "file":
    store = FileStore(place, 3)
else:
    store = TCPStore("127.0.0.1", int(place), 3, False)
for _ in range(50):
    store.add("count", 1)
store.barrier("counted", 3)
assert store.get("count") == b"150", store.get("count")
store.append("who", me)
"""


@pytest.mark.parametrize("kind", ["file", "tcp"])
def test_processes_share_them(kind: str, tmp_path: Path) -> None:
    store: Store
    if kind == "file":
        place = str(tmp_path / "store")
        store = FileStore(place, 3)
    else:
        store = TCPStore("127.0.0.1", 0, 3, True, wait_for_workers=False)
        place = str(store.port)
    root = str(Path(__file__).parent.parent)
    children = [
        subprocess.Popen([sys.executable, "-c", CHILD, kind, place, str(n)], cwd=root)
        for n in range(2)
    ]
    for _ in range(50):
        store.add("count", 1)
    store.set_timeout(timedelta(seconds=50))
    store.barrier("counted", 3)
    assert [child.wait(50) for child in children] == [0, 0]
    assert sorted(store.get("who").decode()) == ["0", "1"]


def test_a_server_waits_for_all_and_says_who_is_missing() -> None:
    with pytest.raises(dist.DistStoreError, match=r"1 of 2 processes came within 0.05 s"):
        TCPStore("127.0.0.1", 0, 2, True, SHORT)


def test_a_server_that_is_not_there_is_named() -> None:
    server = TCPStore("127.0.0.1", 0, 1, True)
    with pytest.raises(dist.DistNetworkError, match="cannot listen there"):
        TCPStore("127.0.0.1", server.port, 1, True)
    again = TCPStore("127.0.0.1", server.port, 1, True, multi_tenant=True)
    again.set("x", "1")
    assert server.get("x") == b"1"
    port = server.port
    del server, again
    with pytest.raises(DistributedError, match=r"no server within 0.05 s"):
        TCPStore("127.0.0.1", port, 1, False, SHORT)


def test_a_group_takes_a_store() -> None:
    with pytest.raises(ArgumentError, match="leave store out"):
        dist.init_process_group("local", store=3)
    dist.init_process_group("local", store=HashStore(), rank=0, world_size=1)
    dist.destroy_process_group()
