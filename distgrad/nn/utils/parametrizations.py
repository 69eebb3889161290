"""Parametrizations: orthogonal matrices, weight and spectral normalisation."""

from __future__ import annotations

from typing import Any

from distgrad.autograd.mode import no_grad
from distgrad.backend.dtype import finfo
from distgrad.errors import ArgumentError, IndexOutOfRange
from distgrad.nn.functional import normalize
from distgrad.nn.module import Module
from distgrad.nn.modules.conv import _ConvTranspose
from distgrad.nn.utils.parametrize import register_parametrization
from distgrad.nn.utils.weight_norm import norm_except_dim, scaled
from distgrad.ops.arrange import tril
from distgrad.ops.create import empty, zeros
from distgrad.ops.join import cat
from distgrad.ops.linalg import solve
from distgrad.ops.linalg_names import matrix_exp
from distgrad.ops.ranges import eye
from distgrad.ops.reflect import geqrf, householder_product
from distgrad.ops.shape import expand, mT, permute, reshape
from distgrad.tensor import Tensor

__all__ = ["orthogonal", "spectral_norm", "weight_norm"]


# ---------------------------------------------------------------------- orthogonal
def _columns_made_orthogonal(a: Any) -> Any:
    """Return the orthogonal factor of ``a`` whose triangular one has a positive diagonal."""
    reflectors, tau = geqrf(a)
    q: Any = householder_product(reflectors, tau)
    signs: Any = reflectors.diagonal(dim1=-2, dim2=-1).sgn()
    return q * signs.unsqueeze(-2)


def _is_orthogonal(q: Any) -> bool:
    n, k = q.shape[-2:]
    one: Any = eye(k, dtype=q.dtype, device=q.device)
    error = (q.mH @ q - one).abs()
    return bool((error <= 10.0 * n * finfo(q.dtype).eps + 1e-5 * one).all())


class _Orthogonal(Module):
    """A matrix with orthonormal columns (or rows) as a function of a free matrix."""

    base: Any

    def __init__(self, weight: Tensor, orthogonal_map: str, use_trivialization: bool) -> None:
        super().__init__()
        if weight.is_complex() and orthogonal_map == "householder":
            raise ArgumentError("The householder parametrization does not support complex tensors.")
        self.shape, self.orthogonal_map = weight.shape, orthogonal_map
        self._moves = use_trivialization
        if use_trivialization:
            self.register_buffer("base", None)

    def forward(self, X: Any) -> Any:
        """Return the orthogonal matrix."""
        wide = X.shape[-2] < X.shape[-1]
        x = mT(X) if wide else X
        made = _by_reflections if self.orthogonal_map == "householder" else self._by_rotation
        q: Any = made(x)
        if self._moves:
            q = self.base @ q
        return mT(q) if wide else q

    def _by_rotation(self, x: Any) -> Any:
        n, k = x.shape[-2:]
        x = tril(x)
        if n != k:
            rest = expand(zeros((n, n - k), dtype=x.dtype, device=x.device),
                          (*x.shape[:-2], n, n - k))  # fmt: skip
            x = cat([x, rest], -1)
        skew = x - x.mH
        if self.orthogonal_map == "matrix_exp":
            q: Any = matrix_exp(skew)
        else:
            one: Any = eye(n, dtype=x.dtype, device=x.device)
            q = solve(one - 0.5 * skew, one + 0.5 * skew)
        return q if n == k else q[..., :k]

    def right_inverse(self, Q: Any) -> Any:
        """Return the matrix that gives ``Q``, made orthogonal first where it is not."""
        if Q.shape != self.shape:
            raise ArgumentError(
                f"Expected a matrix or batch of matrices of shape {self.shape}. Got a tensor of "
                f"shape {Q.shape}."
            )
        with no_grad():
            wide = Q.shape[-2] < Q.shape[-1]
            q = mT(Q) if wide else Q
            if self._moves:
                self.base = self._completed(q)
                return eye(*Q.shape[-2:], dtype=Q.dtype, device=Q.device).expand(Q.shape) * -1
            if self.orthogonal_map != "householder":
                raise NotImplementedError(
                    "It is not possible to assign to the matrix exponential or the Cayley "
                    "parametrizations when use_trivialization=False."
                )
            reflectors, tau = geqrf(q)
            a: Any = reflectors.clone()
            diagonal = a.diagonal(dim1=-2, dim2=-1)
            signs = diagonal.sign()
            diagonal.copy_(signs * (1 - 2 * (tau == 0).to(signs.dtype)))
            return mT(a) if wide else a

    def _completed(self, q: Any) -> Any:
        """Return ``q`` as a square orthogonal matrix, with random columns added."""
        n, k = q.shape[-2:]
        if n == k:
            return q.clone() if _is_orthogonal(q) else _columns_made_orthogonal(q)
        more: Any = empty((*q.shape[:-2], n, n - k), dtype=q.dtype, device=q.device)
        return _columns_made_orthogonal(cat([q, more.normal_()], -1))


def _by_reflections(x: Any) -> Any:
    below: Any = tril(x, -1)
    tau = 2.0 / (1.0 + (below * below).sum(-2))
    q: Any = householder_product(below, tau)
    return q * x.diagonal(dim1=-2, dim2=-1).int().unsqueeze(-2)


def orthogonal(
    module: Module,
    name: str = "weight",
    orthogonal_map: str | None = None,
    *,
    use_trivialization: bool = True,
) -> Module:
    """Keep a parameter orthogonal: its columns, or rows if these are fewer, orthonormal.

    Args:
        module: holds the parameter; it is returned.
        name: of the parameter, a matrix or a batch of matrices.
        orthogonal_map: "matrix_exp" (default for square matrices), "cayley" or "householder".
        use_trivialization: multiply by a fixed orthogonal matrix that ``right_inverse`` sets.

    Source: Lezcano-Casado 2019, "Trivializations for gradient-based optimization on manifolds".
    """
    weight: Any = getattr(module, name, None)
    if not isinstance(weight, Tensor):
        raise ArgumentError(f"Module '{module}' has no parameter or buffer with name '{name}'")
    if weight.ndim < 2:
        raise ArgumentError(
            f"Expected a matrix or batch of matrices. Got a tensor of {weight.ndim} dimensions."
        )
    rows, columns = weight.array.shape[-2:]
    default = "matrix_exp" if rows == columns or weight.is_complex() else "householder"
    kind = orthogonal_map or default
    if kind not in ("matrix_exp", "cayley", "householder"):
        raise ArgumentError(
            'orthogonal_map has to be one of "matrix_exp", "cayley", "householder". '
            f"Got: {orthogonal_map}"
        )
    made = _Orthogonal(weight, kind, use_trivialization)
    return register_parametrization(module, name, made, unsafe=True)


# ---------------------------------------------------------------------- weight norm
class _WeightNorm(Module):
    """A weight as a function of its sizes and its direction."""

    def __init__(self, dim: int | None = 0) -> None:
        super().__init__()
        self.dim = -1 if dim is None else dim

    def forward(self, weight_g: Tensor, weight_v: Tensor) -> Tensor:
        """Return the weight."""
        return scaled(weight_v, weight_g, self.dim)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return sizes and direction of ``weight``."""
        return norm_except_dim(weight, 2, self.dim), weight


def weight_norm(module: Module, name: str = "weight", dim: int | None = 0) -> Module:
    """Make a parameter a function of its sizes (``original0``) and its direction (``original1``).

    Args:
        module: holds the parameter; it is returned.
        name: of the parameter.
        dim: each entry along it has a size of its own; None: one size for all.

    Source: Salimans & Kingma 2016.
    """
    register_parametrization(module, name, _WeightNorm(dim), unsafe=True)

    def from_older(state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        old = [f"{prefix}{name}_{kind}" for kind in "gv"]
        if all(key in state_dict for key in old):
            for place, key in enumerate(old):
                new = f"{prefix}parametrizations.{name}.original{place}"
                state_dict[new] = state_dict.pop(key)

    module._register_load_state_dict_pre_hook(from_older)
    return module


# ---------------------------------------------------------------------- spectral norm
class _SpectralNorm(Module):
    """A weight divided by an estimate of its largest singular value."""

    _u: Any
    _v: Any

    def __init__(
        self, weight: Any, n_power_iterations: int = 1, dim: int = 0, eps: float = 1e-12
    ) -> None:
        super().__init__()
        ndim = weight.ndim
        if not -ndim <= dim < ndim:
            raise IndexOutOfRange(
                f"Dimension out of range (expected to be in range of [-{ndim}, {ndim - 1}] but "
                f"got {dim})"
            )
        if n_power_iterations <= 0:
            raise ArgumentError(
                "Expected n_power_iterations to be positive, but got "
                f"n_power_iterations={n_power_iterations}"
            )
        self.dim, self.eps = dim % ndim, eps
        self.n_power_iterations = n_power_iterations
        if ndim > 1:
            with no_grad():
                matrix = self._matrix(weight.detach())
                for place, buffer in enumerate(("_u", "_v")):
                    size = matrix.array.shape[place]
                    drawn: Any = empty(size, dtype=weight.dtype, device=weight.device)
                    self.register_buffer(buffer, normalize(drawn.normal_(0, 1), dim=0, eps=eps))
                self._iterate(matrix, 15)

    def _matrix(self, weight: Tensor) -> Any:
        if weight.ndim == 1:
            return weight
        rest = [d for d in range(weight.ndim) if d != self.dim]
        rows = weight.array.shape[self.dim]
        return reshape(permute(weight, (self.dim, *rest)), (rows, -1))

    def _iterate(self, matrix: Any, times: int) -> None:
        with no_grad():
            for _ in range(times):
                self._u.copy_(normalize(matrix @ self._v, dim=0, eps=self.eps))
                self._v.copy_(normalize(matrix.mH @ self._u, dim=0, eps=self.eps))

    def forward(self, weight: Any) -> Any:
        """Return the normalised weight; in training the estimate is improved first."""
        if weight.ndim == 1:
            return normalize(weight, dim=0, eps=self.eps)
        matrix = self._matrix(weight)
        if self.training:
            self._iterate(matrix.detach(), self.n_power_iterations)
        u, v = self._u.clone(), self._v.clone()
        return weight / u.dot(matrix @ v)

    def right_inverse(self, value: Tensor) -> Tensor:
        """Return ``value``."""
        return value


def spectral_norm(
    module: Module,
    name: str = "weight",
    n_power_iterations: int = 1,
    eps: float = 1e-12,
    dim: int | None = None,
) -> Module:
    """Divide a parameter by its largest singular value, estimated by power iteration.

    Args:
        module: holds the parameter; it is returned.
        name: of the parameter.
        n_power_iterations: iterations in each forward of training.
        eps: for the norms of the estimates.
        dim: gives the rows of the matrix; default 1 for transposed convolutions, else 0.

    Source: Miyato et al. 2018.
    """
    weight = getattr(module, name, None)
    if not isinstance(weight, Tensor):
        raise ArgumentError(f"Module '{module}' has no parameter or buffer with name '{name}'")
    if dim is None:
        dim = 1 if isinstance(module, _ConvTranspose) else 0
    made = _SpectralNorm(weight, n_power_iterations, dim, eps)
    return register_parametrization(module, name, made)
