"""Checks of memory that is written again: where nobody holds it, and only there.

``tests/test_gpu_standin.py`` runs them on the stand-in for CuPy, ``tests/gpu`` on a real GPU, which
shows that CuPy's own arrays, pointers and memory are counted as `autograd.holders` expects.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import distgrad as dg
from distgrad.backend.device import device
from distgrad.nn import functional as F

__all__ = ["check_logits_in_place", "check_relu_in_place", "check_sums_in_place"]

_SHAPE = (64, 1024)

Take = Callable[[Any], Any]
_HOLDERS: dict[str, Take] = {
    "nobody": lambda t: None,
    "a variable": lambda t: t,
    "a view": lambda t: t[1:],
    "a detached view": lambda t: t.detach().view(-1)[5:],
    "an array": lambda t: t.array,
    "a view of the array": lambda t: t.array[:, ::2],
    "a capsule": lambda t: t.array.__dlpack__() if hasattr(t.array, "__dlpack__") else t.array,
}


def check_logits_in_place(place: device) -> None:
    """Check that a loss's gradient takes the place of logits that nobody holds."""
    values = np.random.default_rng(0).standard_normal(_SHAPE).astype("f4")
    grads = []
    for name, take in _HOLDERS.items():
        given = dg.tensor(values, device=place).requires_grad_()
        logits: Any = given * 2.0
        seen: list[int] = []
        address = logits.data_ptr()
        logits.register_hook(_Noting(seen))
        loss = F.cross_entropy(logits, dg.arange(_SHAPE[0], device=place))
        held = take(logits)
        logits = None
        loss.backward()
        assert (seen == [address]) is (name == "nobody"), name
        if name == "a variable":
            np.testing.assert_array_equal(held.detach().cpu().numpy(), 2 * values)
        grads.append(_numbers(given.grad))
        del held
    for other in grads[1:]:
        np.testing.assert_array_equal(other, grads[0])


class _Noting:
    """A hook that notes where gradients lie."""

    def __init__(self, places: list[int], kept: list[Any] | None = None) -> None:
        self._places, self._kept = places, kept

    def __call__(self, grads: Any, outer: Any = None) -> None:
        """Note the place of a gradient, or of the first of an operation's; hold it if asked."""
        grad = grads if outer is None else grads[0]
        self._places.append(grad.data_ptr())
        if self._kept is not None:
            self._kept.append(grad)


def _numbers(tensor: Any) -> Any:
    return tensor.detach().cpu().numpy()


def check_sums_in_place(place: device) -> None:
    """Check that gradients that meet are added where the first one lies, unless it is held."""
    for hold in (False, True):
        x = dg.ones(_SHAPE, device=place, requires_grad=True)
        base = x * 1.0
        late, first = base.sin(), base.cos()
        places: list[int] = []
        first.grad_fn.register_hook(_Noting(places, [] if hold else None))
        base.register_hook(_Noting(places))
        ((first + late) * 1.0).sum().backward()
        assert (places[0] == places[1]) is not hold
        want = np.full(_SHAPE, np.cos(1.0) - np.sin(1.0), "f4")
        np.testing.assert_allclose(_numbers(x.grad), want, rtol=1e-5)


def check_relu_in_place(place: device) -> None:
    """Check that ReLU in place changes no address and keeps one array, channels last too."""
    for form in (dg.contiguous_format, dg.channels_last):
        x = dg.randn(2, 8, 5, 4, device=place).contiguous(memory_format=form).requires_grad_()
        y = x * 2.0
        address = y.data_ptr()
        assert F.relu(y, inplace=True) is y and y.data_ptr() == address
        assert any(value is y.array for value in y.grad_fn._held)
        y.sum().backward()
        want = 2.0 * (_numbers(x) > 0)
        np.testing.assert_array_equal(_numbers(x.grad), want)
