"""``@op``: the one way to declare an operation.

The body is the forward on arrays.  A parameter annotated ``Tensor``, ``TensorLike`` (numbers are
taken too), ``Tensor | None`` or ``Sequence[Tensor]`` is an operand; every other parameter is an
option.  ``d_<operand>`` is the rule for the gradient of that operand.  A rule asks by name for what
it needs, and that is all that is kept for backward:

    F                  the operations: forwards on arrays, or operations on tensors
    g                  gradient of the output (a tuple, in order, where several are differentiable)
    out, <output>      the output
    <operand>          an operand;  <operand>_shape, _dtype, _device: only that of it
    <option>           an option
    into               where gradients go, see autograd/into.py: an Into or None
    xp, needs          fused rules only (with ``formula``): the array namespace, and which operands
                       need a gradient
    <operand>_spare    fused rules only: whether it may be overwritten, see autograd/spare.py

The engine sums a gradient down to its operand's shape, so rules ignore broadcasting.
"""

from __future__ import annotations

import functools
import inspect
import linecache
from collections import namedtuple
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, Literal, ParamSpec, overload

import numpy

from distgrad.autograd import engine, saving
from distgrad.autograd.compiled import code_of
from distgrad.autograd.inplace import in_place, link_view, link_views
from distgrad.autograd.into import into
from distgrad.autograd.mode import mode
from distgrad.autograd.narrow import is_narrow, remember, widened
from distgrad.autograd.node import Node, Slot, attached, check_unchanged, edge_of, freed
from distgrad.autograd.node_names import ALIASES, camel
from distgrad.autograd.numpy_names import ABSENT, refuse_missing
from distgrad.autograd.outputs import by_name
from distgrad.autograd.samples import Sample
from distgrad.autograd.source import Operand, Plan, bare_source, call_source, pull_source
from distgrad.autograd.spare import spare
from distgrad.autograd.traced import is_traced, namespace_of_plain, traced_call
from distgrad.backend import dtype as _dtype
from distgrad.backend import numpy_backend
from distgrad.backend.device import (
    HOST_CACHES,
    array_namespace,
    cuda_in_use,
    device_of,
    namespace_beside,
    run_on_gpu,
)
from distgrad.backend.dtype import (
    DEFAULT_CACHES,
    as_numpy,
    default_float,
    joint_type,
    promote_arrays,
    scalar,
)
from distgrad.errors import ArgumentTypeError, explain
from distgrad.tensor import Tensor, clock, wrap

P = ParamSpec("P")
Kind = Literal["elementwise", "linear", "multilinear", ""]
Rule = Callable[..., Any]
Pull = Callable[[Node, Any, Any], tuple[Any, ...]]


class Operation:
    """Everything that is known about one operation."""

    __slots__ = (
        "formula", "forward", "function", "jvp", "kind", "name", "node", "operands", "options",
        "outputs", "plan", "reference", "rules", "samples", "source", "view",
    )  # fmt: skip
    name: str
    kind: Kind
    forward: Callable[..., Any]
    function: Callable[..., Any]
    operands: list[Operand]
    options: dict[str, Any]
    rules: dict[str, Rule]
    formula: Rule | None
    jvp: Rule | None
    outputs: dict[str, bool] | None
    samples: list[Sample]
    reference: str | Callable[..., Any] | None
    node: type[Node]
    plan: Plan
    source: str
    view: bool


table: dict[str, Operation] = {}


@overload
def op(
    kind: Kind = ...,
    *,
    samples: list[Sample],
    outputs: None = None,
    formula: Rule | None = ...,
    jvp: Rule | None = ...,
    promote: Sequence[str] | None = ...,
    floats: bool = ...,
    casts: bool = ...,
    view: bool = ...,
    check: Callable[..., None] | None = ...,
    widens: bool | None = ...,
    method: bool | str = ...,
    operator: str = ...,
    inplace: bool = ...,
    node: str = ...,
    reference: str | Callable[..., Any] | None = ...,
    **rules: Rule,
) -> Callable[[Callable[Concatenate[Any, P], Any]], Callable[P, Tensor]]: ...
@overload
def op(
    kind: Kind = ...,
    *,
    samples: list[Sample],
    outputs: Sequence[str] | str,
    formula: Rule | None = ...,
    jvp: Rule | None = ...,
    promote: Sequence[str] | None = ...,
    floats: bool = ...,
    casts: bool = ...,
    view: bool = ...,
    check: Callable[..., None] | None = ...,
    widens: bool | None = ...,
    method: bool | str = ...,
    operator: str = ...,
    inplace: bool = ...,
    node: str = ...,
    reference: str | Callable[..., Any] | None = ...,
    **rules: Rule,
) -> Callable[[Callable[Concatenate[Any, P], Any]], Callable[P, Any]]: ...
def op(
    kind: Kind = "",
    *,
    samples: list[Sample],
    outputs: Sequence[str] | str | None = None,
    formula: Rule | None = None,
    jvp: Rule | None = None,
    promote: Sequence[str] | None = None,
    floats: bool = False,
    casts: bool = False,
    view: bool = False,
    check: Callable[..., None] | None = None,
    widens: bool | None = None,
    method: bool | str = True,
    operator: str = "",
    inplace: bool = False,
    node: str = "",
    reference: str | Callable[..., Any] | None = None,
    **rules: Rule,
) -> Any:
    """Compile a forward and its derivative rules into a public function.

    Args:
        kind: how forward mode follows: "elementwise", "linear", "multilinear", or "" (from the
            formula, ``jvp``, or the rules twice).
        samples: operands and options the operation is tested with.
        outputs: names of several outputs ("indices!" carries no gradient), or "*" for any number.
        formula: the same mathematics in plain operations, for fused operations.
        jvp: an explicit forward-mode rule.
        promote: operands brought to one dtype (default: all of an elementwise operation).
        floats: integer operands become the default float first.
        casts: the option ``dtype`` converts the first operand first.
        view: the output shares the first operand's memory where it can.
        check: called with the promoted operands as they came, unless all are float32; it raises.
        widens: 16-bit floats are computed in float32 (default: unless it is a view; False for what
            only moves or compares elements).
        method: also a method of Tensor; "*name" gathers positional arguments into option ``name``.
        operator: also this Python operator.
        inplace: also a method ``name_`` that writes into its operand.
        node: name of the graph node, where PyTorch's differs from CamelCase + "Backward0".
        reference: PyTorch's function for tests, where it is not ``torch.<name>``.
        rules: ``d_<operand>=rule``, or ``d_all=rule`` answering for all operands at once.
    """

    def declare(forward: Callable[..., Any]) -> Callable[..., Any]:
        self = Operation()
        self.name, self.kind, self.forward, self.samples = forward.__name__, kind, forward, samples
        self.formula, self.jvp, self.view, self.reference = formula, jvp, view, reference
        self.outputs = _output_names(outputs)
        wide = not view if widens is None else widens
        self.plan = _plan(
            self, rules, promote, floats, casts, outputs == "*", check is not None, wide
        )
        compile_operation(self, node, check)
        table[self.name] = self
        engine.forwards[self.name] = forward
        setattr(engine.tensor_functions, self.name, self.function)
        _attach_methods(self, method, operator, inplace)
        return self.function

    return declare


# ---------------------------------------------------------------------- reading a declaration
def _output_names(outputs: Sequence[str] | str | None) -> dict[str, bool] | None:
    if outputs is None or outputs == "*":
        return None
    return {name.rstrip("!"): not name.endswith("!") for name in outputs}


def _operand_kind(annotation: object) -> str:
    text = str(annotation)
    if "Sequence[Tensor" in text:
        return "list"
    if "Tensor" not in text:
        return ""
    if "None" in text:
        return "optional"
    return "like" if "TensorLike" in text else "tensor"


def _plan(
    self: Operation,
    rules: dict[str, Rule],
    promote: Sequence[str] | None,
    floats: bool,
    casts: bool,
    variadic: bool,
    checks: bool,
    widens: bool,
) -> Plan:
    parameters = list(inspect.signature(self.forward).parameters.values())[1:]
    kinds = {q.name: _operand_kind(q.annotation) for q in parameters}
    self.operands = [Operand(n, k) for n, k in kinds.items() if k]
    self.options = {q.name: q.default for q in parameters if not kinds[q.name]}
    names = [o.name for o in self.operands]
    joint = rules.get("d_all")
    self.rules = {n: rules["d_" + n] for n in names if "d_" + n in rules}
    unknown = set(rules) - {"d_" + n for n in names} - {"d_all"}
    if unknown or not names:
        raise TypeError(f"{self.name}: rules {sorted(unknown)}, but its operands are {names}")
    asks = {n: list(inspect.signature(r).parameters) for n, r in self.rules.items()}
    all_asks = list(inspect.signature(joint).parameters) if joint else None
    if joint:
        self.rules["all"] = joint
        asks = {o.name: [] for o in self.operands if o.kind != "list"}
    kept = _kept(self, [w for ws in asks.values() for w in ws] + (all_asks or []))
    if promote is None:
        alike = [o.name for o in self.operands if o.kind in ("tensor", "like")]
        promote = alike if self.kind == "elementwise" else []
    return Plan(
        self.name, parameters, self.operands, asks, all_asks, kept, self.outputs, variadic,
        list(promote), floats, casts, self.view, checks, widens, _direct(self.forward),
        self.formula is not None,
    )  # fmt: skip


def _direct(forward: Callable[..., Any]) -> str:
    """Return the name of the ``xp.<name>`` that ``forward`` calls with its operands, and no more.

    On the host the wrapper calls it straight, which saves a tenth of a small operation.
    """
    code = forward.__code__
    for pattern in _DIRECT:
        same = code.co_argcount == pattern.co_argcount and not code.co_kwonlyargcount
        if same and code.co_code == pattern.co_code and len(code.co_names) == 1:
            return code.co_names[0]
    return ""


def direct_of(op: Operation) -> Any:
    """Return the function of the host's namespace that is all of the forward, or None."""
    return getattr(numpy_backend, op.plan.direct) if op.plan.direct else None


_DIRECT = [f.__code__ for f in (lambda xp, a: xp.f(a), lambda xp, a, b: xp.f(a, b))]


def _kept(self: Operation, asked: list[str]) -> list[str]:
    """Return what must be saved; a name that nobody knows fails at import."""
    names = [o.name for o in self.operands]
    spared = {n + "_spare" for n in names}
    wanted = set(asked) - {"F", "g", "into", "xp", "needs"} - spared
    if self.formula:
        wanted |= set(inspect.signature(self.formula).parameters) - {"F"}
        wanted |= set(names)
    elif ({"xp", "needs"} | spared) & set(asked):
        raise TypeError(f"{self.name}: a rule that asks for xp or needs must come with a formula")
    outs = list(self.outputs) if self.outputs else ["out"]
    about = [n + end for n in names for end in ("_shape", "_dtype", "_device")]
    known = [*names, *about, *self.options, *outs]
    if wanted - set(known):
        raise TypeError(f"{self.name}: a rule asks for {sorted(wanted - set(known))}; has {known}")
    return [n for n in known if n in wanted]


# ---------------------------------------------------------------------- compiling it
def compile_operation(self: Operation, node_name: str, check: Callable[..., None] | None) -> None:
    """Make the public function and the node class."""
    self.node = type(node_name or camel(self.name), (Node,), {"__slots__": (), "op": self})
    names: dict[str, Any] = {
        "__name__": self.forward.__module__, "_np": numpy_backend,
        "_place_of": device_of, "_xp_of": namespace_of_plain, "_xp_beside": namespace_beside,
        "_ndarray": numpy.ndarray,
        "_f32": numpy.dtype("float32"), "_Tensor": Tensor, "_new": object.__new__, "_wrap": wrap,
        "_Node": self.node, "_Slot": Slot, "_mode": mode,
        "_clock": clock, "_tick": clock.tick, "_operand": as_operand,
        "_direct": direct_of(self), "_forward": self.forward, "_elsewhere": run_on_gpu,
        "_float_operand": as_float_operand, "_promote": promote_all,
        "_to_float": to_float, "_check_dtypes": check, "_narrow": is_narrow, "_widened": widened,
        "_convert": convert, "_asarray": _asarray,
        "_recover": functools.partial(_answer, self),
        "_freed": freed, "_check": check_unchanged, "_attached": attached, "_attach": _attach_slots,
        "_by_name": by_name, "_absent": ABSENT, "_defaults": self.options,
        "_link": link_view, "_link_all": link_views, "_zeros_for": engine.zeros_for, "_into": into,
        "_spare": spare,
    }  # fmt: skip
    names |= {f"_default_{q.name}": q.default for q in self.plan.parameters}
    names |= {f"_rule_{n}": rule for n, rule in self.rules.items()}
    if self.outputs:
        names["_result"] = _result_type(self)
    saving.register(names)
    self.source = call_source(self.plan)
    _execute(self.source, f"<distgrad operation {self.name}>", names)
    if self.plan.rules:
        _set_backward(self, _pull_first, _pull_graph_first)
    _name_saved(self)
    self.function = names[self.name]
    self.function.__doc__ = self.forward.__doc__
    self.function.__module__ = self.forward.__module__
    self.function.__annotations__ = _public_annotations(self)
    self.function.__signature__ = _public_signature(self)  # type: ignore[attr-defined]
    self.function.op = self  # type: ignore[attr-defined]


def _execute(source: str, filename: str, names: dict[str, Any]) -> None:
    """Run ``source`` in ``names``; tracebacks will show its lines."""
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    exec(code_of(source, filename), names)


def compile_backward(self: Operation) -> None:
    """Make ``pull`` and ``pull_graph``: at the first backward, for most are never needed."""
    names: dict[str, Any] = self.function.__globals__
    source = pull_source(self.plan, graph=False)
    if self.formula is None:
        source += pull_source(self.plan, graph=True)
    _execute(source, f"<distgrad backward of {self.name}>", names)
    _set_backward(self, names["pull"], names.get("pull_graph", _pull_formula))


def _set_backward(self: Operation, pull: Pull, pull_graph: Pull) -> None:
    for name, method in (("pull", pull), ("pull_graph", pull_graph)):
        setattr(self.node, name, method)


def _pull_first(node: Node, F: Any, g: Any) -> tuple[Any, ...]:
    compile_backward(node.op)  # type: ignore[attr-defined]
    return node.pull(F, g)


def _pull_graph_first(node: Node, F: Any, g: Any) -> tuple[Any, ...]:
    compile_backward(node.op)  # type: ignore[attr-defined]
    return node.pull_graph(F, g)


def _result_type(self: Operation) -> Any:
    assert self.outputs
    return named_results(self.name, list(self.outputs))


def named_results(name: str, fields: list[str]) -> Any:
    """Return the named tuple of several outputs, which prints as one of ``torch.return_types``."""
    base: Any = namedtuple(name, fields)  # type: ignore[misc]
    return type(name, (base,), {"__slots__": (), "__repr__": _show_results})


def _show_results(self: Any) -> str:
    parts = ",\n".join(f"{n}={v!r}" for n, v in zip(self._fields, self, strict=True))
    return f"{_dtype.MODULE_PREFIX}.return_types.{type(self).__name__}(\n{parts})"


def _name_saved(self: Operation) -> None:
    """Give the node ``_saved_<name>`` and ``_raw_saved_<name>``, with PyTorch's names."""
    first = self.operands[0].name
    for place, name in enumerate(self.plan.kept):
        names = {name, "result" if name == "out" else name}
        if name == first:
            names.add("self")
        elif name.endswith("_shape") and name not in self.options:
            base = name[: -len("_shape")]
            names.add(f"{'self' if base == first else base}_sym_sizes")
        setattr(self.node, f"_kept_{name}", property(_saved_reader(name, place)))
        for public in names - ALIASES.get(self.name, {}).keys():
            setattr(self.node, f"_saved_{public}", property(_saved_reader(name, place)))
            setattr(self.node, f"_raw_saved_{public}", property(_raw_reader(name, place)))


def _saved_reader(name: str, place: int) -> Callable[[Any], Any]:
    def read(node: Any) -> Any:
        if node._held is None:
            raise freed(node)
        held = node._held[place]
        value = saving.unpack(held)
        if type(held) is not saving.Packed and isinstance(value, Tensor):
            check_unchanged(node, (value,), False)
        if value is None or (name != "out" and name not in (node.op.outputs or ())):
            return value
        check_unchanged(node, (), True)
        edge = saving.output_edge(node, node.op, name, value)
        return wrap(value) if edge is None else attached(value, edge)

    return read


def _raw_reader(name: str, place: int) -> Callable[[Any], saving.SavedTensor]:
    def read(node: Any) -> saving.SavedTensor:
        return saving.SavedTensor(node, name, place)

    return read


def _public_annotations(self: Operation) -> dict[str, Any]:
    notes = {q.name: q.annotation for q in self.plan.parameters}
    many = self.outputs or self.plan.variadic
    return notes | {"return": "tuple[Tensor, ...]" if many else "Tensor"}


def _public_signature(self: Operation) -> inspect.Signature:
    """Return the parameters without the place of those with other names."""
    out = inspect.Parameter("out", inspect.Parameter.KEYWORD_ONLY, default=None)
    own = self.plan.parameters
    result = self.function.__annotations__["return"]
    return inspect.Signature(own if self.view else [*own, out], return_annotation=result)


def _attach_slots(node: Node, outs: list[Tensor]) -> None:
    """Connect differentiable outputs with their node: straight for one, by slots for several."""
    if len(outs) == 1 and not node.op.plan.variadic:  # type: ignore[attr-defined]
        node._shape = outs[0].array.shape
        outs[0]._requires, outs[0]._node = True, node
        return
    node._shape = ()
    node.likes = tuple((o.array.shape, array_namespace(o.array), o.array.dtype) for o in outs)
    for index, out in enumerate(outs):
        out._requires, out._node = True, Slot(node, index, out.array)


def _pull_formula(node: Any, F: Any, g: Any) -> tuple[Any, ...]:
    """Differentiate a fused operation through its formula, recording a graph.

    Operands are passed as aliases, so that a history which one of them shares with another is
    not walked here.
    """
    op_: Operation = node.op
    saved = node.saved
    if saved is None:
        raise freed(node)
    values = dict(zip(op_.plan.kept, saved, strict=True))
    check_unchanged(node, tuple(values[o.name] for o in op_.operands), False)
    names = list(op_.plan.rules)
    wanted = [n for n, edge in zip(names, node._edges, strict=True) if edge is not None]
    for name in wanted:
        values[name] = F.alias(values[name])
    asks = [n for n in inspect.signature(op_.formula).parameters if n != "F"]  # type: ignore[arg-type]
    out = op_.formula(F, **{n: values[n] for n in asks})  # type: ignore[misc]
    roots = [(edge_of(out), g)] if isinstance(out, Tensor) else [
        (edge_of(o), d) for o, d in zip(out, g, strict=True) if d is not None
    ]  # fmt: skip
    edges = [edge_of(values[n]) for n in wanted]
    found = engine.run(roots, create_graph=True, keep_graph=True, inputs=edges, accumulate=False)
    grads = dict(zip(wanted, found, strict=True))
    return tuple(grads.get(n) for n in names)


# ---------------------------------------------------------------------- operands and errors
_numbers: dict[Any, Tensor] = {}
HOST_CACHES.append(_numbers)
DEFAULT_CACHES.append(_numbers)


_NUMBER = int | float | complex | numpy.generic
_FAMILIAR = (Tensor, int, float, complex, str, list, tuple, numpy.generic, numpy.ndarray)
# The operations that PyTorch computes on numbers alone too.
_ON_NUMBERS = frozenset({"add", "div", "floor_divide", "mul", "sub", "trunc_divide", "where"})


def as_operand(value: Any, others: Sequence[Any]) -> Any:
    """Return ``value`` as a tensor; a number takes its dtype by promotion with ``others``."""
    kind = type(value)
    if kind is float or kind is int:
        try:
            return _numbers[value, kind, others[0].array.dtype.char]
        except (KeyError, AttributeError):
            pass
    if isinstance(value, Tensor):
        return value
    if isinstance(value, _NUMBER):
        like = next((o.array for o in others if isinstance(o, Tensor)), None)
        return value if like is None else _number(value, like)
    if isinstance(value, numpy.ndarray):
        return wrap(value)
    return value  # recover() names it


def as_float_operand(value: Any, others: Sequence[Any]) -> Any:
    """Return ``value`` as a tensor for an operation on floats: -1 beside a uint8 stays -1."""
    if isinstance(value, int):
        like = next((o.array for o in others if isinstance(o, Tensor)), None)
        if like is not None and like.dtype.kind in "biu":
            value = float(value)
    return as_operand(value, others)


def _number(value: Any, like: Any) -> Tensor:
    if isinstance(value, numpy.generic):
        value = value.item()
    if like is None:
        like = numpy.zeros((), as_numpy(joint_type([value])))
    number = wrap(scalar(value, like))
    remember(number, value)
    number._is_number = True
    number.__dict__.pop("_inference", None)  # it is kept, and no tensor of the user's
    if type(value) in (int, float) and type(like) is numpy.ndarray and value and not cuda_in_use():
        if len(_numbers) > 4096:  # 0.0 and -0.0 are one key, so neither is kept
            _numbers.clear()
        _numbers[value, type(value), like.dtype.char] = number
    return number


def promote_all(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors converted to the dtype that PyTorch's promotion gives; recorded."""
    joint = tensors[0].array
    dtype = joint.dtype
    for t in tensors[1:]:
        dtype = promote_arrays(joint, t.array)
        joint = numpy.empty((0,) * max(joint.ndim, t.array.ndim), dtype)
    return tuple(t if t.array.dtype == dtype else cast(t, dtype) for t in tensors)


def to_float(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return integer and bool tensors converted to the default float."""
    return tuple(cast(t, default_float()) for t in tensors)


def convert(tensor: Any, dtype: Any) -> Any:
    """Return ``tensor`` in the dtype that a caller asked for; what is no tensor as it is."""
    if not isinstance(tensor, Tensor) or tensor.array.dtype == as_numpy(dtype):
        return tensor
    return cast(tensor, as_numpy(dtype))


def cast(tensor: Tensor, dtype: Any) -> Tensor:
    """Return ``tensor`` in ``dtype``; recorded."""
    out: Tensor = table["to_dtype"].function(tensor, dtype)
    return out


def _asarray(data: Any) -> Any:
    return numpy.asarray(data) if isinstance(data, numpy.generic | float | int) else data


class Unlike(Exception):
    """Raised by a forward whose listed operands must be brought to ``dtype`` first; recorded."""

    def __init__(self, dtype: Any) -> None:
        super().__init__(dtype)
        self.dtype = dtype


def _answer(
    op: Operation, name: str, error: Exception, operands: dict[str, Any], options: dict[str, Any]
) -> Any:
    """Return the outputs where an operand is traced, else explain the error; Note [Layers]."""
    refuse_missing(op.name, operands | options)
    if op.name in _ON_NUMBERS and any(isinstance(v, _NUMBER) for v in operands.values()):
        made = {n: _number(v, None) if isinstance(v, _NUMBER) else v for n, v in operands.items()}
        return op.function(**made, **options)
    if is_traced(operands.values()):
        return traced_call(op, operands, options)
    if isinstance(error, Unlike):
        alike = {n: [convert(t, error.dtype) for t in ts] for n, ts in operands.items()}
        return op.function(**alike, **options)
    numbers = {n: v.item() for n, v in options.items() if _is_a_number(v)}
    if numbers:
        return op.function(**operands, **(options | numbers))
    return recover(name, error, operands, options)


def _give_way(
    op: Operation, reflected: str, name: str, error: Exception, operands: dict[str, Any],
    options: dict[str, Any],
) -> Any:  # fmt: skip
    """Return NotImplemented where the other operand's own class may know what to do."""
    other = list(operands.values())[-1]
    if not isinstance(other, _FAMILIAR) and hasattr(type(other), reflected):
        return NotImplemented
    return _answer(op, name, error, operands, options)


def _is_a_number(option: Any) -> bool:
    """Return whether PyTorch takes the tensor ``option`` for the number in it."""
    if not isinstance(option, Tensor) or option.array.ndim or option.requires_grad:
        return False
    return bool(option.array.dtype != bool)


def recover(name: str, error: Exception, operands: dict[str, Any], options: dict[str, Any]) -> Any:
    """Raise what ``explain`` makes of an error inside an operation."""
    placed = explain(name, error, operands, options)
    if placed is error:
        raise error
    raise placed from error


# ---------------------------------------------------------------------- methods and operators
_DUNDER = {
    "+": "add", "-": "sub", "*": "mul", "/": "truediv", "@": "matmul", "**": "pow",
    "//": "floordiv", "%": "mod", "&": "and", "|": "or", "^": "xor", "<<": "lshift", ">>": "rshift",
}  # fmt: skip
_COMPARE = {"<": "lt", "<=": "le", ">": "gt", ">=": "ge", "==": "eq", "!=": "ne"}
_UNARY = {"neg": "neg", "abs": "abs", "~": "invert"}


def _attach_methods(self: Operation, method: bool | str, operator: str, inplace: bool) -> None:
    function = self.function
    bare = _bare(self, f"__r{_DUNDER.get(operator)}__") if operator else function
    if isinstance(method, str):
        setattr(Tensor, self.name, _gathering(function, method.lstrip("*")))
    elif method:
        setattr(Tensor, self.name, function)
    if inplace:
        setattr(Tensor, self.name + "_", in_place(function, self.name + "_"))
    if operator in _DUNDER:
        word = _DUNDER[operator]
        setattr(Tensor, f"__{word}__", bare)
        setattr(Tensor, f"__r{word}__", _reflected(bare))
        if inplace:
            setattr(Tensor, f"__i{word}__", getattr(Tensor, self.name + "_"))
    elif operator in _COMPARE:
        setattr(Tensor, f"__{_COMPARE[operator]}__", _comparison(bare))
    elif operator:
        setattr(Tensor, f"__{_UNARY[operator]}__", bare)


def _bare(self: Operation, reflected: str) -> Callable[..., Tensor]:
    """Return the operation as a function of its operands alone, for operators."""
    names: dict[str, Any] = self.function.__globals__
    names["_give_way"] = functools.partial(_give_way, self, reflected)
    _execute(bare_source(self.plan), f"<distgrad operator {self.name}>", names)
    bare: Any = names.pop("_bare")
    bare.__name__, bare.__doc__ = self.name, self.function.__doc__
    bare.__module__, bare.op = self.function.__module__, self
    notes = self.function.__annotations__
    bare.__annotations__ = {n: notes[n] for n in [*(o.name for o in self.operands), "return"]}
    return bare  # type: ignore[no-any-return]


# Their reflected methods are functions of two operands in PyTorch; the others belong to tensors.
_OF_NUMBERS = frozenset(("floor_divide", "remainder", "pow", "bitwise_left_shift",
                         "bitwise_right_shift"))  # fmt: skip


def _reflected(function: Callable[..., Tensor]) -> Callable[[Tensor, Any], Tensor]:
    def reflected(self: Tensor, other: Any) -> Tensor:
        if not isinstance(self, Tensor) and function.__name__ not in _OF_NUMBERS:
            raise ArgumentTypeError(f"self must be Tensor, not {type(self).__name__}")
        return function(other, self)

    return reflected


def _comparison(function: Callable[..., Tensor]) -> Callable[[Tensor, Any], Any]:
    def compare(self: Tensor, other: Any) -> Any:
        try:
            return function(self, other)
        except ArgumentTypeError:
            return NotImplemented  # tensor == None is False, as in PyTorch

    return compare


def _gathering(function: Callable[..., Any], option: str) -> Callable[..., Any]:
    """Return a method that takes ``option`` as separate positional arguments or as one sequence."""

    def method(self: Tensor, *values: Any, **options: Any) -> Any:
        if option in options:
            return function(self, **options)
        one = len(values) == 1 and isinstance(values[0], list | tuple)
        return function(self, tuple(values[0]) if one else values, **options)

    method.__name__, method.__doc__ = function.__name__, function.__doc__
    method.__wrapped__ = function  # type: ignore[attr-defined]
    method.gathers = option  # type: ignore[attr-defined]
    return method


def as_property(function: Callable[[Tensor], Any], name: str = "") -> None:
    """Make ``function(tensor)`` a property of Tensor."""
    setattr(Tensor, name or function.__name__, property(function))


def as_method(function: Callable[P, Any], name: str = "", *, gather: str = "") -> Callable[P, Any]:
    """Make ``function(tensor, …)``, a plain function of operations, a method of Tensor too.

    Args:
        function: what to attach.
        name: name of the method, where it is not that of the function.
        gather: the option that the method takes as separate positional arguments too.
    """
    method = _gathering(function, gather) if gather else function
    setattr(Tensor, name or function.__name__, method)
    return function
