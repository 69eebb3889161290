"""Activation checkpointing: same gradients, less kept, and PyTorch's refusals."""

import contextlib
import gc
import weakref

import numpy as np
import pytest

import distgrad as dg
from distgrad.autograd import saving
from distgrad.errors import CheckpointError
from distgrad.utils.checkpoint import (
    checkpoint,
    checkpoint_sequential,
    set_checkpoint_debug_enabled,
    set_checkpoint_early_stop,
)


def leaf(*values):
    return dg.tensor(list(values), dtype=dg.float64, requires_grad=True)


class Counted:
    """A function that knows how often it ran."""

    def __init__(self, function):
        self.function, self.runs = function, 0

    def __call__(self, *args, **kwargs):
        self.runs += 1
        return self.function(*args, **kwargs)


def wave(x, w):
    return ((x * w).sin() * x).exp()


def gradients(run, *leaves):
    out = run(*leaves)
    found = dg.autograd.grad((out * out).sum(), leaves)
    return [g.tolist() for g in found]


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_backward_computes_again_and_gives_the_same_gradients(use_reentrant):
    f, x, w = Counted(wave), leaf(0.1, 0.2), leaf(0.3, 0.4)
    want = gradients(wave, x, w)
    out = checkpoint(f, x, w, use_reentrant=use_reentrant)
    assert f.runs == 1
    (out * out).sum().backward()
    assert f.runs == 2
    assert [x.grad.tolist(), w.grad.tolist()] == want
    assert not saving.switch.users


def test_nested_checkpoints():
    inner, x, w = Counted(wave), leaf(0.1, 0.2), leaf(0.3, 0.4)

    def outer(x, w):
        y = checkpoint(inner, x, w, use_reentrant=False)
        return checkpoint(inner, y * 2, w, use_reentrant=False) * y

    def plain(x, w):
        y = wave(x, w)
        return wave(y * 2, w) * y

    want = gradients(plain, x, w)
    assert gradients(lambda *a: checkpoint(outer, *a, use_reentrant=False), x, w) == want
    assert inner.runs > 2


def test_keywords_structures_and_captured_leaves():
    x, w, b = leaf(0.1, 0.2), leaf(0.3, 0.4), leaf(1.0, 2.0)

    def function(pair, *, scale):
        return {"out": (pair[0] * pair[1] * b).tanh() * scale}

    out = checkpoint(function, (x, w), scale=3.0, use_reentrant=False)["out"]
    got = dg.autograd.grad(out.sum(), [x, w, b])
    want = dg.autograd.grad(function((x, w), scale=3.0)["out"].sum(), [x, w, b])
    assert [g.tolist() for g in got] == [g.tolist() for g in want]


def test_second_derivatives_and_two_backwards():
    f, x = Counted(lambda x: (x * x * x).sin()), leaf(0.1, 0.2)
    out = checkpoint(f, x, use_reentrant=False).sum()
    (first,) = dg.autograd.grad(out, x, create_graph=True)
    (second,) = dg.autograd.grad(first.sum(), x)
    want = dg.autograd.functional.hessian(lambda x: (x * x * x).sin().sum(), x).diagonal()
    np.testing.assert_allclose(second.tolist(), want.tolist(), rtol=1e-12)
    y = checkpoint(f, x, use_reentrant=False).sum()
    y.backward(retain_graph=True)
    y.backward()
    np.testing.assert_allclose(x.grad.tolist(), [2 * g for g in first.tolist()])


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_random_numbers_are_the_same_both_times(use_reentrant):
    x = leaf(*range(1, 65))
    dg.manual_seed(0)
    out = checkpoint(lambda x: dg.dropout(x, 0.5), x, use_reentrant=use_reentrant)
    after = dg.rand(2).tolist()
    out.sum().backward()
    kept = [v > 0 for v in out.tolist()]
    assert [g > 0 for g in x.grad.tolist()] == kept
    dg.manual_seed(0)
    dg.dropout(x, 0.5)
    assert dg.rand(2).tolist() == after


def test_what_is_inside_is_not_kept():
    alive = []

    def function(x):
        y = x.exp()
        alive.append(weakref.ref(y))
        return y.exp()

    gc.collect()
    gc.disable()
    try:
        out = checkpoint(function, leaf(0.1), use_reentrant=False)
        assert alive[0]() is None
        del out
    finally:
        gc.enable()


def test_hooks_of_leaves_fire_once():
    x, calls = leaf(0.1, 0.2), []
    x.register_hook(lambda g: calls.append("hook"))
    x.register_post_accumulate_grad_hook(lambda p: calls.append("after"))
    out = checkpoint(lambda a: checkpoint(lambda b: b * x, a, use_reentrant=False) * x, x * 2,
                     use_reentrant=False)  # fmt: skip
    out.sum().backward()
    assert calls == ["hook", "after"]


def test_data_parallel_training_with_checkpoints():
    model = dg.nn.Sequential(dg.nn.Linear(3, 4), dg.nn.Tanh(), dg.nn.Linear(4, 1))

    class Net(dg.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=False)

    x = dg.randn(5, 3)
    want = dg.autograd.grad(model(x).mean(), list(model.parameters()))
    net = dg.nn.parallel.DistributedDataParallel(Net())
    net(x).mean().backward()
    for p, g in zip(model.parameters(), want, strict=True):
        np.testing.assert_allclose(p.grad.numpy(), g.numpy(), rtol=1e-5, atol=1e-7)


def test_functions_and_in_place_changes_inside():
    class Square(dg.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, g):
            return 2 * g * ctx.saved_tensors[0]

    def function(x):
        y = Square.apply(x) * 1
        y.mul_(x)
        y[0] = x[1]
        return y.exp()

    x = leaf(0.1, 0.2)
    want = gradients(function, x)
    assert gradients(lambda x: checkpoint(function, x, use_reentrant=False), x) == want


def test_the_second_run_stops_early_unless_told_otherwise():
    ends = []

    def function(x):
        y = x.exp()
        z = y * 2.0
        ends.append(1)
        return z + 1

    x = leaf(0.1)
    checkpoint(function, x, use_reentrant=False).sum().backward()
    early = len(ends)
    with set_checkpoint_early_stop(False):
        out = checkpoint(function, x, use_reentrant=False)
    out.sum().backward()
    assert (early, len(ends)) == (1, 3)


def test_contexts_for_both_runs():
    seen = []

    @contextlib.contextmanager
    def note(name):
        seen.append(name)
        yield

    out = checkpoint(lambda x: x.exp(), leaf(0.1), use_reentrant=False,
                     context_fn=lambda: (note("first"), note("second")))  # fmt: skip
    assert seen == ["first"]
    out.sum().backward()
    assert seen == ["first", "second"]


def test_a_sequence_in_segments():
    layers = [Counted(dg.exp), Counted(dg.sin), Counted(dg.cos), Counted(dg.tanh)]
    x = leaf(0.1, 0.2)
    checkpoint_sequential(layers, 2, x, use_reentrant=False).sum().backward()
    (want,) = dg.autograd.grad(x.exp().sin().cos().tanh().sum(), x)
    assert x.grad.tolist() == want.tolist()
    assert [f.runs for f in layers[2:]] == [1, 1]
    assert layers[0].runs == 2
    model = dg.nn.Sequential(dg.nn.Linear(2, 3), dg.nn.ReLU(), dg.nn.Linear(3, 1))
    y = checkpoint_sequential(model, 3, dg.ones(4, 2), use_reentrant=False)
    assert y.tolist() == model(dg.ones(4, 2)).tolist()


def test_without_recording_nothing_is_kept():
    with dg.no_grad():
        out = checkpoint(lambda x: x * 2, leaf(1.0), use_reentrant=False)
    assert not out.requires_grad
    assert checkpoint(lambda: 3, use_reentrant=False) == 3


def test_a_function_that_differs_is_found_out():
    flag = [True]

    def shape(x):
        y = x.exp() if flag[0] else x[:1].exp()
        return y.sum()

    def count(x):
        return (x.exp().exp() if flag[0] else x.exp()).sum()

    for function, words in ((shape, "different metadata"), (count, "A different number of tenso")):
        flag[0] = True
        out = checkpoint(function, leaf(0.1, 0.2), use_reentrant=False)
        flag[0] = False
        with pytest.raises(CheckpointError, match=words):
            out.backward()
        assert not saving.switch.users
    flag[0] = True
    with set_checkpoint_debug_enabled(True):
        out = checkpoint(count, leaf(0.1, 0.2), use_reentrant=False)
    flag[0] = False
    with pytest.raises(CheckpointError, match="saved during the original forward:\n  0: "):
        out.backward()


def test_a_changed_argument_is_refused():
    x = leaf(0.1, 0.2)
    y = x * 1
    out = checkpoint(lambda y: y.exp(), y, use_reentrant=False)
    y.add_(1)
    with pytest.raises(RuntimeError, match="has been modified by an inplace operation"):
        out.sum().backward()


def test_arguments_that_do_not_go_together():
    x = leaf(0.1)
    with pytest.warns(UserWarning, match="use_reentrant parameter should be passed explicitly"):
        checkpoint(lambda x: x * 2, x)
    with pytest.raises(ValueError, match="Unexpected keyword arguments: scale"):
        checkpoint(lambda x: x, x, use_reentrant=True, scale=1)
    with pytest.raises(ValueError, match="only supported when use_reentrant=False"):
        checkpoint(lambda x: x, x, use_reentrant=True, debug=True)
    with pytest.raises(RuntimeError, match=r"incompatible with \.grad\(\) or passing an `inputs`"):
        dg.autograd.grad(checkpoint(lambda x: x * 2, x, use_reentrant=True), x)
    with pytest.raises(ValueError, match="determinism_check should be one of"):
        checkpoint(lambda x: x, x, use_reentrant=False, determinism_check="much")
    with pytest.warns(UserWarning, match="None of the inputs have requires_grad=True"):
        checkpoint(lambda x: x, x.detach(), use_reentrant=True)


def test_an_error_inside_leaves_no_hooks_behind():
    def fails(x):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        checkpoint(fails, leaf(0.1), use_reentrant=False)
    assert not saving.switch.users
    assert not saving.local.hooks
