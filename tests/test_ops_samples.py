"""Every operation from its samples: forward, gradients in both worlds, second order, jvp."""

import pytest

import distgrad.ops  # noqa: F401  (fills the table)
from distgrad.testing import operations

CASES = [pytest.param(n, i, id=f"{n}-{i}") for n, i in operations.cases()]


@pytest.mark.parametrize(("name", "index"), CASES)
def test_gradients_agree_with_finite_differences(name, index):
    operations.check_gradients(name, index)


@pytest.mark.parametrize(("name", "index"), CASES)
def test_second_derivatives_agree_with_finite_differences(name, index):
    operations.check_second(name, index)


@pytest.mark.parametrize(("name", "index"), CASES)
def test_forward_mode_agrees_with_finite_differences(name, index):
    operations.check_jvp(name, index)


@pytest.mark.parametrize(("name", "index"), CASES)
def test_float32_stays_float32_and_memory_is_shared_only_by_views(name, index):
    operations.check_float32(name, index)


@pytest.mark.torch
@pytest.mark.parametrize(("name", "index"), CASES)
def test_forward_agrees_with_torch(name, index):
    torch = pytest.importorskip("torch")
    operations.check_forward(name, index, torch)
