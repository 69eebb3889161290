"""gradcheck and gradgradcheck: what they pass, what they find, in PyTorch's words."""

import re

import pytest

import distgrad as dg
from distgrad.autograd.gradcheck import GradcheckError, gradcheck, gradgradcheck

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


def leaf(L, *shape):
    return L.linspace(0.5, 1.5, 6, dtype=L.float64).reshape(shape or (2, 3)).requires_grad_()


def make(L, forward, backward):
    body = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type("MyFn", (L.autograd.Function,), body).apply


def several(a, b):
    return a * b, (a > 1), b.sin().sum()


@pytest.mark.parametrize("fast_mode", [False, True])
def test_right_gradients_pass(fast_mode):
    args = leaf(dg), leaf(dg)
    assert gradcheck(several, args, fast_mode=fast_mode, check_batched_grad=True)
    assert gradgradcheck(several, args, fast_mode=fast_mode, gen_non_contig_grad_outputs=True)
    assert gradcheck(lambda x, k: x**k, (leaf(dg), 3))
    assert gradcheck(lambda x: (x > 1).double(), leaf(dg))
    assert gradgradcheck(lambda x: x * x, leaf(dg), dg.ones(2, 3, dtype=dg.float64))


def test_inputs_are_what_they_were():
    x = leaf(dg)
    before = x.tolist()
    assert gradcheck(dg.exp, x)
    assert x.tolist() == before
    assert x._version == 0


def wrong_factor(L):
    return make(L, lambda ctx, x: x * 2, lambda ctx, g: g * 3), {}


def constant_added(L):
    return make(L, lambda ctx, x: x * 2, lambda ctx, g: g * 0 + 2), {"atol": 10.0}


def other_every_time(L):
    calls = []

    def backward(ctx, g):
        calls.append(1)
        return g * (2 + len(calls) * 1e-7)

    return make(L, lambda ctx, x: x * 2, backward), {}


def no_missing_gradients(L):
    def forward(ctx, x):
        ctx.set_materialize_grads(False)
        return x * 2, x * 3

    def backward(ctx, g, h):
        if g is None or h is None:
            raise RuntimeError("missing")
        return g * 2 + h * 3

    return make(L, forward, backward), {}


FOUND = [
    (wrong_factor, "Jacobian mismatch for output 0 with respect to input 0,\nnumerical:"),
    (constant_added, "backward not multiplied by grad_output"),
    (other_every_time, "Backward is not reentrant"),
]


@pytest.mark.parametrize(("program", "words"), FOUND)
def test_mistakes_are_found_and_named_as_in_torch(program, words):
    for L in (torch, dg):
        function, options = program(L)
        with pytest.raises(RuntimeError, match=re.escape(words)):
            L.autograd.gradcheck(function, leaf(L), **options)
        assert L.autograd.gradcheck(function, leaf(L), raise_exception=False, **options) is False


def test_missing_gradients_must_count_as_zeros():
    function, _ = no_missing_gradients(dg)
    with pytest.raises((GradcheckError, RuntimeError)):
        gradcheck(function, leaf(dg))


def test_a_wrong_second_derivative_is_found():
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * 2 * x.detach()

    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    function = make(dg, forward, backward)
    assert gradcheck(function, leaf(dg))
    with pytest.raises(GradcheckError, match="Jacobian mismatch"):
        gradgradcheck(function, leaf(dg))


def test_tolerances_are_those_given():
    function, _ = wrong_factor(dg)
    assert gradcheck(function, leaf(dg), atol=2.0, rtol=0.0)
    unsteady, _ = other_every_time(dg)
    assert gradcheck(unsteady, leaf(dg), nondet_tol=1e-3)


def test_inputs_that_cannot_be_checked():
    for L in (torch, dg):
        with pytest.raises(ValueError, match="expects at least one input tensor to require gradie"):
            L.autograd.gradcheck(L.exp, leaf(L).detach())
        with pytest.raises(RuntimeError, match="The 0th input has a dimension with stride 0"):
            L.autograd.gradcheck(L.exp, leaf(L, 6, 1).detach().expand(6, 2).requires_grad_())
        with pytest.warns(UserWarning, match="Input #0 requires gradient and is not a double prec"):
            L.autograd.gradcheck(L.exp, leaf(L).detach().float().requires_grad_(),
                                 raise_exception=False)  # fmt: skip
        with pytest.raises(AssertionError, match="Expected at least one of check_forward_ad"):
            L.autograd.gradcheck(L.exp, leaf(L), check_backward_ad=False)


def test_complex_functions_are_two_real_ones():
    z = dg.tensor([1 + 2j, 0.5 - 1j], dtype=dg.complex128, requires_grad=True)
    x = dg.tensor([0.3, -0.2], dtype=dg.float64, requires_grad=True)
    for fast_mode in (False, True):
        assert gradcheck(lambda z, x: (z * z.conj() * x, z.exp()), (z, x), fast_mode=fast_mode)
        assert gradcheck(lambda x: dg.complex(x, x * x), x, fast_mode=fast_mode)
    assert gradgradcheck(lambda z: z * z, z)


def wrong(L):
    def function(x):
        y = x.clone()
        y.register_hook(lambda g: g + 1e-2)
        return y

    return function


def test_the_part_of_a_complex_output_is_named():
    for L in (torch, dg):
        z = L.ones(2, 2, dtype=L.complex128, requires_grad=True)
        with pytest.raises(RuntimeError, match="imaginary part of complex outputs only"):
            L.autograd.gradcheck(wrong(L), (z,))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_forward_mode_is_compared_too():
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x * 2

    def jvp(ctx, t, _):
        return t * ctx.factor

    for L in (torch, dg):
        body = {
            "forward": staticmethod(forward), "jvp": staticmethod(jvp),
            "backward": staticmethod(lambda ctx, g: (g * 2, None)),
        }  # fmt: skip
        F = type("F", (L.autograd.Function,), body).apply
        for fast_mode in (False, True):
            assert L.autograd.gradcheck(F, (leaf(L), 2), check_forward_ad=True, fast_mode=fast_mode)
            with pytest.raises(RuntimeError, match="Jacobian computed with forward mode mismatch"):
                L.autograd.gradcheck(F, (leaf(L), 3), check_forward_ad=True, fast_mode=fast_mode)


def test_forward_mode_is_compared_inside_vmap_and_over_backward():
    assert gradcheck(
        several, (leaf(dg), leaf(dg)), check_forward_ad=True, check_batched_forward_grad=True
    )
    assert gradgradcheck(lambda x: x**3, leaf(dg), check_fwd_over_rev=True)


def test_outputs_must_not_depend_on_the_step():
    def other_shape(L):
        return lambda x: L.cat([x, x]) if bool((x >= 1).all()) else x

    for L in (torch, dg):
        x = L.ones(1, dtype=L.float64, requires_grad=True)
        with pytest.raises(AssertionError, match="same shape when inputs are perturbed"):
            L.autograd.gradcheck(other_shape(L), (x,))


def test_hooks_that_cannot_take_nothing_are_found():
    def function(x):
        def hook(g):
            if g is None:
                raise RuntimeError("nothing")

        y = x.clone()
        y.register_hook(hook)
        return y

    for L in (torch, dg):
        with (
            pytest.warns(UserWarning, match="undefined gradient support"),
            pytest.raises(RuntimeError, match="handle undefined output grads"),
        ):
            L.autograd.gradcheck(function, (leaf(L),))
