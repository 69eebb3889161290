"""Names of PyTorch's own use, and what its database of operations found."""

import pytest

import distgrad as dg


def test_chunks_are_filled_up_and_laid_side_by_side():
    a, b = dg.tensor([1.0, 2.0, 3.0]), dg.tensor([4.0, 5.0])
    assert dg._chunk_cat([a, b], 0, 2).tolist() == [[1.0, 2.0, 4.0], [3.0, 0.0, 5.0]]


def test_chunks_of_nothing_are_refused():
    with pytest.raises(RuntimeError, match="positive num_chunks"):
        dg._chunk_cat([dg.ones(2)], 0, 0)


def test_a_masked_index_takes_what_is_out_of_range():
    x, index = dg.tensor([1.0, 2.0]), dg.tensor([0, 9, 1])
    mask = dg.tensor([True, True, False])
    assert dg._unsafe_masked_index(x, mask, [index], -1.0).tolist() == [1.0, 2.0, -1.0]
    put = dg._unsafe_masked_index_put_accumulate(x, mask, [index], dg.ones(3))
    assert put.tolist() == [2.0, 3.0]


def test_softmax_backward_data_is_the_gradient_of_softmax():
    x = dg.randn(3, 4, dtype=dg.float64, requires_grad=True)
    g = dg.randn(3, 4, dtype=dg.float64)
    out = dg.softmax(x, 1)
    out.backward(g)
    assert dg.allclose(dg._softmax_backward_data(g, out.detach(), 1, dg.float64), x.grad)


def test_nan_is_the_last_of_bfloat16():
    x = dg.tensor([1.0, float("nan"), -2.0, 3.0], dtype=dg.bfloat16)
    assert dg.argsort(x).tolist() == [2, 0, 3, 1]
    assert dg.nanmedian(x).item() == 1.0
    assert dg.kthvalue(x, 3).values.item() == 3.0
    assert dg.topk(x, 1).indices.tolist() == [1]
    assert dg.searchsorted(dg.tensor([1.0, 3.0], dtype=dg.bfloat16), x).tolist() == [0, 2, 0, 1]
    assert str(dg.unique(x).dtype) == "distgrad.bfloat16" and dg.unique(x)[0].item() == -2.0


@pytest.mark.parametrize(
    "call",
    [
        lambda x: dg.kthvalue(x, 2, out=(x, dg.tensor(0))),
        lambda x: dg.take(x, dg.tensor([0, 1]), out=x[:2]),
        lambda x: dg.cat([x, x], out=x),
        lambda x: dg.gather(x, 0, dg.tensor([0]), out=x),
    ],
)
def test_an_out_that_overlaps_an_operand_is_refused(call):
    with pytest.raises(RuntimeError, match="unsupported operation"):
        call(dg.arange(4.0))


def test_an_out_for_complex_numbers_has_their_dtype():
    x = dg.ones(2, dtype=dg.float64)
    with pytest.raises(RuntimeError, match="dtype"):
        dg.complex(x, x, out=dg.zeros(2, dtype=dg.complex64))


def test_an_empty_batch_goes_through_fractional_pooling():
    x = dg.ones(0, 1, 4, 5, 4)
    assert dg.nn.functional.fractional_max_pool3d(x, (2, 2, 1), output_size=2).shape == (
        0,
        1,
        2,
        2,
        2,
    )


def test_fill_and_zero_are_functions_too():
    x = dg.ones(2)
    assert dg.fill_(x, 3.0) is x and x.tolist() == [3.0, 3.0]
    assert dg.zero_(x) is x and x.tolist() == [0.0, 0.0]


def test_a_number_has_no_reflected_division_of_its_own():
    with pytest.raises(AttributeError, match="no tensor"):
        dg.Tensor.__rdiv__(2, dg.ones(2))
