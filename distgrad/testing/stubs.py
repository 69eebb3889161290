"""Writes ``distgrad/tensor.pyi``: class Tensor as it is once all operations are attached.

``python -m distgrad.testing.stubs`` writes the file anew; a test fails when it is stale.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import distgrad.autograd.gradients
import distgrad.ops  # noqa: F401  (attaches the methods)
from distgrad.tensor import Tensor

SOURCE = Path(inspect.getfile(Tensor))
PATH = SOURCE.with_suffix(".pyi")

_HEAD = '''\
# fmt: off
# ruff: noqa
"""Class Tensor with all its methods.  Written by distgrad.testing.stubs; do not edit."""

import builtins
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, overload

import numpy

import distgrad.autograd.node
import distgrad.backend.device
import distgrad.backend.dtype
from distgrad.typing import Array, Dim, Number, Shape, TensorLike

'''

# Names that annotations may use, and what the stub calls them.  Methods of Tensor are named float,
# int, bool …, so inside the class the builtins must be spelt out.
_KNOWN = {
    **{n: n for n in ("Any", "Array", "Callable", "Dim", "Iterable", "Iterator", "Number",
                      "Sequence", "Shape", "Size", "Tensor", "TensorLike", "Shared", "Clock",
                      "None", "numpy")},
    **{n: f"builtins.{n}" for n in ("bool", "complex", "dict", "float", "int", "list", "object",
                                    "set", "slice", "str", "tuple", "type")},
    "Removable": "distgrad.autograd.node.Removable",
    "Namespace": "Any",
}  # fmt: skip
_DTYPE, _DEVICE = "distgrad.backend.dtype.dtype", "distgrad.backend.device.device"
_OF_PROPERTIES = {"dtype": _DTYPE, "device": _DEVICE, "_dtype.dtype": _DTYPE,
                  "_device.device": _DEVICE}  # fmt: skip


def generate() -> str:
    """Return the text of the stub."""
    parts = [_HEAD]
    for node in ast.parse(SOURCE.read_text()).body:
        if isinstance(node, ast.ClassDef):
            parts.append("\n".join(_class(node)) + "\n")
        elif isinstance(node, ast.FunctionDef):
            parts.append(_from_source(node, "") + "\n")
    parts.append("ndarray = numpy.ndarray\nclock: Clock\nUNTRACKED: Shared\n")
    return "\n".join(parts)


def main() -> None:
    """Write the stub beside the module."""
    PATH.write_text(generate())
    print(f"{PATH}: {sum(1 for line in PATH.open() if 'def ' in line)} definitions")


# ---------------------------------------------------------------------- annotations
class _Translator(ast.NodeTransformer):
    """Spells the names of an annotation as the stub knows them; unknown ones become Any."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.parse(_KNOWN.get(node.id, "Any"), mode="eval").body

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        text = ast.unparse(node)
        known = _OF_PROPERTIES.get(text, text if text.startswith("weakref.") else "Any")
        return ast.parse(known, mode="eval").body

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        return ast.parse(node.value, mode="eval").body if isinstance(node.value, str) else node


def _annotation(note: Any) -> str:
    """Return an annotation, given as text or object, as the stub writes it."""
    if note is inspect.Parameter.empty or note is None:
        return "Any" if note is not None else "None"
    text = note if isinstance(note, str) else getattr(note, "__name__", str(note))
    text = text.replace("dtypes.dtype", "_dtype.dtype").replace("devices.device", "_device.device")
    translated = ast.unparse(_Translator().visit(ast.parse(text, mode="eval").body))
    return translated if translated.count("Any") < 2 or "[" in translated else _plain(translated)


def _plain(union: str) -> str:
    """Return a union with its members once each; Any swallows the rest."""
    return "Any" if "Any" in union.split(" | ") else union


# ---------------------------------------------------------------------- what stands in tensor.py
def _from_source(node: ast.FunctionDef, indent: str) -> str:
    """Return the definition of a function in tensor.py, its body left out."""
    lines = [f"{indent}@{ast.unparse(d)}" for d in node.decorator_list]
    args = node.args
    for arg in (*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg):
        if arg is not None and arg.annotation is not None:
            arg.annotation = ast.parse(_annotation(ast.unparse(arg.annotation)), mode="eval").body
    args.defaults = [ast.Constant(...) for _ in args.defaults]
    args.kw_defaults = [None if d is None else ast.Constant(...) for d in args.kw_defaults]
    note = _annotation(ast.unparse(node.returns)) if node.returns else "None"
    mute = "  # type: ignore[override]" if node.name == "__add__" else ""
    lines.append(f"{indent}def {node.name}({ast.unparse(args)}) -> {note}: ...{mute}")
    return "\n".join(lines)


def _class(node: ast.ClassDef) -> Iterator[str]:
    """Yield the lines of a class in tensor.py, with the attached methods for Tensor."""
    bases = f"({', '.join(map(ast.unparse, node.bases))})" if node.bases else ""
    yield f"class {node.name}{bases}:"
    own = set()
    notes = {ast.unparse(i.target) for i in node.body if isinstance(i, ast.AnnAssign)}
    for item in node.body:
        if isinstance(item, ast.FunctionDef):
            own.add(item.name)
            yield _from_source(item, "    ")
        elif isinstance(item, ast.AnnAssign):
            yield f"    {ast.unparse(item.target)}: {_annotation(ast.unparse(item.annotation))}"
        elif isinstance(item, ast.Assign):
            yield from _assigned(item, notes)
    if node.name == "Tensor":
        yield from _attached(own)


def _assigned(item: ast.Assign, notes: set[str]) -> Iterator[str]:
    """Yield the attributes that an assignment in a class body makes."""
    for target in item.targets:
        name, value = ast.unparse(target), ast.unparse(item.value)
        if name == "__slots__":
            slots = [n for n in ast.literal_eval(value) if n not in notes and "__" not in n]
            yield from (f"    {n}: Any" for n in slots)
        elif value in ("None", "True", "False") or value.isdigit():
            yield f"    {name}: {'Any' if value == 'None' else _type_name(ast.literal_eval(value))}"
        else:
            yield f"    {name} = {value}"


def _type_name(value: object) -> str:
    return f"builtins.{type(value).__name__}"


# ---------------------------------------------------------------------- what operations attach
def _attached(own: set[str]) -> Iterator[str]:
    """Yield the methods and properties of Tensor that are not written in tensor.py."""
    for name, value in sorted(vars(Tensor).items()):
        getter = value.fget if isinstance(value, property) else value
        if name in own or not inspect.isfunction(getter) or getter.__module__ == Tensor.__module__:
            continue
        if isinstance(value, property):
            yield f"    @property\n    def {name}(self) -> {_returned(getter)}: ..."
        else:
            yield from _method(name, value)


def _returned(function: Callable[..., Any]) -> str:
    note = inspect.signature(function).return_annotation
    return "Tensor" if note is inspect.Signature.empty else _annotation(note)


_COMPARISONS = ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__")


def _method(name: str, function: Callable[..., Any]) -> Iterator[str]:
    """Yield the definition, or the overloads, of one method."""
    if _BINARY.fullmatch(name):
        yield f"    def {name}(self, other: TensorLike) -> Tensor: ..."
    elif name in _COMPARISONS:
        mute = "  # type: ignore[override]" if name in ("__eq__", "__ne__") else ""
        yield f"    def {name}(self, other: Any) -> Tensor: ...{mute}"
    elif hasattr(function, "gathers"):
        yield from _gathering(name, function)
    else:
        yield f"    def {name}({_parameters(function)}) -> {_result(name, function)}: ..."


_BINARY = re.compile(
    "__[ri]?(add|sub|mul|truediv|matmul|pow|floordiv|mod|and|or|xor|lshift|rshift)__"
)


def _gathering(name: str, function: Callable[..., Any]) -> Iterator[str]:
    """Yield the two forms of a method that takes an option as several arguments or as one."""
    option: str = function.gathers  # type: ignore[attr-defined]
    result = _result(name, function)
    rest = list(inspect.signature(function).parameters.values())[2:]
    tail = "".join(f", {_parameter(q)}" for q in rest)
    star = "" if not rest or rest[0].kind is rest[0].KEYWORD_ONLY else ", *"
    keywords = tail.replace(", *,", ",", 1) if tail.startswith(", *,") else tail
    yield "    @overload"
    yield f"    def {name}(self, {option}: Sequence[builtins.int]{star}{tail}) -> {result}: ..."
    yield "    @overload"
    yield f"    def {name}(self, *{option}: builtins.int{keywords}) -> {result}: ..."


def _result(name: str, function: Callable[..., Any]) -> str:
    """Return the result type of a method; several outputs are a named tuple, so Any."""
    op = getattr(inspect.unwrap(function), "op", None)
    if op is not None and op.outputs:
        return "Any"
    if name == "__setitem__":
        return "None"
    return _returned(function)


def _parameters(function: Callable[..., Any]) -> str:
    parts, starred = ["self"], False
    for q in list(inspect.signature(function).parameters.values())[1:]:
        if q.name == "out":
            continue  # of functions only
        if q.kind is q.KEYWORD_ONLY and not starred:
            parts.append("*")
            starred = True
        starred = starred or q.kind is q.VAR_POSITIONAL
        parts.append(_parameter(q))
    return ", ".join(parts)


def _parameter(q: inspect.Parameter) -> str:
    stars = "*" if q.kind is q.VAR_POSITIONAL else "**" if q.kind is q.VAR_KEYWORD else ""
    default = "" if q.default is q.empty else " = ..."
    return f"{stars}{q.name}: {_annotation(q.annotation)}{default}"


if __name__ == "__main__":
    main()
