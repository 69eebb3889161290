"""The Python source of an operation's wrapper and of its backward, written once per operation.

Straight-line code with the operation's real signature: no ``*args``, no loops over operands.
What the names beginning with ``_`` mean stands in ``declare.compile_operation``.
"""

from __future__ import annotations

import inspect
from itertools import pairwise
from typing import NamedTuple

from distgrad.autograd.numpy_names import OTHER_NAMES


class Operand(NamedTuple):
    """A tensor parameter.  kind: tensor | like (numbers allowed) | optional | list."""

    name: str
    kind: str


class Plan(NamedTuple):
    """What the writer of source needs to know about an operation."""

    name: str
    parameters: list[inspect.Parameter]  # without xp
    operands: list[Operand]
    rules: dict[str, list[str]]  # operand -> names its rule asks for, in graph order
    joint: list[str] | None  # names asked for by d_all, which answers for all operands
    kept: list[str]  # what is saved, in this order
    outputs: dict[str, bool] | None  # name -> differentiable; None: one output
    variadic: bool  # any number of differentiable outputs
    promote: list[str]  # operands brought to one dtype
    floats: bool  # integers become the default float
    casts: bool  # option dtype: the first operand is converted first
    view: bool
    checks: bool  # its function ``check`` sees the operands before they are promoted
    widens: bool  # 16-bit floats are computed in float32
    direct: str  # the function of the namespace that is all of the forward, or ""
    everything: bool  # a formula answers for higher derivatives: all operands are kept


def call_source(p: Plan, traced: bool = False) -> str:
    """Return the source of the public function, or of what answers for traced operands."""
    lines = [f"def {p.name}({_signature(p)}):", *_by_name(p)]
    forward = _traced_forward(p) if traced else _forward(p)
    lines += ["    " + line for line in _conversion(p) + forward]
    tail = _outputs(p) if p.variadic or p.outputs else _output(p)
    return "\n".join(lines + ["    " + line for line in tail]) + "\n"


def bare_source(p: Plan) -> str:
    """Return the source of the function of the operands alone, the options at their defaults.

    It serves operators: Python calls a function without keyword-only parameters 0.05 µs faster.
    """
    names = [o.name for o in p.operands]
    lines = [f"def _bare({', '.join(names)}):"]
    for q in p.parameters:
        if q.name not in names:
            lines.append(f"    {q.name} = _default_{q.name}")
    given = [q for q in p.parameters if q.name in names]
    forward = _forward(p, given, answer="_give_way")
    lines += ["    " + line for line in _conversion(p) + forward + _output(p)]
    return "\n".join(lines) + "\n"


def _signature(p: Plan) -> str:
    parts, starred, absent = [], False, False
    for q in p.parameters:
        if q.kind is q.KEYWORD_ONLY and not starred:
            parts.append("*")
            starred = True
        optional = absent = absent or (_gathers(p) and q.name in OTHER_NAMES.values())
        given = q.default is q.empty and not (optional and q.kind is not q.KEYWORD_ONLY)
        value = "_absent" if q.default is q.empty else f"_default_{q.name}"
        parts.append(q.name if given else f"{q.name}={value}")
    return ", ".join([*parts, "**_named"] if _gathers(p) else parts)


def _gathers(p: Plan) -> bool:
    """Return whether the operation takes ``out=`` or NumPy's names: see autograd/numpy_names.py."""
    return not p.view or any(q.name == "dim" for q in p.parameters)


def _by_name(p: Plan) -> list[str]:
    """Leave the fast path where the caller brings tensors for the outputs, or uses other names."""
    if not _gathers(p):
        return []
    values = _dict([q.name for q in p.parameters])
    return [f"    if _named: return _by_name({p.name}, {values}, _named, _defaults, {not p.view})"]


def _conversion(p: Plan) -> list[str]:
    """Turn numbers into tensors, where the operand allows them."""
    lines = []
    for name in (o.name for o in p.operands if o.kind == "like"):
        rest = [o.name for o in p.operands if o.name != name]
        others = ", ".join([n for n in rest if n in p.promote] or rest)
        make = "_float_operand" if p.floats else "_operand"
        lines.append(f"if type({name}) is not _Tensor: {name} = {make}({name}, ({others},))")
    if p.casts:
        first = p.operands[0].name
        lines.append(f"if dtype is not None: {first} = _convert({first}, dtype)")
    return lines


def _forward(
    p: Plan, given: list[inspect.Parameter] | None = None, answer: str = "_recover"
) -> list[str]:
    """Run the forward on arrays, with the parameters ``given``: all, or those it is called with.

    Where that fails, ``answer`` says what is returned or raised.
    """
    names = [o.name for o in p.operands]
    first = p.operands[0]
    probe = f"_a_{first.name}[0]" if first.kind == "list" else f"_a_{first.name}"
    elsewhere = f"_xp_of({probe})"
    if first.kind == "like":  # it may be a number, which has no place
        elsewhere = f"_xp_beside({', '.join(f'_a_{o.name}' for o in p.operands)})"
    arrays = {o.name: f"_a_{o.name}" for o in p.operands}
    args = ", ".join(
        f"{q.name}={arrays.get(q.name, q.name)}"
        if q.kind is q.KEYWORD_ONLY
        else arrays.get(q.name, q.name)
        for q in (given or p.parameters)
    )
    options = [q.name for q in p.parameters if q.name not in names]
    all_ = "".join(f"{'*' * (o.kind == 'list')}_a_{o.name}, " for o in p.operands)
    host = f"_direct({args})" if p.direct else f"_forward(_np, {args})"
    return [
        "try:",
        *("    " + line for line in _arrays(p.operands) + _promotion(p)),
        f"    _d = {host} if type({probe}) is _ndarray else "
        f"_elsewhere(_forward, {elsewhere}, ({all_}), {args})",
        "except Exception as _e:",
        f"    return {answer}({p.name!r}, _e, {_dict(names)}, {_dict(options)})",
    ]


def _traced_forward(p: Plan) -> list[str]:
    """Ask the level of the operands in place of the forward; see Note [Layers]."""
    names = [o.name for o in p.operands]
    options = [q.name for q in p.parameters if q.name not in names]
    call = f"_d = _dispatch(_op, {_dict(names)}, {_dict(options)})"
    return [*_arrays(p.operands), *_promotion(p), call]


def _arrays(operands: list[Operand]) -> list[str]:
    lines = []
    for name, kind in operands:
        if kind == "optional":
            lines.append(f"_a_{name} = None if {name} is None else {name}.array")
        elif kind == "list":
            wrong = f"argument {name!r} must be tuple of Tensors, not Tensor"
            lines.append(f"if type({name}) is _Tensor: raise TypeError({wrong!r})")
            lines.append(f"_a_{name} = [_t.array for _t in {name}]")
        else:
            lines.append(f"_a_{name} = {name}.array")
    return lines


def _promotion(p: Plan) -> list[str]:
    """Bring operands to one dtype; float32 leaves by the first test."""
    names = p.promote
    again = "; ".join(f"_a_{n} = {n}.array" for n in names)
    all_ = ", ".join(names)
    first = f"_a_{(names or [p.operands[0].name])[0]}"
    if not names and p.operands[0].kind == "list":
        first += "[0]"
    lines = [f"_check_dtypes({all_})"] if p.checks else []
    if len(names) > 1:
        differ = "_a_{}.dtype is not _a_{}.dtype"
        test = " or ".join(differ.format(a, b) for a, b in pairwise(names))
        lines.append(f"if {test}: {all_} = _promote({all_}); {again}")
    if p.floats:
        comma = "," if len(names) == 1 else ""
        lines.append(
            f"if {first}.dtype.kind not in 'fcV': {all_}{comma} = _to_float({all_}); {again}"
        )
    if p.widens:
        operands = [o.name for o in p.operands]
        options = [q.name for q in p.parameters if q.name not in operands]
        lines.append(
            f"if {first}.itemsize == 2 and _narrow({', '.join(operands)}): "
            f"return _widened({p.name}, {_dict(operands)}, {_dict(options)}, {p.casts})"
        )
    if not lines:
        return []
    kinds = [f"_a_{n}.dtype" for n in names] or [f"{first}.dtype"]
    test = f"not ({' is '.join(kinds)} is _f32)" if len(kinds) > 1 else f"{kinds[0]} is not _f32"
    return [f"if {test}:", *("    " + line for line in lines)]


def _output(p: Plan) -> list[str]:
    lines = ["if type(_d) is not _ndarray: _d = _asarray(_d)", *_fresh("_o", "_d")]
    if p.rules:
        lines += [
            f"if ({_requires(p)}) and _mode.grad:",
            *("    " + line for line in _node(p)),
            "    _n._shape = _d.shape; _o._requires = True; _o._node = _n",
            "else:",
            "    _o._requires = False; _o._node = None",
        ]
    else:
        lines.append("_o._requires = False; _o._node = None")
    if p.view:
        rest = "".join(f"{q.name}, " for q in p.parameters[1:])
        base = p.operands[0].name
        lines.append(f"_link(_o, {base}, _a_{base}, {p.name}, ({rest}))")
    return [*lines, "return _o"]


def _outputs(p: Plan) -> list[str]:
    """Several outputs: a Slot stands between the node and each differentiable one."""
    flags = list(p.outputs.values()) if p.outputs else []
    lines = [
        "_d = [_x if type(_x) is _ndarray else _asarray(_x) for _x in _d]",
        "_os = [_wrap(_x) for _x in _d]",
    ]
    if p.rules:
        chosen = ", ".join(f"_os[{i}]" for i, flag in enumerate(flags) if flag)
        diff = "_os" if p.variadic else f"[{chosen}]"
        lines += [f"if ({_requires(p)}) and _mode.grad:", f"    _track = {diff}"]
        if p.outputs:
            lines.append("    " + ", ".join(p.outputs) + ", = _d")
        lines += ["    " + line for line in _node(p)]
        lines.append("    _attach(_n, _track)")
    if p.view:
        rest = "".join(f"{q.name}, " for q in p.parameters[1:])
        base = p.operands[0].name
        lines.append(f"_link_all(_os, {base}, _a_{base}, {p.name}, ({rest}))")
    return [*lines, "return tuple(_os)" if p.variadic else "return _result(*_os)"]


def _fresh(out: str, array: str) -> list[str]:
    return [f"{out} = _new(_Tensor); {out}.array = {array}; {out}._grad = {out}._shared = None"]


def _requires(p: Plan, of: list[str] | None = None) -> str:
    """Return the test whether one of the operands (``of``, or all with a rule) requires grad."""
    tests = []
    for name, kind in p.operands:
        if name not in (p.rules if of is None else of):
            continue
        if kind == "optional":
            tests.append(f"({name} is not None and {name}._requires)")
        elif kind == "list":
            tests.append(f"any([_t._requires for _t in {name}])")
        else:
            tests.append(f"{name}._requires")
    return " or ".join(tests)


def _node(p: Plan) -> list[str]:
    edges = []
    for name, kind in p.operands:
        if name not in p.rules:
            continue
        edge = "{0}._node or ({0} if {0}._requires else None)"
        if kind == "list":
            edges.append(f"*[{edge.format('_t')} for _t in {name}]")
        elif kind == "optional":
            edges.append(f"None if {name} is None else ({edge.format(name)})")
        else:
            edges.append(edge.format(name))
    saved = "".join(f"{_saving(p, name)}, " for name in p.kept)
    return [
        f"_n = _new_node(_Node); _n._edges = ({', '.join(edges)},); _n.clock = _tick()",
        f"_n.saved = ({saved})",
    ]


def _saving(p: Plan, name: str) -> str:
    """Return what to save for ``name``: None when no operand whose rule asks for it needs it."""
    kinds = dict(p.operands)
    users = _users(p, name)
    if (name == "out" or kinds.get(name) in ("tensor", "like")) and len(users) < len(p.rules):
        return f"{'_d' if name == 'out' else name} if {_requires(p, users)} else None"
    if name == "out":
        return "_d"
    if name.endswith("_shape") and name[:-6] in kinds:
        base = name[:-6]
        if kinds[base] == "list":
            return f"[_x.shape for _x in _a_{base}]"
        if kinds[base] == "optional":
            return f"None if {base} is None else _a_{base}.shape"
        return f"_a_{base}.shape"
    for end, text in (("_dtype", "_a_{}.dtype"), ("_device", "_place_of(_a_{})")):
        if name.endswith(end) and name[: -len(end)] in kinds:
            return text.format(name[: -len(end)])
    return f"tuple({name})" if kinds.get(name) == "list" else name


def _users(p: Plan, name: str) -> list[str]:
    """Return the operands whose rules ask for ``name``; a joint rule serves all of them."""
    if p.joint is not None or p.everything:
        return list(p.rules)
    return [operand for operand, asks in p.rules.items() if name in asks]


def _dict(names: list[str]) -> str:
    return "{" + ", ".join(f"{n!r}: {n}" for n in names) + "}"


# ---------------------------------------------------------------------- backward
def pull_source(p: Plan, graph: bool) -> str:
    """Return the source of ``pull`` (arrays) or ``pull_graph`` (tensors)."""
    kinds = dict(p.operands)
    lines = ["s = self.saved", "if s is None: raise _freed(self)"]
    tensors = [n for n in p.kept if n in kinds]
    several = any(flag and name in p.kept for name, flag in (p.outputs or {}).items())
    single = "out" in p.kept and p.outputs is None
    out = f"{_index(p, 'out')} is not None" if single else several
    if tensors or out:
        flat = "".join(f"{'*' * (kinds[n] == 'list')}{_index(p, n)}, " for n in tensors)
        lines.append(f"if self.clock < _clock.changed: _check(self, ({flat}), {out})")
    if _slotted(p):
        lines.append(f"g = _zeros_for(self.likes, g, {graph})")
    if not graph and _asks(p, "into"):
        lines.append("_i = _into(self, g)")
    if not graph:  # before anything else here holds an operand
        lines += [
            f"_s_{n} = _spare(self, {p.kept.index(n)})" for n in tensors if _asks(p, _spared(n))
        ]
    lines += _joint(p, graph) if p.joint is not None else _separate(p, graph)
    name = "pull_graph" if graph else "pull"
    return f"def {name}(self, F, g):\n" + "".join(f"    {line}\n" for line in lines)


def _asks(p: Plan, name: str) -> bool:
    """Return whether a rule asks for ``name``."""
    return name in (p.joint or ()) or any(name in asks for asks in p.rules.values())


def _spared(name: str) -> str:
    """Return by what name a rule asks whether it may overwrite an operand: autograd/spare.py."""
    return f"{name}_spare"


def _slotted(p: Plan) -> bool:
    return p.variadic or (p.outputs is not None and sum(p.outputs.values()) > 1)


def _index(p: Plan, name: str) -> str:
    return f"s[{p.kept.index(name)}]"


def _joint(p: Plan, graph: bool) -> list[str]:
    assert p.joint is not None
    asked = ", ".join(_value(p, name, graph) for name in p.joint)
    return [f"return _rule_all({asked})"]


def _separate(p: Plan, graph: bool) -> list[str]:
    kinds = dict(p.operands)
    single = [n for n in p.rules if kinds[n] != "list"]
    lines, results = [], []
    for name, asks in p.rules.items():
        asked = ", ".join(_value(p, a, graph) for a in asks)
        call = f"_rule_{name}({asked})"
        if kinds[name] == "list":
            results.append(f"*{call}")
        elif len(p.rules) == 1:
            results.append(call)
        else:
            results.append(f"None if _e_{name} is None else {call}")
    if len(p.rules) > 1:
        rest = "*_, " if len(single) < len(p.rules) else ""
        lines.append(f"{rest}{', '.join('_e_' + n for n in single)}, = self._edges")
    return [*lines, f"return ({', '.join(results)},)"]


def _value(p: Plan, name: str, graph: bool) -> str:
    """Return the expression that a rule gets for the name it asks for."""
    probe = "g[0]" if _slotted(p) else "g"
    fixed = {
        "F": "F",
        "g": "g",
        "into": "None" if graph else "_i",
        "xp": f"(_np if type({probe}) is _ndarray else _xp_of({probe}))",
        "needs": "tuple([_e is not None for _e in self._edges])",
    }
    if name in fixed:
        return fixed[name]
    if name.endswith("_spare") and name[:-6] in dict(p.operands):
        return "False" if graph else f"_s_{name[:-6]}"
    kind = dict(p.operands).get(name)
    saved = _index(p, name)
    if name == "out":
        return f"_attached({saved}, self)" if graph else saved
    if p.outputs and name in p.outputs:
        if not graph:
            return saved
        place = [n for n, d in p.outputs.items() if d]
        if name not in place:
            return f"_wrap({saved})"
        target = f"_Slot(self, {place.index(name)}, {saved})" if _slotted(p) else "self"
        return f"_attached({saved}, {target})"
    if graph or kind is None:
        return saved
    if kind == "optional":
        return f"(None if {saved} is None else {saved}.array)"
    return f"[_t.array for _t in {saved}]" if kind == "list" else f"{saved}.array"
