"""``distgrad.func`` against ``torch.func``: the same code, the same numbers and errors."""

import numpy as np
import pytest

import distgrad as dg
import distgrad.func

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr:UserWarning"),
]

RNG = np.random.default_rng(0)
V, W = RNG.standard_normal(3), RNG.standard_normal(3)
M = RNG.standard_normal((3, 3))
B = RNG.standard_normal((4, 3))


def _to(lib, value):
    if isinstance(value, np.ndarray):
        return lib.tensor(value)
    if isinstance(value, dict):
        return {k: _to(lib, v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_to(lib, v) for v in value)
    return value


def _same(ours, theirs):
    if isinstance(theirs, torch.Tensor):
        assert str(ours.dtype).split(".")[1] == str(theirs.dtype).split(".")[1]
        assert ours.requires_grad == theirs.requires_grad
        np.testing.assert_allclose(ours.detach().numpy(), theirs.detach().numpy(), 1e-10, 1e-12)
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in theirs:
            _same(ours[key], theirs[key])
    elif isinstance(theirs, list | tuple):
        assert type(ours) is type(theirs) and len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            _same(one, other)
    else:
        assert ours == theirs


def _f(x):
    return (x.sin() * x.exp()).sum() + x.prod()


def _many(lib, x, y):
    return {"a": x.outer(y), "b": [lib.softmax(x * y, 0), (x**2).sum()]}


PROGRAMS = {
    "grad": lambda lib, f, x, y, m, b: f.grad(_f)(x),
    "grad of grad": lambda lib, f, x, y, m, b: f.grad(lambda z: f.grad(_f)(z).pow(2).sum())(x),
    "grad_and_value": lambda lib, f, x, y, m, b: f.grad_and_value(_f)(x),
    "argnums": lambda lib, f, x, y, m, b: f.grad(lambda a, c: (a * c).sum(), argnums=(1, 0))(x, y),
    "negative argnum": lambda lib, f, x, y, m, b: f.grad(lambda a, c: (a * c).sum(), -1)(x, y),
    "aux": lambda lib, f, x, y, m, b: f.grad(lambda a: (_f(a), {"k": a * 2}), has_aux=True)(x),
    "tree": lambda lib, f, x, y, m, b: f.grad(
        lambda p: (p["w"] @ p["v"][0]).sum() + _f(p["v"][1]))({"w": m, "v": [x, y]}),
    "unused": lambda lib, f, x, y, m, b: f.grad(lambda a, c: a.sum(), (0, 1))(x, y),
    "vjp": lambda lib, f, x, y, m, b: f.vjp(lambda a: m @ a, x)[1](y),
    "vjp of several": lambda lib, f, x, y, m, b: f.vjp(lambda a, c: (a * c, a + c), x, y)[1](
        (y, x)),
    "jvp": lambda lib, f, x, y, m, b: f.jvp(lambda a: (m @ a).tanh(), (x,), (y,)),
    "jvp of a tree": lambda lib, f, x, y, m, b: f.jvp(
        lambda a, c: _many(lib, a, c), (x, y), (y, x)),
    "jvp with aux": lambda lib, f, x, y, m, b: f.jvp(
        lambda a: (a.exp(), a * 2), (x,), (y,), has_aux=True),
    "linearize": lambda lib, f, x, y, m, b: f.linearize(lambda a: a.exp(), x)[1](y),
    "jacrev": lambda lib, f, x, y, m, b: f.jacrev(lambda a: (m @ a).sin())(x),
    "jacrev chunked": lambda lib, f, x, y, m, b: f.jacrev(lambda a: m @ a, chunk_size=2)(x),
    "jacfwd": lambda lib, f, x, y, m, b: f.jacfwd(lambda a: (m @ a).sin())(x),
    "jacrev of a tree": lambda lib, f, x, y, m, b: f.jacrev(
        lambda a, c: _many(lib, a, c), argnums=(0, 1))(x, y),
    "jacfwd of a tree": lambda lib, f, x, y, m, b: f.jacfwd(
        lambda a, c: _many(lib, a, c), argnums=(0, 1))(x, y),
    "jacfwd of matrix": lambda lib, f, x, y, m, b: f.jacfwd(lambda a: a @ a)(m),
    "jacrev with aux": lambda lib, f, x, y, m, b: f.jacrev(lambda a: (a**2, a), has_aux=True)(x),
    "jacfwd with aux": lambda lib, f, x, y, m, b: f.jacfwd(lambda a: (a**2, a), has_aux=True)(x),
    "hessian": lambda lib, f, x, y, m, b: f.hessian(_f)(x),
    "hessian by rev rev": lambda lib, f, x, y, m, b: f.jacrev(f.jacrev(_f))(x),
    "hessian by fwd fwd": lambda lib, f, x, y, m, b: f.jacfwd(f.jacfwd(_f))(x),
    "hessian by rev fwd": lambda lib, f, x, y, m, b: f.jacrev(f.jacfwd(_f))(x),
    "third": lambda lib, f, x, y, m, b: f.jacfwd(f.hessian(_f))(x),
    "hessian of norm": lambda lib, f, x, y, m, b: f.hessian(
        lambda a: lib.nn.functional.layer_norm(a, (3,)).pow(3).sum() + lib.logsumexp(a, 0))(x),
    "vmap": lambda lib, f, x, y, m, b: f.vmap(lambda a: (m @ a).sum())(b),
    "vmap in and out": lambda lib, f, x, y, m, b: f.vmap(
        lambda a, c: lib.outer(a, c), in_dims=(0, None), out_dims=-1)(b, x),
    "vmap of columns": lambda lib, f, x, y, m, b: f.vmap(lambda a: a.cumsum(0), 1, 1)(b),
    "vmap tree": lambda lib, f, x, y, m, b: f.vmap(
        lambda d: {"s": d["x"][0] + d["y"], "t": (d["y"],)}, in_dims=({"x": [0], "y": None},),
        out_dims={"s": 0, "t": (None,)})({"x": [b], "y": x}),
    "vmap chunked": lambda lib, f, x, y, m, b: f.vmap(lambda a: a * 2, chunk_size=3)(b),
    "vmap of vmap": lambda lib, f, x, y, m, b: f.vmap(
        f.vmap(lambda a, c: a * c + a.sin(), (None, 0)), (0, None))(b, x),
    "vmap of grad": lambda lib, f, x, y, m, b: f.vmap(f.grad(_f))(b),
    "vmap of grad, shared": lambda lib, f, x, y, m, b: f.vmap(
        f.grad(lambda p, a: (p @ a).tanh().sum()), (None, 0))(m, b),
    "vmap of hessian": lambda lib, f, x, y, m, b: f.vmap(f.hessian(_f))(b),
    "vmap of jvp": lambda lib, f, x, y, m, b: f.vmap(
        lambda t: f.jvp(lambda a: (m @ a).sin(), (x,), (t,))[1])(b),
    "grad of vmap": lambda lib, f, x, y, m, b: f.grad(
        lambda p: f.vmap(lambda a: (p * a).sin().sum())(b).prod())(x),
    "grad of vmap of grad": lambda lib, f, x, y, m, b: f.grad(
        lambda p: f.vmap(f.grad(lambda a: (p * a).pow(3).sum()))(b).sum())(x),
    "jvp of vmap": lambda lib, f, x, y, m, b: f.jvp(
        f.vmap(lambda a: a.softmax(0)), (b,), (b * 2,)),
    "changes in place": lambda lib, f, x, y, m, b: f.vmap(f.grad(_in_place))(b),
    "vmap unbatched result": lambda lib, f, x, y, m, b: f.vmap(lambda a: x)(b),
    "vmap of comparison": lambda lib, f, x, y, m, b: f.vmap(
        lambda a: lib.where(a > 0, a, -a))(b),
}  # fmt: skip


def _in_place(x):
    y = x.clone()
    y[0] = 5.0
    y.add_(x)
    y[1:].mul_(3.0)
    y[0] = x[1] * x[1]
    y.view(3, 1).mul_(x[0])
    return (y**2).sum()


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_the_same_program_gives_the_same_numbers(program):
    run = PROGRAMS[program]
    ours = run(dg, dg.func, *(dg.tensor(a) for a in (V, W, M, B)))
    theirs = run(torch, torch.func, *(torch.tensor(a) for a in (V, W, M, B)))
    _same(ours, theirs)


def test_results_stay_connected_with_what_lies_outside():
    x = dg.tensor(V, requires_grad=True)
    found = dg.func.grad(_f)(x)
    assert found.requires_grad
    (second,) = dg.autograd.grad(found.sum(), x)
    t = torch.tensor(V, requires_grad=True)
    (want,) = torch.autograd.grad(torch.func.grad(_f)(t).sum(), t)
    np.testing.assert_allclose(second.numpy(), want.numpy())


@pytest.mark.parametrize("kind", ["linear", "conv", "norm", "attention", "embedding"])
def test_per_sample_gradients(kind):
    make = {
        "linear": lambda nn: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)),
        "conv": lambda nn: nn.Sequential(
            nn.Unflatten(1, (2, 3)), nn.Conv1d(2, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)),
        "norm": lambda nn: nn.Sequential(nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 3)),
        "attention": lambda nn: nn.Sequential(
            nn.Unflatten(1, (2, 3)),
            nn.TransformerEncoderLayer(3, 1, 4, 0.0, batch_first=True)
            if hasattr(nn, "TransformerEncoderLayer") else nn.Identity(),
            nn.Flatten(), nn.Linear(6, 3)),
        "embedding": lambda nn: nn.Sequential(nn.Embedding(7, 2), nn.Flatten(), nn.Linear(12, 3)),
    }[kind]  # fmt: skip
    model = make(dg.nn)
    x = dg.randn(4, 6) if kind != "embedding" else dg.randint(0, 7, (4, 6))
    y = dg.tensor([0, 2, 1, 2])
    own = {k: v.detach() for k, v in model.named_parameters()}

    def loss(p, one, label):
        out = dg.func.functional_call(model, p, (one.unsqueeze(0),))
        return dg.nn.functional.cross_entropy(out, label.unsqueeze(0))

    found = dg.func.vmap(dg.func.grad(loss), in_dims=(None, 0, 0))(own, x, y)
    for i in range(4):
        model.zero_grad()
        dg.nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
        for name, p in model.named_parameters():
            assert not found[name].requires_grad
            np.testing.assert_allclose(found[name][i].numpy(), p.grad.numpy(), 1e-4, 1e-6)


def test_an_ensemble_of_modules_runs_as_one():
    models = [dg.nn.Linear(3, 2) for _ in range(4)]
    params, buffers = dg.func.stack_module_state(models)
    assert params["weight"].shape == (4, 2, 3) and params["weight"].requires_grad
    x = dg.randn(5, 3)

    def call(p, b):
        return dg.func.functional_call(models[0], (p, b), (x,))

    out = dg.func.vmap(call)(params, buffers)
    for i, model in enumerate(models):
        np.testing.assert_allclose(out[i].detach().numpy(), model(x).detach().numpy(), 1e-6, 1e-6)
    assert isinstance(models[0].weight, dg.nn.Parameter)


def test_functional_call_names():
    module = dg.nn.Linear(3, 2)
    zeros = {k: dg.zeros_like(v) for k, v in module.named_parameters()}
    assert dg.func.functional_call(module, zeros, dg.ones(3)).tolist() == [0.0, 0.0]
    with pytest.raises(RuntimeError, match="Missing key"):
        dg.func.functional_call(module, {"bias": zeros["bias"]}, dg.ones(3), strict=True)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        dg.func.functional_call(module, zeros | {"x": dg.ones(1)}, dg.ones(3), strict=True)


MISTAKES = {
    "grad of a vector": lambda lib, f: f.grad(lambda x: x)(lib.ones(2)),
    "grad of no tensor": lambda lib, f: f.grad(lambda x: 1.0)(lib.ones(2)),
    "grad of integers": lambda lib, f: f.grad(lambda x: x.sum())(lib.tensor([1])),
    "argnum": lambda lib, f: f.grad(lambda x: x.sum(), argnums=1)(lib.ones(2)),
    "argnums class": lambda lib, f: f.grad(lambda x: x.sum(), argnums="a")(lib.ones(2)),
    "argnums twice": lambda lib, f: f.grad(lambda x: x.sum(), argnums=(0, 0))(lib.ones(2)),
    "no aux": lambda lib, f: f.grad(lambda x: x.sum(), has_aux=True)(lib.ones(2)),
    "grad of a number": lambda lib, f: f.grad(lambda x: x.sum())(2.0),
    "vjp of no tensor": lambda lib, f: f.vjp(lambda x: 1.0, lib.ones(2)),
    "cotangent shape": lambda lib, f: f.vjp(lambda x: x, lib.ones(2))[1](lib.ones(3)),
    "cotangent tree": lambda lib, f: f.vjp(lambda x: (x, x), lib.ones(2))[1](lib.ones(2)),
    "tangent shape": lambda lib, f: f.jvp(lambda x: x, (lib.ones(2),), (lib.ones(3),)),
    "primals": lambda lib, f: f.jvp(lambda x: x, lib.ones(2), lib.ones(2)),
    "no primals": lambda lib, f: f.jvp(lambda x: x, (), ()),
    "jvp of no tensor": lambda lib, f: f.jvp(lambda x: 1, (lib.ones(2),), (lib.ones(2),)),
    "item": lambda lib, f: f.vmap(lambda x: x.item())(lib.ones(3)),
    "random": lambda lib, f: f.vmap(lambda x: lib.rand(2) + x)(lib.ones(3)),
    "in_dim": lambda lib, f: f.vmap(lambda x: x, in_dims=2)(lib.ones(3)),
    "in_dims": lambda lib, f: f.vmap(lambda x: x, in_dims=(0, 0))(lib.ones(3)),
    "in_dims class": lambda lib, f: f.vmap(lambda x: x, in_dims="a")(lib.ones(3)),
    "sizes": lambda lib, f: f.vmap(lambda x, y: x)(lib.ones(3), lib.ones(2)),
    "output": lambda lib, f: f.vmap(lambda x: 1)(lib.ones(3)),
    "not a tensor": lambda lib, f: f.vmap(lambda x: x)(2.0),
    "out_dims": lambda lib, f: f.vmap(lambda x: x, out_dims=(0, 1))(lib.ones(3)),
    "out_dims class": lambda lib, f: f.vmap(lambda x: x, out_dims="a")(lib.ones(3)),
    "out_dim": lambda lib, f: f.vmap(lambda x: x, out_dims=3)(lib.ones(3)),
    "out_dim None": lambda lib, f: f.vmap(lambda x: x, out_dims=None)(lib.ones(3)),
    "randomness": lambda lib, f: f.vmap(lambda x: x, randomness="x")(lib.ones(3)),
    "chunks": lambda lib, f: f.vmap(lambda x: x, chunk_size=0)(lib.ones(3)),
    "no inputs": lambda lib, f: f.vmap(lambda: 1)(),
    "in place": lambda lib, f: f.vmap(lambda x: lib.zeros(3).add_(x))(lib.ones(3, 3)),
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
def test_what_torch_refuses_is_refused(mistake):
    with pytest.raises((RuntimeError, ValueError, IndexError)) as theirs:
        MISTAKES[mistake](torch, torch.func)
    with pytest.raises(theirs.type):
        MISTAKES[mistake](dg, dg.func)


@pytest.mark.parametrize("draw", ["rand", "randn", "dropout"])
def test_randomness_draws_what_torch_draws(draw):
    def run(lib):
        lib.manual_seed(3)
        x = lib.ones(4, 5)

        def one(row):
            if draw == "dropout":
                return lib.nn.functional.dropout(row)
            return row + getattr(lib, draw)(5)

        return [lib.func.vmap(one, randomness=r)(x) for r in ("different", "same")]

    for ours, theirs in zip(run(dg), run(torch), strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), 1e-6)


def test_linearize_evaluates_the_function_once():
    calls = []

    def f(x, y):
        calls.append(1)
        return {"a": x * y}, (x**2).sum()

    x, y = dg.tensor(V), dg.tensor(W)
    out, push = dg.func.linearize(f, x, y)
    want = dg.func.jvp(f, (x, y), (y, x))
    calls.clear()
    got = push(y, x)
    assert not calls
    np.testing.assert_allclose(got[0]["a"].numpy(), want[1][0]["a"].numpy())
    np.testing.assert_allclose(got[1].numpy(), want[1][1].numpy())
    assert not out[1].requires_grad
    with pytest.raises(RuntimeError, match="same argspec"):
        push(y)
    with pytest.raises(RuntimeError, match="doesn't match the shape"):
        push(y, x[:2])


def test_under_no_grad_results_keep_no_history():
    x = dg.tensor(2.0, requires_grad=True)
    with dg.no_grad():
        assert not dg.func.grad(dg.sin)(x).requires_grad
        out, pull = dg.func.vjp(lambda z: z**2, x)
    assert not out.requires_grad
    (g,) = pull(dg.tensor(1.0))
    assert dg.autograd.grad(g, x)[0].item() == 2.0
    with dg.no_grad():
        assert not pull(dg.tensor(1.0))[0].requires_grad


@pytest.mark.parametrize("name", ["jacrev", "jacfwd"])
def test_a_jacobian_through_a_change_in_place_of_another_argument(name):
    def f(x, y):
        y[:2] = x
        return y * y

    x, y = dg.tensor([1.0, 2.0]), dg.zeros(3)
    assert getattr(dg.func, name)(f)(x, y).tolist() == [[2.0, 0.0], [0.0, 4.0], [0.0, 0.0]]


@pytest.mark.parametrize("name", ["jacrev", "jacfwd"])
def test_jacobians_are_of_real_functions(name):
    transform = getattr(dg.func, name)
    with pytest.raises(RuntimeError, match="Expected all inputs to be real"):
        transform(dg.conj)(dg.ones(1, dtype=dg.complex64))
    with pytest.raises(RuntimeError, match="Expected all outputs to be real"):
        transform(lambda x: x * 1j)(dg.ones(1))


def test_jacrev_by_single_rows_does_without_vmap():
    class Dynamic(dg.autograd.Function):
        @staticmethod
        def forward(x):
            return x * 1

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, g):
            g.nonzero()
            return g

    np.testing.assert_array_equal(
        dg.func.jacrev(Dynamic.apply, chunk_size=1)(dg.ones(3)), np.eye(3)
    )
    with pytest.raises(RuntimeError, match="dynamic shape"):
        dg.func.jacrev(Dynamic.apply)(dg.ones(3))


def test_functionalize_and_debug_unwrap():
    assert dg.func.functionalize(lambda x: x.clone().add_(1))(dg.ones(2)).tolist() == [2.0, 2.0]
    with pytest.raises(RuntimeError, match="invalid argument for remove"):
        dg.func.functionalize(dg.sin, remove="all")
    seen = []
    dg.func.vmap(lambda x: seen.append(dg.func.debug_unwrap(x)) or x)(dg.ones(2, 3))
    assert seen[0].shape == (2, 3)
