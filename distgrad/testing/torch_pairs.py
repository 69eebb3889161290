"""Comparison of a function here with PyTorch's: values and gradients on the same arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from distgrad.autograd import engine
from distgrad.autograd.graph import edge_of
from distgrad.tensor import Tensor, wrap

_rng = np.random.default_rng(0)


def draw(*shape: int) -> Any:
    """Return a float64 array of standard normal numbers."""
    return np.asarray(_rng.standard_normal(shape))


def tensor(array: Any) -> Tensor:
    """Return a tensor on ``array``."""
    return wrap(np.asarray(array))


def agree(
    ours: Callable[..., Any],
    theirs: Callable[..., Any],
    *arrays: Any,
    rtol: float = 1e-6,
    atol: float = 1e-8,
) -> None:
    """Assert that both functions have the same values and gradients.

    Args:
        ours, theirs: take one tensor for each array and return one tensor.
        arrays: float arrays get a gradient, others not.
    """
    import torch  # an optional extra of the tests

    tracks = [np.asarray(a).dtype.kind == "f" for a in arrays]
    xs = [tensor(a).requires_grad_(t) for a, t in zip(arrays, tracks, strict=True)]
    ts = [torch.tensor(a, requires_grad=t) for a, t in zip(arrays, tracks, strict=True)]
    out, want = ours(*xs), theirs(*ts)
    assert out.array.shape == tuple(want.shape), (out.array.shape, tuple(want.shape))
    assert str(out.array.dtype) == str(want.dtype).removeprefix("torch.")
    np.testing.assert_allclose(out.array, want.detach().numpy(), rtol=rtol, atol=atol)
    leaves = [x for x, t in zip(xs, tracks, strict=True) if t]
    if not leaves or not want.requires_grad:
        assert not out.requires_grad or not leaves
        return
    g = np.random.default_rng(1).standard_normal(out.array.shape)
    g = np.asarray(g, out.array.dtype)
    got = engine.run([(edge_of(out), g)], inputs=leaves, accumulate=False)
    wants = torch.autograd.grad(
        want, [t for t in ts if t.requires_grad], torch.tensor(g), allow_unused=True
    )
    for a, b, x in zip(got, wants, leaves, strict=True):
        expected = np.zeros(x.array.shape) if b is None else b.numpy()
        np.testing.assert_allclose(0 if a is None else a, expected, rtol=rtol, atol=atol)
