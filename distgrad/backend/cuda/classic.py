"""Matrix products by cuBLAS through CuPy's own binding, where nvmath-python is not installed."""

from __future__ import annotations

from typing import Any

import cupy
from cupy_backends.cuda.libs import cublas

from distgrad.backend.cuda.lt import TYPES, Problem, compute_type
from distgrad.errors import MissingExtra

__all__ = ["multiply_classically"]

_ANY_KERNEL = -1
_HOST, _DEVICE = 0, 1  # where alpha and beta are


def multiply_classically(
    problem: Problem, arrays: tuple[int, int, int], numbers: tuple[int, int], stream: Any
) -> None:
    """Compute ``problem``, which has no epilogue, on the current stream.

    Args:
        problem: in cuBLAS's columns, as `lt` describes it.
        arrays: addresses of A, B and D.
        numbers: addresses of alpha and beta.
        stream: the current one.

    Raises:
        MissingExtra: the stream captures a graph, which CuPy refuses for cuBLAS.
    """
    if stream.is_capturing():
        raise MissingExtra(
            "matmul: CuPy's own matrix products cannot be captured in a CUDA graph; "
            "pip install 'nvmath-python>=1.0', or run this step without a graph"
        )
    handle = cupy.cuda.device.get_cublas_handle()
    (a, b, d), (alpha, beta) = arrays, numbers
    sides = problem.a, problem.b, problem.d
    (lda, _, step_a), (ldb, _, step_b), (ldd, _, step_d) = sides
    kind, out = TYPES[problem.kind], TYPES[problem.out]
    sizes = (
        int(problem.a.transposed), int(problem.b.transposed), problem.m, problem.n, problem.k
    )  # fmt: skip
    before = cublas.getPointerMode(handle)
    cublas.setPointerMode(handle, _DEVICE if problem.on_device else _HOST)
    try:
        if problem.batch == 1:
            cublas.gemmEx(
                handle, *sizes, alpha, a, kind, lda, b, kind, ldb, beta, d, out, ldd,
                compute_type(problem), _ANY_KERNEL,
            )  # fmt: skip
        else:
            cublas.gemmStridedBatchedEx(
                handle, *sizes, alpha, a, kind, lda, step_a, b, kind, ldb, step_b, beta, d, out,
                ldd, step_d, problem.batch, compute_type(problem), _ANY_KERNEL,
            )  # fmt: skip
    finally:
        cublas.setPointerMode(handle, before)
