"""float16 and bfloat16 in host memory: computed in float32, rounded once, also in backward."""

import numpy as np
import pytest

import distgrad as dg

pytest.importorskip("ml_dtypes")

NARROW = [dg.float16, dg.bfloat16]


@pytest.fixture(params=NARROW, ids=lambda d: d.name)
def narrow(request):
    return request.param


def _wide(call, *operands):
    """Return ``call`` on the same numbers in float32, and its gradients."""
    xs = [x.detach().float().requires_grad_() for x in operands]
    out = call(*xs)
    out.sum().backward()
    return out, [x.grad for x in xs]


CALLS = {
    "mul by a number": lambda x, y: x * 0.1 + y,
    "pow": lambda x, y: (x.abs() + 1) ** 3.3 - y,
    "chain in one operation": lambda x, y: dg.nn.functional.gelu(x + y),
    "softmax": lambda x, y: dg.softmax(x, 1) * y,
    "matmul": lambda x, y: x @ y.mT,
    "layer_norm": lambda x, y: dg.nn.functional.layer_norm(x, (40,)) * y,
    "reduction": lambda x, y: (x * y).mean(0),
    "addcmul": lambda x, y: dg.addcmul(x, x, y, value=0.3),
    "data movement": lambda x, y: dg.cat([x.flip(0), y[1:]]).index_select(0, dg.tensor([0, 2])),
}


@pytest.mark.parametrize("name", CALLS)
def test_results_and_gradients_keep_the_type(name, narrow):
    dg.manual_seed(0)
    x, y = (dg.randn(3, 40).to(narrow).requires_grad_() for _ in range(2))
    out = CALLS[name](x, y)
    out.sum().backward()
    want, grads = _wide(CALLS[name], x, y)
    assert out.dtype is x.grad.dtype is y.grad.dtype is narrow
    tolerance = 4 * dg.finfo(narrow).eps
    for got, exact in [(out, want), (x.grad, grads[0]), (y.grad, grads[1])]:
        np.testing.assert_allclose(
            got.detach().float().array, exact.detach().array, tolerance, tolerance
        )


def test_one_operation_rounds_once(narrow):
    dg.manual_seed(1)
    x = dg.randn(1000).to(narrow)
    for call in (dg.sigmoid, dg.tanh, dg.erf, dg.nn.functional.silu, lambda t: t * 0.1):
        once = call(x.float()).to(narrow)
        assert (call(x) == once).all(), call


def test_long_sums_do_not_stick(narrow):
    assert dg.ones(5000, dtype=narrow).sum().item() == dg.tensor(5000.0).to(narrow).item()
    assert dg.full((4096,), 0.5, dtype=narrow).mean().item() == 0.5


def test_second_derivatives_forward_mode_and_vmap(narrow):
    x = dg.tensor([0.5, 2.0], dtype=narrow, requires_grad=True)
    (first,) = dg.autograd.grad((x**3).sum(), x, create_graph=True)
    (second,) = dg.autograd.grad(first.sum(), x)
    assert second.dtype is narrow and second.tolist() == [3.0, 12.0]
    _, tangent = dg.func.jvp(lambda t: t * t, (x.detach(),), (dg.ones(2, dtype=narrow),))
    assert tangent.dtype is narrow and tangent.tolist() == [1.0, 4.0]
    rows = dg.func.vmap(lambda t: t * 2)(x.detach())
    assert rows.dtype is narrow and rows.tolist() == [1.0, 4.0]


def test_changes_in_place_and_out(narrow):
    x = dg.tensor([1.0, 2.0], dtype=narrow)
    x.mul_(0.5).add_(1)
    assert x.dtype is narrow and x.tolist() == [1.5, 2.0]
    out = dg.empty(2, dtype=narrow)
    assert dg.exp(dg.zeros(2, dtype=narrow), out=out) is out and out.tolist() == [1.0, 1.0]


def test_the_options_dtype_is_obeyed_once(narrow):
    x = dg.ones(3, dtype=narrow)
    assert dg.sum(x, dtype=dg.float32).dtype is dg.float32
    assert dg.softmax(x, 0, dtype=dg.float64).dtype is dg.float64
    other = dg.bfloat16 if narrow is dg.float16 else dg.float16
    assert dg.cumsum(x, 0, dtype=other).dtype is other


def test_integers_and_bools_come_out_as_they_are(narrow):
    x = dg.tensor([1.0, 3.0, 2.0], dtype=narrow)
    assert dg.argmax(x).dtype is dg.int64 and (x > 1.5).dtype is dg.bool
    values, indices = dg.sort(x)
    assert values.dtype is narrow and indices.tolist() == [0, 2, 1]


def test_errors_name_the_type_that_was_given(narrow):
    with pytest.raises(RuntimeError, match=rf"matmul\(input: {narrow.name}\[2, 3\]"):
        dg.ones(2, 3, dtype=narrow) @ dg.ones(2, 3, dtype=narrow)
    with pytest.raises(RuntimeError):
        dg.ones(2, 3, dtype=narrow) @ dg.ones(3, 2)  # not of one dtype


def test_overflow_becomes_infinity_without_a_warning():
    x = dg.tensor([300.0], dtype=dg.float16)
    assert (x * x).item() == float("inf")
