"""The checks of tests/test_gpu_standin.py on a real device."""

import numpy as np
import pytest

import distgrad as dg
from distgrad.backend.device import device
from distgrad.testing import device_calls, device_copies, device_memory, on_device, operations
from distgrad.testing.standin.array import TABLE
from distgrad.testing.standin.snapshot import snapshot

CASES = [pytest.param(n, i, id=f"{n}-{i}") for n, i in operations.cases()]
PLACE = device("cuda:0")
pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
@pytest.mark.parametrize(("name", "index"), CASES)
def test_operations_give_the_hosts_results(name, index, dtype):
    operations.check_device(name, index, PLACE, dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize(("name", "index"), [c for c in CASES if c.values[0] in operations.FUSED])
def test_fused_operations_take_narrow_types(name, index, dtype):
    operations.check_device_narrow(name, index, PLACE, getattr(dg, dtype).numpy)


@pytest.mark.parametrize("name", device_calls.CALLS)
def test_functions_of_many_operations_give_the_hosts_results(name):
    on_device.check_call(name, PLACE)


@pytest.mark.parametrize("name", on_device.RULES)
def test_optimizers_take_the_hosts_steps(name):
    on_device.check_rule(name, PLACE)


def test_a_line_search_finds_what_the_host_finds():
    on_device.check_lbfgs(PLACE)


@pytest.mark.parametrize("optimizer", on_device.OPTIMIZERS)
@pytest.mark.parametrize("model", on_device.MODELS)
def test_training_takes_the_hosts_steps(model, optimizer):
    on_device.check_training(model, optimizer, PLACE)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("model", on_device.MODELS)
def test_data_parallel_training_takes_the_hosts_steps(model, reduction):
    on_device.check_data_parallel(model, reduction, PLACE)


@pytest.mark.parametrize(
    "check",
    [
        on_device.check_conversions,
        on_device.check_numbers,
        on_device.check_views,
        on_device.check_linalg_errors,
        on_device.check_mixed_devices,
        on_device.check_random,
        on_device.check_dropout,
        on_device.check_random_transforms,
        on_device.check_wrong_numbers,
    ],
)
def test_tensors_behave_as_on_the_host(check):
    check(PLACE)


@pytest.mark.parametrize("name", device_memory.__all__)
def test_memory_is_written_again_where_nobody_holds_it(name):
    getattr(device_memory, name)(PLACE)


@pytest.mark.parametrize("check", device_copies.CHECKS)
def test_copies_give_the_hosts_numbers(check):
    check(PLACE)


def test_states_and_files_move_between_devices(tmp_path):
    on_device.check_state(PLACE, tmp_path)


def test_the_stand_in_has_the_names_of_this_cupy():
    found = snapshot()
    if found["version"] != TABLE["version"]:
        pytest.skip(f"the stand-in is CuPy {TABLE['version']}, this is {found['version']}")
    assert found == TABLE
