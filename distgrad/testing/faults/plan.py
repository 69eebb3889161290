"""The faults to inject: what happens, to whom, in which phase, under which MPI."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import product

PHASES = (
    "data loading", "forward", "mid-bucket", "before the step", "optimizer", "evaluation",
    "checkpoint write",
)  # fmt: skip
PHASES_OF_PARTS = ("gathering", "after the vote")  # beside these, where parameters are in parts
KINDS = ("exception", "sys.exit(3)", "os._exit(0)", "SIGKILL", "SIGSEGV", "SIGSTOP")
HOST_KINDS = ("host lost", "link down", "slow link")
MPIS = ("MPICH", "Open MPI")
FAST = ("SIGKILL", "SIGSEGV")  # ends of a process that survivors can learn of by themselves


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    Args:
        phase: of a training step, one of `PHASES`, or with ``zero`` 3 of `PHASES_OF_PARTS`.
        kind: what happens, one of `KINDS`, "disk full" or one of `HOST_KINDS`.
        victim: "rank 0", "middle", "last", or "host": the last one, with the rank on it.
        mpi: which MPI starts the ranks.
        shrink: whether survivors may go on in place, without a new start.
        zero: stage in which ranks share out the optimizer, and with 3 the parameters.
    """

    phase: str
    kind: str
    victim: str
    mpi: str
    shrink: bool = False
    zero: int = 0

    def ranks(self, size: int) -> list[int]:
        """Return the ranks of a world of ``size`` that it strikes."""
        return [{"rank 0": 0, "middle": size // 2}.get(self.victim, size - 1)]

    def dumps(self) -> str:
        """Return it as text for a command line."""
        return json.dumps(asdict(self))

    @staticmethod
    def loads(text: str) -> Fault:
        """Return the fault that `dumps` wrote."""
        return Fault(**json.loads(text))

    def __str__(self) -> str:
        how = "shrinking" if self.shrink else "restarting"
        stage = f", ZeRO-{self.zero}" if self.zero > 1 else ""
        return f"{self.kind} of {self.victim} in {self.phase} ({self.mpi}, {how}{stage})"


def whole() -> list[Fault]:
    """Return every fault of the suite.

    Example:
        >>> len(whole()) >= 200
        True
        >>> len(set(whole())) == len(whole())
        True
    """
    victims = ("rank 0", "middle", "last")
    faults = [
        Fault(p, k, v, m, zero=_stage(p)) for m, p, k, v in product(MPIS, PHASES, KINDS, victims)
    ]
    faults += [Fault(PHASES[-1], "disk full", v, m, zero=1) for m, v in product(MPIS, victims)]
    faults += [
        Fault(p, k, v, "Open MPI", shrink=True, zero=_stage(p))
        for p, k, v in product(PHASES, FAST, victims)
    ]
    faults += [
        Fault(p, "SIGKILL", "middle", "Open MPI", shrink=True, zero=stage)
        for p, stage in product(PHASES, (1, 2))
        if stage != _stage(p)
    ]
    faults += [
        Fault(p, "SIGKILL", v, "Open MPI", shrink=True, zero=3)
        for p, v in product((*PHASES, *PHASES_OF_PARTS), victims)
    ]
    return faults + hosts()


def _stage(phase: str) -> int:
    """Return the ZeRO stage of a fault: with 1, every rank writes a part of a checkpoint."""
    return int(phase == "checkpoint write")


def hosts() -> list[Fault]:
    """Return the faults of whole hosts and of the network between them, which need root."""
    phases = ("forward", "mid-bucket", "checkpoint write")
    return [Fault(p, k, "host", m, zero=_stage(p)) for m, p, k in product(MPIS, phases, HOST_KINDS)]


def sample() -> list[Fault]:
    """Return a few faults for every day: each kind, phase and victim; one with parts in place."""
    chosen = []
    for i, phase in enumerate(PHASES):
        kind, victim = KINDS[i % len(KINDS)], ("rank 0", "middle", "last")[i % 3]
        chosen.append(Fault(phase, kind, victim, MPIS[0], zero=_stage(phase)))
    chosen.append(Fault(PHASES[-1], "disk full", "rank 0", MPIS[0], zero=1))
    place = Fault(PHASES_OF_PARTS[0], "SIGKILL", "rank 0", "Open MPI", shrink=True, zero=3)
    return [*chosen, place]
