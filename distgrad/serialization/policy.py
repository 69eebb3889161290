"""What a file may name: PyTorch's tensors, NumPy's arrays, plain containers, and what users allow.

Note [What may be loaded]
    ``weights_only=True``, the default, builds tensors, parameters, shapes, dtypes, devices, NumPy's
    arrays and numbers, and plain containers.  Nothing of the file's choosing is imported or called.
    ``weights_only=False`` also rebuilds objects of classes of distgrad and of the user's own
    modules, those outside of the standard library and of installed packages, provided they are
    imported already.  An instance is made without its constructor, then given its attributes; a
    class or function may be an attribute, but none is called.  Layers of PyTorch become ours.
    Whatever else PyTorch would call has to be allowed by ``add_safe_globals``.
"""

from __future__ import annotations

import collections
import contextlib
import enum
import pathlib
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy

from distgrad import nn
from distgrad.backend.dtype import ALL_DTYPES, dtype
from distgrad.errors import CheckpointError
from distgrad.nn.parameter import Buffer, Parameter
from distgrad.serialization import rebuild
from distgrad.serialization.errors import RefusedGlobal
from distgrad.serialization.machine import hashable
from distgrad.serialization.storages import KINDS, UNTYPED, StorageKind
from distgrad.tensor import Tensor

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": rebuild.tensor,
    "torch._utils._rebuild_tensor_v2": rebuild.tensor_v2,
    "torch._utils._rebuild_tensor_v3": rebuild.tensor_v3,
    "torch._utils._rebuild_parameter": rebuild.parameter,
    "torch._utils._rebuild_parameter_with_state": rebuild.parameter_with_state,
    "torch.Size": rebuild.size,
    "torch.device": rebuild.device,
    "torch.serialization._get_layout": rebuild.layout,
    "numpy.core.multiarray._reconstruct": rebuild.array_reconstruct,
    "numpy._core.multiarray._reconstruct": rebuild.array_reconstruct,
    "numpy.core.multiarray.scalar": rebuild.numpy_scalar,
    "numpy._core.multiarray.scalar": rebuild.numpy_scalar,
    "numpy.dtype": rebuild.numpy_dtype,
    "_codecs.encode": rebuild.encode,
    "builtins.bytearray": rebuild.byte_array,
    "builtins.bytes": rebuild.byte_string,
    "builtins.set": set,
    "builtins.frozenset": frozenset,
    "builtins.complex": complex,
    "builtins.slice": slice,
    "builtins.range": range,
    "builtins.xrange": range,  # as pickles that Python 2 can read name it
    "collections.OrderedDict": collections.OrderedDict,
    "collections.Counter": collections.Counter,
    "collections.deque": collections.deque,
    "collections.defaultdict": collections.defaultdict,
    "types.SimpleNamespace": types.SimpleNamespace,
    "pathlib.PosixPath": pathlib.Path,
    "pathlib.WindowsPath": pathlib.PureWindowsPath,
    "pathlib.PurePosixPath": pathlib.PurePosixPath,
    "pathlib.PureWindowsPath": pathlib.PureWindowsPath,
}

# values that a file may hold and that nobody calls
_VALUES: dict[str, Any] = {
    **{f"torch.{kind.name}": kind for kind in ALL_DTYPES},
    **{f"torch.{name}": StorageKind(dtype(kind)) for name, kind in KINDS.items()},
    f"torch.storage.{UNTYPED}": StorageKind(None),
    "torch.Tensor": Tensor,
    "torch.nn.parameter.Parameter": Parameter,
    "torch.nn.parameter.Buffer": Buffer,
    "numpy.ndarray": numpy.ndarray,
    **{f"builtins.{kind.__name__}": kind for kind in (bool, dict, float, int, list, str, tuple)},
}

_TENSORS = (Tensor, Parameter, Buffer)
_WITH_ATTRIBUTES = (
    collections.OrderedDict, collections.Counter, collections.defaultdict, types.SimpleNamespace,
)  # fmt: skip
_FACTORIES = (None, bool, dict, float, int, list, set, str, tuple)  # of a defaultdict
_COLLECTIONS = (
    set, frozenset, rebuild.size, collections.Counter, collections.OrderedDict,
    collections.defaultdict, collections.deque,
)  # fmt: skip
_OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg", "pathlib._local": "pathlib"}

# ---------------------------------------------------------------------- what users allow
_allowed: dict[str, Any] = {}


def _by_name(safe_globals: Sequence[Any]) -> dict[str, Any]:
    found = {}
    for entry in safe_globals:
        value, name = entry if isinstance(entry, tuple) else (entry, None)
        found[name or f"{value.__module__}.{value.__qualname__}"] = value
    return found


def add_safe_globals(safe_globals: Sequence[Any]) -> None:
    """Allow classes and functions in files.

    ``load`` then makes instances and calls functions with the arguments that stand in the file, so
    allow only what does no harm with any.

    Args:
        safe_globals: classes and functions, or pairs of one and the name that files give it.
    """
    _allowed.update(_by_name(safe_globals))


def get_safe_globals() -> list[Any]:
    """Return the classes and functions that were allowed."""
    return list(_allowed.values())


def clear_safe_globals() -> None:
    """Allow none any more."""
    _allowed.clear()


@contextlib.contextmanager
def safe_globals(safe_globals: Sequence[Any]) -> Iterator[None]:
    """Allow classes and functions in files inside the block; see ``add_safe_globals``."""
    before = dict(_allowed)
    add_safe_globals(safe_globals)
    try:
        yield
    finally:
        _allowed.clear()
        _allowed.update(before)


# ---------------------------------------------------------------------- the policy
class FilePolicy:
    """Answers a machine that reads one file; see Note [What may be loaded].

    Args:
        storage_of: gives the storage of a key.
        weights_only: refuse the user's classes too.
    """

    def __init__(self, storage_of: Callable[[Any], Any], weights_only: bool) -> None:
        self.persistent = storage_of
        self._weights_only = weights_only
        self._callable: dict[int, Any] = {}
        self._rebuilt: dict[int, Any] = {}
        self._made: dict[int, Any] = {}

    def find(self, module: str, name: str) -> Any:
        """Return what ``module.name`` stands for.

        Raises:
            RefusedGlobal: it is not allowed.
        """
        full = f"{_OLD_MODULES.get(module, module)}.{name}"
        if full in _allowed:
            value = _allowed[full]
            self._callable[id(value)] = self._rebuilt[id(value)] = value
        elif full in _FUNCTIONS:
            value = _FUNCTIONS[full]
            self._callable[id(value)] = value
        elif full == "torch._tensor._rebuild_from_type_v2":
            value = self._with_class
            self._callable[id(value)] = value
        elif full in _VALUES:
            value = _VALUES[full]
        else:
            value = _options() if full == "argparse.Namespace" else self._users(module, name)
            self._rebuilt[id(value)] = value
        return value

    def _users(self, module: str, name: str) -> Any:
        if self._weights_only:
            raise RefusedGlobal(
                f"Weights only load failed: the file wants {module}.{name}, which is not allowed; "
                "if you trust the file, allow it with serialization.add_safe_globals, or pass "
                "weights_only=False for objects of your own classes"
            )
        layer = _layer(module, name)
        if layer is not None:
            return layer
        value: Any = sys.modules.get(module) if _is_users(module) else None
        for part in name.split("."):
            value = getattr(value, part, None)
        own = isinstance(value, type | types.FunctionType) and value.__module__ == module
        if not own or value.__qualname__ != name:
            raise RefusedGlobal(
                f"the file wants {module}.{name}, which is no class or function of distgrad or of "
                "a module of yours that is imported; import it first, or allow it with "
                "serialization.add_safe_globals if you trust the file"
            )
        return value

    def _with_class(self, function: Any, kind: Any, args: Any, state: Any) -> Any:
        tensor = isinstance(kind, type) and issubclass(kind, Tensor)
        if not tensor or (id(kind) not in self._rebuilt and kind not in _TENSORS):
            raise RefusedGlobal(f"the file wants a tensor of class {_text(kind)}, not allowed")
        made = rebuild.of_class(kind, self.call(function, args), state)
        return rebuild.with_attributes(made, state)

    def call(self, function: Any, args: tuple[Any, ...]) -> Any:
        """Return ``function(*args)`` for a function that is allowed."""
        member = isinstance(function, enum.EnumMeta) and id(function) in self._rebuilt
        if id(function) not in self._callable and not member:
            raise RefusedGlobal(f"the file wants to call {_text(function)}, which is not allowed")
        if function in _COLLECTIONS:
            _check_collection(function, args)
        return self._kept(function(*args))

    def new(self, kind: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Return an instance of a class that is allowed, without its constructor."""
        if id(kind) not in self._rebuilt or not isinstance(kind, type):
            raise RefusedGlobal(f"the file wants an instance of {_text(kind)}, not allowed")
        return self._kept(kind.__new__(kind, *args, **options))

    def _kept(self, made: Any) -> Any:
        self._made[id(made)] = made
        return made

    def set_state(self, instance: Any, state: Any) -> Any:
        """Return an instance that this file made, with its attributes."""
        if id(instance) not in self._made:
            raise RefusedGlobal(f"the file wants to change {_text(instance)}")
        if type(instance) is numpy.ndarray:
            return rebuild.array_state(instance, state)
        if isinstance(instance, numpy.dtype):
            return rebuild.dtype_state(instance, state)
        if type(instance) in _WITH_ATTRIBUTES:
            instance.__dict__.update(_texts(state))
        elif id(type(instance)) not in self._rebuilt:
            raise RefusedGlobal(f"the file wants to change {_text(instance)}")
        elif hasattr(instance, "__setstate__"):
            instance.__setstate__(state)
        else:
            _set_attributes(instance, state)
        return instance


def _layer(module: str, name: str) -> Any:
    """Return what distgrad has for a layer, or a function of layers, of PyTorch."""
    if module == "torch.nn.functional":
        return getattr(nn.functional, name, None)
    found = getattr(nn, name, None) if module.startswith("torch.nn.modules.") else None
    return found if isinstance(found, type) and issubclass(found, nn.Module) else None


def _options() -> Any:
    """Return the class of a program's options, which many checkpoints hold."""
    from argparse import Namespace  # 5 ms that `import distgrad` need not take

    return Namespace


def _check_collection(kind: Any, args: tuple[Any, ...]) -> None:
    """Refuse contents that take forever, such as the set of a long range."""
    if kind is collections.defaultdict and args:
        if not any(args[0] is factory for factory in _FACTORIES):
            raise RefusedGlobal(f"the file wants a defaultdict of {_text(args[0])}")
        args = args[1:]
    for content in args[:1]:
        if not isinstance(content, list | tuple | dict):
            raise RefusedGlobal(f"the file wants a {kind.__name__} of {_text(content)}")
        for item in () if kind in (collections.deque, rebuild.size) else content:
            pair = kind is collections.OrderedDict and isinstance(item, list | tuple) and item
            hashable(item[0] if pair else item)


def _set_attributes(instance: Any, state: Any) -> None:
    attributes, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
    if attributes:
        instance.__dict__.update(_texts(attributes))
    for name, value in _texts(slots or {}).items():
        object.__setattr__(instance, name, value)  # as a frozen dataclass does


def _texts(state: Any) -> dict[str, Any]:
    if not isinstance(state, dict) or any(not isinstance(name, str) for name in state):
        raise CheckpointError("the attributes of an object are no dict")
    return state


def _text(value: Any) -> str:
    name = getattr(value, "__qualname__", None)
    return f"{value.__module__}.{name}" if name else f"a {type(value).__qualname__}"


def _is_users(module: str) -> bool:
    """Return whether a module is distgrad's, or neither of Python nor of an installed package."""
    root = module.partition(".")[0]
    if root in ("__main__", "distgrad"):
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    if root in sys.stdlib_module_names or file is None:
        return False
    parts = pathlib.Path(file).resolve().parts
    library = pathlib.Path(sysconfig.get_paths()["stdlib"]).resolve().parts
    packages = {"site-packages", "dist-packages"}
    return not packages & set(parts) and parts[: len(library)] != library
