"""A second copy of every rank's parts of parameters and of their state, on another rank.

Note [Copies of parts]
    As in `distgrad.optim.mirror`, rank r keeps what the rank d before it has, and makes the same
    updates from the same gradients. In each step every rank sends the means of its part, 4 n/P
    bytes for n float32 elements, to the rank with the copy. The copy takes as much memory as the
    parts with their state and gradients (16 n/P bytes for AdamW), and one more update of n/P
    elements. Nothing is sent to gather or to reduce that is not sent without copies.

Note [Laid out anew]
    When ranks are lost, each of the others knows who has what: the owners' parts are theirs, those
    of a lost rank are with its copy. The elements, with their state, go to the new owners, and to
    the ranks with the new copies. A rank that has got both waits for the others at a barrier, and
    changes its layout behind it. If one more rank ends meanwhile, some may have come through the
    barrier, and others not; but then all have what they need, so the others change theirs at the
    beginning of the next `rebuild`. If nobody has come through, all go on from the layout before.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from distgrad.autograd.mode import no_grad
from distgrad.backend.device import CPU, device_of, to_device
from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.redistribute import Ranges, collect
from distgrad.distributed.spread import Spread
from distgrad.distributed.work import HostArray
from distgrad.errors import ArgumentError, DistributedError
from distgrad.nn.parallel.fsdp.module import FSDPModule, bind_batch_norms, conductor_of
from distgrad.optim.mirror import distance, holders, swap
from distgrad.optim.optimizer import Optimizer
from distgrad.tensor import Tensor, wrap

Rows: TypeAlias = dict[int, dict[str, HostArray]]
"""Values and state by the parameters' numbers."""

_VALUE = "value of the parameter"
_PART = "part of the parameters and of the optimizer's state"


class Layout(NamedTuple):
    """What a rank has among others.

    Args:
        spreads: which elements are whose.
        mine: those of this rank.
        theirs: those of which it has a copy; None if there is nobody else.
    """

    spreads: list[Spread]
    mine: Rows
    theirs: Rows | None


class SpareParts:
    """Lets a fully sharded model, and its optimizer, go on without a rank that was lost.

    Call `refresh` before the first step, `prepare` in each step before the ranks vote for it, and
    `rebuild` once `distgrad.distributed.shrink` has returned.

    Args:
        model: what `fully_shard` returned for the outermost module.
        optimizer: of its parameters; its ``step`` updates the copy too.

    Raises:
        ArgumentError: the optimizer has a ``step`` of its own.

    Ranks: all make it, and call its methods.
    Cost: see Note [Copies of parts].

    Example:
        >>> import distgrad as dg
        >>> from distgrad.distributed.fsdp import fully_shard
        >>> model = fully_shard(dg.nn.Linear(2, 1))
        >>> optimizer = dg.optim.SGD(model.parameters(), lr=0.1)
        >>> spare = SpareParts(model, optimizer)
        >>> spare.refresh()  # one rank alone has nobody to keep a copy
        >>> model(dg.ones(1, 2)).sum().backward()
        >>> spare.prepare()
        >>> optimizer.step()
    """

    def __init__(self, model: FSDPModule, optimizer: Optimizer) -> None:
        """Follow the steps of the optimizer."""
        if type(optimizer).step is not Optimizer.step:
            raise ArgumentError(
                f"SpareParts({type(optimizer).__name__}): has a step() of its own, which the copy "
                "cannot follow; take an optimizer with an update rule, such as AdamW"
            )
        self._model, self._optimizer = model, optimizer
        self._conductor = conductor_of(model)
        self._copy: Copy | None = None
        self._made = self._prepared = False
        self._moves = 0  # of the layout
        self._next: Layout | None = None
        optimizer.register_step_pre_hook(self._check)
        optimizer.register_step_post_hook(self._follow)

    @property
    def _group(self) -> ProcessGroup:
        return self._conductor.group

    @property
    def _spreads(self) -> list[Spread]:
        return [unit.spread for unit in self._conductor.units]

    @property
    def _params(self) -> list[Tensor]:
        return [p for spread in self._spreads for p in spread.params]

    # ------------------------------------------------------------------ steps
    def refresh(self) -> None:
        """Copy values and state as they are: at the start, and after they were loaded.

        Ranks: a collective.
        """
        group, spreads = self._group, self._spreads
        ranges = [_ranges(spreads, rank) for rank in range(group.size)]
        mine = self._rows(ranges[group.rank])
        self._made, self._copy = True, None
        if distance(group):
            sources, control = list(enumerate(ranges)), group.channel("control")
            want = [ranges[_owner(group, rank)] for rank in range(group.size)]
            self._keep(collect(control, sources, want, {group.rank: mine}))

    def prepare(self) -> None:
        """Do all of a step that needs other ranks, once gradients are as ``step`` shall find them.

        Ranks: a collective, between backward and ``step``.
        """
        if not self._made:
            raise DistributedError("prepare(): there are no copies yet; call refresh() before")
        self._prepared = True
        if self._copy is None:
            return
        params, ranges = self._params, _ranges(self._spreads, self._group.rank)
        mine = [
            to_device(grad.array, CPU).reshape(-1)
            for number in ranges
            if (grad := params[number].grad) is not None
        ]
        theirs = self._copy.gradients([p.grad is not None for p in params])
        swap(self._group.channel("control"), self._copy.owner, mine, theirs)

    def _check(self, *_: Any) -> None:
        if self._made and not self._prepared:
            raise DistributedError(
                "step(): the copies of this rank's parts on another rank would be left behind; "
                "call prepare() of SpareParts between backward and step()"
            )

    def _follow(self, *_: Any) -> None:
        """Make the update of the copy's owner."""
        self._prepared = False
        if self._copy is not None:
            self._copy.step(self._optimizer)

    # ------------------------------------------------------------------ loss of ranks
    def rebuild(self, group: ProcessGroup, reductions: int | None = None) -> None:
        """Go on with the ranks that are left: share parameters and state out among them.

        The gradients of a backward that did not come to its end are dropped; do it anew. With as
        many ``shards`` as before the next ones have the bits that they would have had.

        Args:
            group: these ranks.
            reductions: how many backwards count as done, by which random numbers of forward go;
                default is the least number that a rank has come to.

        Raises:
            JobLost: a rank and the one with its copy are lost.
            RankLost: one more has ended; call `distgrad.distributed.shrink` and this again.
            DistributedError: a copy is not what it is a copy of.

        Ranks: all that are left, once all have made the same updates.
        """
        control = group.channel("control")
        if self._moves < max(control.all_gather_object(self._moves)):
            assert self._next is not None
            self._move(self._next)
        self._next = self._shared_out(group)
        control.barrier()
        self._move(self._next)
        self._conductor.rebuild(group, reductions)
        bind_batch_norms(self._model, self._conductor)

    def _shared_out(self, group: ProcessGroup) -> Layout:
        """Return what this rank has among these ranks."""
        former, control = self._group, group.channel("control")
        step = distance(former) if self._made else 0
        having = holders(former.origins, step, group.origins, _PART, "refresh() of SpareParts")
        old = [_ranges(self._spreads, rank) for rank in range(former.size)]
        sets = {former.rank: self._rows(old[former.rank])}
        if self._copy is not None:
            sets[self._copy.owner] = self._copy.rows()
        _compare(control, sets)
        held = {n: rows for n, rows in sets.items() if having[n] == group.rank}
        sources = list(zip(having, old, strict=True))
        spreads = [spread.over(group) for spread in self._spreads]
        new = [_ranges(spreads, rank) for rank in range(group.size)]
        mine, theirs = collect(control, sources, new, held), None
        if distance(group):
            want = [new[_owner(group, rank)] for rank in range(group.size)]
            theirs = collect(control, sources, want, held)
        return Layout(spreads, mine, theirs)

    def _move(self, to: Layout) -> None:
        """Have these elements from now on; needs no other rank."""
        spreads, mine = to.spreads, to.mine
        for module in self._model.modules():
            if isinstance(module, FSDPModule):
                module._fsdp.group = spreads[0].group
        first = 0
        for unit, spread in zip(self._conductor.units, spreads, strict=True):
            numbers = range(first, first + len(spread.params))
            pieces = [mine[number][_VALUE] for number in numbers if number in mine]
            local = np.concatenate([np.empty(0, unit.local.dtype), *pieces])
            unit.move(spread, to_device(local, device_of(unit.local)))
            first = numbers.stop
        state = self._optimizer.state
        for number, p in enumerate(self._params):
            if p in state:
                row = mine.get(number, {})
                state[p] = {k: _state(p, a) for k, a in row.items() if k != _VALUE}
        self._conductor.group = spreads[0].group
        self._moves, self._next = self._moves + 1, None
        self._copy, self._prepared = None, False
        if to.theirs is not None:
            self._keep(to.theirs)

    # ------------------------------------------------------------------ rows
    def _rows(self, ranges: Ranges) -> Rows:
        """Return values and state of this rank's elements."""
        params, state = self._params, self._optimizer.state
        return {number: _row(params[number], state.get(params[number], {})) for number in ranges}

    def _keep(self, rows: Rows) -> None:
        group = self._group
        self._copy = Copy(_owner(group, group.rank), rows, self._params, self._optimizer)


class Copy:
    """The elements that another rank has, updated here as there.

    Args:
        owner: the rank.
        rows: its values and state; taken over.
        params: all parameters, by number.
        optimizer: of this rank.
    """

    def __init__(
        self, owner: int, rows: Rows, params: Sequence[Tensor], optimizer: Optimizer
    ) -> None:
        self.owner = owner
        self._numbers = {id(p): number for number, p in enumerate(params)}
        self._leaves: dict[int, Tensor] = {}
        self._grads: dict[int, HostArray] = {}
        self._there: Sequence[bool] = ()
        for number, row in rows.items():
            leaf = wrap(to_device(row[_VALUE], device_of(params[number].array)))
            self._leaves[number] = leaf.requires_grad_(params[number].requires_grad)
        self._inner = _same_kind(optimizer, list(self._groups(optimizer)))
        for number, row in rows.items():
            if len(row) > 1:
                leaf = self._leaves[number]
                state = {k: _state(leaf, a) for k, a in row.items() if k != _VALUE}
                self._inner.state[leaf] = state

    def _groups(self, optimizer: Optimizer) -> Iterator[dict[str, Any]]:
        """Give the groups of the optimizer, with the leaves in place of the parameters."""
        for group in optimizer.param_groups:
            numbers = [self._numbers.get(id(p)) for p in group["params"]]
            leaves = [self._leaves[n] for n in numbers if n in self._leaves]
            yield {**group, "params": leaves}

    def gradients(self, there: Sequence[bool]) -> list[HostArray]:
        """Return where the gradients of the elements belong, of parameters that have some.

        Args:
            there: for each number whether it has; alike on all ranks.
        """
        found = []
        for number, leaf in self._leaves.items():
            if not there[number]:
                leaf.grad = None
                continue
            if number not in self._grads:
                self._grads[number] = np.empty(leaf.array.size, leaf.array.dtype)
            found.append(self._grads[number])
        self._there = there
        return found

    def step(self, optimizer: Optimizer) -> None:
        """Make the update, with the options that the optimizer has now."""
        for number, grad in self._grads.items():
            if self._there[number]:
                leaf = self._leaves[number]
                leaf.grad = wrap(to_device(grad, device_of(leaf.array)))
        self._inner.found_inf = optimizer.found_inf
        with no_grad():
            groups = zip(optimizer.param_groups, self._inner.param_groups, strict=True)
            for index, (group, mine) in enumerate(groups):
                mine.update({k: v for k, v in group.items() if k != "params"})
                self._inner._step_group(index, mine)

    def rows(self) -> Rows:
        """Return values and state."""
        state = self._inner.state
        return {n: _row(leaf, state.get(leaf, {})) for n, leaf in self._leaves.items()}


def _same_kind(optimizer: Optimizer, groups: list[dict[str, Any]]) -> Optimizer:
    """Return an optimizer without state, of the class of another, for these groups."""
    made = object.__new__(type(optimizer))
    own = optimizer.__getstate__()
    made.__setstate__({**own, "state": defaultdict(dict), "param_groups": groups})
    return made


def _owner(group: ProcessGroup, rank: int) -> int:
    """Return the rank whose copy ``rank`` keeps."""
    return (rank - distance(group)) % group.size


def _ranges(spreads: Sequence[Spread], rank: int) -> dict[int, slice]:
    """Return which elements of which parameter a rank has; numbers go through all spreads."""
    places = [(spread, place) for spread in spreads for place in range(len(spread.params))]
    within = [spread.within(place, rank) for spread, place in places]
    return {number: part for number, part in enumerate(within) if part.start < part.stop}


def _row(p: Tensor, state: Mapping[str, Tensor]) -> dict[str, HostArray]:
    arrays = {_VALUE: p.array, **{name: t.array for name, t in state.items()}}
    return {
        k: a.reshape(-1) if a.ndim else a for k, v in arrays.items() for a in (to_device(v, CPU),)
    }


def _state(p: Tensor, array: HostArray) -> Tensor:
    return wrap(array if not array.ndim else to_device(array, device_of(p.array)))


def _compare(group: ProcessGroup, sets: Mapping[int, Rows]) -> None:
    """Return if what is there twice is the same.

    Ranks: a collective.
    """
    found: dict[int, set[bytes]] = {}
    for digests in group.all_gather_object({n: _digest(rows) for n, rows in sets.items()}):
        for former, digest in digests.items():
            found.setdefault(former, set()).add(digest)
    odd = [former for former, digests in found.items() if len(digests) > 1]
    if odd:
        raise DistributedError(
            f"rebuild(): the copy of what rank {odd[0]} had is not the same; change parameters and "
            "state by the optimizer's step only, and call refresh() of SpareParts after other "
            "changes"
        )


def _digest(rows: Rows) -> bytes:
    total = hashlib.blake2b(digest_size=16)
    for number in sorted(rows):
        for name, array in sorted(rows[number].items()):
            total.update(f"{number} {name};".encode())
            total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return total.digest()
