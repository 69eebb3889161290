"""Distances, covariances, modes, histograms and the loss of alignments, beside PyTorch's."""

import numpy as np
import pytest

import distgrad as dg
from distgrad.errors import ShapeError
from distgrad.nn import functional as F
from distgrad.testing.torch_pairs import agree, draw

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


@pytest.mark.parametrize("p", [1.0, 2.0, 3.5, float("inf")])
def test_distances(p):
    agree(lambda a, b: dg.cdist(a, b, p), lambda a, b: torch.cdist(a, b, p),
          draw(2, 3, 4), draw(2, 5, 4))  # fmt: skip
    agree(lambda a: dg.pdist(a, p), lambda a: torch.pdist(a, p), draw(4, 3))
    agree(lambda a, b: dg.dist(a, b, p), lambda a, b: torch.dist(a, b, p), draw(4, 3), draw(3))
    agree(lambda a: dg.renorm(a, p, 1, 1.2), lambda a: torch.renorm(a, p, 1, 1.2), draw(3, 4))


def test_the_distance_of_order_zero_counts_what_differs():
    a, b = dg.tensor([[1.0, 2.0, 3.0]]), dg.tensor([[1.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    assert dg.cdist(a, b, 0.0).tolist() == [[2.0, 0.0]]


def test_covariance():
    often, much = np.array([1, 3, 0, 2]), np.array([0.5, 1.0, 2.0, 0.1])
    for options in ({}, {"correction": 0}, {"fweights": often}, {"aweights": much},
                    {"fweights": often, "aweights": much, "correction": 2}):  # fmt: skip
        ours = {k: v if k == "correction" else dg.tensor(v) for k, v in options.items()}
        theirs = {k: v if k == "correction" else torch.tensor(v) for k, v in options.items()}
        agree(lambda x, o=ours: dg.cov(x, **o), lambda x, o=theirs: torch.cov(x, **o), draw(3, 4))
        agree(lambda x, o=ours: dg.cov(x, **o), lambda x, o=theirs: torch.cov(x, **o), draw(4))
    agree(dg.corrcoef, torch.corrcoef, draw(3, 5))
    agree(dg.nuclear_norm, lambda x: torch.linalg.matrix_norm(x, "nuc"), draw(3, 4))


@pytest.mark.parametrize("shape", [(7,), (3, 8), (2, 5, 4)])
def test_mode_of_values_that_repeat(shape):
    x = np.random.default_rng(0).integers(0, 3, shape)
    for dim in range(-1, len(shape)):
        ours, theirs = dg.mode(dg.tensor(x), dim), torch.mode(torch.tensor(x), dim)
        np.testing.assert_array_equal(ours.values.array, theirs.values.numpy())
        chosen = np.take_along_axis(x, np.expand_dims(ours.indices.array, dim), dim)
        np.testing.assert_array_equal(chosen.squeeze(dim), ours.values.array)


def test_histogram():
    x, w = draw(50), np.abs(draw(50))
    for options in ({"bins": 5}, {"bins": 4, "range": (-1.0, 1.5)}, {"bins": 3, "density": True}):
        for weight in (None, w):
            ours = dg.histogram(
                dg.tensor(x), weight=None if weight is None else dg.tensor(w), **options
            )
            theirs = torch.histogram(
                torch.tensor(x), weight=None if weight is None else torch.tensor(w), **options
            )
            np.testing.assert_allclose(ours.hist.array, theirs.hist.numpy())
            np.testing.assert_allclose(ours.bin_edges.array, theirs.bin_edges.numpy())


def test_mistakes():
    for call in (
        lambda x: dg.cdist(x, dg.ones(2, 4)), lambda x: dg.pdist(x[0]), lambda x: dg.cov(x[None]),
        lambda x: dg.renorm(x, -1, 0, 1), lambda x: dg.histogram(x, 0),
        lambda x: F.ctc_loss(x, x, [1], [1]),
    ):  # fmt: skip
        with pytest.raises(RuntimeError):
            call(dg.ones(2, 3))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("concatenated", [False, True])
def test_ctc_loss(reduction, concatenated):
    targets = np.array([[1, 2, 2], [3, 1, 0], [4, 4, 4]])
    lengths, steps = np.array([3, 2, 0]), np.array([7, 5, 6])
    if concatenated:
        targets = np.array([1, 2, 2, 3, 1])

    def call(lib, x):
        one = (lib.tensor(targets), lib.tensor(steps), lib.tensor(lengths))
        return lib.nn.functional.ctc_loss(
            lib.nn.functional.log_softmax(x, -1), *one, reduction=reduction
        )

    agree(lambda x: call(dg, x), lambda x: call(torch, x), draw(7, 3, 5))


def test_ctc_loss_of_an_impossible_target():
    x = F.log_softmax(dg.tensor(draw(2, 1, 3)).requires_grad_(), -1)
    args = (x, dg.tensor([[1, 1]]), [2], [2])
    assert F.ctc_loss(*args).item() == float("inf")
    assert F.ctc_loss(*args, zero_infinity=True).item() == 0.0
    single = F.ctc_loss(x[:, 0], dg.tensor([1]), 2, 1)
    assert single.shape == ()


def test_points_are_counted_in_boxes():
    points = np.random.default_rng(2).random((50, 2))
    weight = np.random.default_rng(3).random(50)
    want, edges = np.histogramdd(points, [3, 4], weights=weight, density=True)
    found = dg.histogramdd(
        dg.from_numpy(points), [3, 4], weight=dg.from_numpy(weight), density=True
    )
    np.testing.assert_allclose(found.hist, want, 1e-12)
    for ours, theirs in zip(found.bin_edges, edges, strict=True):
        np.testing.assert_allclose(ours, theirs, 1e-12)


def test_the_last_edge_belongs_to_the_last_box():
    found = dg.histogramdd(dg.tensor([[1.0, 0.0], [2.0, 4.0]]),
                           (dg.tensor([0.0, 1.0, 2.0]), dg.tensor([0.0, 4.0])))  # fmt: skip
    assert found.hist.tolist() == [[0.0], [2.0]]
    with pytest.raises(ShapeError, match="at least 2 dimensions"):
        dg.histogramdd(dg.ones(3), 2)


@pytest.mark.parametrize("p", [0.5, 1, 1.5, 2, 3, float("inf"), "nuc"])
def test_norms_of_complex_numbers_have_torchs_gradient(p):
    torch = pytest.importorskip("torch")
    z = np.random.default_rng(4).standard_normal((3, 2)) * (1 + 0.5j) + 0.3j
    ours, theirs = dg.from_numpy(z).requires_grad_(), torch.from_numpy(z).requires_grad_()
    dg.norm(ours, p).backward()
    torch.norm(theirs, p).backward()
    np.testing.assert_allclose(ours.grad, theirs.grad.numpy(), 1e-7)
