"""How an attempt ended, and whether another one is of any use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

OK, ERROR, USAGE, PREEMPTED, NO_HOSTS, LOST = 0, 1, 2, 75, 69, 76
_BACK_OFF_S = 1.0
_LONGEST_S = 30.0
_NEAR = 1  # steps: a heartbeat may lag behind a rank that dies

Kind = Literal["done", "failed", "lost", "stalled", "start", "stopped"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of one attempt.

    Args:
        kind: done: all ranks agreed on ``status``; failed: the program raised or exited; lost:
            ranks died; stalled: nothing moved; start: the ranks never began; stopped: by a signal.
        status: with which the whole job would end.
        reason: one sentence.
        step: of the program when it happened.
        what: of the failure, without numbers that differ between attempts.
        final: another attempt would end the same way, as with wrong settings.
        hosts: that took part.
        detail: stacks.
    """

    kind: Kind
    status: int
    reason: str
    step: int = 0
    what: str = ""
    final: bool = False
    hosts: tuple[str, ...] = ()
    detail: str = ""
    began: int = 0  # the step that the attempt went on from

    def repeats(self, other: Outcome) -> bool:
        """Return whether ``other`` failed in the same way, at the same place, on the same hosts."""
        near = _NEAR if self.kind in ("lost", "stalled") else 0
        return (self.kind, self.what, self.hosts, self.began) == (
            other.kind,
            other.what,
            other.hosts,
            other.began,
        ) and abs(self.step - other.step) <= near


def why_not_again(outcomes: Sequence[Outcome], max_restarts: int) -> str | None:
    """Return why the job ends with the last of ``outcomes``, or None if it is worth another try.

    Example:
        >>> bad = Outcome("failed", 1, "rank 0: ValueError: no luck", 7, "ValueError: no luck")
        >>> why_not_again([bad], 3) is None
        True
        >>> why_not_again([bad, bad], 3)
        'the same failure twice at step 7 without progress in between'
    """
    last = outcomes[-1]
    if last.final:
        return "another start would end the same way"
    if len(outcomes) > 1 and last.repeats(outcomes[-2]):
        where = f"at step {last.step}" if last.kind != "start" else "before the first step"
        return f"the same failure twice {where} without progress in between"
    if len(outcomes) > max_restarts:
        count = f"{max_restarts} restart{'s' * (max_restarts != 1)}"
        return f"{count} used up" if max_restarts else "no restart is allowed"
    return None


def pause_s(outcomes: Sequence[Outcome]) -> float:
    """Return how long to wait before the next attempt: nothing while each gets farther.

    Example:
        >>> stuck = Outcome("lost", 76, "", 5)
        >>> [pause_s([stuck] * n) for n in (1, 2, 3)]
        [0.0, 1.0, 2.0]
    """
    stuck = 0
    for before, after in zip(outcomes[-2::-1], outcomes[:0:-1], strict=False):
        if after.step > before.step:
            break
        stuck += 1
    return min(_LONGEST_S, _BACK_OFF_S * 2 ** (stuck - 1)) if stuck else 0.0
