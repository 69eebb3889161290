"""Which operations autocast converts the operands of, and how.

From PyTorch's documentation ("Autocast Op Reference"), and for the CPU compared with what
PyTorch 2.13 does to each entry of its database of operations.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal

from distgrad import ops
from distgrad.nn import functional
from distgrad.ops import fft, linalg_names, loss
from distgrad.tensor import Tensor

Policy = Literal["lower", "float32", "widest", "refuse"]

# matrix products and what is made of them: fast in 16 bits
_LOWER = (
    "__matmul__ addbmm addmm baddbmm bmm conv1d conv2d conv3d conv_tbc conv_transpose1d "
    "conv_transpose2d conv_transpose3d linear linear_activation matmul mm multi_dot "
    "multi_head_attention_forward prelu scaled_dot_product_attention tensordot vecdot"
)
_LOWER_CUDA = "addmv addr chain_matmul mv"

# sums of many values, and functions that leave the range of 16 bits
_FLOAT32 = (
    "binary_cross_entropy_with_logits cdist cosine_embedding_loss cross_entropy "
    "hinge_embedding_loss kl_div l1_loss margin_ranking_loss mse_loss multi_margin_loss "
    "multilabel_margin_loss nll_loss poisson_nll_loss prod smooth_l1_loss soft_margin_loss "
    "triplet_margin_loss"
)
_FLOAT32_CPU = (
    "adaptive_avg_pool3d avg_pool3d binary_cross_entropy cholesky cholesky_inverse cholesky_solve "
    "ctc_loss geqrf grid_sample grid_sampler grid_sampler_2d grid_sampler_3d huber_loss inverse "
    "lu_solve max_pool3d max_unpool1d max_unpool2d max_unpool3d nanquantile orgqr ormqr pinverse "
    "polar qr quantile stft svd trace triangular_solve view_as_complex"
)
_FLOAT32_CUDA = (
    "__pow__ __rpow__ __rtruediv__ acos asin cosh cosine_similarity cumprod cumsum dist erfinv exp "
    "expm1 group_norm layer_norm log log10 log1p log2 log_softmax norm normalize pdist pow "
    "reciprocal renorm rsqrt sinh softmax softmin softplus sum tan"
)
_WIDEST = "cat index_copy stack"
_WIDEST_CUDA = (
    "addcdiv addcmul atan2 bilinear cross dot grid_sample index_put scatter_add tensordot"
)
_REFUSE_CUDA = "binary_cross_entropy"


def _policies(lower: str, float32: str, widest: str, refuse: str = "") -> dict[str, Policy]:
    """Return the policy of each name in these lists; where one is in two, the later counts."""
    found: dict[str, Policy] = {}
    found.update(dict.fromkeys(lower.split(), "lower"))
    found.update(dict.fromkeys(float32.split(), "float32"))
    found.update(dict.fromkeys(widest.split(), "widest"))
    found.update(dict.fromkeys(refuse.split(), "refuse"))
    return found


_BY_DEVICE = {
    "cpu": _policies(_LOWER, f"{_FLOAT32} {_FLOAT32_CPU}", _WIDEST),
    "cuda": _policies(
        f"{_LOWER} {_LOWER_CUDA}", f"{_FLOAT32} {_FLOAT32_CUDA}", f"{_WIDEST} {_WIDEST_CUDA}",
        _REFUSE_CUDA,
    ),
}  # fmt: skip

Function = Callable[..., Any]

# On a GPU: what takes the place of functions that read 16 bits as exactly as float32.
READ_AS_THEY_ARE: dict[str, Function] = {"cross_entropy": loss.wide_cross_entropy}


def listed() -> dict[Function, dict[str, Policy]]:
    """Return every function that autocast changes somewhere, with its policy by device type."""
    found: dict[Function, dict[str, Policy]] = {}
    for place, policies in _BY_DEVICE.items():
        for name, policy in policies.items():
            for function in _functions(name):
                found.setdefault(function, {})[place] = policy
    transforms = [n for n in fft.__all__ if "freq" not in n and "shift" not in n]
    for module, names in ((fft, transforms), (linalg_names, _DECOMPOSITIONS.split())):
        for name in names:
            found.setdefault(getattr(module, name), {})["cpu"] = "float32"
    return found


_DECOMPOSITIONS = (
    "cholesky cholesky_ex cond eig eigh eigvals eigvalsh householder_product inv inv_ex lstsq "
    "matrix_rank qr solve svd svdvals tensorinv tensorsolve"
)


def _functions(name: str) -> list[Function]:
    """Return the functions and methods of a name; most are one function at several places."""
    chapters = [c for c in vars(ops).values() if isinstance(c, ModuleType)]
    places = (*chapters, functional, linalg_names, Tensor)
    return [getattr(place, name) for place in places if hasattr(place, name)]
