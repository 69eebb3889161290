"""Matrices of few numbers, against the same matrices as tensors."""

from __future__ import annotations

import pytest

import distgrad as dg
from distgrad.errors import ArgumentError, ShapeError
from distgrad.ops.coo import sparse_coo_tensor, to_sparse
from distgrad.testing.close import assert_close

PLACES = [[0, 1, 1, 0], [2, 0, 2, 2]]  # one of them twice


def both():
    """Return a sparse matrix, its values and the same matrix as a tensor of them."""
    values = dg.tensor([1.0, 2.0, 3.0, 4.0], requires_grad=True)
    dense = dg.zeros(2, 3).index_put(tuple(dg.tensor(PLACES)), values, accumulate=True)
    return sparse_coo_tensor(PLACES, values, (2, 3)), values, dense


def test_a_product_and_its_gradients_are_those_of_the_dense_matrix():
    got = []
    for kind in (0, 2):
        made = both()
        right = dg.arange(6.0).reshape(3, 2).requires_grad_()
        product = made[kind] @ right
        (product * product).sum().backward()
        got.append((product.detach(), made[1].grad, right.grad))
    for sparse, dense in zip(*got, strict=True):
        assert_close(sparse, dense)


def test_a_dense_factor_and_a_dense_term_may_stand_on_the_left():
    sparse, _, dense = both()
    left = dg.arange(4.0).reshape(2, 2)
    assert_close(left @ sparse, left @ dense)
    assert_close(dg.ones(2, 3) + sparse, dg.ones(2, 3) + dense)
    assert_close(sparse.to_dense(), dense)
    assert_close((sparse * 2).t().to_dense(), 2 * dense.t())


def test_mm_takes_a_sparse_matrix():
    sparse, _, dense = both()
    assert_close(dg.mm(sparse, dg.ones(3, 2)), dg.mm(dense, dg.ones(3, 2)))


def test_to_sparse_keeps_what_is_not_zero():
    x = dg.tensor([[0.0, 5.0], [7.0, 0.0]])
    sparse = x.to_sparse()
    assert sparse.indices().tolist() == [[0, 1], [1, 0]]
    assert sparse.values().tolist() == [5.0, 7.0]
    assert_close(to_sparse(x).to_dense(), x)


def test_coalescing_adds_values_at_one_place():
    sparse, _, _ = both()
    assert sparse.coalesce().values().tolist() == [5.0, 2.0, 3.0]


def test_the_size_follows_from_the_places():
    assert sparse_coo_tensor(PLACES, [1.0, 2.0, 3.0, 4.0]).size() == (2, 3)


def test_places_and_values_must_agree():
    with pytest.raises(ArgumentError, match="a column for each value"):
        sparse_coo_tensor(PLACES, [1.0], (2, 3))
    with pytest.raises(ShapeError, match="two matrices"):
        both()[0] @ dg.ones(4, 1)
