"""Faults on purpose: the plan of the suite, its judgement, and a few faults for real."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from distgrad.launch.spawn import loaded_library
from distgrad.testing.faults import plan, report, trial
from distgrad.testing.faults.plan import KINDS, MPIS, PHASES, PHASES_OF_PARTS, Fault

pytest.importorskip("mpi4py")


@pytest.fixture(scope="module")
def weights() -> str:
    return trial.undisturbed(sys.executable)


def mine() -> str:
    """Return the MPI of this environment."""
    return loaded_library().family


def test_the_suite_has_every_kind_in_every_phase_on_every_rank_under_both_libraries():
    faults = plan.whole()
    assert len(faults) >= 200
    for victim in ("rank 0", "middle", "last"):
        some = {(f.phase, f.kind, f.mpi) for f in faults if f.victim == victim and not f.shrink}
        assert {(p, k, m) for p in PHASES for k in KINDS for m in MPIS} <= some
        parts = {f.phase for f in faults if f.victim == victim and f.shrink and f.zero == 3}
        assert parts == {*PHASES, *PHASES_OF_PARTS}
    assert all(Fault.loads(f.dumps()) == f for f in faults)


@pytest.mark.parametrize("fault", plan.sample(), ids=str)
def test_a_job_with_a_fault_ends_with_the_weights_of_one_without(fault, weights):
    if fault.kind == "disk full" and not _may_mount():
        pytest.skip("a small disk of its own needs root")
    shrink = fault.shrink and mine() == "Open MPI"
    fault = Fault(fault.phase, fault.kind, fault.victim, mine(), shrink, fault.zero)
    outcome, output = trial.attempt(sys.executable, fault, weights)
    back = trial.SHRUNK if shrink else trial.RECOVERED
    wanted = trial.ENDED if fault.kind == "disk full" else back
    assert outcome.verdict == wanted, output


def _may_mount() -> bool:
    return os.geteuid() == 0


def struck(folder: Path, steps: str) -> None:
    (folder / "struck.txt").write_text("100.0 6\n")
    (folder / "steps.txt").write_text(steps)


def judged(folder: Path, status: int | None, output: str) -> trial.Outcome:
    fault = Fault("forward", "SIGKILL", "last", "MPICH")
    return trial._judge(fault, folder, status, output, "abc", 1.0, [])


def test_a_job_that_ends_well_with_other_weights_is_wrong(tmp_path):
    struck(tmp_path, "99.0 6 3 0\n101.5 5 3 1\n")
    good = judged(tmp_path, 0, "weights sha256 abc")
    assert (good.verdict, good.back_s, good.lost) == (trial.RECOVERED, 1.5, 1)
    assert judged(tmp_path, 0, "weights sha256 abd").verdict == trial.WRONG
    assert judged(tmp_path, 0, "").verdict == trial.WRONG


def test_a_job_that_does_not_end_or_says_nothing_is_bad(tmp_path):
    struck(tmp_path, "99.0 6 3 0\n")
    assert judged(tmp_path, None, "").verdict == trial.HANG
    assert judged(tmp_path, 1, "").verdict == trial.SILENT
    assert judged(tmp_path, 1, "distgrad.launch: lost").verdict == trial.GAVE_UP


def test_a_fault_that_never_came_is_no_success(tmp_path):
    assert judged(tmp_path, 0, "weights sha256 abc").verdict == trial.NOT_STRUCK


def test_a_torn_checkpoint_is_seen(tmp_path):
    struck(tmp_path, "99.0 6 3 0\n")
    torn = tmp_path / "run" / "checkpoints" / "step_00000004"
    torn.mkdir(parents=True)
    (torn / "index.json").write_text(json.dumps({"format": 2}))
    assert judged(tmp_path, 0, "weights sha256 abc").verdict == trial.TORN


def test_the_table_says_each_outcome_once():
    fault = Fault("forward", "SIGKILL", "last", "MPICH")
    outcomes = {
        fault: trial.Outcome(trial.RECOVERED, 5.0, 1.25, 1),
        Fault("forward", "SIGKILL", "rank 0", "MPICH"): trial.Outcome(trial.HANG, 90.0),
    }
    text = report.table(outcomes, 60.0)
    assert "| forward | SIGKILL | **HANG**; restarted 1.2 s |" in text
    assert text.startswith("2 faults in 1 minutes: 1 recovered, 0 shrunk, 0 ended with the reason")
