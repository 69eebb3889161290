"""Changes in place, views and version counters, side by side with PyTorch."""

import gc
import weakref

import numpy as np
import pytest

import distgrad as dg

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

DATA = np.random.default_rng(0).standard_normal((3, 4))


def leaf(L):
    return L.tensor(DATA, requires_grad=True)


# Each program gets the library and a leaf; it returns (what to differentiate, facts to compare).
def change_of_a_result(L, x):
    y = x * 2
    y.mul_(x)
    y.add_(1)
    return y.sum(), [y._version]


def change_of_a_view(L, x):
    y = x * 2
    v = y[1]
    v.mul_(3)
    return (y * y).sum(), [y._version, v._version]


def change_of_the_base_of_a_view(L, x):
    y = x * 2
    v = y[1]
    y.mul_(x)
    return (v * v).sum(), [v._version]


def change_of_a_sibling_view(L, x):
    y = x * 2
    v, w = y[1], y[:, 0]
    v.mul_(x[0])
    return (w * w * w).sum(), [w._version]


def change_of_a_view_of_a_view(L, x):
    y = x * 2
    v = y[1:].t()[2]
    v.mul_(3)
    v.add_(x[0, 0])
    return (y * y).sum(), []


def constant_written_with_gradients(L, x):
    z = L.zeros(3, 4, dtype=L.float64)
    z[1] = x[0]
    z[:, 2] = x[1, 2]
    return (z * z).sum(), [z.requires_grad, z.is_leaf]


def earlier_view_of_a_constant(L, x):
    z = L.zeros(3, 4, dtype=L.float64)
    v = z[1]
    z[1] = x[0]
    return (v * v).sum(), [v.requires_grad]


def leaf_changed_without_recording(L, x):
    with L.no_grad():
        x.mul_(2)
        x[0] = 1
    return (x * x).sum(), [x._version, x.is_leaf]


def result_not_needed_by_backward(L, x):
    y = (x * 2).sin()
    y.add_(1)
    return y.sum(), []


def function_in_place(L, x):
    y = x * 2
    y.exp_()
    return y.sum(), []


def zero_keeps_the_history(L, x):
    y = x * 2
    y.zero_()
    return y.sum(), [y.requires_grad]


def copy_into_a_view(L, x):
    y = x * 2
    y[0].copy_(x[1])
    return (y * y).sum(), []


def number_written(L, x):
    y = x * 1
    y[1, 2] = 5.0
    return (y * y).sum(), [y._version]


def mask_written(L, x):
    y = x * 1
    y[y > 0] = x[0, 0]
    return (y * y).sum(), []


def written_from_itself(L, x):
    y = x * 1
    y[1:] = y[:-1] * 2
    return (y * y).sum(), []


def augmented_assignment(L, x):
    y = x * 1
    y[0] += x[1]
    y[:, 1] *= 2
    return (y * y).sum(), []


def diagonal_changed(L, x):
    y = x[:, :3] * 1
    y.diagonal().mul_(3)
    return (y * y).sum(), []


def reshaped_view_changed(L, x):
    y = x * 1
    v = y.view(12)
    v[3:7] = 0
    return (y * y).sum(), [y._version, v._version]


def view_of_a_transposed_result(L, x):
    y = x.t() * 1
    v = y.t().reshape(12)
    v.mul_(2)
    return (y * y).sum(), []


def two_views_of_one_place(L, x):
    y = x * 1
    a, b = y[0], y[0]
    a.mul_(2)
    b.mul_(x[1])
    return (a * b).sum(), []


def gradient_of_the_value_before(L, x):
    y = x * 2
    z = y.sum()
    y.mul_(3)
    return z + y.sum(), []


def views_learn_of_a_history(L, x):
    z = L.zeros(3, 4, dtype=L.float64)
    v = z[0]
    v.add_(x[0])
    return (z * z).sum(), [z.requires_grad, v.requires_grad, z.grad_fn is not None]


def view_changed_without_recording(L, x):
    y = x * 1
    v = y[0]
    with L.no_grad():
        v.mul_(2)
    return (y * 1).sum(), [y._version]


def data_is_not_seen(L, x):
    y = (x * 1) * x
    x.data.add_(1)
    return y.sum(), [x._version]


def detached_alias_counts_versions(L, x):
    y = x * 2
    y.detach().add_(1)
    return y.sum(), [y._version]


PROGRAMS = [
    change_of_a_result, change_of_a_view, change_of_the_base_of_a_view, change_of_a_sibling_view,
    change_of_a_view_of_a_view, constant_written_with_gradients, earlier_view_of_a_constant,
    leaf_changed_without_recording, result_not_needed_by_backward, function_in_place,
    zero_keeps_the_history, copy_into_a_view, number_written, mask_written, written_from_itself,
    augmented_assignment, diagonal_changed, reshaped_view_changed, view_of_a_transposed_result,
    two_views_of_one_place, gradient_of_the_value_before, views_learn_of_a_history,
    view_changed_without_recording, data_is_not_seen, detached_alias_counts_versions,
]  # fmt: skip


@pytest.mark.parametrize("program", PROGRAMS)
def test_values_gradients_and_versions_agree_with_torch(program):
    (want, wants, want_grad), (got, gots, got_grad) = [
        (*program(L, x), x) for L in (torch, dg) for x in [leaf(L)]
    ]
    np.testing.assert_allclose(got.item(), want.item(), rtol=1e-12)
    assert gots == wants
    want.backward()
    got.backward()
    np.testing.assert_allclose(got_grad.grad.numpy(), want_grad.grad.numpy(), rtol=1e-12)


@pytest.mark.parametrize(
    "program", [change_of_a_view, copy_into_a_view, mask_written, reshaped_view_changed]
)
def test_second_derivatives_after_changes_agree_with_torch(program):
    grads = []
    for L in (torch, dg):
        x = leaf(L)
        out = program(L, x)[0]
        (first,) = L.autograd.grad(out**2, x, create_graph=True)
        (first * first).sum().backward()
        grads.append(x.grad.numpy())
    np.testing.assert_allclose(grads[1], grads[0], rtol=1e-10)


# ---------------------------------------------------------------------- refusals
def on_a_leaf(L, x):
    x.mul_(2)


def on_a_view_of_a_leaf(L, x):
    x[0].mul_(2)


def written_into_a_leaf(L, x):
    x[0] = 1


def result_larger_than_the_place(L, x):
    (x[0] * 1).add_(x)


def float_into_integers(L, x):
    L.tensor([1, 2]).add_(1.5)


def quotient_into_integers(L, x):
    L.tensor([1, 2]).div_(2)


def into_an_expanded_tensor(L, x):
    L.zeros(3).expand(2, 3).add_(1)


def into_one_of_several_views(L, x):
    (x * 1).unbind(0)[1].mul_(2)


def into_one_part_of_a_split(L, x):
    (x * 1).split(2, 1)[1].mul_(2)


def into_a_view_made_without_recording(L, x):
    y = x * 1
    with L.no_grad():
        v = y[0]
    v.mul_(2)


def saved_input_changed(L, x):
    y = x * 2
    z = y * y
    y.add_(1)
    z.sum().backward()


def saved_input_changed_through_a_view(L, x):
    y = x * 2
    z = y * y
    y[0].add_(1)
    z.sum().backward()


def saved_input_changed_through_an_alias(L, x):
    y = x * 2
    z = y * y
    y.detach().add_(1)
    z.sum().backward()


def saved_output_changed(L, x):
    y = (x * 2).tanh()
    y.add_(1)
    y.sum().backward()


def saved_leaf_changed(L, x):
    y = x * x
    with L.no_grad():
        x.add_(1)
    y.sum().backward()


REFUSALS = [
    (on_a_leaf, "a leaf Variable that requires grad is being used in an in-place operation"),
    (on_a_view_of_a_leaf, "a view of a leaf Variable that requires grad"),
    (written_into_a_leaf, "leaf Variable that requires grad"),
    (result_larger_than_the_place, "doesn't match the broadcast shape"),
    (float_into_integers, "can't be cast to the desired output type"),
    (quotient_into_integers, "can't be cast to the desired output type"),
    (into_an_expanded_tensor, "more than one element of the written-to tensor"),
    (into_one_of_several_views, "Such functions do not allow the output views to be modified"),
    (into_one_part_of_a_split, "Such functions do not allow the output views to be modified"),
    (into_a_view_made_without_recording, "A view was created in no_grad mode"),
    (saved_input_changed, "has been modified by an inplace operation"),
    (saved_input_changed_through_a_view, "has been modified by an inplace operation"),
    (saved_input_changed_through_an_alias, "has been modified by an inplace operation"),
    (saved_output_changed, "has been modified by an inplace operation"),
    (saved_leaf_changed, "has been modified by an inplace operation"),
]


@pytest.mark.parametrize(("program", "words"), REFUSALS)
def test_what_torch_refuses_is_refused_with_its_words(program, words):
    with pytest.raises(RuntimeError, match=words):
        program(torch, leaf(torch))
    with pytest.raises(RuntimeError, match=words):
        program(dg, leaf(dg))


def test_a_refused_change_leaves_everything_as_it_was():
    y = leaf(dg) * 1
    before, node = y.tolist(), y.grad_fn
    with pytest.raises(RuntimeError):
        y.add_(dg.zeros(5, 3, 4, dtype=dg.float64))
    assert y.tolist() == before
    assert y.grad_fn is node
    assert y._version == 0


def test_a_change_through_a_view_keeps_no_reference_cycle():
    gc.collect()
    gc.disable()
    try:
        y = leaf(dg) * 1
        view = y[0]
        view.mul_(2)
        y[1] = 0
        gone = weakref.ref(view), weakref.ref(y)
        del view, y
        assert [g() for g in gone] == [None, None]
    finally:
        gc.enable()


def test_unsafe_split_gives_parts_that_may_be_changed():
    x = leaf(dg)
    parts = dg.unsafe_split(x * 1, 2, 1)
    parts[0].mul_(3)
    (parts[0].sum() + parts[1].sum()).backward()
    assert x.grad.tolist() == [[3.0, 3.0, 1.0, 1.0]] * 3
