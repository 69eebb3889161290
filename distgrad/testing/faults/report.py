"""The outcomes as lines and as a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from distgrad.testing.faults.plan import PHASES, Fault
from distgrad.testing.faults.trial import ENDED, GOOD, RECOVERED, SHRUNK, Outcome

_SHORT = {RECOVERED: "restarted", SHRUNK: "shrunk", ENDED: "ended"}
_ORDER = ("rank 0", "middle", "last", "host")


def line(fault: Fault, outcome: Outcome) -> str:
    """Return one line for a terminal."""
    back = "" if outcome.back_s is None else f", training again after {outcome.back_s:.1f} s"
    lost = "" if not outcome.lost else f", {outcome.lost} steps again"
    return f"{fault!s:<80} {outcome.verdict}{back}{lost} ({outcome.seconds:.1f} s)"


def table(outcomes: Mapping[Fault, Outcome], seconds: float) -> str:
    """Return the summary and a table with one row per phase and kind of fault."""
    ways = sorted({_way(f) for f in outcomes})
    head = [f"{mpi}{' in place' * s}{f', ZeRO-{z}' if z else ''}" for mpi, s, z in ways]
    rows = ["| phase | fault | " + " | ".join(head) + " |", "|---|---|" + "---|" * len(ways)]
    for phase, kind in dict.fromkeys((f.phase, f.kind) for f in outcomes):
        cells = [_cell(outcomes, phase, kind, way) for way in ways]
        rows.append(f"| {phase} | {kind} | " + " | ".join(cells) + " |")
    return "\n".join([_summary(outcomes, seconds), "", *rows, ""])


def _way(fault: Fault) -> tuple[str, bool, int]:
    """Return the column of a fault; that a checkpoint's parts need ZeRO makes none of its own."""
    return (
        fault.mpi,
        fault.shrink,
        0 if fault.phase == PHASES[-1] and fault.zero == 1 else fault.zero,
    )


def _cell(
    outcomes: Mapping[Fault, Outcome], phase: str, kind: str, way: tuple[str, bool, int]
) -> str:
    """Return what became of each victim, the same words said once."""
    found = {
        f.victim: o
        for f, o in outcomes.items()
        if (f.phase, f.kind) == (phase, kind) and _way(f) == way
    }
    said: dict[str, list[str]] = {}
    for victim in sorted(found, key=_ORDER.index):
        outcome = found[victim]
        times = said.setdefault(_word(outcome), [])
        times += [] if outcome.back_s is None else [f"{outcome.back_s:.1f}"]
    parts = [f"{word} {' / '.join(times)} s" if times else word for word, times in said.items()]
    return "; ".join(parts)


def _word(outcome: Outcome) -> str:
    """Return what became of a job, in a word or two; one that nobody started again went on."""
    if outcome.verdict == RECOVERED and outcome.back_s is None:
        return "went on"
    return _SHORT.get(outcome.verdict, f"**{outcome.verdict}**")


def _summary(outcomes: Mapping[Fault, Outcome], seconds: float) -> str:
    verdicts = [o.verdict for o in outcomes.values()]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys((*GOOD, *verdicts)))
    back = [o.back_s for o in outcomes.values() if o.back_s is not None and o.good]
    times = ""
    if back:
        times = (
            f" Training went on after {statistics.median(back):.1f} s in the median, "
            f"{max(back):.1f} s at most."
        )
    return f"{len(outcomes)} faults in {seconds / 60:.0f} minutes: {counts}.{times}"
