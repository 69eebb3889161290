"""Element types: one object per type, PyTorch's names and PyTorch's promotion rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from distgrad.errors import ArgumentTypeError, DtypeError, MissingExtra

#: What stands before a type's name when it is printed.
MODULE_PREFIX = "distgrad"


def print_as(package: str) -> None:
    """Let ``package`` stand before the names of types: programs compare what they print."""
    global MODULE_PREFIX
    MODULE_PREFIX = package


#: The class itself, for annotations inside it: there ``dtype`` means its attribute.
DType: TypeAlias = "dtype"

_BY_NAME: dict[str, dtype] = {}
_BY_NUMPY: dict[Any, dtype] = {}

# Kinds in promotion order: a pair takes the higher kind.
_BOOL, _INT, _FLOAT, _COMPLEX = range(4)


class dtype:
    """A type of array elements. ``dtype(x)`` finds the one that ``x`` names.

    Args:
        x: a `dtype`, a NumPy dtype or scalar type, a Python number type or a name.

    Example:
        >>> import numpy as np
        >>> dtype("float32"), dtype(np.int16), dtype(bool)
        (distgrad.float32, distgrad.int16, distgrad.bool)
        >>> np.zeros(3, dtype=dtype("float16")).dtype
        dtype('float16')
    """

    __slots__ = (
        "__weakref__",
        "_kind",
        "_numpy",
        "is_complex",
        "is_floating_point",
        "is_signed",
        "itemsize",
        "name",
    )
    name: str
    itemsize: int
    is_floating_point: bool
    is_complex: bool
    is_signed: bool
    _kind: int
    _numpy: np.dtype[Any] | None

    def __new__(cls, x: DTypeLike) -> DType:
        if isinstance(x, str) and x in _BY_NAME:
            return _BY_NAME[x]
        return x if isinstance(x, dtype) else from_numpy(as_numpy(x))

    @property
    def numpy(self) -> np.dtype[Any]:
        """The NumPy dtype that stores this type."""
        return self._numpy or _load_bfloat16()

    #: NumPy looks this name up, so that every `dtype` argument of NumPy accepts ours.
    dtype = numpy

    def to_real(self) -> DType:
        """The type of the real part: ``complex64`` gives ``float32``, others themselves."""
        return _REAL_OF.get(self, self)

    def to_complex(self) -> DType:
        """The complex type of the same precision.

        Differs from PyTorch: ``float16`` gives ``complex64``, since NumPy has no complex32.
        """
        if self._kind == _COMPLEX:
            return self
        if self._kind != _FLOAT:
            raise DtypeError(
                f"to_complex({self.name}): only floating point types have a complex type; "
                "convert to float32 or float64 first"
            )
        return complex128 if self is float64 else complex64

    def __repr__(self) -> str:
        return f"{MODULE_PREFIX}.{self.name}"

    def __reduce__(self) -> tuple[type[DType], tuple[str]]:
        return dtype, (self.name,)


DTypeLike: TypeAlias = dtype | np.dtype[Any] | type[Any] | str


def _define(name: str, kind: int, itemsize: int, *, signed: bool, storage: bool = True) -> dtype:
    self = object.__new__(dtype)
    self.name = name
    self.itemsize = itemsize
    self.is_floating_point = kind == _FLOAT
    self.is_complex = kind == _COMPLEX
    self.is_signed = signed
    self._kind = kind
    self._numpy = np.dtype(name) if storage else None
    _BY_NAME[name] = self
    if self._numpy is not None:
        _BY_NUMPY[self._numpy] = self
    return self


float16 = _define("float16", _FLOAT, 2, signed=True)
bfloat16 = _define("bfloat16", _FLOAT, 2, signed=True, storage=False)
float32 = _define("float32", _FLOAT, 4, signed=True)
float64 = _define("float64", _FLOAT, 8, signed=True)
int8 = _define("int8", _INT, 1, signed=True)
int16 = _define("int16", _INT, 2, signed=True)
int32 = _define("int32", _INT, 4, signed=True)
int64 = _define("int64", _INT, 8, signed=True)
uint8 = _define("uint8", _INT, 1, signed=False)
uint16 = _define("uint16", _INT, 2, signed=False)
uint32 = _define("uint32", _INT, 4, signed=False)
uint64 = _define("uint64", _INT, 8, signed=False)
bool_ = _define("bool", _BOOL, 1, signed=False)
complex64 = _define("complex64", _COMPLEX, 8, signed=True)
complex128 = _define("complex128", _COMPLEX, 16, signed=True)

half, float_, double = float16, float32, float64
short, int_, long = int16, int32, int64
cfloat, cdouble = complex64, complex128

#: Every type, in PyTorch's order of precision within a kind.
ALL_DTYPES: tuple[dtype, ...] = tuple(_BY_NAME.values())

_REAL_OF = {complex64: float32, complex128: float64}
# PyTorch promotes these to a floating point partner only.
_BARE_UNSIGNED = frozenset({uint16, uint32, uint64})


def _load_bfloat16() -> np.dtype[Any]:
    """The NumPy dtype of bfloat16, registered on first use."""
    try:
        import ml_dtypes  # optional, and 9 ms that few programs need
    except ImportError as error:
        raise MissingExtra(
            "bfloat16: NumPy has no such type without ml_dtypes, which is not installed; "
            "pip install ml_dtypes"
        ) from error
    bfloat16._numpy = np.dtype(ml_dtypes.bfloat16)
    _BY_NUMPY[bfloat16._numpy] = bfloat16
    return bfloat16._numpy


def from_numpy(np_dtype: np.dtype[Any]) -> dtype:
    """The type that stands for a NumPy dtype.

    Raises:
        ArgumentTypeError: for NumPy types without a counterpart (strings, objects, records …).
    """
    found = _BY_NUMPY.get(np_dtype)
    return found if found is not None else _from_rare_numpy(np_dtype)


def _from_rare_numpy(np_dtype: np.dtype[Any]) -> dtype:
    if np_dtype.name == "bfloat16":
        _load_bfloat16()
        return bfloat16
    native = np_dtype.newbyteorder("=")
    if native in _BY_NUMPY:
        hint = f"this one has the wrong byte order; convert with .astype({native.name!r})"
    else:
        hint = "the supported types are: " + ", ".join(_BY_NAME)
    raise ArgumentTypeError(f"dtype({np_dtype!r}): no such element type; {hint}")


def as_numpy(x: DTypeLike | None) -> np.dtype[Any]:
    """The NumPy dtype for anything that names a type; ``None`` means the default float type.

    Example:
        >>> as_numpy(float32), as_numpy("int64"), as_numpy(None)
        (dtype('float32'), dtype('int64'), dtype('float32'))
    """
    if x is None:
        return _default_numpy
    if type(x) is dtype:
        return x.numpy
    if isinstance(x, str) and x in _BY_NAME:
        return _BY_NAME[x].numpy
    try:
        return np.dtype(x)
    except TypeError as error:
        raise ArgumentTypeError(
            f"dtype({x!r}): not the name of an element type; use one of: " + ", ".join(_BY_NAME)
        ) from error


# --- the default floating point type --------------------------------------------------------

_default: dtype = float32
_default_numpy: np.dtype[Any] = float32.numpy


def get_default_dtype() -> dtype:
    """The type of floating point tensors made without a ``dtype``."""
    return _default


def set_default_dtype(d: dtype) -> None:
    """Sets the type of floating point tensors made without a ``dtype``.

    Raises:
        ArgumentTypeError: unless ``d`` is a floating point type.
    """
    global _default, _default_numpy
    if not isinstance(d, dtype) or not d.is_floating_point:
        raise ArgumentTypeError(
            f"set_default_dtype({d!r}): the default must be a floating point type; "
            "use float16, bfloat16, float32 or float64"
        )
    _default_numpy = d.numpy
    _default = d
    for cache in DEFAULT_CACHES:
        cache.clear()


def default_float() -> np.dtype[Any]:
    """The default floating point type as a NumPy dtype."""
    return _default_numpy


# --- promotion --------------------------------------------------------------------------------


def promote_types(type1: dtype, type2: dtype) -> dtype:
    """The smallest type that both types convert to by PyTorch's rules.

    Raises:
        DtypeError: for uint16, uint32 and uint64 with any other integer, bool or complex type.

    Example:
        >>> promote_types(int64, float16), promote_types(uint8, int8)
        (distgrad.float16, distgrad.int16)
    """
    if type1 is type2:
        return type1
    _check_types("promote_types", type1, type2)
    low, high = (type1, type2) if type1._kind <= type2._kind else (type2, type1)
    if low in _BARE_UNSIGNED or high in _BARE_UNSIGNED:
        if high._kind == _FLOAT:
            return high
        raise DtypeError(
            f"promote_types({type1.name}, {type2.name}): uint16, uint32 and uint64 promote to "
            "floating point types only; convert one operand with .to(dtype)"
        )
    if high._kind == _COMPLEX:
        return complex128 if float64 in (low, low.to_real(), high.to_real()) else complex64
    if low._kind < high._kind:
        return high
    if high._kind == _FLOAT:
        return high if high.itemsize > low.itemsize else _wider_float(low, high)
    return _wider_int(low, high)


def _check_types(name: str, *types: Any) -> None:
    for place, kind in enumerate(types, 1):
        if not isinstance(kind, dtype):
            raise ArgumentTypeError(
                f"{name}(): argument {place} must be {MODULE_PREFIX}.dtype, not "
                f"{type(kind).__name__}; use {MODULE_PREFIX}.float32 or another"
            )


def _wider_float(a: dtype, b: dtype) -> dtype:
    # float16 and bfloat16 have the same size and neither holds the other.
    return a if a.itemsize > b.itemsize else float32


def _wider_int(a: dtype, b: dtype) -> dtype:
    if uint8 in (a, b):
        signed = b if a is uint8 else a
        return signed if signed.itemsize > 1 else int16
    return a if a.itemsize > b.itemsize else b


def can_cast(from_: dtype, to: dtype) -> bool:
    """Whether PyTorch lets an operation write results of type ``from_`` into type ``to``.

    Example:
        >>> can_cast(float64, float16), can_cast(float32, int64), can_cast(int8, bool_)
        (True, False, False)
    """
    _check_types("can_cast", from_, to)
    if from_._kind == _INT:
        return to._kind != _BOOL
    return from_._kind <= to._kind


def _combine(higher: dtype | None, lower: dtype | None) -> dtype | None:
    """The result of a category of operands with one of less weight."""
    if higher is None or lower is None:
        return lower if higher is None else higher
    if higher._kind == _COMPLEX:
        return higher
    if lower._kind == _COMPLEX:
        return higher.to_complex() if higher._kind == _FLOAT else lower
    if higher._kind == _FLOAT:
        return higher
    if higher._kind == _BOOL or lower._kind == _FLOAT:
        return promote_types(higher, lower)
    return higher


def _number_type(value: object) -> dtype:
    """The type that a Python (or NumPy scalar) number has in promotion."""
    if isinstance(value, bool | np.bool_):
        return bool_
    if isinstance(value, int | np.integer):
        return int64
    if isinstance(value, float | np.floating):
        return _default
    if isinstance(value, complex | np.complexfloating):
        return _default.to_complex()
    raise ArgumentTypeError(
        f"{type(value).__name__} {value!r}: not a number; "
        "pass a tensor, bool, int, float or complex"
    )


def result_type(tensor1: Any, tensor2: Any) -> dtype:
    """The type that arithmetic on two tensors or numbers gives.

    Example:
        >>> import numpy as np
        >>> result_type(np.zeros(2, "int8"), 1.5)
        distgrad.float32
    """
    return joint_type([getattr(operand, "array", operand) for operand in (tensor1, tensor2)])


def joint_type(operands: Sequence[Any]) -> dtype:
    """The type of an operation's result for arrays and Python numbers together.

    Arrays with dimensions decide first, zero-dimensional arrays next and Python numbers last; a
    category of less weight counts only when its kind (bool, int, float, complex) is higher.

    Example:
        >>> import numpy as np
        >>> joint_type([np.zeros(2, "int8"), np.ones((), "int64"), 3])
        distgrad.int8
        >>> joint_type([np.zeros(2, "int8"), 1.5])
        distgrad.float32
    """
    weights: list[dtype | None] = [None, None, None]
    for operand in operands:
        if isinstance(operand, np.generic) or not hasattr(operand, "ndim"):
            place, kind = 2, _number_type(operand)
        else:
            place, kind = (0 if operand.ndim else 1), from_numpy(as_numpy(operand.dtype))
        present = weights[place]
        weights[place] = kind if present is None else promote_types(present, kind)
    found = _combine(weights[0], _combine(weights[1], weights[2]))
    if found is None:
        raise ArgumentTypeError("result_type(): no operands; pass at least one tensor or number")
    return found


_PROMOTED: dict[tuple[Any, Any, bool, bool], np.dtype[Any]] = {}


def promote_arrays(a: Any, b: Any) -> np.dtype[Any]:
    """The NumPy dtype in which an operation on arrays ``a`` and ``b`` is computed."""
    key = (a.dtype, b.dtype, a.ndim == 0, b.ndim == 0)
    found = _PROMOTED.get(key)
    if found is None:
        types = from_numpy(a.dtype), from_numpy(b.dtype)
        if key[2] is key[3]:
            found = promote_types(*types).numpy
        else:
            combined = _combine(*types) if key[3] else _combine(types[1], types[0])
            assert combined is not None
            found = combined.numpy
        _PROMOTED[key] = found
    return found


# --- Python numbers as operands ---------------------------------------------------------------

_SCALARS: dict[tuple[Any, ...], Any] = {}
#: Caches of numbers in the type that promotion gave them: emptied when the default type changes.
DEFAULT_CACHES: list[dict[Any, Any]] = [_SCALARS]
_SCALARS_LIMIT = 1024


def scalar(value: Any, like: Any) -> Any:
    """The Python number ``value`` as an operand for the array ``like``, in the promoted type.

    The result is a read-only zero-dimensional array beside a NumPy array and a NumPy scalar beside
    a device array (which a kernel takes as an argument, so nothing is copied to the device).
    Integers wrap around in the array's type, as in PyTorch. Made once and kept: 0.15 µs.

    Raises:
        OverflowError: for an integer outside of 64 bits.
    """
    # Zeros are told apart by their text, because 0.0 == -0.0.
    try:
        return _SCALARS[type(value), value or str(value), like.dtype, type(like)]
    except (KeyError, TypeError, ValueError):
        return _make_scalar(value, like)


def _make_scalar(value: Any, like: Any) -> Any:
    kind = _number_type(value)
    found = _combine(from_numpy(like.dtype), kind)
    assert found is not None
    number = value.item() if isinstance(value, np.generic) else value
    if kind is int64:
        number = _fit_integer(number, found)
    with np.errstate(over="ignore"):  # 1e60 becomes inf in float32
        array = np.full((), number, dtype=found.numpy)
    array.setflags(write=False)
    result = array if isinstance(like, np.ndarray) else array[()]
    # A complex number may hide a negative zero, and nan is not equal to itself.
    if kind._kind != _COMPLEX and value == value:
        if len(_SCALARS) >= _SCALARS_LIMIT:
            _SCALARS.clear()
        _SCALARS[type(value), value or str(value), like.dtype, type(like)] = result
    return result


def _fit_integer(number: int, target: dtype) -> int:
    """``number`` within the range of ``target``, modulo its number of values."""
    if not -(2**63) <= number < 2**64:
        raise OverflowError(
            f"{number}: does not fit in 64 bits; pass a float or keep it below 2**63 in magnitude"
        )
    if target._kind != _INT:
        return number
    bits = 8 * target.itemsize
    number &= (1 << bits) - 1
    return number - (1 << bits) if target.is_signed and number >> (bits - 1) else number


_C_NAMES = {
    "uint8": "uint8_t", "int8": "int8_t", "int16": "int16_t", "int32": "int", "int64": "int64_t",
    "float16": "c10::Half", "bfloat16": "c10::BFloat16", "float32": "float", "float64": "double",
    "complex64": "c10::complex<float>",
}  # fmt: skip


def checked_number(value: Any, kind: np.dtype[Any]) -> Any:
    """The Python number ``value`` as NumPy takes it for ``kind``, where an operation fills with it.

    Floats are cut for integers, and small negative integers wrap around in unsigned types.

    Raises:
        DtypeError: it does not fit.

    Example:
        >>> checked_number(-3, np.dtype("uint8")), checked_number(2.7, np.dtype("int32"))
        (253, 2)
    """
    target = from_numpy(kind)
    if isinstance(value, np.generic):
        value = value.item()
    if target._kind == _BOOL:
        return bool(value)
    if isinstance(value, complex) and target._kind != _COMPLEX:
        if value.imag:
            raise _does_not_fit(value, target)
        value = value.real
    if target._kind == _INT:
        return _checked_integer(value, target)
    most = _FLOAT_LIMITS[target.to_real()][2]
    parts = (value.real, value.imag) if isinstance(value, complex) else (value,)
    if any(math.isfinite(x) and abs(x) > most for x in parts):
        raise _does_not_fit(value, target)
    return value


def _checked_integer(value: float, target: dtype) -> int:
    limits = iinfo(target)
    low = limits.min if target.is_signed or isinstance(value, float) else -limits.max
    if not low <= value <= limits.max:  # nan is in no range
        raise _does_not_fit(value, target)
    return _fit_integer(int(value), target)


def _does_not_fit(value: Any, target: dtype) -> DtypeError:
    name = _C_NAMES.get(target.name, target.name)
    return DtypeError(
        f"value cannot be converted to type {name} without overflow: {value!r} is outside of "
        f"{target.name}; use a number in its range, or a wider dtype"
    )


# --- limits -----------------------------------------------------------------------------------

# bits, eps, max, smallest normal, resolution
_FLOAT_LIMITS: dict[dtype, tuple[int, float, float, float, float]] = {
    float16: (16, 2.0**-10, 65504.0, 2.0**-14, 1e-3),
    bfloat16: (16, 2.0**-7, (2 - 2.0**-7) * 2.0**127, 2.0**-126, 1e-2),
    float32: (32, 2.0**-23, (2 - 2.0**-23) * 2.0**127, 2.0**-126, 1e-6),
    float64: (64, 2.0**-52, (2 - 2.0**-52) * 2.0**1023, 2.0**-1022, 1e-15),
}


class finfo:
    """The limits of a floating point type; complex types give those of their parts.

    Example:
        >>> finfo(bfloat16)
        finfo(resolution=0.01, min=-3.38953e+38, max=3.38953e+38, eps=0.0078125,
        smallest_normal=1.17549e-38, tiny=1.17549e-38, dtype=bfloat16)
    """

    __slots__ = ("bits", "dtype", "eps", "max", "min", "resolution", "smallest_normal", "tiny")

    def __init__(self, type: dtype | None = None) -> None:
        real = _default if type is None else type.to_real()
        if real not in _FLOAT_LIMITS:
            raise ArgumentTypeError(
                f"finfo({real.name}): not a floating point type; use iinfo for integers"
            )
        self.bits, self.eps, self.max, self.tiny, self.resolution = _FLOAT_LIMITS[real]
        self.smallest_normal = self.tiny
        self.min = -self.max
        self.dtype = real.name

    def __repr__(self) -> str:
        names = ("resolution", "min", "max", "eps", "smallest_normal", "tiny")
        fields = ", ".join(f"{name}={getattr(self, name):g}" for name in names)
        return f"finfo({fields}, dtype={self.dtype})"


class iinfo:
    """The limits of an integer type.

    Example:
        >>> iinfo(int8)
        iinfo(min=-128, max=127, dtype=int8)
    """

    __slots__ = ("bits", "dtype", "max", "min")

    def __init__(self, type: dtype) -> None:
        if type._kind != _INT:
            raise ArgumentTypeError(
                f"iinfo({type.name}): not an integer type; use finfo for floating point types"
            )
        self.bits = 8 * type.itemsize
        self.max = (1 << (self.bits - type.is_signed)) - 1
        self.min = -self.max - 1 if type.is_signed else 0
        self.dtype = type.name

    def __repr__(self) -> str:
        return f"iinfo(min={self.min}, max={self.max}, dtype={self.dtype})"


def number_of_values(kind: np.dtype[Any]) -> int:
    """How many integers from 0 on ``random_`` draws from: floats up to the last exact one."""
    ours = from_numpy(kind)
    if ours.is_floating_point:
        exact = {"float64": 1 << 53, "float32": 1 << 24, "float16": 1 << 11}
        return exact.get(ours.name, 1 << 8) + 1
    if ours.is_complex:
        raise DtypeError(f"random_(dtype={ours.name}): there are no complex integers; use int64")
    return 2 if ours.name == "bool" else 1 << (8 * ours.itemsize - ours.is_signed)
