"""What a user reads when a GPU, its driver, its packages or its memory are not as they must be."""

from __future__ import annotations

from importlib import metadata

import numpy as np
import pytest

import distgrad as dg
from distgrad.alive import largest_tensors
from distgrad.errors import DeviceError, OutOfMemoryError
from distgrad.testing import standin


def install(monkeypatch: pytest.MonkeyPatch, *wheels: str) -> None:
    """Let these distributions of CuPy be installed, and no others."""
    known = metadata.version

    def version(name: str) -> str:
        if not name.startswith("cupy"):
            return known(name)
        if name in wheels:
            return "14.2.0"
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)


def refusal() -> str:
    with pytest.raises(DeviceError) as caught:
        dg.ones(2, device="cuda")
    return str(caught.value)


def test_two_wheels_of_cupy_are_named_with_what_to_uninstall(monkeypatch):
    install(monkeypatch, "cupy-cuda12x", "cupy-cuda13x")
    with standin.installed(-1):
        text = refusal()
    assert "cupy-cuda12x and cupy-cuda13x are installed and break each other" in text
    assert "pip uninstall cupy-cuda12x cupy-cuda13x" in text


def test_a_driver_too_old_is_named_with_the_wheel_that_fits_it(monkeypatch):
    install(monkeypatch, "cupy-cuda13x")
    with standin.installed(-1):
        import cupy

        monkeypatch.setattr(cupy.cuda.runtime, "driverGetVersion", lambda: 12040, raising=False)
        monkeypatch.setattr(cupy.cuda.runtime, "runtimeGetVersion", lambda: 13000, raising=False)
        text = refusal()
    assert "it is for CUDA 13, and the NVIDIA driver knows CUDA 12.4" in text
    assert "pip uninstall cupy-cuda13x and install cupy-cuda12x" in text


def test_a_machine_without_a_driver_is_told_so(monkeypatch):
    install(monkeypatch, "cupy-cuda13x")
    with standin.installed(-1):
        import cupy

        monkeypatch.setattr(cupy.cuda.runtime, "driverGetVersion", lambda: 0, raising=False)
        monkeypatch.setattr(cupy.cuda.runtime, "runtimeGetVersion", lambda: 13000, raising=False)
        text = refusal()
    assert "there is no NVIDIA driver" in text and "or use device 'cpu'" in text


def test_out_of_memory_names_the_operands_what_is_held_and_the_fix(monkeypatch):
    kept = dg.zeros(300, 300)

    def full(*args, **kwargs):
        raise MemoryError("Unable to allocate 3.5 TiB")

    monkeypatch.setattr(np, "concatenate", full)
    monkeypatch.setattr("distgrad.backend.numpy_backend.concatenate", full)
    with pytest.raises(OutOfMemoryError) as caught:
        dg.cat([kept, kept])
    text = str(caught.value)
    assert text.startswith("cat(tensors: [float32[300, 300], float32[300, 300]]")
    assert "Unable to allocate 3.5 TiB" in text and "use a smaller batch" in text


def test_the_largest_tensors_alive_are_counted_by_the_memory_they_share():
    big = dg.zeros(7001, 1000)
    views = [big[:10], big.reshape(-1)]
    text = largest_tensors()
    assert "1 x float32[7001, 1000] (26.7 MiB)" in text
    assert len(views) == 2


def test_operands_on_two_devices_are_both_named():
    with standin.installed(), pytest.raises(DeviceError) as caught:
        dg.ones(2) + dg.ones(2, device="cuda")
    assert "input: float32[2], other: float32[2] on cuda:0" in str(caught.value)


def test_a_tensor_too_large_to_make_is_refused_by_its_size():
    with pytest.raises(OutOfMemoryError, match=r"^zeros\(size=\(1000000000, 10+\)\): out of"):
        dg.zeros(10**9, 10**9)
