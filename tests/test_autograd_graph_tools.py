"""Tools for the graph, anomaly mode, functional derivatives: side by side with PyTorch."""

import re
import threading
import warnings

import numpy as np
import pytest

import distgrad as dg
from distgrad.autograd import saving

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

DATA = [1.0, 2.0, 3.0]


def leaf(L):
    return L.tensor(DATA, dtype=L.float64, requires_grad=True)


def facts(value):
    if hasattr(value, "tolist"):
        return np.round(np.array(value.tolist()), 9).tolist()
    if isinstance(value, list | tuple):
        return [facts(v) for v in value]
    return value


# ---------------------------------------------------------------------- programs that agree
def pack_sees_the_tensors(L, x):
    seen = []

    def pack(t):
        seen.append((t.requires_grad, t.is_leaf, t is x, facts(t)))
        return t.detach()

    with L.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = (x * x).exp().sum()
    y.backward()
    return seen, x.grad


def what_unpack_gives_is_used(L, x):
    with L.autograd.graph.saved_tensors_hooks(lambda t: t.detach() * 2, lambda t: t * 3):
        y = (x.sin() * x).sum()
    y.backward()
    return x.grad


def only_the_innermost_hooks_count(L, x):
    seen = []
    hooks = [(lambda t, n=n: (seen.append(n), t.detach())[1], lambda t: t) for n in (1, 2)]
    with L.autograd.graph.saved_tensors_hooks(*hooks[0]):
        a = x.exp()
        with L.autograd.graph.saved_tensors_hooks(*hooks[1]):
            b = a.exp()
        c = b.exp()
    d = c.exp()
    d.sum().backward()
    return seen


def second_order_through_hooks(L, x):
    with L.autograd.graph.saved_tensors_hooks(lambda t: t.detach() * 2, lambda t: t / 2):
        y = (x * x * x.exp()).tanh().sum()
        (first,) = L.autograd.grad(y, x, create_graph=True)
    (second,) = L.autograd.grad(first.sum(), x)
    return first, second


def in_place_under_hooks(L, x):
    with L.autograd.graph.saved_tensors_hooks(lambda t: t.detach(), lambda t: t):
        y = x * 1
        y.sin_()
        y.mul_(x)
        y[0] = 3.0
    y.sum().backward()
    return x.grad


def several_outputs_under_hooks(L, x):
    with L.autograd.graph.saved_tensors_hooks(lambda t: t.detach().clone(), lambda t: t):
        values, places = (x * 2).sort()
        best = (x * x).max(0)
        both = L.cat([x, x.exp()])
    (values.sum() + best.values + (both * both).sum()).backward()
    return x.grad, places


def saved_on_the_host(L, x):
    with L.autograd.graph.save_on_cpu():
        y = (x * x).sum()
    y.backward()
    return x.grad


def raw_saved_tensors(L, x):
    y = x * x
    y.grad_fn._raw_saved_self.register_hooks(lambda t: t.detach() * 2, lambda t: t * 5)
    saved = y.grad_fn._saved_self
    y.sum().backward()
    return saved, saved.requires_grad, x.grad


def saved_values_of_nodes(L, x):
    y = x.exp()
    z = x.sum(0, keepdim=True)
    p = x.pow(3)
    q = x * (x + 1)
    return (
        y.grad_fn._saved_result, y.grad_fn._saved_result.requires_grad, z.grad_fn._saved_keepdim,
        list(z.grad_fn._saved_self_sym_sizes), p.grad_fn._saved_self, p.grad_fn._saved_exponent,
        q.grad_fn._saved_other, q.grad_fn._saved_self is x,
    )  # fmt: skip


def hook_on_several_gradients(L, x):
    w, seen = leaf(L), []
    c, d = x * w, x * w
    hook = L.autograd.graph.register_multi_grad_hook
    handle = hook((x, w, c, d), lambda gs: seen.append([g is not None for g in gs]))
    hook((x, w), lambda g: seen.append(facts(g)), mode="any")
    c.sum().backward(retain_graph=True)
    c.sum().backward(inputs=(x,), retain_graph=True)
    handle.remove()
    c.sum().backward()
    return seen


def edges_as_inputs(L, x):
    edge = L.autograd.graph.get_gradient_edge
    y = x * 2
    a, b = (y * y).split([1, 2])
    loss = (a * 3).sum() + (b * b).sum()
    found = L.autograd.grad(loss, [edge(y), edge(x), edge(a), edge(b)], retain_graph=True)
    (y * 1).sum().backward(inputs=edge(x), retain_graph=True)
    (again,) = L.autograd.grad(edge(y), x, y.detach())
    return found, x.grad, again, edge(b).output_nr


def versions_by_hand(L, x):
    y = x * 1
    L.autograd.graph.increment_version(y)
    L.autograd.graph.increment_version([y, y])
    return y._version


def saved_tensors_may_change(L, x):
    with L.autograd.graph.allow_mutation_on_saved_tensors():
        y = x * 1
        z = (y**2).sum() + y.exp().sum()
        y.sin_()
        y[0] = 5.0
        y.fill_(2)
        z.backward()
    return x.grad, y


def batch_of_gradients(L, x):
    y = x * x
    eye = L.eye(3, dtype=L.float64)
    rows = L.autograd.grad(y, x, eye, is_grads_batched=True, create_graph=True)
    both = L.autograd.grad([x * 2, x * 3], [x], [eye, eye], is_grads_batched=True)
    return rows, rows[0].requires_grad, both


def gradients_by_name(L, x):
    return sorted(L.autograd.grad((x * 2).sum(), {"x": x}).items())[0][1]


def leaf_hooks_fire_only_where_needed(L, x):
    w, seen = leaf(L), []
    x.register_hook(lambda g: seen.append("x"))
    w.register_hook(lambda g: seen.append("w"))
    x.register_post_accumulate_grad_hook(lambda p: seen.append("after x"))
    (x * w).sum().backward(inputs=[w])
    L.autograd.grad((x * w).sum(), x)
    (x * w).sum().backward()
    assert seen.index("x", 2) < seen.index("after x")
    return sorted(seen)


def retained_gradient_is_that_after_all_hooks(L, x):
    y = x * 1
    y.register_hook(lambda g: g * 2)
    y.retain_grad()
    y.register_hook(lambda g: g * 3)
    y.retain_grad()
    (y * y).sum().backward()
    return y.grad, x.grad, y.retains_grad


def hooks_stay_and_retained_gradients_move(L, x):
    seen = []
    y = x * 2
    y.retain_grad()
    y.register_hook(lambda g: seen.append(("old", facts(g))))
    y.mul_(3)
    y.register_hook(lambda g: seen.append(("new", facts(g))))
    y.sum().backward()
    return seen, y.grad, x.grad


def retained_gradient_of_a_changed_view(L, x):
    y = x * 2
    v = y[:2]
    v.retain_grad()
    y.retain_grad()
    v.mul_(3)
    (y * y).sum().backward()
    return y.grad, x.grad


def retained_gradient_in_grad(L, x):
    y = x * 2
    y.retain_grad()
    found = L.autograd.grad((y * y).sum(), x)
    return found, y.grad


def modes_as_functions(L, x):
    seen = []
    with L.autograd.no_grad():
        seen.append(L.is_grad_enabled())
        with L.autograd.enable_grad():
            seen.append(L.is_grad_enabled())
    L.autograd.set_grad_enabled(False)
    seen.append(L.is_grad_enabled())
    L.autograd.set_grad_enabled(True)
    return seen, isinstance(x, L.autograd.Variable)


def in_place_saves_the_value_before(L, x):
    y = x * 1
    for change in ("sin_", "cos_", "abs_", "log_", "square_", "log1p_", "atan_", "neg_"):
        getattr(y, change)()
    y.pow_(2)
    y.clamp_(0.1, 0.9)
    y.mul_(x)
    y.div_(x + 1)
    y.add_(y)
    y.pow_(x)
    y.sum().backward()
    return x.grad


AGREE = [
    pack_sees_the_tensors, what_unpack_gives_is_used, only_the_innermost_hooks_count,
    second_order_through_hooks, in_place_under_hooks, several_outputs_under_hooks,
    saved_on_the_host, raw_saved_tensors, saved_values_of_nodes, hook_on_several_gradients,
    edges_as_inputs, versions_by_hand, saved_tensors_may_change, batch_of_gradients,
    gradients_by_name, leaf_hooks_fire_only_where_needed,
    retained_gradient_is_that_after_all_hooks, hooks_stay_and_retained_gradients_move,
    retained_gradient_of_a_changed_view, retained_gradient_in_grad, modes_as_functions,
    in_place_saves_the_value_before,
]  # fmt: skip


@pytest.mark.parametrize("program", AGREE)
def test_a_program_does_here_what_it_does_in_torch(program):
    want, got = (facts(program(L, leaf(L))) for L in (torch, dg))
    assert got == want
    assert not saving.switch.users


# ---------------------------------------------------------------------- refusals
def unpacked_number(L, x):
    with L.autograd.graph.saved_tensors_hooks(lambda t: 3, lambda t: t):
        y = x.exp().sum()
    y.backward()


def pack_that_changes(L, x):
    with L.autograd.graph.saved_tensors_hooks(lambda t: t.mul_(2), lambda t: t):
        x.exp()


def hooks_where_forbidden(L, x):
    hooks = L.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)
    with L.autograd.graph.disable_saved_tensors_hooks("no hooks here"), hooks:
        pass


def hooks_set_twice(L, x):
    y = x * x
    for _ in range(2):
        y.grad_fn._raw_saved_self.register_hooks(lambda t: t.detach(), lambda t: t)


def saved_value_changed(L, x):
    y = x * 1
    z = y * y
    y.add_(1)
    return z.grad_fn._saved_self


def saved_result_changed(L, x):
    y = x.exp()
    node = y.grad_fn
    y.add_(1)
    return node._saved_result


def saved_value_freed(L, x):
    y = x * x
    y.sum().backward()
    return y.grad_fn._saved_self


def edge_of_a_constant(L, x):
    L.autograd.graph.get_gradient_edge(x.detach())


def unknown_mode(L, x):
    L.autograd.graph.register_multi_grad_hook([x], print, mode="some")


def nested_mutation(L, x):
    allowed = L.autograd.graph.allow_mutation_on_saved_tensors
    with allowed(), allowed():
        pass


def retained_constant(L, x):
    x.detach().retain_grad()


def changed_by_itself(operation):
    def program(L, x):
        y = x * 1
        operation(y, x)
        y.sum().backward()

    return program


REFUSED = [
    (unpacked_number, "Output of saved tensor unpack_hook expected to be a Tensor but got result"),
    (pack_that_changes, "A saved tensor pack hook is modifying its input in place"),
    (hooks_where_forbidden, "no hooks here"),
    (hooks_set_twice, "Calling register_hooks on a saved tensor whose hooks have already been set"),
    (saved_value_changed, "has been modified by an inplace operation"),
    (saved_result_changed, "has been modified by an inplace operation"),
    (saved_value_freed, "directly access saved tensors after they have already been freed"),
    (edge_of_a_constant, "get the gradient edge for a Tensor that does not require gradients"),
    (unknown_mode, "Expects mode to be one of ('all', 'any') but got some"),
    (nested_mutation, "allow_mutation_on_saved_tensors contexts cannot be nested"),
    (retained_constant, "can't retain_grad on Tensor that has requires_grad=False"),
    (changed_by_itself(lambda y, x: y.exp_().neg_()), "has been modified by an inplace operation"),
    (changed_by_itself(lambda y, x: y.relu_().add_(1)), "has been modified by an inplace operatio"),
    (changed_by_itself(lambda y, x: y.mul_(y)), "has been modified by an inplace operation"),
    (changed_by_itself(lambda y, x: y.div_(y)), "has been modified by an inplace operation"),
    (changed_by_itself(lambda y, x: y.pow_(y)), "has been modified by an inplace operation"),
    (changed_by_itself(lambda y, x: y.atan2_(y)), "has been modified by an inplace operation"),
    (changed_by_itself(lambda y, x: y.addcmul_(y, x)), "has been modified by an inplace operation"),
    (changed_by_itself(lambda y, x: y.addcdiv_(x, y)), "has been modified by an inplace operation"),
    (changed_by_itself(lambda y, x: y.lerp_(x * 2, y)), "has been modified by an inplace operati"),
]  # fmt: skip


@pytest.mark.parametrize(("program", "words"), REFUSED)
def test_what_torch_refuses_is_refused_with_its_words(program, words):
    kinds = []
    for L in (torch, dg):
        with pytest.raises((RuntimeError, TypeError, ValueError), match=re.escape(words)) as caught:
            program(L, leaf(L))
        kinds.append(type(caught.value))
    assert issubclass(kinds[1], kinds[0])
    assert not saving.switch.users


def test_hooks_belong_to_a_thread():
    seen, x = [], leaf(dg)
    with dg.autograd.graph.saved_tensors_hooks(lambda t: (seen.append(1), t)[1], lambda t: t):
        thread = threading.Thread(target=lambda: x.exp())
        thread.start()
        thread.join()
        assert seen == []
        x.exp()
    assert seen == [1]


def test_operations_are_what_they_were_after_hooks():
    names = dg.mul.__globals__
    before = names["_new_node"]
    with dg.autograd.graph.save_on_cpu():
        assert names["_new_node"] is not before
    assert names["_new_node"] is object.__new__


# ---------------------------------------------------------------------- anomaly mode
def anomaly(L, x, check_nan=True):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with L.autograd.detect_anomaly(check_nan):
            y = x * 0
            z = y / y  # the line that is named
    return z


@pytest.mark.parametrize("L", [torch, dg])
def test_anomaly_mode_names_the_line_and_the_output(L):
    z = anomaly(L, leaf(L)).sum()
    with warnings.catch_warnings(record=True) as said, L.autograd.set_detect_anomaly(True):
        warnings.simplefilter("always")
        with pytest.raises(RuntimeError, match=r"Function 'DivBackward0' returned nan values in"):
            z.backward()
    text = "".join(str(w.message) for w in said)
    assert "Error detected in DivBackward0. Traceback of forward call that caused" in text
    assert "z = y / y  # the line that is named" in text


@pytest.mark.parametrize("L", [torch, dg])
def test_anomaly_mode_without_a_forward_says_so(L):
    x = leaf(L)
    y = x * 0
    z = (y / y).sum()
    with warnings.catch_warnings(record=True) as said, L.autograd.set_detect_anomaly(True):
        warnings.simplefilter("always")
        with pytest.raises(RuntimeError, match="returned nan values"):
            z.backward()
    assert any("No forward pass information available" in str(w.message) for w in said)


@pytest.mark.parametrize("L", [torch, dg])
def test_anomaly_mode_can_leave_nan_alone_and_tells_of_errors(L):
    class Fails(L.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, g):
            raise RuntimeError("some error")

    x = leaf(L)
    with L.autograd.set_detect_anomaly(True, check_nan=False):
        anomaly(L, x, False).sum().backward()
        assert x.grad.isnan().all()
        y = Fails.apply(x)
        said = pytest.warns(UserWarning, match=r"Error detected in FailsBackward\. Traceback of")
        with said, pytest.raises(RuntimeError, match="some error"):
            y.sum().backward()


def test_anomaly_mode_warns_when_turned_on_and_ends():
    said = pytest.warns(UserWarning, match="Anomaly Detection has been enabled")
    with said, dg.autograd.detect_anomaly():
        assert dg.autograd.anomaly.is_anomaly_enabled()
    assert not dg.autograd.anomaly.is_anomaly_enabled()
    assert not saving.switch.users
    x = leaf(dg)
    assert "traceback_" not in (x * x).grad_fn.metadata


# ---------------------------------------------------------------------- autograd.functional
def _cube(x):
    return (x * x * x).sum()


def _pair(x, y):
    return x * y, (x * x).sum()


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("name", ["vjp", "jvp", "hvp", "vhp", "jacobian", "hessian"])
def test_functional_derivatives_agree_with_torch(name, create_graph):
    def run(L):
        A, x, y = L.autograd.functional, leaf(L), leaf(L) + 1
        two = (x, y)
        if name == "vjp":
            return A.vjp(_pair, two, (y, L.tensor(2.0, dtype=L.float64)), create_graph)
        if name == "jvp":
            return A.jvp(_pair, two, two, create_graph)
        if name in ("hvp", "vhp"):
            return getattr(A, name)(lambda x, y: _cube(x * y), two, two, create_graph)
        if name == "jacobian":
            return A.jacobian(_pair, two, create_graph), A.jacobian(_pair, two, vectorize=True)
        return A.hessian(lambda x, y: _cube(x * y), two, create_graph), A.hessian(_cube, x)

    want, got = facts(run(torch)), facts(run(dg))
    assert got == want


def test_columns_by_forward_mode_are_those_of_rows():
    x, y = leaf(dg), leaf(dg) + 1
    rows = dg.autograd.functional.jacobian(_pair, (x, y))
    columns = dg.autograd.functional.jacobian(
        _pair, (x, y), vectorize=True, strategy="forward-mode"
    )
    assert facts(columns) == facts(rows)


def test_functional_results_can_be_differentiated():
    def run(L):
        x = leaf(L)
        h = L.autograd.functional.hessian(_cube, x, create_graph=True)
        return L.autograd.grad(h.sum(), x)

    assert facts(run(dg)) == facts(run(torch))


FUNCTIONAL_REFUSALS = [
    (lambda A, x: A.vjp(lambda x: x, x), "The vector v can only be None if the user-provided"),
    (lambda A, x: A.jvp(lambda x: x, x), "The vector v can only be None if the input to the"),
    (lambda A, x: A.vjp(lambda x: x, x, x[:2]), "v has invalid size: should be"),
    (lambda A, x: A.vjp(lambda x: x, x, (x, x)), "The given v should contain a single Tensor"),
    (lambda A, x: A.vjp(lambda x: 3, x), "must be either a Tensor or a tuple of Tensors but the"),
    (lambda A, x: A.hessian(lambda x: x, x), "should contain a single element"),
    (lambda A, x: A.hvp(lambda x: (x, x), x, x), "should return a single Tensor"),
    (lambda A, x: A.jacobian(lambda x: x.detach(), x, strict=True), "does not require gradients"),
    (lambda A, x: A.jacobian(lambda x, y: x, (x, x), strict=True), "is independent of input 1"),
    (lambda A, x: A.hessian(lambda x: x.sum(), x, strict=True), "is independent of the input"),
    (lambda A, x: A.vjp(lambda x, y: x, (x, x), x, strict=True), "is independent of input 1"),
    (lambda A, x: A.jacobian(lambda x: x, x, strategy="other"), "Expected strategy to be either"),
]


@pytest.mark.parametrize(("call", "words"), FUNCTIONAL_REFUSALS)
def test_functional_derivatives_refuse_what_torch_refuses(call, words):
    for L in (torch, dg):
        with pytest.raises((RuntimeError, TypeError, AssertionError), match=re.escape(words)):
            call(L.autograd.functional, leaf(L))
