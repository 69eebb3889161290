"""The operations by which collectives reduce."""

from __future__ import annotations

from enum import Enum

import numpy as np

from distgrad.config import nearest
from distgrad.errors import ArgumentError, ArgumentTypeError


class ReduceOp(Enum):
    """How the tensors of all ranks become one, element by element.

    AVG takes floating-point and complex dtypes, BAND, BOR and BXOR integers and bool; MIN and MAX
    have no meaning for complex numbers. PREMUL_SUM is NCCL's and is refused: its factor cannot be
    given by PyTorch's public names either.

    Example:
        >>> ReduceOp.SUM, ReduceOp("max")
        (<ReduceOp.SUM: 'sum'>, <ReduceOp.MAX: 'max'>)
    """

    SUM = "sum"
    AVG = "avg"
    PRODUCT = "prod"
    MIN = "min"
    MAX = "max"
    BAND = "band"
    BOR = "bor"
    BXOR = "bxor"
    PREMUL_SUM = "premul_sum"


ReduceOp.RedOpType = ReduceOp  # type: ignore[attr-defined]  # PyTorch's enumeration inside its class

UFUNCS: dict[str, np.ufunc] = {
    "sum": np.add,
    "prod": np.multiply,
    "min": np.minimum,
    "max": np.maximum,
    "avg": np.add,
    "band": np.bitwise_and,
    "bor": np.bitwise_or,
    "bxor": np.bitwise_xor,
}


def name_of(call: str, op: ReduceOp | str) -> str:
    """Return the short name of ``op``, which may be that name already.

    Raises:
        ArgumentError: no operation has this name.
        ArgumentTypeError: neither operation nor name.
    """
    if op is ReduceOp.PREMUL_SUM:
        raise ArgumentError(f"{call}: PREMUL_SUM is not known; multiply by the factor, and SUM")
    if isinstance(op, ReduceOp):
        return str(op.value)
    if not isinstance(op, str):
        raise ArgumentTypeError(
            f"{call}: op must be a ReduceOp, not {type(op).__name__}; use ReduceOp.SUM, for example"
        )
    names = list(UFUNCS)
    if op.lower() not in names:
        raise ArgumentError(f"{call}: op {op!r} is none of {', '.join(names)}{nearest(op, names)}")
    return op.lower()


def supports_complex(op: ReduceOp) -> bool:
    """Return whether complex tensors can be reduced by ``op``."""
    return op in (ReduceOp.SUM, ReduceOp.AVG, ReduceOp.PRODUCT)
