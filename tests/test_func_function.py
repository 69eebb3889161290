"""Custom Functions inside the transformations of ``distgrad.func``."""

import numpy as np
import pytest

import distgrad as dg
from distgrad.autograd import Function
from distgrad.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

X = dg.tensor([1.0, 2.0, 3.0], dtype=dg.float64)
M = dg.arange(6, dtype=dg.float64).reshape(2, 3)


class Times(Function):
    """A product, with a rule for batches made of its methods."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, y):
        return x * y

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, g):
        x, y = ctx.saved_tensors
        first = g * y if ctx.needs_input_grad[0] else None
        return first, g * x if ctx.needs_input_grad[1] else None

    @staticmethod
    def jvp(ctx, a, b):
        x, y = ctx.saved_tensors
        return a * y + x * b


class OwnTimes(Times):
    """The same with a rule of its own."""

    generate_vmap_rule = False

    @staticmethod
    def vmap(info, in_dims, x, y):
        x, y = (
            t.unsqueeze(0) if d is None else t.movedim(d, 0)
            for t, d in zip((x, y), in_dims, strict=True)
        )
        x, y = (t.expand(info.batch_size, *t.shape[1:]) for t in (x, y))
        return OwnTimes.apply(x, y), 0


class Cube(Function):
    """Two outputs, of which one is needed for derivatives."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**3, 3 * x**2

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0], output[1])
        ctx.save_for_forward(inputs[0], output[1])

    @staticmethod
    def backward(ctx, g, g_slope):
        x, slope = ctx.saved_tensors
        return g * slope + g_slope * 6 * x

    @staticmethod
    def jvp(ctx, t):
        x, slope = ctx.saved_tensors
        return t * slope, 6 * x * t


def same(got, want):
    want = want.detach().numpy() if isinstance(want, dg.Tensor) else want
    np.testing.assert_allclose(got.detach().numpy(), want, 1e-12)


both = pytest.mark.parametrize("kind", [Times, OwnTimes])


@both
def test_vmap_runs_over_the_dimension_that_in_dims_names(kind):
    same(vmap(kind.apply, (0, None))(M, X), M * X)
    same(vmap(kind.apply, (1, None))(M, X[:2]), (M * X[:2].unsqueeze(1)).T)
    same(vmap(vmap(kind.apply))(M, M + 1), M * (M + 1))


@both
def test_a_gradient_reaches_what_vmap_hides(kind):
    same(grad(lambda w: vmap(kind.apply, (0, None))(M, w).sum())(X), M.sum(0))
    w = X.clone().requires_grad_()
    vmap(kind.apply, (0, None))(M, w).sum().backward()
    same(w.grad, M.sum(0))


@both
def test_gradients_per_sample(kind):
    def loss(m, w):
        return kind.apply(m, w).pow(2).sum()

    same(vmap(grad(loss, argnums=1), (0, None))(M, X), 2 * M * M * X)
    same(grad(lambda w: vmap(grad(lambda m: loss(m, w)))(M).sum())(X), (4 * M * X).sum(0))


@both
def test_forward_mode_in_and_around_vmap(kind):
    same(jvp(lambda m: vmap(kind.apply, (0, None))(m, X), (M,), (M,))[1], M * X)
    same(vmap(lambda m: jvp(lambda a: kind.apply(a, X), (m,), (m,))[1])(M), M * X)


@both
def test_jacobians_and_the_hessian(kind):
    def square(z):
        return kind.apply(z, z)

    same(jacfwd(square)(X), np.diag(2 * X.numpy()))
    same(jacrev(square)(X), np.diag(2 * X.numpy()))
    same(hessian(lambda z: square(z).sum())(X), 2 * np.eye(3))


def test_second_derivatives_of_two_outputs():
    want = np.diag(6 * X.numpy())
    same(hessian(lambda z: Cube.apply(z)[0].sum())(X), want)
    same(jacrev(jacrev(lambda z: Cube.apply(z)[0].sum()))(X), want)
    same(grad(lambda z: vmap(lambda w: Cube.apply(w)[0])(z).sum())(X), 3 * X**2)


class OneStep(Function):
    """Without ``setup_context``."""

    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, g):
        return g


@pytest.mark.parametrize(
    "run",
    [
        lambda: vmap(OneStep.apply)(X),
        lambda: grad(lambda z: OneStep.apply(z).sum())(X),
        lambda: vjp(OneStep.apply, X),
        lambda: jvp(OneStep.apply, (X,), (X,)),
    ],
)
def test_a_function_must_set_up_its_context_apart(run):
    with pytest.raises(RuntimeError, match="must override the setup_context staticmethod"):
        run()


def _kind(**members):
    base = {
        "forward": staticmethod(lambda x: x * 1),
        "setup_context": staticmethod(lambda ctx, inputs, output: None),
    }
    return type("Made", (Function,), base | members)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "does not have vmap support"),
        ({"generate_vmap_rule": True, "vmap": staticmethod(lambda i, d, x: (x, 0))},
         "generate_vmap_rule=True and"),
        ({"vmap": staticmethod(lambda i, d, x: x)}, "to have two returns"),
        ({"vmap": staticmethod(lambda i, d, x: (x, (None,)))}, "returned an incompatible"),
    ],
)  # fmt: skip
def test_rules_for_batches_that_do_not_fit(members, message):
    with pytest.raises(RuntimeError, match=message):
        vmap(_kind(**members).apply)(M)


def test_vmap_is_told_size_randomness_and_the_tree_of_dimensions():
    told = []

    def rule(info, in_dims, x, many):
        told.append((info.batch_size, info.randomness, in_dims))
        return (x, many), in_dims

    kind = _kind(forward=staticmethod(lambda x, many: None), vmap=staticmethod(rule))
    vmap(kind.apply, randomness="same")(X, [X, X])
    assert told == [(3, "same", (0, [0, 0]))]


def test_an_output_without_a_batch_is_repeated():
    kind = _kind(vmap=staticmethod(lambda i, d, x: (dg.zeros(x.shape[1:]), None)))
    same(vmap(kind.apply)(M), np.zeros((2, 3)))
