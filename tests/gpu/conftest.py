"""Tests that need a CUDA device: where there is none, their modules are skipped as a whole."""

import pytest

from distgrad.backend.device import is_cuda_available


class WithoutDevice(pytest.Module):
    def collect(self):
        pytest.skip("there is no CUDA device")


def pytest_pycollect_makemodule(module_path, parent):
    if not is_cuda_available():
        return WithoutDevice.from_parent(parent, path=module_path)
    return None
