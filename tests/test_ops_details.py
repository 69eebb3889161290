"""Small functions of memory and indices, beside PyTorch's."""

import numpy as np
import pytest

import distgrad as dg
from distgrad.testing.torch_pairs import agree, draw

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


@pytest.mark.filterwarnings("ignore:index_reduce")
@pytest.mark.parametrize("reduce", ["prod", "mean", "amax", "amin"])
@pytest.mark.parametrize("include_self", [True, False])
def test_index_reduce(reduce, include_self):
    index = np.array([2, 0, 2])
    agree(
        lambda x, s: x.index_reduce(1, dg.tensor(index), s, reduce, include_self=include_self),
        lambda x, s: x.index_reduce(1, torch.tensor(index), s, reduce, include_self=include_self),
        draw(2, 4), draw(2, 3),
    )  # fmt: skip
    x = dg.zeros(4)
    assert x.index_reduce_(0, dg.tensor(index), dg.ones(3), "amax") is x
    assert x.tolist() == [1.0, 0.0, 1.0, 0.0]


def test_complex_numbers_as_pairs():
    agree(lambda x: dg.view_as_complex(x).abs(), lambda x: torch.view_as_complex(x).abs(),
          draw(3, 2))  # fmt: skip
    agree(lambda x: dg.view_as_real(dg.fft.fft(x)), lambda x: torch.view_as_real(torch.fft.fft(x)),
          draw(4))  # fmt: skip
    with pytest.raises(RuntimeError):
        dg.view_as_complex(dg.ones(3))


def test_places_and_questions():
    numbers = np.array([[5, 0], [11, 23]])
    for ours, theirs in zip(
        dg.unravel_index(dg.tensor(numbers), (2, 3, 4)),
        torch.unravel_index(torch.tensor(numbers), (2, 3, 4)), strict=True,
    ):  # fmt: skip
        np.testing.assert_array_equal(ours.array, theirs.numpy())
    x = dg.arange(6.0).reshape(2, 3)
    part = dg.narrow_copy(x, 1, 1, 2)
    assert part.tolist() == [[1.0, 2.0], [4.0, 5.0]] and part._base is None
    assert dg.is_tensor(x) and dg.is_floating_point(x) and not dg.is_complex(x)
    assert dg.numel(x) == 6 and dg.is_signed(x) and not dg.is_tensor(1)


def test_python_functions_of_elements():
    x = dg.tensor([1.0, 2.0])
    assert x.apply_(lambda v: v * 3) is x and x.tolist() == [3.0, 6.0]
    assert x.map_(dg.tensor([1.0, 2.0]), lambda a, b: a - b).tolist() == [2.0, 4.0]
    with pytest.raises(RuntimeError):
        dg.ones(2, requires_grad=True).apply_(lambda v: v)
