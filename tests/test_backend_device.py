"""Devices: names, the default, and what is said when there is no GPU."""

from __future__ import annotations

import importlib.util
import pickle
import sys
import types

import numpy as np
import pytest

from distgrad.backend import device as dev
from distgrad.backend import numpy_backend
from distgrad.backend.device import CPU, device
from distgrad.errors import ArgumentTypeError, DeviceError


class NoDriver(Exception):
    """What CuPy raises without a driver."""


def pretend_cupy(monkeypatch, count):
    """Installs a module that looks like CuPy as far as the count of GPUs."""
    cupy = types.ModuleType("cupy")
    cupy.__version__ = "14.0.0"

    def count_or_fail():
        if isinstance(count, Exception):
            raise count
        return count

    runtime = types.SimpleNamespace(getDeviceCount=count_or_fail, CUDARuntimeError=NoDriver)
    cupy.cuda = types.SimpleNamespace(runtime=runtime)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(dev, "_CUDA_COUNT", 0)


@pytest.mark.parametrize(
    ("made", "text", "form"),
    [
        (device("cpu"), "cpu", "device(type='cpu')"),
        (device("cuda"), "cuda", "device(type='cuda')"),
        (device("cuda:1"), "cuda:1", "device(type='cuda', index=1)"),
        (device("cuda", 2), "cuda:2", "device(type='cuda', index=2)"),
        (device(3), "cuda:3", "device(type='cuda', index=3)"),
        (device(device("cuda:1")), "cuda:1", "device(type='cuda', index=1)"),
    ],
)
def test_a_device_prints_as_in_pytorch(made, text, form):
    assert (str(made), repr(made)) == (text, form)
    assert pickle.loads(pickle.dumps(made)) == made


def test_devices_compare_by_type_and_number():
    assert device("cuda:0") != device("cuda")
    assert device("cuda:0") != "cuda:0"
    assert len({device("cuda:1"), device("cuda", 1), device(1)}) == 1


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "cuda:-1", "cuda:01", "", "CPU"])
def test_other_names_are_refused_with_the_possible_ones(name):
    with pytest.raises(DeviceError, match="use 'cpu'"):
        device(name)


def test_wrong_types_and_numbers_are_refused():
    with pytest.raises(ArgumentTypeError):
        device(1.5)
    with pytest.raises(DeviceError, match="start at 0"):
        device(-1)
    with pytest.raises(DeviceError, match="one cpu"):
        device("cpu", 1)


@pytest.mark.skipif(importlib.util.find_spec("cupy") is not None, reason="CuPy is installed")
def test_cuda_without_cupy_says_what_to_install():
    with pytest.raises(
        DeviceError, match=r"CuPy is not installed; pip install 'distgrad\[cuda12\]"
    ):
        dev.namespace_of(device("cuda"))
    assert not dev.is_cuda_available()


@pytest.mark.parametrize(
    ("count", "why"),
    [
        (0, "the NVIDIA driver reports no GPU; expose one to this process"),
        (
            NoDriver("cudaErrorInsufficientDriver"),
            r"there is no NVIDIA driver \(cudaErrorInsufficientDriver\); install one",
        ),
    ],
)
def test_cuda_without_a_driver_says_so(monkeypatch, count, why):
    pretend_cupy(monkeypatch, count)
    with pytest.raises(DeviceError, match=rf"CuPy 14\.0\.0 is installed, but {why}"):
        dev.to_device(np.ones(2), device("cuda"))
    assert dev.cuda_device_count() == 0


def test_a_number_beyond_the_last_gpu_is_refused(monkeypatch):
    pretend_cupy(monkeypatch, 2)
    assert dev.cuda_device_count() == 2
    with pytest.raises(DeviceError, match="there are 2 GPUs"):
        dev.namespace_of(device("cuda:2"))


def test_a_device_as_context_is_the_default_inside():
    assert dev.get_default_device() is CPU
    with device("cuda:1"):
        with device("cpu"):
            assert dev.get_default_device() == CPU
        assert dev.get_default_device() == device("cuda:1")
    assert dev.get_default_device() is CPU


def test_numpy_arrays_and_scalars_belong_to_the_cpu():
    for array in (np.ones(2), np.float32(1), np.ones(2).view(np.matrix)):
        assert dev.array_namespace(array) is numpy_backend
        assert dev.device_of(array) is CPU
    x = np.ones(2)
    assert dev.to_device(x, device("cpu")) is x


def test_a_list_is_no_array():
    with pytest.raises(ArgumentTypeError, match="not a NumPy or CuPy array"):
        dev.array_namespace([1, 2])


@pytest.mark.torch
@pytest.mark.parametrize("args", [("cpu",), ("cuda:1",), ("cuda", 0), ("cpu", 0)])
def test_devices_are_named_as_in_pytorch(args):
    torch = pytest.importorskip("torch")
    assert repr(device(*args)) == repr(torch.device(*args))
    assert str(device(*args)) == str(torch.device(*args))


@pytest.mark.parametrize("name", ["meta", "mps", "xpu"])
def test_other_kinds_of_pytorch_are_names_only(name):
    assert device(name).type == name != "cpu"
    with pytest.raises(DeviceError, match="no arrays on this kind of device"):
        dev.namespace_of(device(name))
