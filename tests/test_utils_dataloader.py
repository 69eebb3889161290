"""DataLoader: PyTorch's order and random numbers, workers of both kinds, errors, going on."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import random
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distgrad as dg
from distgrad.utils import data
from distgrad.utils.data import DataLoader, TensorDataset
from distgrad.utils.data import worker as worker_module

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # PyTorch's own
]


def lists(loader: Any) -> Any:
    return [np.asarray(batch).tolist() for batch in loader]


class Noisy(data.Dataset[Any]):
    """Sample i is i and random numbers of one library."""

    def __init__(self, rand: Callable[..., Any], length: int) -> None:
        self.rand = rand
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return index + self.rand(1).item()


class Numbers(data.Dataset[Any]):
    """Sample i is i, with what the functions of one process say."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        return np.array([index, np.random.rand(), random.random()])  # noqa: NPY002


class Counting(data.IterableDataset[int]):
    """A stream that each worker shares out."""

    def __init__(self, length: int, share: bool = True) -> None:
        self.length = length
        self.share = share

    def __iter__(self) -> Iterator[int]:
        info = data.get_worker_info()
        first, step = (0, 1) if info is None or not self.share else (info.id, info.num_workers)
        return iter(range(first, self.length, step))

    def __len__(self) -> int:
        return self.length


# ---------------------------------------------------------------------- the same as PyTorch
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "one": {},
    "batches": {"batch_size": 4},
    "shuffled": {"batch_size": 4, "shuffle": True},
    "dropped": {"batch_size": 4, "shuffle": True, "drop_last": True},
    "single": {"batch_size": None},
    "sampler": {"batch_size": 3, "sampler": [5, 1, 2, 8]},
    "batch sampler": {"batch_sampler": [[1, 2], [3], [9, 8, 7]]},
    "collate": {"batch_size": 4, "collate_fn": sum},
}


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_batches_and_random_numbers_are_pytorchs(name: str, workers: int) -> None:
    torch = pytest.importorskip("torch")
    from torch.utils import data as tdata

    torch.manual_seed(11), dg.manual_seed(11)
    options = CONFIGURATIONS[name] | {"num_workers": workers}
    theirs = tdata.DataLoader(Noisy(torch.rand, 10), **options)
    ours = DataLoader(Noisy(dg.rand, 10), **options)
    assert len(ours) == len(theirs)
    for _ in range(2):
        assert lists(ours) == lists(theirs)
    assert dg.rand(1).item() == torch.rand(1).item()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("persistent", [True, False])
def test_a_generator_decides_the_order(workers: int, persistent: bool) -> None:
    torch = pytest.importorskip("torch")
    from torch.utils import data as tdata

    torch.manual_seed(1), dg.manual_seed(1)
    results, after = [], []
    for module, loader in ((torch, tdata.DataLoader), (dg, DataLoader)):
        generator = module.Generator().manual_seed(9)
        made = loader(
            Noisy(module.rand, 9), 2, True, num_workers=workers, generator=generator,
            persistent_workers=persistent and workers > 0,
        )  # fmt: skip
        results.append([lists(made) for _ in range(3)])
        after.append((module.rand(1).item(), module.rand(1, generator=generator).item()))
    assert results[0] == results[1]
    assert after[0] == after[1]


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("options", [{"batch_size": 3}, {"batch_size": None}, {"drop_last": True}])
def test_streams_give_pytorchs_batches(workers: int, options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    from torch.utils import data as tdata

    class Theirs(tdata.IterableDataset):  # type: ignore[misc,type-arg]
        def __iter__(self) -> Iterator[int]:
            info = tdata.get_worker_info()
            first, step = (0, 1) if info is None else (info.id, info.num_workers)
            return iter(range(first, 11, step))

    expected = lists(tdata.DataLoader(Theirs(), num_workers=workers, **options))
    torch.manual_seed(0)
    assert lists(DataLoader(Counting(11), num_workers=workers, **options)) == expected


def test_worker_processes_have_pytorchs_seeds() -> None:
    torch = pytest.importorskip("torch")
    from torch.utils import data as tdata

    torch.manual_seed(4), dg.manual_seed(4)
    expected = lists(tdata.DataLoader(Numbers(), 2, num_workers=2))
    assert (
        lists(DataLoader(Numbers(), 2, num_workers=2, multiprocessing_context="fork")) == expected
    )


def test_a_switch_makes_the_workers_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTGRAD_LOADER_WORKERS", "fork")
    dg.manual_seed(4)
    first = lists(DataLoader(Numbers(), 2, num_workers=2))
    dg.manual_seed(4)
    assert lists(DataLoader(Numbers(), 2, num_workers=2)) == first


REFUSED: dict[str, dict[str, Any]] = {
    "workers": {"num_workers": -1},
    "timeout": {"timeout": -1},
    "prefetch": {"prefetch_factor": 2},
    "negative prefetch": {"num_workers": 1, "prefetch_factor": -1},
    "persistent": {"persistent_workers": True},
    "sampler and shuffle": {"sampler": [0], "shuffle": True},
    "batch sampler": {"batch_sampler": [[0]], "batch_size": 2},
    "no batch": {"batch_size": None, "drop_last": True},
    "zero": {"batch_size": 0},
    "context": {"multiprocessing_context": "fork"},
    "unknown context": {"multiprocessing_context": "smoke", "num_workers": 1},
    "wrong context": {"multiprocessing_context": 3, "num_workers": 1},
    "empty and shuffled": {"shuffle": True, "dataset": []},
}


@pytest.mark.parametrize("name", REFUSED)
def test_options_that_do_not_fit_raise_pytorchs_class(name: str) -> None:
    pytest.importorskip("torch")
    from torch.utils import data as tdata

    options = {"dataset": range(4)} | REFUSED[name]
    with pytest.raises(Exception) as theirs:
        tdata.DataLoader(**options)
    with pytest.raises(Exception) as ours:
        DataLoader(**options)
    assert isinstance(ours.value, theirs.type)


def test_what_decides_the_order_cannot_be_set_later() -> None:
    loader = DataLoader(range(4), 2)  # type: ignore[arg-type]
    for name in ("batch_size", "sampler", "dataset", "drop_last", "batch_sampler"):
        with pytest.raises(ValueError, match="should not be set after DataLoader is initialized"):
            setattr(loader, name, None)
    loader.num_workers = 1
    assert lists(loader) == [[0, 1], [2, 3]]
    for options in ({"shuffle": True}, {"sampler": [1]}, {"batch_sampler": [[1]]}):
        with pytest.raises(ValueError, match="expected unspecified"):
            DataLoader(Counting(3), **options)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- speed
@pytest.mark.parametrize("nested", [False, True])
def test_rows_of_tensors_are_fetched_by_one_indexing(
    nested: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = dg.randn(7, 3), dg.arange(7)
    source: Any = TensorDataset(x, y)
    if nested:
        source = data.Subset(data.Subset(source, [6, 5, 4, 3, 2, 1, 0]), range(7))
    expected = [
        data.default_collate([source[i] for i in part]) for part in ([0, 1, 2], [3, 4, 5], [6])
    ]
    monkeypatch.setattr(TensorDataset, "__len__", lambda self: 7)
    calls = []
    stack = worker_module.fetcher.__globals__["default_collate"]
    monkeypatch.setitem(stack.__globals__, "collate", lambda *a, **k: calls.append(a))
    batches = list(DataLoader(source, 3))
    assert not calls
    for batch, right in zip(batches, expected, strict=True):
        assert type(batch) is list
        for a, b in zip(batch, right, strict=True):
            np.testing.assert_array_equal(a.array, b.array, strict=True)


def test_a_subclass_decides_itself_what_a_sample_is() -> None:
    class Doubled(TensorDataset):
        def __getitem__(self, index: Any) -> Any:
            return super().__getitem__(index)[0] * 2

    assert lists(DataLoader(Doubled(dg.arange(4)), 2)) == [[0, 2], [4, 6]]
    assert lists(DataLoader(data.Subset(Doubled(dg.arange(4)), [3, 1]), 2)) == [[6, 2]]


def test_rows_of_a_tensor_that_requires_grad_carry_it() -> None:
    x = dg.ones(4, 2, requires_grad=True)
    (batch,) = next(iter(DataLoader(TensorDataset(x), 3)))
    batch.sum().backward()
    assert x.grad is not None and x.grad[:, 0].tolist() == [1, 1, 1, 0]


# ---------------------------------------------------------------------- workers
@pytest.mark.parametrize("kind", [None, "fork", "spawn"])
def test_each_worker_has_a_copy_of_the_dataset_to_set_up(kind: str | None) -> None:
    source = Counting(6, share=False)
    loader = DataLoader(
        source, 2, num_workers=2, worker_init_fn=_only_first, multiprocessing_context=kind
    )
    assert sorted(itertools.chain(*lists(loader))) == [0, 0, 1, 2]
    assert source.length == 6 and data.get_worker_info() is None


def _only_first(number: int) -> None:
    info = data.get_worker_info()
    assert info is not None and info.id == number and info.num_workers == 2
    assert isinstance(info.dataset, Counting)
    info.dataset.length = 1 + 2 * number


class Failing(data.Dataset[int]):
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        if index == 2:
            raise self.error
        return index


class Picky(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(a, b)


@pytest.mark.parametrize("kind", [None, "fork"])
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("bad sample"), ValueError),
        (KeyError("k"), KeyError),
        (Picky(1, 2), RuntimeError),
    ],
    ids=["value", "key", "picky"],
)
def test_an_error_in_a_worker_is_raised_with_its_traceback(
    kind: str | None, error: Exception, expected: type[Exception]
) -> None:
    passes = iter(DataLoader(Failing(error), num_workers=2, multiprocessing_context=kind))
    assert [int(next(passes)), int(next(passes))] == [0, 1]
    where = "process" if kind else "thread"
    with pytest.raises(expected, match=f"in DataLoader worker {where} 0.\nOriginal ") as caught:
        next(passes)
    assert "raise self.error" in str(caught.value) and type(error).__name__ in str(caught.value)
    assert int(next(passes)) == 3  # it goes on


def test_an_error_of_worker_init_fn_is_raised() -> None:
    def broken(number: int) -> None:
        raise OSError(f"no file {number}")

    loader = DataLoader(range(3), num_workers=2, worker_init_fn=broken)  # type: ignore[arg-type]
    with pytest.raises(OSError, match="no file 0"):
        next(iter(loader))


class Deadly(data.Dataset[int]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        os._exit(3)


def test_a_worker_process_that_dies_is_named() -> None:
    loader = DataLoader(Deadly(), num_workers=1, multiprocessing_context="fork")
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid\(s\) \d+\) exited unexpected"):
        next(iter(loader))


class Slow(data.Dataset[int]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        time.sleep(0.3 if index == 0 else 0)
        return index


def test_a_worker_that_takes_too_long_ends_the_wait() -> None:
    with pytest.raises(RuntimeError, match=r"timed out after 0\.05 seconds"):
        next(iter(DataLoader(Slow(), num_workers=1, timeout=0.05)))


def test_out_of_order_the_slow_batch_comes_last() -> None:
    assert lists(DataLoader(Slow(), None, num_workers=2)) == [0, 1, 2, 3]
    loose = lists(DataLoader(Slow(), None, num_workers=2, in_order=False))
    assert sorted(loose) == [0, 1, 2, 3] and loose[0] != 0


def _workers() -> int:
    return sum(t.name.startswith("DataLoader worker") for t in threading.enumerate())


def test_workers_end_with_their_pass_or_stay_with_the_loader() -> None:
    before = 0
    _wait_for(before)
    loader = DataLoader(range(6), 2, num_workers=2)  # type: ignore[arg-type]
    for _ in loader:
        assert _workers() == before + 2
    _wait_for(before)
    left = iter(loader)
    next(left)
    del left
    _wait_for(before)
    kept = DataLoader(range(6), 2, num_workers=2, persistent_workers=True)  # type: ignore[arg-type]
    first = lists(kept)
    names = {t.ident for t in threading.enumerate()}
    next(iter(kept))  # left in the middle
    assert lists(kept) == first and {t.ident for t in threading.enumerate()} == names
    del kept
    _wait_for(before)


def _wait_for(count: int) -> None:
    end = time.monotonic() + 5
    while _workers() != count and time.monotonic() < end:
        gc.collect()
        time.sleep(0.01)
    assert _workers() == count


def test_worker_processes_end_with_their_pass() -> None:
    loader = DataLoader(range(4), num_workers=2, multiprocessing_context="fork")  # type: ignore[arg-type]
    passes = iter(loader)
    next(passes)
    assert len(multiprocessing.active_children()) == 2
    del passes
    gc.collect()
    assert not multiprocessing.active_children()


class Environment(data.Dataset[str]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> str:
        names = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "MPI4PY_RC_INITIALIZE", "KEPT")
        return " ".join(f"{name}={os.environ.get(name)}" for name in names)


@pytest.mark.parametrize("kind", ["fork", "spawn"])
def test_worker_processes_do_not_see_the_variables_of_mpi(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "KEPT"):
        monkeypatch.setenv(name, "1")
    loader = DataLoader(Environment(), None, num_workers=1, multiprocessing_context=kind)
    seen = "PMI_RANK=None OMPI_COMM_WORLD_RANK=None MPI4PY_RC_INITIALIZE=0 KEPT=1"
    assert list(loader) == [seen]
    assert os.environ["PMI_RANK"] == "1" and "MPI4PY_RC_INITIALIZE" not in os.environ


def test_tensors_come_back_from_processes_as_they_are() -> None:
    x = dg.randn(4, 3)
    loader = DataLoader(TensorDataset(x), 2, num_workers=1, multiprocessing_context="fork")
    np.testing.assert_array_equal(np.concatenate([b[0].array for b in loader]), x.array)


def test_a_batch_that_cannot_be_sent_is_an_error() -> None:
    loader = DataLoader(
        range(2),  # type: ignore[arg-type]
        num_workers=1,
        multiprocessing_context="fork",
        collate_fn=lambda batch: lambda: batch,
    )
    with pytest.raises(Exception, match="sending a batch"):
        next(iter(loader))


# ---------------------------------------------------------------------- warnings
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_longer_than_it_said_is_noticed(workers: int) -> None:
    loader = DataLoader(Counting(3, share=False), num_workers=workers)
    with warnings.catch_warnings():
        warnings.simplefilter("error" if not workers else "ignore")
        assert len(loader) == 3
        list(loader)
    if workers:
        with pytest.warns(UserWarning, match="Length of IterableDataset .* replica at each worker"):
            list(loader)


def test_page_locked_memory_needs_a_gpu() -> None:
    with pytest.warns(UserWarning, match="no accelerator is found"):
        assert lists(DataLoader(range(2), pin_memory=True)) == [[0], [1]]  # type: ignore[arg-type]


# ---------------------------------------------------------------------- going on
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("taken", [0, 1, 3, 5])
@pytest.mark.parametrize("own", [True, False])
def test_a_pass_goes_on_where_its_state_was_taken(workers: int, taken: int, own: bool) -> None:
    def made(seed: int) -> DataLoader[Any]:
        generator = dg.Generator().manual_seed(seed) if own else None
        return DataLoader(
            TensorDataset(dg.arange(10)), 2, True, num_workers=workers, generator=generator
        )

    dg.manual_seed(1)
    loader = made(1)
    passes = iter(loader)
    for _ in range(taken):
        next(passes)
    state = loader.state_dict()
    dg.rand(3)  # as training does
    random_state = dg.get_rng_state()
    rest = [batch[0].tolist() for batch in passes]
    after = [batch[0].tolist() for batch in loader]
    number = dg.rand(1).item()

    dg.manual_seed(5)
    again = made(5)
    dg.set_rng_state(random_state)
    again.load_state_dict(state)
    assert again.state_dict()["batches"] == taken
    assert [batch[0].tolist() for batch in again] == rest
    assert [batch[0].tolist() for batch in again] == after
    assert dg.rand(1).item() == number


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_goes_on_where_its_state_was_taken(workers: int) -> None:
    loader = DataLoader(Counting(9), 2, num_workers=workers)
    passes = iter(loader)
    next(passes)
    state = loader.state_dict()
    rest = lists(passes)
    again = DataLoader(Counting(9), 2, num_workers=workers)
    again.load_state_dict(state)
    assert lists(again) == rest


def test_the_state_holds_the_samplers_epoch_and_can_be_saved(tmp_path: Path) -> None:
    def made() -> DataLoader[Any]:
        sampler = data.DistributedSampler(range(12), 2, 1)
        return DataLoader(range(12), 2, sampler=sampler)  # type: ignore[arg-type]

    loader = made()
    loader.sampler.set_epoch(4)  # type: ignore[union-attr]
    passes = iter(loader)
    next(passes)
    dg.save(loader.state_dict(), tmp_path / "x")
    again = made()
    again.load_state_dict(dg.load(tmp_path / "x"))
    assert lists(again) == lists(passes)
    assert again.sampler.epoch == 4  # type: ignore[union-attr]


def test_a_finished_pass_has_nothing_to_go_on_with() -> None:
    loader = DataLoader(range(4), 2)  # type: ignore[arg-type]
    list(loader)
    again = DataLoader(range(4), 2)  # type: ignore[arg-type]
    again.load_state_dict(loader.state_dict())
    assert lists(again) == [[0, 1], [2, 3]]
    fresh = DataLoader(range(4), 2)  # type: ignore[arg-type]
    fresh.load_state_dict(DataLoader(range(4), 2).state_dict())  # type: ignore[arg-type]
    assert len(lists(fresh)) == 2
    with pytest.raises(ValueError, match="not the state of a DataLoader"):
        again.load_state_dict({"a": 1})
    with pytest.raises(ValueError, match="build the loader as it was"):
        other = DataLoader(range(4), shuffle=True, generator=dg.Generator())  # type: ignore[arg-type]
        state = DataLoader(range(4))  # type: ignore[arg-type]
        next(iter(state))
        other.load_state_dict(state.state_dict())
        next(iter(other))
