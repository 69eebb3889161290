"""Distributions of vectors and of matrices, around the normal one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

from distgrad.backend.dtype import finfo
from distgrad.distributions import constraints
from distgrad.distributions.distribution import Distribution, ExponentialFamily
from distgrad.distributions.positive import Beta, Chi2
from distgrad.distributions.utils import (
    as_tensors,
    lazy_property,
    random_normal,
    vec_to_tril_matrix,
)
from distgrad.errors import ArgumentError
from distgrad.ops.arrange import diag_embed, flip
from distgrad.ops.compare import where
from distgrad.ops.join import cat
from distgrad.ops.linalg import slogdet
from distgrad.ops.probability import mvlgamma
from distgrad.ops.ranges import arange, eye
from distgrad.ops.shape import broadcast_shapes, diagonal
from distgrad.ops.triangular import (
    cholesky,
    cholesky_inverse,
    cholesky_solve,
    solve_triangular,
)
from distgrad.tensor import Size, Tensor

__all__ = ["LKJCholesky", "LowRankMultivariateNormal", "MultivariateNormal", "Wishart"]


def batch_mv(matrix: Tensor, vector: Tensor) -> Tensor:
    """Return the products of matrices and vectors, with broadcasting batches."""
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def half_log_det(factor: Tensor) -> Tensor:
    """Return half the logarithm of the determinant of a matrix, from its Cholesky factor."""
    return diagonal(factor, 0, -2, -1).log().sum(-1)


def solve_lower(factor: Tensor, right: Tensor) -> Tensor:
    """Return ``factor⁻¹ right`` of lower triangles, with broadcasting batches."""
    batch = broadcast_shapes(factor.shape[:-2], right.shape[:-2])
    factor = factor.expand(*batch, *factor.shape[-2:])
    right = right.expand(*batch, *right.shape[-2:])
    return solve_triangular(factor, right, upper=False)


def mahalanobis(factor: Tensor, away: Tensor) -> Tensor:
    """Return ``awayᵀ Σ⁻¹ away``, from the Cholesky factor of Σ."""
    return solve_lower(factor, away.unsqueeze(-1)).pow(2).sum((-2, -1))


def factor_of_inverse(precision: Tensor) -> Tensor:
    """Return the lower Cholesky factor of the inverse of a matrix."""
    # P = L Lᵀ of the matrix turned by 180° is P = U Uᵀ with an upper U; then P⁻¹ = U⁻ᵀ U⁻¹.
    turned = cholesky(flip(precision, (-2, -1)))
    upper = flip(turned, (-2, -1)).mT
    identity = eye(precision.shape[-1], dtype=precision.dtype, device=precision.device)
    return solve_lower(upper, identity)


def log_abs_det(matrix: Tensor) -> Tensor:
    """Return the logarithm of the absolute value of the determinant."""
    found: Tensor = slogdet(matrix)[1]
    return found


class OfMatrix(Distribution):
    """Distributions given by a covariance, by its inverse, or by its Cholesky factor."""

    _matrix_name = "covariance_matrix"

    def _one_matrix(self, **matrices: Any) -> dict[str, Tensor]:
        given = {name: m for name, m in matrices.items() if m is not None}
        if len(given) != 1:
            raise ArgumentError(
                f"{type(self).__name__}(): Exactly one of covariance_matrix or precision_matrix "
                "or scale_tril may be specified."
            )
        ((name, matrix),) = given.items()
        if matrix.ndim < 2:
            raise ArgumentError(
                f"{type(self).__name__}({name}: {matrix._brief()}): {name} must be at least "
                "two-dimensional, with optional leading batch dimensions"
            )
        return given

    @lazy_property
    def scale_tril(self) -> Tensor:
        """Return the lower Cholesky factor of the covariance."""
        if "precision_matrix" in self.__dict__:
            return factor_of_inverse(self.precision_matrix)
        return cholesky(self.covariance_matrix)

    @lazy_property
    def covariance_matrix(self) -> Tensor:
        """Return the covariance."""
        return self.scale_tril @ self.scale_tril.mT

    @lazy_property
    def precision_matrix(self) -> Tensor:
        """Return the inverse of the covariance."""
        return cholesky_inverse(self.scale_tril)


class MultivariateNormal(OfMatrix):
    """The normal distribution of vectors.

    Args:
        loc: the mean.
        covariance_matrix, precision_matrix, scale_tril: one of them: the covariance, its inverse,
            or its lower Cholesky factor, which is the fastest.
    """

    arg_constraints = {
        "loc": constraints.real_vector, "covariance_matrix": constraints.positive_definite,
        "precision_matrix": constraints.positive_definite,
        "scale_tril": constraints.lower_cholesky,
    }  # fmt: skip
    support = constraints.real_vector
    has_rsample = True
    loc: Tensor
    _event_dims = {"loc": 1, "covariance_matrix": 2, "precision_matrix": 2, "scale_tril": 2}

    def __init__(
        self, loc: Tensor, covariance_matrix: Tensor | None = None,
        precision_matrix: Tensor | None = None, scale_tril: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:  # fmt: skip
        given = self._one_matrix(
            covariance_matrix=covariance_matrix, precision_matrix=precision_matrix,
            scale_tril=scale_tril,
        )  # fmt: skip
        self._demand_dims("loc", "loc", loc)
        size = next(iter(given.values())).shape[-1]
        loc = loc.expand(*loc.shape[:-1], max(size, loc.shape[-1]))
        self._take(validate_args, loc=loc, **given)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def mode(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return self.scale_tril.pow(2).sum(-1)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        noise = random_normal(self.loc, self._extended_shape(sample_shape))
        return self.loc + batch_mv(self.scale_tril, noise)

    def log_prob(self, value: Tensor) -> Tensor:
        away = mahalanobis(self.scale_tril, self._checked(value) - self.loc)
        norm = self._event_size * math.log(2 * math.pi) / 2
        return -0.5 * away - norm - half_log_det(self.scale_tril)

    def entropy(self) -> Tensor:
        return half_log_det(self.scale_tril) + self._event_size * _HALF_ENTROPY


_HALF_ENTROPY = 0.5 * (1 + math.log(2 * math.pi))  # of a standard normal number


class LowRankMultivariateNormal(Distribution):
    """The normal distribution of vectors with covariance ``W Wᵀ + diag(d)``.

    Args:
        cov_factor: W, with few columns.
        cov_diag: d.
    """

    arg_constraints = {
        "loc": constraints.real_vector,
        "cov_factor": constraints.independent(constraints.real, 2),
        "cov_diag": constraints.independent(constraints.positive, 1),
    }  # fmt: skip
    support = constraints.real_vector
    has_rsample = True
    _event_dims = {"loc": 1, "cov_factor": 2, "cov_diag": 1}
    loc: Tensor
    cov_factor: Tensor
    cov_diag: Tensor

    def __init__(
        self, loc: Tensor, cov_factor: Tensor, cov_diag: Tensor,
        validate_args: bool | None = None,
    ) -> None:  # fmt: skip
        self._demand_dims("loc", "loc", loc)
        if cov_factor.ndim < 2:
            raise ArgumentError(
                "cov_factor must be at least two-dimensional, with optional leading batch "
                "dimensions"
            )
        n = loc.shape[-1]
        if cov_factor.shape[-2] != n:
            raise ArgumentError(f"cov_factor must be a batch of matrices with shape {n} x m")
        if cov_diag.shape[-1:] != (n,):
            raise ArgumentError(f"cov_diag must be a batch of vectors with shape ({n},)")
        self._take(validate_args, loc=loc, cov_factor=cov_factor, cov_diag=cov_diag)

    @property
    def _weighted(self) -> Tensor:
        """Return ``Wᵀ D⁻¹``."""
        return self.cov_factor.mT / self.cov_diag.unsqueeze(-2)

    @property
    def _capacitance_tril(self) -> Tensor:
        """Return the Cholesky factor of ``I + Wᵀ D⁻¹ W``, of the size of W's columns."""
        inner = self._weighted @ self.cov_factor
        return cholesky(inner + eye(inner.shape[-1], dtype=inner.dtype, device=inner.device))

    def _log_det(self) -> Tensor:
        return 2 * half_log_det(self._capacitance_tril) + self.cov_diag.log().sum(-1)

    def _mahalanobis(self, away: Tensor) -> Tensor:
        """Return ``awayᵀ Σ⁻¹ away`` by Woodbury's identity."""
        explained = mahalanobis(self._capacitance_tril, batch_mv(self._weighted, away))
        return (away.pow(2) / self.cov_diag).sum(-1) - explained

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def mode(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return self.cov_factor.pow(2).sum(-1) + self.cov_diag

    @property
    def covariance_matrix(self) -> Tensor:
        """Return the covariance."""
        return self.cov_factor @ self.cov_factor.mT + diag_embed(self.cov_diag)

    @property
    def scale_tril(self) -> Tensor:
        """Return the lower Cholesky factor of the covariance."""
        root = self.cov_diag.sqrt().unsqueeze(-1)
        scaled = self.cov_factor / root
        inner = scaled @ scaled.mT
        return root * cholesky(inner + eye(inner.shape[-1], dtype=inner.dtype, device=inner.device))

    @property
    def precision_matrix(self) -> Tensor:
        """Return the inverse of the covariance, by Woodbury's identity."""
        explained = solve_lower(self._capacitance_tril, self._weighted)
        return diag_embed(self.cov_diag.reciprocal()) - explained.mT @ explained

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        common = random_normal(self.loc, (*shape[:-1], self.cov_factor.shape[-1]))
        own = random_normal(self.loc, shape)
        return self.loc + batch_mv(self.cov_factor, common) + self.cov_diag.sqrt() * own

    def log_prob(self, value: Tensor) -> Tensor:
        away = self._mahalanobis(self._checked(value) - self.loc)
        return -0.5 * (self._event_size * math.log(2 * math.pi) + self._log_det() + away)

    def entropy(self) -> Tensor:
        return 0.5 * self._log_det() + self._event_size * _HALF_ENTROPY


class LKJCholesky(Distribution):
    """The LKJ distribution of Cholesky factors of correlation matrices.

    Args:
        dim: size of the matrices.
        concentration: 1 makes all correlation matrices equally likely; above 1 weak correlations
            are likelier.
    Source: Lewandowski, Kurowicka, Joe (2009), the onion method.
    """

    arg_constraints = {"concentration": constraints.positive}
    support = constraints.corr_cholesky
    concentration: Tensor

    def __init__(
        self, dim: int, concentration: Tensor | float = 1.0, validate_args: bool | None = None
    ) -> None:
        if dim < 2:
            raise ArgumentError(
                f"Expected dim to be an integer greater than or equal to 2. Found dim={dim}."
            )
        self.dim = dim
        self._take(validate_args, concentration=concentration)
        self._event_shape = Size((dim, dim))

    def _squared_radii(self) -> Beta:
        """Return the distributions of the squared lengths of the rows before their diagonals."""
        a = self.concentration
        row = arange(self.dim - 1, dtype=a.dtype, device=a.device)
        row = cat([row[:1], row])
        rest = (a + 0.5 * (self.dim - 2)).unsqueeze(-1) - 0.5 * row
        return Beta(row + 0.5, rest, validate_args=False)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        radii = self._squared_radii().sample(sample_shape).unsqueeze(-1)
        noise = random_normal(self.concentration, self._extended_shape(sample_shape)).tril(-1)
        lengths = noise.pow(2).sum(-1, keepdim=True).sqrt()
        rows = radii.sqrt() * noise / where(lengths == 0, 1.0, lengths)
        rest = (1 - rows.pow(2).sum(-1)).clamp(min=finfo(rows.dtype).tiny)
        return rows + diag_embed(rest.sqrt())

    def log_prob(self, value: Tensor) -> Tensor:
        a, n = self.concentration, self.dim - 1
        diag = diagonal(self._checked(value), 0, -2, -1)[..., 1:]
        order = arange(2, self.dim + 1, dtype=a.dtype, device=a.device)
        powers = 2 * (a - 1).unsqueeze(-1) + self.dim - order
        alpha = a + 0.5 * n
        norm = 0.5 * n * math.log(math.pi) + mvlgamma(alpha - 0.5, n) - n * alpha.lgamma()
        return (powers * diag.log()).sum(-1) - norm


class Wishart(OfMatrix, ExponentialFamily):
    """The Wishart distribution of the covariances of ``df`` normal vectors.

    Args:
        df: degrees of freedom, more than the size of the matrix less 1.
        covariance_matrix, precision_matrix, scale_tril: as of MultivariateNormal.
    """

    support = constraints.positive_definite
    has_rsample = True
    _mean_carrier_measure = 0
    df: Tensor
    _event_dims = {"covariance_matrix": 2, "precision_matrix": 2, "scale_tril": 2}

    def __init__(
        self, df: Tensor | float, covariance_matrix: Tensor | None = None,
        precision_matrix: Tensor | None = None, scale_tril: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:  # fmt: skip
        given = self._one_matrix(
            covariance_matrix=covariance_matrix, precision_matrix=precision_matrix,
            scale_tril=scale_tril,
        )  # fmt: skip
        least = next(iter(given.values())).shape[-1] - 1
        degrees = as_tensors(next(iter(given.values())), df)[1]
        if bool((degrees <= least).any()):
            raise ArgumentError(f"Value of df={df} expected to be greater than ndim - 1 = {least}.")
        self._take(validate_args, **given, df=df)

    @property
    def arg_constraints(self) -> Any:
        """Return the constraints; that of df depends on the size of the matrix."""
        return {
            "covariance_matrix": constraints.positive_definite,
            "precision_matrix": constraints.positive_definite,
            "scale_tril": constraints.lower_cholesky,
            "df": constraints.greater_than(self._event_size - 1),
        }

    @property
    def mean(self) -> Tensor:
        return self.df.reshape(*self._batch_shape, 1, 1) * self.covariance_matrix

    @property
    def mode(self) -> Tensor:
        factor = self.df - self._event_size - 1
        factor = where(factor <= 0, math.nan, factor)
        return factor.reshape(*self._batch_shape, 1, 1) * self.covariance_matrix

    @property
    def variance(self) -> Tensor:
        v = self.covariance_matrix
        d = diagonal(v, 0, -2, -1)
        spread = v.pow(2) + d.unsqueeze(-1) * d.unsqueeze(-2)
        return self.df.reshape(*self._batch_shape, 1, 1) * spread

    def _bartlett(self, sample_shape: Sequence[int]) -> Tensor:
        """Return samples by Bartlett's decomposition: chi on the diagonal, normal numbers below."""
        n = self._event_size
        row = arange(n, dtype=self.df.dtype, device=self.df.device)
        chi2 = Chi2(self.df.unsqueeze(-1) - row, validate_args=False)
        noise = diag_embed(chi2.rsample(sample_shape).sqrt())
        below = (*sample_shape, *self._batch_shape, n * (n - 1) // 2)
        factor = self.scale_tril @ (noise + vec_to_tril_matrix(random_normal(noise, below), -1))
        return factor @ factor.mT

    def rsample(
        self, sample_shape: Sequence[int] = (), max_try_correction: int | None = None
    ) -> Tensor:
        """Return samples that are differentiable by the parameters.

        Args:
            max_try_correction: how often singular samples are drawn anew, by default 3 or 10
                times, the latter for fewer degrees of freedom than rows.
        Differs from PyTorch:
            Valid samples stay; PyTorch 2.13 takes them for singular and draws all of them anew.
        """
        tries = max_try_correction
        if tries is None:
            tries = 3 if bool((self.df >= self._event_size).all()) else 10
        sample = self._bartlett(sample_shape)
        singular = ~self.support.check(sample.detach())
        if bool(singular.any()):
            warnings.warn("Singular sample detected.", stacklevel=2)
        while tries and bool(singular.any()):
            fresh = self._bartlett(sample_shape)
            sample = where(singular.unsqueeze(-1).unsqueeze(-1), fresh, sample)
            singular = ~self.support.check(sample.detach())
            tries -= 1
        return sample

    def log_prob(self, value: Tensor) -> Tensor:
        value, nu, p = self._checked(value), self.df, self._event_size
        norm = nu * (p * math.log(2) / 2 + half_log_det(self.scale_tril)) + mvlgamma(nu / 2, p)
        factor = self.scale_tril.expand(*broadcast_shapes(value.shape, self.scale_tril.shape))
        trace = diagonal(cholesky_solve(value.expand(factor.shape), factor), 0, -2, -1).sum(-1)
        return (nu - p - 1) / 2 * log_abs_det(value) - trace / 2 - norm

    def entropy(self) -> Tensor:
        nu, p = self.df, self._event_size
        slopes: Tensor = sum(((nu - i) / 2).digamma() for i in range(p))  # type: ignore[assignment]
        size = (p + 1) * (p * math.log(2) / 2 + half_log_det(self.scale_tril))
        return size + mvlgamma(nu / 2, p) - (nu - p - 1) / 2 * slopes + nu * p / 2

    @property
    def _natural_params(self) -> tuple[Tensor, ...]:
        return -self.precision_matrix / 2, (self.df - self._event_size - 1) / 2

    def _log_normalizer(self, *natural_params: Tensor) -> Tensor:
        x, y = natural_params
        p = self._event_size
        half = y + (p + 1) / 2
        return half * (p * math.log(2) - log_abs_det(-2 * x)) + mvlgamma(half, p)
