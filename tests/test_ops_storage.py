"""Memory under tensors: views by strides, forms in place, copies, and what ``out=`` refuses."""

import numpy as np
import pytest

import distgrad as dg

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch


def same(got, want, strides=True):
    np.testing.assert_array_equal(got.detach().numpy(), want.detach().numpy())
    assert not strides or tuple(got.stride()) == tuple(want.stride())


def both(make):
    return make(dg), make(torch)


# ---------------------------------------------------------------------- strides
def test_as_strided_reaches_the_memory_around_a_view():
    for size, stride, offset in (((2, 2), (1, 2), None), ((2, 2), (1, 2), 0), ((3,), (2,), 10)):
        got, want = both(lambda L: L.arange(20.0)[5:15])
        same(got.as_strided(size, stride, offset), want.as_strided(size, stride, offset))


def test_as_strided_writes_through_and_knows_its_base():
    x = dg.arange(6.0)
    part = x[2:].as_strided((2,), (2,), 1)
    part.mul_(10)
    assert x.tolist() == [0.0, 10.0, 2.0, 30.0, 4.0, 5.0]
    assert x.untyped_storage().data_ptr() == part.untyped_storage().data_ptr()
    assert part.storage_offset() == 1 and x.untyped_storage().nbytes() == 24


@pytest.mark.parametrize("through", ["t", "expand", "slice"])
def test_as_strided_gradients_of_views(through):
    def run(L):
        x = L.arange(12.0, dtype=L.float64).reshape(3, 4).requires_grad_()
        view = {"t": x.t(), "expand": x[:, :1].expand(3, 2), "slice": x[1:]}[through]
        y = view.as_strided((2, 2), (1, 4)) if through != "expand" else view.as_strided(
            (3, 2), (4, 0))  # fmt: skip
        (y * L.arange(float(y.numel()), dtype=L.float64).reshape(y.shape)).sum().backward()
        return x.grad

    same(*both(run), strides=False)


def test_changes_in_place_of_a_strided_view_have_gradients():
    def run(L):
        x = L.arange(6.0, dtype=L.float64).requires_grad_()
        y = x * 2
        y.as_strided((2,), (3,), 1).mul_(5)
        y.sum().backward()
        return x.grad

    same(*both(run), strides=False)


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [((7,), (1,), 0), ((2,), (1,), 5), ((2, 2), (1,), 0), ((2,), (-1,), 1), ((2,), (1,), -1)],
)
def test_as_strided_refuses_what_is_outside(size, stride, offset):
    with pytest.raises(RuntimeError, match="as_strided"):
        dg.zeros(6).as_strided(size, stride, offset)


def test_as_strided_scatter_has_the_gradients_of_what_it_does():
    x, src = dg.rand(3, 3, dtype=dg.float64), dg.rand(2, 2, dtype=dg.float64)
    args = ((2, 2), (3, 1), 1)
    want = torch.as_strided_scatter(torch.tensor(x.tolist()), torch.tensor(src.tolist()), *args)
    np.testing.assert_allclose(dg.as_strided_scatter(x, src, *args).numpy(), want, rtol=1e-6)
    x.requires_grad_(), src.requires_grad_()
    assert dg.autograd.gradcheck(lambda a, b: dg.as_strided_scatter(a, b, *args), (x, src))


# ---------------------------------------------------------------------- a new form in place
FORMS = {
    "t_": lambda x: x.t_(),
    "transpose_": lambda x: x.transpose_(0, -1),
    "unsqueeze_": lambda x: x.unsqueeze_(1),
    "squeeze_": lambda x: x.unsqueeze_(0).squeeze_(),
    "swapaxes_": lambda x: x.swapaxes_(0, 1),
    "as_strided_": lambda x: x.as_strided_((2, 2), (3, 1), 1),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_form_in_place_has_gradients_and_keeps_views_true(name):
    def run(L):
        x = L.arange(6.0, dtype=L.float64).reshape(2, 3).requires_grad_()
        y = x * 1
        view = y[0]
        version = y._version
        assert FORMS[name](y) is y and y._version > version
        y.mul_(3)
        factors = L.arange(float(y.numel()), dtype=L.float64).reshape(y.shape)
        ((y * factors).sum() + (view**2).sum()).backward()
        return x.grad

    same(*both(run), strides=False)


def test_a_form_in_place_of_a_view_changes_its_base():
    def run(L):
        x = L.arange(6.0, dtype=L.float64).reshape(2, 3).requires_grad_()
        y = x * 1
        view = y[:, 1:]
        view.t_()
        view[0].mul_(4)
        (y**2).sum().backward()
        return x.grad

    same(*both(run), strides=False)


def test_a_leaf_that_requires_grad_keeps_its_form():
    leaf = dg.zeros(2, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf"):
        leaf.t_()
    with dg.no_grad():
        leaf.t_()
    (leaf * 2).sum().backward()
    assert leaf.shape == leaf.grad.shape == (3, 2)


def test_resizing():
    def run(L):
        x = L.arange(6.0)
        kept = x.resize_(2, 2)
        grown = L.arange(2.0).resize_((2, 3))
        return [kept, grown[0, :2], L.zeros(3).resize_as_(L.ones(2, 1)), x.resize_(6)]

    for got, want in zip(*both(run), strict=True):
        same(got, want)
    with pytest.raises(RuntimeError, match="resize"):
        dg.zeros(2, requires_grad=True).resize_(3)
    with pytest.raises(RuntimeError, match="resize_"):
        dg.zeros(2).resize_(-1)


def test_set_shares_memory():
    source = dg.arange(6.0)
    x = dg.zeros(1).set_(source, 2, (2, 2), (1, 1))
    assert x.tolist() == [[2.0, 3.0], [3.0, 4.0]] and x.data_ptr() == source[2:].data_ptr()
    x.set_(source)
    assert x.is_set_to(source) and not x.is_set_to(source.clone())
    assert x.set_().shape == (0,)
    with pytest.raises(RuntimeError, match="same dtype"):
        x.set_(source.double())


# ---------------------------------------------------------------------- layouts
def test_memory_formats():
    x, y = both(lambda L: L.arange(120.0).reshape(2, 3, 4, 5))
    for form in ("channels_last", "contiguous_format", "preserve_format"):
        a, b = getattr(dg, form), getattr(torch, form)
        same(x.contiguous(memory_format=a), y.contiguous(memory_format=b))
        same(x.clone(memory_format=a), y.clone(memory_format=b))
        same(x.to(dg.float64, memory_format=a), y.to(torch.float64, memory_format=b))
        assert x.is_contiguous(memory_format=a) == y.is_contiguous(memory_format=b)
        assert repr(a) == f"distgrad.{form}"
    last = x.contiguous(memory_format=dg.channels_last)
    assert last.is_contiguous(memory_format=dg.channels_last) and not last.is_contiguous()
    assert last.dim_order() == (0, 2, 3, 1) and last.layout is dg.strided
    assert x.t if not x[0, 0].t().is_contiguous() else False
    assert x[0, 0].t().contiguous().is_contiguous()
    with pytest.raises(RuntimeError, match="required rank 4"):
        x[0].contiguous(memory_format=dg.channels_last)


# ---------------------------------------------------------------------- copies
COPIES = {
    "alias_copy": (), "detach_copy": (), "diagonal_copy": (1,), "expand_copy": ((2, 2, 3),),
    "narrow_copy": (1, 0, 2), "permute_copy": ((1, 0),), "select_copy": (0, 1),
    "slice_copy": (1, 0, 2), "split_copy": (1,), "split_with_sizes_copy": ([1, 1],),
    "squeeze_copy": (0,), "t_copy": (), "transpose_copy": (0, 1), "unbind_copy": (1,),
    "unfold_copy": (1, 2, 1), "unsqueeze_copy": (1,), "view_copy": ((3, 2),),
    "as_strided_copy": ((2, 2), (1, 1)),
}  # fmt: skip


@pytest.mark.parametrize("name", COPIES)
def test_copies_are_the_views_elsewhere(name):
    x, y = both(lambda L: L.arange(6.0).reshape(2, 3))
    got, want = getattr(dg, name)(x, *COPIES[name]), getattr(torch, name)(y, *COPIES[name])
    pairs = zip(got, want, strict=True) if isinstance(want, tuple) else [(got, want)]
    for a, b in pairs:
        np.testing.assert_array_equal(a.numpy(), b.numpy())
        assert not np.shares_memory(a.numpy(), x.numpy())
    if not isinstance(want, tuple):
        out = dg.zeros(got.shape)
        assert getattr(dg, name)(x, *COPIES[name], out=out) is out
        assert out.tolist() == got.tolist()


# ---------------------------------------------------------------------- out=
IDS = [2, 1, 0]
INTO = {
    "cat": lambda L, x, out: L.cat([x, x], out=out),
    "gather": lambda L, x, out: L.gather(x, 0, L.tensor(IDS), out=out),
    "take": lambda L, x, out: L.take(x, L.tensor(IDS), out=out),
    "index_select": lambda L, x, out: L.index_select(x, 0, L.tensor(IDS), out=out),
    "masked_select": lambda L, x, out: L.masked_select(x, x > 0, out=out),
    "exp": lambda L, x, out: L.exp(x, out=out),
    "scatter": lambda L, x, out: L.scatter(x, 0, L.tensor([0]), 1.0, out=out),
}


@pytest.mark.parametrize("name", INTO)
def test_out_that_shares_memory_is_refused(name):
    for L in (dg, torch):
        memory = L.rand(20)
        with pytest.raises(RuntimeError, match="unsupported operation"):
            INTO[name](L, memory[1:7], memory[:6])
        shape = (12,) if name == "cat" else (3,) if name in ("gather", "take") else (6,)
        with pytest.raises(RuntimeError, match="unsupported operation"):
            INTO[name](L, L.rand(6), L.rand(1).expand(shape))


def test_out_that_is_the_operand_is_refused_where_elements_move():
    x = dg.arange(3.0)
    with pytest.raises(RuntimeError, match="unsupported operation"):
        dg.gather(x, 0, dg.tensor(IDS), out=x)
    with pytest.raises(RuntimeError, match="Expected out tensor to have dtype float32"):
        dg.gather(x, 0, dg.tensor(IDS), out=dg.zeros(3, dtype=dg.float64))
    assert dg.exp(x, out=x) is x
