"""The all-reduce in blocks, for many ranks that are no power of two."""

from __future__ import annotations

import numpy as np
import pytest

from distgrad.distributed import reduction
from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.reduction import Exchange, Reduction, algorithm_for
from distgrad.distributed.threads import run_ranks
from distgrad.distributed.tree import Subtree, Sum, Tree


def added(shards: range, count: int = 101) -> Sum:
    total = Sum(np.add)
    for shard in shards:
        numbers = np.random.default_rng(shard).standard_normal(count).astype(np.float32)
        total.push(Subtree(shard, 1), numbers)
    return total


@pytest.mark.parametrize(("ranks", "shards"), [(4, 4), (6, 17), (9, 9), (18, 33), (20, 20)])
def test_a_grid_gives_the_bits_of_the_tree(ranks, shards):
    tree = Tree(shards, ranks)

    def body(group: ProcessGroup) -> bytes:
        mine = range(tree.bounds[group.rank], tree.bounds[group.rank + 1])
        arrays = [array for _, array in added(mine).stack]
        exchange = Exchange(group.channel("buckets"), arrays, tree.parts, np.add, 0, "a test")
        Reduction(exchange, reduction.grid(exchange)).wait()
        return exchange.out.tobytes()

    want = added(range(shards)).total().tobytes()
    assert run_ranks(ranks, body) == [want] * ranks


CHOSEN = [(16, "direct"), (17, "direct"), (18, "grid"), (32, "halving")]


@pytest.mark.parametrize(("ranks", "name"), CHOSEN)
def test_many_ranks_that_are_no_power_of_two_take_a_grid(ranks, name):
    tree = Tree(ranks, ranks)

    def body(group: ProcessGroup) -> str:
        array = np.zeros(reduction.SMALL_BYTES, np.float32)
        exchange = Exchange(group, [array], tree.parts, np.add, 0, "a test")
        return algorithm_for(exchange).__name__

    assert set(run_ranks(ranks, body)) == {name}
