"""Matrix products."""

from __future__ import annotations

from distgrad.autograd.declare import op
from distgrad.autograd.samples import case, real
from distgrad.tensor import Tensor
from distgrad.typing import Array, Namespace


@op(
    "multilinear",
    samples=[case(real(2, 3), real(3, 4)), case(real(5, 2, 3), real(3, 4)),
             case(real(2, 3), real(5, 3, 4))],
    operator="@",
    node="MmBackward0",
    d_input=lambda F, g, other: F.matmul(g, F.mT(other)),
    d_other=lambda F, g, input: F.matmul(F.mT(input), g),
)  # fmt: skip
def matmul(xp: Namespace, input: Tensor, other: Tensor) -> Array:
    """Return the matrix product over the last two dimensions; leading dimensions broadcast."""
    return xp.matmul(input, other)
