"""The checks of tests/test_gpu_optim.py on a real device."""

import pytest

import distgrad as dg
from distgrad.backend.device import device
from distgrad.testing import device_optim as checks

PLACE = device("cuda:0")
pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", checks.RULES)
def test_kernels_take_the_steps_of_the_rules(name, dtype, capturable):
    checks.check_rule(name, PLACE, dtype, capturable)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["sgd_nesterov", "adamw", "rmsprop"])
def test_narrow_parameters(name, dtype):
    checks.check_narrow(name, PLACE, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_norms(dtype):
    checks.check_norms(PLACE, dtype)


@pytest.mark.parametrize(
    "check", [checks.check_changes, checks.check_rate_on_the_gpu, checks.check_wrong_norms]
)
def test_steps_and_norms(check):
    check(PLACE)


@pytest.mark.parametrize("name", ["adamw", "sgd_nesterov", "nadam", "lamb"])
def test_scalers_leave_steps_out(name, monkeypatch):
    monkeypatch.setitem(checks.RULES, "nadam", dg.optim.NAdam)
    monkeypatch.setitem(checks.RULES, "lamb", dg.optim.LAMB)
    checks.check_scaler(name, PLACE)
