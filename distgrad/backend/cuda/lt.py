"""cuBLASLt by ``nvmath.bindings``: a matrix product described once, and launched many times.

This is the only file that knows these bindings, which nvmath-python calls experimental; it loads
them when the first product is computed.  Nothing here waits for the device or copies from the
host, so all of it can be captured in a CUDA graph.  It has not yet run on a GPU.

Note [Columns first]
    cuBLASLt stores matrices column by column.  A row-major matrix is the transpose of one that is
    stored so; a product D = A·B of row-major matrices is computed as Dᵀ = Bᵀ·Aᵀ, where no number
    moves.  So ``Problem.a`` is the right one of the two matrices of a product, and what runs along
    the rows of cuBLASLt's D, as its bias does, runs along the columns of ours.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import cupy
import numpy as np

from distgrad.typing import Array

__all__ = [
    "TYPES", "WORKSPACE", "Plan", "Problem", "Side", "Unsupported", "bindings", "compute_type",
    "make_plan", "own_workspace", "scalar", "scale_type", "workspace",
]  # fmt: skip

TYPES = {"float32": 0, "float64": 1, "float16": 2, "complex64": 4, "complex128": 5, "bfloat16": 14}
"""cudaDataType by the names of dtypes."""

WORKSPACE = 32 << 20  # bytes; what cuBLAS itself takes on an H100
_COMPUTE_32F, _COMPUTE_32F_FAST_TF32, _COMPUTE_64F = 68, 77, 70


class Unsupported(Exception):
    """cuBLASLt has no kernel for a problem."""


class Side(NamedTuple):
    """How a stack of matrices lies in memory, in elements."""

    ld: int  # from one column to the next
    transposed: bool = False
    stride: int = 0  # from one matrix to the next


class Problem(NamedTuple):
    """One product as cuBLASLt sees it: D (m×n) = op(A)·op(B); see Note [Columns first]."""

    m: int
    n: int
    k: int
    a: Side
    b: Side
    d: Side
    kind: str  # dtype of A and B
    out: str  # dtype of C and D
    batch: int = 1
    epilogue: str = "DEFAULT"
    aux_ld: int = 0
    tf32: bool = False
    on_device: bool = False  # alpha and beta
    alignment: int = 256  # of the addresses of A, B and D


def scale_type(kind: str) -> str:
    """Return the dtype of alpha and beta for matrices of dtype ``kind``."""
    return kind if kind in ("float64", "complex64", "complex128") else "float32"


def compute_type(problem: Problem) -> int:
    """Return how numbers are multiplied and added up, for cuBLAS and cuBLASLt."""
    if problem.kind in ("float64", "complex128"):
        return _COMPUTE_64F
    fast = problem.tf32 and problem.kind in ("float32", "complex64")
    return _COMPUTE_32F_FAST_TF32 if fast else _COMPUTE_32F


@lru_cache(maxsize=256)
def scalar(value: float, kind: str) -> tuple[np.ndarray[Any, Any], int]:
    """Return a number for alpha or beta in host memory, and its address."""
    held = np.array(value, kind)
    return held, held.ctypes.data


@cache
def bindings() -> ModuleType | None:
    """Return ``nvmath.bindings.cublasLt``; None where it is missing or finds no library."""
    try:
        # Optional, and it looks for the driver and cuBLAS as soon as it is called.
        from nvmath.bindings import cublasLt

        cublasLt.get_version()
    except (ImportError, RuntimeError):
        return None
    module: ModuleType = cublasLt
    return module


# --- memory ---------------------------------------------------------------------------------------
_handles: dict[int, int] = {}  # of the library, by device; threads may share them


class _Mine(threading.local):
    """What a thread has for itself: memory that one stream uses at a time."""

    def __init__(self) -> None:
        self.workspaces: dict[tuple[int, int], Array] = {}


_mine = _Mine()


def workspace(device: int, stream: int) -> Array:
    """Return the memory that products on a stream may use: one after the other, so one will do."""
    found = _mine.workspaces.get((device, stream))
    if found is None:
        found = _mine.workspaces[device, stream] = cupy.empty(WORKSPACE, np.uint8)
    return found


@contextmanager
def own_workspace() -> Iterator[list[Array]]:
    """Let this thread's products in the block use new memory, which the list holds at the end.

    A CUDA graph is captured in such a block and keeps the list: it may be launched on another
    stream than the one whose memory it would use otherwise.
    """
    before, _mine.workspaces, held = _mine.workspaces, {}, list[Array]()
    try:
        yield held
    finally:
        held.extend(_mine.workspaces.values())
        _mine.workspaces = before


# --- plans ----------------------------------------------------------------------------------------
class Plan:
    """The descriptors of one problem, and the kernel that cuBLASLt's heuristic chose for it."""

    __slots__ = ("_algo", "_aux", "_bias", "_chosen", "_desc", "_handle", "_layouts", "_lt")

    def __init__(self, lt: ModuleType, problem: Problem) -> None:
        """Describe ``problem``; `choose` finds the kernel."""
        self._lt = lt
        kind = TYPES[scale_type(problem.kind)]
        self._desc = lt.matmul_desc_create(compute_type(problem), kind)
        self._bias, self._aux = np.zeros(1, np.uint64), np.zeros(1, np.uint64)
        mode = lt.PointerMode.DEVICE if problem.on_device else lt.PointerMode.HOST
        self._say("POINTER_MODE", mode)
        self._say("TRANSA", problem.a.transposed)
        self._say("TRANSB", problem.b.transposed)
        self._say("EPILOGUE", lt.Epilogue[problem.epilogue])
        if problem.aux_ld:
            self._say("EPILOGUE_AUX_LD", problem.aux_ld)
        m, n, k = problem.m, problem.n, problem.k
        a = (k, m) if problem.a.transposed else (m, k)
        b = (n, k) if problem.b.transposed else (k, n)
        self._layouts = [
            self._layout(problem.kind, a, problem.a, problem.batch),
            self._layout(problem.kind, b, problem.b, problem.batch),
            self._layout(problem.out, (m, n), problem.d, problem.batch),
        ]

    def _say(self, name: str, value: Any) -> None:
        """Set an attribute of the product."""
        key = self._lt.MatmulDescAttribute[name]
        given = np.array(int(value), self._lt.get_matmul_desc_attribute_dtype(key))
        self._lt.matmul_desc_set_attribute(self._desc, key, given.ctypes.data, given.nbytes)

    def _layout(self, kind: str, shape: tuple[int, int], side: Side, batch: int) -> int:
        lt = self._lt
        layout: int = lt.matrix_layout_create(TYPES[kind], *shape, side.ld)
        if batch > 1:
            attributes = lt.MatrixLayoutAttribute
            for key, value in (
                (attributes.BATCH_COUNT, batch),
                (attributes.STRIDED_BATCH_OFFSET, side.stride),
            ):
                given = np.array(value, lt.get_matrix_layout_attribute_dtype(key))
                lt.matrix_layout_set_attribute(layout, key, given.ctypes.data, given.nbytes)
        return layout

    def point(self, bias: int, aux: int) -> None:
        """Say where the vector of bias (or of its gradient) and the auxiliary matrix are."""
        for name, held, address in (
            ("BIAS_POINTER", self._bias, bias),
            ("EPILOGUE_AUX_POINTER", self._aux, aux),
        ):
            if address and held[0] != address:
                held[0] = address
                key = self._lt.MatmulDescAttribute[name]
                self._lt.matmul_desc_set_attribute(self._desc, key, held.ctypes.data, 8)

    def choose(self, handle: int, alignment: int) -> bool:
        """Let the heuristic choose a kernel; return whether there is one.

        It reads the addresses that `point` gave, for their alignment.
        """
        lt = self._lt
        preference = lt.matmul_preference_create()
        wishes = lt.MatmulPreferenceAttribute
        given = {wishes.MAX_WORKSPACE_BYTES: WORKSPACE}
        for side in "ABCD":
            given[wishes[f"MIN_ALIGNMENT_{side}_BYTES"]] = alignment
        for key, wish in given.items():
            value = np.array(wish, lt.get_matmul_preference_attribute_dtype(key))
            lt.matmul_preference_set_attribute(preference, key, value.ctypes.data, value.nbytes)
        self._handle, self._chosen = handle, lt.MatmulHeuristicResult(1)
        self._algo: int = self._chosen.ptr  # the result begins with the algorithm
        count = np.zeros(1, np.int32)
        a, b, d = self._layouts
        try:
            lt.matmul_algo_get_heuristic(
                handle, self._desc, a, b, d, d, preference, 1, self._algo, count.ctypes.data
            )
        except lt.cuBLASLtError:  # NOT_SUPPORTED
            return False
        finally:
            lt.matmul_preference_destroy(preference)
        return bool(count[0])

    def launch(
        self, a: int, b: int, d: int, alpha: int, beta: int, memory: int, stream: int
    ) -> None:
        """Compute D = alpha·op(A)·op(B) + beta·D on a stream; all arguments are addresses."""
        la, lb, ld = self._layouts
        self._lt.matmul(
            self._handle, self._desc, alpha, a, la, b, lb, beta, d, ld, d, ld, self._algo, memory,
            WORKSPACE, stream,
        )  # fmt: skip

    def close(self) -> None:
        """Destroy the descriptors."""
        self._lt.matmul_desc_destroy(self._desc)
        for layout in self._layouts:
            self._lt.matrix_layout_destroy(layout)


def make_plan(lt: ModuleType, problem: Problem, device: int, bias: int = 0, aux: int = 0) -> Plan:
    """Return a plan of a problem for this thread on a device.

    Args:
        lt: the bindings.
        problem: what to compute.
        device: the current one.
        bias, aux: an address that is aligned as the later ones will be: the heuristic looks at that
            and at no more.

    Raises:
        Unsupported: cuBLASLt has no kernel for it.
    """
    if device not in _handles:
        _handles[device] = lt.create()
    plan = Plan(lt, problem)
    plan.point(bias, aux)
    if not plan.choose(_handles[device], problem.alignment):
        plan.close()
        raise Unsupported
    return plan
