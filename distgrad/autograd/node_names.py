"""What PyTorch calls the node of a call and its saved values, where one declaration here serves
several of PyTorch's operations.

Asked only when somebody looks at a node (``grad_fn``, ``next_functions``, ``_saved_*``).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

Values = dict[str, Any]  # what a node has saved, by the names of the declaration


def camel(name: str) -> str:
    """Return the name of an operation's node: ``log_softmax`` gives ``LogSoftmaxBackward0``.

    Example:
        >>> camel("log1p")
        'Log1PBackward0'
    """
    parts = [part.capitalize() for part in name.strip("_").split("_")]
    return re.sub(r"\d[a-z]", lambda m: m.group().upper(), "".join(parts)) + "Backward0"


# ---------------------------------------------------------------------- names of nodes
def _by_dim(name: str) -> Callable[[Values], str]:
    """Number 1 for the form of a reduction that names dimensions."""
    return lambda v: f"{name}Backward{int(v['dim'] is not None)}"


def _by_number(name: str, operand: str) -> Callable[[Values], str]:
    """Number 0 for the form with a Python number, 1 for that with a tensor."""
    return lambda v: f"{name}Backward{int(not getattr(v[operand], '_is_number', False))}"


def _by_windows(names: str, option: str, one: str = "SqueezeBackward1") -> Callable[[Values], str]:
    """The name for windows of one, two or three dimensions."""

    def name(v: Values) -> str:
        n = len(v[option])
        return one if n == 1 else names.format(n)

    return name


def _matmul(v: Values) -> str:
    a, b = len(v["input_shape"]), len(v["other_shape"])
    known = {(1, 1): "Dot", (2, 1): "Mv", (2, 2): "Mm", (3, 3): "Bmm"}
    return known.get((a, b), "UnsafeView") + "Backward0"


def _cross_entropy(v: Values) -> str:
    many = getattr(v["input"], "ndim", 2) > 2
    return "NllLoss2DBackward0" if many else "NllLossBackward0"


def _resample(v: Values) -> str:
    kinds = {"nearest": "Nearest", "nearest-exact": "NearestExact", "linear": "Linear",
             "bilinear": "Bilinear", "trilinear": "Trilinear", "bicubic": "Bicubic"}  # fmt: skip
    return f"Upsample{kinds[v['mode']]}{len(v['size'])}DBackward0"


_WINDOWS = {1: "SqueezeBackward1", 2: "AvgPool2DBackward0", 3: "AvgPool3DBackward0"}

VARIANTS: dict[str, Callable[[Values], str]] = {
    "sum": _by_dim("Sum"),
    "mean": _by_dim("Mean"),
    "prod": _by_dim("Prod"),
    "median": lambda v: "MedianBackward1",
    "nanmedian": lambda v: "NanmedianBackward1",
    "pow": _by_number("Pow", "exponent"),
    "remainder": _by_number("Remainder", "other"),
    "fmod": _by_number("Fmod", "other"),
    "lerp": _by_number("Lerp", "weight"),
    "matmul": _matmul,
    "cross_entropy_loss": _cross_entropy,
    "resample": _resample,
    "max_pool": _by_windows("MaxPool{}DWithIndicesBackward0", "kernel_size"),
    "adaptive_max_pool": _by_windows("AdaptiveMaxPool{}DBackward0", "output_size"),
    "fractional_max_pool": _by_windows("FractionalMaxPool{}DBackward0", "output_size"),
    "avg_pool": lambda v: _WINDOWS[len(v["windows"][0])],
    "unpool": _by_windows("MaxUnpool{}DBackward0", "size"),
}


_renamed: dict[tuple[type, str], type] = {}


def renamed(kind: type, values: Values) -> type:
    """Return the class of a node as PyTorch calls it after the ``values`` that it saved."""
    name = VARIANTS[kind.op.name](values)  # type: ignore[attr-defined]
    if name == kind.__name__:
        return kind
    found = _renamed.get((kind, name))
    if found is None:
        body = {"__slots__": (), "__module__": kind.__module__}
        found = _renamed[kind, name] = type(name, (kind,), body)
    return found


# ---------------------------------------------------------------------- names of saved values
# operation -> PyTorch's name -> the name of the declaration, or the value
ALIASES: dict[str, dict[str, str | Callable[[Values], Any]]] = {
    "matmul": {"mat2": "other", "vec": "other", "tensor": "other"},
    **{name: {"dim": lambda v: _many(v["dim"])}
       for name in ("amax", "amin", "mean", "nansum", "std", "sum", "var", "vector_norm")},
    "roll": {"dims": lambda v: _many(v["dims"]), "shifts": lambda v: _many(v["shifts"])},
    "index": {"indices": lambda v: _indices(v)},
    **{name: {"result1": "indices"}
       for name in ("adaptive_max_pool", "fractional_max_pool", "max_pool")},
    "cross_entropy_loss": {"total_weight": "total"},
    "linear": {"mat1": "input", "mat2": lambda v: v["weight"].T, "alpha": lambda v: 1,
               "beta": lambda v: 1},
    "convolution": {
        "padding": lambda v: tuple([p[0] if p[0] == p[-1] else p for p in v["padding"]]),
        "transposed": lambda v: False,
        "output_padding": lambda v: (0,) * len(v["stride"]),
    },
    "fused_layer_norm": {"result1": "mean", "result2": "rstd"},
    "batch_statistics_norm": {"result1": "mean", "training": lambda v: True},
    "slice_view": {"dim": lambda v: _place_of_slice(v), "start": lambda v: _slice(v).start or 0,
                   "step": lambda v: _slice(v).step or 1,
                   "end": lambda v: 2**63 - 1 if _slice(v).stop is None else _slice(v).stop},
    "strided_view": {"size": lambda v: v["target"].shape, "stride": lambda v: v["target"].strides,
                     "storage_offset": lambda v: v["target"].offset},
    "embedding": {"indices": "input"},
    "resample": {"output_size": "size", "scale_factors": "scales"},
    "gather": {"sparse_grad": lambda v: False},
}  # fmt: skip


def _many(value: Any) -> Any:
    """Return one number as a tuple of one."""
    if isinstance(value, list):
        return tuple(value)
    return (value,) if isinstance(value, int) else value


def _indices(v: Values) -> tuple[Any, ...]:
    """Return one index for each dimension up to the last that is indexed; None for all of it."""
    by_dim = dict(zip(v["dims"], v["indices"], strict=True))
    return tuple([by_dim.get(d) for d in range(max(by_dim, default=-1) + 1)])


def _place_of_slice(v: Values) -> int:
    index = v["index"]
    whole = slice(None)
    return next((i for i, part in enumerate(index) if part != whole), 0)


def _slice(v: Values) -> Any:
    found: Any = v["index"][_place_of_slice(v)]
    return found


_SHAPES = re.compile(r"(\w+)_sym_(sizes|strides|numel|argsize_(minus_)?(\d+))")


_OF_A_SHAPE = ("sizes", "numel", "argsize_0", "argsize_1", "argsize_minus_1", "argsize_minus_2")


def name_all(op: Any) -> None:
    """Give the nodes of ``op`` what was saved under the names that it has in PyTorch alone.

    Properties, and only when somebody looks: a ``__getattr__`` costs each backward a fifth.
    """
    kept, first = set(op.plan.kept), op.operands[0].name
    known = dict(ALIASES.get(op.name, {}))
    names = set(known)
    for public, ours in ({o.name: o.name for o in op.operands} | {"self": first} | known).items():
        if isinstance(ours, str) and {ours, f"{ours}_shape"} & kept:
            names |= {f"{public}_sym_{what}" for what in _OF_A_SHAPE}
        if isinstance(ours, str) and ours in kept:
            names.add(f"{public}_sym_strides")
    for name in names:
        if not hasattr(op.node, f"_saved_{name}"):
            setattr(op.node, f"_saved_{name}", property(_reader(op, name)))
    op.node._all_names = True


def _reader(op: Any, name: str) -> Callable[[Any], Any]:
    def read(node: Any) -> Any:
        return saved_under(op, name, lambda kept: getattr(node, f"_kept_{kept}"))

    return read


def saved_under(op: Any, name: str, read: Callable[[str], Any]) -> Any:
    """Return the value that PyTorch calls ``_saved_<name>``.

    Args:
        op: the operation.
        name: PyTorch's name.
        read: returns what was saved under a name of the declaration.

    Raises:
        KeyError: nothing that was saved answers.
    """
    alias = ALIASES.get(op.name, {}).get(name)
    if callable(alias):
        return alias(_Reading(read))
    if alias is not None:
        return read(alias)
    match = _SHAPES.fullmatch(name)
    if match is None:
        raise KeyError(name)
    operand, what, minus, place = match.groups()
    alias = ALIASES.get(op.name, {}).get(operand, operand)
    value = alias(_Reading(read)) if callable(alias) else None
    operand = op.operands[0].name if alias == "self" else str(alias)
    if what == "strides":
        return (read(operand) if value is None else value).stride()
    if value is None and f"{operand}_shape" in op.plan.kept:
        shape = read(f"{operand}_shape")
    else:
        shape = (read(operand) if value is None else value).shape
    if what == "sizes":
        return tuple(shape)
    if what == "numel":
        return _product(shape)
    return shape[-int(place) if minus else int(place)]


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for n in shape:
        product *= n
    return product


class _Reading(dict[str, Any]):
    """What was saved, read when it is asked for."""

    def __init__(self, read: Callable[[str], Any]) -> None:
        super().__init__()
        self.read = read

    def __missing__(self, name: str) -> Any:
        return self.read(name)
