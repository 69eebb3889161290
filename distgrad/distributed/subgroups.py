"""Groups of some of the ranks, and ranks counted in one group or the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from distgrad.distributed.collective import agreed, refused
from distgrad.distributed.default import default_group, get_group
from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.plans import NON_GROUP_MEMBER, Group, NonMember, member, seconds
from distgrad.errors import ArgumentError, ArgumentTypeError, DistgradError


class _WithWorld(type):
    @property
    def WORLD(cls) -> ProcessGroup | None:
        """The default group, None where there is none."""
        return default_group()


class GroupMember(metaclass=_WithWorld):
    """Names for two groups: ``WORLD``, all ranks, and the group one is no member of."""

    NON_GROUP_MEMBER = NON_GROUP_MEMBER


def new_group(
    ranks: Sequence[int] | None = None,
    timeout: timedelta | float | None = None,
    backend: str | None = None,
    pg_options: Any = None,
    use_local_synchronization: bool = False,
    group_desc: str | None = None,
    device_id: Any = None,
    sort_ranks: bool = True,
) -> ProcessGroup | NonMember:
    """Return a group of some ranks; ``NON_GROUP_MEMBER`` on the others.

    Args:
        ranks: their numbers in the default group; None takes all.
        timeout: a duration, or seconds, that any one wait may take; None takes the default group's.
        backend: must be None or the default group's, or one of the names that stand for it.
        pg_options, device_id: PyTorch's; there are none here, so they must be None.
        use_local_synchronization: only the members call this.
        group_desc: for messages.
        sort_ranks: count the ranks in the group by their number, and not in the order given.

    Ranks: all ranks of the default group, with the same arguments.

    Example:
        >>> from distgrad.distributed import get_rank, run_ranks
        >>> run_ranks(3, lambda all_: get_rank(new_group([0, 2])))
        [0, -1, 1]
    """
    world = get_group()
    function = "new_group"
    try:
        _refuse_options(function, backend=backend, pg_options=pg_options, device_id=device_id)
        limit = seconds(function, timeout)
        members = _members(function, world, ranks, sort_ranks)
    except DistgradError as error:
        if use_local_synchronization:
            raise
        raise together(world, error) from None
    if not use_local_synchronization:
        _agree(world, f"{function}(ranks={members})")
    if world.rank not in members:
        return NON_GROUP_MEMBER
    return world.subgroup(members, limit, group_desc or "")


def split_group(
    parent_pg: ProcessGroup | None = None,
    split_ranks: Sequence[Sequence[int]] | None = None,
    timeout: timedelta | float | None = None,
    pg_options: Any = None,
    group_desc: str | None = None,
    backend: str | None = None,
) -> ProcessGroup | None:
    """Return this rank's group of several that have no rank in common; None if it is in none.

    Args:
        parent_pg: the group to split; None is the default group.
        split_ranks: for each new group its ranks, counted in ``parent_pg``.
        timeout, pg_options, group_desc, backend: as for `new_group`.

    Ranks: all ranks of ``parent_pg``, with the same arguments.
    """
    function = "split_group"
    parent = member(function, parent_pg)
    if parent is None:
        return None
    try:
        _refuse_options(function, backend=backend, pg_options=pg_options)
        limit = seconds(function, timeout)
        parts = _parts(function, parent.size, split_ranks)
    except DistgradError as error:
        raise together(parent, error) from None
    _agree(parent, f"{function}(split_ranks={parts})")
    mine = next((part for part in parts if parent.rank in part), None)
    return None if mine is None else parent.subgroup(mine, limit, group_desc or "")


def new_subgroups(
    group_size: int | None = None,
    group: Group = None,
    timeout: timedelta | float | None = None,
    backend: str | None = None,
    pg_options: Any = None,
    group_desc: str | None = None,
) -> tuple[ProcessGroup | NonMember, list[ProcessGroup | NonMember]]:
    """Return this rank's group of several of equal size, and all of them.

    Args:
        group_size: ranks that follow each other; None takes those of one host.
        group: whose ranks; None is the default group.

    Ranks: all ranks of the default group, with the same arguments.
    """
    function = "new_subgroups"
    mine = member(function, group)
    if mine is None:
        return NON_GROUP_MEMBER, []
    step = mine.local_size if group_size is None else group_size
    if step < 1 or mine.size % step:
        error = ArgumentError(
            f"{function}(group_size={group_size}): {mine.size} ranks are no whole number of "
            f"groups of {step}; take a divisor of {mine.size}"
        )
        raise together(get_group(), error)
    parts = [list(mine.ranks[first : first + step]) for first in range(0, mine.size, step)]
    return new_subgroups_by_enumeration(parts, timeout, backend, pg_options, group_desc)


def new_subgroups_by_enumeration(
    ranks_per_subgroup_list: Sequence[Sequence[int]],
    timeout: timedelta | float | None = None,
    backend: str | None = None,
    pg_options: Any = None,
    group_desc: str | None = None,
) -> tuple[ProcessGroup | NonMember, list[ProcessGroup | NonMember]]:
    """Return this rank's group of those whose ranks are listed, and all of them.

    Ranks: all ranks of the default group, with the same arguments.
    """
    world = get_group()
    try:
        parts = _parts("new_subgroups_by_enumeration", world.size, ranks_per_subgroup_list)
    except DistgradError as error:
        raise together(world, error) from None
    groups = [
        new_group(part, timeout, backend, pg_options, group_desc=group_desc) for part in parts
    ]
    mine = next((made for made in groups if made is not NON_GROUP_MEMBER), NON_GROUP_MEMBER)
    return mine, groups


def get_rank(group: Group = None) -> int:
    """Return this rank's number in the group; -1 if it is no member."""
    if isinstance(group, NonMember):
        return -1
    return (get_group() if group is None else group).rank


def get_world_size(group: Group = None) -> int:
    """Return the number of ranks of the group; -1 if this rank is no member."""
    if isinstance(group, NonMember):
        return -1
    return (get_group() if group is None else group).size


def get_group_rank(group: ProcessGroup, global_rank: int) -> int:
    """Return the number in ``group`` of the rank that is ``global_rank`` among all.

    Raises:
        ArgumentError: it is no member.
    """
    ranks = _known("get_group_rank", group).ranks
    if global_rank not in ranks:
        raise ArgumentError(
            f"get_group_rank(global_rank={global_rank}): is not part of {group!r}, whose ranks "
            f"are {list(ranks)}"
        )
    return ranks.index(global_rank)


def get_global_rank(group: ProcessGroup, group_rank: int) -> int:
    """Return the number among all ranks of the rank that is ``group_rank`` in ``group``.

    Raises:
        ArgumentError: there is no such rank.
    """
    ranks = _known("get_global_rank", group).ranks
    if not 0 <= group_rank < len(ranks):
        raise ArgumentError(
            f"get_global_rank(group_rank={group_rank}): {group!r} has the ranks 0 to "
            f"{len(ranks) - 1}"
        )
    return ranks[group_rank]


def get_process_group_ranks(group: ProcessGroup | None) -> list[int]:
    """Return the members' numbers among all ranks."""
    return list((get_group() if group is None else _known("ranks", group)).ranks)


def get_backend(group: Group = None) -> str:
    """Return what the group is made of: "mpi", "threads" or "local", whatever name was asked for.

    Raises:
        ArgumentError: this rank is no member.
    """
    return (get_group() if group is None else _known("get_backend", group)).backend


def get_pg_count() -> int:
    """Return how many groups this rank is a member of."""
    world = default_group()
    return 0 if world is None else 1 + _descendants(world)


def _descendants(group: ProcessGroup) -> int:
    return sum(1 + _descendants(child) for child in group.children)


def _known(function: str, group: Any) -> ProcessGroup:
    if isinstance(group, ProcessGroup):
        return group
    if isinstance(group, NonMember):
        raise ArgumentError(f"{function}({group!r}): this rank is no member of the group")
    raise ArgumentTypeError(
        f"{function}(group={group!r}): group must be a ProcessGroup, not {type(group).__name__}"
    )


def _members(
    function: str, world: ProcessGroup, ranks: Sequence[int] | None, in_order: bool
) -> list[int]:
    if ranks is None:
        return list(range(world.size))
    members = _parts(function, world.size, [ranks])[0]
    return sorted(members) if in_order else members


def _parts(function: str, size: int, parts: Sequence[Sequence[int]] | None) -> list[list[int]]:
    """Return lists of ranks without a common one.

    Raises:
        ArgumentTypeError, ArgumentError: they are something else.
    """
    listed = isinstance(parts, list | tuple) and all(isinstance(p, list | tuple) for p in parts)
    if not listed or not all(isinstance(rank, int) for part in parts or () for rank in part):
        raise ArgumentTypeError(f"{function}(ranks={parts!r}): must be lists of numbers of ranks")
    assert parts is not None
    ranks = [rank for part in parts for rank in part]
    foreign = [rank for rank in ranks if not 0 <= rank < size]
    if foreign:
        raise ArgumentError(
            f"{function}(ranks={parts!r}): {foreign[0]} is no rank; there are 0 to {size - 1}"
        )
    twice = [rank for rank, times in Counter(ranks).items() if times > 1]
    if twice or not parts or not all(parts):
        wrong = f"rank {twice[0]} appears twice" if twice else "a group needs a rank or more"
        raise ArgumentError(f"{function}(ranks={parts!r}): {wrong}; name each rank once")
    return [list(part) for part in parts]


def _refuse_options(function: str, backend: str | None = None, **options: Any) -> None:
    for name, value in options.items():
        if value is not None:
            raise ArgumentError(
                f"{function}({name}={value!r}): there are no such options here; leave it out"
            )
    known = (get_group().backend, "gloo", "nccl", "mpi")
    if backend is not None and backend not in known:
        raise ArgumentError(
            f"{function}(backend={backend!r}): sub-groups have the backend of the default group, "
            f"{known[0]!r}; leave it out"
        )


def _agree(group: ProcessGroup, call: str) -> None:
    group.submit(call, agreed(group, call)).wait()


def together(group: ProcessGroup, error: DistgradError) -> Exception:
    """Return ``error``, after the other ranks have heard of it."""
    work = group.submit(str(error), refused(group, error))
    try:
        work.wait()
    except Exception as told:
        return told
    return error
