"""The namespace ``distgrad.linalg``: linear algebra under PyTorch's names."""
# ruff: noqa: F403  (the chapters say in __all__ what is public)

from distgrad.ops import decompose, linalg, norms
from distgrad.ops.decompose import *
from distgrad.ops.eigen import eig, eigvals
from distgrad.ops.factor import (
    ldl_factor,
    ldl_factor_ex,
    ldl_solve,
    lu,
    lu_factor,
    lu_factor_ex,
    lu_solve,
)
from distgrad.ops.least import lstsq, matrix_rank, pinv
from distgrad.ops.linalg import *
from distgrad.ops.norms import *
from distgrad.ops.reflect import householder_product
from distgrad.ops.triangular import cholesky, cholesky_ex, solve_triangular

__all__ = [
    "cholesky", "cholesky_ex", "eig", "eigvals", "householder_product", "ldl_factor",
    "ldl_factor_ex", "ldl_solve", "lstsq", "lu", "lu_factor", "lu_factor_ex", "lu_solve",
    "matrix_rank", "pinv", "solve_triangular",
]  # fmt: skip
__all__ += decompose.__all__ + linalg.__all__ + norms.__all__
