"""Dtypes of arithmetic on tensors and numbers together, where a table of dtypes does not say it."""

import pytest

import distgrad as dg


@pytest.fixture
def default_dtype():
    before = dg.get_default_dtype()
    yield dg.set_default_dtype
    dg.set_default_dtype(before)


def test_numbers_used_before_follow_a_new_default_type(default_dtype):
    x = dg.tensor([1, 2])
    assert (x * 1.5).dtype is dg.float32
    default_dtype(dg.float64)
    assert (x * 1.5).dtype is dg.float64
    default_dtype(dg.float16)
    assert (x * 1.5).dtype is dg.float16 and (x / 2).dtype is dg.float16


@pytest.mark.parametrize("other", [dg.tensor([True]), True, dg.tensor(True)], ids=str)
def test_bools_are_not_subtracted(other):
    for x in (dg.tensor([1]), dg.tensor([1.0], dtype=dg.float64)):
        with pytest.raises(RuntimeError, match="with a bool tensor is not supported"):
            x - other
    with pytest.raises(RuntimeError, match="with two bool tensors is not supported"):
        dg.tensor([True]) - other


def test_the_factor_alpha_keeps_the_dtype_and_wraps_around():
    x = dg.tensor([3, 250], dtype=dg.uint8)
    assert dg.add(x, x, alpha=-3).tolist() == [250, 12]
    assert dg.sub(x, 5).tolist() == [254, 245]
    mask = dg.tensor([True, False])
    assert dg.add(mask, mask, alpha=3).tolist() == [True, False]
    assert dg.add(mask, mask, alpha=3).dtype is dg.bool


@pytest.mark.parametrize(
    ("alpha", "dtype", "words"),
    [
        (1.5, dg.int64, "must not be a floating point number"),
        (2j, dg.float32, "must not be a complex number"),
        (300, dg.uint8, "cannot be converted to type uint8_t without overflow"),
    ],
    ids=str,
)
def test_a_factor_that_does_not_fit_is_refused(alpha, dtype, words):
    x = dg.ones(2, dtype=dtype)
    for function in (dg.add, dg.sub):
        with pytest.raises(RuntimeError, match=words):
            function(x, x, alpha=alpha)


def test_result_type_takes_tensors_and_numbers():
    assert dg.result_type(dg.zeros(2, dtype=dg.int8), 1.5) is dg.float32
    assert dg.result_type(dg.zeros(2, dtype=dg.int8), dg.tensor(3)) is dg.int8
    assert dg.result_type(2, True) is dg.int64


def test_a_result_of_a_higher_kind_is_not_written_in_place():
    with pytest.raises(RuntimeError, match="result type float32 can't be cast to the desired"):
        dg.tensor([1, 2]).add_(1.5)
    x = dg.tensor([1.0, 2.0], dtype=dg.bfloat16)
    assert x.eq_(1).tolist() == [1.0, 0.0] and x.dtype is dg.bfloat16


def test_copy_takes_a_number():
    x = dg.zeros(2, dtype=dg.uint8)
    assert x.copy_(300).tolist() == [44, 44]
