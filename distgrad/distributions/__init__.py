"""Probability distributions: ``distgrad.distributions``.

A distribution has ``sample``, ``log_prob``, ``entropy``, ``mean`` and more.  Two ways lead to
gradients of expectations: ``log_prob`` of samples times what they earned (REINFORCE), and
``rsample``, whose samples are differentiable by the parameters where ``has_rsample`` is true.
"""

from distgrad.distributions import constraints, kl, transforms, utils
from distgrad.distributions.categorical import (
    Categorical,
    Multinomial,
    OneHotCategorical,
    OneHotCategoricalStraightThrough,
)
from distgrad.distributions.composed import (
    Independent,
    MixtureSameFamily,
    TransformedDistribution,
)
from distgrad.distributions.constraint_registry import biject_to, transform_to
from distgrad.distributions.discrete import (
    Bernoulli,
    Binomial,
    ContinuousBernoulli,
    Geometric,
    NegativeBinomial,
    Poisson,
)
from distgrad.distributions.distribution import Distribution, ExponentialFamily
from distgrad.distributions.kl import kl_divergence, register_kl
from distgrad.distributions.multivariate import (
    LKJCholesky,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Wishart,
)
from distgrad.distributions.positive import (
    Beta,
    Chi2,
    Dirichlet,
    Exponential,
    FisherSnedecor,
    Gamma,
)
from distgrad.distributions.real import (
    Cauchy,
    GeneralizedPareto,
    Laplace,
    Normal,
    StudentT,
    Uniform,
    VonMises,
)
from distgrad.distributions.relaxed import RelaxedBernoulli, RelaxedOneHotCategorical
from distgrad.distributions.transformed import (
    Gumbel,
    HalfCauchy,
    HalfNormal,
    InverseGamma,
    Kumaraswamy,
    LogisticNormal,
    LogNormal,
    Pareto,
    Weibull,
)
from distgrad.distributions.transforms import *  # noqa: F403  (its __all__ is this list's end)

__all__ = [
    "Bernoulli", "Beta", "Binomial", "Categorical", "Cauchy", "Chi2", "ContinuousBernoulli",
    "Dirichlet", "Distribution", "Exponential", "ExponentialFamily", "FisherSnedecor", "Gamma",
    "GeneralizedPareto", "Geometric", "Gumbel", "HalfCauchy", "HalfNormal", "Independent",
    "InverseGamma", "Kumaraswamy", "LKJCholesky", "Laplace", "LogNormal", "LogisticNormal",
    "LowRankMultivariateNormal", "MixtureSameFamily", "Multinomial", "MultivariateNormal",
    "NegativeBinomial", "Normal", "OneHotCategorical", "OneHotCategoricalStraightThrough",
    "Pareto", "Poisson", "RelaxedBernoulli", "RelaxedOneHotCategorical", "StudentT",
    "TransformedDistribution", "Uniform", "VonMises", "Weibull", "Wishart", "biject_to",
    "constraints", "kl", "kl_divergence", "register_kl", "transform_to", "transforms", "utils",
]  # fmt: skip
__all__ += transforms.__all__
