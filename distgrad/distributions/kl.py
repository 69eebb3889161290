"""The Kullback-Leibler divergence ``KL(p ‖ q) = E_p[log p - log q]`` of pairs of distributions."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

from distgrad.autograd.gradients import grad
from distgrad.distributions.categorical import Categorical, OneHotCategorical
from distgrad.distributions.composed import Independent, TransformedDistribution, sum_last
from distgrad.distributions.discrete import (
    Bernoulli,
    Binomial,
    ContinuousBernoulli,
    Geometric,
    Poisson,
)
from distgrad.distributions.distribution import Distribution, ExponentialFamily
from distgrad.distributions.multivariate import (
    LowRankMultivariateNormal,
    MultivariateNormal,
    half_log_det,
    mahalanobis,
    solve_lower,
)
from distgrad.distributions.positive import Beta, Dirichlet, Exponential, Gamma
from distgrad.distributions.real import Cauchy, Laplace, Normal, Uniform
from distgrad.distributions.transformed import Gumbel, HalfNormal, Pareto
from distgrad.errors import ArgumentError, ArgumentTypeError
from distgrad.ops.compare import where
from distgrad.ops.create import full_like
from distgrad.ops.special import xlogy
from distgrad.tensor import Tensor

__all__ = ["kl_divergence", "register_kl"]

_EULER = 0.57721566490153286060
_LOG_2_PI = math.log(2 * math.pi)
Rule = Callable[[Any, Any], Any]
_registry: dict[tuple[type, type], Rule] = {}
_found: dict[tuple[type, type], Rule | None] = {}


def register_kl(type_p: type, type_q: type) -> Callable[[Rule], Rule]:
    """Return a decorator that registers a function of two distributions for `kl_divergence`.

    Raises:
        ArgumentTypeError: what is given are no classes.
    """
    for name, kind in (("type_p", type_p), ("type_q", type_q)):
        if not isinstance(kind, type):
            raise ArgumentTypeError(
                f"register_kl(): Expected {name} to be a Distribution subclass but got {kind}"
            )

    def decorator(rule: Rule) -> Rule:
        _registry[type_p, type_q] = rule
        _found.clear()
        return rule

    return decorator


@functools.total_ordering
class _Match:
    """Pairs of classes, the more special ones first."""

    __slots__ = ("types",)

    def __init__(self, first: type, second: type) -> None:
        self.types = first, second

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Match) and self.types == other.types

    def __le__(self, other: _Match) -> bool:
        for mine, others in zip(self.types, other.types, strict=True):
            if not issubclass(mine, others):
                return False
            if mine is not others:
                break
        return True


def _rule_for(type_p: type, type_q: type) -> Rule | None:
    """Return the rule of the most special pair of classes that fits, seen from both sides."""
    fits = [(a, b) for a, b in _registry if issubclass(type_p, a) and issubclass(type_q, b)]
    if not fits:
        return None
    by_left = min(_Match(a, b) for a, b in fits).types
    b, a = min(_Match(b, a) for a, b in fits).types
    by_right = a, b
    left, right = _registry[by_left], _registry[by_right]
    if left is not right:
        names = [f"({a.__name__}, {b.__name__})" for a, b in (by_left, by_right)]
        warnings.warn(
            f"Ambiguous kl_divergence({type_p.__name__}, {type_q.__name__}). Please "
            f"register_kl{names[0]} or register_kl{names[1]}",
            RuntimeWarning,
            stacklevel=3,
        )
    return left


def kl_divergence(p: Distribution, q: Distribution) -> Tensor:
    """Return ``KL(p ‖ q)``, one per distribution of the batch.

    Raises:
        NotImplementedError: no rule is registered for this pair; see `register_kl`.
    """
    pair = type(p), type(q)
    if pair not in _found:
        _found[pair] = _rule_for(*pair)
    rule = _found[pair]
    if rule is None:
        raise NotImplementedError(
            f"No KL(p || q) is implemented for p type {type(p).__name__} and q type "
            f"{type(q).__name__}"
        )
    divergence: Tensor = rule(p, q)
    return divergence


def _infinite_pairs(p: type, *qs: type) -> None:
    """Register infinity for pairs where p allows what q does not."""
    for q in qs:
        register_kl(p, q)(_infinity)


def _infinity(p: Any, q: Any) -> Any:
    some = next(p.__dict__[name] for name in p.arg_constraints if name in p.__dict__)
    return full_like(some, math.inf)


for _p, *_qs in (
    (Beta, Pareto), (ContinuousBernoulli, Pareto),
    (Exponential, Beta, ContinuousBernoulli, Pareto, Uniform),
    (Gamma, Beta, ContinuousBernoulli, Pareto, Uniform),
    (Gumbel, Beta, ContinuousBernoulli, Exponential, Gamma, Pareto, Uniform),
    (Laplace, Beta, ContinuousBernoulli, Exponential, Gamma, Pareto, Uniform),
    (Normal, Beta, ContinuousBernoulli, Exponential, Gamma, Pareto, Uniform),
    (Pareto, Beta, ContinuousBernoulli, Uniform), (Poisson, Bernoulli, Binomial),
):  # fmt: skip
    _infinite_pairs(_p, *_qs)


# ---------------------------------------------------------------------- families
@register_kl(ExponentialFamily, ExponentialFamily)
def _family(p: Any, q: Any) -> Any:
    """Return the Bregman divergence of the log normaliser."""
    if type(p) is not type(q):
        raise NotImplementedError(
            "The cross KL-divergence between different exponential families cannot be computed "
            "using Bregman divergences"
        )
    mine = [x.detach().requires_grad_() for x in p._natural_params]
    norm = p._log_normalizer(*mine)
    slopes = grad(norm.sum(), mine, create_graph=True)
    result = q._log_normalizer(*q._natural_params) - norm
    for own, other, slope in zip(mine, q._natural_params, slopes, strict=True):
        result = result - sum_last((other - own) * slope, len(q.event_shape))
    return result


@register_kl(Independent, Independent)
def _independent(p: Any, q: Any) -> Any:
    if p.reinterpreted_batch_ndims != q.reinterpreted_batch_ndims:
        raise NotImplementedError
    return sum_last(kl_divergence(p.base_dist, q.base_dist), p.reinterpreted_batch_ndims)


@register_kl(TransformedDistribution, TransformedDistribution)
def _transformed(p: Any, q: Any) -> Any:
    if p.transforms != q.transforms or p.event_shape != q.event_shape:
        raise NotImplementedError
    return kl_divergence(p.base_dist, q.base_dist)


# ---------------------------------------------------------------------- of one kind
@register_kl(Bernoulli, Bernoulli)
def _bernoulli(p: Any, q: Any) -> Any:
    some = p.probs * (_softplus(-q.logits) - _softplus(-p.logits))
    some = where(p.probs == 0, 0.0, where(q.probs == 0, math.inf, some))
    none = (1 - p.probs) * (_softplus(q.logits) - _softplus(p.logits))
    return some + where(p.probs == 1, 0.0, where(q.probs == 1, math.inf, none))


def _softplus(x: Tensor) -> Tensor:
    return x.clamp(min=0) + (-x.abs()).exp().log1p()


@register_kl(Beta, Beta)
def _beta(p: Any, q: Any) -> Any:
    mine, others = (p.concentration1, p.concentration0), (q.concentration1, q.concentration0)
    total, other_total = mine[0] + mine[1], others[0] + others[1]
    result = total.lgamma() - other_total.lgamma()
    for a, b in zip(mine, others, strict=True):
        result = result + b.lgamma() - a.lgamma() + (a - b) * a.digamma()
    return result + (other_total - total) * total.digamma()


@register_kl(Binomial, Binomial)
def _binomial(p: Any, q: Any) -> Any:
    # The coefficients cancel for equal counts; a smaller q cannot make what p makes.
    if bool((p.total_count < q.total_count).any()):
        raise NotImplementedError(
            "KL between Binomials where q.total_count > p.total_count is not implemented"
        )
    log_odds = p.probs * (p.logits - q.logits)
    result = p.total_count * (log_odds + (-p.probs).log1p() - (-q.probs).log1p())
    return where(p.total_count > q.total_count, math.inf, result)


@register_kl(OneHotCategorical, OneHotCategorical)
@register_kl(Categorical, Categorical)
def _categorical(p: Any, q: Any) -> Any:
    terms = p.probs * (p.logits - q.logits)
    terms = where((q.probs == 0).expand(terms.shape), math.inf, terms)
    return where((p.probs == 0).expand(terms.shape), 0.0, terms).sum(-1)


@register_kl(ContinuousBernoulli, ContinuousBernoulli)
def _continuous_bernoulli(p: Any, q: Any) -> Any:
    rest = p._log_norm + (-p.probs).log1p() - q._log_norm - (-q.probs).log1p()
    return p.mean * (p.logits - q.logits) + rest


@register_kl(Dirichlet, Dirichlet)
def _dirichlet(p: Any, q: Any) -> Any:
    a, b = p.concentration, q.concentration
    total, other = a.sum(-1), b.sum(-1)
    means = a.digamma() - total.digamma().unsqueeze(-1)
    norms = total.lgamma() - other.lgamma() + (b.lgamma() - a.lgamma()).sum(-1)
    return norms + ((a - b) * means).sum(-1)


@register_kl(Exponential, Exponential)
def _exponential(p: Any, q: Any) -> Any:
    ratio = q.rate / p.rate
    return ratio - ratio.log() - 1


@register_kl(Gamma, Gamma)
def _gamma(p: Any, q: Any) -> Any:
    a, b = p.concentration, q.concentration
    norms = b * (p.rate / q.rate).log() + b.lgamma() - a.lgamma()
    return norms + (a - b) * a.digamma() + (q.rate - p.rate) * (a / p.rate)


@register_kl(Gumbel, Gumbel)
def _gumbel(p: Any, q: Any) -> Any:
    ratio = p.scale / q.scale
    shift, back = q.loc / q.scale, p.loc / q.scale
    hit = (shift + (1 + ratio).lgamma() - back).exp()
    return ratio * _EULER - shift + back + hit - ratio.log() - (1 + _EULER)


@register_kl(Geometric, Geometric)
def _geometric(p: Any, q: Any) -> Any:
    return -p.entropy() - (-q.probs).log1p() / p.probs - q.logits


@register_kl(HalfNormal, HalfNormal)
def _half_normal(p: Any, q: Any) -> Any:
    return _normal(p.base_dist, q.base_dist)


@register_kl(Laplace, Laplace)
def _laplace(p: Any, q: Any) -> Any:
    ratio, away = p.scale / q.scale, (p.loc - q.loc).abs()
    return -ratio.log() + away / q.scale + ratio * (-away / p.scale).exp() - 1


@register_kl(Normal, Normal)
def _normal(p: Any, q: Any) -> Any:
    ratio, away = (p.scale / q.scale).pow(2), ((p.loc - q.loc) / q.scale).pow(2)
    return 0.5 * (ratio + away - 1 - ratio.log())


@register_kl(Pareto, Pareto)
def _pareto(p: Any, q: Any) -> Any:
    ratio, powers = p.scale / q.scale, q.alpha / p.alpha
    result = q.alpha * ratio.log() - powers.log() + powers - 1
    return where(p.scale < q.scale, math.inf, result)


@register_kl(Poisson, Poisson)
def _poisson(p: Any, q: Any) -> Any:
    return p.rate * (p.rate.log() - q.rate.log()) - (p.rate - q.rate)


@register_kl(Uniform, Uniform)
def _uniform(p: Any, q: Any) -> Any:
    result = ((q.high - q.low) / (p.high - p.low)).log()
    return where((q.low > p.low) | (q.high < p.high), math.inf, result)


@register_kl(Cauchy, Cauchy)
def _cauchy(p: Any, q: Any) -> Any:
    both = (p.scale + q.scale).pow(2) + (p.loc - q.loc).pow(2)
    return both.log() - (4 * p.scale * q.scale).log()


# ---------------------------------------------------------------------- normal vectors
@register_kl(LowRankMultivariateNormal, MultivariateNormal)
@register_kl(MultivariateNormal, LowRankMultivariateNormal)
@register_kl(LowRankMultivariateNormal, LowRankMultivariateNormal)
@register_kl(MultivariateNormal, MultivariateNormal)
def _multivariate_normal(p: Any, q: Any) -> Any:
    if p.event_shape != q.event_shape:
        raise ArgumentError(
            f"kl_divergence({p!r}, {q!r}): KL-divergence between two normal distributions with "
            "different event shapes cannot be computed"
        )
    mine, other = p.scale_tril, q.scale_tril
    trace = solve_lower(other, mine).pow(2).sum((-2, -1))
    away = mahalanobis(other, q.loc - p.loc)
    return half_log_det(other) - half_log_det(mine) + 0.5 * (trace + away - p.event_shape[0])


# ---------------------------------------------------------------------- of two kinds: E_p[log q]
@register_kl(Bernoulli, Poisson)
def _bernoulli_poisson(p: Any, q: Any) -> Any:
    return -p.entropy() - (p.probs * q.rate.log() - q.rate)


def _to_exponential(p: Any, q: Any) -> Any:
    return -p.entropy() - q.rate.log() + q.rate * p.mean


_kind: type[Distribution]
for _kind in (Beta, ContinuousBernoulli, Gamma):
    register_kl(_kind, Exponential)(_to_exponential)


@register_kl(Pareto, Exponential)
def _pareto_exponential(p: Any, q: Any) -> Any:
    return where(p.alpha <= 1, math.inf, _to_exponential(p, q))


@register_kl(Uniform, Exponential)
def _uniform_exponential(p: Any, q: Any) -> Any:
    return where(p.low < 0, math.inf, _to_exponential(p, q))


def _to_normal(p: Any, q: Any) -> Any:
    spread = p.variance + (p.mean - q.loc).pow(2)
    return -p.entropy() + 0.5 * _LOG_2_PI + q.scale.log() + 0.5 * spread / q.scale.pow(2)


for _kind in (Beta, ContinuousBernoulli, Exponential, Gamma, Gumbel, Laplace, Uniform):
    register_kl(_kind, Normal)(_to_normal)


@register_kl(Pareto, Normal)
def _pareto_normal(p: Any, q: Any) -> Any:
    return where(p.alpha <= 2, math.inf, _to_normal(p, q))


def _to_gamma(p: Any, q: Any, mean_log: Tensor) -> Any:
    """Return the divergence to a gamma distribution, given the mean of log x."""
    norm = q.concentration.lgamma() - q.concentration * q.rate.log()
    return -p.entropy() + norm - (q.concentration - 1) * mean_log + q.rate * p.mean


@register_kl(Beta, Gamma)
def _beta_gamma(p: Any, q: Any) -> Any:
    total = p.concentration1 + p.concentration0
    return _to_gamma(p, q, p.concentration1.digamma() - total.digamma())


@register_kl(Exponential, Gamma)
def _exponential_gamma(p: Any, q: Any) -> Any:
    return _to_gamma(p, q, -_EULER - p.rate.log())


@register_kl(Pareto, Gamma)
def _pareto_gamma(p: Any, q: Any) -> Any:
    result = _to_gamma(p, q, p.scale.log() + p.alpha.reciprocal())
    return where(p.alpha <= 1, math.inf, result)


@register_kl(Uniform, Gamma)
def _uniform_gamma(p: Any, q: Any) -> Any:
    mean_log = (xlogy(p.high, p.high) - xlogy(p.low, p.low)) / (p.high - p.low) - 1
    return where(p.low < 0, math.inf, _to_gamma(p, q, mean_log))


def _to_gumbel(p: Any, q: Any, hit: Tensor) -> Any:
    """Return the divergence to a Gumbel distribution, given the mean of exp(-x / scale)."""
    return -p.entropy() + q.scale.log() + (p.mean - q.loc) / q.scale + (q.loc / q.scale).exp() * hit


@register_kl(Exponential, Gumbel)
def _exponential_gumbel(p: Any, q: Any) -> Any:
    return _to_gumbel(p, q, 1 / (1 + 1 / (p.rate * q.scale)))


@register_kl(Gamma, Gumbel)
def _gamma_gumbel(p: Any, q: Any) -> Any:
    return _to_gumbel(p, q, (1 + 1 / (p.rate * q.scale)).pow(-p.concentration))


@register_kl(Normal, Gumbel)
def _normal_gumbel(p: Any, q: Any) -> Any:
    return _to_gumbel(p, q, (0.5 * (p.scale / q.scale).pow(2) - p.loc / q.scale).exp())


@register_kl(Uniform, Gumbel)
def _uniform_gumbel(p: Any, q: Any) -> Any:
    ends = (-p.low / q.scale).exp() - (-p.high / q.scale).exp()
    return _to_gumbel(p, q, q.scale * ends / (p.high - p.low))


@register_kl(Normal, Laplace)
def _normal_laplace(p: Any, q: Any) -> Any:
    away = p.loc - q.loc
    unit = away / p.scale
    tail = p.scale * math.sqrt(2 / math.pi) * (-0.5 * unit.pow(2)).exp()
    distance = tail + away * (unit / math.sqrt(2)).erf()
    return -p.entropy() + (2 * q.scale).log() + distance / q.scale


@register_kl(Beta, Uniform)
def _beta_uniform(p: Any, q: Any) -> Any:
    result = -p.entropy() + (q.high - q.low).log()
    return where((q.low > 0) | (q.high < 1), math.inf, result)


@register_kl(ContinuousBernoulli, Uniform)
def _continuous_bernoulli_uniform(p: Any, q: Any) -> Any:
    return _beta_uniform(p, q)


@register_kl(Beta, ContinuousBernoulli)
def _beta_continuous_bernoulli(p: Any, q: Any) -> Any:
    return -p.entropy() - p.mean * q.logits - (-q.probs).log1p() - q._log_norm


def _inside_unit(p: Any, result: Tensor) -> Tensor:
    return where((p.high > 1) | (p.low < 0), math.inf, result)


@register_kl(Uniform, ContinuousBernoulli)
def _uniform_continuous_bernoulli(p: Any, q: Any) -> Any:
    return _inside_unit(p, _beta_continuous_bernoulli(p, q))


@register_kl(Uniform, Beta)
def _uniform_beta(p: Any, q: Any) -> Any:
    a, b, width = q.concentration1, q.concentration0, p.high - p.low
    norm = a.lgamma() + b.lgamma() - (a + b).lgamma()
    log_x = (xlogy(p.high, p.high) - xlogy(p.low, p.low)) / width - 1
    log_rest = (xlogy(1 - p.low, 1 - p.low) - xlogy(1 - p.high, 1 - p.high)) / width - 1
    return _inside_unit(p, norm - p.entropy() - (a - 1) * log_x - (b - 1) * log_rest)


@register_kl(Uniform, Pareto)
def _uniform_pareto(p: Any, q: Any) -> Any:
    mean_log = (xlogy(p.high, p.high) - xlogy(p.low, p.low)) / (p.high - p.low) - 1
    norm = q.alpha.log() + q.alpha * q.scale.log()
    return where(p.low < q.scale, math.inf, (q.alpha + 1) * mean_log - norm - p.entropy())
