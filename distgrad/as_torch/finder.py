"""The import hook: a module ``torch.x.y`` is filled with the names that distgrad has for it."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from distgrad.as_torch.places import PROGRAMS, sources_of
from distgrad.backend import dtype
from distgrad.config import nearest
from distgrad.errors import ConfigError


def as_torch() -> None:
    """Let ``import torch`` and its submodules mean distgrad, from here on in this process.

    Types print themselves as PyTorch's (``torch.float32``), because programs compare such texts.
    Calling it again changes nothing.

    Raises:
        ConfigError: PyTorch itself is imported already.
    """
    if any(isinstance(finder, TorchFinder) for finder in sys.meta_path):
        return
    real = sys.modules.get("torch")
    if real is not None:
        raise ConfigError(
            f"as_torch(): PyTorch itself is imported already (from {real.__file__}); call "
            "distgrad.as_torch() before anything imports torch, in a fresh process"
        )
    dtype.print_as("torch")
    sys.meta_path.insert(0, TorchFinder())
    _tell_children()


class _Preparation:
    """Unpickled in a new process before its main module is imported, which may import torch."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        # exec: the process does not know yet where this package lies
        return exec, (
            f"import sys; sys.path[:0] = [p for p in {sys.path!r} if p not in sys.path]\n"
            "import distgrad; distgrad.as_torch()",
        )


def _tell_children() -> None:
    """Let processes that multiprocessing spawns see the same ``torch``."""
    from multiprocessing import spawn  # only programs of PyTorch pay for loading it

    data_for_main = spawn.get_preparation_data

    @functools.wraps(data_for_main)
    def data(name: str) -> dict[str, Any]:
        return {"as_torch": _Preparation(), **data_for_main(name)}

    spawn.get_preparation_data = data


class TorchFinder(MetaPathFinder):
    """Answers for ``torch`` and everything below it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how to make the module; None for what is not PyTorch's."""
        top, _, rest = fullname.partition(".")
        if top != "torch":
            return None
        sources = sources_of(rest)
        if not sources:
            raise ModuleNotFoundError(f"{fullname}: distgrad has no such module", name=fullname)
        spec = ModuleSpec(fullname, TorchLoader(sources), is_package=rest not in PROGRAMS)
        spec.origin = find_spec(sources[0]).origin  # type: ignore[union-attr]
        return spec


class TorchLoader(Loader):
    """Fills a module from those of distgrad that answer for it; the later ones win."""

    def __init__(self, sources: Sequence[str]) -> None:
        self.sources = sources

    def get_code(self, fullname: str) -> Any:
        """Return the code of a program, for ``python -m``."""
        source: Any = find_spec(self.sources[-1])
        return source.loader.get_code(self.sources[-1])

    def exec_module(self, module: ModuleType) -> None:
        """Give ``module`` the names of its sources, and an error for all others."""
        names = vars(module)
        names["__file__"] = module.__spec__.origin  # type: ignore[union-attr]
        made = []
        for source in map(importlib.import_module, self.sources):
            made += [vars(source)["__getattr__"]] if "__getattr__" in vars(source) else []
            names["__doc__"] = source.__doc__
            if type(source) is not ModuleType:  # some of its names are properties
                module.__class__ = type(source)
            names.update((n, v) for n, v in vars(source).items() if _is_for_users(n, v))
            names["__all__"] = [*names.get("__all__", []), *getattr(source, "__all__", [])]
        if not names["__all__"]:
            del names["__all__"]
        if module.__name__ == "torch":
            names["torch"] = module  # as PyTorch's has it
        names["__getattr__"] = _Missing(module.__name__, names, made)


def _is_for_users(name: str, value: Any) -> bool:
    if isinstance(value, ModuleType):
        return False  # a module of PyTorch's is made when it is asked for
    return name == "__version__" or not (name.startswith("__") and name.endswith("__"))


class _Missing:
    """What a module does for a name that it has not: import it as a submodule, or raise."""

    def __init__(
        self, module: str, names: dict[str, Any], made: Sequence[Callable[[str], Any]]
    ) -> None:
        self.module, self.names, self.made = module, names, made

    def __call__(self, name: str) -> Any:
        full = f"{self.module}.{name}"
        if sources_of(full.partition(".")[2]):
            return importlib.import_module(full)
        for make in self.made:
            with suppress(AttributeError):
                return make(name)
        raise AttributeError(
            f"{full}: distgrad has no {name!r} in {self.module}{nearest(name, self.names)}",
            name=name,
            obj=sys.modules.get(self.module),
        )
