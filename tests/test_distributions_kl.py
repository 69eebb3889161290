"""Divergences of every registered pair against PyTorch's, and how pairs are found."""

import math

import numpy as np
import pytest

import distgrad as dg
from distgrad.distributions import kl

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

RNG = np.random.default_rng(2)
ROOT = RNG.standard_normal((3, 3)) * 0.4
COV = ROOT @ ROOT.T + np.eye(3)


def positive():
    return RNG.uniform(0.6, 3, (4,))


def real():
    return RNG.standard_normal((4,))


def chance():
    return RNG.uniform(0.05, 0.45, (4,))


# Two sets of parameters of each: the first as p, the second as q.
PARAMETERS = {
    "Bernoulli": [{"probs": np.array([0, 1, 0.3, 0.7])}, {"probs": chance()}],
    "Beta": [{"concentration1": positive(), "concentration0": positive()} for _ in range(2)],
    "Binomial": [{"total_count": np.array([3.0, 4, 5, 6]), "probs": chance()},
                 {"total_count": np.array([3.0, 3, 5, 6]), "probs": chance()}],
    "Categorical": [{"probs": RNG.dirichlet([1, 2, 3], 4)} for _ in range(2)],
    "Cauchy": [{"loc": real(), "scale": positive()} for _ in range(2)],
    "ContinuousBernoulli": [{"probs": chance()} for _ in range(2)],
    "Dirichlet": [{"concentration": RNG.uniform(0.5, 3, (4, 3))} for _ in range(2)],
    "Exponential": [{"rate": positive()} for _ in range(2)],
    "Gamma": [{"concentration": positive(), "rate": positive()} for _ in range(2)],
    "Geometric": [{"probs": chance()} for _ in range(2)],
    "Gumbel": [{"loc": real(), "scale": positive()} for _ in range(2)],
    "HalfNormal": [{"scale": positive()} for _ in range(2)],
    "Laplace": [{"loc": real(), "scale": positive()} for _ in range(2)],
    "LowRankMultivariateNormal": [
        {"loc": RNG.standard_normal((2, 3)), "cov_factor": ROOT[:, :2],
         "cov_diag": RNG.uniform(0.5, 2, (2, 3))} for _ in range(2)
    ],
    "MultivariateNormal": [
        {"loc": RNG.standard_normal((2, 3)), "covariance_matrix": np.stack([c * COV] * 2)}
        for c in (1, 2)
    ],
    "Normal": [{"loc": real(), "scale": positive()} for _ in range(2)],
    "OneHotCategorical": [{"logits": RNG.standard_normal((4, 3))} for _ in range(2)],
    "Pareto": [{"scale": positive(), "alpha": np.array([0.7, 1.5, 2.5, 3.5])},
               {"scale": np.array([0.1, 0.2, 5, 0.1]), "alpha": positive()}],
    "Poisson": [{"rate": positive()} for _ in range(2)],
    "Uniform": [{"low": np.array([0.2, 0.1, -0.5, 0.3]), "high": np.array([0.7, 0.9, 0.8, 2])},
                {"low": np.array([0, -0.1, -0.6, -1]), "high": np.array([0.9, 1.2, 1.5, 5])}],
}  # fmt: skip
PAIRS = sorted(
    (a.__name__, b.__name__)
    for a, b in torch.distributions.kl._KL_REGISTRY
    if a.__name__ in PARAMETERS and b.__name__ in PARAMETERS
)


def made(library, name, which):
    leaves = {
        key: library.tensor(value, dtype=library.float64, requires_grad=True)
        for key, value in PARAMETERS[name][which].items()
    }
    return getattr(library.distributions, name)(**leaves), list(leaves.values())


def test_the_pairs_are_those_of_torch():
    ours = {(a.__name__, b.__name__) for a, b in kl._registry}
    assert ours == {(a.__name__, b.__name__) for a, b in torch.distributions.kl._KL_REGISTRY}


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_divergences_and_their_gradients_are_those_of_torch(first, second):
    results = []
    for library in (dg, torch):
        (p, leaves), (q, more) = made(library, first, 0), made(library, second, 1)
        found = library.distributions.kl_divergence(p, q)
        slopes = []
        if bool(library.isfinite(found).all()) and found.requires_grad:
            found.sum().backward()
            slopes = [t.grad.numpy() for t in leaves + more if t.grad is not None]
        results.append((found.detach().numpy(), slopes))
    (ours, our_slopes), (theirs, their_slopes) = results
    np.testing.assert_allclose(ours, theirs, 1e-8, 1e-10)
    if first != "Bernoulli":  # at 0 and 1 PyTorch's gradients are those of clamped logits
        for got, want in zip(our_slopes, their_slopes, strict=True):
            np.testing.assert_allclose(got, want, 1e-6, 1e-9)


@pytest.mark.parametrize("name", ["Gamma", "Normal", "Beta", "Dirichlet", "Exponential", "Poisson"])
def test_the_divergence_of_exponential_families_is_that_of_the_formula(name):
    p, q = made(dg, name, 0)[0], made(dg, name, 1)[0]
    np.testing.assert_allclose(
        kl._family(p, q).detach(), dg.distributions.kl_divergence(p, q).detach(), 1e-8
    )


def test_independent_and_transformed_distributions_use_their_bases():
    D = dg.distributions
    p, q = D.Normal(dg.zeros(2, 3), 1.0), D.Normal(dg.ones(2, 3), 1.0)
    independent = D.kl_divergence(D.Independent(p, 1), D.Independent(q, 1))
    np.testing.assert_allclose(independent, [1.5, 1.5])
    logs = D.kl_divergence(D.LogNormal(dg.zeros(2), 1.0), D.LogNormal(dg.ones(2), 1.0))
    np.testing.assert_allclose(logs, [0.5, 0.5])
    with pytest.raises(NotImplementedError):
        D.kl_divergence(D.Independent(p, 1), D.Independent(q, 2))
    with pytest.raises(NotImplementedError, match="No KL"):
        D.kl_divergence(D.Cauchy(0.0, 1.0), D.Poisson(1.0))
    with pytest.raises(NotImplementedError, match="different exponential families"):
        D.kl_divergence(D.Normal(0.0, 1.0), D.Poisson(1.0))


def test_users_register_rules_and_the_most_special_one_wins():
    class Mine(dg.distributions.Normal):
        pass

    p, q = Mine(0.0, 1.0), Mine(1.0, 1.0)
    assert dg.distributions.kl_divergence(p, q).item() == 0.5

    @dg.distributions.register_kl(Mine, Mine)
    def _mine(p, q):
        return dg.tensor(7.0)

    assert dg.distributions.kl_divergence(p, q).item() == 7
    del kl._registry[Mine, Mine]
    kl._found.clear()
    with pytest.raises(TypeError, match="type_p"):
        dg.distributions.register_kl(3, Mine)


def test_ambiguous_rules_are_announced():
    class P(dg.distributions.Normal):
        pass

    class Q(dg.distributions.Normal):
        pass

    rules = {(P, dg.distributions.Normal): 1.0, (dg.distributions.Normal, Q): 2.0}
    for pair, value in rules.items():
        dg.distributions.register_kl(*pair)(lambda p, q, value=value: dg.tensor(value))
    with pytest.warns(RuntimeWarning, match="Ambiguous"):
        assert dg.distributions.kl_divergence(P(0.0, 1.0), Q(0.0, 1.0)).item() == 1
    for pair in rules:
        del kl._registry[pair]
    kl._found.clear()


def test_binomials_of_more_trials_than_allowed_are_refused():
    D = dg.distributions
    with pytest.raises(NotImplementedError, match="total_count"):
        D.kl_divergence(D.Binomial(3, 0.5), D.Binomial(4, 0.5))
    assert math.isinf(D.kl_divergence(D.Binomial(4, 0.5), D.Binomial(3, 0.5)).item())
