"""What PyTorch's database of operations finds different here, and why.

A row is the name of an entry, if need be followed by the name of a check and by a dtype, and the
reason.  ``tests/test_ops_torch_database.py`` fails for a difference without a row, and for a row
without a difference.
"""

from __future__ import annotations

_SPARSE = "sparse tensors are a small class of their own: products with gradients, no operations"
_INTERNAL = "a name inside PyTorch, not of its API"
_COMPILER = "compiles CUDA source"
_HALF = "NumPy has no complex numbers of 16-bit floats"

_TANGENT = "PyTorch's tangent is not the derivative: finite differences say ours"
_SCATTER = (
    "PyTorch gives the input the gradient of what was overwritten, not of what was kept: "
    "finite differences say ours"
)
_BESSEL = "PyTorch's approximation is good to 4e-7; ours to 1e-15"

KNOWN = {
    "sparse.mm.reduce": _SPARSE,
    "sparse.sampled_addmm": _SPARSE,
    "to_sparse": _SPARSE,
    "torch._scaled_mm": _INTERNAL,
    "torch._scaled_mm_v2": _INTERNAL,
    "torch.ops.aten._safe_softmax.default": _INTERNAL,
    "torch.ops.aten._flash_attention_forward": _INTERNAL,
    "torch.ops.aten._efficient_attention_forward": _INTERNAL,
    "max_pool2d_with_indices_backward": _INTERNAL,
    "slice": _INTERNAL,
    "jiterator_unary": _COMPILER,
    "jiterator_binary": _COMPILER,
    "jiterator_binary_return_by_ref": _COMPILER,
    "jiterator_4inputs_with_extra_args": _COMPILER,
    "jiterator_2inputs_2outputs": _COMPILER,
    "_batch_norm_with_update": _INTERNAL,
    "_upsample_bilinear2d_aa": _INTERNAL,
    "chalf": _HALF,
    "complex forward float16": _HALF,
    "view_as_complex forward float16": _HALF,
    "as_strided_scatter backward": _SCATTER,
    "as_strided_scatter second": _SCATTER,
    "cholesky_inverse jvp": _TANGENT,
    "triangular_solve jvp": _TANGENT,
    "logcumsumexp jvp": "PyTorch's tangent is nan for complex numbers and loses digits of others",
    "special.bessel_j0 forward float64": _BESSEL,
    "special.bessel_j1 forward float64": _BESSEL,
    "special.bessel_y1 forward float64": _BESSEL,
    "linalg.eig forward complex64": "the order of eigenvalues is not defined",
    "linalg.eigvals forward complex64": "the order of eigenvalues is not defined",
    "matrix_exp forward float16": "PyTorch's powers overflow in float16, to nan",
    "masked.logaddexp second": "PyTorch's is nan where the masks hide both operands: 0 times inf",
}


def reason(entry: str, check: str, dtype: str) -> str:
    """Return why a difference is known, or nothing."""
    return KNOWN[row] if (row := row_of(entry, check, dtype)) else ""


def row_of(entry: str, check: str, dtype: str) -> str:
    """Return the row for a difference, or nothing: the row that says most."""
    rows = (f"{entry} {check} {dtype}", f"{entry} {check}", entry)
    return next((row for row in rows if row in KNOWN), "")
