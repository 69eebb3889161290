"""The state of an optimizer over parameters that `fully_shard` has cut into parts.

Any optimizer updates this rank's parts, and has state for them alone. The functions here bring the
state of all ranks together, as an optimizer over whole parameters would have it, and share it out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distgrad.backend.device import CPU, to_device
from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.local import local_group
from distgrad.distributed.redistribute import Ranges, redistribute
from distgrad.distributed.spread import parts_of, whole_size
from distgrad.distributed.work import HostArray
from distgrad.errors import ArgumentError
from distgrad.optim.optimizer import Optimizer
from distgrad.tensor import Tensor, wrap


def params_of(optimizer: Optimizer) -> list[Tensor]:
    """Return the parameters in the order of their numbers."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def group_of(params: Sequence[Tensor]) -> ProcessGroup:
    """Return the ranks that have parts of ``params``; this one alone where they are whole.

    Raises:
        ArgumentError: there are several groups of ranks.
    """
    found = list({id(s.group): s.group for s, _ in parts_of(params).values()}.values())
    if len(found) > 1:
        raise ArgumentError(
            "the parameters of the optimizer are spread over several groups of ranks; make one "
            "optimizer for each group"
        )
    return found[0] if found else local_group()


def ranges_of(params: Sequence[Tensor], rank: int) -> dict[int, slice]:
    """Return which elements of which parameter, by its number, a rank updates."""
    parts = parts_of(params)
    found = {}
    for number, p in enumerate(params):
        size = whole_size(p)
        within = slice(0, size)
        if number in parts:
            spread, place = parts[number]
            within = spread.within(place, rank)
        if within.start < within.stop or (not size and not rank):
            found[number] = within
    return found


def state_of(optimizer: Optimizer, ranges: Ranges) -> dict[int, dict[str, HostArray]]:
    """Return the state of these elements, for parameters that have some."""
    entries: dict[int, dict[str, HostArray]] = {}
    params = params_of(optimizer)
    for number in ranges:
        row = optimizer.state.get(params[number], {})
        arrays = {name: to_device(t.array, CPU) for name, t in row.items()}
        if arrays:
            entries[number] = {k: a.reshape(-1) if a.ndim else a for k, a in arrays.items()}
    return entries


def full_optim_state_dict(optimizer: Optimizer, to: int | None = 0) -> dict[str, Any]:
    """Return the state of ``optimizer`` as one over whole parameters would have it.

    Args:
        optimizer: over parameters after `fully_shard`.
        to: the rank that gets it; the others get an empty dict. None gives it to all.

    Ranks: a collective.
    Cost: each element of the state travels once to rank ``to``.
    """
    params = params_of(optimizer)
    group = group_of(params)
    if to is not None and not 0 <= to < group.size:
        raise ArgumentError(
            f"full_optim_state_dict(to={to}): is no rank of a group of {group.size}; ranks are 0 "
            f"to {group.size - 1}"
        )
    whole = {number: slice(0, whole_size(p)) for number, p in enumerate(params)}
    have = [ranges_of(params, rank) for rank in range(group.size)]
    want: list[Ranges] = [whole if to in (None, rank) else {} for rank in range(group.size)]
    entries = state_of(optimizer, have[group.rank])
    got = redistribute(group.channel("control"), have, want, entries)
    if to not in (None, group.rank):
        return {}
    shapes = _shapes(params)
    state = optimizer.state_dict()
    state["state"] = {
        number: {k: wrap(a.reshape(shapes[number]) if a.ndim else a) for k, a in row.items()}
        for number, row in sorted(got.items())
        if row
    }
    return state


def load_full_optim_state_dict(optimizer: Optimizer, state_dict: Mapping[str, Any]) -> None:
    """Take this rank's part of a whole state, saved by any number of ranks or without sharding.

    Args:
        optimizer: over parameters after `fully_shard`.
        state_dict: what `full_optim_state_dict` or a plain optimizer's ``state_dict`` returned.

    Ranks: all, with the same state.
    """
    params = params_of(optimizer)
    parts, rank = parts_of(params), group_of(params).rank
    state = dict(state_dict["state"])
    keys = [key for group in state_dict["param_groups"] for key in group["params"]]
    groups = optimizer.param_groups
    kept_once = [optimizer._numbers(group) for group in groups for _ in group["params"]]
    for number, key in enumerate(keys):
        if number in parts and key in state:
            spread, place = parts[number]
            within = spread.within(place, rank)
            state[key] = {
                name: value if name in kept_once[number] else _part(value, within)
                for name, value in state[key].items()
            }
    optimizer.load_state_dict({**state_dict, "state": state})


def _part(value: Any, within: slice) -> Any:
    if not isinstance(value, Tensor):
        return value
    return wrap(value.array.reshape(-1)[within].copy())


def _shapes(params: Sequence[Tensor]) -> list[tuple[int, ...]]:
    parts = parts_of(params)
    shapes = [p._shape for p in params]
    for number, (spread, place) in parts.items():
        shapes[number] = spread.shapes[place]
    return shapes


__all__ = [
    "full_optim_state_dict", "group_of", "load_full_optim_state_dict", "params_of", "ranges_of",
    "state_of",
]  # fmt: skip
