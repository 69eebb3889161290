"""Indexing: every kind of index against PyTorch, writing, masks, and errors in its words."""

import random

import numpy as np
import pytest

import distgrad as dg

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


def converted(item, library):
    if isinstance(item, tuple):
        return tuple(converted(i, library) for i in item)
    return library.tensor(item) if isinstance(item, np.ndarray) else item


def drawn_index(rng, draw, shape):
    """Return one random index, right or wrong, for a tensor of this shape."""
    items, dim = [], 0
    for _ in range(draw.randrange(1, 5)):
        n = shape[dim % len(shape)]
        choices = [
            draw.randrange(-n, n),
            slice(draw.choice([None, 0, 1, -2]), draw.choice([None, 2, -1, 5]), None),
            slice(None, None, 2),
            None,
            [draw.randrange(-n, n) for _ in range(2)],
            rng.random(n) > 0.4,
            rng.integers(-n, n, (3, 2)),
            np.array(draw.randrange(n)),
            True,
        ]
        item = draw.choice(choices)
        items.append(item)
        dim += not (item is None or item is True)
    if draw.random() < 0.3:
        items.insert(draw.randrange(len(items) + 1), Ellipsis)
    return tuple(items) if len(items) > 1 or draw.random() < 0.5 else items[0]


def attempt(action):
    try:
        return action(), None
    except Exception as error:
        return None, error


@pytest.mark.parametrize("seed", range(120))
def test_reading_and_its_gradient_agree_with_torch(seed):
    rng, draw = np.random.default_rng(seed), random.Random(seed)
    shape = draw.choice([(3,), (3, 4), (2, 3, 4), (4, 2, 3, 2)])
    index = drawn_index(rng, draw, shape)
    data = rng.standard_normal(shape)
    theirs, ours = torch.tensor(data, requires_grad=True), dg.tensor(data, requires_grad=True)
    want, refusal = attempt(lambda: theirs[converted(index, torch)])
    got, error = attempt(lambda: ours[converted(index, dg)])
    assert (refusal is None) == (error is None), (index, refusal, error)
    if refusal is not None:
        assert isinstance(error, type(refusal))
        return
    np.testing.assert_array_equal(got.detach().numpy(), want.detach().numpy())
    (want * want).sum().backward()
    (got * got).sum().backward()
    np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy(), rtol=1e-12)


@pytest.mark.parametrize("seed", range(120))
def test_writing_and_both_gradients_agree_with_torch(seed):
    rng, draw = np.random.default_rng(seed), random.Random(seed)
    shape = draw.choice([(3,), (3, 4), (2, 3, 4)])
    index = drawn_index(rng, draw, shape)
    data = rng.standard_normal(shape)
    found, refusal = attempt(lambda: torch.tensor(data)[converted(index, torch)])
    if refusal is not None:
        return
    sizes = [tuple(found.shape), tuple(found.shape)[1:], (1, *found.shape), (), (2,)]
    value = np.asarray(rng.standard_normal(draw.choice(sizes)))
    pairs = []
    for library in (torch, dg):
        x = library.tensor(data, requires_grad=True)
        v = library.tensor(value, requires_grad=True)
        y = x * 2
        _, error = attempt(
            lambda y=y, v=v, library=library: y.__setitem__(converted(index, library), v)
        )
        if error is None:
            (y * y).sum().backward()
        pairs.append((x, v, y, error))
    (tx, tv, ty, refusal), (x, v, y, error) = pairs
    assert (refusal is None) == (error is None), (index, value.shape, refusal, error)
    if refusal is not None:
        assert isinstance(error, type(refusal))
        return
    np.testing.assert_array_equal(y.detach().numpy(), ty.detach().numpy())
    for ours, theirs in ((x, tx), (v, tv)):
        zeros = np.zeros(ours.shape)
        want = zeros if theirs.grad is None else theirs.grad.numpy()
        got = zeros if ours.grad is None else ours.grad.numpy()
        np.testing.assert_allclose(got, want, rtol=1e-12)


def test_writing_without_history_goes_straight_into_the_memory():
    x = dg.zeros(3, 4)
    memory = x.array
    x[1:, [0, 2]] = dg.ones(2, 2)
    x[0] = 5
    assert x.array is memory
    assert not x.requires_grad
    assert x.tolist() == [[5.0] * 4, [1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 1.0, 0.0]]


def test_an_index_named_twice_gets_both_gradients():
    x = dg.tensor([1.0, 2.0, 3.0], requires_grad=True)
    x[[0, 0, 2, -3]].sum().backward()
    assert x.grad.tolist() == [3.0, 0.0, 1.0]


def test_numbers_slices_and_none_give_views():
    x = dg.zeros(3, 4)
    for index in (1, (1, 2), slice(1, None), None, Ellipsis, (slice(None), None, -1)):
        x[index].add_(1)
    assert x.sum().item() == 4 + 1 + 8 + 12 + 12 + 3


def test_a_mask_and_a_list_give_copies():
    x = dg.zeros(3)
    x[[0, 1]].add_(1)
    x[x == 0].add_(1)
    assert x.tolist() == [0.0, 0.0, 0.0]


MESSAGES = {
    "out of bounds": (IndexError, "index 5 is out of bounds for dimension 0 with size 3", 5),
    "second dim": (IndexError, "index 9 is out of bounds for dimension 1 with size 4", (0, 9)),
    "too many": (IndexError, "too many indices for tensor of dimension 2", (0, 0, 0)),
    "tensor": (IndexError, "index 7 is out of bounds for dimension 0", [7]),
    "float": (IndexError, "only integers, slices", 1.5),
    "float tensor": (IndexError, "tensors used as indices must be long", [1.5]),
    "mask": (IndexError, "The shape of the mask", [True, False]),
    "step": (ValueError, "step must be greater than zero", slice(None, None, -1)),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_wrong_index_is_refused_in_torchs_words(name):
    kind, words, index = MESSAGES[name]
    x = dg.zeros(3, 4)
    with pytest.raises(kind, match=words):
        x[index]
    with pytest.raises(kind, match=words):
        x[index] = 0


def test_a_scalar_has_no_elements_to_index():
    with pytest.raises(IndexError, match="invalid index of a 0-dim tensor"):
        dg.tensor(1.0)[0]


def test_a_value_that_does_not_fit_names_both_shapes():
    x = dg.zeros(3, 4)
    with pytest.raises(RuntimeError, match=r"\[3\] cannot be broadcast to .* \[2, 4\]"):
        x[:2] = dg.zeros(3)
    with pytest.raises(TypeError, match="can't assign a list"):
        x[0] = [1.0, 2.0, 3.0, 4.0]


SAME_AS_TORCH = {
    "take": lambda L, x, i: L.take(x, i),
    "masked_select": lambda L, x, i: L.masked_select(x, x > 0),
    "masked_select-broadcast": lambda L, x, i: L.masked_select(x, x[0] > 0),
    "masked_scatter": lambda L, x, i: L.masked_scatter(x, x > 0, x * 2),
    "index_put": lambda L, x, i: L.index_put(x, (i[0], i[1]), x[0, :2] * 3),
    "index_put-add": lambda L, x, i: L.index_put(x, (i[0],), x[:1] * 3, True),
    "put_": lambda L, x, i: (x * 1).put_(i, x[:2, :2] * 2),
    "put-add": lambda L, x, i: (x * 1).put_(i, x[:2, :2] * 2, accumulate=True),
    "index_fill_": lambda L, x, i: (x * 1).index_fill_(1, i[0], 7.0),
    "index_add_": lambda L, x, i: (x * 1).index_add_(1, i[0], x[:, :2], alpha=2),
    "index_copy_": lambda L, x, i: (x * 1).index_copy_(0, i[0], x[1:]),
    "masked_fill_": lambda L, x, i: (x * 1).masked_fill_(x > 0, 0.5),
    "gather": lambda L, x, i: L.gather(x, 1, i),
    "take_along_dim": lambda L, x, i: L.take_along_dim(x, i[:1], 1),
    "take_along_dim-all": lambda L, x, i: L.take_along_dim(x, i),
    "scatter-value": lambda L, x, i: L.scatter(x, 1, i, 2.5),
    "scatter_": lambda L, x, i: (x * 1).scatter_(0, i, x[1:, :2]),
    "scatter_reduce-sum": lambda L, x, i: L.scatter_reduce(x, 1, i, x[:2, :2] * 2, "sum"),
    "scatter_reduce-mean": lambda L, x, i: L.scatter_reduce(
        x, 1, i, x[1:, 2:] * 2, "mean", include_self=False
    ),
    "scatter_reduce-amax": lambda L, x, i: L.scatter_reduce(x, 1, i, x[:2, 1:3], "amax"),
}


@pytest.mark.parametrize("name", SAME_AS_TORCH)
def test_indexing_functions_and_their_gradients_agree_with_torch(name):
    data = np.random.default_rng(1).standard_normal((3, 4))
    places = np.array([[0, 2], [1, 2]])
    grads = []
    for library in (torch, dg):
        x = library.tensor(data, requires_grad=True)
        out = SAME_AS_TORCH[name](library, x, library.tensor(places))
        (out * out).sum().backward()
        grads.append((out.detach().numpy(), x.grad.numpy()))
    (want, want_grad), (got, got_grad) = grads
    np.testing.assert_allclose(got, want, rtol=1e-12)
    np.testing.assert_allclose(got_grad, want_grad, rtol=1e-12)


@pytest.mark.parametrize("data", [[[0, 3], [5, 0]], [True, False], 2.0, 0])
def test_nonzero_agrees_with_torch(data):
    x = dg.tensor(data)
    want = torch.nonzero(torch.tensor(data))
    assert dg.nonzero(x).shape == tuple(want.shape)
    assert dg.nonzero(x).tolist() == dg.argwhere(x).tolist() == want.tolist()
    parts = torch.nonzero(torch.tensor(data), as_tuple=True)
    assert [p.tolist() for p in dg.nonzero(x, as_tuple=True)] == [p.tolist() for p in parts]


@pytest.mark.parametrize(
    ("kind", "words", "mistake"),
    [
        (IndexError, "index out of range in self", lambda x, i: x.index_select(0, i + 5)),
        (RuntimeError, "is out of bounds for dimension 0", lambda x, i: x.gather(0, i[None] + 5)),
        (RuntimeError, "only supports boolean masks", lambda x, i: x.masked_fill(i[:1], 0)),
        (RuntimeError, "same dtype", lambda x, i: x.index_add(0, i, i[:, None].expand(2, 4))),
        (RuntimeError, "either add or multiply", lambda x, i: x.scatter(0, i[None], 1, reduce="x")),
    ],
)
def test_mistakes_are_refused_with_torchs_class(kind, words, mistake):
    with pytest.raises(kind, match=words):
        mistake(dg.zeros(3, 4), dg.tensor([0, 1]))
