"""What one rank has of a model, or of an optimizer's state: what `save_shards` writes and reads.

Everything is numbered, by the order of parameters. A holding says which elements of which number
this rank has, or wants, gives the arrays for them, and takes others in their place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

from distgrad.backend.device import CPU, device_of, to_device
from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.redistribute import Ranges
from distgrad.distributed.spread import whole_size
from distgrad.distributed.work import HostArray
from distgrad.nn.module import Module
from distgrad.optim.optimizer import Optimizer
from distgrad.optim.parts import group_of, params_of, ranges_of, state_of
from distgrad.optim.zero import ZeroRedundancyOptimizer
from distgrad.tensor import Tensor, shared_of, wrap

Rows: TypeAlias = Mapping[int, Mapping[str, HostArray]]


class Holding(Protocol):
    """What this rank has."""

    @property
    def group(self) -> ProcessGroup:
        """The ranks that have the rest."""

    @property
    def sizes(self) -> list[int]:
        """How many elements each number has on all ranks together."""

    @property
    def ranges(self) -> Ranges:
        """Which elements of each number this rank has."""

    def rows(self) -> Rows:
        """Return the arrays for these elements."""

    def about(self) -> list[dict[str, Any]]:
        """Return what is not in arrays."""

    def take(self, about: list[dict[str, Any]], rows: Rows) -> None:
        """Go on with these."""


def holding_of(owner: Optimizer | Module) -> Holding:
    """Return what this rank has of a model or of an optimizer."""
    if isinstance(owner, Module):
        return ModelHolding(owner)
    if isinstance(owner, ZeroRedundancyOptimizer):
        return ZeroHolding(owner)
    return StateHolding(owner)


class StateHolding:
    """The state of an optimizer over whole parameters, or over this rank's parts."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer, self._params = optimizer, params_of(optimizer)
        whole = group_of(self._params)
        self.group = whole.channel("control")
        self.sizes = [whole_size(p) for p in self._params]
        self.ranges: Ranges = ranges_of(self._params, whole.rank)

    def rows(self) -> Rows:
        """Return the state."""
        return state_of(self._optimizer, self.ranges)

    def about(self) -> list[dict[str, Any]]:
        """Return the options of the groups."""
        return groups_of(self._optimizer)

    def take(self, about: list[dict[str, Any]], rows: Rows) -> None:
        """Load options and state."""
        state = {
            n: {k: wrap(a.reshape(self._params[n]._shape) if a.ndim else a) for k, a in row.items()}
            for n, row in rows.items()
        }
        self._optimizer.load_state_dict({"state": state, "param_groups": about})


class ZeroHolding:
    """The state that a rank has in a `ZeroRedundancyOptimizer`."""

    def __init__(self, optimizer: ZeroRedundancyOptimizer) -> None:
        self._optimizer = optimizer
        self.group = optimizer.process_group.channel("control")
        self.sizes = [p.array.size for p in params_of(optimizer)]

    @property
    def ranges(self) -> Ranges:
        """Which elements of each number this rank updates."""
        return self._optimizer.local_ranges()

    def rows(self) -> Rows:
        """Return the state."""
        return self._optimizer.local_state()

    def about(self) -> list[dict[str, Any]]:
        """Return the options of the groups."""
        return groups_of(self._optimizer)

    def take(self, about: list[dict[str, Any]], rows: Rows) -> None:
        """Load options and state."""
        self._optimizer.load_local_state(about, {n: dict(row) for n, row in rows.items()})


class ModelHolding:
    """The values of a model's parameters, of which a rank may have parts, and of its buffers."""

    def __init__(self, module: Module) -> None:
        own = {
            f"{path}.{name}" if path else name: tensor
            for path, part in module.named_modules()
            for name, tensor in part._own_state()
        }
        first = {id(tensor): name for name, tensor in reversed(own.items())}
        self._names = [name for name, tensor in own.items() if first[id(tensor)] == name]
        self._tensors: list[Tensor] = [own[name] for name in self._names]
        whole = group_of(self._tensors)
        self.group = whole.channel("control")
        self.sizes = [whole_size(t) for t in self._tensors]
        self.ranges: Ranges = ranges_of(self._tensors, whole.rank)

    def rows(self) -> Rows:
        """Return the values."""
        return {
            n: {"value": to_device(self._tensors[n].array, CPU).reshape(-1)} for n in self.ranges
        }

    def about(self) -> list[dict[str, Any]]:
        """Return the names."""
        return [{"params": [], "names": self._names}]

    def take(self, about: list[dict[str, Any]], rows: Rows) -> None:
        """Copy the values into parameters and buffers."""
        for number, row in rows.items():
            array = self._tensors[number].array
            array[...] = to_device(row["value"], device_of(array)).reshape(array.shape)
            shared_of(self._tensors[number]).bump()


def groups_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return the options of the groups as JSON can hold them."""
    first, groups = 0, []
    for group in optimizer.param_groups:
        numbers = list(range(first, first + len(group["params"])))
        first += len(numbers)
        plain = {k: v.item() if isinstance(v, Tensor) else v for k, v in group.items()}
        groups.append({**plain, "params": numbers})
    return groups
