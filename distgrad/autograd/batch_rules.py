"""What operations do to a batch in front of their operands; see ``batching.py``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from distgrad.autograd import engine
from distgrad.autograd.batching import RULES, Call, NoRule, dynamic
from distgrad.autograd.traced import operand_tensors
from distgrad.backend.device import array_namespace
from distgrad.tensor import Tensor, wrap

F: Any = engine.tensor_functions


def _elementwise(call: Call) -> Any:
    """Line up the dimensions after the batch."""
    ndim = max(int(t.array.ndim) for t in operand_tensors(call.operands.values()))
    return call.run({n: call.aligned(o, ndim) for n, o in call.operands.items()})


def _shift(dim: int, ndim: int) -> int:
    """Return a dimension counted behind the batch."""
    if not -ndim <= dim < ndim:
        raise NoRule
    return dim % ndim + 1


def _along(*names: str, none: str = "") -> Callable[[Call], Any]:
    """Return a rule for options that name dimensions.

    Args:
        names: those options: one number, or several.
        none: what None means: "all" dimensions, or one row ("flat") of all elements.
    """

    def rule(call: Call) -> Any:
        first = call.op.operands[0].name
        whole = {n: call.full(o) for n, o in call.operands.items()}
        listed = call.op.operands[0].kind == "list"
        ndim = call.operands[first][0].array.ndim if listed else call.ndim(first)
        if not ndim:
            return _as_one_element(call, names)
        changed: dict[str, Any] = {}
        for name in names:
            dim = call.options[name]
            if dim is None and none == "flat":
                whole[first] = F.reshape(whole[first], (call.batch, -1))
                changed[name] = 1
                if call.options.get("keepdim"):
                    raise NoRule
            elif dim is None:
                if none != "all":
                    raise NoRule
                changed[name] = tuple(range(1, ndim + 1))
            elif isinstance(dim, int):
                changed[name] = _shift(dim, ndim)
            elif not len(dim):  # it depends on the operation what no dimension means
                raise NoRule
            else:
                changed[name] = tuple(_shift(d, ndim) for d in dim)
        return call.run(whole, **changed)

    return rule


def _as_one_element(call: Call, names: tuple[str, ...]) -> Any:
    """Treat 0-d operands as rows of one element."""
    dim = call.options["dim"] if names == ("dim",) else ()
    if len(call.op.operands) > 1 or dim not in (None, 0, -1) or call.options.get("keepdim"):
        raise NoRule
    (operand,) = call.op.operands
    if operand.kind == "list" or call.op.name in ("select", "narrow", "unbind", "split"):
        raise NoRule
    out = call.run({operand.name: F.unsqueeze(call.full(call.operands[operand.name]), 1)}, dim=1)
    outs = (out,) if isinstance(out, Tensor) else out
    flat = [F.reshape(o, (call.batch,)) for o in outs]
    return flat[0] if isinstance(out, Tensor) else flat


def _sized(size: str, *names: str) -> Callable[[Call], Any]:
    """Return a rule for an option that is a whole shape, and others that name dimensions of it."""

    def rule(call: Call) -> Any:
        whole = {n: call.full(o) for n, o in call.operands.items()}
        shape = tuple(call.options[size])
        if not shape:
            raise NoRule
        changed: dict[str, Any] = {size: (call.batch, *shape)}
        for name in names:
            dim = call.options[name]
            changed[name] = (
                _shift(dim, len(shape)) if isinstance(dim, int)
                else tuple(_shift(d, len(shape)) for d in dim)
            )  # fmt: skip
        return call.run(whole, **changed)

    return rule


def _batch_kept(call: Call) -> Any:
    """The operation takes leading dimensions as they come."""
    return call.run({n: call.full(o) for n, o in call.operands.items()})


def _single(call: Call) -> Any:
    """The operation leaves the shape of its first operand alone; the others are not batched."""
    first, *rest = call.op.operands
    if any(call.is_batched(o.name) for o in rest):
        raise NoRule
    return call.run(call.operands | {first.name: call.full(call.operands[first.name])})


def _clone(call: Call) -> Any:
    """Copy; how the elements lie in memory is that of the batch."""
    return call.run({"input": call.full(call.operands["input"])}, memory_format=None)


# ---------------------------------------------------------------------- shapes
def _reshape(call: Call) -> Any:
    (value,) = (call.full(o) for o in call.operands.values())
    shape = tuple(call.options["shape"])
    if -1 in shape:  # zero elements of one leave it open what -1 is
        count = call.operands["input"].array.size
        known = 1
        for n in shape:
            known *= n if n != -1 else 1
        if not known or count % known:
            raise NoRule
        shape = tuple(count // known if n == -1 else n for n in shape)
    return call.run({"input": value}, shape=(call.batch, *shape))


def _expand(call: Call) -> Any:
    size = tuple(call.options["size"])
    value = call.aligned(call.operands["input"], len(size))
    return call.run({"input": value}, size=(call.batch, *size))


def _sum_to_size(call: Call) -> Any:
    size, shape = tuple(call.options["size"]), call.operands["input"].array.shape
    lead = len(shape) - len(size)
    if lead < 0:
        raise NoRule
    whole = (call.batch, *(1,) * lead, *size)
    out = call.run({"input": call.full(call.operands["input"])}, size=whole)
    return F.reshape(out, (call.batch, *size)) if lead else out


def _unsqueeze(call: Call) -> Any:
    dim = _shift(call.options["dim"], call.ndim("input") + 1)
    return call.run({"input": call.full(call.operands["input"])}, dim=dim)


def _squeeze(call: Call) -> Any:
    shape, dim = call.operands["input"].array.shape, call.options["dim"]
    dims = range(len(shape)) if dim is None else (dim,) if isinstance(dim, int) else dim
    gone = {_shift(d, len(shape)) - 1 for d in dims} if shape else set()
    kept = [n for i, n in enumerate(shape) if i not in gone or n != 1]
    return F.reshape(call.full(call.operands["input"]), (call.batch, *kept))


def _permute(call: Call) -> Any:
    dims = call.options["dims"]
    order = (0, *(_shift(d, len(dims)) for d in dims))
    return call.run({"input": call.full(call.operands["input"])}, dims=order)


def _slice_view(call: Call) -> Any:
    index = (slice(None), *call.options["index"])
    return call.run({"input": call.full(call.operands["input"])}, index=index)


def _slice_backward(call: Call) -> Any:
    size, index = call.options["input_size"], call.options["index"]
    whole = {"grad": call.full(call.operands["grad"])}
    return call.run(whole, input_size=(call.batch, *size), index=(slice(None), *index))


def _repeat(call: Call) -> Any:
    repeats = tuple(call.options["repeats"])
    value = call.aligned(call.operands["input"], len(repeats))
    return call.run({"input": value}, repeats=(1, *repeats))


def _stack(call: Call) -> Any:
    first = call.operands["tensors"][0]
    dim = _shift(call.options["dim"], first.array.ndim + 1)
    return call.run({"tensors": call.full(call.operands["tensors"])}, dim=dim)


def _matrix(call: Call) -> Any:
    """The last two dimensions are what counts."""
    first = call.op.operands[0].name
    if call.ndim(first) < 2:
        raise NoRule
    return _batch_kept(call)


# ---------------------------------------------------------------------- products
def _matmul(call: Call) -> Any:
    a, b = call.operands["input"], call.operands["other"]
    left, right = a.array.ndim, b.array.ndim
    if not left or not right:
        raise NoRule
    x, y = call.level.value(a), call.level.value(b)
    if y is None and x is not None and left > 1:
        return F.matmul(x, b) if right <= 2 else F.matmul(call.aligned(a, max(left, right)), b)
    whole = max(left, right, 2)
    x, y = a if x is None else x, b if y is None else y
    if left == 1:
        x = F.unsqueeze(x, -2)
    if right == 1:
        y = F.unsqueeze(y, -1)
    x = _led(x, call.level.value(a) is not None, max(left, 2), whole)
    y = _led(y, call.level.value(b) is not None, max(right, 2), whole)
    out = F.matmul(x, y)
    if left == 1:
        out = F.squeeze(out, -2)
    return F.squeeze(out, -1) if right == 1 else out


def _led(x: Any, batched: bool, ndim: int, whole: int) -> Any:
    """Return a batched ``x`` of ``ndim`` other dimensions with ``whole`` of them."""
    if not batched or ndim == whole:
        return x
    have = x.array.shape
    return F.reshape(x, (have[0], *(1,) * (whole - ndim), *have[1:]))


def _linear(call: Call) -> Any:
    x, weight, bias = (call.operands[n] for n in ("input", "weight", "bias"))
    if not call.is_batched("weight") and (bias is None or not call.is_batched("bias")):
        return F.linear(call.full(x), weight, bias)
    ndim, rows = x.array.ndim, weight.array.ndim
    if rows != 2 or not ndim:
        raise NoRule
    x = call.full(x) if call.is_batched("input") else x
    weight = F.mT(call.full(weight)) if call.is_batched("weight") else F.mT(weight)
    weight = _led(weight, call.is_batched("weight"), 2, max(ndim, 2))
    if ndim == 1:
        x = F.unsqueeze(x, -2)
    out = F.matmul(x, weight)
    if ndim == 1:
        out = F.squeeze(out, -2)
    if bias is None:
        return out
    return F.add(out, call.aligned(bias, ndim))


def _convolution(call: Call) -> Any:
    """Fold the batch of the input into its batch, or that of the weight into the groups."""
    x, weight, bias = (call.operands[n] for n in ("input", "weight", "bias"))
    if not call.is_batched("weight") and (bias is None or not call.is_batched("bias")):
        return _folded(call, "input")
    if bias is not None and call.is_batched("bias"):
        plain = call.operands | {"bias": None}
        out = call.level.process(call.op, plain, call.options).below
        have = bias.array.shape
        shape = (call.batch, 1, *have, *(1,) * (x.array.ndim - 2))
        return F.add(out, F.reshape(call.full(bias), shape))
    w, v = call.full(weight), call.full(x)
    n, channels, *space = x.array.shape
    made = weight.array.shape[0]
    order = (1, 0, *range(2, v.array.ndim))
    v = F.reshape(F.permute(v, order), (n, call.batch * channels, *space))
    w = F.reshape(w, (call.batch * made, *weight.array.shape[1:]))
    out = F.convolution(
        v, w, None, **(call.options | {"groups": call.options["groups"] * call.batch})
    )
    out = F.reshape(out, (n, call.batch, made, *out.array.shape[2:]))
    out = F.permute(out, (1, 0, *range(2, out.array.ndim)))
    if bias is not None:
        out = F.add(out, F.reshape(bias, (*bias.array.shape, *(1,) * (x.array.ndim - 2))))
    return out


def _folded(call: Call, name: str, **changed: Any) -> Any:
    """Lay the batch of one operand end to end along its dimension 0, and take it apart after."""
    value = call.full(call.operands[name])
    shape = value.array.shape
    if len(shape) < 2:
        raise NoRule
    rows = F.reshape(value, (shape[0] * shape[1], *shape[2:]))
    out = call.run(call.operands | {name: rows}, **changed)

    def apart(t: Tensor) -> Tensor:
        back: Tensor = F.reshape(t, (shape[0], shape[1], *t.array.shape[1:]))
        return back

    return apart(out) if isinstance(out, Tensor) else [apart(o) for o in out]


def _by_group(t: Tensor) -> Tensor:
    """Return ``(batch, N, C, *)`` as ``(N, batch · C, *)``."""
    batch, n, channels, *space = t.array.shape
    order = (1, 0, *range(2, t.array.ndim))
    rows: Tensor = F.reshape(F.permute(t, order), (n, batch * channels, *space))
    return rows


def _convolution_input(call: Call) -> Any:
    if not call.is_batched("weight"):
        return _folded(call, "grad")
    weight, groups = call.full(call.operands["weight"]), call.options["groups"] * call.batch
    shape = weight.array.shape
    rows = F.reshape(weight, (shape[0] * shape[1], *shape[2:]))
    grad = _by_group(call.full(call.operands["grad"]))
    out = call.run({"grad": grad, "weight": rows}, groups=groups)
    n, channels, *space = out.array.shape
    out = F.reshape(out, (n, call.batch, channels // call.batch, *space))
    return F.permute(out, (1, 0, *range(2, out.array.ndim)))


def _convolution_weight(call: Call) -> Any:
    """Lay the batch into the groups."""
    grad, x = (call.full(call.operands[n]) for n in ("grad", "input"))
    groups = call.options["groups"] * call.batch
    out = call.run({"grad": _by_group(grad), "input": _by_group(x)}, groups=groups)
    shape = out.array.shape
    return F.reshape(out, (call.batch, shape[0] // call.batch, *shape[1:]))


def _masked_fill(call: Call) -> Any:
    if call.is_batched("value"):
        value = call.aligned(call.operands["value"], max(call.ndim("input"), call.ndim("mask")))
        ndim = max(call.ndim("input"), call.ndim("mask"))
        value = F.to_dtype(value, call.operands["input"].array.dtype)
        parts = (call.aligned(call.operands[n], ndim) for n in ("mask", "input"))
        mask, plain = parts
        return F.where(mask, value, plain)
    return _elementwise(call)


def _diag_embed(call: Call) -> Any:
    dims = {n: _shift(call.options[n], call.ndim("input") + 1) for n in ("dim1", "dim2")}
    return call.run({"input": call.full(call.operands["input"])}, **dims)


def _solve(call: Call) -> Any:
    a, b = call.full(call.operands["A"]), call.full(call.operands["B"])
    vector = call.ndim("B") == 1
    if not call.options["left"] or (not vector and call.ndim("A") != call.ndim("B")):
        raise NoRule
    if not vector:
        return call.run({"A": a, "B": b})
    if call.ndim("A") != 2:
        raise NoRule
    return F.squeeze(call.run({"A": a, "B": F.unsqueeze(b, -1)}), -1)


def _index_select(call: Call) -> Any:
    if call.is_batched("index") or not call.ndim("input"):
        raise NoRule
    dim = _shift(call.options["dim"], call.ndim("input"))
    return call.run(call.operands | {"input": call.full(call.operands["input"])}, dim=dim)


def _pooled(call: Call) -> Any:
    if call.ndim("input") < 2:
        raise NoRule
    return _folded(call, "input")


# ---------------------------------------------------------------------- tables and indices
def _embedding(call: Call) -> Any:
    if call.is_batched("weight"):
        raise NoRule
    return _single_first(call, "input")


def _single_first(call: Call, name: str) -> Any:
    return call.run(call.operands | {name: call.full(call.operands[name])})


def _index(call: Call) -> Any:
    """Look up with one index more, which counts the batch."""
    dims = tuple(call.options["dims"])
    if list(dims) != list(range(dims[0], dims[0] + len(dims))):
        raise NoRule
    value = call.full(call.operands["input"])
    indices = call.operands["indices"]
    behind = tuple(d + 1 for d in dims)
    if not call.is_batched("indices"):
        return F.index(value, indices, behind)
    if dims[0]:
        raise NoRule
    return F.index(value, _counted(call, indices), (0, *behind))


def _counted(call: Call, indices: Any) -> list[Tensor]:
    """Return batched indices behind one that counts the batch."""
    ndim = max(t.array.ndim for t in indices)
    xp = array_namespace(indices[0].array)
    count = xp.arange(call.batch).reshape(call.batch, *(1,) * ndim)
    return [wrap(count), *(call.aligned(t, ndim) for t in indices)]


def _index_backward(call: Call) -> Any:
    dims = tuple(call.options["dims"])
    if list(dims) != list(range(dims[0], dims[0] + len(dims))):
        raise NoRule
    grad, indices = call.full(call.operands["grad"]), call.operands["indices"]
    size = (call.batch, *call.options["input_size"])
    behind = tuple(d + 1 for d in dims)
    if not call.is_batched("indices"):
        return F.index_backward(grad, indices, size, behind)
    if dims[0]:
        raise NoRule
    return F.index_backward(grad, _counted(call, indices), size, (0, *behind))


def _pick(call: Call) -> Any:
    """Take the rows of all elements at once."""
    index = call.op.operands[1].name
    whole = {n: call.full(o) for n, o in call.operands.items()}
    size = call.options.get("size")
    if not call.ndim(index):
        return call.run(whole, **({} if size is None else {"size": (call.batch, *size)}))
    shape = whole[index].array.shape
    rows = {n: F.reshape(v, (-1, *v.array.shape[2:])) for n, v in whole.items()}
    if size is not None:
        size = (shape[0] * shape[1], *size[1:])
        out = call.run(rows, size=size)
    else:
        out = call.run(rows)
    return F.reshape(out, (*shape[:2], *out.array.shape[1:]))


def _formula(call: Call) -> Any:
    """Take a fused operation apart; what only its backward on arrays reads is left zero."""
    formula: Any = call.op.formula
    known = call.options | call.operands
    asks = [n for n in inspect.signature(formula).parameters if n != "F"]
    out = formula(F=F, **{n: known[n] for n in asks})
    value = call.full(out)
    if not call.op.outputs:
        return value
    return [value, *(F.zero(value.detach()) for _ in range(len(call.op.outputs) - 1))]


def _layer_norm(call: Call) -> Any:
    first, *rest = call.op.operands
    if any(call.operands[o.name] is not None and call.is_batched(o.name) for o in rest):
        raise NoRule
    return _single_first(call, first.name)


def _dynamic(call: Call) -> Any:
    raise dynamic(call.op.name)


_ALL = _along("dim", none="all")
_DIM = _along("dim")

RULES |= {
    "elementwise": _elementwise,
    **dict.fromkeys(
        ("sum", "mean", "nansum", "prod", "var", "std", "amax", "amin", "count_nonzero", "all",
         "any", "logsumexp", "vector_norm", "norm_of_vectors"), _ALL),
    **dict.fromkeys(("argmax", "argmin"), _along("dim", none="flat")),
    **dict.fromkeys(
        ("max", "min", "median", "nanmedian", "kthvalue", "cumsum", "cumsum_from_the_end",
         "cumprod", "logcumsumexp", "cummax", "cummin", "sort", "argsort", "topk", "softmax",
         "log_softmax", "softmax_backward", "log_softmax_backward", "glu", "select", "narrow",
         "unbind", "split", "cat", "gather", "scatter_add", "scatter_src", "scatter_extreme"),
        _DIM),
    "value_selecting_reduction_backward": _sized("size", "dim"),
    **dict.fromkeys(("select_backward", "narrow_backward", "gather_backward"),
                    _sized("input_size", "dim")),
    "diagonal_backward": _sized("input_size", "dim1", "dim2"),
    "windows_backward": _sized("input_size", "dimension"),
    "transpose": _along("dim0", "dim1"),
    "diagonal": _along("dim1", "dim2"),
    "windows_view": _along("dimension"),
    "flip": _along("dims"),
    "roll": _along("dims"),
    "permute": _permute, "reshape": _reshape, "view": _reshape, "expand": _expand,
    "sum_to_size": _sum_to_size, "unsqueeze": _unsqueeze, "squeeze": _squeeze,
    "slice_view": _slice_view, "slice_backward": _slice_backward, "repeat": _repeat,
    "stack": _stack, "clone": _clone,
    **dict.fromkeys(("mT", "tril", "triu", "inv", "det", "slogdet", "cholesky", "matrix_exp",
                     "qr", "eigh", "eigvalsh", "eig", "eigvals", "factors_of_svd",
                     "singular_values", "packed_lu", "geqrf", "order_of_failure", "cofactors",
                     "pinv_by_svd", "cholesky_inverse"), _matrix),
    **dict.fromkeys(("alias", "to_dtype", "zero", "gelu", "silu", "mish", "isclose",
                     "frexp", "real", "imag", "conj", "view_dtype", "to_device",
                     "one_hot", "constant_pad_nd"), _single),
    "matmul": _matmul, "linear": _linear, "convolution": _convolution,
    "convolution_weight": _convolution_weight, "masked_fill": _masked_fill,
    "diag_embed": _diag_embed, "solve": _solve, "index_select": _index_select,
    "convolution_input": _convolution_input, "embedding": _embedding, "index": _index,
    "index_backward": _index_backward, "fused_layer_norm": _layer_norm,
    "fused_rms_norm": _layer_norm,
    **dict.fromkeys(("max_pool", "avg_pool", "avg_pool_input", "adaptive_max_pool"), _pooled),
    **dict.fromkeys(("cross_entropy_loss", "attention"), _formula),
    **dict.fromkeys(("pick", "pick_backward"), _pick),
    **dict.fromkeys(("argwhere", "nonzero"), _dynamic),
    **dict.fromkeys(("fft_c2c", "fft_r2c", "fft_c2r"), _DIM),
    **dict.fromkeys(("resample", "resample_back"), _batch_kept),
    "complex": _elementwise,
}  # fmt: skip
