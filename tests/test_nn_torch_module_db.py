"""PyTorch's own database of module configurations: form, values and gradients of each."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import distgrad as dg
from distgrad import nn

torch = pytest.importorskip("torch")
common_modules = pytest.importorskip("torch.testing._internal.common_modules")
pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

ENTRIES = {info.name.removeprefix("nn."): info for info in common_modules.module_db}


def _ours(value: Any) -> Any:
    """Return an argument of the database as one of this package."""
    if isinstance(value, torch.Tensor):
        return dg.tensor(value.detach().numpy(), requires_grad=value.requires_grad)
    if isinstance(value, torch.dtype):
        return getattr(dg, str(value).removeprefix("torch."))
    if isinstance(value, torch.device):
        return dg.device(str(value))
    if isinstance(value, list | tuple):
        return type(value)(_ours(v) for v in value)
    if isinstance(value, dict):
        return {k: _ours(v) for k, v in value.items()}
    if isinstance(value, torch.nn.Module):
        pytest.skip("modules as arguments are in the matrix")
    if callable(value) and getattr(value, "__module__", "").startswith("torch"):
        return getattr(dg.nn.functional, value.__name__)
    return value


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, tuple | list):
        return [x for one in value for x in _leaves(one)]
    return [value] if hasattr(value, "requires_grad") else []


def _load(ours: Any, theirs: Any) -> None:
    ours.load_state_dict({k: dg.tensor(v.numpy()) for k, v in theirs.state_dict().items()})


def _same(a: Any, b: Any) -> None:
    assert (a is None) == (b is None)
    if b is not None:
        np.testing.assert_allclose(
            a.detach().numpy(), b.detach().numpy(), rtol=1e-8, atol=1e-9, strict=True
        )


def _backward(outs: list[Any]) -> None:
    tracked = [out for out in outs if out.requires_grad]
    if tracked:
        sum(out.square().sum() for out in tracked).backward()


def _compare(name: str, theirs: Any, given: Any, training: bool) -> None:
    """Compare one configuration with ``theirs``, the module that PyTorch makes of it."""
    made = given.constructor_input
    dg.manual_seed(0)
    ours = getattr(nn, name)(*_ours(made.args), **_ours(made.kwargs)).double().train(training)
    if given.forward_input is None:
        assert repr(ours) == repr(theirs).replace("torch.", "distgrad.")
        return
    args, options = given.forward_input.args, given.forward_input.kwargs
    own, own_options = _ours(args), _ours(options)
    if "Lazy" in name:  # the first call finds the sizes
        theirs(*args, **options)
        ours(*own, **own_options)
    assert repr(ours) == repr(theirs).replace("torch.", "distgrad.")
    _load(ours, theirs)
    torch.manual_seed(1)
    dg.manual_seed(1)
    expected, outs = _leaves(theirs(*args, **options)), _leaves(ours(*own, **own_options))
    assert len(outs) == len(expected)
    _backward(expected)
    _backward(outs)
    for a, b in zip(outs, expected, strict=True):
        _same(a, b)
    pairs = [*zip(ours.parameters(), theirs.parameters(), strict=True)]
    inputs = zip(_leaves(own), _leaves(args), strict=True)
    pairs += [(a, b) for a, b in inputs if b.is_leaf]  # some are computed: PyTorch keeps no grad
    for a, b in pairs:
        _same(a.grad, b.grad)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_every_configuration_of_the_database_agrees(name: str, training: bool) -> None:
    info = ENTRIES[name]
    inputs = info.module_inputs_func(
        info, device="cpu", dtype=torch.float64, requires_grad=True, training=training
    )
    compared = 0
    for given in inputs:
        made = given.constructor_input
        torch.manual_seed(0)
        try:
            theirs = info.module_cls(*made.args, **made.kwargs).double().train(training)
        except Exception:  # a configuration of the database's tests of refusals
            continue
        with warnings.catch_warnings():
            _compare(name, theirs, given, training)
        compared += 1
    assert compared
