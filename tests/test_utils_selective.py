"""Selective checkpointing: what the policy saves is not computed again."""

import functools
import gc

import pytest

import distgrad as dg
from distgrad.autograd import saving
from distgrad.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)


def run(function, x, policy, **options):
    contexts = functools.partial(create_selective_checkpoint_contexts, policy, **options)
    return checkpoint(function, x, use_reentrant=False, context_fn=contexts)


def counting(counts, saved):
    """A policy that notes what it is asked about."""

    def policy(ctx, op, *args, **kwargs):
        counts.append((op.__name__, ctx.is_recompute))
        return CheckpointPolicy.MUST_SAVE if op is saved else CheckpointPolicy.PREFER_RECOMPUTE

    return policy


def body(x):
    return (x @ x).exp().mul(x).sin()


@pytest.mark.parametrize("saved", [[], [dg.matmul], [dg.exp, dg.mul], [dg.matmul, dg.sin]])
def test_gradients_are_those_without_a_checkpoint(saved):
    x = dg.rand(3, 3, requires_grad=True)
    body(x).sum().backward()
    expected, x.grad = x.grad, None
    run(body, x, saved).sum().backward()
    assert dg.equal(x.grad, expected)


def test_what_is_saved_is_not_computed_again(monkeypatch):
    calls = []
    op = dg.exp.op
    real = op.function.__globals__["_direct"]

    def exp(array):
        calls.append(array)
        return real(array)

    monkeypatch.setattr("distgrad.backend.numpy_backend.exp", exp)
    x = dg.rand(3, requires_grad=True)
    for saved, times in ([dg.exp], 1), ([dg.sin], 2):
        calls.clear()
        run(lambda x: x.sin().exp().mul(x), x, saved).sum().backward()
        assert len(calls) == times


def test_the_policy_sees_every_operation_in_both_runs():
    counts = []
    x = dg.rand(3, 3, requires_grad=True)
    run(body, x, counting(counts, dg.matmul)).sum().backward()
    names = ["matmul", "exp", "mul", "sin"]
    assert counts[:4] == [(n, False) for n in names]
    assert counts[4:7] == [(n, True) for n in names[:3]]


def test_the_operations_are_as_before_afterwards():
    names = dg.exp.__globals__
    before = names["_forward"], names["_direct"]
    x = dg.rand(3, 3, requires_grad=True)
    y = run(body, x, [dg.exp])
    y.sum().backward()
    assert (names["_forward"], names["_direct"]) == before
    del y
    gc.collect()
    assert saving.switch.writers == ()


def test_a_second_backward_is_refused():
    x = dg.rand(3, requires_grad=True)
    y = run(lambda x: x.sin().exp().mul(x), x, [dg.sin]).sum()
    y.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="Trying to backward an extra time"):
        y.backward()


def test_a_change_of_what_is_saved_is_found_unless_it_is_allowed():
    def function(x):
        y = x.sin()
        z = y.exp()
        y.add_(1)
        return z.mul(x)

    x = dg.rand(3, requires_grad=True)
    y = run(function, x, [dg.sin])
    with pytest.raises(RuntimeError, match="selective activation checkpoint has been mutated"):
        y.sum().backward()
    run(function, x, [dg.sin], allow_cache_entry_mutation=True).sum().backward()


def test_a_policy_must_be_a_function_or_a_list_of_operations():
    with pytest.raises(TypeError, match="must be either a function or a list of ops"):
        create_selective_checkpoint_contexts(3)
    with pytest.raises(ValueError, match="Expected op in `op_list`"):
        create_selective_checkpoint_contexts([len])
    x = dg.rand(3, requires_grad=True)
    with pytest.raises(TypeError, match="must return a CheckpointPolicy"):
        run(dg.sin, x, lambda ctx, op, *args, **kwargs: "save")


def test_a_policy_that_changes_its_mind_is_found():
    x = dg.rand(3, requires_grad=True)
    y = run(lambda x: x.sin().exp().mul(x), x, lambda ctx, op, *a, **k: ctx.is_recompute)
    with pytest.raises(RuntimeError, match="not found in storage"):
        y.sum().backward()
