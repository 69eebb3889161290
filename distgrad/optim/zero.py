"""ZeRO: each rank keeps the optimizer's state of a part of the parameters, and updates it.

Note [Pieces]
    The parameters lie in flat arrays: the buckets of DistributedDataParallel, or arrays made here.
    Of each, rank r owns the r-th of P slices. For every parameter that reaches into it, a leaf is
    made of the part that does, a piece, and an optimizer of the class asked for runs over the
    pieces. Update rules work element by element, so the bits are those of whole parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeAlias

import numpy as np

from distgrad.autograd.mode import enable_grad, no_grad
from distgrad.backend import capture as captures
from distgrad.backend.device import CPU, device, device_of, to_device
from distgrad.distributed import get_group, is_initialized, local_group
from distgrad.distributed.algorithms.join import Join, Joinable, JoinHook
from distgrad.distributed.bucket import Flat
from distgrad.distributed.gathering import Gathering
from distgrad.distributed.group import ProcessGroup, check_same
from distgrad.distributed.redistribute import Ranges, owned_ranges, redistribute
from distgrad.distributed.reducer import Reducer, reducer_of
from distgrad.distributed.sharded import ShardedReducer
from distgrad.distributed.spread import spread_of
from distgrad.distributed.work import HostArray
from distgrad.errors import ArgumentError, ArgumentTypeError, DistributedError, RankLost
from distgrad.optim.mirror import (
    Mirror,
    Moved,
    Possession,
    Rescue,
    distance,
    holders,
    possession,
    state_of,
)
from distgrad.optim.optimizer import Closure, Group, Optimizer, Params
from distgrad.optim.runs import Plan
from distgrad.tensor import Tensor, shared_of, wrap

Held: TypeAlias = dict[int, dict[str, HostArray]]  # state by the parameters' numbers
_OWN = ("params", "param_names")  # of a group, and no options


class Piece:
    """The part of a parameter that this rank updates.

    Args:
        param: the parameter.
        number: its number in the optimizer.
        flat: where it lies.
        where: the part, as a slice of ``flat``.
        start: of the part, in the parameter.
    """

    __slots__ = ("_source", "flat", "leaf", "param", "where", "within")

    def __init__(self, param: Tensor, flat: Flat, where: slice, start: int) -> None:
        self.param, self.flat, self.where = param, flat, where
        self.within = slice(start, start + where.stop - where.start)
        self.leaf = wrap(flat.values[where])
        self.leaf.requires_grad_(param.requires_grad)
        self._source: Any = None

    def take_gradient(self, mirror: Mirror | None = None) -> None:
        """Let the leaf's gradient be this part of the parameter's.

        Args:
            mirror: has the piece, if it is another rank's.
        """
        reducer = reducer_of(self.param)
        if isinstance(reducer, ShardedReducer) and self.param.grad is None:
            if mirror is None:
                array = reducer.piece(self.param)
            else:
                array = mirror.lent(self, reducer.has_gradient(self.param))
            if array is None:
                self.leaf.grad = self._source = None
            elif array.base is not self._source:
                self._source, self.leaf.grad = array.base, wrap(array)
            return
        grad = self.param.grad
        if grad is None:
            self.leaf.grad = self._source = None
        elif grad.array is not self._source or self.leaf.grad is None:
            self._source = grad.array
            self.leaf.grad = wrap(grad.array.reshape(-1)[self.within])


class Layout:
    """The flat arrays of some parameters, and who owns what.

    Args:
        params: those of the optimizer, in order.
        group: the ranks.
        own: flat arrays that the optimizer made for parameters without a reducer; added to.
    """

    def __init__(self, params: Sequence[Tensor], group: ProcessGroup, own: list[Flat]) -> None:
        self.group = group
        self.numbers = {id(p): number for number, p in enumerate(params)}
        self.reducers: dict[int, Reducer] = {}
        loose = []
        for p in params:
            reducer = reducer_of(p)
            if reducer is not None:
                self.reducers[id(reducer)] = reducer
            elif p.requires_grad:
                loose.append(p)
        self.versions = [reducer.version for reducer in self.reducers.values()]
        self.own = own
        self._make_own(loose)
        buckets = [b for reducer in self.reducers.values() for b in reducer.buckets]
        self.flats: list[Flat] = [
            flat for flat in (*buckets, *own) if any(id(p) in self.numbers for p in flat.params)
        ]
        self.ranges = [owned_ranges(self.flats, self.numbers, r) for r in range(group.size)]

    def _make_own(self, loose: Iterable[Tensor]) -> None:
        """Lay out parameters that have no reducer and lie in no flat array yet."""
        done = {id(p) for flat in self.own for p in flat.params}
        kinds: dict[Any, list[Tensor]] = {}
        for p in loose:
            if id(p) not in done:
                kinds.setdefault((str(p.array.dtype), str(p.device)), []).append(p)
        for params in kinds.values():
            names = [f"parameter {self.numbers[id(p)]}" for p in params]
            self.own.append(Flat(len(self.own), params, names, self.group.size))

    def pieces(self, rank: int) -> dict[int, Piece]:
        """Return the pieces of a rank by the parameters' numbers."""
        found, mine = {}, self.ranges[rank]
        for flat in self.flats:
            for p, span in zip(flat.params, flat.spans, strict=True):
                number = self.numbers.get(id(p), -1)
                if number in mine:
                    within = mine[number]
                    where = slice(span.start + within.start, span.start + within.stop)
                    found[number] = Piece(p, flat, where, within.start)
        return found

    @property
    def current(self) -> bool:
        """True while the reducers have their buckets where they were."""
        return self.versions == [reducer.version for reducer in self.reducers.values()]


class ZeroRedundancyOptimizer(Optimizer, Joinable):
    """Shares the work and the memory of an optimizer among the ranks (Rajbhandari et al. 2020).

    Each rank keeps the state of 1/P of the elements, updates them, and gets the others from their
    owners. The weights have the bits that ``optimizer_class`` gives without it.

    Args:
        params: tensors, pairs of name and tensor, or dicts of groups; on all ranks the same. Their
            gradients are alike on all ranks, as DistributedDataParallel leaves them, or with its
            ``shard_gradients=True``, kept by their owners (ZeRO-2).
        optimizer_class: an optimizer of this package, or another with an update rule.
        process_group: the ranks; default is the group of DistributedDataParallel, or the default.
        parameters_as_bucket_view: accepted; parameters are views of flat arrays always.
        overlap_with_ddp: let ``step`` return while parameters of other ranks are on their way. The
            modules inside DistributedDataParallel wait for theirs before their forward and in
            ``state_dict``; whoever reads parameters elsewhere calls ``wait`` first.
        redundant: keep a copy of each rank's state on another rank, so that `rebuild` can go on
            without one that was lost; see Note [Copies] in `distgrad.optim.mirror`. Call `prepare`
            before the ranks vote for a step.
        **defaults: options of ``optimizer_class``.

    With uneven numbers of batches, ``model.join()`` or ``Join([model, optimizer])`` is the block
    around the loop.

    Ranks: all make it, and call ``step``, `consolidate_state_dict` and ``load_state_dict``.
    Cost: (P-1)/P of the parameters' bytes to each rank in each step.

    Example:
        >>> import distgrad as dg
        >>> model = dg.nn.Linear(2, 1)
        >>> optimizer = ZeroRedundancyOptimizer(model.parameters(), dg.optim.SGD, lr=0.1)
        >>> before = model.bias.item()
        >>> model(dg.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> round(model.bias.item() - before, 6)
        -0.1
    """

    def __init__(
        self,
        params: Params,
        optimizer_class: type[Optimizer],
        process_group: ProcessGroup | None = None,
        parameters_as_bucket_view: bool = False,
        overlap_with_ddp: bool = False,
        *,
        redundant: bool = False,
        **defaults: Any,
    ) -> None:
        """Lay out the parameters and take options; state is made by the first step."""
        _check_class(optimizer_class)
        self.optimizer_class, self.overlap_with_ddp = optimizer_class, overlap_with_ddp
        self._given, self.redundant = defaults, redundant
        self._mirror: Mirror | None = None
        self._inner: Optimizer | None = None
        self._own: list[Flat] = []
        self._moves = 0  # of the state
        self._arrived: Moved | None = None  # perhaps not yet for all
        self._moved: Moved | None = None  # for all, and not yet in pieces
        self._consolidated = False
        probe = optimizer_class([wrap(np.zeros(1, np.float32)).requires_grad_()], **defaults)
        super().__init__(params, probe.defaults)
        if any(spread_of(p) for p in self._params()):
            raise ArgumentError(
                "ZeroRedundancyOptimizer(): fully_shard has left each rank with parts of the "
                f"parameters, and so with parts of the state; use {optimizer_class.__name__} itself"
            )
        self.process_group = process_group or _group_of(self._params())
        self._gathering = Gathering(self.process_group.channel("control"), None)
        shapes = "; ".join(f"{p.array.dtype}{list(p.array.shape)}" for p in self._params())
        check_same(self.process_group, "parameters of the optimizer", shapes)
        self._build({})
        if overlap_with_ddp:
            self._guard()

    def _guard(self) -> None:
        """Let the modules of DistributedDataParallel wait for their parameters."""
        for reducer in self._layout.reducers.values():
            if reducer.gathering.guard is None:
                raise ArgumentError(
                    "ZeroRedundancyOptimizer(overlap_with_ddp=True): the parameters are in no "
                    "DistributedDataParallel, so nobody would wait for them; leave it False"
                )
            reducer.gathering.guard()

    _in_graphs = True

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    def add_param_group(self, param_group: Group) -> None:
        """Add parameters with options of their own.

        Args:
            param_group: a dict with "params" and any options that differ from the defaults.

        Ranks: all, with the same.
        """
        super().add_param_group(param_group)
        if self._inner is not None:
            self._lay_out_anew()

    # ------------------------------------------------------------------ pieces
    def _build(self, entries: Held, copies: Held | None = None) -> None:
        """Make the pieces and their optimizer, with the state of this rank's ranges.

        Args:
            entries: the state.
            copies: the state of the rank whose copy this one keeps; by default that rank sends it.
        """
        params = self._params()
        self._layout = Layout(params, self.process_group, self._own)
        for reducer in self._layout.reducers.values():
            if reducer.group.size != self.process_group.size:
                raise ArgumentError(
                    f"ZeroRedundancyOptimizer(): process_group has {self.process_group.size} ranks "
                    f"and that of DistributedDataParallel {reducer.group.size}; give both the same"
                )
        for p in params:
            if (its := reducer_of(p)) is not None:
                its.follow(p, self)
        group = self.process_group
        self.pieces, self._inner = self._made(group.rank, entries)
        if self.redundant and distance(group):
            owner, ranges = self._mirrored(group, group.rank), self._layout.ranges
            if copies is None:
                state = Rescue(group, list(enumerate(ranges)), self._set())
                copies = state.state(self._copied(group, ranges))
            self._mirror = Mirror(group.channel("control"), owner, *self._made(owner, copies))
        else:
            self._mirror = None

    def _made(self, rank: int, entries: Held) -> tuple[dict[int, Piece], Optimizer]:
        """Return the pieces of a rank and their optimizer, with their state."""
        pieces = self._layout.pieces(rank)
        groups, number = [], 0
        for group in self.param_groups:
            numbers = range(number, number + len(group["params"]))
            leaves = [pieces[n].leaf for n in numbers if n in pieces]
            options = {k: v for k, v in group.items() if k not in _OWN}
            groups.append({**options, "params": leaves})
            number = numbers.stop
        inner = self.optimizer_class(groups, **self._given)
        for number, row in entries.items():
            leaf = pieces[number].leaf
            device = device_of(leaf.array)
            inner.state[leaf] = {
                name: wrap(array if not array.ndim else to_device(array, device))
                for name, array in row.items()
            }
        return pieces, inner

    def _set(self) -> dict[int, Possession]:
        """Return what this rank has, by its number."""
        assert self._inner is not None
        return {self.process_group.rank: possession(self.pieces, self._inner)}

    def _sets(self) -> dict[int, Possession]:
        """Return what this rank has and has copies of, by the numbers of their owners."""
        moved, params = self._moved, self._params()
        if moved is None:
            found = self._set()
            if self._mirror is not None:
                found[self._mirror.owner] = possession(self._mirror.pieces, self._mirror.inner)
            return found
        rank = moved.group.rank
        rows = {rank: moved.entries}
        if moved.copies is not None:
            rows[self._mirrored(moved.group, rank)] = moved.copies
        whole = {number: p.array.reshape(-1) for number, p in enumerate(params)}
        return {
            r: (state, {number: whole[number][w] for number, w in moved.ranges[r].items()})
            for r, state in rows.items()
        }

    @staticmethod
    def _mirrored(group: ProcessGroup, rank: int) -> int:
        """Return the rank whose copy ``rank`` keeps."""
        return (rank - distance(group)) % group.size

    def _copied(self, group: ProcessGroup, ranges: Sequence[Ranges]) -> list[Ranges]:
        """Return for each rank the ranges of which it keeps a copy."""
        return [ranges[self._mirrored(group, rank)] for rank in range(group.size)]

    def _lay_out_anew(self) -> None:
        """Follow buckets that have moved, and new parameters, with the state there is."""
        group, old = self.process_group, self._layout.ranges
        new = Layout(self._params(), group, self._own).ranges
        self._take(group, Rescue(group, list(enumerate(old)), self._set()), new)

    def _take(self, group: ProcessGroup, state: Rescue, ranges: Sequence[Ranges]) -> None:
        """Build anew with the state of other ranges.

        Raises:
            RankLost: a rank has ended; nothing has changed here.
        """
        entries, copies = state.state(ranges), None
        if self.redundant:  # no rank shall have the new ranges while others have the old ones
            if distance(group):
                copies = state.state(self._copied(group, ranges))
            self._arrived = Moved(group, ranges, entries, copies)
            group.channel("control").barrier()
        self._moves, self._arrived, self._moved = self._moves + 1, None, None
        self.process_group = group
        self._build(entries, copies)

    def rebuild(self, group: ProcessGroup | None = None) -> None:
        """Go on with the ranks that `distgrad.distributed.shrink` has left.

        The state and the values of what lost ranks owned come from their copies. Call it behind
        ``rebuild`` of DistributedDataParallel, once all ranks have made the same updates.

        Args:
            group: default is that of DistributedDataParallel, or the default group.

        Raises:
            JobLost: both ranks that had some state are lost, or none had a copy.
            RankLost: one more has ended; nothing has changed here.

        Ranks: all that are left.
        """
        group = group or _group_of(self._params())
        if self._moves < max(group.channel("control").all_gather_object(self._moves)):
            self._moves, self._moved = self._moves + 1, self._arrived
        former, ranges = self.process_group, self._layout.ranges
        if self._moved is not None:
            former, ranges = self._moved.group, list(self._moved.ranges)
        having = holders(former.origins, distance(former) * self.redundant, group.origins)
        rescue = Rescue(group, list(zip(having, ranges, strict=True)), self._sets())
        rescue.bring_values(self._params())
        before, self._own = self._own, []
        try:
            self._take(group, rescue, Layout(self._params(), group, self._own).ranges)
        except RankLost:
            self._own = before
            raise
        self._gathering = Gathering(group.channel("control"), None)
        self._drop_consolidated()
        if self.overlap_with_ddp:
            self._guard()

    def prepare(self) -> None:
        """Do all of a step that needs other ranks: before the vote after which `step` cannot fail.

        Ranks: all, between backward and ``step``, once gradients are as ``step`` shall find them.
        """
        self.wait()
        self._follow_buckets()
        if self._mirror is None:
            return
        for reducer in self._layout.reducers.values():
            if isinstance(reducer, ShardedReducer):
                self._mirror.exchange(reducer.buckets)

    # ------------------------------------------------------------------ the step
    def step(self, closure: Closure | None = None) -> Any:
        """Update what this rank owns and get the rest from the others.

        Args:
            closure: computes the loss anew, with gradients; called first.

        Returns:
            What ``closure`` returned.
        """
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        Join.notify_join_context(self)
        self._step(present=True)
        return loss

    def _step(self, present: bool) -> None:
        """Update with the others, which know about it; ``present`` unless out of batches."""
        self.wait()
        self._follow_buckets()
        if not present or self._join_config.enable:
            self._lend_gradients(present)
        self._drop_consolidated()
        self._update()
        self._gather()
        self._declare()

    def _lend_gradients(self, present: bool) -> None:
        """Give ranks out of batches the gradients of what they own, as they are now.

        What the program does to gradients before a step, such as clipping, it does not do there.
        """
        group = self.process_group.channel("control")
        here = [bool(row[0]) for row in group.all_gather(np.array([present]))]
        if all(here):
            return
        whole = {n: p for n, p in enumerate(self._params()) if p.grad is not None}
        all_of_it = {n: slice(0, p.array.size) for n, p in whole.items()}
        source, ranges = here.index(True), self._layout.ranges
        have: list[Ranges] = [all_of_it if r == source else {} for r in range(group.size)]
        want: list[Ranges] = [
            {} if there else {n: where for n, where in ranges[r].items() if n in whole}
            for r, there in enumerate(here)
        ]
        grads = {n: p.grad.array for n, p in whole.items() if p.grad is not None}
        entries = {n: {"grad": to_device(a, CPU).reshape(-1)} for n, a in grads.items()}
        lent = redistribute(group, have, want, entries if group.rank == source else {})
        for number, row in lent.items():
            part = grads[number].reshape(-1)[ranges[group.rank][number]]
            part[...] = to_device(row["grad"], device_of(part))

    def _follow_buckets(self) -> None:
        """Be where the buckets are; after the first backward, that is a collective."""
        if not self._layout.current:
            self._lay_out_anew()

    def _declare(self) -> None:
        """Let the next reduction see to it that all ranks have the same options."""
        for number, group in enumerate(self.param_groups):
            options = {k: _plain(v) for k, v in group.items() if k not in _OWN}
            if group["params"] and (reducer := reducer_of(group["params"][0])) is not None:
                head = f"{self.optimizer_class.__name__} group {number}"
                reducer.declare(group["params"][0], f"{head}: {options}")

    def _update(self) -> None:
        assert self._inner is not None
        capture = captures.current()
        if capture is not None:
            if self._mirror is not None:
                captures.refuse(
                    "ZeroRedundancyOptimizer.step()",
                    "with redundant=True a second rank gets gradients by way of the host",
                    "leave redundant=False",
                )
            capture.before_replay(self._give_options)
        self._update_pieces(self.pieces, self._inner, None)
        if self._mirror is not None:
            self._update_pieces(self._mirror.pieces, self._mirror.inner, self._mirror)

    def _update_pieces(
        self, pieces: Mapping[int, Piece], inner: Optimizer, mirror: Mirror | None
    ) -> None:
        for piece in pieces.values():
            if piece.param.array.base is not piece.flat.values:
                raise DistributedError(
                    "step(): a parameter's memory is no longer where DistributedDataParallel or "
                    "ZeroRedundancyOptimizer laid it out; move and convert modules before both"
                )
            piece.take_gradient(mirror)
        self._give_options(inner)
        with no_grad():
            for index, mine in enumerate(inner.param_groups):
                inner._step_group(index, mine)

    def _give_options(self, inner: Optimizer | None = None) -> None:
        """Let the optimizer of the pieces have the options of the groups as they are now."""
        inner = inner or self._inner
        assert inner is not None
        for group, mine in zip(self.param_groups, inner.param_groups, strict=True):
            mine.update({k: v for k, v in group.items() if k not in _OWN})

    def _gather(self) -> None:
        """Start to gather what has changed, first what forward needs first."""
        changed = [
            flat
            for flat in reversed(self._layout.flats)
            if any(_has_gradient(p) and id(p) in self._layout.numbers for p in flat.params)
        ]
        for flat in changed:
            for p in flat.params:
                if id(p) in self._layout.numbers and _has_gradient(p):
                    shared_of(p).bump()
        for reducer in self._layout.reducers.values():
            buckets = {id(bucket) for bucket in reducer.buckets}
            reducer.gathering.start(flat for flat in changed if id(flat) in buckets)
            reducer.spent = True
        own = {id(flat) for flat in self._own}
        with suppress(*([RankLost] if self.redundant else [])):  # this rank has made the step
            self._gathering.start(flat for flat in changed if id(flat) in own)
            if not self.overlap_with_ddp:
                self.wait()

    def layouts(self) -> list[Plan]:
        """Return where the state lies; a captured step is made anew when these are others."""
        return [] if self._inner is None else self._inner.layouts()

    def wait(self) -> None:
        """Return when all parameters are whole."""
        for reducer in self._layout.reducers.values():
            reducer.gathering.wait()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of all parameters, or fill them with zeros."""
        super().zero_grad(set_to_none)
        for reducer in self._layout.reducers.values():
            if isinstance(reducer, ShardedReducer):
                reducer.drop()

    # ------------------------------------------------------------------ uneven inputs
    def join_hook(self, **options: Any) -> JoinHook:
        """Return what steps with the others: a rank without batches still updates what it owns."""
        return _Shadow(self)

    @property
    def join_device(self) -> device:
        """Where the parameters are."""
        return self._params()[0].device

    @property
    def join_process_group(self) -> ProcessGroup:
        """The ranks."""
        return self.process_group

    # ------------------------------------------------------------------ state
    def local_ranges(self) -> Ranges:
        """Return which elements of which parameter, by its number, this rank updates.

        Ranks: a collective after the first backward, as buckets have moved then.
        """
        self._follow_buckets()
        return self._layout.ranges[self.process_group.rank]

    def local_state(self) -> dict[int, dict[str, HostArray]]:
        """Return the state of these elements, for parameters that have some."""
        assert self._inner is not None
        return state_of(self.pieces, self._inner)

    def load_local_state(
        self, param_groups: list[Group], entries: dict[int, dict[str, HostArray]]
    ) -> None:
        """Take options of groups, and the state of `local_ranges`."""
        super().load_state_dict({"state": {}, "param_groups": param_groups})
        self._build(entries)

    def _drop_consolidated(self) -> None:
        self.state.clear()
        self._consolidated = False

    def consolidate_state_dict(self, to: int = 0) -> None:
        """Bring the whole state to rank ``to``, whose ``state_dict`` returns it until a step.

        Ranks: a collective.
        """
        group = self.process_group
        if not 0 <= to < group.size:
            raise ArgumentError(
                f"consolidate_state_dict(to={to}): is no rank of a group of {group.size}; ranks "
                f"are 0 to {group.size - 1}"
            )
        self._follow_buckets()
        params = self._params()
        whole = {n: slice(0, p.array.size) for n, p in enumerate(params) if p.requires_grad}
        want: list[Ranges] = [whole if rank == to else {} for rank in range(group.size)]
        got = redistribute(group.channel("control"), self._layout.ranges, want, self.local_state())
        self._drop_consolidated()
        for number, row in sorted(got.items()):
            if row:
                shape = params[number].array.shape
                self.state[params[number]] = {
                    name: wrap(a if not a.ndim else a.reshape(shape)) for name, a in row.items()
                }
        self._consolidated = group.rank == to

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state, as ``optimizer_class`` without sharding would.

        Raises:
            DistributedError: `consolidate_state_dict` was not called since the last step, or the
                state went to another rank.
        """
        if self.process_group.size == 1:
            self.consolidate_state_dict()
        if not self._consolidated:
            raise DistributedError(
                f"state_dict(): rank {self.process_group.rank} has a part of the state only; call "
                "consolidate_state_dict(to=rank) on all ranks after the last step, then "
                "state_dict() on that rank"
            )
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take this rank's part of a whole state, saved by any number of ranks or without sharding.

        Ranks: all, with the same state.
        """
        super().load_state_dict(state_dict)
        mine = self.local_ranges()
        entries: dict[int, dict[str, HostArray]] = {}
        for number, p in enumerate(self._params()):
            row = self.state.get(p)
            if row and number in mine:
                entries[number] = {
                    name: a.copy() if not (a := to_device(t.array, CPU)).ndim or name == "step"
                    else a.reshape(-1)[mine[number]].copy()
                    for name, t in row.items()
                }  # fmt: skip
        self._drop_consolidated()
        self._build(entries)


class _Shadow(JoinHook):
    """What the optimizer of a rank without batches does."""

    def __init__(self, optimizer: ZeroRedundancyOptimizer) -> None:
        self._optimizer = optimizer

    def main_hook(self) -> None:
        """Step with the others."""
        self._optimizer._step(present=False)
        self._optimizer.wait()


def _plain(option: Any) -> Any:
    return option.item() if isinstance(option, Tensor) else option


def _has_gradient(p: Tensor) -> bool:
    """Return whether the ranks have a gradient of ``p``; all answer alike."""
    reducer = reducer_of(p)
    if p.grad is None and isinstance(reducer, ShardedReducer):
        return reducer.has_gradient(p)
    return p.grad is not None


def _group_of(params: Sequence[Tensor]) -> ProcessGroup:
    """Return the group of the parameters' reducer, or the default one."""
    for p in params:
        reducer = reducer_of(p)
        if reducer is not None:
            return reducer.group
    return get_group() if is_initialized() else local_group()


def _check_class(optimizer_class: Any) -> None:
    """Raise unless the class updates element by element."""
    head = f"ZeroRedundancyOptimizer(optimizer_class={optimizer_class!r})"
    if not (isinstance(optimizer_class, type) and issubclass(optimizer_class, Optimizer)):
        raise ArgumentTypeError(
            f"{head}: takes a class of optimizers, such as distgrad.optim.AdamW"
        )
    if optimizer_class.step is not Optimizer.step:
        raise ArgumentError(
            f"{head}: has a step() of its own, which may look at whole parameters; take a class "
            "with an update rule (_update and _slots)"
        )
    if not optimizer_class._elementwise:
        raise ArgumentError(
            f"{head}: its rule looks at norms, rows or columns of whole parameters, and a rank has "
            "parts of them; take an optimizer that works element by element, such as AdamW"
        )
