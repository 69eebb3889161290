"""Reading a pickle without running it: a machine that builds values and asks before it calls.

Python's own unpickler imports and calls whatever a file names.  This one knows the instructions of
the format, builds lists, dicts, tuples and numbers itself, and asks a `Policy` for everything else.
"""

from __future__ import annotations

import pickle
import struct
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, Protocol

from distgrad.errors import CheckpointError

_MARK = object()
_HIGHEST = 5  # the newest version of the format that is known


class Policy(Protocol):
    """What a pickle may name, and what happens then."""

    def find(self, module: str, name: str) -> Any:
        """Return what ``module.name`` stands for, or refuse it."""

    def call(self, function: Any, args: tuple[Any, ...]) -> Any:
        """Return ``function(*args)``, or refuse it."""

    def new(self, kind: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """Return a new instance of ``kind`` without its constructor, or refuse it."""

    def set_state(self, instance: Any, state: Any) -> Any:
        """Return ``instance`` with a state, or refuse it."""

    def persistent(self, key: Any) -> Any:
        """Return the storage of a key, or refuse it."""


class Machine:
    """Runs pickles that stand one after the other in some bytes.

    Args:
        data: the bytes.
        policy: answers for what is not built here.
        encoding: of the texts that Python 2 wrote.
    """

    def __init__(self, data: bytes, policy: Policy, encoding: str = "utf-8") -> None:
        self._data = memoryview(data)
        self.position = 0
        self._policy = policy
        self._encoding = encoding
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Return the value of the next pickle.

        Raises:
            CheckpointError: it is cut off or damaged.
        """
        self._stack, self._memo = [], {}
        code = _STOP
        try:
            while True:
                code = self._data[self.position]
                self.position += 1
                if code == _STOP:
                    return self._stack.pop()
                _STEPS[code](self)
        except (LookupError, struct.error, ValueError, TypeError, OverflowError) as error:
            if code == pickle.BINPERSID[0] and not isinstance(error, LookupError):
                raise  # of the user's map_location
            raise CheckpointError(
                f"the pickle is damaged at byte {self.position} ({type(error).__name__}: {error})"
            ) from error

    # ------------------------------------------------------------------ bytes
    def _take(self, count: int) -> memoryview:
        start = self.position
        if count < 0 or start + count > len(self._data):
            raise IndexError(f"{count} bytes are asked for, {len(self._data) - start} are left")
        self.position = start + count
        return self._data[start : self.position]

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _line(self) -> str:
        end = bytes(self._data[self.position : self.position + 4096]).index(b"\n")
        line = str(self._take(end), "utf-8")
        self.position += 1
        return line

    def _text(self, form: str) -> None:
        self._stack.append(str(self._take(self._number(form)), "utf-8", "surrogatepass"))

    def _old_text(self, form: str) -> None:
        raw = bytes(self._take(self._number(form)))
        self._stack.append(raw if self._encoding == "bytes" else raw.decode(self._encoding))

    def _bytes(self, form: str) -> None:
        self._stack.append(bytes(self._take(self._number(form))))

    def _long(self, form: str) -> None:
        raw = bytes(self._take(self._number(form)))
        self._stack.append(int.from_bytes(raw, "little", signed=True))

    # ------------------------------------------------------------------ containers
    def _since_mark(self) -> list[Any]:
        stack = self._stack
        place = len(stack) - 1
        while stack[place] is not _MARK:  # below the first value: IndexError
            place -= 1
        values = stack[place + 1 :]
        del stack[place:]
        return values

    def _tuple(self, count: int) -> None:
        values = tuple(self._stack[-count:])
        if len(values) < count:
            raise IndexError("too few values for a tuple")
        self._stack[-count:] = [values]

    def _top(self, *kinds: type) -> Any:
        if not isinstance(self._stack[-1], kinds):
            raise IndexError(f"a {kinds[0].__name__} is expected")
        return self._stack[-1]

    def _append(self) -> None:
        value = self._stack.pop()
        self._top(list, deque).append(value)

    def _extend(self) -> None:
        values = self._since_mark()
        self._top(list, deque).extend(values)

    def _set_items(self) -> None:
        values = self._since_mark()
        self._put(values)

    def _set_item(self) -> None:
        values = self._stack[-2:]
        del self._stack[-2:]
        self._put(values)

    def _put(self, values: list[Any]) -> None:
        target = self._top(dict)
        put = OrderedDict.__setitem__ if isinstance(target, OrderedDict) else dict.__setitem__
        if len(values) % 2:
            raise IndexError("a value is missing")
        for key, value in zip(values[::2], values[1::2], strict=True):
            put(target, hashable(key), value)

    def _add_items(self) -> None:
        values = self._since_mark()
        self._top(set).update(map(hashable, values))

    # ------------------------------------------------------------------ the memo
    def _keep(self, place: int) -> None:
        self._memo[place] = self._stack[-1]

    def _recall(self, place: int) -> None:
        self._stack.append(self._memo[place])

    # ------------------------------------------------------------------ what the policy answers
    def _global(self) -> None:
        module, name = self._line(), self._line()
        self._stack.append(self._policy.find(module, name))

    def _stack_global(self) -> None:
        module, name = self._pop(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise IndexError("a name is expected")
        self._stack.append(self._policy.find(module, name))

    def _pop(self, count: int) -> list[Any]:
        values = self._stack[-count:]
        if len(values) < count:
            raise IndexError("the stack is empty")
        del self._stack[-count:]
        return values

    def _reduce(self) -> None:
        function, args = self._pop(2)
        if type(args) is not tuple:
            raise IndexError("arguments are expected")
        self._stack.append(self._policy.call(function, args))

    def _new(self) -> None:
        kind, args = self._pop(2)
        self._stack.append(self._policy.new(kind, tuple(args), {}))

    def _new_with_options(self) -> None:
        kind, args, options = self._pop(3)
        self._stack.append(self._policy.new(kind, tuple(args), dict(options)))

    def _build(self) -> None:
        instance, state = self._pop(2)
        self._stack.append(self._policy.set_state(instance, state))

    def _persistent(self) -> None:
        self._stack.append(self._policy.persistent(self._stack.pop()))

    def _version(self) -> None:
        version = self._number("<B")
        if version > _HIGHEST:
            raise IndexError(f"version {version} of the format is unknown")


def hashable(key: Any) -> Any:
    """Return a key; tuples inside of tuples could take forever to hash."""
    nested = isinstance(key, tuple) and any(isinstance(part, tuple) for part in key)
    if nested or isinstance(key, list | dict | set | bytearray):
        raise IndexError(f"a {type(key).__name__} is no key")
    return key


_STOP = pickle.STOP[0]
_STEPS: dict[int, Callable[[Machine], Any]] = {
    code[0]: step
    for code, step in {
        pickle.PROTO: Machine._version,
        pickle.FRAME: lambda m: m._number("<Q"),
        pickle.MARK: lambda m: m._stack.append(_MARK),
        pickle.POP: lambda m: m._stack.pop(),
        pickle.POP_MARK: Machine._since_mark,
        pickle.NONE: lambda m: m._stack.append(None),
        pickle.NEWTRUE: lambda m: m._stack.append(True),
        pickle.NEWFALSE: lambda m: m._stack.append(False),
        pickle.BININT: lambda m: m._stack.append(m._number("<i")),
        pickle.BININT1: lambda m: m._stack.append(m._number("<B")),
        pickle.BININT2: lambda m: m._stack.append(m._number("<H")),
        pickle.LONG1: lambda m: m._long("<B"),
        pickle.LONG4: lambda m: m._long("<i"),
        pickle.BINFLOAT: lambda m: m._stack.append(m._number(">d")),
        pickle.BINUNICODE: lambda m: m._text("<I"),
        pickle.SHORT_BINUNICODE: lambda m: m._text("<B"),
        pickle.BINUNICODE8: lambda m: m._text("<Q"),
        pickle.BINSTRING: lambda m: m._old_text("<i"),
        pickle.SHORT_BINSTRING: lambda m: m._old_text("<B"),
        pickle.BINBYTES: lambda m: m._bytes("<I"),
        pickle.SHORT_BINBYTES: lambda m: m._bytes("<B"),
        pickle.BINBYTES8: lambda m: m._bytes("<Q"),
        pickle.EMPTY_TUPLE: lambda m: m._stack.append(()),
        pickle.TUPLE1: lambda m: m._tuple(1),
        pickle.TUPLE2: lambda m: m._tuple(2),
        pickle.TUPLE3: lambda m: m._tuple(3),
        pickle.TUPLE: lambda m: m._stack.append(tuple(m._since_mark())),
        pickle.EMPTY_LIST: lambda m: m._stack.append([]),
        pickle.LIST: lambda m: m._stack.append(m._since_mark()),
        pickle.APPEND: Machine._append,
        pickle.APPENDS: Machine._extend,
        pickle.EMPTY_DICT: lambda m: m._stack.append({}),
        pickle.SETITEM: Machine._set_item,
        pickle.SETITEMS: Machine._set_items,
        pickle.EMPTY_SET: lambda m: m._stack.append(set()),
        pickle.ADDITEMS: Machine._add_items,
        pickle.FROZENSET: lambda m: m._stack.append(frozenset(map(hashable, m._since_mark()))),
        pickle.BINPUT: lambda m: m._keep(m._number("<B")),
        pickle.LONG_BINPUT: lambda m: m._keep(m._number("<I")),
        pickle.MEMOIZE: lambda m: m._keep(len(m._memo)),
        pickle.BINGET: lambda m: m._recall(m._number("<B")),
        pickle.LONG_BINGET: lambda m: m._recall(m._number("<I")),
        pickle.GLOBAL: Machine._global,
        pickle.STACK_GLOBAL: Machine._stack_global,
        pickle.REDUCE: Machine._reduce,
        pickle.NEWOBJ: Machine._new,
        pickle.NEWOBJ_EX: Machine._new_with_options,
        pickle.BUILD: Machine._build,
        pickle.BINPERSID: Machine._persistent,
    }.items()
}
