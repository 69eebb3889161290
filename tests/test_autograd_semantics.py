"""What tensors, nodes and hooks do at the edges: each program runs in PyTorch and here."""

import copy
import gc
import operator
import re
import warnings
import weakref

import pytest

import distgrad as dg

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated"),
    pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True"),
]
both = pytest.mark.parametrize("L", [torch, dg], ids=["torch", "distgrad"])


def leaf(L, *values, **options):
    data = list(values) if len(values) > 1 else (values[0] if values else [1.0, 2.0, 3.0])
    return L.tensor(data, requires_grad=True, **options)


def make(L, forward, backward=None, **more):
    body = {"forward": staticmethod(forward)} | {n: staticmethod(f) for n, f in more.items()}
    if backward is not None:
        body["backward"] = staticmethod(backward)
    return type("MyFn", (L.autograd.Function,), body)


def numbers(tensor):
    return [round(v, 5) for v in tensor.reshape(-1).tolist()]


# ---------------------------------------------------------------------- attributes of tensors
REFUSED = {
    "a flag on integers": (lambda L: set_flag(L.ones(1, dtype=L.int32)), "floating point"),
    "the flag of a result": (lambda L: set_flag(leaf(L) * 2), "of leaf"),
    "a gradient of another shape": (lambda L: set_grad(leaf(L), L.ones(2)), "size"),
    "a gradient of another dtype": (lambda L: set_grad(leaf(L), L.ones(3).double()), "dtype"),
    "a number as a gradient": (lambda L: set_grad(leaf(L), 1), "expected to be a Tensor or None"),
    "itself as a gradient": (lambda L: own_grad(leaf(L)), "can't assign Variable as its own grad"),
    "no data": (lambda L: set_data(leaf(L), None), "Variable data has to be a tensor"),
    "integer data": (lambda L: set_data(leaf(L, 1.0), L.tensor(3)), "floating point or complex"),
    "a copy of a result": (lambda L: copy.deepcopy(leaf(L) * 2), "Only Tensors created explicitly"),
    "numpy": (lambda L: leaf(L).numpy(), "Can't call numpy() on Tensor that requires grad"),
    "the dtype of a result's grad": (
        lambda L: (leaf(L) * 2).grad_dtype,
        "only be accessed on leaf",
    ),
    "detaching a view": (lambda L: (leaf(L) * 1)[:2].detach_(), "Can't detach views in-place"),
    "no inputs": (lambda L: L.autograd.grad(leaf(L).sum(), []), "cannot be empty"),
    "a complex gradient": (
        lambda L: (leaf(L) * 2).backward(L.ones(3, dtype=L.complex64)),
        "required to have the same dtype",
    ),
    "a batch of another shape": (
        lambda L: L.autograd.grad(leaf(L) * 2, leaf(L), L.ones(2, 2), is_grads_batched=True),
        "we interpret the first",
    ),
}


def set_flag(x):
    x.requires_grad = True


def set_grad(x, value):
    x.grad = value


def own_grad(x):
    x.grad = x


def set_data(x, value):
    x.data = value


@pytest.mark.parametrize("case", REFUSED)
def test_what_pytorch_refuses_is_refused_with_its_words(case):
    program, words = REFUSED[case]
    kinds = []
    for L in (torch, dg):
        with pytest.raises((RuntimeError, TypeError), match=re.escape(words)) as caught:
            program(L)
        kinds.append(type(caught.value))
    assert issubclass(kinds[1], kinds[0])


@both
def test_attributes_can_be_deleted_where_that_means_something(L):
    x = leaf(L)
    x.sum().backward()
    del x.grad
    assert x.grad is None
    for name in ("data", "requires_grad", "_backward_hooks", "_grad_fn"):
        with pytest.raises(RuntimeError):
            delattr(x, name)


@both
def test_the_grad_of_a_result_warns(L):
    y = leaf(L).clone()
    with pytest.warns(UserWarning, match="not a leaf Tensor is being accessed"):
        assert y.grad is None
    y.retain_grad()
    assert y.grad is None


@both
def test_a_gradient_takes_the_dtype_that_was_asked_for(L):
    F = make(L, lambda ctx, x: x * 2, lambda ctx, g: g.to(L.float64))
    for asked, kept in (("own", L.float32), (None, L.float64), (L.float16, L.float16)):
        x = leaf(L)
        if asked != "own":
            x.grad_dtype = asked
        F.apply(x).sum().backward()
        assert x.grad.dtype == kept
    with pytest.raises(RuntimeError, match="there is already a gradient"):
        x.grad_dtype = L.float32


@both
def test_a_copy_has_the_users_attributes(L):
    x = leaf(L)
    x.note = [1]
    twin = copy.deepcopy(x)
    assert twin.note == [1]
    assert twin.note is not x.note


@both
def test_versions_can_be_preserved(L):
    x = leaf(L).clone()
    x.add_(1)
    with L.autograd._unsafe_preserve_version_counter(x):
        x.mul_(2)
    assert x._version == 1


@both
def test_a_view_made_and_changed_without_recording_prints_as_invalid(L):
    x = leaf(L, [1.0])
    with L.no_grad():
        y = x[:]
        y *= 2
    assert repr(y) == "tensor([2.], grad_fn=<Invalid>)"


# ---------------------------------------------------------------------- edges
@both
def test_an_edge_can_be_named_by_its_node_and_number(L):
    x = leaf(L, [[1.0, 2.0], [3.0, 4.0]])
    edge = L.autograd.graph.GradientEdge
    first, second = x.unbind()
    assert (first.output_nr, second.output_nr, x.output_nr) == (0, 1, 0)
    (g,) = L.autograd.grad((first * 2 + second * 3).sum(), edge(second.grad_fn, 1))
    assert numbers(g) == [3.0, 3.0]


@both
def test_a_changed_tensor_and_its_old_edge_have_gradients_of_their_own(L):
    x = leaf(L).clone()
    edge = L.autograd.graph.get_gradient_edge(x)
    x *= 2
    old, new = L.autograd.grad(x.sum(), (edge, x))
    assert (numbers(old), numbers(new)) == ([2.0] * 3, [1.0] * 3)


@both
def test_an_edge_is_a_root(L):
    x = leaf(L)
    edge = L.autograd.graph.get_gradient_edge(x.sin().sum())
    L.autograd.backward(edge)
    assert numbers(x.grad) == numbers(x.detach().cos())
    with pytest.raises(RuntimeError, match="Mismatch in shape"):
        L.autograd.backward(edge, L.ones(4))
    with pytest.raises(RuntimeError, match="materialize_grads cannot be used"):
        L.autograd.grad(
            leaf(L).sum(), L.autograd.graph.get_gradient_edge(x * 2), materialize_grads=True
        )


@both
def test_nodes_tell_shapes_and_can_be_called(L):
    y = leaf(L) ** 2
    assert tuple(y.grad_fn._input_metadata[0].shape) == (3,)
    assert y.grad_fn._input_metadata[0].dtype == L.float32
    with pytest.raises(TypeError, match="expected 1 arguments, got 2 instead"):
        y.grad_fn(L.ones(3), L.ones(3))
    y.grad_fn(L.ones(3))


@both
def test_a_leaf_has_one_node(L):
    x = leaf(L)
    one, two = (x * 2).grad_fn, (x * 3).grad_fn
    node = one.next_functions[0][0]
    assert node is two.next_functions[0][0]
    assert node.variable is x
    assert isinstance(node, L.autograd.graph.Node)
    node.metadata["note"] = 1
    assert two.next_functions[0][0].metadata == {"note": 1}


@both
def test_a_node_without_saved_tensors_may_run_twice(L):
    x = leaf(L)
    for y in (x + 1, x.sum(), x[1:]):
        g = L.ones_like(y)
        y.backward(g)
        y.backward(g)


# ---------------------------------------------------------------------- hooks
@both
def test_hooks_of_a_leaf_run_in_pytorchs_order(L):
    t = leaf(L, 1.0)
    node = t.view_as(t).grad_fn.next_functions[0][0]
    t.register_hook(lambda g: g - 2)
    node.register_prehook(lambda gs: (gs[0] / 5,))

    def after(tensor):
        tensor.grad.add_(0.5)

    def last(grad_inputs, grad_outputs):
        assert grad_inputs == ()
        t.grad = grad_outputs[0] * 10

    t.register_post_accumulate_grad_hook(after)
    node.register_hook(last)
    (t * 1).backward()
    assert round(t.grad.item(), 4) == 3.0


@both
def test_which_hooks_run_for_inputs(L):
    log = []
    a = leaf(L, 1.0)
    b = a.clone()
    b.register_hook(lambda g: log.append("b") or g * 3)
    b.grad_fn.register_prehook(lambda gs: log.append("node"))
    node = b.grad_fn.next_functions[0][0]
    a.register_hook(lambda g: log.append("a"))
    node.register_prehook(lambda gs: log.append("leaf"))
    L.autograd.grad(b * 1, a)
    assert log == ["b", "node", "a"]
    log.clear()
    (b * 1).backward(inputs=(b,))
    assert log == ["b", "node"]
    assert b.grad.item() == 3.0
    assert a.grad is None


@both
def test_a_hook_on_one_of_several_outputs_sees_that_nothing_came(L):
    seen = []
    parts = leaf(L).unbind()
    parts[0].register_hook(seen.append)
    parts[1].backward()
    assert seen == [None]


@both
def test_hooks_on_a_view_do_not_concern_what_a_change_makes_of_it(L):
    base = leaf(L, [1.0]).clone()
    view, other = base[:], base[:]
    view.register_hook(lambda g: pytest.fail("an old hook ran"))
    other.register_hook(lambda g: pytest.fail("an old hook ran"))
    view.retain_grad()
    view.mul_(2)
    seen = []
    view.register_hook(lambda g: seen.append(g.item()))
    (view + other).sum().backward()
    assert seen == [1.0]
    assert numbers(view.grad) == [1.0]


MISUSED = {
    "a number": (lambda g: 3, TypeError, "expected Variable"),
    "another shape": (lambda g: g.sum(), RuntimeError, "changed the size of value"),
    "another dtype": (lambda g: g.double(), RuntimeError, "has changed the type of value"),
}


@both
@pytest.mark.parametrize("case", MISUSED)
def test_what_a_hook_may_not_return(L, case):
    hook, kind, words = MISUSED[case]
    y = leaf(L).clone()
    y.register_hook(hook)
    with pytest.raises(kind, match=words):
        y.sum().backward()


@both
def test_a_post_accumulation_hook_returns_nothing(L):
    x = leaf(L)
    x.register_post_accumulate_grad_hook(lambda t: t.grad)
    with pytest.raises(RuntimeError, match="hooks should return None"):
        x.sum().backward()


@both
def test_a_leaf_is_complete_before_the_next_node_runs(L):
    log = []
    x, w = leaf(L, [1.0]), leaf(L, [1.0])
    h = x * 2
    h.register_hook(lambda g: log.append("h"))
    w.register_hook(lambda g: log.append("w"))
    (w * h).sum().backward()
    assert log == ["w", "h"]


# ---------------------------------------------------------------------- changes in place
@both
def test_a_saved_tensor_must_not_be_detached(L):
    a = leaf(L, 1.0).clone()
    b = a.sin()
    a.detach_()
    with pytest.raises(RuntimeError, match="saved tensor that has been detached"):
        b.backward()
    a = leaf(L, 1.0).clone()
    b = a.exp()
    a.detach_()
    b.backward()  # a saved output does not need its history


@both
def test_a_view_of_several_may_not_get_a_history(L):
    part = L.rand(1, 2).unbind()[0]
    with pytest.raises(RuntimeError, match="function that returns multiple views"):
        part.copy_(leaf(L, [1.0, 2.0]))
    L.rand(1, 2).select(1, 0).copy_(leaf(L, [1.0]))


@both
def test_a_view_of_a_view_made_without_recording(L):
    x = L.zeros(2)
    with L.no_grad():
        y = x.view(2)
    y.requires_grad_(True)
    z = y.view(2)
    with pytest.raises(RuntimeError, match=r"a view of a view .* is being .* inside the no_grad"):
        z /= 2


# ---------------------------------------------------------------------- Functions
@both
def test_the_graph_behind_a_once_differentiable_function(L):
    def names(node):
        if node is None:
            return "None"
        rest = ", ".join(names(n) for n, _ in node.next_functions)
        return f"{type(node).__name__}({rest})"

    def forward(ctx, a, k, b):
        ctx.save_for_backward(a, b)
        return a + k * b + a * b

    def backward(ctx, g):
        a, b = ctx.saved_tensors
        return g + g * b, None, g * 2 + g * a

    x, y = leaf(L), leaf(L)
    F = make(L, forward, L.autograd.function.once_differentiable(backward))
    F.apply(x, 2, y).sum().backward(L.ones((), requires_grad=True), create_graph=True)
    expected = "CopyBackwards(None, Error(AccumulateGrad(), None, AccumulateGrad()))"
    assert names(x.grad.grad_fn) == names(y.grad.grad_fn) == expected


@both
def test_raw_saved_tensors_of_a_function(L):
    def forward(ctx, x):
        ctx.save_for_backward(x, None)
        return x * 1

    x = leaf(L)
    y = make(L, forward, lambda ctx, g: (ctx.saved_tensors, g)[1]).apply(x)
    one, none = y.grad_fn._raw_saved_tensors
    with pytest.raises(RuntimeError, match="None is forbidden"):
        none.register_hooks(lambda t: t, lambda t: t)
    with pytest.raises(TypeError, match="incompatible function arguments"):
        one.register_hooks(lambda t: t)
    one.register_hooks(lambda t: t.tolist(), L.tensor)
    y.sum().backward()
    with pytest.raises(RuntimeError, match="already been freed"):
        y.grad_fn._raw_saved_tensors  # noqa: B018


@both
def test_saved_tensors_that_are_handed_out_once(L):
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clone()

    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        ref = weakref.ref(x)
        del x
        assert ref() is None
        with pytest.raises(RuntimeError, match="can only be accessed once"):
            ctx.saved_tensors  # noqa: B018
        return g

    F = make(L, forward, backward)
    F.clear_saved_tensors_on_access = True
    F.apply(leaf(L).clone()).sum().backward()


def test_instances_of_a_function_are_no_nodes():
    with pytest.warns(DeprecationWarning, match="should not be instantiated"):
        f = make(dg, lambda ctx, x: x)()
    with pytest.raises(RuntimeError, match="Attribute 'next_functions' is invalid"):
        f.next_functions  # noqa: B018


@both
def test_tangents_must_fit_what_forward_did(L):
    def changed(ctx, x):
        ctx.mark_dirty(x)
        return x.mul_(2)

    def apart(ctx, x):
        out = x.clone()
        ctx.mark_non_differentiable(out)
        return x * 1, out

    cases = [
        (make(L, changed, jvp=lambda ctx, t: t), "must modify the corresponding gradient inplace"),
        (make(L, lambda ctx, x: x, jvp=lambda ctx, t: t * 1), "the jvp is not returning a view"),
        (make(L, apart, jvp=lambda ctx, t: (t, t)), "return None at that position instead"),
    ]
    for F, words in cases:
        with L.autograd.forward_ad.dual_level():
            x = L.autograd.forward_ad.make_dual(L.ones(2), L.ones(2))
            with pytest.raises(RuntimeError, match=words):
                F.apply(x)


@both
def test_a_changed_view_that_is_saved_is_no_cycle(L):
    def forward(ctx, x):
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    def scope():
        x = leaf(L, 1.0).clone()
        x = x.view_as(x)
        make(L, forward, lambda ctx, g: g).apply(x)
        return weakref.ref(x)

    gc.collect()
    gc.disable()
    try:
        assert scope()() is None
    finally:
        gc.enable()


# ---------------------------------------------------------------------- modes and tools
@both
def test_exceptions_and_ends_reach_a_decorated_generator(L):
    log = []

    @L.no_grad()
    def generator():
        try:
            while True:
                try:
                    yield L.is_grad_enabled()
                except KeyError:
                    log.append(("thrown", L.is_grad_enabled()))
        finally:
            log.append(("closed", L.is_grad_enabled()))

    running = generator()
    assert next(running) is False
    assert running.throw(KeyError) is False
    running.close()
    assert log == [("thrown", False), ("closed", False)]
    assert L.is_grad_enabled()


@both
def test_decorating_a_class_warns(L):
    with pytest.warns(FutureWarning, match="Decorating classes is deprecated"):

        @L.no_grad()
        class Thing:
            def __init__(self):
                self.inside = L.is_grad_enabled()

            def method(self):
                return L.is_grad_enabled()

    assert (Thing().inside, Thing().method()) == (False, True)


@both
def test_switches_of_threads_and_views_are_kept(L):
    with L.autograd.set_multithreading_enabled(False):
        assert not L.autograd.is_multithreading_enabled()
    assert L.autograd.is_multithreading_enabled()
    with L.autograd._force_original_view_tracking(True):
        assert L.autograd.is_view_replay_enabled()


@both
def test_backward_that_makes_a_graph_warns_once(L):
    if L is dg:
        dg.autograd.gradients._Warned.done = False
    else:
        torch.set_warn_always(True)
    try:
        x = leaf(L)
        with pytest.warns(UserWarning, match="create_graph=True will create a reference cycle"):
            (x * x).sum().backward(create_graph=True)
    finally:
        torch.set_warn_always(False)
    with warnings.catch_warnings(action="error"):
        L.autograd.grad((x * x).sum(), x, create_graph=True)


@both
def test_hooks_do_not_see_python_numbers(L):
    def fail(t):
        raise AssertionError("packed")

    x = leaf(L)
    with L.autograd.graph.saved_tensors_hooks(fail, fail):
        (g,) = L.autograd.grad((x * 3).sum(), x)
    assert numbers(g) == [3.0] * 3


@both
def test_hooks_that_are_on_cannot_be_disabled(L):
    graph = L.autograd.graph
    with (
        graph.saved_tensors_hooks(lambda t: t, lambda t: t),
        pytest.raises(RuntimeError, match="not now"),
        graph.disable_saved_tensors_hooks("not now"),
    ):
        pass


@both
def test_where_warnings_are_errors_anomaly_mode_writes_to_stderr(L, capsys):
    x = leaf(L)
    with warnings.catch_warnings(action="ignore"), L.autograd.detect_anomaly():
        y = x + 1
        z = (y**2).sum()
        y += 1
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            z.backward()
    assert "Error detected in PowBackward0" in capsys.readouterr().err


def test_2000_backwards_inside_each_other():
    def forward(ctx, x):
        with dg.enable_grad():
            ctx.x = x.detach().requires_grad_() - 1
        return ctx.x.detach()

    depth = []

    def backward(ctx, g):
        depth.append(1)
        if ctx.x.item() >= 0:
            with dg.enable_grad():
                F.apply(ctx.x).sum().backward()
        return g

    F = make(dg, forward, backward)
    F.apply(leaf(dg, 2000.0)).sum().backward()
    assert len(depth) == 2001


@both
def test_backwards_of_a_group_share_what_is_computed_again(L):
    runs = []

    def function(x):
        runs.append(1)
        y = x.sin().cos()
        return y, y.sin().cos()

    x = leaf(L)
    y, z = L.utils.checkpoint.checkpoint(function, x, use_reentrant=False)
    with L.utils.checkpoint.GraphExecGroup():
        (g,) = L.autograd.grad(z, y, L.ones(3))
        L.autograd.grad(y, x, g)
    assert len(runs) == 2


@pytest.mark.parametrize(
    ("operate", "name"),
    [
        (operator.add, "__radd__"),
        (operator.sub, "__rsub__"),
        (operator.mul, "__rmul__"),
        (operator.truediv, "__rtruediv__"),
        (operator.floordiv, "__rfloordiv__"),
        (operator.mod, "__rmod__"),
        (operator.pow, "__rpow__"),
        (operator.matmul, "__rmatmul__"),
        (operator.and_, "__rand__"),
    ],
)
def test_an_operator_gives_way_to_the_class_of_the_other_operand(operate, name):
    x = dg.ones(2, 2)
    foreign = type("Foreign", (), {name: lambda self, left: (name, left)})
    called, left = operate(x, foreign())
    assert called == name
    assert left is x
    with pytest.raises(TypeError, match="must be Tensor"):
        operate(x, object())
