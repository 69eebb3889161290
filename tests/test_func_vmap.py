"""``vmap`` over every operation of the table: the batch equals the stacked single results."""

import numpy as np
import pytest

import distgrad as dg
from distgrad.autograd.batching import BatchLevel
from distgrad.errors import ShapeError
from distgrad.func import grad, vmap
from distgrad.nn import functional as F
from distgrad.tensor import Tensor, wrap
from distgrad.testing.operations import Case, cases

SIZE = 3
DYNAMIC = ("argwhere",)  # refused: how long the result is depends on the numbers
CASES = [c for c in cases() if not c[0].startswith("_") and c[0] not in DYNAMIC]


def _variants(case):
    """Return which operands (lists as one) carry a batch: each alone, and all."""
    names = [o.name for o in case.op.operands]
    there = [i for i, a in enumerate(case.arrays) if a is not None]
    chosen = [{i} for i in there]
    if len(there) > 1:
        chosen.append(set(there))
    return names, chosen


def _many(array, rng, place):
    """Return SIZE different arrays like ``array``, permuted so that all stay valid."""
    if array.dtype.kind == "f":
        scale = np.linspace(1.0, 1.1, SIZE)[:, None]
        flat = array.reshape(1, -1) * scale
        return flat.reshape(SIZE, *array.shape)
    return np.stack([np.array(array)] * SIZE)


@pytest.mark.parametrize(("name", "index"), CASES)
def test_the_batch_is_the_stack_of_single_results(name, index):
    case = Case(name, index)
    rng = np.random.default_rng(0)
    names, variants = _variants(case)
    rows = [
        [_many(x, rng, i) for x in a] if isinstance(a, list)
        else None if a is None else _many(a, rng, i)
        for i, a in enumerate(case.arrays)
    ]  # fmt: skip
    for chosen in variants:
        _check_variant(case, names, rows, chosen)


def _check_variant(case, names, rows, chosen):
    def operand(i, place):
        a = case.arrays[i] if i not in chosen else rows[i]
        pick = (lambda x: x[place]) if i in chosen and place is not None else (lambda x: x)
        if isinstance(a, list):
            return [wrap(np.asarray(pick(x))) for x in a]
        return None if a is None else wrap(np.asarray(pick(a)))

    whole = [operand(i, None) for i in range(len(names))]
    dims = tuple(0 if i in chosen else None for i in range(len(names)))

    def call(*operands):
        out = case.op.function(**dict(zip(names, operands, strict=True)), **case.options)
        return out if isinstance(out, Tensor) else tuple(out)

    singles = []
    for place in range(SIZE):
        out = call(*[operand(i, place) for i in range(len(names))])
        singles.append([out] if isinstance(out, Tensor) else list(out))
    many = list(zip(*singles, strict=True))
    if any(p.array.shape != part[0].array.shape for part in many for p in part):
        with pytest.raises(ShapeError, match="dynamic shape"):
            vmap(call, in_dims=dims)(*whole)
        return
    got = vmap(call, in_dims=dims)(*whole)
    gots = [got] if isinstance(got, Tensor) else list(got)
    for number, (g, parts) in enumerate(zip(gots, many, strict=True)):
        if case.op.name in ("cross_entropy_loss", "attention") and number:
            continue  # what only backward on arrays reads
        want = np.stack([p.array for p in parts])
        assert g.array.dtype == want.dtype, (chosen, g.array.dtype, want.dtype)
        np.testing.assert_allclose(g.array, want, rtol=1e-9, atol=1e-12, err_msg=str(chosen))


#: Their rules read numbers, which a batch does not show.
READ_NUMBERS = {"packed_lu"}


@pytest.mark.parametrize(("name", "index"), CASES)
def test_gradients_of_single_elements(name, index):
    case = Case(name, index)
    places = [
        i for i, (a, track) in enumerate(zip(case.arrays, case.differentiable, strict=True))
        if track and not isinstance(a, list)
    ]  # fmt: skip
    if not places or name in READ_NUMBERS:
        return
    names = [o.name for o in case.op.operands]

    def loss(x):
        fixed = [[wrap(np.array(v)) for v in a] if isinstance(a, list)
                 else None if a is None else wrap(np.array(a)) for a in case.arrays]  # fmt: skip
        fixed[places[0]] = x
        out = case.op.function(**dict(zip(names, fixed, strict=True)), **case.options)
        outs = [out] if isinstance(out, Tensor) else list(out)
        if case.op.outputs:
            outs = [o for o, f in zip(outs, case.op.outputs.values(), strict=True) if f]
        return sum((o.abs() ** 2).sum() for o in outs)

    rows = _many(case.arrays[places[0]], None, 0)
    got = vmap(grad(loss))(wrap(rows)).array
    want = np.stack([grad(loss)(wrap(row)).array for row in rows])
    np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-9)


COMMON = {
    "elementwise": lambda x: (x.sin() * x + 1).relu() / 2,
    "reductions": lambda x: x.sum(0) + x.mean() + x.amax(1).sum() + x.std(-1).sum(),
    "softmax": lambda x: F.cross_entropy(x.softmax(1), dg.tensor([0, 1, 2])),
    "matmul": lambda x: x @ x.T @ x[0],
    "linear": lambda x: F.linear(x, x, x[0]),
    "convolution": lambda x: F.conv1d(x[None], x[:, :, None], x[0]),
    "norm": lambda x: F.layer_norm(x, (3,)),
    "shapes": lambda x: dg.cat([x.reshape(9), x.T.flatten(), x[1:].unsqueeze(0).view(-1)]),
    "indices": lambda x: x[dg.tensor([2, 0])].gather(1, dg.tensor([[0], [1]])),
}


@pytest.mark.parametrize("family", COMMON, ids=str)
def test_common_operations_do_not_take_elements_one_by_one(family, monkeypatch):
    def refuse(self, op, operands, options):
        raise AssertionError(f"{op.name} has no rule for this")

    monkeypatch.setattr(BatchLevel, "one_by_one", refuse)
    x = dg.randn(4, 3, 3)
    got = vmap(COMMON[family])(x)
    for i in range(4):
        np.testing.assert_allclose(got[i].array, COMMON[family](x[i]).array, 1e-4, 1e-5)
    vmap(grad(lambda y: COMMON[family](y).sum()))(x)


def test_an_empty_batch_keeps_the_shape():
    assert vmap(lambda x: x.exp().sum(0))(dg.ones(0, 3, 2)).shape == (0, 2)


# ---------------------------------------------------------------------- functions that read numbers
def test_a_function_that_reads_numbers_runs_once_per_element():
    def f(x):
        assert (x.array >= 0).all()  # code that is no operation
        return x * 2, x.sum()

    x = dg.arange(6.0).reshape(2, 3)
    double, total = vmap(f, in_dims=1, out_dims=(1, 0))(x)
    assert double.tolist() == (x * 2).tolist() and total.tolist() == [3.0, 5.0, 7.0]


def test_it_is_refused_where_memory_was_written_before():
    def f(x):
        x.add_(1)
        assert (x.array >= 0).all()
        return x

    with pytest.raises(RuntimeError, match="were asked for"):
        vmap(f)(dg.ones(2, 3))


def test_it_is_refused_where_elements_write_into_one_tensor():
    def f(x, shared):
        assert (x.array >= 0).all()
        shared.add_(x)
        return x

    with pytest.raises(RuntimeError, match="changed in place"):
        vmap(f, (0, None))(dg.ones(2, 3), dg.zeros(3))


@pytest.mark.parametrize(("randomness", "alike"), [("same", True), ("different", False)])
def test_random_numbers_once_per_element(randomness, alike):
    def f(x):
        assert (x.array >= 0).all()
        return dg.rand(4)

    rows = vmap(f, randomness=randomness)(dg.ones(2))
    assert bool((rows[0] == rows[1]).all()) == alike


def test_outputs_of_dynamic_shape_are_refused():
    with pytest.raises(ShapeError, match="dynamic shape"):
        vmap(dg.nonzero)(dg.ones(2, 3))


def test_repr_names_the_level():
    seen = []
    vmap(vmap(lambda x: seen.append(repr(x)) or x))(dg.ones(2, 3))
    assert seen[0].startswith("BatchedTensor(lvl=2, bdim=0, value=")
