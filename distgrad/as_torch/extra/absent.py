"""Names of PyTorch's for what no tensor is here; programs compare with them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from distgrad.backend.dtype import finfo as finfo_of
from distgrad.backend.layout import layout
from distgrad.ops.coo import sparse_coo

__all__ = [
    "AbsentDtype",
    "PyTorchFileReader",
    "PyTorchFileWriter",
    "SymBool",
    "SymFloat",
    "SymInt",
    "complex32",
    "finfo",
    "float4_e2m1fn_x2",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e5m2",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "jagged",
    "qint8",
    "qint32",
    "quint2x4",
    "quint4x2",
    "quint8",
    "sparse_bsc",
    "sparse_bsr",
    "sparse_coo",
    "sparse_csc",
    "sparse_csr",
]

# layouts that no tensor has
sparse_csr, sparse_csc = layout("sparse_csr"), layout("sparse_csc")
sparse_bsr, sparse_bsc, jagged = layout("sparse_bsr"), layout("sparse_bsc"), layout("jagged")


class AbsentDtype:
    """A dtype of PyTorch's that no tensor has here; programs compare with it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"torch.{self.name}"

    def to_real(self) -> AbsentDtype:
        """Return this dtype, which is not complex."""
        return self


float8_e4m3fn, float8_e4m3fnuz = AbsentDtype("float8_e4m3fn"), AbsentDtype("float8_e4m3fnuz")
float8_e5m2, float8_e5m2fnuz = AbsentDtype("float8_e5m2"), AbsentDtype("float8_e5m2fnuz")
float8_e8m0fnu, float4_e2m1fn_x2 = AbsentDtype("float8_e8m0fnu"), AbsentDtype("float4_e2m1fn_x2")
complex32, quint8, qint8 = AbsentDtype("complex32"), AbsentDtype("quint8"), AbsentDtype("qint8")
qint32, quint4x2, quint2x4 = AbsentDtype("qint32"), AbsentDtype("quint4x2"), AbsentDtype("quint2x4")


# largest number, smallest normal number, distance from 1 to the next, by name
_LIMITS = {
    "float8_e4m3fn": (448.0, 2.0**-6, 0.125), "float8_e4m3fnuz": (240.0, 2.0**-7, 0.125),
    "float8_e5m2": (57344.0, 2.0**-14, 0.25), "float8_e5m2fnuz": (57344.0, 2.0**-15, 0.25),
}  # fmt: skip


def finfo(type: Any = None) -> Any:
    """Return the limits of a floating-point dtype, of those too that no tensor has here."""
    limits = _LIMITS.get(type.name) if isinstance(type, AbsentDtype) else None
    if limits is None:
        return finfo_of() if type is None else finfo_of(type)
    most, tiny, eps = limits
    return SimpleNamespace(
        dtype=type.name, bits=8, max=most, min=-most, tiny=tiny, smallest_normal=tiny, eps=eps
    )


class SymInt(int):
    """A size that is traced in PyTorch; sizes are numbers here, and nothing is one."""


class SymFloat(float):
    """A number that is traced in PyTorch; nothing is one here."""


class SymBool:
    """A truth that is traced in PyTorch; nothing is one here."""


class PyTorchFileReader:
    """PyTorch's own reader of its files; here `torch.load` reads them."""


class PyTorchFileWriter:
    """PyTorch's own writer of its files; here `torch.save` writes them."""
