"""``backward`` and ``grad``, and the methods of Tensor that belong to autograd."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from distgrad.autograd import engine
from distgrad.autograd.graph import Removable, edge_of, post_hook
from distgrad.autograd.mode import mode
from distgrad.backend.device import array_namespace
from distgrad.errors import ArgumentTypeError, DtypeError, GradError, ShapeError
from distgrad.tensor import Tensor, wrap

Grads = Tensor | Sequence[Tensor | None] | None


def backward(
    tensors: Tensor | Sequence[Tensor],
    grad_tensors: Grads = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Tensor | Sequence[Tensor] | None = None,
) -> None:
    """Accumulate the gradients of ``tensors`` into the leaves' ``grad``.

    Args:
        tensors: what to differentiate.
        grad_tensors: the gradient of each; may be left out for scalars (then 1).
        retain_graph: keep saved values for another backward (default: as ``create_graph``).
        create_graph: record the gradients, so that they can be differentiated again.
        inputs: accumulate into these tensors only.

    Raises:
        GradError: nothing requires grad, the graph is freed, or a gradient is missing.
        ShapeError: a gradient's shape differs from its tensor's.

    Example:
        >>> import distgrad as dg
        >>> x = dg.tensor([1.0, 2.0], requires_grad=True)
        >>> backward((x * x).sum())
        >>> x.grad
        tensor([2., 4.])
    """
    roots = _roots("backward", _tuple(tensors), grad_tensors, create_graph)
    wanted = None
    if inputs is not None:
        wanted = _tuple(inputs)
        if not wanted:
            raise GradError("backward(inputs=()): inputs cannot be empty; leave it out for all")
        wanted = tuple(_wanted_edge("backward", i, t) for i, t in enumerate(wanted))
    keep = create_graph if retain_graph is None else retain_graph
    found = engine.run(
        roots, create_graph=create_graph, keep_graph=keep, inputs=wanted, accumulate=True
    )
    for tensor, g in zip(_tuple(inputs) if inputs is not None else (), found, strict=False):
        if g is not None and not tensor.is_leaf:
            grad = g if isinstance(g, Tensor) else wrap(array_namespace(g).array(g))
            tensor.grad = grad if tensor.grad is None else tensor.grad + grad


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Grads = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool | None = None,
    materialize_grads: bool = False,
) -> tuple[Any, ...]:
    """Return the gradients of the sum of ``outputs`` with respect to ``inputs``.

    Args:
        outputs: what to differentiate.
        inputs: with respect to what; leaves or not.
        grad_outputs: the gradient of each output; may be left out for scalars.
        retain_graph: keep saved values (default: as ``create_graph``).
        create_graph: record the gradients for higher derivatives.
        allow_unused: give None for an input that has no part in the outputs, instead of an error.
        materialize_grads: give zeros instead of None.

    Example:
        >>> import distgrad as dg
        >>> x = dg.tensor(3.0, requires_grad=True)
        >>> (first,) = grad(x**3, x, create_graph=True)
        >>> grad(first, x)
        (tensor(18.),)
    """
    wanted = _tuple(inputs)
    edges = [_wanted_edge("grad", i, t) for i, t in enumerate(wanted)]
    roots = _roots("grad", _tuple(outputs), grad_outputs, create_graph)
    keep = create_graph if retain_graph is None else retain_graph
    found = engine.run(
        roots, create_graph=create_graph, keep_graph=keep, inputs=edges, accumulate=False
    )
    results = []
    for place, (g, tensor) in enumerate(zip(found, wanted, strict=True)):
        if g is None and materialize_grads:
            g = array_namespace(tensor.array).zeros_like(tensor.array)
        elif g is None and not allow_unused:
            raise GradError(
                f"grad(inputs[{place}]: {tensor._brief()}): One of the differentiated Tensors "
                "appears to not have been used in the graph. Set allow_unused=True if this is the "
                "desired behavior"
            )
        results.append(g if g is None or isinstance(g, Tensor) else wrap(_asarray(g)))
    return tuple(results)


def _asarray(g: Any) -> Any:
    return array_namespace(g).asarray(g)


def _tuple(tensors: Any) -> tuple[Any, ...]:
    return (tensors,) if isinstance(tensors, Tensor) else tuple(tensors)


def _wanted_edge(name: str, place: int, tensor: Any) -> Any:
    if not isinstance(tensor, Tensor):
        raise ArgumentTypeError(f"{name}(inputs[{place}]): takes Tensors, not {type(tensor)}")
    if not tensor.requires_grad:
        raise GradError(
            f"{name}(inputs[{place}]: {tensor._brief()}): One of the differentiated Tensors does "
            "not require grad; call requires_grad_() on it before computing the outputs"
        )
    return edge_of(tensor)


def _roots(
    name: str, outputs: tuple[Tensor, ...], grads: Grads, create_graph: bool
) -> list[tuple[Any, Any]]:
    if isinstance(grads, Tensor) or grads is None:
        grads = (grads,) * len(outputs) if grads is None else (grads,)
    if len(grads) != len(outputs):
        raise GradError(
            f"{name}(): got {len(outputs)} tensors and {len(grads)} gradients; give one for each"
        )
    roots = []
    for place, (out, g) in enumerate(zip(outputs, grads, strict=True)):
        edge = edge_of(out)
        if edge is None:
            raise GradError(
                f"{name}({out._brief()}): element {place} of tensors does not require grad and "
                "does not have a grad_fn; does any input have requires_grad=True, and was it "
                "computed outside no_grad?"
            )
        g = _root_gradient(name, out, g)
        roots.append((edge, g if create_graph else g.array))
    return roots


def _root_gradient(name: str, out: Tensor, g: Tensor | None) -> Tensor:
    if g is None:
        if out.array.size != 1:
            raise GradError(
                f"{name}({out._brief()}): grad can be implicitly created only for scalar outputs; "
                "reduce the tensor first (.sum(), .mean()) or give its gradient"
            )
        if out.array.dtype.kind not in "fV":
            raise DtypeError(
                f"{name}({out._brief()}): grad can be implicitly created only for real scalar "
                "outputs; give the gradient"
            )
        return wrap(array_namespace(out.array).ones_like(out.array))
    if g.array.shape != out.array.shape:
        raise ShapeError(
            f"{name}({out._brief()}, gradient: {g._brief()}): Mismatch in shape: the gradient must "
            f"have the tensor's shape {list(out.array.shape)}"
        )
    return g


# ---------------------------------------------------------------------- methods of Tensor
def _backward(
    self: Tensor,
    gradient: Tensor | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Tensor | Sequence[Tensor] | None = None,
) -> None:
    """Accumulate the gradient of this tensor into the leaves; see ``autograd.backward``."""
    backward(self, gradient, retain_graph, create_graph, inputs)


def _register_hook(self: Tensor, hook: Callable[[Tensor], Tensor | None]) -> Removable:
    """Call ``hook(grad)`` whenever this tensor's gradient is known; it may return another."""
    if not self.requires_grad:
        raise GradError(
            f"register_hook({self._brief()}): cannot register a hook on a tensor that doesn't "
            "require gradient; call requires_grad_() first"
        )
    holder = self if self._node is None else self._node
    if holder._hooks is None:
        holder._hooks = {}
    return Removable(holder._hooks, hook)


def _retain_grad(self: Tensor) -> None:
    """Keep this non-leaf tensor's gradient in ``grad``."""
    if not self.requires_grad:
        raise GradError(f"retain_grad({self._brief()}): can't retain_grad on a Tensor that has "
                        "requires_grad=False")  # fmt: skip
    if self._node is None or self._retains:
        return
    self._retains = True
    me = weakref.ref(self)

    def keep(g: Tensor) -> None:
        tensor = me()
        if tensor is not None:
            copy = g if mode.grad else wrap(g.array.copy())
            tensor.grad = copy if tensor.grad is None else tensor.grad + copy

    _register_hook(self, keep)


def _register_post_accumulate_grad_hook(self: Tensor, hook: Callable[[Tensor], Any]) -> Removable:
    """Call ``hook(tensor)`` once per backward, after this leaf's ``grad`` is complete."""
    if self._node is not None or not self.requires_grad:
        raise GradError(
            f"register_post_accumulate_grad_hook({self._brief()}): post accumulate grad hooks "
            "cannot be registered on non-leaf tensors or tensors that do not require grad"
        )
    return post_hook(self, hook)


for _method in (
    _backward,
    _register_hook,
    _retain_grad,
    _register_post_accumulate_grad_hook,
):
    setattr(Tensor, _method.__name__.lstrip("_"), _method)
