"""The stand-in's cuBLAS: ``nvmath.bindings.cublasLt``, and the two functions that CuPy binds.

It reads the attributes that were set, and computes with NumPy on the addresses it gets.  What the
library's documentation forbids is refused: leading dimensions that are too short, addresses that
are less aligned than was promised, epilogues and dtypes that have no kernel, memory of the host.
16-bit floats add up in float32; where TF32 is allowed, numbers have 10 bits of mantissa.
"""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Callable
from enum import IntEnum
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from distgrad.backend.dtype import as_numpy
from distgrad.testing.standin import streams
from distgrad.testing.standin.captures import CUDARuntimeError
from distgrad.testing.standin.ledger import ledger

Numbers = np.ndarray[Any, Any]

_STATUS = {1: "NOT_INITIALIZED", 7: "INVALID_VALUE", 14: "INTERNAL_ERROR", 15: "NOT_SUPPORTED"}
INVALID, UNSUPPORTED = 7, 15
_DTYPES = {
    0: "float32", 1: "float64", 2: "float16", 4: "complex64", 5: "complex128", 14: "bfloat16",
}  # fmt: skip
_32F, _TF32, _64F = 68, 77, 70


class cuBLASLtError(Exception):
    """What the bindings raise for a status other than success."""

    def __init__(self, status: int, why: str = "") -> None:
        super().__init__(f"CUBLAS_STATUS_{_STATUS[status]} ({status}): {why}")
        self.status = status


# ---------------------------------------------------------------------- names and numbers
Epilogue = IntEnum("Epilogue", {
    "DEFAULT": 1, "RELU": 2, "RELU_AUX": 130, "BIAS": 4, "RELU_BIAS": 6, "RELU_AUX_BIAS": 134,
    "DRELU": 136, "DRELU_BGRAD": 152, "GELU": 32, "GELU_AUX": 160, "GELU_BIAS": 36,
    "GELU_AUX_BIAS": 164, "DGELU": 192, "DGELU_BGRAD": 208, "BGRADA": 256, "BGRADB": 512,
})  # fmt: skip
MatmulDescAttribute = IntEnum("MatmulDescAttribute", {
    "COMPUTE_TYPE": 0, "SCALE_TYPE": 1, "POINTER_MODE": 2, "TRANSA": 3, "TRANSB": 4, "EPILOGUE": 7,
    "BIAS_POINTER": 8, "EPILOGUE_AUX_POINTER": 11, "EPILOGUE_AUX_LD": 12,
})  # fmt: skip
MatrixLayoutAttribute = IntEnum(
    "MatrixLayoutAttribute", {"BATCH_COUNT": 5, "STRIDED_BATCH_OFFSET": 6}
)
MatmulPreferenceAttribute = IntEnum("MatmulPreferenceAttribute", {
    "MAX_WORKSPACE_BYTES": 1, "MIN_ALIGNMENT_A_BYTES": 5, "MIN_ALIGNMENT_B_BYTES": 6,
    "MIN_ALIGNMENT_C_BYTES": 7, "MIN_ALIGNMENT_D_BYTES": 8,
})  # fmt: skip
PointerMode = IntEnum("PointerMode", {"HOST": 0, "DEVICE": 1})

_WIDTHS = {  # where it is not int32, or of a preference not uint32
    "EPILOGUE": np.uint32, "BIAS_POINTER": np.int64, "EPILOGUE_AUX_POINTER": np.int64,
    "EPILOGUE_AUX_LD": np.int64, "STRIDED_BATCH_OFFSET": np.int64, "MAX_WORKSPACE_BYTES": np.uint64,
}  # fmt: skip


def _width(key: Any) -> Any:
    """Return the type of an attribute's value."""
    usual = np.uint32 if isinstance(key, MatmulPreferenceAttribute) else np.int32
    return _WIDTHS.get(key.name, usual)


# ---------------------------------------------------------------------- descriptors
class _Desc:
    """A product, a matrix layout or a preference: its fields and its attributes."""

    def __init__(self, **fields: int) -> None:
        self.fields, self.attributes = fields, dict[Any, int]()

    def get(self, key: Any, default: int = 0) -> int:
        return self.attributes.get(key, default)


_handles = itertools.count(0x1000, 16)
_alive: dict[int, Any] = {}  # descriptors, libraries (by device) and chosen algorithms


def _born(thing: Any) -> int:
    handle = next(_handles)
    _alive[handle] = thing
    return handle


def _find(handle: int, kind: type) -> Any:
    thing = _alive.get(handle)
    if not isinstance(thing, kind):
        raise cuBLASLtError(INVALID, f"{handle:#x} is no {kind.__name__}, or it was destroyed")
    return thing


def _setter(kind: type[IntEnum]) -> Callable[[int, int, int, int], None]:
    def set_attribute(handle: int, attr: int, buf: int, size_in_bytes: int) -> None:
        key = kind(int(attr))
        width = np.dtype(_width(key))
        if size_in_bytes != width.itemsize:
            raise cuBLASLtError(INVALID, f"{key.name} has {width.itemsize} bytes")
        value = np.frombuffer(ctypes.string_at(buf, size_in_bytes), width)[0]
        _find(handle, _Desc).attributes[key] = int(value)

    return set_attribute


def _destroy(handle: int) -> None:
    _find(handle, _Desc)
    del _alive[handle]


def create() -> int:
    """Return a handle of the library on the current device."""
    return _born(streams.here.device)


def _desc_create(compute_type: int, scale_type: int) -> int:
    return _born(_Desc(compute=int(compute_type), scale=int(scale_type)))


def _layout_create(type: int, rows: int, cols: int, ld: int) -> int:
    return _born(_Desc(type=int(type), rows=rows, cols=cols, ld=ld))


class MatmulHeuristicResult:
    """Room for what the heuristic finds."""

    def __init__(self, size: int = 1) -> None:
        self._room = np.zeros(96 * size, np.uint8)
        self.ptr = int(self._room.ctypes.data)


# ---------------------------------------------------------------------- a product, decoded
class _Matrix(NamedTuple):
    kind: int
    rows: int
    cols: int
    ld: int
    batch: int
    step: int

    def nbytes(self) -> int:
        """Return how many bytes lie between its first and its last element."""
        last = (self.cols - 1) * self.ld + self.rows + (self.batch - 1) * self.step
        return last * as_numpy(_DTYPES[self.kind]).itemsize


class _Product(NamedTuple):
    """What descriptors say; it is also what an algorithm was chosen for."""

    compute: int
    scale: int
    on_device: bool
    turned_a: bool
    turned_b: bool
    epilogue: int
    aux_ld: int
    a: _Matrix
    b: _Matrix
    c: _Matrix
    d: _Matrix


def _decoded(handles: tuple[int, ...]) -> _Product:
    desc, *layouts = (_find(h, _Desc) for h in handles)
    key = MatmulDescAttribute
    matrices = [
        _Matrix(
            x.fields["type"], x.fields["rows"], x.fields["cols"], x.fields["ld"],
            x.get(MatrixLayoutAttribute.BATCH_COUNT, 1),
            x.get(MatrixLayoutAttribute.STRIDED_BATCH_OFFSET),
        )
        for x in layouts
    ]  # fmt: skip
    return _Product(
        desc.fields["compute"], desc.fields["scale"], bool(desc.get(key.POINTER_MODE)),
        bool(desc.get(key.TRANSA)), bool(desc.get(key.TRANSB)),
        desc.get(key.EPILOGUE, Epilogue.DEFAULT), desc.get(key.EPILOGUE_AUX_LD), *matrices,
    )  # fmt: skip


def _check(p: _Product) -> None:
    """Raise for descriptors that do not fit together."""
    for name, x in (("A", p.a), ("B", p.b), ("C", p.c), ("D", p.d)):
        if x.ld < x.rows:
            raise cuBLASLtError(INVALID, f"{name}: leading dimension {x.ld} of {x.rows} rows")
        if x.batch != p.d.batch:
            raise cuBLASLtError(INVALID, f"{name}: {x.batch} matrices, but D has {p.d.batch}")
        if not (x.rows > 0 and x.cols > 0):
            raise cuBLASLtError(INVALID, f"{name}: {x.rows} rows, {x.cols} columns")
    apart = p.d.step >= p.d.ld * (p.d.cols - 1) + p.d.rows
    woven = p.d.step >= p.d.rows and p.d.ld >= p.d.step * (p.d.batch - 1) + p.d.rows
    if p.d.batch > 1 and not (apart or woven):
        raise cuBLASLtError(INVALID, "the matrices of D overlap")
    a = (p.a.cols, p.a.rows) if p.turned_a else (p.a.rows, p.a.cols)
    b = (p.b.cols, p.b.rows) if p.turned_b else (p.b.rows, p.b.cols)
    if a[1] != b[0] or (a[0], b[1]) != (p.d.rows, p.d.cols) or p.c[1:3] != p.d[1:3]:
        raise cuBLASLtError(INVALID, f"{a} times {b} is not {(p.d.rows, p.d.cols)}")
    _check_kinds(p)
    _check_epilogue(p)


_REAL = {(_32F, 0), (_TF32, 0)}
_SUPPORTED: dict[tuple[int, int], set[tuple[int, int]]] = {  # of A and of D: compute and scale
    (0, 0): _REAL, (2, 2): _REAL, (2, 0): _REAL, (14, 14): _REAL, (14, 0): _REAL,
    (1, 1): {(_64F, 1)}, (4, 4): {(_32F, 4), (_TF32, 4)}, (5, 5): {(_64F, 5)},
}  # fmt: skip


def _check_kinds(p: _Product) -> None:
    found = (p.compute, p.scale) in _SUPPORTED.get((p.a.kind, p.d.kind), ())
    if not found or p.b.kind != p.a.kind or p.c.kind != p.d.kind:
        kinds = [_DTYPES.get(x.kind) for x in (p.a, p.b, p.d)]
        raise cuBLASLtError(UNSUPPORTED, f"{kinds}, computed as {p.compute} by {p.scale}")
    if p.compute == _TF32 and p.a.kind not in (0, 4):
        raise cuBLASLtError(UNSUPPORTED, "TF32 is a way to multiply float32")


def _check_epilogue(p: _Product) -> None:
    name = Epilogue(p.epilogue).name
    if name == "DEFAULT":
        return
    if p.a.kind not in (0, 2, 14):
        raise cuBLASLtError(UNSUPPORTED, f"epilogue {name} of {_DTYPES[p.a.kind]}")
    if "AUX" in name or name[0] == "D":
        unit = 128 if "RELU" in name else 8
        if p.aux_ld % unit or p.aux_ld < p.d.rows:
            raise cuBLASLtError(
                INVALID, f"EPILOGUE_AUX_LD {p.aux_ld}: a multiple of {unit}, {p.d.rows} at least"
            )
        if p.d.kind != p.a.kind:
            raise cuBLASLtError(UNSUPPORTED, f"epilogue {name} with results of another dtype")


# ---------------------------------------------------------------------- the heuristic
class _Chosen(NamedTuple):
    """What the heuristic promises a kernel for."""

    product: _Product
    alignment: tuple[int, int, int]
    vector: int
    aux: int


_algorithms: dict[int, _Chosen] = {}
refused_epilogues: set[str] = set()  # tests put names here, of which there shall be no kernel


def _alignment(address: int) -> int:
    """Return what is taken for granted of an address; of none, that it will be a good one."""
    return min(address & -address, 256) if address else 256


def matmul_algo_get_heuristic(
    light_handle: int, operation_desc: int, adesc: int, bdesc: int, cdesc: int, ddesc: int,
    preference: int, requested_algo_count: int, heuristic_results_array: int,
    return_algo_count: int,
) -> None:  # fmt: skip
    """Choose an algorithm and write its number where the results are wanted."""
    _find(light_handle, int)
    product = _decoded((operation_desc, adesc, bdesc, cdesc, ddesc))
    _check(product)
    if Epilogue(product.epilogue).name in refused_epilogues:
        raise cuBLASLtError(UNSUPPORTED, "no kernel")
    wishes = _find(preference, _Desc)
    wanted = MatmulPreferenceAttribute
    sides = [wishes.get(wanted[f"MIN_ALIGNMENT_{s}_BYTES"], 256) for s in "ABD"]
    desc = _find(operation_desc, _Desc)
    vector = desc.get(MatmulDescAttribute.BIAS_POINTER)
    aux = desc.get(MatmulDescAttribute.EPILOGUE_AUX_POINTER)
    number = next(_handles)
    _algorithms[number] = _Chosen(
        product,
        (sides[0], sides[1], sides[2]),
        _alignment(vector) if _vector_length(product) else 1,
        _alignment(aux) if product.aux_ld else 1,
    )
    ctypes.c_uint64.from_address(heuristic_results_array).value = number
    ctypes.c_int32.from_address(return_algo_count).value = 1


# ---------------------------------------------------------------------- a launch
def _stream(pointer: int) -> streams.Stream:
    if not pointer:
        return streams.null_stream(streams.here.device)
    for stream in list(streams.machine.streams):
        if stream.ptr == pointer and stream.device_id == streams.here.device:
            return stream
    raise cuBLASLtError(INVALID, f"no stream {pointer:#x} on this device")


def _view(address: int, x: _Matrix) -> Numbers:
    """Return a stack of matrices of the device, (batch, rows, columns), by its address."""
    kind = as_numpy(_DTYPES[x.kind])
    room: Any = (ctypes.c_char * x.nbytes()).from_address(address)
    steps = [n * kind.itemsize for n in (x.step, 1, x.ld)]
    return np.ndarray((x.batch, x.rows, x.cols), kind, room, 0, steps)


def _number(address: int, kind: int, on_device: bool) -> Any:
    """Return alpha or beta."""
    dtype = as_numpy(_DTYPES[kind])
    try:
        streams.memory_at(address, dtype.itemsize)
        there = True
    except CUDARuntimeError:
        there = False
    if there != on_device:
        raise cuBLASLtError(INVALID, "alpha and beta are not where POINTER_MODE says")
    return np.frombuffer(ctypes.string_at(address, dtype.itemsize), dtype)[0]


def matmul(
    light_handle: int, compute_desc: int, alpha: int, a: int, adesc: int, b: int, bdesc: int,
    beta: int, c: int, cdesc: int, d: int, ddesc: int, algo: int, workspace: int,
    workspace_size_in_bytes: int, stream: int,
) -> None:  # fmt: skip
    """Compute D = epilogue(alpha·op(A)·op(B) + beta·C)."""
    if _find(light_handle, int) != streams.here.device:
        raise cuBLASLtError(INVALID, "the handle is another device's")
    product = _decoded((compute_desc, adesc, bdesc, cdesc, ddesc))
    desc = _find(compute_desc, _Desc)
    vector = desc.get(MatmulDescAttribute.BIAS_POINTER)
    aux = desc.get(MatmulDescAttribute.EPILOGUE_AUX_POINTER)
    _check_promises(algo, product, (a, b, d), vector, aux)
    _launch(product, (a, b, c, d), (alpha, beta), (vector, aux),
            (workspace, workspace_size_in_bytes), _stream(stream))  # fmt: skip


def _check_promises(
    algo: int, product: _Product, addresses: tuple[int, int, int], vector: int, aux: int
) -> None:
    """Raise where the kernel was chosen for something else."""
    chosen = _algorithms.get(ctypes.c_uint64.from_address(algo).value)
    if chosen is None or chosen.product != product:
        raise cuBLASLtError(INVALID, "the algorithm was chosen for another product")
    for address, promised in zip(addresses, chosen.alignment, strict=True):
        if address % promised:
            raise cuBLASLtError(INVALID, f"{address:#x} is not aligned to {promised} bytes")
    for name, address, promised in (("bias", vector, chosen.vector), ("aux", aux, chosen.aux)):
        if address % promised:
            raise cuBLASLtError(INVALID, f"{name} {address:#x} is less aligned than it was")


def _launch(
    p: _Product, addresses: tuple[int, int, int, int], numbers: tuple[int, int],
    extra: tuple[int, int], room: tuple[int, int], stream: streams.Stream,
) -> None:  # fmt: skip
    a, b, c, d = addresses
    sides = (p.a, a), (p.b, b), (p.c, c), (p.d, d)
    memories = [streams.memory_at(at, x.nbytes()) for x, at in sides]
    if room[1]:
        memories.append(streams.memory_at(*room))
    memories += [streams.memory_at(at, n) for at, n in _extra_bytes(p, extra)]
    for memory in memories:
        if memory.device != streams.here.device:
            raise cuBLASLtError(INVALID, "memory of another device")
    if any(at < d + p.d.nbytes() and d < at + x.nbytes() for x, at in sides[:2]):
        raise cuBLASLtError(INVALID, "D overlaps A or B")
    streams.use_all(memories, stream)

    def compute() -> None:
        _compute(p, addresses, numbers, extra)

    compute()
    streams.note(compute, stream)
    ledger.products.append(Epilogue(p.epilogue).name)


def _vector_length(p: _Product) -> int:
    """Return the length of the bias or of its gradient; 0 where there is none."""
    name = Epilogue(p.epilogue).name
    if name == "BGRADB":
        return p.d.cols
    return p.d.rows if "BIAS" in name or "BGRAD" in name else 0


def _extra_bytes(p: _Product, extra: tuple[int, int]) -> list[tuple[int, int]]:
    """Return address and size of the bias and of the auxiliary matrix, where they are used."""
    name, (vector, aux) = Epilogue(p.epilogue).name, extra
    item = as_numpy(_DTYPES[p.d.kind]).itemsize
    found, length = [], _vector_length(p)
    if length:
        if not vector or vector % item:
            raise cuBLASLtError(INVALID, f"bias {vector:#x} is not aligned to its {item} bytes")
        found.append((vector, length * item))
    if p.aux_ld and ("AUX" in name or name[0] == "D") and name != "DEFAULT":
        if not aux or aux % 16:
            raise cuBLASLtError(INVALID, f"aux {aux:#x} is not aligned to 16 bytes")
        elements = p.aux_ld * p.d.cols
        found.append((aux, elements // 8 if "RELU" in name else elements * item))
    return found


# ---------------------------------------------------------------------- with NumPy
def _compute(
    p: _Product, addresses: tuple[int, int, int, int], numbers: tuple[int, int],
    extra: tuple[int, int],
) -> None:  # fmt: skip
    a, b, c, d = (_view(at, x) for at, x in zip(addresses, (p.a, p.b, p.c, p.d), strict=True))
    alpha, beta = (_number(at, p.scale, p.on_device) for at in numbers)
    left, right = (_widened(x, p.compute) for x in (a, b))
    left = np.swapaxes(left, 1, 2) if p.turned_a else left
    right = np.swapaxes(right, 1, 2) if p.turned_b else right
    with np.errstate(all="ignore"):
        total = alpha * np.matmul(left, right)
        if beta != 0:
            total = total + beta * c.astype(total.dtype)
        d[...] = _finished(p, total, right, extra).astype(d.dtype)


def _widened(x: Numbers, compute: int) -> Numbers:
    """Return numbers as a tensor core reads them."""
    if x.dtype.itemsize == 2:
        return x.astype(np.float32)
    if compute != _TF32:
        return x
    bits = np.ascontiguousarray(x).view(np.uint32).astype(np.uint64)
    short = (bits + 0x0FFF + (bits >> 13 & 1)) & 0xFFFFE000
    return short.astype(np.uint32).view(np.float32).view(x.dtype)


_K = math.sqrt(2 / math.pi)


def _gelu(z: Numbers) -> Numbers:
    found: Numbers = 0.5 * z * (1 + np.tanh(_K * (z + 0.044715 * z**3)))
    return found


def _d_gelu(z: Any) -> Any:
    t = np.tanh(_K * (z + 0.044715 * z**3))
    return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * _K * (1 + 3 * 0.044715 * z * z)


def _finished(p: _Product, z: Numbers, right: Numbers, extra: tuple[int, int]) -> Numbers:
    """Return what the epilogue makes of the product; bias and aux are read or written."""
    name, kind = Epilogue(p.epilogue).name, as_numpy(_DTYPES[p.d.kind])
    length = _vector_length(p)
    vector = np.empty(0)
    if length:
        room: Any = (ctypes.c_char * (length * kind.itemsize)).from_address(extra[0])
        vector = np.frombuffer(room, kind)
    if "BIAS" in name:
        z = z + vector.astype(z.dtype)[:, None]
    if name == "BGRADB":
        vector[...] = right[0].sum(0)
    elif "BGRADA" in name:
        raise cuBLASLtError(UNSUPPORTED, "the stand-in has no BGRADA")
    if name.startswith(("RELU", "GELU")):
        if "AUX" in name:
            _store_aux(p, z[0], extra[1])
        z = np.where(z > 0, z, 0) if name.startswith("RELU") else _gelu(z)
    elif name.startswith(("DRELU", "DGELU")):
        z = z * _slope(p, extra[1])
        if "BGRAD" in name:
            vector[...] = z[0].sum(1)
    return z


def _aux_room(p: _Product, address: int) -> Numbers:
    """Return the auxiliary matrix, (columns, leading dimension), bits packed into bytes."""
    if "RELU" in Epilogue(p.epilogue).name:
        shape, kind = (p.d.cols, p.aux_ld // 8), np.dtype(np.uint8)
    else:
        shape, kind = (p.d.cols, p.aux_ld), as_numpy(_DTYPES[p.d.kind])
    room: Any = (ctypes.c_char * (math.prod(shape) * kind.itemsize)).from_address(address)
    found: Numbers = np.frombuffer(room, kind).reshape(shape)
    return found


def _store_aux(p: _Product, z: Numbers, address: int) -> None:
    room = _aux_room(p, address)
    if room.dtype == np.uint8:
        bits = np.zeros((p.d.cols, p.aux_ld), np.uint8)
        bits[:, : p.d.rows] = z.T > 0
        room[...] = np.packbits(bits, axis=1, bitorder="little")
    else:
        room[:, : p.d.rows] = z.T


def _slope(p: _Product, address: int) -> Any:
    """Return the derivative of the activation, as forward kept its argument."""
    room = _aux_room(p, address)
    if room.dtype == np.uint8:
        return np.unpackbits(room, axis=1, bitorder="little")[:, : p.d.rows].T.astype(np.float32)
    return _d_gelu(room[:, : p.d.rows].T.astype(np.float32))


# ---------------------------------------------------------------------- cuBLAS by CuPy
_modes = {"mode": 0}


def _classic(
    sizes: tuple[int, ...], alpha: int, beta: int, matrices: tuple[Any, ...], batch: int,
    compute: int,
) -> None:  # fmt: skip
    """Compute as gemmEx does; ``matrices``: (address, type, ld, step) of A, B and C."""
    ta, tb, m, n, k = sizes
    shapes = [(k, m) if ta else (m, k), (n, k) if tb else (k, n), (m, n)]
    a, b, c = (
        _Matrix(kind, *shape, ld, batch, step)
        for (_, kind, ld, step), shape in zip(matrices, shapes, strict=True)
    )
    scale = a.kind if a.kind in (1, 4, 5) else 0
    p = _Product(compute, scale, bool(_modes["mode"]), bool(ta), bool(tb), 1, 0, a, b, c, c)
    _check(p)
    at = [x[0] for x in matrices]
    _launch(p, (at[0], at[1], at[2], at[2]), (alpha, beta), (0, 0), (0, 0),
            streams.current_stream())  # fmt: skip


def _gemm_ex(
    handle: int, transa: int, transb: int, m: int, n: int, k: int, alpha: int, A: int, Atype: int,
    lda: int, B: int, Btype: int, ldb: int, beta: int, C: int, Ctype: int, ldc: int,
    computeType: int, algo: int,
) -> None:  # fmt: skip
    sides = (A, Atype, lda, 0), (B, Btype, ldb, 0), (C, Ctype, ldc, 0)
    _classic((transa, transb, m, n, k), alpha, beta, sides, 1, computeType)


def _gemm_strided_batched_ex(
    handle: int, transa: int, transb: int, m: int, n: int, k: int, alpha: int, A: int, Atype: int,
    lda: int, strideA: int, B: int, Btype: int, ldb: int, strideB: int, beta: int, C: int,
    Ctype: int, ldc: int, strideC: int, batchCount: int, computeType: int, algo: int,
) -> None:  # fmt: skip
    sides = (A, Atype, lda, strideA), (B, Btype, ldb, strideB), (C, Ctype, ldc, strideC)
    _classic((transa, transb, m, n, k), alpha, beta, sides, batchCount, computeType)


def _cublas_handle() -> int:
    if streams.capturing() is not None:
        ledger.refuse("cuBLAS cannot be captured by CuPy", NotImplementedError)
    return 1


def _set_pointer_mode(handle: int, mode: int) -> None:
    _modes["mode"] = mode


# ---------------------------------------------------------------------- modules
def _module(name: str, values: dict[str, Any]) -> ModuleType:
    module = ModuleType(name, "A stand-in that needs no GPU; see distgrad.testing.standin.")
    vars(module).update(values)
    return module


def make_modules(with_lt: bool) -> tuple[list[ModuleType], dict[str, Any]]:
    """Return the modules beside CuPy, and what ``cupy.cuda.device`` holds."""
    classic = {
        "gemmEx": _gemm_ex, "gemmStridedBatchedEx": _gemm_strided_batched_ex,
        "getPointerMode": lambda handle: _modes["mode"], "setPointerMode": _set_pointer_mode,
    }  # fmt: skip
    cublas = _module("cupy_backends.cuda.libs.cublas", classic)
    libs = _module("cupy_backends.cuda.libs", {"cublas": cublas})
    middle = _module("cupy_backends.cuda", {"libs": libs})
    modules = [_module("cupy_backends", {"cuda": middle}), middle, libs, cublas]
    if with_lt:
        lt = _module("nvmath.bindings.cublasLt", _lt_names())
        bindings = _module("nvmath.bindings", {"cublasLt": lt})
        modules += [_module("nvmath", {"bindings": bindings}), bindings, lt]
    return modules, {"get_cublas_handle": _cublas_handle}


def _lt_names() -> dict[str, Any]:
    kinds = (Epilogue, MatmulDescAttribute, MatrixLayoutAttribute, MatmulPreferenceAttribute,
             PointerMode, MatmulHeuristicResult, cuBLASLtError)  # fmt: skip
    names: dict[str, Any] = {kind.__name__: kind for kind in kinds}
    return names | {
        "create": create, "get_version": lambda: 130200, "matmul": matmul,
        "matmul_algo_get_heuristic": matmul_algo_get_heuristic,
        "matmul_desc_create": _desc_create, "matmul_desc_destroy": _destroy,
        "matmul_desc_set_attribute": _setter(MatmulDescAttribute),
        "matrix_layout_create": _layout_create, "matrix_layout_destroy": _destroy,
        "matrix_layout_set_attribute": _setter(MatrixLayoutAttribute),
        "matmul_preference_create": lambda: _born(_Desc()),
        "matmul_preference_destroy": _destroy,
        "matmul_preference_set_attribute": _setter(MatmulPreferenceAttribute),
        "get_matmul_desc_attribute_dtype": _width, "get_matrix_layout_attribute_dtype": _width,
        "get_matmul_preference_attribute_dtype": _width,
    }  # fmt: skip
