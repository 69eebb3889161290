"""A second copy of every rank's state of the optimizer, on another rank.

Note [Copies]
    Rank r keeps, beside its own pieces, those of the rank d before it, where d is as large as the
    largest host, so that the two are on different hosts where all hosts have as many ranks. The
    copy is not sent: rank r makes the same updates as the owner, from the same gradients, and its
    state has the same bits. That takes once more 1/P of the state's bytes on each rank (8 n/P for
    AdamW and n float32 elements) and the time of one more update of 1/P of the elements. Where
    gradients are kept by their owners only (ZeRO-2), each owner sends its means, 4 n/P bytes, to
    the rank that has the copy, in each step.

    When a rank is lost, its state is where the copy is. Only if both are lost at once nothing of it
    is left, and a checkpoint must be read.

Note [Moved by all or by none]
    State moves to other ranks in one step: a rank that has got all of its new state waits for the
    others at a barrier, and has it behind. If one more rank ends meanwhile, some may have come
    through the barrier, and others not; but then all have got theirs, and the others have it from
    the beginning of the next ``rebuild``. If nobody has come through, all have what they had.
    A vote by MPI's agreement would not do: who has not got all waits in MPI for a smaller group,
    and the others would wait for its vote.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from distgrad.backend.device import CPU, to_device
from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.redistribute import Entries, Ranges, collect
from distgrad.distributed.sharded import ShardedBucket
from distgrad.distributed.work import HostArray
from distgrad.errors import JobLost
from distgrad.optim.optimizer import Optimizer
from distgrad.tensor import Tensor
from distgrad.typing import Array

if TYPE_CHECKING:
    from distgrad.optim.zero import Piece

_CALL = "copies of gradients"
Pieces = Mapping[int, "Piece"]
Rows: TypeAlias = dict[int, dict[str, HostArray]]
"""Arrays of elements by name, by the parameters' numbers."""
Possession: TypeAlias = tuple[Rows, Mapping[int, Array]]
"""State and values of elements that one rank owned."""


def distance(group: ProcessGroup) -> int:
    """Return how far from its owner a copy is, in ranks; 0 where there is nobody to have it.

    Example:
        >>> from distgrad.distributed import local_group
        >>> distance(local_group())
        0
    """
    if group.size == 1:
        return 0
    largest = max(map(len, group.hosts)) if len(group.hosts) > 1 else 1
    return largest if largest < group.size else 1


def holders(
    origins: Sequence[int],
    step: int,
    left: Sequence[int],
    part: str = "part of the optimizer's state",
    without: str = "redundant=True",
) -> list[int]:
    """Return for each former rank which of the present ones has its state.

    Args:
        origins: the former ranks, by the numbers that they had when the job began.
        step: the `distance` of their copies.
        left: the present ranks, by the same numbers.
        part: what is lost with a rank and its copy.
        without: what the program has left out, if there are no copies.

    Raises:
        JobLost: some rank is lost and so is its copy.

    Example:
        >>> holders([0, 1, 2, 3], 1, [0, 2, 3])  # 2 had the copy of 1, and is rank 1 now
        [0, 1, 1, 2]
    """
    found = []
    for place, owner in enumerate(origins):
        copy = origins[(place + step) % len(origins)]
        holder = next((rank for rank in (owner, copy) if rank in left), None)
        if holder is None:
            what = f"ranks {owner} and {copy} have" if step else f"rank {owner} has"
            raise JobLost(
                f"rebuild(): {what} ended, and nobody else has that {part}"
                f"{'' if step else f' without {without}'}; start again from a checkpoint, as "
                "--max-restarts does"
            )
        found.append(left.index(holder))
    return found


class Mirror:
    """The pieces of another rank, updated here as there.

    Args:
        group: the ranks.
        owner: whose pieces.
        pieces: of it.
        inner: the optimizer of their leaves.
    """

    def __init__(self, group: ProcessGroup, owner: int, pieces: Pieces, inner: Optimizer) -> None:
        self.owner, self.pieces, self.inner = owner, pieces, inner
        self._group = group
        self._means: dict[int, HostArray] = {}  # of the owner, by the id of the bucket

    def lent(self, piece: Piece, kept_by_owners: bool) -> Array | None:
        """Return the gradient of a piece, if it is one that the owner has sent."""
        means = self._means.get(id(piece.flat)) if kept_by_owners else None
        if means is None:
            return None
        start = piece.flat.owned[self.owner].start
        return means[piece.where.start - start : piece.where.stop - start]

    def exchange(self, buckets: Iterable[ShardedBucket]) -> None:
        """Send the means that this rank owns to the rank with its copy, and get the owner's.

        Ranks: a collective.
        """
        group, mine = self._group, [to_device(bucket.shard, CPU) for bucket in buckets]
        for bucket in buckets:
            span = bucket.owned[self.owner]
            kept = self._means.get(id(bucket))
            if kept is None or kept.size != span.stop - span.start:
                kept = np.empty(span.stop - span.start, bucket.values.dtype)
                self._means[id(bucket)] = kept
        swap(group, self.owner, mine, [self._means[id(bucket)] for bucket in buckets])


def swap(
    group: ProcessGroup, owner: int, mine: Sequence[HostArray], theirs: Sequence[HostArray]
) -> None:
    """Send ``mine`` to the rank with this one's copy, and get from ``owner`` what is his.

    Ranks: a collective, with the same distance.
    """
    keeper = (2 * group.rank - owner) % group.size
    box = np.empty(sum(part.nbytes for part in theirs), np.uint8)
    full = np.concatenate(
        [np.empty(0, np.uint8), *(part.reshape(-1).view(np.uint8) for part in mine)]
    )
    works = [group.start_recv(box, owner, 0, _CALL), group.start_send(full, keeper, 0, _CALL)]
    for work in works:
        work.wait()
    at = 0
    for part in theirs:
        part.view(np.uint8)[...] = box[at : at + part.nbytes]
        at += part.nbytes


def possession(pieces: Pieces, inner: Optimizer) -> Possession:
    """Return state and values of pieces."""
    values = {number: piece.leaf.array for number, piece in pieces.items()}
    return state_of(pieces, inner), values


def state_of(pieces: Pieces, inner: Optimizer) -> Rows:
    """Return the state of the pieces that have one, by the parameters' numbers."""
    found: Rows = {}
    for number, piece in pieces.items():
        state = inner.state.get(piece.leaf)
        if state:
            found[number] = {name: to_device(t.array, CPU) for name, t in state.items()}
    return found


class Moved(NamedTuple):
    """State that has come to this rank, before it is known that all have theirs.

    Args:
        group: the ranks among which it is shared out.
        ranges: of each rank.
        entries: of this one.
        copies: of the rank whose copy this one keeps; None if there is none.
    """

    group: ProcessGroup
    ranges: Sequence[Ranges]
    entries: Rows
    copies: Rows | None


class Rescue:
    """The state and the values of all parameters, held by the ranks that are left.

    Args:
        group: these ranks.
        sources: for each former rank, who has its state now, and of which ranges.
        sets: for each one whose state this rank has, state and values.
    """

    def __init__(
        self,
        group: ProcessGroup,
        sources: Sequence[tuple[int, Ranges]],
        sets: Mapping[int, Possession],
    ) -> None:
        self._group, self._sources = group, sources
        self._sets = {n: s for n, s in sets.items() if sources[n][0] == group.rank}

    def state(self, want: Sequence[Ranges]) -> dict[int, dict[str, HostArray]]:
        """Return the state of the ranges that this rank wants.

        Ranks: a collective.
        """
        got = self._collect(want, {n: state for n, (state, _) in self._sets.items()})
        return {number: row for number, row in got.items() if row}

    def bring_values(self, params: Sequence[Tensor]) -> None:
        """Give all parameters that are shared out the values that their owners have.

        Ranks: a collective.
        """
        shared = {number for _, ranges in self._sources for number in ranges}
        whole = {number: slice(0, params[number].array.size) for number in shared}
        held = {
            n: {number: {"value": to_device(array, CPU)} for number, array in values.items()}
            for n, (_, values) in self._sets.items()
        }
        for number, row in self._collect([whole] * self._group.size, held).items():
            target = params[number].array
            target[...] = row["value"].reshape(target.shape)

    def _collect(
        self, want: Sequence[Ranges], held: Mapping[int, Entries]
    ) -> dict[int, dict[str, HostArray]]:
        return collect(self._group.channel("control"), self._sources, want, held)
