"""Custom Functions: the same programs under PyTorch and here, and what both refuse."""

import gc
import re
import warnings
import weakref

import numpy as np
import pytest

import distgrad as dg

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

DATA = [1.0, 2.0, 3.0]


def leaf(L):
    return L.tensor(DATA, dtype=L.float64, requires_grad=True)


def make(L, forward, backward, **more):
    body = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    body |= {name: staticmethod(f) for name, f in more.items()}
    return type("MyFn", (L.autograd.Function,), body)


def facts(value):
    """Return ``value`` with tensors as lists, so that both libraries compare."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [facts(v) for v in value]
    return value


def square(L):
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    return make(L, forward, lambda ctx, g: 2 * g * ctx.saved_tensors[0])


# ---------------------------------------------------------------------- what works
def values_and_gradients(L, x):
    y = square(L).apply(x)
    y.sum().backward()
    return y, x.grad, type(y.grad_fn).__name__, y.grad_fn.name()


def repeated_differentiation(L, x):
    (first,) = L.autograd.grad(square(L).apply(x).sum(), x, create_graph=True)
    (second,) = L.autograd.grad((first * x).sum(), x, create_graph=True)
    return first, second, second.requires_grad


def output_saved(L, x):
    def forward(ctx, x):
        y = x.exp()
        ctx.save_for_backward(y)
        return y

    F = make(L, forward, lambda ctx, g: g * ctx.saved_tensors[0])
    (first,) = L.autograd.grad(F.apply(x).sum(), x, create_graph=True)
    (second,) = L.autograd.grad(first.sum(), x)
    return first, second


def one_of_two_outputs_saved(L, x):
    def forward(ctx, x):
        y = x.exp()
        ctx.save_for_backward(y)
        return y, x * 2

    F = make(L, forward, lambda ctx, g, h: g * ctx.saved_tensors[0] + 2 * h)
    a, b = F.apply(x)
    (first,) = L.autograd.grad((a * b).sum(), x, create_graph=True)
    (second,) = L.autograd.grad(first.sum(), x)
    return first, second


def needs_of_the_inputs(L, x):
    seen = []

    def backward(ctx, g):
        seen.append(ctx.needs_input_grad)
        return g * 2, None, g * 3

    F = make(L, lambda ctx, a, k, b: a * k + b, backward)
    F.apply(x, 2, L.ones(3, dtype=L.float64)).sum().backward()
    with L.no_grad():
        F.apply(x, 2, x)
    return seen, x.grad


def trailing_nones(L, x):
    make(L, lambda ctx, a: a * 1, lambda ctx, g: (g, None, None)).apply(x).sum().backward()
    return x.grad


def other_things_returned(L, x):
    seen = []

    def backward(ctx, g, *rest):
        seen.append(rest)
        return g

    y = make(L, lambda ctx, a: (a * 1, 3, "s", None), backward).apply(x)
    y[0].sum().backward()
    return y[1:], seen, make(L, lambda ctx, a: 3, backward).apply(x)


def lists_are_no_outputs(L, x):
    y = make(L, lambda ctx, a: [a * 1], lambda ctx, g: g).apply(x)
    return type(y).__name__, y[0].requires_grad


def tuple_of_one(L, x):
    y = make(L, lambda ctx, a: (a * 1,), lambda ctx, g: g).apply(x)
    return type(y).__name__, y[0].requires_grad


def zeros_for_missing_gradients(L, x):
    seen = []

    def forward(ctx, a):
        b = a * 2
        ctx.mark_non_differentiable(b)
        return b, a > 1, a * 3

    def backward(ctx, *g):
        seen.append(facts(g))
        return g[2] * 3

    y = make(L, forward, backward).apply(x)
    y[2].sum().backward()
    return seen, [o.requires_grad for o in y], x.grad


def none_for_missing_gradients(L, x):
    seen = []

    def forward(ctx, a):
        ctx.set_materialize_grads(False)
        return a * 2, a * 3

    def backward(ctx, *g):
        seen.append([v is None for v in g])
        return g[1]

    make(L, forward, backward).apply(x)[1].sum().backward()
    return seen


def nothing_came_at_all(L, x):
    seen = []
    inner = make(L, lambda ctx, a: a * 1, lambda ctx, g: (seen.append(facts(g)), g)[1])
    outer = make(L, lambda ctx, a: a * 1, lambda ctx, g: None)
    outer.apply(inner.apply(x)).sum().backward()
    return seen, x.grad


def changed_input(L, x):
    def forward(ctx, a):
        ctx.mark_dirty(a)
        a.mul_(2)
        return a

    z = x * 1
    before = z._version
    y = make(L, forward, lambda ctx, g: g * 2).apply(z)
    same, versions = y is z, z._version - before
    (z * z).sum().backward()
    return same, versions, type(z.grad_fn).__name__, x.grad


def changed_view(L, x):
    def forward(ctx, a):
        ctx.mark_dirty(a)
        a.mul_(2)
        return a

    z = x * 1
    v = z[:2]
    y = make(L, forward, lambda ctx, g: g * 5).apply(v)
    (z * 1).sum().backward()
    return y is v, z, type(z.grad_fn).__name__, x.grad


def input_returned(L, x):
    y = make(L, lambda ctx, a: a, lambda ctx, g: g * 2).apply(x)
    same = y is x, y._is_view(), y.data_ptr() == x.data_ptr(), y.is_leaf
    y.sum().backward()
    return same, x.grad


def view_returned(L, x):
    y = make(L, lambda ctx, a: a[:2], lambda ctx, g: L.cat([g, g[:1]]) * 3).apply(x * 1)
    y.sum().backward()
    return y._is_view(), x.grad


def without_recording(L, x):
    with L.no_grad():
        y = square(L).apply(x)
        z = make(L, lambda ctx, a: a, lambda ctx, g: g).apply(x)
    return y, y.requires_grad, z.requires_grad, z is x


def no_input_requires_grad(L, x):
    y = square(L).apply(x.detach())
    return y, y.requires_grad, y.grad_fn is None


def in_two_steps(L, x):
    seen = []

    class Scale(L.autograd.Function):
        @staticmethod
        def forward(a, factor=3):
            return a * factor

        @staticmethod
        def setup_context(ctx, inputs, output):
            seen.append((len(inputs), inputs[1], facts(output)))
            ctx.factor = inputs[1]

        @staticmethod
        def vjp(ctx, g):
            return g * ctx.factor, None

    Scale.apply(x).sum().backward()
    Scale.apply(x, factor=5).sum().backward()
    return seen, x.grad


def keywords(L, x):
    F = make(L, lambda ctx, a, k=1: a * k, lambda ctx, g: g)
    return F.apply(x, k=2), F.apply(x)


def gradient_broadcasts_down(L, x):
    make(L, lambda ctx, a: a * 1, lambda ctx, g: g.expand(2, 3)).apply(x).sum().backward()
    return x.grad


def gradient_of_another_dtype(L, x):
    make(L, lambda ctx, a: a * 1, lambda ctx, g: g.float()).apply(x).sum().backward()
    return str(x.grad.dtype).split(".")[-1]


def same_tensor_for_two_inputs(L, x):
    w = leaf(L)
    make(L, lambda ctx, a, b: a + b, lambda ctx, g: (g, g)).apply(x, w).sum().backward()
    with L.no_grad():
        x.grad.mul_(7)
    return w.grad


def kept_gradient_is_not_changed(L, x):
    kept = L.ones(3, dtype=L.float64)
    F = make(L, lambda ctx, a: a * 1, lambda ctx, g: kept)
    F.apply(x).sum().backward()
    F.apply(x).sum().backward()
    return kept, x.grad


def attributes_belong_to_the_user(L, x):
    def forward(ctx, a):
        ctx.saved, ctx.scale, ctx.shape = "mine", 2, a.shape
        return a * 2

    y = make(L, forward, lambda ctx, g: g * ctx.scale).apply(x)
    y.sum().backward()
    return y.grad_fn.saved, x.grad


def once(L, x):
    twice = L.autograd.function.once_differentiable(lambda ctx, g: g * 2)
    F = make(L, lambda ctx, a: a * a, twice)
    (g,) = L.autograd.grad(F.apply(x).sum(), x, create_graph=True)
    u = L.ones(3, dtype=L.float64, requires_grad=True)
    (h,) = L.autograd.grad(F.apply(x), x, u, create_graph=True)
    return g.requires_grad, h.requires_grad, h.grad_fn.name().split("::")[-1]


def graph_behind(L, x):
    w = leaf(L)
    F = make(L, lambda ctx, a, k, b: a * b, lambda ctx, g: (g, None, g))
    y = F.apply(x * 2, 3, w)
    z = F.apply(y, 3, L.ones(3, dtype=L.float64))
    first = [(n and n.name().split("::")[-1], i) for n, i in y.grad_fn.next_functions]
    return first, [(n and n.name(), i) for n, i in z.grad_fn.next_functions]


def hooks_of_the_node(L, x):
    seen = []
    y = square(L).apply(x)
    y.grad_fn.register_prehook(lambda gs: seen.append(("pre", facts(gs))))
    y.grad_fn.register_hook(lambda ins, outs: seen.append(("post", facts(ins), facts(outs))))
    y.sum().backward()
    return seen


def packed_by_hooks(L, x):
    seen = []

    def pack(t):
        seen.append((t.requires_grad, t is x))
        return t.detach() * 2

    with L.autograd.graph.saved_tensors_hooks(pack, lambda t: t / 2):
        y = square(L).apply(x)
    (first,) = L.autograd.grad(y.sum(), x, create_graph=True)
    (second,) = L.autograd.grad(first.sum(), x)
    return seen, first, second


def recording_inside(L, x):
    def forward(ctx, a):
        with L.enable_grad():
            b = a * 2
        return b

    make(L, forward, lambda ctx, g: g * 10).apply(x).sum().backward()
    return x.grad


WORKS = [
    values_and_gradients, repeated_differentiation, output_saved, one_of_two_outputs_saved,
    needs_of_the_inputs, trailing_nones, other_things_returned, lists_are_no_outputs, tuple_of_one,
    zeros_for_missing_gradients, none_for_missing_gradients, nothing_came_at_all, changed_input,
    changed_view, input_returned, view_returned, without_recording, no_input_requires_grad,
    in_two_steps, keywords, gradient_broadcasts_down, gradient_of_another_dtype,
    same_tensor_for_two_inputs, kept_gradient_is_not_changed, attributes_belong_to_the_user, once,
    graph_behind, hooks_of_the_node, packed_by_hooks, recording_inside,
]  # fmt: skip


@pytest.mark.parametrize("program", WORKS)
def test_a_function_does_here_what_it_does_in_torch(program):
    want, got = (facts(program(L, leaf(L))) for L in (torch, dg))
    assert got == want


# ---------------------------------------------------------------------- what is refused
def too_many(L, x):
    make(L, lambda ctx, a: a * 1, lambda ctx, g: (g, g)).apply(x).sum().backward()


def too_few(L, x):
    make(L, lambda ctx, a, b: a * b, lambda ctx, g: g).apply(x, x).sum().backward()


def wrong_shape(L, x):
    make(L, lambda ctx, a: a * 1, lambda ctx, g: g[:2]).apply(x).sum().backward()


def no_tensor(L, x):
    make(L, lambda ctx, a: a * 1, lambda ctx, g: 1.0).apply(x).sum().backward()


def gradient_for_a_number(L, x):
    make(L, lambda ctx, a, k: a * k, lambda ctx, g: (g, g)).apply(x, 2).sum().backward()


def no_backward(L, x):
    body = {"forward": staticmethod(lambda ctx, a: a * 1)}
    type("MyFn", (L.autograd.Function,), body).apply(x).sum().backward()


def no_forward(L, x):
    type("MyFn", (L.autograd.Function,), {}).apply(x)


def both_names(L, x):
    def backward(ctx, g):
        return g

    F = make(L, lambda ctx, a: a * 1, backward, vjp=backward)
    F.apply(x).sum().backward()


def a_number_saved(L, x):
    make(L, lambda ctx, a: ctx.save_for_backward(3), lambda ctx, g: g).apply(x)


def a_leaf_changed(L, x):
    def forward(ctx, a):
        ctx.mark_dirty(a)
        return a

    make(L, forward, lambda ctx, g: g).apply(x)


def changed_but_not_returned(L, x):
    def forward(ctx, a):
        ctx.mark_dirty(a)
        return a * 1

    make(L, forward, lambda ctx, g: g).apply(x * 1)


def changed_view_and_more(L, x):
    def forward(ctx, a):
        ctx.mark_dirty(a)
        return a, a * 1

    make(L, forward, lambda ctx, g, h: g).apply((x * 1)[:2])


def returned_input_changed(L, x):
    make(L, lambda ctx, a: a, lambda ctx, g: g).apply(x * 1).mul_(2)


def returned_view_changed(L, x):
    make(L, lambda ctx, a: a[:2], lambda ctx, g: g).apply(x * 1).mul_(2)


def one_of_returned_views_changed(L, x):
    make(L, lambda ctx, a: (a[:2], a[1:]), lambda ctx, g, h: g).apply(x * 1)[0].mul_(2)


def differentiated_twice(L, x):
    once_only = L.autograd.function.once_differentiable(lambda ctx, g: g * 2)
    F = make(L, lambda ctx, a: a * a, once_only)
    u = L.ones(3, dtype=L.float64, requires_grad=True)
    (g,) = L.autograd.grad(F.apply(x), x, u, create_graph=True)
    g.sum().backward()


def second_backward(L, x):
    y = square(L).apply(x)
    y.backward(L.ones(3, dtype=L.float64))
    y.backward(L.ones(3, dtype=L.float64))


def saved_and_changed(L, x):
    z = x * 1
    y = square(L).apply(z)
    z.add_(1)
    y.sum().backward()


def freed_tensors_read(L, x):
    y = square(L).apply(x)
    y.sum().backward()
    return y.grad_fn.saved_tensors


def called(L, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        square(L)()(x)


REFUSED = [
    (too_many, "function MyFnBackward returned an incorrect number of gradients (expected 1"),
    (too_few, "returned an incorrect number of gradients (expected 2, got 1)"),
    (wrong_shape, "Function MyFnBackward returned an invalid gradient at index 0 - got [2] but "
                  "expected shape compatible with [3]"),
    (no_tensor, "expected Variable or None (got float)"),
    (gradient_for_a_number, "returned a gradient different than None at position 2, but the "
                            "corresponding forward input was not a Variable"),
    (no_backward, "You must implement either the backward or vjp method"),
    (no_forward, "You must implement the forward function"),
    (both_names, "Implementing both 'backward' and 'vjp' for a custom Function is not allowed"),
    (a_number_saved, "save_for_backward can only save variables, but argument 0 is of type int"),
    (a_leaf_changed, "a leaf Variable that requires grad has been used in an in-place operation"),
    (changed_but_not_returned, "Some elements marked as dirty during the forward method were not"),
    (changed_view_and_more, "your Function cannot return more than one Tensor"),
    (returned_input_changed, "Output 0 of MyFn is a view and is being modified inplace. This view"
                             " was created inside a custom Function"),
    (returned_view_changed, "Output 0 of MyFn is a view and is being modified inplace"),
    (one_of_returned_views_changed, "the output of a function that returns multiple views"),
    (differentiated_twice, "trying to differentiate twice a function that was marked"),
    (second_backward, "Trying to backward through the graph a second time"),
    (saved_and_changed, "has been modified by an inplace operation"),
    (freed_tensors_read, "Trying to backward through the graph a second time"),
    (called, "Legacy autograd function with non-static forward method is deprecated"),
]  # fmt: skip


@pytest.mark.parametrize(("program", "words"), REFUSED)
def test_what_torch_refuses_is_refused_with_its_words(program, words):
    kinds = []
    for L in (torch, dg):
        with pytest.raises((RuntimeError, TypeError), match=re.escape(words)) as caught:
            program(L, leaf(L))
        kinds.append(type(caught.value))
    assert issubclass(kinds[1], kinds[0])


def test_printed_forms():
    y = square(dg).apply(leaf(dg))
    assert repr(y).endswith("grad_fn=<MyFnBackward>)")
    assert re.fullmatch(r"<distgrad\.autograd\.function\.MyFnBackward object at 0x\w+>",
                        repr(y.grad_fn))  # fmt: skip
    assert re.fullmatch(r"<SumBackward0 object at 0x\w+>", repr(y.sum().grad_fn))


def test_marking_something_else_as_changed_warns():
    def forward(ctx, a):
        b = a * 1
        ctx.mark_dirty(b)
        return b

    with pytest.warns(UserWarning, match="received a tensor that was not an input"):
        y = make(dg, forward, lambda ctx, g: g).apply(leaf(dg))
    assert y.requires_grad


def tangents_by_jvp(L, x):
    fw, seen = L.autograd.forward_ad, []

    def forward(ctx, a, k, b):
        ctx.save_for_forward(a, b)
        return a * b * k, a + b

    def jvp(ctx, da, dk, db):
        a, b = ctx.saved_tensors
        seen.append((facts(da), dk, facts(db)))
        return 10 * (da * b + a * db), da + db

    F = make(L, forward, lambda ctx, g, h: (g * 2, None, h), jvp=jvp)
    with fw.dual_level():
        a = fw.make_dual(x, L.ones(3, dtype=L.float64))
        out = F.apply(a, 2, x.detach())
        parts = [fw.unpack_dual(o) for o in out]
        found = facts([(p.primal.detach(), p.tangent.detach()) for p in parts])
        out[0].sum().backward()
    return found, seen, x.grad


def test_tangents_come_from_jvp_as_in_torch():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = facts(tangents_by_jvp(torch, leaf(torch)))
    assert facts(tangents_by_jvp(dg, leaf(dg))) == want


def test_tangents_need_a_jvp():
    fw = dg.autograd.forward_ad
    with fw.dual_level():
        x = fw.make_dual(leaf(dg).detach(), leaf(dg).detach())
        with pytest.raises(NotImplementedError, match="implement the jvp function"):
            square(dg).apply(x)


def test_forward_mode_and_vmap_say_what_is_missing():
    F = make(dg, lambda ctx, a: a, lambda ctx, g: g)
    with pytest.raises(NotImplementedError, match="implement the jvp function"):
        F.jvp(None)
    with pytest.raises(NotImplementedError, match="override the vmap staticmethod"):
        F.vmap(None, None)
    assert F.generate_vmap_rule is False


@pytest.mark.parametrize("saved", ["input", "output", "none"])
def test_a_function_makes_no_reference_cycle(saved):
    def forward(ctx, a):
        b = a * 2
        ctx.save_for_backward(*{"input": [a], "output": [b], "none": []}[saved])
        return b

    gc.collect()
    gc.disable()
    try:
        y = make(dg, forward, lambda ctx, g: g).apply(leaf(dg) * 1)
        node = weakref.ref(y.grad_fn)
        del y
        assert node() is None
    finally:
        gc.enable()


def test_saved_tensors_are_freed_by_backward():
    z = leaf(dg) * 1
    y = square(dg).apply(z)
    alive = weakref.ref(z)
    del z
    assert alive() is not None
    y.sum().backward()
    assert alive() is None


def test_gradients_agree_with_differences():
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a * b, a.sin()

    def backward(ctx, g, h):
        a, b = ctx.saved_tensors
        return g * b + h * a.cos(), g * a

    F = make(dg, forward, backward)
    assert dg.autograd.gradcheck(F.apply, (leaf(dg), leaf(dg)))
    assert dg.autograd.gradgradcheck(F.apply, (leaf(dg), leaf(dg)))
    assert np.isfinite(F.apply(leaf(dg), leaf(dg))[0].detach().numpy()).all()
