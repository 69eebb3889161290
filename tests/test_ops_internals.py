"""Names of PyTorch's own use, and what its database of operations found."""

import numpy as np
import pytest

import distgrad as dg
from distgrad.testing import standin


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


# ---------------------------------------------------------------------- addmm and what comes after
@pytest.mark.torch
@pytest.mark.parametrize("use_gelu", [False, True])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("factors", [{}, {"beta": 0.5, "alpha": 2.0}, {"beta": 0}])
def test_addmm_activation_is_that_of_torch(dtype, use_gelu, factors):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    for shape in ((3,), (2, 3), (2, 1), ()):
        arrays = [rng.standard_normal(s) for s in (shape, (2, 4), (4, 3))]
        mine = [dg.tensor(a, dtype=getattr(dg, dtype)) for a in arrays]
        other = [torch.tensor(a, dtype=getattr(torch, dtype)) for a in arrays]
        want = torch._addmm_activation(*other, use_gelu=use_gelu, **factors)
        for got in (
            dg._addmm_activation(*mine, use_gelu=use_gelu, **factors),
            mine[0]._addmm_activation(*mine[1:], use_gelu=use_gelu, **factors),
        ):
            close = 1e-6 if dtype in ("float32", "float64") else 2e-2
            np.testing.assert_allclose(
                got.double().numpy(), want.double().numpy(), rtol=close, atol=close
            )
    out = dg.empty(2, 3, dtype=mine[0].dtype)
    assert dg._addmm_activation(*mine, out=out) is out


@pytest.mark.parametrize("use_gelu", [False, True])
def test_addmm_activation_has_gradients(use_gelu):
    dg.manual_seed(0)
    inputs = [dg.randn(s, dtype=dg.float64, requires_grad=True) for s in ((3,), (2, 4), (4, 3))]

    def run(*args):
        return dg._addmm_activation(*args, beta=0.5, alpha=2, use_gelu=use_gelu)

    assert dg.autograd.gradcheck(run, inputs) and dg.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("use_gelu", [False, True])
def test_addmm_activation_on_a_gpu_is_one_product(use_gelu):
    with standin.installed() as ledger:
        sizes = (8,), (16, 8), (8, 8)
        dg.manual_seed(0)
        host = [dg.randn(s, requires_grad=True) for s in sizes]
        there = [h.detach().cuda().requires_grad_() for h in host]
        want = dg._addmm_activation(*host, use_gelu=use_gelu)
        ledger.products.clear()
        got = dg._addmm_activation(*there, use_gelu=use_gelu)
        assert len(ledger.products) == 1 and ("RELU" in ledger.products[0]) == (not use_gelu)
        want.sum().backward()
        got.sum().backward()
        for a, b in zip(
            (want, *(h.grad for h in host)), (got, *(t.grad for t in there)), strict=True
        ):
            np.testing.assert_allclose(
                a.detach().numpy(), b.detach().cpu().numpy(), rtol=1e-5, atol=1e-5
            )
        assert not ledger.refused


def test_addmm_activation_refuses_what_addmm_refuses():
    with pytest.raises(RuntimeError, match=r"2-?D|matrix"):
        dg._addmm_activation(dg.ones(3), dg.ones(1, 2, 4), dg.ones(4, 3))
    with pytest.raises(RuntimeError, match=r"cannot be multiplied|2, 4"):
        dg._addmm_activation(dg.ones(3), dg.ones(2, 4), dg.ones(5, 3))
