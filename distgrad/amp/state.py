"""What autocast is told, for each thread: on or off and in which dtype, by device type.

Note [Autocast costs nothing when off]
    While autocast is on in some thread, the code objects of the functions in its lists are those of
    a stub that converts the operands; the functions stay who they are, wherever they are imported
    or attached.  With the last block's end they get their own code back.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

from distgrad.amp.lists import READ_AS_THEY_ARE, Function, Policy, listed
from distgrad.autograd import saving
from distgrad.autograd.declare import cast
from distgrad.autograd.mode import mode
from distgrad.backend import dtype as _dtype
from distgrad.backend.device import device as Device
from distgrad.errors import ArgumentError, DtypeError
from distgrad.tensor import Tensor

__all__ = [
    "autocast_decrement_nesting", "autocast_increment_nesting", "clear_autocast_cache",
    "get_autocast_cpu_dtype", "get_autocast_dtype", "get_autocast_gpu_dtype",
    "is_autocast_cache_enabled", "is_autocast_cpu_enabled", "is_autocast_enabled",
    "set_autocast_cache_enabled", "set_autocast_cpu_dtype", "set_autocast_cpu_enabled",
    "set_autocast_dtype", "set_autocast_enabled", "set_autocast_gpu_dtype",
]  # fmt: skip

_DEFAULTS = {"cpu": _dtype.bfloat16, "cuda": _dtype.float16}


class _State(threading.local):
    """The settings of one thread."""

    def __init__(self) -> None:
        self.enabled = {"cpu": False, "cuda": False}
        self.dtypes = dict(_DEFAULTS)
        self.cache_enabled = True
        self.nesting = 0
        self.cache: dict[Any, tuple[Tensor, Tensor]] = {}


state = _State()


# ---------------------------------------------------------------------- PyTorch's functions
def _type_of(name: str, device_type: str | Device) -> str:
    found = device_type if isinstance(device_type, str) else device_type.type
    if found not in _DEFAULTS:
        raise ArgumentError(f"{name}({device_type!r}): autocast is for 'cpu' and 'cuda' here")
    return found


def is_autocast_enabled(device_type: str = "cuda") -> bool:
    """Return whether autocast is on for a type of device, in this thread."""
    if device_type in ("mps", "xpu", "mtia", "hpu", "xla"):
        return False  # these devices are not here
    return state.enabled[_type_of("is_autocast_enabled", device_type)]


def is_autocast_cpu_enabled() -> bool:
    """Return whether autocast is on for the CPU, in this thread."""
    return state.enabled["cpu"]


def set_autocast_enabled(device_type: str | bool, enabled: bool | None = None) -> None:
    """Turn autocast on or off for a type of device; with one argument: for ``cuda``."""
    place, value = ("cuda", device_type) if enabled is None else (device_type, enabled)
    kind, was = _type_of("set_autocast_enabled", place), any(state.enabled.values())  # type: ignore[arg-type]
    state.enabled[kind] = bool(value)
    _count(any(state.enabled.values()) - was)


def set_autocast_cpu_enabled(enabled: bool) -> None:
    """Turn autocast on or off for the CPU."""
    set_autocast_enabled("cpu", enabled)


def get_autocast_dtype(device_type: str) -> _dtype.dtype:
    """Return the dtype in which autocast computes matrix products."""
    return state.dtypes[_type_of("get_autocast_dtype", device_type)]


def set_autocast_dtype(device_type: str, dtype: _dtype.dtype) -> None:
    """Choose the dtype in which autocast computes matrix products."""
    state.dtypes[_type_of("set_autocast_dtype", device_type)] = dtype


def get_autocast_cpu_dtype() -> _dtype.dtype:
    """Return the dtype of autocast on the CPU."""
    return state.dtypes["cpu"]


def get_autocast_gpu_dtype() -> _dtype.dtype:
    """Return the dtype of autocast on GPUs."""
    return state.dtypes["cuda"]


def set_autocast_cpu_dtype(dtype: _dtype.dtype) -> None:
    """Choose the dtype of autocast on the CPU."""
    state.dtypes["cpu"] = dtype


def set_autocast_gpu_dtype(dtype: _dtype.dtype) -> None:
    """Choose the dtype of autocast on GPUs."""
    state.dtypes["cuda"] = dtype


def is_autocast_cache_enabled() -> bool:
    """Return whether the converted parameters are kept until the outermost block ends."""
    return state.cache_enabled


def set_autocast_cache_enabled(enabled: bool) -> None:
    """Choose whether the converted parameters are kept until the outermost block ends."""
    state.cache_enabled = bool(enabled)


def clear_autocast_cache() -> None:
    """Forget the converted parameters."""
    state.cache.clear()


def autocast_increment_nesting() -> int:
    """Count a block that begins; return how many are open."""
    state.nesting += 1
    return state.nesting


def autocast_decrement_nesting() -> int:
    """Count a block that ends; return how many are open."""
    state.nesting -= 1
    return state.nesting


# ---------------------------------------------------------------------- the stubs
class _Switch:
    """In how many threads autocast is on, and the stubs: function, its code, the stub's code."""

    users = 0
    stubs: list[tuple[FunctionType, Any, Any]]


_switch = _Switch()


def _count(change: int) -> None:
    if not change:
        return
    with saving.lock:
        _switch.users += change
        if _switch.users > 1 or (_switch.users == 1 and change < 0):
            return
        for function, own, stub in _stubs():
            function.__code__ = stub if _switch.users else own


@functools.cache
def _stubs() -> list[tuple[FunctionType, Any, Any]]:
    made = []
    for function, policies in listed().items():
        if isinstance(function, FunctionType):
            made.append((function, function.__code__, _stub(function, policies)))
    return made


def _stub(function: FunctionType, policies: dict[str, Policy]) -> Any:
    """Return the code that runs ``function`` on converted operands."""
    own = FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    own.__kwdefaults__ = function.__kwdefaults__
    run = functools.partial(_run, own, policies)
    template = _template if function.__closure__ is None else _closed(len(function.__closure__))
    code = template.__code__
    constants = tuple(run if c == "run" else c for c in code.co_consts)
    return code.replace(co_consts=constants, co_name=function.__name__)


def _template(*args: Any, **options: Any) -> Any:
    run: Any = "run"  # the constant is replaced by what to run
    return run(args, options)


def _run(
    function: Function, policies: dict[str, Policy], args: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    place = _place(args, options)
    policy = policies.get(place)
    if policy is None or not state.enabled[place]:
        return function(*args, **options)
    if policy == "refuse":
        raise DtypeError(
            f"{function.__name__}(): torch.nn.functional.binary_cross_entropy and torch.nn.BCELoss "
            "are unsafe to autocast; use binary_cross_entropy_with_logits or BCEWithLogitsLoss"
        )
    kind = _kind(policy, place, args, options)
    with paused():
        if place == "cuda" and function.__name__ in READ_AS_THEY_ARE:
            return READ_AS_THEY_ARE[function.__name__](*args, **options)
        if kind is None:
            return function(*args, **options)
        return function(
            *(_converted(a, kind) for a in args),
            **{n: _converted(a, kind) for n, a in options.items()},
        )


def _place(args: tuple[Any, ...], options: dict[str, Any]) -> str:
    for tensor in _tensors((*args, *options.values())):
        return tensor.device.type
    return "cpu"


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _eligible(tensor: Tensor) -> bool:
    return tensor.dtype.is_floating_point and tensor.dtype is not _dtype.float64


def _kind(policy: Policy, place: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """Return the dtype that eligible operands get; None leaves them as they are."""
    if policy == "lower":
        return state.dtypes[place]
    if policy == "float32":
        return _dtype.float32
    kinds = {t.dtype for t in _tensors((*args, *options.values())) if _eligible(t)}
    if len(kinds) < 2:
        return None
    return _dtype.float32 if _dtype.float32 in kinds else _dtype.promote_types(*kinds)


def _converted(value: Any, kind: Any) -> Any:
    if isinstance(value, Tensor):
        return _cached(value, kind) if _eligible(value) and value.dtype is not kind else value
    if type(value) in (list, tuple):
        return type(value)(_converted(v, kind) for v in value)
    return value


def _cached(tensor: Tensor, kind: Any) -> Tensor:
    """Return a tensor in ``kind``; a parameter's is made once in all the outermost block."""
    lasting = (
        state.cache_enabled
        and state.nesting > 0
        and tensor.requires_grad
        and tensor._node is None
        and tensor._base is None
        and kind is not _dtype.float32
    )
    if not lasting:
        return cast(tensor, kind.numpy)
    key = id(tensor), kind, mode.grad
    found = state.cache.get(key)
    if found is None or found[0] is not tensor:
        found = state.cache[key] = tensor, cast(tensor, kind.numpy)
    return found[1]


@contextmanager
def paused() -> Iterator[None]:
    """Turn autocast off in a ``with`` block of this thread, without touching the stubs."""
    before = state.enabled
    state.enabled = dict.fromkeys(before, False)
    try:
        yield
    finally:
        state.enabled = before


def _closed(cells: int) -> Callable[..., Any]:
    """Return the template with free variables, as many as the function has that it stands for."""
    names = ", ".join(f"_c{i}" for i in range(cells))
    source = (
        f"def make({names}):\n    def template(*args, **options):\n"
        f"        if 0: ({names},)\n        run = 'run'\n        return run(args, options)\n"
        "    return template\n"
    )
    place: dict[str, Any] = {}
    exec(source, place)
    made: Callable[..., Any] = place["make"](*range(cells))
    return made
