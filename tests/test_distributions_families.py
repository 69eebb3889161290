"""Every distribution against PyTorch's: densities, moments, quantiles, gradients, samples."""

import math

import numpy as np
import pytest

import distgrad as dg

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

RNG = np.random.default_rng(0)
A = RNG.uniform(0.6, 3, (2, 3))
B = RNG.uniform(0.6, 3, (3,))
LOC = RNG.standard_normal((2, 3))
P = RNG.uniform(0.1, 0.9, (2, 3))
LOGITS = RNG.standard_normal((2, 3))
SIMPLEX = np.full((2, 3), 1 / 3) * [[1.5, 1, 0.5]]
ROOT = RNG.standard_normal((3, 3)) * 0.4
COV = ROOT @ ROOT.T + np.eye(3)
TRIL = np.linalg.cholesky(COV)

# name, parameters, values inside of the support, what the sample of equal seeds is compared by
CASES = [
    ("Bernoulli", {"probs": P}, "bits"),
    ("Bernoulli", {"logits": LOGITS}, "bits"),
    ("Beta", {"concentration1": A, "concentration0": B}, "unit"),
    ("Binomial", {"total_count": np.array(5.0), "probs": P}, "counts"),
    ("Binomial", {"total_count": np.array([5.0, 9, 40]), "logits": LOGITS}, "counts"),
    ("Categorical", {"probs": SIMPLEX}, "category"),
    ("Categorical", {"logits": LOGITS}, "category"),
    ("Cauchy", {"loc": LOC, "scale": A}, "real"),
    ("Chi2", {"df": A}, "positive"),
    ("ContinuousBernoulli", {"probs": P}, "unit"),
    ("ContinuousBernoulli", {"logits": LOGITS}, "unit"),
    ("ContinuousBernoulli", {"probs": np.array([0.4995, 0.5, 0.3])}, "unit"),
    ("Dirichlet", {"concentration": A}, "simplex"),
    ("Exponential", {"rate": A}, "positive"),
    ("FisherSnedecor", {"df1": A, "df2": 3 * B}, "positive"),
    ("Gamma", {"concentration": A, "rate": B}, "positive"),
    ("GeneralizedPareto", {"loc": LOC, "scale": A, "concentration": P / 3}, "above loc"),
    ("Geometric", {"probs": P}, "counts"),
    ("Geometric", {"logits": LOGITS}, "counts"),
    ("Gumbel", {"loc": LOC, "scale": A}, "real"),
    ("HalfCauchy", {"scale": A}, "positive"),
    ("HalfNormal", {"scale": A}, "positive"),
    ("InverseGamma", {"concentration": A + 2, "rate": B}, "positive"),
    ("Kumaraswamy", {"concentration1": A, "concentration0": B}, "unit"),
    ("Laplace", {"loc": LOC, "scale": A}, "real"),
    ("LogNormal", {"loc": LOC, "scale": A}, "positive"),
    ("LogisticNormal", {"loc": LOC, "scale": A}, "simplex 4"),
    ("LowRankMultivariateNormal", {"loc": LOC, "cov_factor": ROOT[:, :2], "cov_diag": B}, "real"),
    ("Multinomial", {"total_count": 5, "probs": SIMPLEX}, "tally"),
    ("Multinomial", {"total_count": 5, "logits": LOGITS}, "tally"),
    ("MultivariateNormal", {"loc": LOC, "covariance_matrix": COV}, "real"),
    ("MultivariateNormal", {"loc": LOC, "precision_matrix": COV}, "real"),
    ("MultivariateNormal", {"loc": LOC[0], "scale_tril": np.stack([TRIL, 2 * TRIL])}, "real"),
    ("NegativeBinomial", {"total_count": np.array(4.0), "probs": P}, "counts"),
    ("NegativeBinomial", {"total_count": A, "logits": LOGITS}, "counts"),
    ("Normal", {"loc": LOC, "scale": B}, "real"),
    ("OneHotCategorical", {"probs": SIMPLEX}, "hot"),
    ("OneHotCategoricalStraightThrough", {"logits": LOGITS}, "hot"),
    ("Pareto", {"scale": A, "alpha": B + 2}, "above scale"),
    ("Poisson", {"rate": A}, "counts"),
    ("RelaxedBernoulli", {"temperature": np.array(0.7), "probs": P}, "unit"),
    ("RelaxedBernoulli", {"temperature": np.array(0.7), "logits": LOGITS}, "unit"),
    ("RelaxedOneHotCategorical", {"temperature": np.array(0.7), "probs": SIMPLEX}, "simplex"),
    ("RelaxedOneHotCategorical", {"temperature": np.array(0.7), "logits": LOGITS}, "simplex"),
    ("StudentT", {"df": 2 * A, "loc": LOC, "scale": B}, "real"),
    ("Uniform", {"low": LOC, "high": LOC + A}, "between"),
    ("VonMises", {"loc": LOC, "concentration": A}, "real"),
    ("Weibull", {"scale": A, "concentration": B}, "positive"),
    ("Wishart", {"df": np.array([3.0, 4.5]), "covariance_matrix": COV}, "matrix"),
    ("Wishart", {"df": np.array(3.5), "scale_tril": TRIL}, "matrix"),
    ("LKJCholesky", {"dim": 3, "concentration": np.array([0.8, 1.7])}, "correlation"),
]
IDS = [f"{name}-{'-'.join(p)}" for name, p, _ in CASES]
every = pytest.mark.parametrize(("name", "parameters", "kind"), CASES, ids=IDS)


def _positive_definite(rng):
    x = rng.standard_normal((4, 2, 3, 3))
    return x @ np.swapaxes(x, -1, -2) + np.eye(3)


def _correlation(rng):
    factor = np.linalg.cholesky(_positive_definite(rng))
    return factor / np.linalg.norm(factor, axis=-1, keepdims=True)


SHAPE = (4, 2, 3)
DRAWN = {
    "real": lambda rng, p: rng.standard_normal(SHAPE),
    "bits": lambda rng, p: rng.integers(0, 2, SHAPE).astype(float),
    "counts": lambda rng, p: rng.integers(0, 5, SHAPE).astype(float),
    "category": lambda rng, p: rng.integers(0, 3, (4, 2)).astype(float),
    "hot": lambda rng, p: np.eye(3)[rng.integers(0, 3, (4, 2))],
    "tally": lambda rng, p: rng.multinomial(5, [0.3, 0.3, 0.4], (4, 2)).astype(float),
    "unit": lambda rng, p: rng.uniform(0.05, 0.95, SHAPE),
    "simplex": lambda rng, p: rng.dirichlet([2, 2, 2], (4, 2)),
    "simplex 4": lambda rng, p: rng.dirichlet([2, 2, 2, 2], (4, 2)),
    "positive": lambda rng, p: rng.uniform(0.1, 4, SHAPE),
    "above loc": lambda rng, p: p["loc"] + rng.uniform(0.1, 4, SHAPE),
    "above scale": lambda rng, p: p["scale"] + rng.uniform(0.1, 4, SHAPE),
    "between": lambda rng, p: p["low"] + rng.uniform(0.1, 0.9, SHAPE) * (p["high"] - p["low"]),
    "matrix": lambda rng, p: _positive_definite(rng),
    "correlation": lambda rng, p: _correlation(rng),
}


def values(kind, parameters):
    """Values of the support: four samples of the batch."""
    return DRAWN[kind](np.random.default_rng(1), parameters)


def as_leaf(library, value, dtype="float64"):
    if not isinstance(value, np.ndarray):
        return value
    return library.tensor(value, dtype=getattr(library, dtype), requires_grad=True)


def both(name, parameters, dtype="float64"):
    """The distribution here and in PyTorch, each with its parameters."""
    made = []
    dtype = "float32" if name == "GeneralizedPareto" else dtype  # all that PyTorch's takes
    for library in (dg, torch):
        leaves = {k: as_leaf(library, v, dtype) for k, v in parameters.items()}
        made.append((getattr(library.distributions, name)(**leaves), leaves))
    return made


def close(ours, theirs, rtol=1e-7, atol=1e-9):
    if theirs.dtype == torch.float32:
        rtol, atol = max(rtol, 1e-4), max(atol, 1e-6)
    assert tuple(ours.shape) == tuple(theirs.shape)
    assert str(ours.dtype).split(".")[1] == str(theirs.dtype).split(".")[1]
    np.testing.assert_allclose(ours.detach().numpy(), theirs.detach().numpy(), rtol, atol)


def gradients(result, leaves):
    """Gradients of a weighted sum; 0 where there is none."""
    weights = np.cos(np.arange(math.prod(result.shape))).reshape(tuple(result.shape))
    library = dg if isinstance(result, dg.Tensor) else torch
    (result * library.tensor(weights, dtype=result.dtype)).sum().backward()
    found = {}
    for name, leaf in leaves.items():
        if hasattr(leaf, "grad"):
            missing = np.zeros(tuple(leaf.shape))
            found[name] = missing if leaf.grad is None else leaf.grad.numpy()
    return found


def compare_gradients(ours, our_leaves, theirs, their_leaves, rtol=1e-6):
    found, wanted = gradients(ours, our_leaves), gradients(theirs, their_leaves)
    for key, want in wanted.items():
        tolerance = (2e-4, 1e-5) if want.dtype == np.float32 else (rtol, 1e-8)
        np.testing.assert_allclose(found[key], want, *tolerance, err_msg=f"gradient of {key}")


@every
def test_densities_and_their_gradients_are_those_of_torch(name, parameters, kind):
    (ours, our_leaves), (theirs, their_leaves) = both(name, parameters)
    value = values(kind, parameters)
    got, want = ours.log_prob(dg.tensor(value)), theirs.log_prob(torch.tensor(value))
    tolerance = 2e-6 if name == "VonMises" else 1e-7  # PyTorch approximates its Bessel functions
    close(got, want, tolerance)
    compare_gradients(got, our_leaves, want, their_leaves, 1e-4 if name == "VonMises" else 1e-6)


@every
def test_shapes_and_text_are_those_of_torch(name, parameters, kind):
    (ours, _), (theirs, _) = both(name, parameters)
    assert tuple(ours.batch_shape) == tuple(theirs.batch_shape)
    assert tuple(ours.event_shape) == tuple(theirs.event_shape)
    assert ours.has_rsample == theirs.has_rsample
    assert ours.has_enumerate_support == theirs.has_enumerate_support
    if name != "Multinomial" and "tensor" not in repr(theirs.support):
        assert repr(ours.support) == repr(theirs.support)
    if name != "Uniform":
        assert sorted(map(str, ours.arg_constraints.items())) == sorted(
            map(str, theirs.arg_constraints.items())
        )


@every
@pytest.mark.parametrize("what", ["mean", "mode", "variance", "stddev", "entropy", "perplexity"])
def test_moments_and_entropies_are_those_of_torch(name, parameters, kind, what):
    (ours, our_leaves), (theirs, their_leaves) = both(name, parameters)
    try:
        want = getattr(theirs, what)
    except NotImplementedError:
        with pytest.raises(NotImplementedError):
            getattr(ours, what)
        return
    got = getattr(ours, what)
    if callable(want):
        try:
            want = want()
        except NotImplementedError:
            with pytest.raises(NotImplementedError):
                got()
            return
        got = got()
    if (name, what) == ("Kumaraswamy", "mode"):
        return  # tested by its own: PyTorch's is nan
    if name == "Categorical" and what in ("mean", "variance", "stddev"):
        assert bool(got.isnan().all()) and got.shape == tuple(want.shape)
        return
    close(got, want, 2e-6 if name == "VonMises" else 1e-7)
    smooth = what in ("mean", "variance", "entropy") and got.requires_grad and want.requires_grad
    if smooth and not bool(want.isnan().any()) and name != "VonMises":
        compare_gradients(got, our_leaves, want, their_leaves)


@every
@pytest.mark.parametrize("what", ["cdf", "icdf"])
def test_cumulative_distributions_are_those_of_torch(name, parameters, kind, what):
    (ours, our_leaves), (theirs, their_leaves) = both(name, parameters)
    value = values(kind if what == "cdf" else "unit", parameters)
    try:
        want = getattr(theirs, what)(torch.tensor(value))
    except (NotImplementedError, RuntimeError, ValueError):
        return  # PyTorch has none
    got = getattr(ours, what)(dg.tensor(value))
    close(got, want, 1e-7)
    if name not in ("InverseGamma", "Gamma", "Chi2"):  # no gradient by the shape in either
        compare_gradients(got, our_leaves, want, their_leaves)


@every
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equal_seeds_give_equal_samples(name, parameters, kind, dtype):
    (ours, _), (theirs, _) = both(name, parameters, dtype)
    if name == "Bernoulli":
        pytest.skip("PyTorch's Bernoulli numbers depend on the processor")
    dg.manual_seed(5)
    torch.manual_seed(5)
    if name == "Wishart":  # PyTorch takes what is valid for singular, and draws it anew
        got, want = ours._bartlett((7,)), theirs._bartlett_sampling((7,))
    else:
        got, want = ours.sample((7,)), theirs.sample((7,))
        assert not got.requires_grad
    close(got, want, 2e-4 if dtype == "float32" else 1e-9, 1e-6 if dtype == "float32" else 1e-12)


@every
def test_gradients_of_samples_are_those_of_torch(name, parameters, kind):
    (ours, our_leaves), (theirs, their_leaves) = both(name, parameters)
    if not theirs.has_rsample:
        with pytest.raises(NotImplementedError):
            ours.rsample()
        return
    dg.manual_seed(5)
    torch.manual_seed(5)
    if name == "Wishart":
        got, want = ours._bartlett((7,)), theirs._bartlett_sampling((7,))
    else:
        got, want = ours.rsample((7,)), theirs.rsample((7,))
    close(got, want, 1e-9, 1e-12)
    rough = {"Beta", "Chi2", "Dirichlet", "FisherSnedecor", "Gamma", "InverseGamma", "StudentT",
             "Wishart"}  # fmt: skip
    # PyTorch approximates the gradients of gamma and beta numbers to three digits.
    compare_gradients(got, our_leaves, want, their_leaves, 5e-3 if name in rough else 1e-6)


@every
def test_supports_are_listed_as_in_torch(name, parameters, kind):
    (ours, _), (theirs, _) = both(name, parameters)
    if not theirs.has_enumerate_support:
        with pytest.raises(NotImplementedError):
            ours.enumerate_support()
        return
    for expand in (True, False):
        try:
            want = theirs.enumerate_support(expand)
        except NotImplementedError:
            with pytest.raises(NotImplementedError):
                ours.enumerate_support(expand)
            continue
        close(ours.enumerate_support(expand), want)


@every
def test_expanded_distributions_are_those_of_torch(name, parameters, kind):
    (ours, _), (theirs, _) = both(name, parameters)
    value = values(kind, parameters)
    batch = value.shape[: value.ndim - len(ours.event_shape)]
    ours, theirs = ours.expand(batch), theirs.expand(batch)
    assert tuple(ours.batch_shape) == batch
    assert ours.sample().shape == ours.sample((2,)).shape[1:] == (*batch, *ours.event_shape)
    close(ours.log_prob(dg.tensor(value)), theirs.log_prob(torch.tensor(value)), 2e-6)


@every
def test_samples_lie_in_the_support(name, parameters, kind):
    ours = both(name, parameters)[0][0]
    assert bool(ours.support.check(ours.sample((50,))).all())


@every
def test_arguments_outside_of_their_constraints_are_refused(name, parameters, kind):
    for key, value in parameters.items():
        if not isinstance(value, np.ndarray) or key == "temperature":
            continue
        wrong = {**parameters, key: np.full_like(value, math.nan)}
        with pytest.raises((ValueError, RuntimeError)):  # RuntimeError: from torch's Cholesky
            getattr(torch.distributions, name)(**{k: as_leaf(torch, v) for k, v in wrong.items()})
        with pytest.raises(ValueError, match=r"Expected parameter|Value of df"):
            getattr(dg.distributions, name)(**{k: as_leaf(dg, v) for k, v in wrong.items()})


@every
def test_values_outside_of_the_support_are_refused(name, parameters, kind):
    (ours, _), (theirs, _) = both(name, parameters)
    value = np.full_like(values(kind, parameters), math.nan)
    with pytest.raises(ValueError, match="within the support"):
        theirs.log_prob(torch.tensor(value))
    with pytest.raises(ValueError, match="within the support"):
        ours.log_prob(dg.tensor(value))
    with pytest.raises(ValueError, match=r"not broadcastable|right-most"):
        ours.log_prob(dg.zeros(7, *value.shape[1:-1], 5))
