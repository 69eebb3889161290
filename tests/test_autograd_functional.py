"""``autograd.functional`` and batched gradients: one backward with a hidden batch for all rows."""

import numpy as np
import pytest

import distgrad as dg
from distgrad.autograd.functional import hessian, jacobian
from distgrad.func import vmap

RNG = np.random.default_rng(0)
A, B = RNG.standard_normal((2, 3)), RNG.standard_normal((3, 2))

FUNCTIONS = {
    "one output": lambda x, y: (x.cos() * x) @ y.sin(),
    "several": lambda x, y: ((x * x) @ y, x.sum(), y),
    "independent": lambda x, y: dg.ones(2, dtype=dg.float64),
    "constant too": lambda x, y: (x, dg.ones((), dtype=dg.float64)),
}


def _same(one, other):
    if isinstance(one, tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            _same(a, b)
    else:
        np.testing.assert_allclose(one.detach().numpy(), other.detach().numpy(), 1e-12, 1e-15)


@pytest.mark.parametrize("options", [{}, {"strategy": "forward-mode"}])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_all_rows_at_once_are_the_rows_one_by_one(name, options):
    xs = dg.tensor(A), dg.tensor(B)
    _same(jacobian(FUNCTIONS[name], xs, vectorize=True, **options), jacobian(FUNCTIONS[name], xs))


@pytest.mark.parametrize("outer", ["reverse-mode", "forward-mode"])
def test_hessians_at_once(outer):
    def f(x, y):
        return ((x.relu() * x) @ y.sin()).pow(2).sum()

    xs = dg.tensor(A), dg.tensor(B)
    _same(hessian(f, xs, vectorize=True, outer_jacobian_strategy=outer), hessian(f, xs))


def test_all_rows_take_one_backward():
    calls = []
    x = dg.tensor(A, requires_grad=True)
    y = x.sin()
    y.register_hook(lambda g: calls.append(g.shape))
    (found,) = dg.autograd.grad(y, x, dg.ones(4, 2, 3, dtype=dg.float64), is_grads_batched=True)
    assert found.shape == (4, 2, 3) and not found.requires_grad
    assert calls == [(2, 3)]
    np.testing.assert_allclose(found.numpy(), np.broadcast_to(np.cos(A), (4, 2, 3)))


def test_batched_gradients_can_be_differentiated():
    x = dg.tensor([1.0, 2.0], requires_grad=True)
    (rows,) = dg.autograd.grad(x**3, x, dg.eye(2), create_graph=True, is_grads_batched=True)
    assert dg.autograd.grad(rows.sum(), x)[0].tolist() == [6.0, 12.0]


def test_a_jacobian_inside_vmap():
    m = dg.tensor(A)
    got = vmap(lambda r: jacobian(lambda z: z * z, r, vectorize=True))(m)
    np.testing.assert_allclose(got.numpy(), np.stack([np.diag(2 * r) for r in A]))


def test_forward_mode_wants_vectorize():
    with pytest.raises(NotImplementedError, match="only implemented for `vectorize=True`"):
        jacobian(dg.sin, dg.ones(2), strategy="forward-mode")
