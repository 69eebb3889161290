"""Random tensors, dropout, seeds: the streams of PyTorch, and the rules of changes in place."""

import numpy as np
import pytest

import distgrad as dg
from distgrad.errors import ArgumentError, ArgumentTypeError, DtypeError, GradError, ShapeError
from distgrad.testing.torch_pairs import tensor

TYPES = ["float32", "float64", "float16"]
SIZES = [(), (3,), (17,), (100, 3)]


def same(ours, theirs, torch, exact=True):
    """Assert that both calls give the same tensor from the same seeds."""
    for seed in (0, 11):
        dg.manual_seed(seed)
        torch.manual_seed(seed)
        out, want = ours(), theirs()
        assert str(out.array.dtype) == str(want.dtype).removeprefix("torch.")
        assert out.array.shape == tuple(want.shape)
        if exact:
            np.testing.assert_array_equal(out.array, want.numpy())
        else:
            np.testing.assert_allclose(out.array, want.numpy(), rtol=1e-13)


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


# ---------------------------------------------------------------------- streams
@pytest.mark.torch
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["rand", "randn"])
def test_new_tensors_are_those_of_torch(torch, name, size, dtype):
    ours, theirs = getattr(dg, name), getattr(torch, name)
    kind, their_kind = getattr(dg, dtype), getattr(torch, dtype)
    same(lambda: ours(size, dtype=kind), lambda: theirs(size, dtype=their_kind), torch)
    like, their_like = getattr(dg, name + "_like"), getattr(torch, name + "_like")
    x = np.zeros(size, dtype)
    same(lambda: like(tensor(x)), lambda: their_like(torch.tensor(x)), torch)


@pytest.mark.torch
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("name", "args"),
    [("uniform_", (-1, 2.5)), ("normal_", (1, 0.5)), ("exponential_", (2.0,)),
     ("cauchy_", (0.5, 2)), ("log_normal_", (0.1, 0.5)), ("geometric_", (0.3,)),
     ("bernoulli_", (0.3,)), ("random_", ()),
     ("random_", (7,)), ("random_", (-3, 9))],
)  # fmt: skip
def test_filling_in_place_gives_the_numbers_of_torch(torch, name, args, size, dtype):
    exact = name not in ("cauchy_", "log_normal_")  # by NumPy's tan and exp
    x = np.zeros(size, dtype)

    def filled():
        t = tensor(x)
        assert getattr(t, name)(*args) is t
        assert t.array is x
        return t

    same(filled, lambda: getattr(torch.zeros(size).to(getattr(torch, dtype)), name)(*args), torch,
         exact)  # fmt: skip


@pytest.mark.torch
@pytest.mark.parametrize("name", ["normal_", "uniform_", "bernoulli_"])
def test_filling_follows_the_order_of_memory(torch, name):
    same(
        lambda: getattr(dg.zeros(5, 6).T, name)(), lambda: getattr(torch.zeros(5, 6).T, name)(),
        torch,
    )  # fmt: skip


@pytest.mark.torch
@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "int8", "bool"])
def test_integers_in_place_are_those_of_torch(torch, dtype):
    kind, their_kind = getattr(dg, dtype), getattr(torch, dtype)
    for name in ("random_", "bernoulli_"):
        same(
            lambda name=name: getattr(dg.zeros(40, dtype=kind), name)(),
            lambda name=name: getattr(torch.zeros(40, dtype=their_kind), name)(),
            torch,
        )


@pytest.mark.torch
@pytest.mark.parametrize(
    "call",
    [
        lambda f: f.randint(10, (5, 3)),
        lambda f: f.randint(3, 10, (7,)),
        lambda f: f.randint(high=10, low=2, size=(7,)),
        lambda f: f.randint(10, size=(3,), dtype=f.float32),
        lambda f: f.randint(-(2**40), 2**40, (9,)),
        lambda f: f.randint_like(f.zeros(4, 5), 9),
        lambda f: f.randint_like(f.zeros(4, 5), 3, 9),
        lambda f: f.randperm(100),
        lambda f: f.randperm(10, dtype=f.int32),
        lambda f: f.randperm(0),
        lambda f: f.normal(1.0, 2.0, (3, 4)),
        lambda f: f.normal(f.arange(20.0), 0.5),
        lambda f: f.normal(f.zeros(3, 1), f.arange(4.0)),
        lambda f: f.normal(2.0, f.arange(4.0)),
        lambda f: f.bernoulli(f.full((30,), 0.4)),
        lambda f: f.zeros(30).bernoulli(0.4),
        lambda f: f.zeros(30).bernoulli_(f.full((30,), 0.4)),
        lambda f: f.multinomial(f.arange(10.0), 1),
        lambda f: f.arange(1.0, 13.0).reshape(3, 4).multinomial(4),
        lambda f: f.multinomial(f.arange(1.0, 13.0).reshape(3, 4), 50, True),
        lambda f: f.rand(2, 3),
        lambda f: f.rand([2, 3]),
        lambda f: f.randn(0, 3),
    ],
)
def test_samples_are_those_of_torch(torch, call):
    same(lambda: call(dg), lambda: call(torch), torch)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("name", "shape"),
    [("dropout", (3, 4)), ("alpha_dropout", (3, 4)), ("feature_alpha_dropout", (3, 4, 5)),
     ("dropout1d", (3, 4)), ("dropout1d", (2, 3, 4)), ("dropout2d", (2, 3, 4, 5)),
     ("dropout3d", (2, 3, 4, 5)), ("dropout3d", (2, 3, 2, 2, 2))],
)  # fmt: skip
@pytest.mark.parametrize("p", [0.3, 1.0])
@pytest.mark.parametrize("inplace", [False, True])
def test_dropout_drops_what_torch_drops(torch, name, shape, p, inplace):
    ours, theirs = getattr(dg.ops.dropout, name), getattr(torch.nn.functional, name)
    x = np.random.default_rng(1).standard_normal(shape)
    same(
        lambda: ours(tensor(x.copy()), p, True, inplace),
        lambda: theirs(torch.tensor(x), p, True, inplace),
        torch,
        exact=False,
    )


# ---------------------------------------------------------------------- generators and seeds
def test_a_generator_has_a_stream_of_its_own():
    mine = dg.Generator().manual_seed(5)
    dg.manual_seed(1)
    a = dg.rand(3, generator=mine)
    b = dg.rand(3)
    dg.manual_seed(1)
    assert b.tolist() == dg.rand(3).tolist()
    assert a.tolist() == dg.rand(3, generator=mine.manual_seed(5)).tolist()
    again = mine.manual_seed(5).initial_seed()
    assert again == 5
    assert dg.zeros(3).uniform_(generator=mine).tolist() == a.tolist()


def test_a_state_is_a_tensor_of_bytes_from_which_the_stream_continues():
    state = dg.get_rng_state()
    assert state.dtype == dg.uint8 and state.shape == (5056,)
    first = dg.randn(5)
    dg.set_rng_state(state)
    assert dg.randn(5).tolist() == first.tolist()
    with pytest.raises(ArgumentTypeError, match="uint8"):
        dg.set_rng_state(dg.zeros(5056))


@pytest.mark.torch
def test_a_state_continues_in_torch(torch):
    dg.manual_seed(4)
    dg.randn(3)
    torch.set_rng_state(torch.from_numpy(dg.get_rng_state().numpy()))
    assert dg.rand(4).tolist() == torch.rand(4).tolist()


def test_fork_rng_gives_the_stream_back():
    dg.manual_seed(2)
    with dg.random.fork_rng():
        inside = dg.rand(3)
    assert dg.rand(3).tolist() == inside.tolist()
    assert dg.initial_seed() == 2
    assert dg.seed() == dg.initial_seed() != 2


# ---------------------------------------------------------------------- autograd
def test_requires_grad_makes_a_leaf():
    x = dg.randn(3, requires_grad=True)
    assert x.requires_grad and x.is_leaf
    with pytest.raises(GradError, match="randint"):
        dg.randint(3, (2,), requires_grad=True)


def test_filling_a_leaf_that_requires_grad_is_refused():
    x = dg.zeros(3, requires_grad=True)
    with pytest.raises(GradError, match=r"normal_\(float32\[3\]\)"):
        x.normal_()
    with dg.no_grad():
        x.normal_()
    assert x.array.any()


def test_filling_gives_no_gradient_to_the_values_before():
    x = dg.ones(4, requires_grad=True)
    y = x * 2
    y[1:3].uniform_()
    assert y.requires_grad
    y.sum().backward()
    assert x.grad.tolist() == [2.0, 0.0, 0.0, 2.0]
    z = x * 2
    z.normal_()
    (z * 3).sum().backward()
    assert x.grad.tolist() == [2.0, 0.0, 0.0, 2.0]


def test_filling_is_seen_by_saved_tensors():
    x = dg.ones(4, requires_grad=True)
    y = dg.ones(4)
    out = x * y
    y.bernoulli_()
    with pytest.raises(GradError, match="modified"):
        out.sum().backward()


def test_dropout_scales_what_it_keeps_and_its_gradient():
    x = dg.ones(1000, requires_grad=True)
    out = dg.dropout(x, 0.2)
    kept = out.array != 0
    assert 740 < kept.sum() < 860
    np.testing.assert_allclose(out.array[kept], 1.25)
    out.sum().backward()
    np.testing.assert_array_equal(x.grad.array, out.array)


@pytest.mark.parametrize("name", ["dropout", "alpha_dropout", "feature_alpha_dropout"])
def test_dropout_without_effect_is_the_input_itself(name):
    x = dg.ones(3, 4)
    assert getattr(dg, name)(x, 0.5, False) is x
    assert getattr(dg, name)(x, 0.0, True) is x


def test_alpha_dropout_keeps_mean_and_variance():
    dg.manual_seed(0)
    out = dg.alpha_dropout(dg.randn(100_000), 0.3, True).array
    assert abs(out.mean()) < 0.02 and abs(out.std() - 1) < 0.02


# ---------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: dg.rand(), ArgumentTypeError, "size"),
        (lambda: dg.rand(2, dtype=dg.int64), DtypeError, "int64"),
        (lambda: dg.randint(3, 3, (2,)), ShapeError, "from=3 >= to=3"),
        (lambda: dg.randint(300, (2,), dtype=dg.uint8), ShapeError, "0…255"),
        (lambda: dg.randint(2.5, (2,)), ArgumentTypeError, "must be int, not float"),
        (lambda: dg.zeros(2).uniform_(2, 1), ShapeError, "from=2 > to=1"),
        (lambda: dg.zeros(2).normal_(0, -1), ShapeError, "std -1"),
        (lambda: dg.zeros(2, dtype=dg.int64).normal_(), DtypeError, "int64"),
        (lambda: dg.zeros(2).bernoulli_(2), ShapeError, "p=2"),
        (lambda: dg.bernoulli(dg.full((2,), 2.0)), ShapeError, r"float32\[2\]"),
        (lambda: dg.multinomial(dg.zeros(3), 1), ShapeError, "sum of probabilities"),
        (lambda: dg.multinomial(dg.ones(3), 4), ShapeError, "4 of 3"),
        (lambda: dg.dropout(dg.ones(2), 2), ArgumentError, "between 0 and 1, but got 2"),
        (lambda: dg.ops.dropout.dropout1d(dg.ones(2)), ShapeError, "received a 1D input"),
    ],
)
def test_wrong_arguments_are_named(call, kind, words):
    with pytest.raises(kind, match=words):
        call()


def test_dropout2d_warns_about_three_dimensions():
    with pytest.warns(UserWarning, match="dropout1d"):
        dg.ops.dropout.dropout2d(dg.ones(2, 3, 4))


# ---------------------------------------------------------------------- more kinds of numbers
@pytest.mark.torch
@pytest.mark.parametrize("kind", ["complex64", "complex128"])
@pytest.mark.parametrize("shape", [(3,), (4, 5), ()])
@pytest.mark.parametrize("name", ["rand", "randn"])
def test_complex_samples_are_torchs(torch, name, shape, kind):
    torch.manual_seed(3)
    dg.manual_seed(3)
    want = getattr(torch, name)(shape, dtype=getattr(torch, kind))
    found = getattr(dg, name)(shape, dtype=getattr(dg, kind))
    np.testing.assert_array_equal(found.numpy(), want.numpy())


@pytest.mark.torch
def test_counts_of_rare_and_of_common_events_are_torchs(torch):
    rates = np.concatenate([np.linspace(0, 12, 200), np.geomspace(10, 1e6, 200)])
    torch.manual_seed(5)
    dg.manual_seed(5)
    want = torch.poisson(torch.from_numpy(rates))
    np.testing.assert_array_equal(dg.poisson(dg.from_numpy(rates)), want.numpy())
    np.testing.assert_array_equal(dg.rand(3), torch.rand(3).numpy())
    with pytest.raises(ShapeError, match="non-negative"):
        dg.poisson(dg.tensor([-1.0]))


@pytest.mark.parametrize("draw", [dg.bernoulli, dg.poisson, dg.normal])
def test_samples_depend_on_their_parameters_with_gradient_zero(draw):
    p = dg.full((3,), 0.5, requires_grad=True)
    draw(p).sum().backward()
    assert p.grad.tolist() == [0.0, 0.0, 0.0]
    with dg.autograd.forward_ad.dual_level():
        out = draw(dg.autograd.forward_ad.make_dual(p.detach(), dg.ones(3)))
        assert not dg.autograd.forward_ad.unpack_dual(out).tangent.any()


def test_a_generators_state_is_a_tensor():
    generator = dg.Generator().manual_seed(1)
    state = generator.get_state()
    assert isinstance(state, dg.Tensor)
    assert state.dtype is dg.uint8
    first = dg.rand(4, generator=generator)
    generator.set_state(state)
    assert dg.rand(4, generator=generator).tolist() == first.tolist()


def test_samples_go_into_out():
    for draw in (dg.rand, dg.randn):
        out = dg.empty(0, dtype=dg.float64)
        assert draw(3, out=out) is out
        assert out.shape == (3,)
    assert dg.randperm(4, out=dg.empty(4)).sum().item() == 6.0
    assert dg.randint(high=3, size=(5,), out=dg.empty(5)).dtype is dg.float32
    with pytest.raises(DtypeError, match="expects Long tensor out"):
        dg.multinomial(dg.ones(3), 2, out=dg.empty(2))


def test_native_dropout_returns_its_mask():
    x = dg.ones(100)
    out, mask = dg.native_dropout(x, 0.25, True)
    assert mask.dtype is dg.bool
    np.testing.assert_array_equal(out, dg.native_dropout_backward(x, mask, 1 / 0.75))
    assert dg.native_dropout(x, 0.25, False)[1].all()


@pytest.mark.torch
@pytest.mark.parametrize("name", ["rand_like", "randn_like"])
def test_samples_like_a_transposed_tensor_lie_and_are_drawn_in_its_order(name):
    torch = pytest.importorskip("torch")
    torch.manual_seed(3)
    dg.manual_seed(3)
    theirs = getattr(torch, name)(torch.zeros(5, 7).mT)
    ours = getattr(dg, name)(dg.zeros(5, 7).mT)
    assert ours.stride() == theirs.stride()
    np.testing.assert_array_equal(ours.numpy(), theirs.numpy())
