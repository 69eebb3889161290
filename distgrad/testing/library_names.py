"""Look up every name of NVIDIA's libraries and of CuPy that the package uses, where they are.

``python -m distgrad.testing.library_names`` needs CuPy, and no GPU.  It follows the names from
where a file gets a library (``import cupy``, ``cupy()``, ``library()``, ``runtime = …``) through
attributes, and prints those that the installed version does not have.
"""

from __future__ import annotations

import ast
import importlib
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["Names", "main", "missing"]

ROOT = Path(__file__).parents[1]
LIBRARIES = ("cupy", "cupyx", "cupy_backends", "nvmath", "cudnn")
# What functions of the package return.
CALLS = {
    "cupy": "cupy", "cupy_module": "cupy", "library": "cudnn", "nccl_module": "cupy.cuda.nccl",
    "bindings": "nvmath.bindings.cublasLt",
}  # fmt: skip
# Names that hold a library wherever a file does not give them another meaning.
HELD = {"cupy": "cupy", "_lt": "nvmath.bindings.cublasLt"}
WITHOUT_NCCL = "cupy.cuda.nccl"  # has its names only where NCCL is installed


def _module(name: str) -> Any:
    """Return a module, or what an attribute of one is; None where it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError:
            return None


class Names(ast.NodeVisitor):
    """The names in one file that lead into a library.

    Args:
        file: the source.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.tree = file, ast.parse(file.read_text(encoding="utf-8"))
        self.known: dict[str, Any] = {name: _module(module) for name, module in HELD.items()}
        self.found: list[tuple[int, str, bool]] = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                self._import(node)
        assignments = [n for n in ast.walk(self.tree) if isinstance(n, ast.Assign)]
        for _ in range(2):
            for node in assignments:
                for target in node.targets:
                    self._assign(target, node.value)

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.name if alias.asname else alias.name.split(".")[0]
                if alias.name.split(".")[0] in LIBRARIES:
                    self.known[alias.asname or name] = _module(name)
            return
        module = node.module or ""
        for alias in node.names:
            name = alias.asname or alias.name
            if module.split(".")[0] not in LIBRARIES:
                self.known.pop(name, None)
            elif alias.name != "*" and (owner := _module(module)) is not None:
                found = getattr(owner, alias.name, None)
                found = _module(f"{module}.{alias.name}") if found is None else found
                self.found.append((node.lineno, f"{module}.{alias.name}", found is not None))
                self.known[name] = found

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, other in zip(target.elts, value.elts, strict=False):
                self._assign(one, other)
        elif isinstance(target, ast.Name):
            found = self.meaning(value)
            if found is not None:
                self.known[target.id] = found

    def meaning(self, node: ast.expr) -> Any:
        """Return the module or class that an expression is; None for all else."""
        if isinstance(node, ast.Name):
            return self.known.get(node.id)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            return _module(CALLS[name]) if name in CALLS else None
        if not isinstance(node, ast.Attribute):
            return None
        if node.attr in HELD and isinstance(node.value, ast.Name):  # self._lt
            return _module(HELD[node.attr])
        owner = self.meaning(node.value)
        found = getattr(owner, node.attr, None) if isinstance(owner, ModuleType | type) else None
        return found if isinstance(found, ModuleType | type) else None

    def visit_Attribute(self, node: ast.Attribute) -> None:
        """Look an attribute up where it belongs to a library."""
        owner = self.meaning(node.value)
        if isinstance(owner, ModuleType | type):
            name = getattr(owner, "__name__", str(owner))
            there = hasattr(owner, node.attr) or _module(f"{name}.{node.attr}") is not None
            ignored = name == WITHOUT_NCCL and not getattr(owner, "available", False)
            if name.split(".")[0] in LIBRARIES or isinstance(owner, type):
                self.found.append((node.lineno, f"{name}.{node.attr}", there or ignored))
        self.generic_visit(node)


def _files() -> Iterator[Path]:
    for file in sorted(ROOT.rglob("*.py")):
        if "standin" not in file.parts and "no_gpu" not in file.parts:
            yield file


def missing() -> tuple[list[str], set[str]]:
    """Return the names that are not there, with their places, and all that were looked up."""
    wrong, asked = [], set()
    for file in _files():
        names = Names(file)
        names.visit(names.tree)
        for line, name, there in names.found:
            asked.add(name)
            if not there:
                wrong.append(f"{file.relative_to(ROOT.parent)}:{line}: there is no {name}")
    return wrong, asked


def main() -> int:
    """Print the names that are missing; return how many."""
    wrong, asked = missing()
    print("\n".join([*wrong, f"{len(asked)} names looked up, {len(wrong)} missing"]))
    if "-v" in sys.argv:
        print("\n".join(sorted(asked)))
    return len(wrong)


if __name__ == "__main__":
    sys.exit(main())
