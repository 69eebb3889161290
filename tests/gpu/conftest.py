"""Tests that need a CUDA device: where there is none, their modules are skipped as a whole."""

import pytest

import distgrad as dg
from distgrad.backend.device import is_cuda_available


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
