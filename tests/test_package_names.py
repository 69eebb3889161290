"""The names of the package, and what importing it does not start."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import distgrad as dg

_LOOK = """
import sys, distgrad
heavy = {"mpi4py", "cupy", "safetensors", "torch", "matplotlib", "sklearn", "ml_dtypes"}
print(sorted(heavy & sys.modules.keys()))
"""


def test_importing_starts_neither_mpi_nor_cuda_nor_an_extra() -> None:
    out = subprocess.run([sys.executable, "-c", _LOOK], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_public_name_exists_and_stands_once() -> None:
    assert [name for name in dg.__all__ if not hasattr(dg, name)] == []
    assert sorted({n for n in dg.__all__ if dg.__all__.count(n) > 1}) == []


def test_functions_stand_where_submodules_of_the_same_name_are() -> None:
    assert dg.tensor([1.0]).tolist() == [1.0]
    assert dg.nn.functional.relu is dg.relu
    assert dg.float is dg.float32 and dg.long is dg.int64 and dg.bool.name == "bool"
    assert dg.optim.lr_scheduler.StepLR and dg.linalg.norm and dg.random.manual_seed


@pytest.mark.torch
def test_names_of_operations_are_those_of_torch() -> None:
    torch = pytest.importorskip("torch")
    for name in dg.nn.functional.__all__:
        assert hasattr(torch.nn.functional, name), name
    for name in dg.nn.__all__:
        assert hasattr(torch.nn, name), name


def _imports(node: ast.AST, modules: dict[str, Path]) -> Iterator[str]:
    """Yield what a module imports, in its functions too, but not what only checkers of types do."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from (name.name for name in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module:
            inner = [f"{child.module}.{name.name}" for name in child.names]
            yield from (name if name in modules else child.module for name in inner)
        yield from _imports(child, modules)


def test_no_module_needs_itself_by_way_of_others_not_even_later() -> None:
    root = Path(dg.__file__).parent
    modules = {
        ".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(
            ".__init__"
        ): path
        for path in root.rglob("*.py")
    }
    needs = {
        name: {other for other in _imports(ast.parse(path.read_text()), modules) if other != name}
        & modules.keys()
        for name, path in modules.items()
    }
    assert len(needs) > 500
    graphlib.TopologicalSorter(needs).prepare()  # a CycleError has the circle
