"""Recurrent layers: one operation runs a whole sequence.

Note [Recurrence]
    The inputs' part of all gates is one matrix product, made before.  What is left is the loop over
    time, one operation for every layer and direction: its graph has one node, and the gradient of
    the weight is one matrix product over all steps.

    Sequences lie packed: the rows of step t follow those of step t - 1, ``batch_sizes[t]`` of them,
    the longest sequences first.  A step changes the first rows of the state and leaves the others.
    So the state of a sequence that has ended stays, and backwards in time, one that has not begun
    has its first state still: padding, packing and both directions are one loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from distgrad.autograd.declare import op
from distgrad.autograd.samples import case, real
from distgrad.errors import ShapeError
from distgrad.tensor import Tensor
from distgrad.typing import Array, Namespace, Shape

__all__: list[str] = []

_Span = tuple[int, int, int]


def _spans(batch_sizes: Shape, reverse: bool) -> list[_Span]:
    """Return first row, end and number of rows of each step, in the order of the walk."""
    spans, start = [], 0
    for size in batch_sizes:
        spans.append((start, start + size, size))
        start += size
    return spans[::-1] if reverse else spans


def _check(input: Array, hx: Array, weight: Array, batch_sizes: Shape, gates: int) -> None:
    """Refuse sizes that do not fit: ``weight`` has ``gates`` blocks of rows."""
    rows, state = sum(batch_sizes), hx.shape[-1]
    if input.shape[0] != rows or max(batch_sizes, default=0) > hx.shape[0]:
        raise ShapeError(
            f"batch_sizes count {rows} rows, at most {max(batch_sizes, default=0)} at once, but "
            f"input has {input.shape[0]} and the state {hx.shape[0]}"
        )
    if weight.shape[-1] != state or input.shape[1] != weight.shape[0] or weight.shape[0] % gates:
        raise ShapeError(
            f"expected weight ({input.shape[1]}, {state}) for {gates} gates, got {weight.shape}"
        )


def _before(xp: Namespace, first: Array, states: Array, batch_sizes: Shape, reverse: bool) -> Array:
    """Return the state before each step, packed as ``states``, the states after."""
    before, state = xp.empty_like(states), xp.copy(first)
    for start, end, rows in _spans(batch_sizes, reverse):
        before[start:end] = state[:rows]
        state[:rows] = states[start:end]
    return before


def _halves(xp: Namespace, sigmoids: tuple[bool, ...], size: int, dtype: Any) -> Array:
    """Return 1/2 for the gates that are sigmoids, 1 for the others: σ(x) = tanh(x/2)/2 + 1/2.

    So one tanh serves all gates of a step.
    """
    scale = xp.ones(len(sigmoids) * size, dtype)
    for place, halved in enumerate(sigmoids):
        if halved:
            scale[place * size : (place + 1) * size] = 0.5
    return scale


def _walk(
    F: Any, state: tuple[Any, ...], batch_sizes: Shape, reverse: bool, step: Callable[..., Any]
) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Return outputs and states step by step, for the formulas: ``step(span, *state rows)``."""
    whole = state[0].shape[0]
    for span in _spans(batch_sizes, reverse):
        rows = span[2]
        new = step(span, *(F.narrow(s, 0, 0, rows) for s in state))
        rest = [F.narrow(s, 0, rows, whole - rows) for s in state]
        state = tuple(
            F.cat([a, b], 0) if rows < whole else a for a, b in zip(new, rest, strict=True)
        )
        yield new[0], state


def _gathered(F: Any, steps: Iterator[Any], reverse: bool) -> tuple[Any, ...]:
    """Return the outputs in the order of time, and the last states."""
    outs, state = [], ()
    for out, now in steps:
        outs.append(out)
        state = now
    return (F.cat(outs[::-1] if reverse else outs, 0), *state)


# ---------------------------------------------------------------------- tanh and relu
def _rnn_formula(
    F: Any, input: Any, hx: Any, weight: Any, batch_sizes: Shape, reverse: bool, nonlinearity: str
) -> Any:
    turned, bend = F.mT(weight), F.tanh if nonlinearity == "tanh" else F.relu

    def step(span: _Span, h: Any) -> tuple[Any]:
        return (bend(F.narrow(input, 0, span[0], span[2]) + F.matmul(h, turned)),)

    return _gathered(F, _walk(F, (hx,), batch_sizes, reverse, step), reverse)


def _rnn_backward(
    xp: Namespace, g: tuple[Array, Array], needs: tuple[bool, ...], hx: Array, weight: Array,
    batch_sizes: Shape, reverse: bool, nonlinearity: str, output: Array,
) -> tuple[Array | None, ...]:  # fmt: skip
    slope = 1 - output * output if nonlinearity == "tanh" else xp.astype(output > 0, output.dtype)
    carried = xp.copy(g[1])
    for start, end, rows in reversed(_spans(batch_sizes, reverse)):
        now = carried[:rows]
        now += g[0][start:end]
        slope[start:end] *= now
        xp.matmul(slope[start:end], weight, out=now)
    before = _before(xp, hx, output, batch_sizes, reverse) if needs[2] else None
    d_weight = None if before is None else xp.matmul(slope.T, before)
    return slope, carried, d_weight


_PACKED = (3, 2, 1)
_ROWS, _STATE = real(6, 2), real(3, 2)


@op(
    samples=[
        case(_ROWS, _STATE, real(2, 2), batch_sizes=_PACKED, reverse=False, nonlinearity="tanh"),
        case(_ROWS, _STATE, real(2, 2), batch_sizes=_PACKED, reverse=True, nonlinearity="relu"),
        case(_ROWS, _STATE, real(2, 2), batch_sizes=(3, 3), reverse=True, nonlinearity="tanh"),
    ],
    outputs=("output", "last"),
    method=False,
    reference="none",
    formula=_rnn_formula,
    d_all=_rnn_backward,
)
def rnn_sequence(
    xp: Namespace,
    input: Tensor,
    hx: Tensor,
    weight: Tensor,
    batch_sizes: Shape,
    reverse: bool = False,
    nonlinearity: str = "tanh",
) -> Any:
    """Return ``h = nonlinearity(input[t] + weight h)`` of all steps, and the last state.

    Shape:
        input (sum of batch_sizes, H), hx (N, H), weight (H, H) -> output as input, last as hx
    """
    _check(input, hx, weight, batch_sizes, 1)
    output, state, turned = xp.copy(input), xp.copy(hx), weight.T
    for start, end, rows in _spans(batch_sizes, reverse):
        now = output[start:end]
        xp.gemm(state[:rows], turned, None, now, True)
        if nonlinearity == "tanh":
            xp.tanh(now, out=now)
        else:
            xp.maximum(now, 0, out=now)
        state[:rows] = now
    return output, state


# ---------------------------------------------------------------------- LSTM
def _lstm_formula(
    F: Any, input: Any, hx: Any, cx: Any, weight: Any, projection: Any, batch_sizes: Shape,
    reverse: bool,
) -> Any:  # fmt: skip
    turned, size = F.mT(weight), cx.shape[-1]

    def step(span: _Span, h: Any, c: Any) -> tuple[Any, Any]:
        gates = F.narrow(input, 0, span[0], span[2]) + F.matmul(h, turned)
        i, f, n, o = (F.narrow(gates, 1, k * size, size) for k in range(4))
        c = F.sigmoid(f) * c + F.sigmoid(i) * F.tanh(n)
        h = F.sigmoid(o) * F.tanh(c)
        return h if projection is None else F.matmul(h, F.mT(projection)), c

    return _gathered(F, _walk(F, (hx, cx), batch_sizes, reverse, step), reverse)


def _lstm_factors(xp: Namespace, gates: Array, before: Array, bent: Array) -> tuple[Array, Array]:
    """Return by what a cell's gradient is multiplied for gates i, f, n, and an output's for o.

    The second result is what an output's gradient adds to the cell's.
    """
    size = before.shape[-1]
    factors = gates * (1 - gates)
    i, _, n, o = (gates[:, k * size : (k + 1) * size] for k in range(4))
    factors[:, :size] *= n
    factors[:, size : 2 * size] *= before
    factors[:, 2 * size : 3 * size] = i * (1 - n * n)
    factors[:, 3 * size :] *= bent
    return factors, o * (1 - bent * bent)


def _lstm_backward(
    xp: Namespace, g: tuple[Array, Array, Array], needs: tuple[bool, ...], hx: Array, cx: Array,
    weight: Array, projection: Array | None, batch_sizes: Shape, reverse: bool, output: Array,
    gates: Array, cells: Array,
) -> tuple[Array | None, ...]:  # fmt: skip
    """See Note [Recurrence]: all that does not depend on later steps is made for all at once."""
    size, bent = cx.shape[-1], xp.tanh(cells)
    before = _before(xp, cx, cells, batch_sizes, reverse)
    factors, through = _lstm_factors(xp, gates, before, bent)
    d_h, d_c = xp.copy(g[1]), xp.copy(g[2])
    d_out = xp.copy(g[0])
    for start, end, rows in reversed(_spans(batch_sizes, reverse)):
        now = d_out[start:end]
        now += d_h[:rows]
        d_m = now if projection is None else xp.matmul(now, projection)
        cell = d_c[:rows]
        cell += d_m * through[start:end]
        part = factors[start:end].reshape(rows, 4, size)
        part[:, :3] *= cell[:, None]
        part[:, 3] *= d_m
        xp.matmul(factors[start:end], weight, out=d_h[:rows])
        cell *= gates[start:end, size : 2 * size]
    d_weight = d_projection = None
    if needs[3]:
        d_weight = xp.matmul(factors.T, _before(xp, hx, output, batch_sizes, reverse))
    if projection is not None and needs[4]:
        d_projection = xp.matmul(d_out.T, gates[:, 3 * size :] * bent)
    return factors, d_h, d_c, d_weight, d_projection


@op(
    samples=[
        case(real(6, 8), _STATE, _STATE, real(8, 2), None, batch_sizes=_PACKED, reverse=False),
        case(real(6, 8), _STATE, _STATE, real(8, 2), None, batch_sizes=(3, 3), reverse=True),
        case(real(6, 12), _STATE, real(3, 3), real(12, 2), real(2, 3), batch_sizes=_PACKED,
             reverse=True),
    ],
    outputs=("output", "last", "last_cell", "gates!", "cells!"),
    method=False,
    reference="none",
    formula=_lstm_formula,
    d_all=_lstm_backward,
)  # fmt: skip
def lstm_sequence(
    xp: Namespace,
    input: Tensor,
    hx: Tensor,
    cx: Tensor,
    weight: Tensor,
    projection: Tensor | None,
    batch_sizes: Shape,
    reverse: bool = False,
) -> Any:
    """Return outputs, last state and last cell of a long short-term memory, and its gates.

    With i, f, n, o = input[t] + weight h: c = σ(f) c + σ(i) tanh(n), h = σ(o) tanh(c), and with
    a projection, h = projection σ(o) tanh(c).

    Shape:
        input (sum of batch_sizes, 4H), hx (N, P), cx (N, H), weight (4H, P), projection (P, H)
    """
    _check(input, hx, weight, batch_sizes, 4)
    size = cx.shape[-1]
    scale = _halves(xp, (True, True, False, True), size, input.dtype)
    gates, turned, h, c = input * scale, (weight * scale[:, None]).T, xp.copy(hx), xp.copy(cx)
    shift = 1 - scale
    cells = xp.empty((len(gates), size), gates.dtype)
    output = xp.empty((len(gates), h.shape[-1]), gates.dtype)
    for start, end, rows in _spans(batch_sizes, reverse):
        now, cell, out = gates[start:end], cells[start:end], output[start:end]
        xp.gemm(h[:rows], turned, None, now, True)
        xp.tanh(now, out=now)
        now *= scale
        now += shift
        xp.multiply(now[:, size : 2 * size], c[:rows], out=cell)
        cell += now[:, :size] * now[:, 2 * size : 3 * size]
        bent = xp.tanh(cell)
        bent *= now[:, 3 * size :]
        out[...] = bent if projection is None else xp.matmul(bent, projection.T)
        c[:rows], h[:rows] = cell, out
    return output, h, c, gates, cells


# ---------------------------------------------------------------------- GRU
def _gru_formula(
    F: Any, input: Any, hx: Any, weight: Any, bias: Any, batch_sizes: Shape, reverse: bool
) -> Any:
    size = hx.shape[-1]

    def step(span: _Span, h: Any) -> tuple[Any]:
        own = F.linear(h, weight, bias)
        x = F.narrow(input, 0, span[0], span[2])
        both = F.sigmoid(F.narrow(x, 1, 0, 2 * size) + F.narrow(own, 1, 0, 2 * size))
        r, z = F.narrow(both, 1, 0, size), F.narrow(both, 1, size, size)
        n = F.tanh(F.narrow(x, 1, 2 * size, size) + r * F.narrow(own, 1, 2 * size, size))
        return (n + z * (h - n),)

    return _gathered(F, _walk(F, (hx,), batch_sizes, reverse, step), reverse)


def _gru_backward(
    xp: Namespace, g: tuple[Array, Array], needs: tuple[bool, ...], hx: Array, weight: Array,
    bias: Array | None, batch_sizes: Shape, reverse: bool, output: Array, gates: Array,
    fresh: Array,
) -> tuple[Array | None, ...]:  # fmt: skip
    size = hx.shape[-1]
    before = _before(xp, hx, output, batch_sizes, reverse)
    r, z, n = (gates[:, k * size : (k + 1) * size] for k in range(3))
    d_n = (1 - z) * (1 - n * n)
    d_input = gates * (1 - gates)  # factors of the state's gradient, for r, z, n
    d_input[:, :size] *= fresh * d_n
    d_input[:, size : 2 * size] *= before - n
    d_input[:, 2 * size :] = d_n
    d_own = xp.copy(d_input)  # the same for the state's part of the gates
    d_own[:, 2 * size :] *= r
    carried = xp.copy(g[1])
    for start, end, rows in reversed(_spans(batch_sizes, reverse)):
        now = carried[:rows]
        now += g[0][start:end]
        for part in (d_input[start:end], d_own[start:end]):
            blocks = part.reshape(rows, 3, size)
            blocks *= now[:, None]
        now *= z[start:end]
        xp.gemm(d_own[start:end], weight, None, now, True)
    d_weight = xp.matmul(d_own.T, before) if needs[2] else None
    d_bias = xp.add.reduce(d_own, axis=0) if bias is not None and needs[3] else None
    return d_input, carried, d_weight, d_bias


@op(
    samples=[
        case(real(6, 6), _STATE, real(6, 2), real(6), batch_sizes=_PACKED, reverse=False),
        case(real(6, 6), _STATE, real(6, 2), None, batch_sizes=(3, 3), reverse=False),
        case(real(6, 6), _STATE, real(6, 2), real(6), batch_sizes=_PACKED, reverse=True),
    ],
    outputs=("output", "last", "gates!", "fresh!"),
    method=False,
    reference="none",
    formula=_gru_formula,
    d_all=_gru_backward,
)
def gru_sequence(
    xp: Namespace,
    input: Tensor,
    hx: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    batch_sizes: Shape,
    reverse: bool = False,
) -> Any:
    """Return outputs and last state of gated recurrent units, and their gates.

    With x_r, x_z, x_n = input[t] and u_r, u_z, u_n = weight h + bias: r = σ(x_r + u_r),
    z = σ(x_z + u_z), n = tanh(x_n + r u_n), h = (1 - z) n + z h.

    Shape:
        input (sum of batch_sizes, 3H), hx (N, H), weight (3H, H), bias (3H)
    """
    _check(input, hx, weight, batch_sizes, 3)
    size = hx.shape[-1]
    scale = _halves(xp, (True, True, False), size, input.dtype)
    gates, turned, h = input * scale, (weight * scale[:, None]).T, xp.copy(hx)
    offset = None if bias is None else bias * scale
    output, fresh = (xp.empty((len(gates), size), gates.dtype) for _ in range(2))
    for start, end, rows in _spans(batch_sizes, reverse):
        now, state, out = gates[start:end], h[:rows], output[start:end]
        own = xp.gemm(state, turned, offset)
        fresh[start:end] = own[:, 2 * size :]
        both, n = now[:, : 2 * size], now[:, 2 * size :]
        both += own[:, : 2 * size]
        xp.tanh(both, out=both)
        both *= 0.5
        both += 0.5
        n += now[:, :size] * fresh[start:end]
        xp.tanh(n, out=n)
        xp.subtract(state, n, out=out)
        out *= now[:, size : 2 * size]
        out += n
        state[...] = out
    return output, h, gates, fresh
