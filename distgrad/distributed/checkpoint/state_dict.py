"""States of models and optimizers by the names of parameters, whatever is around the model.

The names are those of the model itself: wrappers such as DistributedDataParallel add none. What a
rank has a part of, after `fully_shard` or in a `ZeroRedundancyOptimizer`, is a `Shard`, which
``save`` and ``load`` take; any number of ranks loads it, with any way of sharing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from distgrad.backend.device import CPU, to_device
from distgrad.distributed.checkpoint.state import Leaf, Shard, fill
from distgrad.distributed.default import default_group
from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.spread import parts_of, spread_of
from distgrad.distributed.work import HostArray
from distgrad.errors import ArgumentError, CheckpointError
from distgrad.nn.module import Module
from distgrad.nn.parallel.distributed import DistributedDataParallel
from distgrad.nn.parallel.fsdp.module import FSDPModule
from distgrad.nn.parallel.fsdp.wrapper import FullyShardedDataParallel
from distgrad.nn.state import EXTRA_STATE, IncompatibleKeys
from distgrad.optim.holdings import Holding, Rows, groups_of, holding_of
from distgrad.optim.optimizer import Optimizer
from distgrad.optim.parts import params_of
from distgrad.optim.runs import scalar
from distgrad.optim.zero import ZeroRedundancyOptimizer
from distgrad.tensor import Tensor, wrap

State: TypeAlias = dict[str, Any]
Optimizers: TypeAlias = Optimizer | Iterable[Optimizer]
_WRAPPERS = (DistributedDataParallel, FullyShardedDataParallel)


@dataclass(frozen=True, slots=True)
class StateDictOptions:
    """How states are returned and taken.

    Args:
        full_state_dict: whole tensors instead of parts; a collective.
        cpu_offload: tensors of the host; whole ones on rank 0 alone.
        ignore_frozen_params: leave out parameters that get no gradients.
        keep_submodule_prefixes: True only: names are those in the whole model.
        strict: every name must be on both sides.
        broadcast_from_rank0: rank 0 has the whole state, and gives it to all.
        flatten_optimizer_state_dict: names such as ``state.head.weight.exp_avg`` in one dict.
        dsd_fqn_modifiers: accepted; names need no changes.
    """

    full_state_dict: bool = False
    cpu_offload: bool = False
    ignore_frozen_params: bool = False
    keep_submodule_prefixes: bool = True
    strict: bool = True
    broadcast_from_rank0: bool = False
    flatten_optimizer_state_dict: bool = False
    dsd_fqn_modifiers: str = "_fqn_modifiers"


# ---------------------------------------------------------------------- the model
def get_model_state_dict(
    model: Module, *, submodules: Any = None, options: StateDictOptions | None = None
) -> State:
    """Return parameters and buffers by name; they are the model's own memory.

    Args:
        model: with any wrapper.
        submodules: None only.
        options: see `StateDictOptions`.

    Ranks: all, after `fully_shard` or with ``full_state_dict``.
    """
    options = _checked("get_model_state_dict", submodules, options)
    inner = unwrapped(model)
    for part in inner.modules():
        if isinstance(part, FSDPModule):
            part.reshard()
    frozen = {n for n, p in inner.named_parameters() if not p.requires_grad}
    state: State = {}
    for name, value in _own(inner):
        if not (options.ignore_frozen_params and name in frozen):
            state[name] = _leaf(value) if isinstance(value, Tensor) else value
    if options.full_state_dict:
        return _wholes(state, group_of(inner), options)
    return {k: _moved(v, options) for k, v in state.items()}


def set_model_state_dict(
    model: Module, model_state_dict: State, *, options: StateDictOptions | None = None
) -> IncompatibleKeys:
    """Copy a state, whole or in parts, into parameters and buffers.

    Returns:
        The names that are missing and those that nothing takes.

    Raises:
        CheckpointError: there are such names and ``strict`` is set, or sizes differ; nothing is
            changed.

    Ranks: all.
    """
    found, change = _ready_model(model, model_state_dict, options or StateDictOptions())
    change()
    return found


def _ready_model(
    model: Module, state: State, options: StateDictOptions
) -> tuple[IncompatibleKeys, Callable[[], None]]:
    """Return names that do not fit, and what copies the state into the model."""
    inner = unwrapped(model)
    given = dict(_from_rank_0(state, inner, options))
    target = get_model_state_dict(model, options=_plain(options))
    found = IncompatibleKeys(
        [name for name in target if name not in given],
        [name for name in given if name not in target],
    )
    if options.strict and (found.missing_keys or found.unexpected_keys):
        raise CheckpointError(
            f"set_model_state_dict(): missing {found.missing_keys[:8]}, unexpected "
            f"{found.unexpected_keys[:8]}; use strict=False to take what there is"
        )
    names = [name for name in target if name in given and isinstance(target[name], Leaf)]
    values = {name: _part_for(name, target[name], given[name]) for name in names}

    def change() -> None:
        for name in names:
            fill(target[name], values[name])
        for path, module in inner.named_modules():
            key = f"{path}.{EXTRA_STATE}" if path else EXTRA_STATE
            if key in given and module._takes_extra_state():
                module.set_extra_state(given[key])

    return found, change


def unwrapped(model: Module) -> Module:
    """Return the model itself."""
    while isinstance(model, _WRAPPERS):
        model = model.module
    return model


def names_of(model: Module) -> dict[int, str]:
    """Return the names of a model's parameters, by their ``id``."""
    return {id(p): name for name, p in reversed(list(unwrapped(model).named_parameters()))}


def _own(model: Module) -> Iterator[tuple[str, Any]]:
    """Give parameters, buffers and extra states by name."""
    for path, part in model.named_modules(remove_duplicate=False):
        lead = f"{path}." if path else ""
        for name, tensor in part._own_state():
            yield lead + name, tensor
        if part._takes_extra_state():
            yield lead + EXTRA_STATE, part.get_extra_state()


def _leaf(tensor: Tensor) -> Leaf:
    """Return what this rank has of a parameter or buffer, in its own memory."""
    found = parts_of([tensor]).get(0)
    if found is None:
        return tensor.detach()
    spread, place = found
    within = spread.within(place, spread.group.rank)
    return Shard(tensor.detach(), spread.shapes[place], within.start)


def group_of(model: Module) -> ProcessGroup | None:
    """Return the ranks that share a model; None without any."""
    for p in model.parameters():
        spread = spread_of(p)
        if spread is not None:
            return spread.group
    return default_group()


# ---------------------------------------------------------------------- optimizers
def get_optimizer_state_dict(
    model: Module,
    optimizers: Optimizers,
    *,
    submodules: Any = None,
    options: StateDictOptions | None = None,
) -> State:
    """Return the state of optimizers by the names of the parameters.

    State that the first step would make is there already, so that ``load`` can fill it.

    Returns:
        ``{"state": {name: {...}}, "param_groups": [...]}``, with names in the groups as well.

    Ranks: all, where ranks share the state.
    """
    options = _checked("get_optimizer_state_dict", submodules, options)
    found: State = {"state": {}, "param_groups": []}
    for optimizer in _list(optimizers):
        holding = holding_of(optimizer)
        each = named_state(model, optimizer, _filled_rows(optimizer, holding))
        found["state"] |= each["state"]
        found["param_groups"] += each["param_groups"]
    if options.full_state_dict:
        found["state"] = _wholes(found["state"], group_of(unwrapped(model)), options)
        if _only_rank_0(options) and not found["state"]:
            found["param_groups"] = []
    return _flattened(found) if options.flatten_optimizer_state_dict else found


def named_state(model: Module, optimizer: Optimizer, rows: Rows) -> State:
    """Return the state of an optimizer, of which this rank has ``rows``, by names."""
    keys, shapes = keys_of(names_of(model), optimizer), shapes_of(optimizer)
    ranges = holding_of(optimizer).ranges
    state = {
        keys[number]: {
            name: _state_leaf(value, shapes[number], ranges[number])
            for name, value in sorted(row.items())
        }
        for number, row in sorted(rows.items())
    }
    return {"state": state, "param_groups": _named_groups(groups_of(optimizer), keys)}


def set_optimizer_state_dict(
    model: Module,
    optimizers: Optimizers,
    optim_state_dict: State,
    *,
    options: StateDictOptions | None = None,
) -> None:
    """Take the state of optimizers, whole or in parts, by the names of the parameters.

    Raises:
        CheckpointError: a group has other parameters, or sizes differ; nothing is changed.

    Ranks: all.
    """
    _ready_optimizers(model, optimizers, optim_state_dict, options or StateDictOptions())()


def _ready_optimizers(
    model: Module, optimizers: Optimizers, state: State, options: StateDictOptions
) -> Callable[[], None]:
    """Return what gives optimizers their state."""
    given, names = _from_rank_0(state, unwrapped(model), options), names_of(model)
    if "param_groups" not in given:
        given = _nested(given, names)
    groups = list(given["param_groups"])
    todo: list[tuple[Holding, list[Any], dict[int, dict[str, HostArray]]]] = []
    for optimizer in _list(optimizers):
        keys, holding, shapes = (
            keys_of(names, optimizer),
            holding_of(optimizer),
            shapes_of(optimizer),
        )
        count = len(optimizer.param_groups)
        about, groups = numbered_groups(groups[:count], keys, optimizer), groups[count:]
        rows = {
            number: {
                name: _row_part(f"{keys[number]}.{name}", value, shapes[number], within)
                for name, value in given["state"].get(keys[number], {}).items()
            }
            for number, within in holding.ranges.items()
        }
        todo.append((holding, about, {n: row for n, row in rows.items() if row}))

    def change() -> None:
        for holding, about, kept in todo:
            holding.take(about, kept)

    return change


def get_state_dict(
    model: Module,
    optimizers: Optimizers,
    *,
    submodules: Any = None,
    options: StateDictOptions | None = None,
) -> tuple[State, State]:
    """Return the states of a model and of its optimizers, which may be an empty list."""
    own = get_model_state_dict(model, submodules=submodules, options=options)
    theirs = get_optimizer_state_dict(model, optimizers, submodules=submodules, options=options)
    return own, theirs


def set_state_dict(
    model: Module,
    optimizers: Optimizers,
    *,
    model_state_dict: State,
    optim_state_dict: State,
    options: StateDictOptions | None = None,
) -> IncompatibleKeys:
    """Take the states of a model and of its optimizers; nothing is changed if one does not fit."""
    options = options or StateDictOptions()
    found, change_model = _ready_model(model, model_state_dict, options)
    change_optimizers = _ready_optimizers(model, optimizers, optim_state_dict, options)
    change_model()
    change_optimizers()
    return found


def keys_of(names: Mapping[int, str], optimizer: Optimizer) -> list[str]:
    """Return the names of an optimizer's parameters, by their numbers."""
    try:
        return [names[id(p)] for p in params_of(optimizer)]
    except KeyError:
        raise ArgumentError(
            "get_optimizer_state_dict(): the optimizer has parameters that the model does not"
        ) from None


def shapes_of(optimizer: Optimizer) -> list[tuple[int, ...]]:
    """Return the shapes of whole parameters, by their numbers."""
    params = params_of(optimizer)
    shapes = [tuple(p._shape) for p in params]
    for number, (spread, place) in parts_of(params).items():
        shapes[number] = tuple(spread.shapes[place])
    return shapes


def numbered_groups(
    groups: list[Any], keys: list[str], optimizer: Optimizer
) -> list[dict[str, Any]]:
    """Return options of groups with numbers of parameters instead of names.

    Raises:
        CheckpointError: they are not the groups of ``optimizer``.
    """
    numbers = {key: number for number, key in enumerate(keys)}
    found = []
    for place, own in enumerate(groups_of(optimizer)):
        given = groups[place] if place < len(groups) else {}
        named = [numbers.get(str(name)) for name in given.get("params", ())]
        if sorted(map(str, named)) != sorted(map(str, own["params"])):
            raise CheckpointError(
                f"group {place} of the optimizer has other parameters there; load it into the "
                "optimizer it was saved from"
            )
        rest = {k: v for k, v in given.items() if k not in ("params", "param_names")}
        kept = {"param_names": own["param_names"]} if "param_names" in own else {}
        found.append({**rest, **kept, "params": own["params"]})
    return found


def _list(optimizers: Optimizers) -> list[Optimizer]:
    return [optimizers] if isinstance(optimizers, Optimizer) else list(optimizers)


def _named_groups(groups: list[dict[str, Any]], keys: list[str]) -> list[dict[str, Any]]:
    return [
        {
            **{k: v for k, v in g.items() if k != "param_names"},
            "params": [keys[n] for n in g["params"]],
        }
        for g in groups
    ]


def _filled_rows(optimizer: Optimizer, holding: Holding) -> dict[int, dict[str, HostArray]]:
    """Return the state of this rank, with that which the first step would make."""
    rows = {number: dict(row) for number, row in holding.rows().items()}
    rule = optimizer._inner if isinstance(optimizer, ZeroRedundancyOptimizer) else optimizer
    assert rule is not None
    ranges, params = holding.ranges, params_of(optimizer)
    number = 0
    for group in optimizer.param_groups:
        options = {k: v for k, v in group.items() if k != "params"}
        for _ in group["params"]:
            if number in ranges and number not in rows and params[number].requires_grad:
                rows[number] = _first_state(rule, options, params[number], ranges[number])
            number += 1
    return {number: row for number, row in rows.items() if row}


def _first_state(
    rule: Optimizer, options: dict[str, Any], p: Tensor, within: slice
) -> dict[str, HostArray]:
    if rule._update is None:
        return {}
    size = within.stop - within.start
    row = {name: scalar(value).array for name, value in rule._numbers(options).items()}
    kind = p.array.dtype
    for name, value in rule._slots(options).items():
        both = complex(value, value) if value and kind.kind == "c" else value
        row[name] = np.full(size, both, kind)
    return row


def _state_leaf(value: HostArray, shape: tuple[int, ...], within: slice) -> Leaf:
    if not value.ndim:
        return wrap(value)
    if value.size == math.prod(shape):
        return wrap(value.reshape(shape))
    return Shard(wrap(value), shape, within.start)


# ---------------------------------------------------------------------- parts and wholes
def _part_for(name: str, target: Leaf, given: Any) -> HostArray:
    """Return the values that a tensor gets, as long as it is."""
    shape = target.shape if isinstance(target, Shard) else tuple(target.array.shape)
    start, stop = (target.start, target.stop) if isinstance(target, Shard) else (0, -1)
    stop = math.prod(shape) if stop < 0 else stop
    return _row_part(name, given, shape, slice(start, stop))


def _row_part(name: str, given: Any, shape: tuple[int, ...], within: slice) -> HostArray:
    if isinstance(given, Shard):
        if given.shape == tuple(shape) and given.start <= within.start <= within.stop <= given.stop:
            flat: HostArray = to_device(given.tensor.array, CPU).reshape(-1)
            return flat[within.start - given.start : within.stop - given.start]
        raise CheckpointError(
            f"{name}: {given} does not have elements {within.start} to {within.stop}"
        )
    if not isinstance(given, Tensor):
        return np.asarray(given)
    array: HostArray = to_device(given.array, CPU)
    if not array.ndim and shape:
        return array.copy()  # a number that is kept once
    if array.size != math.prod(shape):
        raise CheckpointError(f"{name}: is {list(array.shape)} there and {list(shape)} here")
    return array.reshape(-1)[within] if array.ndim else array.copy()


def _from_rank_0(state: State, model: Module, options: StateDictOptions) -> State:
    """Return a state, that of rank 0 if so asked for."""
    group = group_of(model)
    if not options.broadcast_from_rank0 or group is None or group.size == 1:
        return state
    told = group.channel("control").broadcast_object(_each(state, _as_arrays))
    found: State = _each(told, lambda v: wrap(v.array) if isinstance(v, _Travelling) else v)
    return found


def _moved(value: Any, options: StateDictOptions) -> Any:
    if not options.cpu_offload:
        return value
    if isinstance(value, Shard):
        return Shard(value.tensor.cpu(), value.shape, value.start)
    return value.cpu() if isinstance(value, Tensor) else value


def _only_rank_0(options: StateDictOptions) -> bool:
    return options.full_state_dict and options.cpu_offload


def _wholes(state: State, group: ProcessGroup | None, options: StateDictOptions) -> State:
    """Return a state with whole tensors, on all ranks or on rank 0 alone."""
    if group is None or group.size == 1:
        alone: State = _each(state, _whole_alone)
        return alone
    told = group.channel("control").all_gather_object(_each(state, _as_arrays))
    if _only_rank_0(options) and group.rank:
        return {}
    merged: State = _merged(told)
    return merged


def _whole_alone(value: Any) -> Any:
    return wrap(value.tensor.array.reshape(value.shape)) if isinstance(value, Shard) else value


def _each(state: Any, act: Any) -> Any:
    return {k: _each(v, act) for k, v in state.items()} if isinstance(state, dict) else act(state)


def _as_arrays(value: Any) -> Any:
    """Return a tensor or a part as what travels between ranks."""
    if isinstance(value, Shard):
        return _Travelling(to_device(value.tensor.array, CPU).reshape(-1), value.shape, value.start)
    if isinstance(value, Tensor):
        return _Travelling(to_device(value.array, CPU), tuple(value.array.shape), -1)
    return value


@dataclass(frozen=True, slots=True)
class _Travelling:
    array: HostArray
    shape: tuple[int, ...]
    start: int  # -1: whole


def _merged(told: list[Any]) -> Any:
    """Return one state with everything that the ranks have."""
    if isinstance(told[0], dict):
        keys = dict.fromkeys(key for state in told for key in state)
        return {key: _merged([state[key] for state in told if key in state]) for key in keys}
    if not isinstance(told[0], _Travelling):
        return told[0]
    first = told[0]
    if first.start < 0:
        return wrap(first.array)
    flat = np.empty(math.prod(first.shape), first.array.dtype)
    for part in told:
        flat[part.start : part.start + part.array.size] = part.array
    return wrap(flat.reshape(first.shape))


# ---------------------------------------------------------------------- flat names
def _flattened(state: State) -> State:
    """Return the state of optimizers with one name for each value."""
    flat: State = {}
    for name, row in state["state"].items():
        flat |= {f"state.{name}.{key}": value for key, value in row.items()}
    for group in state["param_groups"]:
        for name in group["params"]:
            for key, value in group.items():
                if key != "params":
                    flat[f"param_groups.{name}.{key}"] = value
    return flat


def _nested(flat: State, names: Mapping[int, str]) -> State:
    """Return what `_flattened` got, with parameters of like options in one group."""
    rows: dict[str, State] = {}
    options: dict[str, State] = {}
    for key, value in flat.items():
        kind, _, rest = key.partition(".")
        name, _, last = rest.rpartition(".")
        (rows if kind == "state" else options).setdefault(name, {})[last] = value
    known = [name for name in names.values() if name in options]
    groups: list[State] = []
    for name in dict.fromkeys(reversed(known)):
        if groups and {k: v for k, v in groups[-1].items() if k != "params"} == options[name]:
            groups[-1]["params"].append(name)
        else:
            groups.append({**options[name], "params": [name]})
    return {"state": rows, "param_groups": groups}


def _checked(call: str, submodules: Any, options: StateDictOptions | None) -> StateDictOptions:
    found = options or StateDictOptions()
    if submodules is not None or not found.keep_submodule_prefixes:
        raise ArgumentError(
            f"{call}(submodules, keep_submodule_prefixes): states are of the whole model; pass the "
            "submodule as the model"
        )
    return found


def _plain(options: StateDictOptions) -> StateDictOptions:
    return StateDictOptions(ignore_frozen_params=options.ignore_frozen_params)


__all__ = [
    "StateDictOptions",
    "get_model_state_dict",
    "get_optimizer_state_dict",
    "get_state_dict",
    "set_model_state_dict",
    "set_optimizer_state_dict",
    "set_state_dict",
]
