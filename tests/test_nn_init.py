"""nn.init against PyTorch: the same values from the same seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import distgrad as dg
from distgrad.nn import init

FILLERS: dict[str, tuple[tuple[int, ...], Callable[[Any, Any], Any], float]] = {
    "uniform": ((7, 5), lambda i, t: i.uniform_(t, -2, 3), 0.0),
    "xavier uniform": ((7, 5, 3), lambda i, t: i.xavier_uniform_(t, gain=2.0), 0.0),
    "kaiming uniform": (
        (7, 5),
        lambda i, t: i.kaiming_uniform_(t, mode="fan_out", nonlinearity="relu"),
        0.0,
    ),
    "constant": ((3,), lambda i, t: i.constant_(t, 0.3), 0.0),
    "ones": ((3,), lambda i, t: i.ones_(t), 0.0),
    "zeros": ((3,), lambda i, t: i.zeros_(t), 0.0),
    "eye": ((3, 5), lambda i, t: i.eye_(t), 0.0),
    "dirac": ((6, 2, 3, 4), lambda i, t: i.dirac_(t, groups=2), 0.0),
    "normal": ((7, 5), lambda i, t: i.normal_(t, 1.0, 2.0), 1e-6),
    "few normals": ((3,), lambda i, t: i.normal_(t), 1e-6),
    "xavier normal": ((7, 5), lambda i, t: i.xavier_normal_(t), 1e-6),
    "kaiming normal": ((7, 5, 2, 2), lambda i, t: i.kaiming_normal_(t, a=0.1), 1e-6),
    "truncated normal": ((40, 30), lambda i, t: i.trunc_normal_(t, std=1.5), 1e-6),
    "truncated tail": ((9, 7), lambda i, t: i.trunc_normal_(t, 0.0, 1.0, 1.5, 3.0), 1e-6),
    "tall orthogonal": ((9, 4), lambda i, t: i.orthogonal_(t), 1e-5),
    "wide orthogonal": ((4, 3, 5), lambda i, t: i.orthogonal_(t, gain=2.0), 1e-5),
    "sparse": ((10, 4), lambda i, t: i.sparse_(t, 0.3), 1e-6),
}


@pytest.mark.torch
@pytest.mark.parametrize("name", FILLERS)
def test_values_are_those_of_torch(name: str) -> None:
    torch = pytest.importorskip("torch")
    shape, fill, tolerance = FILLERS[name]
    for dtype in ("float32", "float64"):
        dg.manual_seed(3)
        torch.manual_seed(3)
        ours = dg.empty(shape, dtype=getattr(dg, dtype), requires_grad=True)
        theirs = torch.empty(shape, dtype=getattr(torch, dtype), requires_grad=True)
        assert fill(init, ours) is ours
        fill(torch.nn.init, theirs)
        expected = theirs.detach().numpy()
        np.testing.assert_allclose(ours.array, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.torch
def test_gains_are_those_of_torch() -> None:
    torch = pytest.importorskip("torch")
    for name in ("linear", "conv2d", "conv_transpose3d", "sigmoid", "tanh", "relu", "selu"):
        assert init.calculate_gain(name) == torch.nn.init.calculate_gain(name)
    assert init.calculate_gain("leaky_relu", 0.3) == torch.nn.init.calculate_gain("leaky_relu", 0.3)
    with pytest.raises(ValueError, match="Unsupported nonlinearity gelu"):
        init.calculate_gain("gelu")


def test_a_generator_of_ones_own_is_used_and_the_common_one_left_alone() -> None:
    dg.manual_seed(0)
    first = dg.rand(3)
    dg.manual_seed(0)
    a = init.uniform_(dg.empty(4), generator=dg.Generator().manual_seed(5))
    b = init.uniform_(dg.empty(4), generator=dg.Generator().manual_seed(5))
    assert dg.equal(a, b)
    assert dg.equal(dg.rand(3), first)


def test_a_transposed_tensor_is_filled_in_place() -> None:
    memory = np.zeros((3, 4), "float32")
    init.uniform_(dg.from_numpy(memory).t(), 1.0, 2.0)
    assert memory.min() >= 1.0


def test_filling_is_a_change_in_place_that_backward_notices() -> None:
    w = dg.ones(2, requires_grad=True)
    loss = (w * w).sum()
    init.zeros_(w)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_tensors_of_wrong_dimensions_are_refused() -> None:
    for call in (
        lambda: init.eye_(dg.empty(3)),
        lambda: init.dirac_(dg.empty(3, 3)),
        lambda: init.dirac_(dg.empty(3, 3, 3), groups=2),
        lambda: init.xavier_uniform_(dg.empty(3)),
        lambda: init.orthogonal_(dg.empty(3)),
        lambda: init.sparse_(dg.empty(3), 0.1),
        lambda: init.kaiming_normal_(dg.empty(3, 3), mode="fan"),
    ):
        with pytest.raises(ValueError, match=r"dim|Mode|Fan"):
            call()
    with pytest.warns(UserWarning, match="zero-element"):
        init.kaiming_uniform_(dg.empty(0, 3))
    with pytest.warns(UserWarning, match="more than 2 std"):
        init.trunc_normal_(dg.empty(3), 0.0, 0.1, 1.0, 1.1)
    assert math.isclose(init.calculate_gain("leaky_relu"), math.sqrt(2 / 1.0001))
