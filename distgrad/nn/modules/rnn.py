"""Recurrent layers and cells."""

from __future__ import annotations

import math
import numbers
import warnings
from typing import Any

from distgrad.errors import ArgumentError, ArgumentTypeError, IndexOutOfRange, ShapeError
from distgrad.nn import init
from distgrad.nn.module import Module
from distgrad.nn.parameter import Parameter
from distgrad.nn.utils.rnn import PackedSequence
from distgrad.ops import recurrent_layers
from distgrad.ops.create import empty, zeros
from distgrad.ops.index import index_select
from distgrad.ops.shape import squeeze, unsqueeze
from distgrad.tensor import Tensor

_GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
_FUNCTIONS = {
    "LSTM": recurrent_layers.lstm,
    "GRU": recurrent_layers.gru,
    "RNN_TANH": recurrent_layers.rnn_tanh,
    "RNN_RELU": recurrent_layers.rnn_relu,
}


def _draw_uniformly(module: Any) -> None:
    """Draw all parameters uniformly from ±1/√hidden_size."""
    bound = 1.0 / math.sqrt(module.hidden_size) if module.hidden_size > 0 else 0
    for weight in module.parameters():
        init.uniform_(weight, -bound, bound)


class RNNBase(Module):
    """What recurrent layers share: parameters by name, checks, packed and padded sequences."""

    def __init__(
        self,
        mode: str,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Draw all parameters uniformly from ±1/√hidden_size.

        Args:
            mode: "LSTM", "GRU", "RNN_TANH" or "RNN_RELU".
            input_size: size of an input.
            hidden_size: size of a state.
            num_layers: layers, each fed by the outputs of the one before.
            bias: learn biases.
            batch_first: inputs and outputs are (batch, time, size).
            dropout: probability with which outputs between layers are dropped in training.
            bidirectional: run backwards in time too, and join both outputs.
            proj_size: an LSTM's outputs are projected to this size; 0: not at all.
            device: where the parameters live.
            dtype: of the parameters.
        """
        super().__init__()
        self.mode, self.input_size, self.hidden_size = mode, input_size, hidden_size
        self.num_layers, self.bias, self.batch_first = num_layers, bias, batch_first
        self.dropout: float = dropout
        self.bidirectional, self.proj_size = bidirectional, proj_size
        self._check_options()
        self._all_weights = self._make_parameters(device, dtype)
        self.reset_parameters()

    def _check_options(self) -> None:
        kind = type(self).__name__
        p = self.dropout
        if not isinstance(p, numbers.Number) or isinstance(p, bool) or not 0 <= p <= 1:
            raise ArgumentError(
                f"{kind}(dropout={p!r}): dropout should be a number in range [0, 1] representing "
                "the probability of an element being zeroed"
            )
        for name in ("hidden_size", "num_layers"):
            value = getattr(self, name)
            if not isinstance(value, int):
                raise ArgumentTypeError(
                    f"{name} should be of type int, got: {type(value).__name__}"
                )
            if value <= 0:
                raise ArgumentError(f"{kind}({name}={value}): {name} must be greater than zero")
        self._check_projection(kind)
        if p > 0 and self.num_layers == 1:
            warnings.warn(
                "dropout option adds dropout after all but last recurrent layer, so non-zero "
                f"dropout expects num_layers greater than 1, but got dropout={p} and "
                f"num_layers={self.num_layers}",
                stacklevel=4,
            )

    def _check_projection(self, kind: str) -> None:
        problem = ""
        if self.mode not in _GATES:
            problem = f"Unrecognized RNN mode: {self.mode}"
        elif self.proj_size < 0:
            problem = "proj_size should be a positive integer or zero to disable projections"
        elif self.proj_size and self.mode != "LSTM":
            problem = "proj_size argument is only supported for LSTM, not RNN or GRU"
        elif self.proj_size >= self.hidden_size:
            problem = "proj_size has to be smaller than hidden_size"
        if problem:
            raise ArgumentError(f"{kind}(proj_size={self.proj_size}): {problem}")

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def _state_size(self) -> int:
        return self.proj_size or self.hidden_size

    def _make_parameters(self, device: Any, dtype: Any) -> list[list[str]]:
        """Make the parameters and return their names for each layer and direction."""
        rows, names = _GATES[self.mode] * self.hidden_size, []
        for layer in range(self.num_layers):
            for suffix in ("", "_reverse")[: self._directions]:
                fed = self._state_size * self._directions if layer else self.input_size
                shapes: dict[str, tuple[int, ...]] = {
                    "weight_ih": (rows, fed),
                    "weight_hh": (rows, self._state_size),
                }
                if self.bias:
                    shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
                if self.proj_size:
                    shapes["weight_hr"] = (self.proj_size, self.hidden_size)
                names.append([f"{name}_l{layer}{suffix}" for name in shapes])
                for name, shape in zip(names[-1], shapes.values(), strict=True):
                    setattr(self, name, Parameter(empty(shape, device=device, dtype=dtype)))
        return names

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The parameters of each layer and direction."""
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    @property
    def _flat_weights_names(self) -> list[str]:
        return [name for names in self._all_weights for name in names]

    @property
    def _flat_weights(self) -> list[Tensor]:
        return [weight for weights in self.all_weights for weight in weights]

    def reset_parameters(self) -> None:
        """Draw the parameters anew."""
        _draw_uniformly(self)

    def flatten_parameters(self) -> None:
        """Do nothing: one matrix product serves all gates however the parameters lie."""

    # ------------------------------------------------------------------ checks
    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        """Refuse an input of another size or dtype than the parameters."""
        weight = self._flat_weights[0]
        problem, kind = "", type(self).__name__
        if input.dtype != weight.dtype:
            raise ArgumentError(
                f"{kind}({input._brief()}): RNN input dtype ({input.dtype}) does not match weight "
                f"dtype ({weight.dtype}). Convert input: input.to({weight.dtype}), or convert "
                f"model: model.to({input.dtype})"
            )
        wanted = 3 if batch_sizes is None else 2
        if input.ndim != wanted:
            problem = f"input must have {wanted} dimensions, got {input.ndim}"
        elif input.array.shape[-1] != self.input_size:
            problem = (
                "input.size(-1) must be equal to input_size. Expected "
                f"{self.input_size}, got {input.array.shape[-1]}"
            )
        if problem:
            raise ShapeError(f"{kind}({input._brief()}): {problem}")

    def get_expected_hidden_size(
        self, input: Tensor, batch_sizes: Tensor | None
    ) -> tuple[int, int, int]:
        """Return the shape of the first state for ``input``."""
        if batch_sizes is not None:
            batch = int(batch_sizes.array[0])
        else:
            batch = input.array.shape[0 if self.batch_first else 1]
        return (self.num_layers * self._directions, batch, self._state_size)

    def check_hidden_size(
        self,
        hx: Tensor,
        expected_hidden_size: tuple[int, int, int],
        msg: str = "Expected hidden size {}, got {}",
    ) -> None:
        """Refuse a first state of another shape."""
        if hx.array.shape != expected_hidden_size:
            raise ShapeError(
                f"{type(self).__name__}(): "
                + msg.format(expected_hidden_size, list(hx.array.shape))
            )

    def check_forward_args(self, input: Tensor, hidden: Any, batch_sizes: Tensor | None) -> None:
        """Refuse inputs and states that do not fit."""
        self.check_input(input, batch_sizes)
        self.check_hidden_size(hidden, self.get_expected_hidden_size(input, batch_sizes))

    # ------------------------------------------------------------------ running
    def _run(self, input: Any, states: tuple[Tensor, ...] | None) -> tuple[Any, tuple[Tensor, ...]]:
        """Return outputs and last states for any form of input."""
        if isinstance(input, PackedSequence):
            return self._run_packed(input, states)
        kind = "RNN" if self.mode.startswith("RNN") else self.mode
        if input.ndim not in (2, 3):
            raise ArgumentError(
                f"{kind}({input._brief()}): Expected input to be 2D or 3D, got {input.ndim}D "
                f"{'tensor ' if kind == 'RNN' else ''}instead"
            )
        single = input.ndim == 2
        self._check_dims(input, states)
        if single:
            input = unsqueeze(input, 0 if self.batch_first else 1)
            states = states and tuple(unsqueeze(s, 1) for s in states)
        hx = self._first_states(input, states, None)
        out, *ends = self._call(input, hx, (self.batch_first,))
        if single:
            out = squeeze(out, 0 if self.batch_first else 1)
            ends = [squeeze(s, 1) for s in ends]
        return out, tuple(ends)

    def _run_packed(
        self, input: PackedSequence, states: tuple[Tensor, ...] | None
    ) -> tuple[Any, tuple[Tensor, ...]]:
        data, sizes, order, back = input
        if states is not None and order is not None:
            states = tuple(index_select(s, 1, order) for s in states)
        hx = self._first_states(data, states, sizes)
        out, *ends = self._call(data, hx, (), sizes)
        if back is not None:
            ends = [index_select(s, 1, back) for s in ends]
        return PackedSequence(out, sizes, order, back), tuple(ends)

    def _call(
        self, input: Tensor, hx: Any, more: tuple[Any, ...], batch_sizes: Tensor | None = None
    ) -> Any:
        where = () if batch_sizes is None else (batch_sizes,)
        return _FUNCTIONS[self.mode](
            input, *where, hx, self._flat_weights, self.bias, self.num_layers,
            float(self.dropout), self.training, self.bidirectional, *more,
        )  # fmt: skip

    def _check_dims(self, input: Tensor, states: tuple[Tensor, ...] | None) -> None:
        """Refuse states that are batched where the input is not, or the other way round."""
        if states is None or all(s.ndim == input.ndim for s in states):
            return
        batched = "unbatched 2-D" if input.ndim == 2 else "batched 3-D"
        got = f"{states[0].ndim}-D tensor"
        if len(states) == 2:
            got = f"({states[0].ndim}-D, {states[1].ndim}-D) tensors"
        raise ShapeError(
            f"{type(self).__name__}({input._brief()}): For {batched} input, "
            f"{'hx and cx' if len(states) == 2 else 'hx'} should also be {input.ndim}-D but got "
            f"{got}"
        )

    def _zero_state(self, input: Tensor, shape: tuple[int, ...]) -> Tensor:
        return zeros(shape, dtype=input.dtype, device=input.device)

    def _first_states(
        self, input: Tensor, states: tuple[Tensor, ...] | None, batch_sizes: Tensor | None
    ) -> Any:
        """Return the checked first state, zeros by default."""
        self.check_input(input, batch_sizes)
        shape = self.get_expected_hidden_size(input, batch_sizes)
        hx = self._zero_state(input, shape) if states is None else states[0]
        self.check_forward_args(input, hx, batch_sizes)
        return hx

    def forward(self, input: Any, hx: Any = None) -> tuple[Any, Any]:
        """Return the outputs of the last layer at all times, and the last state of every layer.

        Args:
            input: (time, batch, size), (time, size), or a ``PackedSequence``.
            hx: the first state (layers * directions, batch, size); zeros when left out.
        """
        out, ends = self._run(input, None if hx is None else (hx,))
        return out, ends[0]

    def extra_repr(self) -> str:
        """Return the sizes and the options that are not the default."""
        s = f"{self.input_size}, {self.hidden_size}"
        defaults = {
            "proj_size": 0, "num_layers": 1, "bias": True, "batch_first": False, "dropout": 0,
            "bidirectional": False,
        }  # fmt: skip
        for name, default in defaults.items():
            value = getattr(self, name)
            if value != default:
                s += f", {name}={value}"
        return s


class RNN(RNNBase):
    """Layers of ``h = tanh(w_ih x + b_ih + w_hh h + b_hh)`` over sequences.

    Shape:
        input (L, N, input_size), first state (layers * directions, N, hidden_size) -> outputs
        (L, N, directions * hidden_size), last state; without N for a single sequence

    Example:
        >>> import distgrad as dg
        >>> outputs, last = RNN(3, 4)(dg.ones(5, 2, 3))
        >>> outputs.shape, last.shape
        (distgrad.Size([5, 2, 4]), distgrad.Size([1, 2, 4]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Make the layers; see ``RNNBase``.  ``nonlinearity`` is "tanh" or "relu"."""
        if nonlinearity not in ("tanh", "relu"):
            raise ArgumentError(
                f"RNN(nonlinearity={nonlinearity!r}): Unknown nonlinearity '{nonlinearity}'. "
                "Select from 'tanh' or 'relu'."
            )
        super().__init__(
            f"RNN_{nonlinearity.upper()}", input_size, hidden_size, num_layers, bias, batch_first,
            dropout, bidirectional, proj_size, device, dtype,
        )  # fmt: skip
        self.nonlinearity = nonlinearity


class GRU(RNNBase):
    """Layers of gated recurrent units over sequences; shapes as those of ``RNN``.

    r = σ(w_ir x + w_hr h), z = σ(w_iz x + w_hz h), n = tanh(w_in x + r (w_hn h)) with their biases,
    h = (1 - z) n + z h.

    Source: Cho et al. 2014.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Make the layers; see ``RNNBase``."""
        super().__init__(
            "GRU", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            proj_size, device, dtype,
        )  # fmt: skip


class LSTM(RNNBase):
    """Layers of long short-term memory over sequences.

    i, f, g, o = w_ih x + b_ih + w_hh h + b_hh; c = σ(f) c + σ(i) tanh(g); h = σ(o) tanh(c), and
    with ``proj_size`` h = w_hr σ(o) tanh(c).

    Shape:
        input (L, N, input_size), first state and cell (layers * directions, N, proj_size or
        hidden_size) and (layers * directions, N, hidden_size) -> outputs, (last state, last cell)

    Source: Hochreiter & Schmidhuber 1997; projections: Sak et al. 2014.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Make the layers; see ``RNNBase``."""
        super().__init__(
            "LSTM", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            proj_size, device, dtype,
        )  # fmt: skip

    def get_expected_cell_size(
        self, input: Tensor, batch_sizes: Tensor | None
    ) -> tuple[int, int, int]:
        """Return the shape of the first cell for ``input``."""
        return (*self.get_expected_hidden_size(input, batch_sizes)[:2], self.hidden_size)

    def check_forward_args(self, input: Tensor, hidden: Any, batch_sizes: Tensor | None) -> None:
        """Refuse inputs, states and cells that do not fit."""
        self.check_input(input, batch_sizes)
        shapes = (
            self.get_expected_hidden_size(input, batch_sizes),
            self.get_expected_cell_size(input, batch_sizes),
        )
        for place, (state, shape) in enumerate(zip(hidden, shapes, strict=True)):
            self.check_hidden_size(state, shape, f"Expected hidden[{place}] size {{}}, got {{}}")

    def _first_states(
        self, input: Tensor, states: tuple[Tensor, ...] | None, batch_sizes: Tensor | None
    ) -> Any:
        self.check_input(input, batch_sizes)
        if states is None:
            states = (
                self._zero_state(input, self.get_expected_hidden_size(input, batch_sizes)),
                self._zero_state(input, self.get_expected_cell_size(input, batch_sizes)),
            )
        self.check_forward_args(input, states, batch_sizes)
        return states

    def forward(
        self, input: Any, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Any, tuple[Tensor, Tensor]]:
        """Return the outputs of the last layer at all times, and last state and cell of all layers.

        Args:
            input: (time, batch, size), (time, size), or a ``PackedSequence``.
            hx: the first state and cell; zeros when left out.
        """
        if hx is not None and (isinstance(hx, Tensor) or len(hx) != 2):
            raise IndexOutOfRange("LSTM(hx): expected the pair of the first state and cell")
        out, ends = self._run(input, None if hx is None else tuple(hx))
        return out, (ends[0], ends[1])


# ---------------------------------------------------------------------- single steps
class RNNCellBase(Module):
    """What the cells share: parameters of one step."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    nonlinearity: str

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool,
        num_chunks: int,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Draw all parameters uniformly from ±1/√hidden_size."""
        super().__init__()
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, bias
        rows = num_chunks * hidden_size

        def new(*sizes: int) -> Parameter:
            return Parameter(empty(sizes, device=device, dtype=dtype))

        self.weight_ih, self.weight_hh = new(rows, input_size), new(rows, hidden_size)
        for name in ("bias_ih", "bias_hh"):
            self.register_parameter(name, new(rows) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the parameters anew."""
        _draw_uniformly(self)

    def extra_repr(self) -> str:
        """Return the sizes and the options that are not the default."""
        s = f"{self.input_size}, {self.hidden_size}"
        if self.bias is not True:
            s += f", bias={self.bias}"
        kind = getattr(self, "nonlinearity", "tanh")
        return s if kind == "tanh" else f"{s}, nonlinearity={kind}"

    def _batch(self, input: Tensor, states: tuple[tuple[str, Tensor], ...]) -> None:
        """Refuse an input or states of other dimensions or sizes."""
        kind = type(self).__name__
        for name, value in (("input", input), *states):
            if value.ndim not in (1, 2):
                raise ArgumentError(
                    f"{kind}({value._brief()}): Expected {name} to be 1D or 2D, got "
                    f"{value.ndim}D instead"
                )
        size = input.array.shape[-1]
        if size != self.input_size:
            raise ShapeError(
                f"{kind}({input._brief()}): input has inconsistent input_size: got {size} "
                f"expected {self.input_size}"
            )
        for place, (_, state) in enumerate(states):
            if state.array.shape[-1] != self.hidden_size:
                raise ShapeError(
                    f"{kind}({state._brief()}): hidden{place} has inconsistent hidden_size: got "
                    f"{state.array.shape[-1]}, expected {self.hidden_size}"
                )

    def _zeros(self, input: Tensor) -> Tensor:
        shape = (*input.array.shape[:-1], self.hidden_size)
        return zeros(shape, dtype=input.dtype, device=input.device)

    @property
    def _weights(self) -> tuple[Tensor | None, ...]:
        return self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh


class RNNCell(RNNCellBase):
    """One step ``h = tanh(w_ih x + b_ih + w_hh h + b_hh)``.

    Shape:
        input (N, input_size), state (N, hidden_size) -> (N, hidden_size); or without N
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Make the parameters; ``nonlinearity`` is "tanh" or "relu"."""
        super().__init__(input_size, hidden_size, bias, 1, device, dtype)
        self.nonlinearity = nonlinearity

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Return the next state; ``hx`` is zeros when left out."""
        self._batch(input, () if hx is None else (("hidden", hx),))
        if self.nonlinearity not in ("tanh", "relu"):
            raise ShapeError(f"RNNCell(): Unknown nonlinearity: {self.nonlinearity}")
        kind = self.nonlinearity
        step = recurrent_layers.rnn_tanh_cell if kind == "tanh" else recurrent_layers.rnn_relu_cell
        return _single_step(step, self, input, hx)


class GRUCell(RNNCellBase):
    """One step of gated recurrent units; see ``GRU`` and, for shapes, ``RNNCell``."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Make the parameters."""
        super().__init__(input_size, hidden_size, bias, 3, device, dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Return the next state; ``hx`` is zeros when left out."""
        self._batch(input, () if hx is None else (("hidden", hx),))
        return _single_step(recurrent_layers.gru_cell, self, input, hx)


def _single_step(step: Any, cell: Any, input: Tensor, hx: Tensor | None) -> Tensor:
    state = cell._zeros(input) if hx is None else hx
    if input.ndim == 2:
        out: Tensor = step(input, state, *cell._weights)
        return out
    return squeeze(step(unsqueeze(input, 0), unsqueeze(state, 0), *cell._weights), 0)


class LSTMCell(RNNCellBase):
    """One step of long short-term memory; see ``LSTM``.

    Shape:
        input (N, input_size), (state, cell) each (N, hidden_size) -> (state, cell); or without N
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Make the parameters."""
        super().__init__(input_size, hidden_size, bias, 4, device, dtype)

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the next state and cell; ``hx`` is zeros when left out."""
        given = () if hx is None else (("hx[0]", hx[0]), ("hx[1]", hx[1]))
        self._batch(input, given)
        h, c = (self._zeros(input), self._zeros(input)) if hx is None else hx
        if input.ndim == 2:
            return recurrent_layers.lstm_cell(input, (h, c), *self._weights)  # type: ignore[arg-type]
        x, h, c = (unsqueeze(t, 0) for t in (input, h, c))
        h, c = recurrent_layers.lstm_cell(x, (h, c), *self._weights)  # type: ignore[arg-type]
        return squeeze(h, 0), squeeze(c, 0)
