"""The samplers below the distributions: streams, slopes, and what they refuse."""

import math

import numpy as np
import pytest

import distgrad as dg
from distgrad.backend import rejection

RNG = np.random.default_rng(4)
SHAPES = np.exp(RNG.uniform(-5, 6, 300))


def wide(number):
    return dg.tensor(number, dtype=dg.float64)


def cumulated(shape, x):
    return dg.igamma(wide(shape), wide(x)).item()


def seeded(*libraries):
    for library in libraries:
        library.manual_seed(3)


@pytest.mark.torch
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_streams_are_those_of_torch(dtype):
    torch = pytest.importorskip("torch")
    seeded(dg, torch)
    shapes = SHAPES.astype(dtype)
    counts = np.floor(np.exp(RNG.uniform(0, 6, 300))).astype(dtype)
    probs = RNG.uniform(0, 1, 300).astype(dtype)
    for name, parameters in (
        ("_standard_gamma", (shapes,)), ("_sample_dirichlet", (shapes.reshape(100, 3),)),
        ("binomial", (counts, probs)), ("_standard_gamma", (shapes[:7],)),
    ):  # fmt: skip
        got = getattr(dg, name)(*map(dg.tensor, parameters))
        want = getattr(torch, name)(*map(torch.tensor, parameters))
        np.testing.assert_array_equal(got, want.numpy(), name)
    np.testing.assert_array_equal(dg.randn(3), torch.randn(3).numpy())  # the streams go on alike


@pytest.mark.torch
def test_slopes_are_near_the_approximations_of_torch():
    torch = pytest.importorskip("torch")
    samples = torch._standard_gamma(torch.tensor(SHAPES))
    got = dg._standard_gamma_grad(dg.tensor(SHAPES), dg.tensor(samples.numpy()))
    np.testing.assert_allclose(got, torch._standard_gamma_grad(torch.tensor(SHAPES), samples), 2e-3)
    shapes = SHAPES.reshape(100, 3)
    totals = np.repeat(shapes.sum(-1, keepdims=True), 3, -1)
    parts = torch._sample_dirichlet(torch.tensor(shapes))
    want = torch._dirichlet_grad(parts, torch.tensor(shapes), torch.tensor(totals))
    got = dg._dirichlet_grad(*map(dg.tensor, (parts.numpy(), shapes, totals)))
    np.testing.assert_allclose(got, want, 1e-2)


@pytest.mark.parametrize("a", [0.05, 0.3, 1.0, 2.5, 40.0, 3000.0])
@pytest.mark.parametrize("quantile", [0.001, 0.3, 0.5, 0.9, 0.9999])
def test_the_slope_of_a_gamma_number_is_that_of_its_quantile(a, quantile):
    """dx/da = -(dP/da) / p, with the difference of P for dP/da."""
    low, high = -800.0, math.log(a + 50 * math.sqrt(a) + 50)
    for _ in range(200):  # the quantile, by bisection of its logarithm
        middle = (low + high) / 2
        below = cumulated(a, math.exp(middle))
        low, high = (middle, high) if below < quantile else (low, middle)
    x = math.exp(low)
    step = 3e-4 * min(a, math.sqrt(a))

    by_shape = (cumulated(a + step, x) - cumulated(a - step, x)) / (2 * step)
    density = math.exp((a - 1) * math.log(x) - x - math.lgamma(a))
    got = dg._standard_gamma_grad(wide(a), wide(x)).item()
    assert math.isclose(got, -by_shape / density, rel_tol=1e-5)


@pytest.mark.parametrize("a", [0.3, 1.0, 4.0, 500.0])
@pytest.mark.parametrize("x", [1e-6, 0.01, 0.3, 0.7, 0.99])
def test_the_slope_of_a_beta_number_is_that_of_its_quantile(a, x):
    """Beta(a, 1) has the distribution function x^a, so dx/da = -x log(x) / a."""
    got = dg._dirichlet_grad(wide(x), wide(a), wide(a + 1)).item() * (1 - x)
    assert math.isclose(got, -x * math.log(x) / a, rel_tol=1e-9)


def test_gradients_of_means_of_samples_are_gradients_of_the_mean():
    dg.manual_seed(0)
    shape = dg.tensor([0.7, 3.0], dtype=dg.float64, requires_grad=True)
    dg.distributions.Gamma(shape, 2.0).rsample((20000,)).mean(0).sum().backward()
    np.testing.assert_allclose(shape.grad, [0.5, 0.5], atol=0.02)
    shape = dg.tensor([0.7, 3.0, 1.0], dtype=dg.float64, requires_grad=True)
    made = dg.distributions.Dirichlet(shape)
    (got,) = dg.autograd.grad(made.rsample((20000,)).mean(0)[0], shape)
    (want,) = dg.autograd.grad(made.mean[0], shape)
    np.testing.assert_allclose(got, want, atol=0.01)


def test_samples_have_the_moments_of_their_distribution():
    dg.manual_seed(1)
    for made in (
        dg.distributions.Gamma(dg.tensor([0.2, 1.0, 30.0]).double(), 1.0),
        dg.distributions.Binomial(dg.tensor([7.0, 40.0, 400.0]).double(), dg.tensor(0.7).double()),
        dg.distributions.VonMises(dg.tensor([0.0, 0.5]).double(), 60.0),
    ):
        drawn = made.sample((20000,))
        spread = 5 * (made.variance / 20000).sqrt()
        assert bool(((drawn.mean(0) - made.mean).abs() < spread).all()), made
        np.testing.assert_allclose(drawn.var(0), made.variance, 0.07 if "Von" not in repr(made)
                                   else 1.1)  # fmt: skip


def test_second_derivatives_of_samples_are_refused():
    shape = dg.tensor(2.0, requires_grad=True)
    dg.manual_seed(0)
    slope = dg.autograd.grad(dg._standard_gamma(shape), shape, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="first derivatives"):
        slope.backward()


def test_what_cannot_be_sampled_is_refused():
    with pytest.raises(RuntimeError, match=r"binomial\(count: int64\[2\]\)|binomial\("):
        dg.binomial(dg.tensor([1, 2]), dg.tensor(0.5))
    with pytest.raises(RuntimeError, match="one dtype"):
        dg.binomial(dg.tensor(1.0), dg.tensor(0.5).double())
    with pytest.raises(RuntimeError, match="broadcast"):
        dg.binomial(dg.ones(2), dg.ones(3))
    with pytest.raises(NotImplementedError, match="_standard_gamma"):
        dg._standard_gamma(dg.tensor([1, 2]))
    edge = dg.binomial(dg.tensor([0.0, 5, 5, 5]), dg.tensor([0.5, 0, 1, -1]))
    assert edge.tolist() == [0, 0, 5, 0]
    assert dg._standard_gamma(dg.zeros(1)).item() == np.finfo(np.float32).tiny


def test_rejection_draws_only_what_it_needs():
    uniforms, normals = iter([0.25, 0.5]), iter([0.3])
    source = rejection.Source(lambda: next(uniforms), lambda: next(normals))
    d = 1.5 - 1 / 3
    small = rejection.gamma(source, 0.5)
    y = (1 + 0.3 / math.sqrt(9 * d)) ** 3
    assert math.isclose(small, d * y * 0.75**2, rel_tol=1e-6)
