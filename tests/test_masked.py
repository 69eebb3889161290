"""Masked reductions: what is not selected does not count."""

import math

import numpy as np
import pytest

import distgrad as dg
from distgrad import masked
from distgrad.errors import ArgumentError

DATA = np.array([[1.0, -2.0, 3.0], [4.0, 0.5, -6.0]])
MASK = np.array([[True, False, True], [False, True, True]])
ALONE = np.ma.masked_array(DATA, ~MASK)


def x(**options):
    return dg.tensor(DATA, **options)


@pytest.mark.parametrize("name", ["sum", "prod", "mean", "var", "std", "argmax", "argmin"])
@pytest.mark.parametrize("dim", [0, 1])
def test_reductions_agree_with_masked_arrays(name, dim):
    options = {"correction": 0} if name in ("var", "std") else {}
    found = getattr(masked, name)(x(), dim, mask=dg.from_numpy(MASK), **options)
    np.testing.assert_allclose(found.double(), getattr(ALONE, name)(dim).data, 1e-6)


@pytest.mark.parametrize(("name", "plain"), [("amax", "max"), ("amin", "min")])
def test_extremes_agree_with_masked_arrays(name, plain):
    found = getattr(masked, name)(x(), 0, keepdim=True, mask=dg.from_numpy(MASK))
    np.testing.assert_array_equal(found, getattr(ALONE, plain)(0, keepdims=True))


def test_integers_have_identities_too():
    counts = dg.tensor([3, 5, 2])
    mask = dg.tensor([True, False, True])
    assert masked.amax(counts, mask=mask).item() == 3
    assert masked.amin(counts, mask=~mask).item() == 5
    assert masked.prod(counts.to(dg.int8), mask=mask).dtype is dg.int64
    assert masked.median(counts, mask=mask).item() == 2


def test_a_mask_broadcasts_with_its_input():
    found = masked.sum(x(), 1, mask=dg.tensor([True, False, False]))
    assert found.tolist() == [1.0, 4.0]


def test_probabilities_go_to_selected_elements():
    mask = dg.from_numpy(MASK)
    found = masked.softmax(x(), 1, mask=mask)
    assert not found[~mask].any()
    np.testing.assert_allclose(found.sum(1), [1, 1], 1e-6)
    np.testing.assert_allclose(masked.log_softmax(x(), 1, mask=mask).exp(), found, 1e-6)
    np.testing.assert_allclose(masked.softmin(-x(), 1, mask=mask), found, 1e-6)


def test_norms_of_selected_elements():
    mask = dg.from_numpy(MASK)
    assert masked.norm(x(), 2, 1, mask=mask)[0].item() == pytest.approx(math.sqrt(10))
    assert masked.norm(x(), -math.inf, 1, mask=mask).tolist() == [1.0, 0.5]
    unit = masked.normalize(x(), 2.0, 1, mask=mask)
    np.testing.assert_allclose((unit * unit).sum(1), [1, 1], 1e-6)


def test_cumulation_goes_past_what_is_not_selected():
    mask = dg.from_numpy(MASK)
    assert masked.cumsum(x(), 1, mask=mask).tolist() == [[1, 1, 4], [0, 0.5, -5.5]]
    assert masked.cumprod(x(), 1, mask=mask).tolist() == [[1, 1, 3], [1, 0.5, -3]]


def test_only_selected_elements_get_a_gradient():
    leaf = x(requires_grad=True)
    masked.logsumexp(leaf, 1, mask=dg.from_numpy(MASK)).sum().backward()
    assert (leaf.grad.numpy() != 0).tolist() == MASK.tolist()


def test_logaddexp_of_one_side_is_that_side():
    one, other = dg.tensor([1.0, 2.0]), dg.tensor([3.0, 4.0])
    mask = dg.tensor([False, True])
    found = masked.logaddexp(one, other, input_mask=mask)
    np.testing.assert_allclose(found, [3.0, np.logaddexp(2.0, 4.0)], 1e-6)


def test_wrong_arguments_are_named():
    with pytest.raises(ArgumentError, match="Could not infer output dtype"):
        masked.mean(dg.tensor([1, 2]))
    with pytest.raises(ArgumentError, match="fully masked out rows"):
        masked.median(dg.tensor([1, 2]), mask=dg.tensor([False, False]))
    with pytest.raises(ArgumentError, match="say the same"):
        masked.var(x(), unbiased=True, correction=1)
