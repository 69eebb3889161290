"""The mean of parameters over ranks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from distgrad.backend.device import CPU, device_of, to_device
from distgrad.distributed.default import get_group
from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.reduction import Exchange, Reduction
from distgrad.distributed.tree import Tree
from distgrad.errors import ArgumentTypeError, describe
from distgrad.tensor import Tensor, shared_of

_AT_ONCE = 25 << 20  # bytes that are averaged together


def average_parameters(params: Iterable[Tensor], process_group: ProcessGroup | None = None) -> None:
    """Replace parameters by their means over the ranks, the same bits on all of them.

    Ranks: all of the group, with parameters of the same shapes in the same order.
    Cost: 2 (P-1)/P of their bytes.
    """
    group = get_group() if process_group is None else process_group
    if group.size == 1:
        return
    for some in _in_parts(params):
        hosts = [to_device(p.array, CPU).reshape(-1) for p in some]
        flat = np.concatenate(hosts)
        _add(group, flat)
        with np.errstate(all="ignore"):  # inf and nan are results here
            flat /= flat.dtype.type(group.size)
        at = 0
        for p in some:
            mean = flat[at : at + p.array.size].reshape(p.array.shape)
            p.array[...] = to_device(mean, device_of(p.array))
            shared_of(p).bump()
            at += p.array.size


def _in_parts(params: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Yield parameters of one dtype, as many as are averaged at once."""
    open_: dict[Any, list[Tensor]] = {}
    for p in params:
        some = open_.setdefault(p.array.dtype, [])
        some.append(p)
        if sum(q.array.nbytes for q in some) >= _AT_ONCE:
            yield open_.pop(p.array.dtype)
    yield from open_.values()


def _add(group: ProcessGroup, flat: Any) -> None:
    """Replace ``flat`` by its sum over the ranks, added in the order of a tree."""
    parts = Tree(group.size, group.size).parts
    control = group.channel("control")
    Reduction(Exchange(control, [flat], parts, np.add, 0, "average_parameters()")).wait()


def get_params_to_average(params: Iterable[Any]) -> list[Tensor]:
    """Return the parameters, of a model or of groups of an optimizer, that require a gradient.

    Differs from PyTorch: also those without a ``grad``, which ranks may disagree about.
    """
    found: list[Tensor] = []
    for given in params:
        members = given["params"] if isinstance(given, Mapping) else [given]
        for p in members:
            if not isinstance(p, Tensor):
                raise ArgumentTypeError(
                    f"get_params_to_average({describe(p)}): takes parameters, or the param_groups "
                    "of an optimizer"
                )
            if p.requires_grad:
                found.append(p)
    return found


def average_parameters_or_parameter_groups(
    params: Iterable[Any], process_group: ProcessGroup | None = None
) -> None:
    """Replace the parameters of a model, or of an optimizer's groups, by their means."""
    average_parameters(get_params_to_average(params), process_group)
