"""Segments and hashes: empty segments, initial values, dtypes, and what is refused."""

import numpy as np
import pytest

import distgrad as dg
from distgrad.errors import DtypeError, IndexOutOfRange, ShapeError

DATA = [0.0, 1.0, 5.0, 2.0, 4.0, 4.0]


@pytest.mark.parametrize(
    ("reduce", "plain", "begun"),
    [
        ("sum", [1.0, 0.0, 15.0], [4.0, 3.0, 18.0]),
        ("mean", [0.5, np.nan, 3.75], [2.0, 3.0, 4.5]),
        ("max", [1.0, -np.inf, 5.0], [3.0, 3.0, 5.0]),
        ("min", [0.0, np.inf, 2.0], [0.0, 3.0, 2.0]),
        ("prod", [0.0, 1.0, 160.0], [0.0, 3.0, 480.0]),
    ],
)
def test_an_empty_segment_is_what_every_segment_begins_with(reduce, plain, begun):
    lengths = dg.tensor([2, 0, 4])
    found = dg.segment_reduce(dg.tensor(DATA), reduce, lengths=lengths)
    np.testing.assert_array_equal(found, plain)
    found = dg.segment_reduce(dg.tensor(DATA), reduce, lengths=lengths, initial=3)
    np.testing.assert_array_equal(found, begun)


def test_offsets_say_the_same_as_lengths():
    found = dg.segment_reduce(dg.tensor(DATA), "sum", offsets=dg.tensor([0, 2, 2, 6]))
    assert found.tolist() == [1.0, 0.0, 15.0]


def test_every_row_may_have_its_own_lengths():
    data = dg.tensor(DATA).reshape(2, 3)
    found = dg.segment_reduce(data, "sum", lengths=dg.tensor([[1, 2], [2, 1]]), axis=1)
    assert found.tolist() == [[0.0, 6.0], [6.0, 4.0]]


def test_unsafe_leaves_out_what_lies_behind_the_last_segment():
    found = dg.segment_reduce(dg.tensor(DATA), "sum", lengths=dg.tensor([2, 1]), unsafe=True)
    assert found.tolist() == [1.0, 5.0]


def test_equal_maxima_share_the_gradient():
    x = dg.tensor(DATA, requires_grad=True)
    dg.segment_reduce(x, "max", lengths=dg.tensor([2, 1, 3])).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 0.0, 0.5, 0.5]


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda x: dg.segment_reduce(x, "sum"), ShapeError, "Either lengths or offsets"),
        (lambda x: dg.segment_reduce(x, "mid", lengths=dg.tensor([6])), ShapeError, "got mid"),
        (lambda x: dg.segment_reduce(x, "sum", lengths=dg.tensor([2])), ShapeError, "to sum to"),
        (lambda x: dg.segment_reduce(x, "sum", lengths=dg.tensor([7, -1])), ShapeError, "negative"),
        (lambda x: dg.segment_reduce(x.long(), "sum", lengths=dg.tensor([6])), DtypeError, "int64"),
        (lambda x: dg.hash_tensor(x, mode=1), ShapeError, "Unknown hash_tensor mode: 1"),
        (lambda x: dg.hash_tensor(x[:0]), ShapeError, "reduction dim to be specified"),
        (lambda x: dg.hash_tensor(x[:0], 0), IndexOutOfRange, "non-zero size"),
        (lambda x: dg.hash_tensor(x.to(dg.complex64)), DtypeError, "complex64"),
    ],
)
def test_wrong_arguments_are_named(call, kind, text):
    with pytest.raises(kind, match=text):
        call(dg.tensor(DATA))


def test_a_hash_is_the_exclusive_or_of_the_bits():
    x = np.array([[1, 2, 4], [7, 7, 9]])
    found = dg.hash_tensor(dg.from_numpy(x), 1)
    assert found.dtype is dg.uint64
    assert found.tolist() == [7, 9]
    assert dg.hash_tensor(dg.from_numpy(x), keepdim=True).tolist() == [[14]]
