"""Tests that need a CUDA device: where there is none, their modules are skipped as a whole.

``python tests/gpu`` runs them in sections; it asks for reports by the variables below.
"""

import json
import os
from contextlib import suppress
from pathlib import Path

import pytest

import distgrad as dg
from distgrad.backend.device import is_cuda_available

RESULTS = os.environ.get("DISTGRAD_GPU_RESULTS")  # a file that gets a line for each test
BEGUN = os.environ.get("DISTGRAD_GPU_BEGUN")  # a file that gets the names of tests that begin
SHARE = os.environ.get("DISTGRAD_GPU_SHARE", "0/1")  # which share of the tests to run, of how many
FINISHED = "finished"  # stands last in that file when none is left
LOST = 86  # how pytest exits when the device can no longer be used by this process


class WithoutDevice(pytest.Module):
    def collect(self):
        pytest.skip("there is no CUDA device")


def pytest_pycollect_makemodule(module_path, parent):
    if not is_cuda_available():
        return WithoutDevice.from_parent(parent, path=module_path)
    return None


@pytest.fixture(autouse=True)
def _exact_float32():
    """Has convolutions compute float32 in float32: results are compared with the host's."""
    switches = dg.backends.cudnn
    before, switches.allow_tf32 = switches.allow_tf32, False
    yield
    switches.allow_tf32 = before


# ---------------------------------------------------------------------- for `python tests/gpu`
def _line(file, text):
    with Path(file).open("a", encoding="utf-8") as out:
        out.write(text + "\n")


def pytest_collection_modifyitems(config, items):
    """Leave out what other processes run, and what has begun in one that ended."""
    number, count = map(int, SHARE.split("/"))
    done = set()
    if BEGUN and Path(BEGUN).exists():
        done = set(Path(BEGUN).read_text(encoding="utf-8").splitlines())
    mine = [item for item in items[number::count] if item.nodeid not in done]
    if len(mine) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in mine])
        items[:] = mine


def pytest_runtest_logstart(nodeid):
    if BEGUN:
        _line(BEGUN, nodeid)


def pytest_sessionfinish(exitstatus):
    if BEGUN and exitstatus in (0, 1, 5):  # all ran, some failed, none was left
        _line(BEGUN, FINISHED)


def pytest_runtest_logreport(report):
    if not RESULTS or (report.when != "call" and report.passed):
        return
    row = {"test": report.nodeid, "outcome": report.outcome, "s": round(report.duration, 3)}
    if not report.passed:
        crash = getattr(getattr(report.longrepr, "reprcrash", None), "message", "")
        row |= {"why": str(crash or report.longrepr)[:500], "text": report.longreprtext[-4000:]}
    _line(RESULTS, json.dumps(row))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """After a failure, see whether the device still answers: an error of a kernel stays."""
    report = yield
    if RESULTS and report.failed and _is_lost():
        pytest_runtest_logreport(report)
        pytest.exit("the device is lost to this process", returncode=LOST)
    return report


def _is_lost():
    with suppress(ImportError):
        import cupy

        try:
            cupy.cuda.runtime.deviceSynchronize()
        except Exception:
            return True
    return False
