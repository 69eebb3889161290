"""Modules and functions whose forward and backward are each one captured graph."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from distgrad.autograd.function import Function
from distgrad.autograd.gradients import grad
from distgrad.cuda.devices import synchronize
from distgrad.cuda.graphs import CUDAGraph, Handle, graph, graph_pool_handle
from distgrad.cuda.streams import Stream, stream
from distgrad.cuda.trees import leaves, rebuilt
from distgrad.errors import ArgumentError, ArgumentTypeError
from distgrad.nn.module import Module
from distgrad.ops.create import empty_like
from distgrad.tensor import Tensor

__all__ = ["make_graphed_callables"]

Call = Callable[..., Any]


class _Part:
    """One callable and its two graphs.

    Args:
        call: a module, or a function of tensors.
        sample: arguments like those it will get.
        allow_unused_input: whether an input may have no gradient.
    """

    def __init__(self, call: Call, sample: tuple[Any, ...], allow_unused_input: bool) -> None:
        self.call, self.sample, self.allow_unused = call, sample, allow_unused_input
        params = tuple(call.parameters()) if isinstance(call, Module) else ()
        self.given = leaves(sample)
        self.inputs = (*self.given, *params)
        self.forward, self.backward = CUDAGraph(), CUDAGraph()
        _check(call, self.given)

    def run(self) -> tuple[list[Tensor], list[Tensor]]:
        """Call it; return its outputs, and those of them that have a gradient."""
        self.made = self.call(*self.sample)
        outputs = leaves(self.made)
        return outputs, [out for out in outputs if out.requires_grad]

    @property
    def wanted(self) -> list[Tensor]:
        """The inputs that have a gradient."""
        return [t for t in self.inputs if t.requires_grad]

    def pull(self, outputs: list[Tensor], grads: list[Tensor]) -> list[Tensor | None]:
        """Return the gradients of the inputs, None for those that want none."""
        if not outputs or not self.wanted:
            return [None] * len(self.inputs)
        found = iter(grad(outputs, self.wanted, grads, allow_unused=self.allow_unused))
        return [next(found) if t.requires_grad else None for t in self.inputs]

    def warm_up(self, iterations: int) -> None:
        """Run forward and backward as often as libraries need to prepare themselves."""
        for _ in range(iterations):
            _, outputs = self.run()
            self.pull(outputs, [empty_like(out) for out in outputs])

    def capture_forward(self, pool: Handle) -> None:
        """Record the forward."""
        with graph(self.forward, pool):
            self.outputs, self.roots = self.run()

    def capture_backward(self, pool: Handle) -> None:
        """Record the backward."""
        self.grads = [empty_like(out) for out in self.roots]
        with graph(self.backward, pool):
            self.found = self.pull(self.roots, self.grads)
        self.made = rebuilt(self.made, [out.detach() for out in self.outputs])
        self.results = [out.detach() for out in self.outputs]  # without the graph, which is used up

    def graphed(self) -> Call:
        """Return a function that takes the place of the callable."""
        function = _function(self)

        @functools.wraps(self.call, updated=())
        def call(*args: Any) -> Any:
            given = leaves(args)
            if len(given) != len(self.given):
                raise ArgumentError(
                    f"a graphed callable: {len(given)} tensors, but it was captured with "
                    f"{len(self.given)}; call it as the sample arguments were"
                )
            outs = function.apply(*given, *self.inputs[len(given) :])
            return rebuilt(self.made, outs if isinstance(outs, tuple) else (outs,))

        return call


def _function(part: _Part) -> Any:
    """Return the Function whose forward and backward replay the graphs of ``part``."""
    with_gradient = [out.requires_grad for out in part.outputs]

    class Graphed(Function):
        """A captured callable."""

        @staticmethod
        def forward(ctx: Any, *inputs: Tensor) -> Any:
            for place, fresh in zip(part.given, inputs, strict=False):
                _put(place, fresh)
            part.forward.replay()
            outs = tuple(out.detach() for out in part.results)
            ctx.mark_non_differentiable(
                *(o for o, has in zip(outs, with_gradient, strict=True) if not has)
            )
            return outs

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Any:
            given = [g for g, has in zip(grads, with_gradient, strict=True) if has]
            for place, fresh in zip(part.grads, given, strict=True):
                _put(place, fresh)
            part.backward.replay()
            return tuple(None if g is None else g.detach() for g in part.found)

    return Graphed


def _put(place: Tensor, fresh: Tensor) -> None:
    """Write a tensor to where a graph reads it."""
    if place.array.shape != fresh.array.shape:
        raise ArgumentError(
            f"a graphed callable: a tensor of shape {list(fresh.shape)}, but it was captured with "
            f"{list(place.shape)}; call it with the shapes of the sample arguments"
        )
    if place.array is not fresh.array and place.data_ptr() != fresh.data_ptr():
        place.array[...] = fresh.array


def _check(call: Call, given: Sequence[Tensor]) -> None:
    if isinstance(call, Module):
        if any(b.requires_grad for b in call.buffers()):
            raise ArgumentError("make_graphed_callables(): a buffer of the module requires grad")
        if call._forward_hooks or call._forward_pre_hooks or call._backward_hooks:
            raise ArgumentError(
                "make_graphed_callables(): the module has hooks; register them afterwards"
            )
    if not all(t.is_cuda for t in given):
        raise ArgumentError(
            "make_graphed_callables(): a sample argument is not on a GPU; move it there"
        )


def make_graphed_callables(
    callables: Any,
    sample_args: Any,
    num_warmup_iters: int = 3,
    allow_unused_input: bool = False,
    pool: Handle | None = None,
) -> Any:
    """Return the callables with captured graphs for their forward and their backward.

    A graphed module is the same object, and replays only in the mode (training or not) in which it
    was captured; in the other it runs as before.  Outputs and gradients lie where the next replay
    writes.

    Args:
        callables: a module or a function of tensors on a GPU, or a tuple of several, which then
            have to be called in this order, and backward in the reverse one.
        sample_args: a tuple of arguments, or for several callables a tuple of such tuples: of the
            shapes, dtypes and ``requires_grad`` of all later calls.
        num_warmup_iters: how often each runs before the captures.
        allow_unused_input: let inputs without a gradient be, instead of raising.
        pool: of another graph, to share its memory.

    Raises:
        CaptureError: something in a callable cannot be recorded.
    """
    several = isinstance(callables, tuple)
    calls = callables if several else (callables,)
    samples = sample_args if several else (sample_args,)
    if len(calls) != len(samples) or not all(isinstance(s, tuple) for s in samples):
        raise ArgumentTypeError(
            "make_graphed_callables(): sample_args takes a tuple of arguments for each callable"
        )
    parts = [_Part(c, s, allow_unused_input) for c, s in zip(calls, samples, strict=True)]
    shared = graph_pool_handle() if pool is None else pool
    synchronize()
    with stream(Stream()):
        for part in parts:
            part.warm_up(num_warmup_iters)
    synchronize()
    for part in parts:
        part.capture_forward(shared)
    for part in reversed(parts):
        part.capture_backward(shared)
    made = tuple(_installed(part) for part in parts)
    return made if several else made[0]


def _installed(part: _Part) -> Any:
    """Return the function for a function, and for a module itself, with another forward."""
    module, graphed = part.call, part.graphed()
    if not isinstance(module, Module):
        return graphed
    before, mode = module.forward, module.training

    def forward(*args: Any, **kwargs: Any) -> Any:
        if module.training == mode:
            return graphed(*args, **kwargs)
        return before(*args, **kwargs)

    module.forward = forward
    return module
