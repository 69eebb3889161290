"""Who writes what: each element of each tensor once, shared out over the ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from distgrad.distributed.checkpoint.index import stem_of
from distgrad.distributed.checkpoint.state import Leaf, Shard
from distgrad.distributed.checkpoint.tensors import code_of, item_size
from distgrad.errors import ArgumentError

SHARE = 64 << 20  # bytes of whole tensors for which one more rank writes

# of each tensor: type, shape, and which elements a rank has; None for all of a whole tensor
Row: TypeAlias = tuple[str, tuple[int, ...], tuple[int, int] | None]
Manifest: TypeAlias = dict[str, Row]


@dataclass(slots=True)
class Plan:
    """Who writes what.

    ``owners`` says for each tensor which rank writes from where to where; ``objects`` which rank
    gives the value of a key; ``writers`` which ranks write files whose names begin with a word.
    """

    kinds: dict[str, tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    owners: dict[str, list[tuple[int, int, int]]] = field(default_factory=dict)
    objects: dict[str, int] = field(default_factory=dict)
    writers: dict[str, list[int]] = field(default_factory=dict)
    token: str = ""
    world: int = 1

    def file_of(self, key: str, rank: int) -> str:
        """Return the file into which a rank writes its part of a tensor."""
        stem = stem_of(key)
        if self.writers[stem] == [0]:
            return f"{stem}.safetensors"
        return f"{stem}-{rank:05d}-of-{self.world:05d}.safetensors"

    def mine(self, rank: int) -> set[str]:
        """Return the tensors of which a rank writes something."""
        return {key for key, rows in self.owners.items() if any(r == rank for r, _, _ in rows)}


def manifest(tensors: Mapping[str, Leaf]) -> Manifest:
    """Return what this rank has."""
    found: Manifest = {}
    for key, leaf in tensors.items():
        if isinstance(leaf, Shard):
            where = (leaf.start, leaf.stop)
            found[key] = code_of(leaf.tensor.array.dtype), leaf.shape, where
        else:
            found[key] = code_of(leaf.array.dtype), tuple(leaf.array.shape), None
    return found


def planned(told: Sequence[tuple[Manifest, list[str]]], token: str) -> Plan:
    """Return the plan for what all ranks have; the same on all of them.

    Args:
        told: of each rank its tensors and the keys of its objects.
        token: part of the names of what is written.

    Raises:
        ArgumentError: the ranks have different tensors under a key, or not all of one.
    """
    plan = Plan(token=token, world=len(told))
    parts: dict[str, list[tuple[int, Any]]] = {}
    for rank, (rows, objects) in enumerate(told):
        for key, (code, shape, where) in rows.items():
            kind = plan.kinds.setdefault(key, (code, shape))
            if kind != (code, shape):
                raise ArgumentError(
                    f"save(): {key} is {kind[0]}{list(kind[1])} on one rank and "
                    f"{code}{list(shape)} on rank {rank}; give what differs a name for each rank"
                )
            parts.setdefault(key, []).append((rank, where))
        for key in objects:
            plan.objects.setdefault(key, rank)
    clash = plan.kinds.keys() & plan.objects.keys()
    if clash:
        raise ArgumentError(f"save(): {min(clash)} is a tensor on some ranks only")
    _share_out(plan, parts)
    for key, owned in plan.owners.items():
        writers = plan.writers.setdefault(stem_of(key), [])
        writers.extend(rank for rank, _, _ in owned if rank not in writers)
    return plan


def _share_out(plan: Plan, parts: Mapping[str, list[tuple[int, Any]]]) -> None:
    whole = {key: rows for key, rows in parts.items() if all(w is None for _, w in rows)}
    for key in parts.keys() - whole.keys():
        plan.owners[key] = _sharded(key, parts[key], math.prod(plan.kinds[key][1]))
    sizes = {key: item_size(plan.kinds[key][0]) * math.prod(plan.kinds[key][1]) for key in whole}
    count = min(plan.world, max(1, sum(sizes.values()) // SHARE))
    load = [0] * plan.world
    for key in sorted(whole, key=lambda k: (-sizes[k], k)):
        having = [rank for rank, _ in whole[key]]
        among = [rank for rank in having if rank < count] or having[:1]
        rank = min(among, key=lambda r: (load[r], r))
        load[rank] += sizes[key]
        plan.owners[key] = [(rank, 0, math.prod(plan.kinds[key][1]))]


def _sharded(key: str, rows: list[tuple[int, Any]], size: int) -> list[tuple[int, int, int]]:
    """Return who writes which elements of a tensor that is spread over ranks."""
    if any(where is None for _, where in rows):
        raise ArgumentError(f"save(): {key} is whole on some ranks and in parts on others")
    found: list[tuple[int, int, int]] = []
    at = 0
    for start, stop, rank in sorted((*where, rank) for rank, where in rows):
        if found and (start, stop) == found[-1][1:]:
            continue  # a copy, such as each row of a mesh has
        if start == stop and (size or found):
            continue
        if start != at:
            raise ArgumentError(
                f"save(): elements {min(start, at)} to {max(start, at)} of {key} are on no rank or "
                "on several"
            )
        found.append((rank, start, stop))
        at = stop
    if at != size:
        raise ArgumentError(f"save(): elements {at} to {size} of {key} are on no rank")
    return found
