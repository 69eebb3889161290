"""PyTorch's switches of its numerical libraries, with what they mean on NumPy and CuPy.

Those that choose between algorithms of equal results are kept and have no effect.
"""

from distgrad.backends import cpu, cuda, cudnn, mha, mkl, mkldnn, mps, openmp, opt_einsum, quantized

__all__ = [
    "cpu", "cuda", "cudnn", "mha", "mkl", "mkldnn", "mps", "openmp", "opt_einsum", "quantized",
]  # fmt: skip
