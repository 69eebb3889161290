"""Linear algebra: what is composed of operations against PyTorch, and matrices it refuses."""

import math

import numpy as np
import pytest

import distgrad as dg

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


def drawn(*shape):
    return np.asarray(np.random.default_rng(len(shape)).standard_normal(shape))


SQUARE = drawn(3, 3)
SINGULAR = np.outer([1.0, 2.0, 3.0], [1.0, 0.0, 2.0])
POSITIVE = SQUARE @ SQUARE.T + np.eye(3)

CASES = [
    ("det", [SINGULAR], {}),
    ("inv", [drawn(2, 3, 3)], {}),
    ("solve_triangular", [SQUARE + 3 * np.eye(3), drawn(3, 2)], {"upper": True}),
    ("solve_triangular", [SQUARE, drawn(3, 2)], {"upper": False, "unitriangular": True}),
    ("eigvalsh", [POSITIVE], {}),
    ("svdvals", [drawn(3, 2)], {}),
    ("pinv", [drawn(3, 2)], {}),
    ("matrix_power", [SQUARE], {"n": 3}),
    ("matrix_power", [SQUARE], {"n": -2}),
    ("matrix_power", [SQUARE], {"n": 0}),
    ("matrix_exp", [SQUARE * 4], {}),
    ("vector_norm", [drawn(3, 4)], {"ord": 0}),
    ("vector_norm", [np.zeros(3)], {}),
    ("matrix_norm", [drawn(3, 4)], {}),
    ("matrix_norm", [drawn(2, 3, 4)], {"ord": "nuc"}),
    ("matrix_norm", [drawn(2, 3, 4)], {"ord": -math.inf, "dim": (0, 2), "keepdim": True}),
    ("matrix_norm", [drawn(3, 4)], {"ord": 1}),
    ("matrix_norm", [drawn(3, 4)], {"ord": -2, "keepdim": True}),
    ("norm", [drawn(3, 4)], {}),
    ("norm", [drawn(4)], {"ord": 1}),
    ("norm", [drawn(2, 3, 4)], {"ord": 2, "dim": (0, 1)}),
    ("vecdot", [drawn(2, 3), drawn(2, 3)], {}),
    ("cross", [drawn(2, 3), drawn(1, 3)], {}),
    ("diagonal", [drawn(2, 3, 3)], {"offset": 1}),
    ("vander", [drawn(2, 3)], {"N": 4}),
    ("tensorinv", [drawn(2, 3, 6)], {}),
    ("tensorsolve", [drawn(2, 3, 6), drawn(2, 3)], {}),
]


@pytest.mark.parametrize(("name", "arrays", "options"), CASES)
def test_functions_and_their_gradients_agree_with_torch(name, arrays, options):
    results = []
    for library in (torch, dg):
        tensors = [library.tensor(a, requires_grad=True) for a in arrays]
        out = getattr(library.linalg, name)(*tensors, **options)
        (out * out).sum().backward()
        grads = [np.zeros(t.shape) if t.grad is None else t.grad.numpy() for t in tensors]
        results.append((out.detach().numpy(), grads))
    (want, wants), (got, gots) = results
    np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-10)
    for g, w in zip(gots, wants, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("shape", [(3, 3), (4, 2), (2, 4), (2, 3, 2)])
def test_the_factors_of_svd_give_the_matrix_back(shape):
    a = dg.tensor(drawn(*shape))
    u, s, vh = dg.linalg.svd(a, full_matrices=False)
    np.testing.assert_allclose((u * s.unsqueeze(-2) @ vh).numpy(), a.numpy(), atol=1e-12)
    u, s, vh = dg.linalg.svd(a)
    assert u.shape[-1] == shape[-2] and vh.shape[-1] == shape[-1]
    np.testing.assert_allclose((u @ u.mT).numpy(), np.broadcast_to(np.eye(shape[-2]), u.shape),
                               atol=1e-12)  # fmt: skip


def test_a_gradient_through_svd_does_not_depend_on_signs():
    grads = []
    for library in (torch, dg):
        a = library.tensor(drawn(4, 3), requires_grad=True)
        u, s, vh = library.linalg.svd(a, full_matrices=False)
        ((u * s @ vh) ** 3).sum().backward()
        grads.append(a.grad.numpy())
    np.testing.assert_allclose(grads[1], grads[0], atol=1e-10)


@pytest.mark.parametrize("driver", ["gelsy", "gels", "gelsd", "gelss"])
def test_least_squares_agree_with_torch(driver):
    a, b = drawn(4, 2), drawn(4, 3)
    want = torch.linalg.lstsq(torch.tensor(a), torch.tensor(b), driver=driver)
    got = dg.linalg.lstsq(dg.tensor(a), dg.tensor(b), driver=driver)
    for g, w in zip(got, want, strict=True):
        assert tuple(g.shape) == tuple(w.shape)
        np.testing.assert_allclose(g.numpy(), w.numpy(), rtol=1e-9)


def test_multi_dot_takes_vectors_at_the_ends():
    a, b, c = drawn(3), drawn(3, 4), drawn(4)
    got = dg.linalg.multi_dot([dg.tensor(a), dg.tensor(b), dg.tensor(c)])
    np.testing.assert_allclose(got.item(), a @ b @ c)


@pytest.mark.parametrize(
    ("words", "mistake"),
    [
        ("singular", lambda: dg.linalg.inv(dg.ones(2, 2))),
        ("singular", lambda: dg.linalg.solve(dg.ones(2, 2), dg.ones(2))),
        ("square matrices", lambda: dg.linalg.inv(dg.ones(2, 3))),
        ("not positive-definite", lambda: dg.linalg.cholesky(-dg.eye(2))),
        ("Incompatible shapes", lambda: dg.linalg.solve(dg.eye(2), dg.ones(3, 2))),
        ("unrecognized mode", lambda: dg.linalg.qr(dg.eye(2), "x")),
        ("at least 2 dimensions", lambda: dg.linalg.det(dg.ones(3))),
        ("not supported", lambda: dg.linalg.matrix_norm(dg.eye(2), "x")),
        ("floating point", lambda: dg.linalg.inv(dg.tensor([[1]]))),
        ("not differentiable", lambda: _backward_through_complete_qr()),
    ],
)
def test_what_torch_refuses_is_refused(words, mistake):
    with pytest.raises(RuntimeError, match=words):
        mistake()


def _backward_through_complete_qr():
    q, r = dg.linalg.qr(dg.tensor(drawn(3, 2), requires_grad=True), "complete")
    (q.sum() + r.sum()).backward()
