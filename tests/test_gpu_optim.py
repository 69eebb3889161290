"""Optimizers on a GPU, without one: the kernels run on the emulator."""

import numpy as np
import pytest

import distgrad as dg
from distgrad.backend.device import CPU, device
from distgrad.testing import device_optim as checks
from distgrad.testing import standin
from distgrad.testing.standin import emulator

PLACE = device("cuda:0")
pytestmark = pytest.mark.skipif(emulator.compiler() is None, reason="no g++ to compile kernels")


@pytest.fixture
def machine():
    with standin.installed() as ledger:
        yield ledger
        assert not ledger.hazards and not ledger.refused


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", checks.RULES)
def test_kernels_have_the_bits_of_the_rules(machine, name, dtype):
    host = checks.stepped(name, CPU, dtype)
    for capturable in (False, True):
        got = checks.stepped(name, PLACE, dtype, capturable=capturable)
        for mine, other in zip(got, host, strict=True):
            np.testing.assert_array_equal(mine, other)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["sgd_nesterov", "adamw", "rmsprop"])
def test_narrow_parameters(machine, name, dtype):
    checks.check_narrow(name, PLACE, dtype)


def test_a_step_of_many_parameters_is_two_launches_for_each_48(machine):
    checks.stepped("adamw", PLACE, steps=1)
    assert machine.launches == ["prepare", "adam", "adam"]  # one of 52 is empty


@pytest.mark.parametrize("name", ["adamw", "sgd_nesterov"])
def test_parameters_with_channels_last_are_no_exception(machine, name):
    shapes = [(6, 4, 3, 3), (5,), (3, 8, 1, 1)]
    host = checks.stepped(name, CPU, shapes=shapes)
    for last in ("parameters", "gradients", "both"):
        machine.launches.clear()
        got = checks.stepped(name, PLACE, shapes=shapes, last=last)
        for mine, other in zip(got, host, strict=True):
            np.testing.assert_array_equal(mine, other)
        assert len(machine.launches) == 14  # two a step


def test_norms_and_clipping_of_channels_last_are_launches_of_their_own(machine):
    values = np.random.default_rng(0).standard_normal((6, 4, 3, 3)).astype("f4")
    found = []
    for place, form in ((CPU, dg.contiguous_format), (PLACE, dg.channels_last)):
        p = dg.ones(6, 4, 3, 3, device=place).requires_grad_()
        p.grad = dg.tensor(values, device=place).contiguous(memory_format=form)
        norm = dg.nn.utils.clip_grad_norm_([p], 1.0).item()
        found.append((norm, p.grad.cpu().numpy()))
    assert machine.launches == ["norm_parts", "norm_total", "scale_all"]
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-6)
    np.testing.assert_allclose(found[1][1], found[0][1], rtol=1e-6)


def test_flat_parameters_are_one_array(machine):
    shapes = [(3, 5), (7,), (2,)]  # not aligned to 16 bytes in the flat array
    host = checks.stepped("adamw", CPU, shapes=shapes)
    got = checks.stepped("adamw", PLACE, shapes=shapes, flat=True)
    for mine, other in zip(got, host, strict=True):
        np.testing.assert_array_equal(mine, other)
    assert machine.launches.count("adam") == 7


def test_steps_wait_for_nothing(machine):
    p = dg.ones(100, device=PLACE, requires_grad=True)
    scaler = dg.amp.GradScaler("cuda", init_scale=2.0)
    optimizer = dg.optim.AdamW([p])
    for number in range(4):
        uploads = machine.uploads
        with standin.no_syncs():
            optimizer.zero_grad()
            scaler.scale((p * p).sum()).backward()
            scaler.unscale_(optimizer)
            dg.nn.utils.clip_grad_norm_([p], 1.0)
            scaler.step(optimizer)
            scaler.update()
        assert machine.uploads == uploads, number


def test_threads_of_kernels_may_run_in_any_order(machine):
    results = []
    for machine.seed in range(4):
        params = [dg.zeros(5000, device=PLACE, requires_grad=True) for _ in range(2)]
        for number, p in enumerate(params):
            p.grad = dg.arange(5000.0, device=PLACE) * (number + 1)
        norm = dg.nn.utils.clip_grad_norm_(params, 1.0).item()
        results.append([norm, *params[1].grad[:5].tolist()])
    assert all(r == results[0] for r in results)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_norms(machine, dtype):
    checks.check_norms(PLACE, dtype)


@pytest.mark.parametrize(
    "check", [checks.check_changes, checks.check_rate_on_the_gpu, checks.check_wrong_norms]
)
def test_steps_and_norms(machine, check):
    check(PLACE)


@pytest.mark.parametrize("name", ["adamw", "sgd_nesterov", "rmsprop"])
def test_scalers_leave_steps_out(machine, name):
    checks.check_scaler(name, PLACE)


def test_optimizers_without_a_kernel_step_with_a_scaler(machine, monkeypatch):
    for name, make in (("nadam", dg.optim.NAdam), ("lamb", dg.optim.LAMB)):
        monkeypatch.setitem(checks.RULES, name, make)
        checks.check_scaler(name, PLACE)
