"""Layers that compare pairs of vectors."""

from __future__ import annotations

from distgrad.nn import functional as F
from distgrad.nn.module import Module
from distgrad.tensor import Tensor


class PairwiseDistance(Module):
    """The p-norm of the difference of two batches of vectors."""

    def __init__(self, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False) -> None:
        """Take the exponent, what is added to the difference, and whether to keep the dim."""
        super().__init__()
        self.norm, self.eps, self.keepdim = p, eps, keepdim

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Return the distances."""
        return F.pairwise_distance(x1, x2, self.norm, self.eps, self.keepdim)


class CosineSimilarity(Module):
    """The cosine of the angle between vectors along ``dim``."""

    def __init__(self, dim: int = 1, eps: float = 1e-8) -> None:
        """Take the dimension of the vectors and the smallest product of norms."""
        super().__init__()
        self.dim, self.eps = dim, eps

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Return the similarities."""
        return F.cosine_similarity(x1, x2, self.dim, self.eps)
