"""The namespace ``distgrad.linalg``: linear algebra under PyTorch's names."""
# ruff: noqa: F403  (the chapter says in __all__ what is public)

from distgrad.ops import linalg
from distgrad.ops.factor import eig, eigvals, householder_product, lu, lu_factor, lu_solve
from distgrad.ops.linalg import *

__all__ = ["eig", "eigvals", "householder_product", "lu", "lu_factor", "lu_solve"]
__all__ += linalg.__all__
