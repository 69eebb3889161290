"""How every function on tensors runs: a plan, its steps on the agenda, the result in the tensors.

Note [Wrong on one rank]: a call that is refused on one rank only would leave the others waiting. So
a rank whose arguments are wrong still takes part, with the text of its error for its call. It then
raises that error, and the others raise one that quotes it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeAlias

from distgrad.distributed.collective import Steps, refused
from distgrad.distributed.default import default_group, get_group
from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.handle import Work
from distgrad.distributed.operands import AnyTurn
from distgrad.errors import ArgumentError, ArgumentTypeError, DistgradError
from distgrad.tensor import Tensor


class NonMember:
    """Stands for a group that the calling rank is no member of."""

    def __repr__(self) -> str:
        return "NON_GROUP_MEMBER"


NON_GROUP_MEMBER = NonMember()
Group: TypeAlias = ProcessGroup | NonMember | None


@dataclass(slots=True)
class Plan:
    """A collective, ready to start; on GPUs if it has a turn."""

    call: str
    steps: Steps
    finish: Callable[[], None] = lambda: None
    tensors: list[Tensor] = field(default_factory=list)
    turn: AnyTurn | None = None

    def finished(self) -> None:
        """Bring the results to the tensors; the host does not wait for the GPU."""
        if self.turn is not None:
            self.turn.arrive()
        self.finish()


def member(function: str, group: Group) -> ProcessGroup | None:
    """Return the group, the default one for None; warn and return None if this rank is outside.

    Raises:
        ArgumentTypeError: for something else.
    """
    if isinstance(group, NonMember):
        everyone = default_group()
        rank = -1 if everyone is None else everyone.rank
        warnings.warn(
            f"Running {function} on global rank {rank} which does not belong to the given group.",
            stacklevel=4,
        )
        return None
    if group is None:
        return get_group()
    if not isinstance(group, ProcessGroup):
        raise ArgumentTypeError(
            f"{function}(group={group!r}): group must be a ProcessGroup, not "
            f"{type(group).__name__}; use what new_group() returned, or None for all ranks"
        )
    return group


def run(
    function: str, group: Group, async_op: bool, planner: Callable[[ProcessGroup], Plan]
) -> Work | None:
    """Make the collective that ``planner`` plans; see Note [Wrong on one rank].

    Args:
        async_op: return the work under way and not None when it is complete.
    """
    mine = member(function, group)
    if mine is None:
        return None
    try:
        plan = planner(mine)
    except DistgradError as error:
        plan = Plan(f"{function}()", refused(mine, error))
    if plan.turn is not None:
        plan.turn.take()
    work = Work(mine.submit(plan.call, plan.steps), plan.finished, plan.tensors)
    if async_op:
        return work
    work.wait()
    return None


def place_in(
    function: str,
    what: str,
    group: ProcessGroup,
    rank: int | None,
    group_rank: int | None,
    default: int | None = None,
) -> int:
    """Return the rank in ``group`` that is meant, by its global number or by that in the group.

    Raises:
        ArgumentError: both or none are given, or it is no rank of the group.
    """
    if rank is None and group_rank is None:
        rank = default
    if (rank is None) == (group_rank is None):
        wrong = "both are given" if rank is not None else "neither is given"
        raise ArgumentError(
            f"{function}({what}={rank}, group_{what}={group_rank}): {wrong}; say the rank among "
            f"all ranks ({what}) or that in the group (group_{what})"
        )
    if group_rank is None:
        if rank in group.ranks:
            return group.ranks.index(rank)
        raise ArgumentError(
            f"{function}({what}={rank}): is none of the ranks {_listed(group)}; name one of them"
        )
    if isinstance(group_rank, int) and 0 <= group_rank < group.size:
        return group_rank
    raise ArgumentError(
        f"{function}(group_{what}={group_rank}): a group of {group.size} has the ranks 0 to "
        f"{group.size - 1}"
    )


def _listed(group: ProcessGroup) -> str:
    if group.ranks == tuple(range(group.size)):
        return f"0 to {group.size - 1}"
    return ", ".join(map(str, group.ranks)) + " of this group"


def seconds(function: str, timeout: timedelta | float | None) -> float | None:
    """Return ``timeout`` in seconds.

    Raises:
        ArgumentTypeError: neither a duration nor a number.
        ArgumentError: not positive.
    """
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, timedelta | int | float):
        raise ArgumentTypeError(
            f"{function}(timeout={timeout!r}): timeout must be a datetime.timedelta or seconds, "
            f"not {type(timeout).__name__}"
        )
    value = timeout.total_seconds() if isinstance(timeout, timedelta) else float(timeout)
    if not value > 0:
        raise ArgumentError(f"{function}(timeout={timeout!r}): must be more than 0 seconds")
    return value
