"""Datasets, samplers and collation: the same samples, in the same order, as PyTorch's."""

from __future__ import annotations

import collections
import itertools
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

import distgrad as dg
from distgrad.utils import data
from distgrad.utils.data.collate import collate, collate_tensor_fn, default_collate_fn_map

torch = pytest.importorskip("torch")
tdata = pytest.importorskip("torch.utils.data")


class Point(NamedTuple):
    x: Any
    y: Any


def plain(value: Any) -> Any:
    """Return tensors of either library as lists, with their dtype."""
    if isinstance(value, torch.Tensor | dg.Tensor):
        return (str(value.dtype).split(".")[-1], value.tolist())
    if isinstance(value, dict | types.MappingProxyType):
        return type(value), {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value), [plain(v) for v in value]
    return type(value), value


# ---------------------------------------------------------------------- samplers
SAMPLERS: dict[str, Any] = {
    "random": lambda d, g: d.RandomSampler(range(10), generator=g),
    "random more": lambda d, g: d.RandomSampler(range(10), num_samples=23, generator=g),
    "random fewer": lambda d, g: d.RandomSampler(range(10), num_samples=4, generator=g),
    "replacement": lambda d, g: d.RandomSampler(range(7), True, generator=g),
    "replacement 70": lambda d, g: d.RandomSampler(range(7), True, 70, generator=g),
    "replacement 64": lambda d, g: d.RandomSampler(range(7), True, 64, generator=g),
    "subset": lambda d, g: d.SubsetRandomSampler([5, 3, 8, 1], g),
    "weighted": lambda d, g: d.WeightedRandomSampler([0.1, 3, 0.5, 1], 9, generator=g),
    "weighted once": lambda d, g: d.WeightedRandomSampler([0.1, 3, 0.5], 3, False, g),
    "batches": lambda d, g: d.BatchSampler(d.RandomSampler(range(8), generator=g), 3, False),
    "full batches": lambda d, g: d.BatchSampler(d.RandomSampler(range(8), generator=g), 3, True),
}


@pytest.mark.parametrize("own", [True, False], ids=["generator", "default"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_give_pytorchs_indices_and_draw_as_many_numbers(name: str, own: bool) -> None:
    torch.manual_seed(3), dg.manual_seed(3)
    theirs, ours = (m.Generator().manual_seed(5) if own else None for m in (torch, dg))
    expected = SAMPLERS[name](tdata, theirs)
    sampler = SAMPLERS[name](data, ours)
    assert len(sampler) == len(expected)
    for _ in range(2):
        assert list(sampler) == list(expected)
    assert dg.rand(1).item() == torch.rand(1).item()
    if own:
        assert dg.rand(1, generator=ours).item() == torch.rand(1, generator=theirs).item()


@pytest.mark.parametrize("length", [0, 1, 5, 8, 23])
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
def test_distributed_sampler_gives_pytorchs_indices(
    length: int, drop_last: bool, shuffle: bool
) -> None:
    from torch.utils.data.distributed import DistributedSampler

    for size in (1, 2, 3):
        for rank in range(size):
            arguments = (range(length), size, rank, shuffle, 7, drop_last)
            theirs, ours = DistributedSampler(*arguments), data.DistributedSampler(*arguments)
            for epoch in (0, 3):
                theirs.set_epoch(epoch), ours.set_epoch(epoch)
                if length or drop_last:
                    assert list(ours) == list(theirs)
            for name in ("num_samples", "total_size", "num_replicas", "rank"):
                assert getattr(ours, name) == getattr(theirs, name), name


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("shuffle", [True, False])
def test_the_eval_sampler_gives_every_sample_once(size: int, shuffle: bool) -> None:
    shares = [data.DistributedEvalSampler(range(10), size, r, shuffle) for r in range(size)]
    found = [list(share) for share in shares]
    assert sorted(itertools.chain(*found)) == list(range(10))
    assert [len(share) for share in shares] == [len(indices) for indices in found]


def test_forgetting_set_epoch_is_noticed() -> None:
    sampler = data.DistributedSampler(range(4), 2, 0)
    first = list(sampler)
    with pytest.warns(UserWarning, match="set_epoch"):
        assert list(sampler) == first
    sampler.set_epoch(1)
    list(sampler)


@pytest.mark.parametrize(
    "lengths", [[3, 7], [0.3, 0.3, 0.4], [0.25, 0.75], [10], [1.0], [0.5, 0.5]], ids=str
)
def test_random_split_is_pytorchs(lengths: list[Any]) -> None:
    torch.manual_seed(1), dg.manual_seed(1)
    for size in (10,):
        theirs = tdata.random_split(range(size), lengths)
        ours = data.random_split(range(size), lengths)  # type: ignore[arg-type]
        assert [list(s.indices) for s in ours] == [list(s.indices) for s in theirs]
        assert [list(s) for s in ours] == [list(s) for s in theirs]


def test_random_split_says_what_does_not_add_up() -> None:
    with pytest.raises(ValueError, match="Sum of input lengths"):
        data.random_split(range(10), [3, 3])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not between 0 and 1"):
        data.random_split(range(10), [1.5, -0.5])  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="Length of split at index 1 is 0"):
        data.random_split(range(3), [0.99, 0.01])  # type: ignore[arg-type]


# ---------------------------------------------------------------------- datasets
def both(make: Any) -> tuple[Any, Any]:
    return make(torch, tdata), make(dg, data)


DATASETS: dict[str, Any] = {
    "tensors": lambda m, d: d.TensorDataset(m.arange(12).reshape(6, 2), m.arange(6.0)),
    "concat": lambda m, d: d.TensorDataset(m.arange(3)) + d.TensorDataset(m.arange(5)),
    "subset": lambda m, d: d.Subset(d.TensorDataset(m.arange(9)), [4, 2, 8]),
    "stack": lambda m, d: d.StackDataset(range(4), d.TensorDataset(m.arange(4))),
    "stack by name": lambda m, d: d.StackDataset(a=range(4), b=list("abcd")),
    "subset of subset": lambda m, d: d.Subset(d.Subset(range(9), [1, 3, 5]), [2, 0]),
    "subset of stack": lambda m, d: d.Subset(d.StackDataset(range(4), range(4)), [2, 0]),
}


@pytest.mark.parametrize("name", DATASETS)
def test_datasets_give_pytorchs_samples(name: str) -> None:
    theirs, ours = both(DATASETS[name])
    assert len(theirs) == len(ours)
    for index in [*range(len(ours)), -1]:
        assert plain(ours[index]) == plain(theirs[index])
    if hasattr(theirs, "__getitems__"):
        indices = list(range(len(ours)))[::-1]
        assert plain(ours.__getitems__(indices)) == plain(theirs.__getitems__(indices))
    loaders = [d.DataLoader(s, batch_size=2) for d, s in ((tdata, theirs), (data, ours))]
    assert [plain(b) for b in loaders[1]] == [plain(b) for b in loaders[0]]


class Stream(data.IterableDataset[int]):
    def __init__(self, length: int) -> None:
        self.length = length

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.length))

    def __len__(self) -> int:
        return self.length


def test_streams_are_chained() -> None:
    both = Stream(2) + Stream(3)
    assert isinstance(both, data.ChainDataset)
    assert list(both) == [0, 1, 0, 1, 2] and len(both) == 5
    with pytest.raises(AssertionError, match="only supports IterableDataset"):
        list(data.ChainDataset([data.TensorDataset(dg.ones(1))]))


BAD_DATASETS: dict[str, Any] = {
    "sizes": lambda m, d: d.TensorDataset(m.ones(2), m.ones(3)),
    "no dataset": lambda m, d: d.ConcatDataset([]),
    "nothing to stack": lambda m, d: d.StackDataset(),
    "two kinds": lambda m, d: d.StackDataset(range(2), b=range(2)),
    "stack of sizes": lambda m, d: d.StackDataset(range(2), range(3)),
    "below": lambda m, d: d.ConcatDataset([d.TensorDataset(m.ones(2))])[-3],
    "no getitem": lambda m, d: d.Dataset()[0],
    "samples": lambda m, d: d.RandomSampler(range(3), num_samples=0),
    "empty": lambda m, d: d.RandomSampler([]),
    "replacement": lambda m, d: d.RandomSampler(range(3), replacement=1),
    "weights": lambda m, d: d.WeightedRandomSampler([[1.0]], 1),
    "count": lambda m, d: d.WeightedRandomSampler([1.0], True),
    "batch": lambda m, d: d.BatchSampler(range(3), 0, False),
    "batch float": lambda m, d: d.BatchSampler(range(3), 2.0, False),
    "drop": lambda m, d: d.BatchSampler(range(3), 2, 1),
    "rank": lambda m, d: d.DistributedSampler(range(3), 2, 2),
    "uncollatable": lambda m, d: d.default_collate([object()]),
    "strings in arrays": lambda m, d: d.default_collate([np.array(["a"])]),
    "lengths": lambda m, d: d.default_collate([[1, 2], [3]]),
    "shapes": lambda m, d: d.default_collate([m.ones(2), m.ones(3)]),
}


@pytest.mark.parametrize("name", BAD_DATASETS)
def test_bad_input_raises_pytorchs_class(name: str) -> None:
    with pytest.raises(Exception) as theirs:
        BAD_DATASETS[name](torch, tdata)
    with pytest.raises(Exception) as ours:
        BAD_DATASETS[name](dg, data)
    assert isinstance(ours.value, theirs.type)


# ---------------------------------------------------------------------- collation
class Mine(dict[str, Any]):
    pass


BATCHES: dict[str, Any] = {
    "ints": lambda m: [1, 2],
    "bools": lambda m: [True, False],
    "floats": lambda m: [1.5, 2.0],
    "texts": lambda m: ["a", "b"],
    "bytes": lambda m: [b"a", b"b"],
    "tensors": lambda m: [m.arange(3), m.arange(3) + 1],
    "scalars": lambda m: [m.tensor(1.0), m.tensor(2.0)],
    "numpy": lambda m: [np.arange(3.0), np.arange(3.0)],
    "numpy scalars": lambda m: [np.float32(1), np.float32(2)],
    "numpy bools": lambda m: [np.bool_(True), np.bool_(False)],
    "numpy int": lambda m: [np.int16(3), np.int16(4)],
    "zero-dim": lambda m: [np.array(3), np.array(4)],
    "float64 scalar": lambda m: [np.float64(3), np.float64(4)],
    "pairs": lambda m: [(1, "a"), (2, "b")],
    "lists": lambda m: [[1, m.ones(2)], [2, m.zeros(2)]],
    "dicts": lambda m: [{"x": 1, "y": [1, 2]}, {"x": 2, "y": [3, 4]}],
    "own dict": lambda m: [Mine(x=1), Mine(x=2)],
    "ordered": lambda m: [collections.OrderedDict(x=1), collections.OrderedDict(x=2)],
    "proxy": lambda m: [types.MappingProxyType({"x": 1}), types.MappingProxyType({"x": 2})],
    "named": lambda m: [Point(1, m.ones(1)), Point(2, m.zeros(1))],
    "deep": lambda m: [{"p": Point((1, 2.5), {"z": b"q"})}] * 2,
    "range": lambda m: [range(2), range(2)],
}


@pytest.mark.parametrize("name", BATCHES)
def test_collation_is_pytorchs(name: str) -> None:
    theirs, ours = BATCHES[name](torch), BATCHES[name](dg)
    assert plain(data.default_collate(ours)) == plain(tdata.default_collate(theirs))
    assert plain(data.default_convert(ours)) == plain(tdata.default_convert(theirs))


def test_a_table_of_collate_functions_takes_the_exact_type_first() -> None:
    def longest(batch: Any, *, collate_fn_map: Any = None) -> Any:
        return max(batch, key=len)

    table = {list: longest, **default_collate_fn_map}
    assert collate([([1], 2), ([1, 2], 3)], collate_fn_map=table)[0] == [1, 2]
    only = {dg.Tensor: collate_tensor_fn}
    with pytest.raises(TypeError, match="found <class 'int'>"):
        collate([1], collate_fn_map=only)
