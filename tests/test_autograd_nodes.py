"""Nodes: the order they run in, what they are called, what they show; gradients of leaves."""

import threading

import pytest

import distgrad as dg

F = dg.nn.functional


def leaf(*shape):
    return dg.rand(*shape, requires_grad=True)


# ---------------------------------------------------------------------- order
def test_of_several_nodes_that_are_ready_the_one_recorded_last_runs_first():
    order = []
    a = leaf(2)
    b, c = a * 2, a * 3
    d = b * c
    e = c + 1
    f = b + e
    for name, x in zip("abcdef", (a, b, c, d, e, f), strict=True):
        x.register_hook(lambda g, name=name: order.append(name))
    (d + f).sum().backward()
    assert "".join(order) == "fedcba"


def test_the_parts_of_one_operation_come_in_the_order_of_its_node():
    order = []
    x = leaf(3)
    p, q = x.split([1, 2])
    r, s = p * 2, q * 3
    for name, y in zip("pqrs", (p, q, r, s), strict=True):
        y.register_hook(lambda g, name=name: order.append(name))
    dg.cat([s, r]).sum().backward()
    assert "".join(order[:2]) == "sr"
    assert sorted(order[2:]) == ["p", "q"]


def test_the_number_of_a_node_can_be_set():
    order = []
    x = leaf(3)
    a, b = x * 2, x * 3
    assert b.grad_fn._sequence_nr() > a.grad_fn._sequence_nr()
    assert a.grad_fn.next_functions[0][0]._sequence_nr() == 2**64 - 1
    a.grad_fn._set_sequence_nr(10**9)
    assert a.grad_fn._sequence_nr() == 10**9
    a.register_hook(lambda g: order.append("a"))
    b.register_hook(lambda g: order.append("b"))
    (a + b).sum().backward()
    assert order == ["a", "b"]
    assert x.grad.tolist() == [5.0] * 3


def test_a_change_after_the_recording_is_found_whatever_the_number():
    x = leaf(3)
    a = x * 2
    b = a.exp()
    b.grad_fn._set_sequence_nr(10**9)
    b.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        b.sum().backward()


# ---------------------------------------------------------------------- names
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: leaf(3).sum(), "SumBackward0"),
        (lambda: leaf(3, 2).sum(1), "SumBackward1"),
        (lambda: leaf(3, 2).mean(1), "MeanBackward1"),
        (lambda: leaf(3) ** 2, "PowBackward0"),
        (lambda: 2 ** leaf(3), "PowBackward1"),
        (lambda: leaf(3) @ leaf(3), "DotBackward0"),
        (lambda: leaf(2, 3) @ leaf(3), "MvBackward0"),
        (lambda: leaf(2, 3) @ leaf(3, 2), "MmBackward0"),
        (lambda: leaf(2, 2, 3) @ leaf(2, 3, 2), "BmmBackward0"),
        (lambda: leaf(3).log1p(), "Log1PBackward0"),
        (lambda: dg.linalg.det(leaf(3, 3)), "LinalgDetBackward0"),
        (lambda: F.max_pool2d(leaf(1, 1, 4, 4), 2), "MaxPool2DWithIndicesBackward0"),
        (lambda: F.avg_pool3d(leaf(1, 1, 4, 4, 4), 2), "AvgPool3DBackward0"),
        (lambda: F.cross_entropy(leaf(3, 2), dg.tensor([0, 1, 1])), "NllLossBackward0"),
        (lambda: F.interpolate(leaf(1, 1, 2), 4, mode="linear"), "UpsampleLinear1DBackward0"),
        (lambda: leaf(3).median(), "MedianBackward0"),
        (lambda: leaf(3).median(0)[0], "MedianBackward1"),
    ],
)
def test_nodes_have_the_names_that_pytorch_gives_them(make, name):
    out = make()
    assert type(out.grad_fn).__name__ == out.grad_fn.name() == name
    assert (out * 2).grad_fn.next_functions[0][0].name() == name
    out.sum().backward()


# ---------------------------------------------------------------------- saved values
@pytest.mark.parametrize(
    ("make", "name", "value"),
    [
        (lambda: leaf(2, 3) @ dg.ones(3, 1), "mat2", [[1.0]] * 3),
        (lambda: leaf(2, 3) @ dg.ones(3, 1), "mat2_sym_sizes", (3, 1)),
        (lambda: leaf(2, 3) @ leaf(3, 1), "self_sym_strides", (3, 1)),
        (lambda: leaf(2, 3).mean(), "self_sym_numel", 6),
        (lambda: leaf(2, 3).sum(1), "dim", (1,)),
        (lambda: leaf(2, 3)[:, dg.tensor([0, 1])], "indices", (None, [0, 1])),
        (lambda: F.conv2d(leaf(1, 1, 3, 3), leaf(1, 1, 2, 2), padding=1), "padding", (1, 1)),
        (lambda: F.conv2d(leaf(1, 1, 3, 3), leaf(1, 1, 2, 2)), "transposed", False),
        (lambda: leaf(4)[1:3], "start", 1),
        (lambda: leaf(4).as_strided((2,), (2,), 1), "storage_offset", 1),
    ],
)
def test_saved_values_have_the_names_that_pytorch_gives_them(make, name, value):
    def plain(x):
        if isinstance(x, tuple):
            return tuple([plain(y) for y in x])
        return x.tolist() if isinstance(x, dg.Tensor) else x

    assert plain(getattr(make().grad_fn, f"_saved_{name}")) == value


def test_what_is_not_saved_is_no_attribute():
    node = (leaf(3) * 2).grad_fn
    assert not hasattr(node, "_saved_nothing")
    with pytest.raises(AttributeError, match="'MulBackward0' object has no attribute 'color'"):
        node.color  # noqa: B018


# ---------------------------------------------------------------------- gradients of leaves
def test_the_gradient_of_a_leaf_lies_in_memory_as_the_leaf_does():
    for layout in (dg.contiguous_format, dg.channels_last):
        x = dg.rand(2, 3, 4, 5).to(memory_format=layout).requires_grad_()
        y = dg.rand(2, 3, 4, 5).requires_grad_()
        (x * y).sum().backward()
        assert x.grad.stride() == x.stride()
        assert y.grad.stride() == y.stride()


def test_threads_that_share_a_leaf_lose_no_gradient():
    x = dg.zeros(200_000, requires_grad=True)
    threads = [threading.Thread(target=lambda: (x * 1).sum().backward()) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert x.grad.min() == x.grad.max() == 16


def test_a_gradient_that_no_longer_fits_is_refused():
    x = dg.ones(4, requires_grad=True)
    x.sum().backward()
    x.data = dg.ones(2)
    with pytest.raises(RuntimeError, match=r"gradient of shape \[2\] does not fit .* \[4\]"):
        x.sum().backward()


def test_joined_tensors_get_gradients_of_their_own_dtypes():
    a, b = leaf(2), dg.ones(2, dtype=dg.complex64, requires_grad=True)
    for join in (dg.cat, dg.stack):
        a.grad = b.grad = None
        join([a, b]).abs().sum().backward()
        assert (a.grad.dtype, b.grad.dtype) == (dg.float32, dg.complex64)
    pair = dg.rand(2, dtype=dg.float64).requires_grad_(), dg.rand(2, dtype=dg.complex128)
    assert dg.autograd.gradcheck(lambda a, b: dg.cat([a, b]), pair)


def test_all_nans_share_the_gradient_of_an_extreme():
    for name in ("max", "min", "median"):
        x = dg.full((4,), float("nan"), requires_grad=True)
        getattr(x, name)().backward()
        assert x.grad.tolist() == [0.25] * 4


def test_parts_of_unsafe_split_are_changed_independently():
    x = leaf(2, 2)
    one, two = (x * 2).unsafe_split(1)
    one.mul_(two)
    one.sum().backward()
    assert dg.allclose(x.grad, 4 * x.detach().flip(0))


def test_a_new_memory_is_a_change():
    x = leaf(3)
    y = x * 2
    z = y * y
    with dg.no_grad():
        y.set_(dg.ones(3))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()


def test_handles_are_removable_handles():
    x = leaf(2)
    for handle in (x.register_hook(print), (x * 1).grad_fn.register_hook(print)):
        assert isinstance(handle, dg.utils.hooks.RemovableHandle)
