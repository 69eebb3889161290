"""Order: quantiles, unique, ties and nan against PyTorch."""

import numpy as np
import pytest

import distgrad as dg

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

X = np.random.default_rng(0).standard_normal((3, 5))
WITH_NAN = np.where(np.arange(15).reshape(3, 5) == 7, np.nan, X)
NUMBERS = np.random.default_rng(1).integers(0, 3, (4, 3))


@pytest.mark.parametrize("function", ["quantile", "nanquantile"])
@pytest.mark.parametrize("interpolation", ["linear", "lower", "higher", "nearest", "midpoint"])
@pytest.mark.parametrize("data", [X, WITH_NAN], ids=["numbers", "nan"])
def test_quantiles_agree_with_torch(function, interpolation, data):
    for dim in (None, 0, -1):
        for keepdim in (False, True):
            for q in (0.3, np.array([0.0, 0.25, 1.0])):
                got, want = [
                    getattr(L, function)(
                        L.tensor(data),
                        L.tensor(q) if isinstance(q, np.ndarray) else q,
                        dim,
                        keepdim,
                        interpolation=interpolation,
                    )
                    for L in (dg, torch)
                ]
                np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=1e-12)


def test_gradient_of_a_quantile_agrees_with_torch():
    grads = []
    for L in (torch, dg):
        x = L.tensor(X, requires_grad=True)
        (L.quantile(x, 0.4, 1) ** 2).sum().backward()
        grads.append(x.grad.numpy())
    np.testing.assert_allclose(grads[1], grads[0])


@pytest.mark.parametrize("function", ["unique", "unique_consecutive"])
@pytest.mark.parametrize("dim", [None, 0, 1])
def test_unique_agrees_with_torch(function, dim):
    got, want = [
        getattr(L, function)(L.tensor(NUMBERS), return_inverse=True, return_counts=True, dim=dim)
        for L in (dg, torch)
    ]
    for g, w in zip(got, want, strict=True):
        np.testing.assert_array_equal(g.numpy(), w.numpy())


@pytest.mark.parametrize("descending", [False, True])
def test_equals_keep_their_order_and_nan_is_largest(descending):
    data = [1.0, float("nan"), -3.0, 2.0, float("nan"), 1.0, -3.0]
    got, want = [L.sort(L.tensor(data), descending=descending, stable=True) for L in (dg, torch)]
    np.testing.assert_array_equal(got.indices.numpy(), want.indices.numpy())
    np.testing.assert_array_equal(got.values.numpy(), want.values.numpy())


def test_topk_of_many_agrees_with_torch():
    data = np.random.default_rng(2).standard_normal((4, 100))
    for largest in (True, False):
        got, want = [L.topk(L.tensor(data), 7, largest=largest) for L in (dg, torch)]
        np.testing.assert_array_equal(got.indices.numpy(), want.indices.numpy())


def test_bucketize_and_isin_agree_with_torch():
    for L in (torch, dg):
        edges = L.tensor([1.0, 3.0, 5.0])
        assert L.bucketize(L.tensor([0.0, 3.0, 9.0]), edges, right=True).tolist() == [0, 2, 3]
        assert L.isin(L.tensor([1, 2, 3]), L.tensor([3, 1])).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("kind", "words", "mistake"),
    [
        (RuntimeError, "out of range", lambda x: x.topk(9)),
        (RuntimeError, "out of range", lambda x: x.kthvalue(0)),
        (IndexError, "Dimension out of range", lambda x: x.sort(3)),
        (RuntimeError, r"in the range \[0, 1\]", lambda x: x.quantile(2.0)),
        (RuntimeError, "not implemented for", lambda x: x.long().histc()),
        (RuntimeError, "non-negative integral", lambda x: x.bincount()),
        (RuntimeError, "bins must be > 0", lambda x: x.histc(bins=0)),
    ],
)
def test_what_torch_refuses_is_refused(kind, words, mistake):
    with pytest.raises(kind, match=words):
        mistake(dg.tensor(X))
