"""Stacks of recurrent layers and single steps, under PyTorch's names; see Note [Recurrence]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from distgrad.autograd.declare import recover
from distgrad.errors import ArgumentError, DistgradError, ShapeError
from distgrad.ops.dropout import dropout as drop
from distgrad.ops.elementwise import add
from distgrad.ops.join import cat, stack, unbind
from distgrad.ops.matmul import linear
from distgrad.ops.recurrent import gru_sequence, lstm_sequence, rnn_sequence
from distgrad.ops.shape import reshape, transpose
from distgrad.tensor import Tensor
from distgrad.typing import Shape

__all__ = [
    "gru",
    "gru_cell",
    "lstm",
    "lstm_cell",
    "rnn_relu",
    "rnn_relu_cell",
    "rnn_tanh",
    "rnn_tanh_cell",
]

Tensors = Sequence[Tensor]


class _Weights(NamedTuple):
    """The parameters of one layer and direction."""

    ih: Tensor
    hh: Tensor
    bias_ih: Tensor | None = None
    bias_hh: Tensor | None = None
    projection: Tensor | None = None


class _Stack(NamedTuple):
    """The options of a stack of layers."""

    mode: str
    layers: int
    dropout: float
    train: bool
    bidirectional: bool


def _run(
    mode: str, x: Tensor, state: Tensors, by: _Weights, batch_sizes: Shape, reverse: bool
) -> tuple[Tensor, Tensors]:
    """Return the outputs of one layer and direction, and its last states."""
    if mode == "gru":
        gates = linear(x, by.ih, by.bias_ih)
        found = gru_sequence(gates, state[0], by.hh, by.bias_hh, batch_sizes, reverse)
        return found.output, (found.last,)
    bias = by.bias_ih
    if bias is not None and by.bias_hh is not None:
        bias = add(bias, by.bias_hh)
    gates = linear(x, by.ih, bias)
    if mode == "lstm":
        hx, cx = state
        found = lstm_sequence(gates, hx, cx, by.hh, by.projection, batch_sizes, reverse)
        return found.output, (found.last, found.last_cell)
    kind = mode.removeprefix("rnn_")
    found = rnn_sequence(gates, state[0], by.hh, batch_sizes, reverse, kind)
    return found.output, (found.last,)


def _weights(params: Tensors, has_biases: bool, sets: int) -> list[_Weights]:
    """Return the flat list of parameters cut into those of each layer and direction."""
    each = len(params) // sets if sets else 0
    least = 4 if has_biases else 2
    if not sets or len(params) != each * sets or each not in (least, least + 1):
        raise ShapeError(
            f"expected {least} parameters for each of {sets} layers and directions, got "
            f"{len(params)}"
        )
    made = []
    for start in range(0, len(params), each):
        own = params[start : start + each]
        bias_ih, bias_hh = own[2:4] if has_biases else (None, None)
        projection = own[-1] if each > least else None
        made.append(_Weights(own[0], own[1], bias_ih, bias_hh, projection))
    return made


def _stacked(
    x: Tensor, hx: Tensors, params: Tensors, has_biases: bool, how: _Stack, batch_sizes: Shape
) -> tuple[Tensor, ...]:
    """Return packed outputs of the last layer, and the last states of all."""
    directions = 2 if how.bidirectional else 1
    sets = _weights(params, has_biases, how.layers * directions)
    if any(h.ndim != 3 or h.array.shape[0] != len(sets) for h in hx):
        raise ShapeError(
            f"expected states of ({len(sets)}, batch, size), got "
            f"{', '.join(str(h.array.shape) for h in hx)}"
        )
    states = list(zip(*(unbind(h, 0) for h in hx), strict=True))
    ends: list[Tensors] = []
    for layer in range(how.layers):
        if layer and how.dropout and how.train:
            x = drop(x, how.dropout, True)
        outs = []
        for k in range(directions):
            place = layer * directions + k
            out, end = _run(how.mode, x, states[place], sets[place], batch_sizes, k == 1)
            outs.append(out)
            ends.append(end)
        x = cat(outs, 1) if directions == 2 else outs[0]
    return (x, *(stack(list(each), 0) for each in zip(*ends, strict=True)))


def _padded(
    x: Tensor, hx: Tensors, params: Tensors, has_biases: bool, how: _Stack, batch_first: bool
) -> tuple[Tensor, ...]:
    """Run sequences of one length, (time, batch, size) or with ``batch_first`` the batch first."""
    if x.ndim != 3:
        raise ShapeError(f"expected an input of 3 dimensions, got {x.ndim}")
    if batch_first:
        x = transpose(x, 0, 1)
    length, batch, size = x.array.shape
    if not length:
        raise ShapeError("Expected sequence length to be larger than 0 in RNN")
    rows = reshape(x, (length * batch, size))
    out, *ends = _stacked(rows, hx, params, has_biases, how, (batch,) * length)
    out = reshape(out, (length, batch, out.array.shape[-1]))
    return (transpose(out, 0, 1) if batch_first else out, *ends)


def _sizes(batch_sizes: Tensor) -> Shape:
    sizes = tuple(int(n) for n in batch_sizes.tolist())
    if not sizes or sizes[-1] < 1 or list(sizes) != sorted(sizes, reverse=True):
        raise ArgumentError("batch_sizes must be positive and not increase; pack the sequences")
    return sizes


def _dispatched(
    mode: str, input: Tensor, second: Any, third: Any, has_biases: Any, rest: tuple[Any, ...]
) -> Any:
    """Read PyTorch's two forms: (input, hx, params, …) and (data, batch_sizes, hx, params, …)."""
    name, states = mode, 2 if mode == "lstm" else 1
    packed = isinstance(third, Tensor) if states == 1 else isinstance(second, Tensor)
    if packed:
        hx, params, flag, *more = third, has_biases, *rest
    else:
        hx, params, flag, *more = second, third, has_biases, *rest
    given = tuple(hx) if states == 2 else (hx,)
    how = _Stack(mode, more[0], more[1], more[2], more[3])
    try:
        if len(given) != states:
            raise ShapeError("lstm expects two hidden states")
        if packed:
            return _stacked(input, given, params, flag, how, _sizes(second))
        return _padded(input, given, params, flag, how, bool(more[4]) if more[4:] else False)
    except DistgradError as error:
        return recover(name, error, {"input": input}, {"num_layers": more[0]})


# ---------------------------------------------------------------------- stacks
def lstm(input: Tensor, hx: Any, params: Any, has_biases: Any, *rest: Any) -> Any:
    """Return outputs, last states and last cells of stacked LSTM layers, as ``nn.LSTM`` runs them.

    Args:
        input: ``(time, batch, size)``; or packed rows, followed by ``batch_sizes``.
        hx: the first states and cells, each ``(layers * directions, batch, size)``.
        params: weight_ih, weight_hh, bias_ih, bias_hh, weight_hr of each layer and direction.
        has_biases: whether there are biases among them.
        rest: num_layers, dropout, train, bidirectional, and batch_first where it is not packed.
    """
    return _dispatched("lstm", input, hx, params, has_biases, rest)


def gru(input: Tensor, hx: Any, params: Any, has_biases: Any, *rest: Any) -> Any:
    """Return outputs and last states of stacked GRU layers; arguments as those of ``lstm``."""
    return _dispatched("gru", input, hx, params, has_biases, rest)


def rnn_tanh(input: Tensor, hx: Any, params: Any, has_biases: Any, *rest: Any) -> Any:
    """Return outputs and last states of stacked layers with tanh; arguments as for ``lstm``."""
    return _dispatched("rnn_tanh", input, hx, params, has_biases, rest)


def rnn_relu(input: Tensor, hx: Any, params: Any, has_biases: Any, *rest: Any) -> Any:
    """Return outputs and last states of stacked layers with relu; arguments as for ``lstm``."""
    return _dispatched("rnn_relu", input, hx, params, has_biases, rest)


# ---------------------------------------------------------------------- steps
def _step(name: str, mode: str, input: Tensor, state: Tensors, by: _Weights) -> Tensors:
    """Return the states after one step of a batch."""
    try:
        if input.ndim != 2 or any(s.ndim != 2 for s in state):
            raise ShapeError(f"expected an input and states of 2 dimensions, got {input.ndim}")
        rows = input.array.shape[0]
        if state[0].array.shape[0] != rows:
            raise ShapeError(
                f"Input batch size {rows} doesn't match hidden0 batch size "
                f"{state[0].array.shape[0]}"
            )
        out, ends = _run(mode, input, state, by, (rows,), False)
        return (out, *ends[1:])
    except DistgradError as error:
        if error.placed:
            raise
        operands = {"input": input, "hx": state[0]}
        return recover(name, error, operands, {})  # type: ignore[no-any-return]


def lstm_cell(
    input: Tensor,
    hx: Tensors,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return state and cell of an LSTM after one step: ``(N, size)`` and ``hx`` = (state, cell)."""
    if len(hx) != 2:
        recover(
            "lstm_cell", ShapeError("lstm_cell expects two hidden states"), {"input": input}, {}
        )
    h, c = _step("lstm_cell", "lstm", input, tuple(hx), _Weights(w_ih, w_hh, b_ih, b_hh))
    return h, c


def gru_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    """Return the state of a GRU after one step of ``input`` ``(N, size)`` from ``hx``."""
    return _step("gru_cell", "gru", input, (hx,), _Weights(w_ih, w_hh, b_ih, b_hh))[0]


def rnn_tanh_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    """Return ``tanh(w_ih input + b_ih + w_hh hx + b_hh)``."""
    weights = _Weights(w_ih, w_hh, b_ih, b_hh)
    return _step("rnn_tanh_cell", "rnn_tanh", input, (hx,), weights)[0]


def rnn_relu_cell(
    input: Tensor,
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    """Return ``relu(w_ih input + b_ih + w_hh hx + b_hh)``."""
    weights = _Weights(w_ih, w_hh, b_ih, b_hh)
    return _step("rnn_relu_cell", "rnn_relu", input, (hx,), weights)[0]
