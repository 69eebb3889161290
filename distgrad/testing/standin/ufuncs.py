"""The stand-in's ufuncs, and the operators of its arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from distgrad.testing.standin.array import (
    TABLE,
    bare,
    check_operand,
    done,
    ndarray,
    placed,
    refuse_cublas,
)
from distgrad.testing.standin.ledger import ledger

_FLUSHED = ("add", "subtract", "multiply")
_LEAST = np.finfo(np.float32).smallest_normal


def _flushed(result: Any) -> Any:
    """Return a result as CuPy's kernels give it, compiled with -ftz=true: 0 for the least float32.

    They do so for operands too, and in all functions; these three will do to find who relies on it.
    """
    if result.dtype == np.float32:
        small = (np.abs(result) < _LEAST) & (result != 0)
        if isinstance(result, np.ndarray):
            result[small] = 0
        elif small:
            return np.float32(0)
    return result


class ufunc:
    """A CuPy ufunc: device arrays and numbers, its own loops, no ``where``, hardly a ``reduce``."""

    def __init__(self, name: str) -> None:
        """Make the ufunc ``name`` of the table."""
        self.__name__ = name
        self.native: np.ufunc = getattr(np, name)
        self.nin, self.nout = self.native.nin, self.native.nout
        self.types: list[str] = TABLE["ufuncs"][name].split()
        self._known: dict[Any, bool] = {}

    def __repr__(self) -> str:
        return f"<ufunc 'cupy_{self.__name__}'>"

    def __call__(
        self, *args: Any, out: Any = None, dtype: Any = None, casting: Any = "same_kind"
    ) -> Any:
        """Return the function of the operands, element by element."""
        if len(args) > self.nin:
            args, out = args[: self.nin], args[self.nin :]
        for arg in args:
            check_operand(self.__name__, arg)
        targets = tuple(t for t in (out if isinstance(out, tuple) else (out,)) if t is not None)
        if not all(isinstance(t, ndarray) for t in targets):
            ledger.refuse(f"{self.__name__}: Unsupported type of out: {type(out)}")
        if dtype is None:
            self._check_types(args)
        options = {"casting": casting} | ({} if dtype is None else {"dtype": dtype})
        if targets:
            options["out"] = bare(targets)
        if self.__name__ == "matmul":
            refuse_cublas("matmul", *args)
        operands = bare(args)

        def compute() -> Any:
            result = self.native(*operands, **options)
            return _flushed(result) if self.__name__ in _FLUSHED else result

        def give(result: Any) -> Any:
            parts = result if isinstance(result, tuple) else (result,)
            found = tuple(placed(part, targets, row_major=True) for part in parts)
            return found if self.nout > 1 else found[0]

        compute.__name__ = self.__name__
        return done(compute, give, kernel=True if targets else None)

    def _check_types(self, args: Sequence[Any]) -> None:
        """Raise where CuPy has no loop for these types, or one with another result."""
        kinds = tuple(a.dtype if isinstance(a, ndarray | np.generic) else type(a) for a in args)
        if kinds not in self._known:
            self._known[kinds] = not self.types or self._has_loop(kinds)
        if not self._known[kinds]:
            names = ", ".join(str(k) for k in kinds)
            ledger.refuse(f"Wrong type ({names}) of arguments for cupy_{self.__name__}")

    def _has_loop(self, kinds: tuple[Any, ...]) -> bool:
        if any(isinstance(k, np.dtype) and k.kind == "V" for k in kinds):
            return True
        weak = tuple(int if k is bool else k for k in kinds)
        if not any(isinstance(k, np.dtype) for k in weak):
            return True
        want = self.native.resolve_dtypes((*weak, *[None] * self.nout))
        have = [w if isinstance(k, type) else k for k, w in zip(weak, want, strict=False)]
        for loop in self.types:
            takes, _, gives = loop.partition("->")
            if all(np.can_cast(h, np.dtype(t)) for h, t in zip(have, takes, strict=True)):
                return [np.dtype(t) for t in gives] == list(want[self.nin :])
        return False

    def reduce(
        self, array: Any, axis: Any = 0, dtype: Any = None, out: Any = None, keepdims: bool = False
    ) -> Any:
        """Return the sum or the product; CuPy has no other."""
        if self.__name__ not in TABLE["reduces"]:
            ledger.refuse(f"`{self.__name__}.reduce` is not supported yet", NotImplementedError)
        if not isinstance(array, ndarray):
            ledger.refuse(f"{self.__name__}.reduce: Unsupported type {type(array)}")
        name = {"add": "sum", "multiply": "prod"}[self.__name__]
        return getattr(array, name)(axis, dtype, out, keepdims)


_OPERATORS = {
    "add": "add", "sub": "subtract", "mul": "multiply", "truediv": "true_divide",
    "floordiv": "floor_divide", "mod": "remainder", "pow": "power", "matmul": "matmul",
    "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor", "lshift": "left_shift",
    "rshift": "right_shift",
}  # fmt: skip
_COMPARISONS = {
    "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal", "eq": "equal",
    "ne": "not_equal",
}  # fmt: skip
_UNARY = {"neg": "negative", "pos": "positive", "abs": "absolute", "invert": "invert"}


def _attach_operators(ufuncs: dict[str, ufunc]) -> None:
    for word, name in _OPERATORS.items():
        function = ufuncs[name]
        setattr(ndarray, f"__{word}__", lambda self, other, f=function: f(self, other))
        setattr(ndarray, f"__r{word}__", lambda self, other, f=function: f(other, self))
        if word != "matmul":
            setattr(ndarray, f"__i{word}__", lambda self, other, f=function: f(self, other, self))
    for word, name in _COMPARISONS.items():
        setattr(ndarray, f"__{word}__", lambda self, other, f=ufuncs[name]: f(self, other))
    for word, name in _UNARY.items():
        setattr(ndarray, f"__{word}__", lambda self, f=ufuncs[name]: f(self))


ufuncs = {name: ufunc(name) for name in TABLE["ufuncs"]}
_attach_operators(ufuncs)
