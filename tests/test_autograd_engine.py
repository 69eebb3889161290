"""The engine: accumulation, hooks, graph life, modes, printed forms."""

import gc
import threading
import warnings
import weakref

import numpy as np
import pytest

import distgrad as dg
from distgrad.errors import GradError, ShapeError


def cycles_are_known():
    """Expect the warning that backward with create_graph gives once in a process."""
    return warnings.catch_warnings(action="ignore")


def leaf(*values, dtype=dg.float64):
    return dg.tensor(list(values), dtype=dtype, requires_grad=True)


def test_printed_forms_are_those_of_pytorch():
    x = dg.tensor([6.0, 8.0], requires_grad=True)
    assert repr(x) == "tensor([6., 8.], requires_grad=True)"
    assert repr(x + 0.0) == "tensor([6., 8.], grad_fn=<AddBackward0>)"
    assert repr(x.detach()) == "tensor([6., 8.])"
    assert repr((x * x).sum()) == "tensor(100., grad_fn=<SumBackward0>)"
    assert (x * 2).grad_fn.name() == "MulBackward0"
    assert repr(dg.zeros(2, 2)) == "tensor([[0., 0.],\n        [0., 0.]])"


def test_gradients_accumulate_over_uses_and_over_backwards():
    x = leaf(1.0, 2.0)
    (x * x + 3 * x).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [5.0, 7.0])
    (x * 2).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [7.0, 9.0])


def test_leaves_never_share_one_gradient_array():
    x, y = leaf(1.0, 2.0), leaf(3.0, 4.0)
    (x + y).backward(dg.tensor([1.0, 1.0], dtype=dg.float64))
    assert not np.shares_memory(x.grad.array, y.grad.array)
    g = dg.tensor([1.0, 1.0], dtype=dg.float64)
    z = leaf(1.0, 1.0)
    z.view(2).backward(g)
    assert not np.shares_memory(z.grad.array, g.array)


def test_a_gradient_kept_by_a_hook_is_not_changed_later():
    x, kept = leaf(1.0, 2.0), []
    x.register_hook(kept.append)
    (x * 3).sum().backward()
    (x * 3).sum().backward()
    np.testing.assert_array_equal(kept[0].numpy(), [3.0, 3.0])
    np.testing.assert_array_equal(x.grad.numpy(), [6.0, 6.0])


def test_hooks_see_the_whole_gradient_once_and_may_replace_it():
    x, seen = leaf(1.0, 2.0), []
    y = x * 2
    y.register_hook(lambda g: seen.append(g.tolist()))
    y.register_hook(lambda g: g * 10)
    (y + y * 3).sum().backward()
    assert seen == [[4.0, 4.0]]
    np.testing.assert_array_equal(x.grad.numpy(), [80.0, 80.0])


def test_a_hook_can_be_removed_and_must_keep_the_shape():
    x = leaf(1.0, 2.0)
    handle = x.register_hook(lambda g: g * 0)
    handle.remove()
    (x * 2).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [2.0, 2.0])
    x.register_hook(lambda g: g.sum())
    with pytest.raises(GradError, match=r"shape \[\] for one of shape \[2\]"):
        (x * 2).sum().backward()


def test_the_accumulation_hook_fires_once_per_backward_after_the_last_use():
    x, calls = leaf(1.0), []
    x.register_post_accumulate_grad_hook(lambda p: calls.append(p.grad.item()))
    (x * 2 + x * 3 + x.exp() * 0).sum().backward()
    assert calls == [5.0]


def test_a_gradient_goes_into_the_buffer_that_a_leaf_carries():
    x = leaf(1.0, 2.0)
    flat = np.full(5, 9.0)
    x._grad_buffer = dg.from_numpy(flat[1:3])
    (x * 2).sum().backward()
    np.testing.assert_array_equal(flat, [9, 2, 2, 9, 9])
    assert x.grad is x._grad_buffer
    (x * 2).sum().backward()
    np.testing.assert_array_equal(flat, [9, 4, 4, 9, 9])


def test_node_hooks_run_before_and_after_a_node():
    x, order = leaf(2.0), []
    y = x * x
    y.grad_fn.register_prehook(lambda out: order.append(("pre", out[0].item())))
    y.grad_fn.register_hook(lambda ins, out: order.append(("post", len(ins), out[0].item())))
    y.sum().backward()
    assert order == [("pre", 1.0), ("post", 2, 1.0)]


def test_a_second_backward_needs_retain_graph():
    x = leaf(1.0, 2.0)
    y = (x * x).sum()
    y.backward(retain_graph=True)
    y.backward()
    np.testing.assert_array_equal(x.grad.numpy(), [4.0, 8.0])
    with pytest.raises(GradError, match="backward through the graph a second time"):
        y.backward()


def test_backward_frees_what_operations_saved():
    x = leaf(*range(10))
    y = x.exp()
    alive = weakref.ref(y.grad_fn.saved[0])
    total = y.sum()
    del y
    assert alive() is not None
    total.backward()
    gc.disable()
    try:
        assert alive() is None
    finally:
        gc.enable()


def test_a_graph_is_no_reference_cycle():
    x = leaf(1.0)
    y = ((x * 2).exp() + x).sum()
    node = weakref.ref(y.grad_fn)
    gc.disable()
    try:
        del y
        assert node() is None
    finally:
        gc.enable()


def test_a_graph_of_100000_nodes_needs_no_recursion():
    x = leaf(1.0)
    y = x
    for _ in range(100_000):
        y = y + 1
    y.sum().backward()
    assert x.grad.item() == 1.0
    del y


def test_gradients_of_gradients():
    x = leaf(2.0, 3.0)
    (first,) = dg.autograd.grad((x**3).sum(), x, create_graph=True)
    (second,) = dg.autograd.grad(first.sum(), x, create_graph=True)
    (third,) = dg.autograd.grad(second.sum(), x)
    np.testing.assert_allclose(first.detach().numpy(), [12.0, 27.0])
    np.testing.assert_allclose(second.detach().numpy(), [12.0, 18.0])
    np.testing.assert_allclose(third.numpy(), [6.0, 6.0])


def test_create_graph_leaves_gradients_with_a_history():
    x = leaf(2.0)
    with cycles_are_known():
        (x**2).sum().backward(create_graph=True)
    assert x.grad.requires_grad
    x.grad.sum().backward()
    assert x.grad.item() == 4.0 + 2.0


def test_grad_of_intermediate_tensors_and_unused_ones():
    x, unused = leaf(1.0, 2.0), leaf(1.0)
    y = x * 2
    z = (y * y).sum()
    (gy,) = dg.autograd.grad(z, y, retain_graph=True)
    np.testing.assert_array_equal(gy.numpy(), [4.0, 8.0])
    assert dg.autograd.grad(z, [x, unused], retain_graph=True, allow_unused=True)[1] is None
    zeros = dg.autograd.grad(z, unused, retain_graph=True, materialize_grads=True)[0]
    assert zeros.tolist() == [0.0]
    with pytest.raises(GradError, match="appears to not have been used"):
        dg.autograd.grad(z, unused)
    assert x.grad is None


def test_backward_into_chosen_inputs_only():
    x, w = leaf(1.0, 2.0), leaf(3.0, 4.0)
    (x * w).sum().backward(inputs=[w])
    assert x.grad is None
    np.testing.assert_array_equal(w.grad.numpy(), [1.0, 2.0])


def test_retain_grad_keeps_the_gradient_of_a_non_leaf():
    x = leaf(1.0, 2.0)
    y = x * 2
    y.retain_grad()
    (y * y).sum().backward()
    np.testing.assert_array_equal(y.grad.numpy(), [4.0, 8.0])
    assert y.retains_grad
    assert not y.is_leaf


def test_what_cannot_be_differentiated_says_why():
    x = leaf(1.0, 2.0)
    with pytest.raises(GradError, match="only for scalar outputs"):
        (x * 2).backward()
    with pytest.raises(ShapeError, match=r"grad_output\[0\] has a shape of distgrad.Size\(\[3\]\)"):
        (x * 2).backward(dg.ones(3))
    with pytest.raises(GradError, match="does not require grad and does not have a grad_fn"):
        dg.ones(1).sum().backward()
    with pytest.raises(GradError, match="only tensors of floating point"):
        dg.tensor([1, 2]).requires_grad_()
    with pytest.raises(GradError, match="of leaf tensors"):
        (x * 2).requires_grad_(False)
    with pytest.raises(GradError, match=r"Use tensor.detach\(\).numpy\(\)"):
        x.numpy()


def test_recording_is_switched_per_block_function_and_thread():
    x = leaf(1.0)
    with dg.no_grad():
        assert not (x * 2).requires_grad
        with dg.enable_grad():
            assert (x * 2).requires_grad

        @dg.enable_grad()
        def inner():
            return x * 2

        assert inner().requires_grad
        seen = []
        thread = threading.Thread(target=lambda: seen.append(dg.is_grad_enabled()))
        thread.start()
        thread.join()
        assert seen == [True]
    with dg.set_grad_enabled(False):
        assert not dg.is_grad_enabled()
    with dg.inference_mode():
        assert not (x * 2).requires_grad
        assert dg.is_inference_mode_enabled()
    assert dg.is_grad_enabled()

    @dg.no_grad
    def plain():
        return (x * 2).requires_grad

    assert plain() is False


def test_detach_shares_memory_but_no_history():
    x = leaf(1.0, 2.0)
    d = (x * 1).detach()
    assert not d.requires_grad
    assert d.is_leaf
    y = x.detach()
    assert y.data_ptr() == x.data_ptr()


def test_integer_tensors_take_no_part_in_gradients():
    x = leaf(3.0, 1.0, 2.0)
    assert not x.argmax().requires_grad
    assert not (x > 1).requires_grad
    values, indices = x.max(0)
    assert values.requires_grad
    assert not indices.requires_grad


def test_several_outputs_one_unused():
    x = leaf(1.0, 2.0, 3.0, 4.0)
    a, _, c = x.split([1, 2, 1])
    (a * 2 + c * 3).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [2.0, 0.0, 0.0, 3.0])


def test_next_functions_lead_to_the_leaves():
    x = leaf(1.0)
    y = (x * 2).exp()
    ((mul, number),) = y.grad_fn.next_functions
    assert (mul.name(), number) == ("MulBackward0", 0)
    assert mul.next_functions[0][0].variable is x


def test_a_gradient_has_the_dtype_of_its_leaf_when_dtypes_mix():
    x = dg.tensor([1.0, 2.0], requires_grad=True)
    y = leaf(3.0, 4.0)
    (x * y).sum().backward()
    assert x.grad.dtype is dg.float32
    assert y.grad.dtype is dg.float64


def test_a_conversion_keeps_nothing_of_what_it_converts():
    x = dg.ones(4, requires_grad=True) * 2
    y = x.to(dg.float64)
    assert y.grad_fn._saved_input_dtype == np.dtype("float32")
    with dg.no_grad():
        x.mul_(3)  # would be refused if backward needed the numbers
    y.sum().backward()
