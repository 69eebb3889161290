"""Recurrent layers and packed sequences: forms of input, graphs, refusals."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import distgrad as dg
from distgrad import nn
from distgrad.nn.utils import rnn

ROWS = np.arange(24.0).reshape(4, 2, 3)


def nodes(out: Any) -> set[Any]:
    """Return all nodes of the graph behind ``out``."""
    seen, todo = set(), [out.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [n for n, _ in node.next_functions]
    return seen


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_the_graph_does_not_grow_with_time(name: str) -> None:
    layer = getattr(nn, name)(3, 4, 2, bidirectional=True)
    short, long = (len(nodes(layer(dg.ones(n, 2, 3))[0])) for n in (2, 50))
    assert short == long < 60


def test_packing_leaves_out_padding_and_comes_back() -> None:
    x = dg.tensor(ROWS, requires_grad=True)
    packed = rnn.pack_padded_sequence(x, [2, 4], enforce_sorted=False)
    assert packed.batch_sizes.tolist() == [2, 2, 1, 1]
    assert packed.sorted_indices.tolist() == packed.unsorted_indices.tolist() == [1, 0]
    padded, lengths = rnn.pad_packed_sequence(packed, padding_value=-1.0, total_length=5)
    assert lengths.tolist() == [2, 4] and padded.shape == (5, 2, 3)
    assert padded[2:, 0].unique().tolist() == [-1.0]
    padded.sum().backward()
    assert x.grad[:, 0].sum(-1).tolist() == [3, 3, 0, 0] and x.grad[:, 1].min() == 1
    back = rnn.unpack_sequence(packed)
    assert [tuple(s.shape) for s in back] == [(2, 3), (4, 3)]
    again = rnn.pack_sequence(back, enforce_sorted=False)
    np.testing.assert_array_equal(again.data.detach().numpy(), packed.data.detach().numpy())


def test_padding_on_either_side() -> None:
    many = [dg.tensor([1, 2, 3]), dg.tensor([4])]
    assert rnn.pad_sequence(many).tolist() == [[1, 4], [2, 0], [3, 0]]
    left = rnn.pad_sequence(many, batch_first=True, padding_value=-1, padding_side="left")
    assert left.tolist() == [[1, 2, 3], [-1, -1, 4]]
    lengths = dg.tensor([3, 1])
    assert [s.tolist() for s in rnn.unpad_sequence(rnn.pad_sequence(many), lengths)] == [
        [1, 2, 3],
        [4],
    ]


def test_a_packed_sequence_converts() -> None:
    packed = rnn.pack_sequence([dg.tensor([1.5, 2.0]), dg.tensor([3.0])])
    assert packed.double().data.dtype == dg.float64 and packed.long().data.tolist() == [1, 3, 2]
    assert packed.cpu() is packed and not packed.is_cuda
    assert isinstance(packed.half(), rnn.PackedSequence)


def test_a_cell_makes_the_steps_of_a_layer() -> None:
    layer, cell = nn.LSTM(3, 4), nn.LSTMCell(3, 4)
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        getattr(cell, name).data = getattr(layer, name + "_l0").data
    x, state = dg.ones(5, 2, 3), None
    for step in x:
        state = cell(step, state)
    out, (h, c) = layer(x)
    for a, b in ((state[0], h[0]), (state[1], c[0]), (out[-1], h[0])):
        np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), rtol=1e-6)


def test_second_derivatives_pass_through_a_layer() -> None:
    layer = nn.GRU(2, 3).double()
    x = dg.ones(3, 1, 2, dtype=dg.float64, requires_grad=True)
    (g,) = dg.autograd.grad(layer(x)[0].sum(), x, create_graph=True)
    g.square().sum().backward()
    assert layer.weight_hh_l0.grad.abs().sum() > 0


z = dg.zeros
BAD: list[tuple[type[Exception], str, Any]] = [
    (RuntimeError, "input.size\\(-1\\) must be equal to input_size. Expected 3, got 7",
     lambda: nn.LSTM(3, 4)(z(5, 2, 7))),
    (ValueError, "LSTM.*Expected input to be 2D or 3D, got 1D", lambda: nn.LSTM(3, 4)(z(5))),
    (ValueError, "RNN.*got 1D tensor instead", lambda: nn.RNN(3, 4)(z(5))),
    (RuntimeError, "Expected hidden size \\(1, 2, 4\\), got \\[1, 3, 4\\]",
     lambda: nn.GRU(3, 4)(z(5, 2, 3), z(1, 3, 4))),
    (RuntimeError, "batched 3-D input, hx should also be 3-D but got 2-D tensor",
     lambda: nn.GRU(3, 4)(z(5, 2, 3), z(1, 4))),
    (RuntimeError, "unbatched 2-D input, hx and cx should also be 2-D but got \\(3-D, 3-D\\)",
     lambda: nn.LSTM(3, 4)(z(5, 3), (z(1, 2, 4), z(1, 2, 4)))),
    (RuntimeError, "Expected hidden\\[1\\] size \\(1, 2, 4\\), got \\[1, 2, 5\\]",
     lambda: nn.LSTM(3, 4)(z(5, 2, 3), (z(1, 2, 4), z(1, 2, 5)))),
    (IndexError, "pair", lambda: nn.LSTM(3, 4)(z(5, 2, 3), z(1, 2, 4))),
    (RuntimeError, "sequence length to be larger than 0", lambda: nn.LSTM(3, 4)(z(0, 2, 3))),
    (ValueError, "does not match weight dtype", lambda: nn.LSTM(3, 4)(z(5, 2, 3).double())),
    (ValueError, "in range \\[0, 1\\]", lambda: nn.LSTM(3, 4, 2, dropout=1.5)),
    (TypeError, "hidden_size should be of type int, got: float", lambda: nn.LSTM(3, 4.0)),
    (ValueError, "hidden_size must be greater than zero", lambda: nn.LSTM(3, 0)),
    (ValueError, "smaller than hidden_size", lambda: nn.LSTM(3, 4, proj_size=4)),
    (ValueError, "only supported for LSTM", lambda: nn.GRU(3, 4, proj_size=2)),
    (ValueError, "Unknown nonlinearity 'foo'", lambda: nn.RNN(3, 4, nonlinearity="foo")),
    (ValueError, "Unrecognized RNN mode", lambda: nn.RNNBase("FOO", 3, 4)),
    (RuntimeError, "inconsistent input_size: got 5 expected 3", lambda: nn.RNNCell(3, 4)(z(2, 5))),
    (RuntimeError, "batch size 2 doesn't match hidden0 batch size 3",
     lambda: nn.RNNCell(3, 4)(z(2, 3), z(3, 4))),
    (RuntimeError, "hidden0 has inconsistent hidden_size: got 5, expected 4",
     lambda: nn.GRUCell(3, 4)(z(2, 3), z(2, 5))),
    (ValueError, "Expected hx\\[1\\] to be 1D or 2D, got 3D",
     lambda: nn.LSTMCell(3, 4)(z(2, 3), (z(2, 4), z(1, 2, 4)))),
    (RuntimeError, "sorted in decreasing order",
     lambda: rnn.pack_padded_sequence(z(4, 2, 3), [2, 4])),
    (RuntimeError, "has to be greater than 0",
     lambda: rnn.pack_padded_sequence(z(4, 2, 3), [4, 0])),
    (RuntimeError, "equal to batch_size, but got 3",
     lambda: rnn.pack_padded_sequence(z(4, 2, 3), [4, 4, 1])),
    (RuntimeError, "more than the 4 steps", lambda: rnn.pack_padded_sequence(z(4, 1, 3), [5])),
    (ValueError, "at least the length of the longest",
     lambda: rnn.pad_packed_sequence(rnn.pack_sequence([z(3)]), total_length=2)),
    (RuntimeError, "empty list", lambda: rnn.pad_sequence([])),
    (RuntimeError, "must match", lambda: rnn.pad_sequence([z(2, 3), z(4, 2)])),
    (RuntimeError, "left or right", lambda: rnn.pad_sequence([z(2)], padding_side="top")),
    (RuntimeError, "two hidden states",
     lambda: dg.lstm_cell(z(2, 3), [z(2, 4)], z(16, 3), z(16, 4))),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "call"), BAD, ids=[t for _, t, _ in BAD])
def test_what_does_not_fit_is_refused(kind: type[Exception], text: str, call: Any) -> None:
    with pytest.raises(kind, match=text):
        call()


def test_dropout_of_one_layer_is_pointless() -> None:
    with pytest.warns(UserWarning, match="non-zero dropout expects num_layers greater than 1"):
        nn.GRU(3, 4, dropout=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nn.GRU(3, 4, 2, dropout=0.5)
