"""Inference mode: what is made inside has no version and is kept out of every graph."""

import gc
import threading

import pytest

import distgrad as dg
from distgrad.autograd import saving


@pytest.fixture
def made():
    with dg.inference_mode():
        return dg.ones(2, 3)


@pytest.fixture
def x():
    return dg.full((2, 3), 2.0, requires_grad=True)


def test_what_is_made_inside_is_an_inference_tensor_and_so_are_its_views(x):
    with dg.inference_mode():
        results = [x * 2, dg.ones(2), x.sort()[1], (x * 2)[0], dg.ones(2).detach()]
    assert [r.is_inference() for r in results] == [True] * 5
    assert results[3].view(-1).is_inference()
    assert not results[3]._is_view()
    assert not (results[0] * 2).is_inference()
    assert not results[0].clone().is_inference()


def test_views_of_ordinary_tensors_and_changes_in_place_stay_ordinary(x):
    y = x * 1
    with dg.inference_mode():
        view, detached, part = y.view(-1), y.detach(), y.split([1, 1])[0]
        y.add_(1)
    assert not any(t.is_inference() for t in (y, view, detached, part, y.data))
    assert view.requires_grad
    assert y._version == view._version == 1
    assert y.grad_fn is not None


def test_there_is_no_version_counter(made):
    with pytest.raises(RuntimeError, match="Inference tensors do not track version counter"):
        made._version  # noqa: B018


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.add_(1),
        lambda t: t.zero_(),
        lambda t: t.transpose_(0, 1),
        lambda t: t.__setitem__(0, 1.0),
        lambda t: dg.mul(dg.ones(2, 3), 2, out=t),
        lambda t: t[0].mul_(2),
    ],
)
def test_a_change_in_place_is_for_the_inside_alone(made, change):
    with dg.inference_mode():
        change(made.clone())
    with pytest.raises(RuntimeError, match="Inplace update to inference tensor outside"):
        change(made)
    with dg.no_grad(), pytest.raises(RuntimeError, match="Inplace update to inference tensor"):
        change(made)


def test_it_cannot_be_saved_for_backward_but_may_take_part(made, x):
    for save in (lambda: x * made, lambda: made * x, lambda: dg.matmul(x, made.T)):
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
            save()
    (x + made).sum().backward()
    assert x.grad.tolist() == [[1.0] * 3] * 2
    (x * made.clone()).sum().backward()


def test_a_custom_function_cannot_save_it(made, x):
    class Keep(dg.autograd.Function):
        @staticmethod
        def forward(ctx, x, other):
            ctx.save_for_backward(other)
            return x * 1

    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        Keep.apply(x, made)


def test_requires_grad_is_set_inside_only(made):
    with pytest.raises(RuntimeError, match="Setting requires_grad=True on inference tensor"):
        made.requires_grad_()
    with dg.inference_mode():
        assert made.requires_grad_().requires_grad


def test_views_made_inside_are_not_changed_outside(x):
    y = x * 1
    with dg.inference_mode():
        view = y.view(-1)
    with pytest.raises(RuntimeError, match="created in inference mode and is being modified"):
        view.add_(1)
    y.add_(1)
    with pytest.raises(RuntimeError, match="created in inference mode and its base or another"):
        view.grad_fn  # noqa: B018


def test_inside_it_can_be_turned_off(x):
    with dg.inference_mode():
        with dg.inference_mode(False):
            y = x * 2
            assert not dg.is_inference_mode_enabled()
        assert dg.is_inference_mode_enabled()
    assert y.requires_grad
    assert not y.is_inference()


def test_another_thread_goes_on_recording(x):
    found = []
    with dg.inference_mode():
        thread = threading.Thread(target=lambda: found.append(x * 2))
        thread.start()
        thread.join()
    assert found[0].requires_grad
    assert not found[0].is_inference()


def test_the_operations_are_as_before_when_the_last_inference_tensor_is_gone(x):
    gc.collect()
    names = dg.exp.__globals__
    before = dict(names)
    with dg.inference_mode():
        y = x.exp()
        assert names["_new"] is not before["_new"]
    assert names["_new"] is before["_new"] is object.__new__
    assert names["_new_node"] is not before["_new_node"]
    del y
    assert names["_new_node"] is before["_new_node"] is object.__new__
    assert saving.switch.inspect is None
