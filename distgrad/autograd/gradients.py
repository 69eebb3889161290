"""``backward`` and ``grad``, and the methods of Tensor that belong to autograd."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from distgrad.autograd import batch_rules as batch_rules  # fills the table of rules
from distgrad.autograd import engine
from distgrad.autograd.batching import over_batch
from distgrad.autograd.graph import GradientEdge, engine_edge
from distgrad.autograd.mode import mode
from distgrad.autograd.node import Node, Removable, edge_of, post_hook
from distgrad.autograd.traced import is_traced, settled
from distgrad.backend.device import array_namespace, namespace_of, working_on
from distgrad.backend.device import device as device_of_name
from distgrad.backend.dtype import default_float, from_numpy
from distgrad.errors import ArgumentError, ArgumentTypeError, DtypeError, GradError, ShapeError
from distgrad.tensor import Size, Tensor, wrap

Grads = Tensor | Sequence[Tensor | None] | None


def backward(
    tensors: Tensor | GradientEdge | Sequence[Tensor | GradientEdge],
    grad_tensors: Grads = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    grad_variables: Grads = None,
    inputs: Tensor | GradientEdge | Sequence[Tensor | GradientEdge] | None = None,
) -> None:
    """Accumulate the gradients of ``tensors`` into the leaves' ``grad``.

    Args:
        tensors: what to differentiate.
        grad_tensors: the gradient of each; may be left out for scalars (then 1).
        retain_graph: keep saved values for another backward (default: as ``create_graph``).
        create_graph: record the gradients, so that they can be differentiated again.
        grad_variables: old name of ``grad_tensors``.
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
    keep = create_graph if retain_graph is None else retain_graph
    asked_for_graph = create_graph
    create_graph = create_graph or is_traced(_tuple(tensors))  # traced: rules run on tensors
    if grad_variables is not None:
        warnings.warn(
            "`grad_variables` is deprecated. Use `grad_tensors` instead.",
            FutureWarning,
            stacklevel=2,
        )
        if grad_tensors is not None:
            raise GradError(
                "backward(): `grad_tensors` and `grad_variables` (deprecated) arguments both "
                "passed to `backward()`. Please only use `grad_tensors`."
            )
        grad_tensors = grad_variables
    wanted = None
    if inputs is not None:
        wanted = _tuple(inputs)
        if not wanted:
            raise GradError(
                "backward(inputs=()): `inputs` argument to `backward()` cannot be empty; leave it "
                "out for all leaves"
            )
        wanted = tuple(_wanted_edge("backward", i, t) for i, t in enumerate(wanted))
        for tensor in _tuple(inputs):
            if isinstance(tensor, Tensor):
                _retain_grad(tensor)
    roots = _roots("backward", _tuple(tensors), grad_tensors, create_graph)
    if asked_for_graph:
        _warn_of_cycles()
    engine.run(roots, create_graph=create_graph, keep_graph=keep, inputs=wanted, accumulate=True)


class _Warned:
    """Whether the warning about cycles was given; once in a process is enough."""

    done = False


def _warn_of_cycles() -> None:
    if not _Warned.done:
        _Warned.done = True
        warnings.warn(
            "Using backward() with create_graph=True will create a reference cycle between the "
            "parameter and its gradient which can cause a memory leak. We recommend using "
            "autograd.grad when creating the graph to avoid this. If you have to use this "
            "function, make sure to reset the .grad fields of your parameters to None after use "
            "to break the cycle and avoid the leak.",
            stacklevel=4,
        )


def grad(
    outputs: Tensor | GradientEdge | Sequence[Tensor | GradientEdge],
    inputs: Tensor | GradientEdge | Sequence[Tensor | GradientEdge] | dict[str, Tensor],
    grad_outputs: Grads = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    only_inputs: bool = True,
    allow_unused: bool | None = None,
    is_grads_batched: bool = False,
    materialize_grads: bool = False,
) -> Any:
    """Return the gradients of the sum of ``outputs`` with respect to ``inputs``.

    Args:
        outputs: what to differentiate; tensors or gradient edges.
        inputs: with respect to what; leaves or not, or gradient edges; a dict gives a dict.
        grad_outputs: the gradient of each output; may be left out for scalars.
        retain_graph: keep saved values (default: as ``create_graph``).
        create_graph: record the gradients for higher derivatives.
        only_inputs: True; nothing else is accumulated ever.
        allow_unused: give None for an input that has no part in the outputs, instead of an error.
        is_grads_batched: the first dimension of ``grad_outputs`` counts vectors; the gradients
            get the same first dimension.
        materialize_grads: give zeros instead of None.

    Example:
        >>> import distgrad as dg
        >>> x = dg.tensor(3.0, requires_grad=True)
        >>> (first,) = grad(x**3, x, create_graph=True)
        >>> grad(first, x)
        (tensor(18.),)
    """
    if not only_inputs:
        warnings.warn(
            "only_inputs argument is deprecated and is ignored now (defaults to True). To "
            "accumulate gradient for other parts of the graph, please use backward().",
            FutureWarning,
            stacklevel=2,
        )
    if isinstance(inputs, dict):
        found = grad(outputs, list(inputs.values()), grad_outputs, retain_graph, create_graph,
                     True, allow_unused, is_grads_batched, materialize_grads)  # fmt: skip
        return dict(zip(inputs, found, strict=True))
    wanted, keep = _tuple(inputs), create_graph if retain_graph is None else retain_graph
    if not wanted:
        raise GradError("grad(inputs=()): `inputs` argument to `grad()` cannot be empty.")
    edges = [_wanted_edge("grad", i, t) for i, t in enumerate(wanted)]
    if allow_unused is False and materialize_grads:
        raise ArgumentError(
            "grad(): Expected allow_unused to be True or not passed when materialize_grads=True, "
            "but got: allow_unused=False."
        )
    create_graph = create_graph or is_traced(_tuple(outputs))  # traced: rules run on tensors
    if is_grads_batched:
        found = _batched(_tuple(outputs), edges, grad_outputs, keep, create_graph)
    else:
        roots = _roots("grad", _tuple(outputs), grad_outputs, create_graph)
        found = _run(roots, edges, keep, create_graph)
    return tuple(
        _result(place, g, tensor, allow_unused, materialize_grads)
        for place, (g, tensor) in enumerate(zip(found, wanted, strict=True))
    )


def _run(roots: Any, edges: list[Any], keep: bool, create_graph: bool) -> list[Any]:
    return engine.run(
        roots, create_graph=create_graph, keep_graph=keep, inputs=edges, accumulate=False
    )


def _batched(
    outputs: tuple[Any, ...], edges: list[Any], grads: Grads, keep: bool, create_graph: bool
) -> list[Any]:
    """Return the gradients for all vectors, by one backward with a hidden batch."""
    given = _tuple(grads) if grads is not None else ()
    for place, (g, out) in enumerate(zip(given, outputs, strict=False)):
        if isinstance(g, Tensor) and isinstance(out, Tensor) and g.shape[1:] != out.shape:
            raise GradError(
                "grad(is_grads_batched=True): If `is_grads_batched=True`, we interpret the first "
                "dimension of each grad_output as the batch dimension. The sizes of the remaining "
                "dimensions are expected to match the shape of corresponding output, but a "
                f"mismatch was detected: grad_output[{place}] has a shape of {g.shape} and "
                f"output[{place}] has a shape of {out.shape}."
            )
    sizes = {len(g) for g in given if g is not None}
    if len(given) != len(outputs) or len(sizes) != 1:
        raise GradError(
            f"grad(is_grads_batched=True): got {len(outputs)} tensors and {len(given)} gradients "
            f"of lengths {sorted(sizes)}; give one batch of gradients of one length for each"
        )
    (count,) = sizes

    def one(row: list[Any]) -> list[Any]:
        found = _run(_roots("grad", outputs, row, True), edges, keep, True)
        return found if create_graph else [None if g is None else settled(g, None) for g in found]

    found: list[Any] = over_batch(one, list(given), count)
    return found


def _result(
    place: int, g: Any, tensor: Any, allow_unused: bool | None, materialize_grads: bool
) -> Any:
    if g is None and materialize_grads:
        if isinstance(tensor, GradientEdge):
            raise GradError(
                "grad(materialize_grads=True): materialize_grads cannot be used when the given "
                "input is a GradientEdge, whose shape is not known; give the tensor"
            )
        return wrap(array_namespace(tensor.array).zeros_like(tensor.array))
    if g is None and not allow_unused:
        brief = tensor._brief() if isinstance(tensor, Tensor) else repr(tensor)
        raise GradError(
            f"grad(inputs[{place}]: {brief}): One of the differentiated Tensors "
            "appears to not have been used in the graph. Set allow_unused=True if this is the "
            "desired behavior"
        )
    g = engine.conjugated(g)
    return g if g is None or isinstance(g, Tensor) else wrap(_asarray(g))


def _asarray(g: Any) -> Any:
    return array_namespace(g).asarray(g)


def _tuple(tensors: Any) -> tuple[Any, ...]:
    return (tensors,) if isinstance(tensors, Tensor | GradientEdge) else tuple(tensors)


def _wanted_edge(name: str, place: int, tensor: Any) -> Any:
    if isinstance(tensor, GradientEdge):
        return engine_edge(tensor)
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
        if isinstance(out, GradientEdge):
            edge = engine_edge(out)
            like = _EdgeLike(edge, out)
        elif isinstance(out, Tensor):
            edge, like = edge_of(out), _EdgeLike(None, out)
        else:
            raise ArgumentTypeError(f"{name}(): expected Tensors, but got {type(out).__name__}")
        if edge is None:
            raise GradError(
                f"{name}({out._brief()}): element {place} of tensors does not require grad and "
                "does not have a grad_fn; does any input have requires_grad=True, and was it "
                "computed outside no_grad?"
            )
        g = _root_gradient(name, place, like, g)
        roots.append((edge, engine.conjugated(g if create_graph else g.array)))
    return roots


class _EdgeLike:
    """Shape and dtype of what is differentiated, be it a tensor or an edge."""

    __slots__ = ("array", "dtype", "kind", "shape", "xp")

    def __init__(self, edge: Any, out: Any) -> None:
        self.array = out.array if edge is None else edge.array if edge._leaf else None
        if edge is None:
            array = out.array
            self.shape, self.dtype, self.xp = array.shape, array.dtype, array_namespace(array)
            self.kind = out._brief()
            return
        self.shape, self.kind = edge._shape, f"edge of {out.node.name()}"
        owner = edge if edge._leaf else edge.owner
        if edge._leaf:
            self.dtype, self.xp = edge.array.dtype, array_namespace(edge.array)
        elif owner.likes:
            _, self.xp, self.dtype = owner.likes[out.output_nr]
        else:
            self.dtype, self.xp = owner._dtype, namespace_of(device_of_name("cpu"))


def _root_gradient(name: str, place: int, out: _EdgeLike, g: Any) -> Tensor:
    shape, dtype = out.shape, out.dtype
    if g is None:
        if math.prod(shape) != 1:
            raise GradError(
                f"{name}({out.kind}): grad can be implicitly created only for scalar outputs; "
                "reduce the tensor first (.sum(), .mean()) or give its gradient"
            )
        if dtype is not None and dtype.kind not in "fV":
            raise DtypeError(
                f"{name}({out.kind}): grad can be implicitly created only for real scalar "
                "outputs; give the gradient"
            )
        with working_on(out.array):
            return wrap(out.xp.ones(shape, dtype or default_float()))
    if not isinstance(g, Tensor):
        raise ArgumentTypeError(
            f"{name}({out.kind}): gradients can be either Tensors or None, but got "
            f"{type(g).__name__}"
        )
    if g.array.shape != shape:
        raise ShapeError(
            f"{name}({out.kind}, gradient: {g._brief()}): Mismatch in shape: grad_output[{place}] "
            f"has a shape of {g.shape} and output[{place}] has a shape of {Size(shape)}."
        )
    if dtype is not None and (dtype.kind == "c") != (g.array.dtype.kind == "c"):
        raise DtypeError(
            f"{name}({out.kind}, gradient: {g._brief()}): For complex Tensors, both grad_output "
            "and output are required to have the same dtype. Mismatch in dtype: "
            f"grad_output[{place}] has a dtype of {g.dtype} and output[{place}] has a dtype of "
            f"{from_numpy(dtype)}."
        )
    if dtype is not None and g.array.dtype != dtype:
        return g.to(from_numpy(dtype))
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
    backward(self, gradient, retain_graph, create_graph, inputs=inputs)


def _register_hook(self: Tensor, hook: Callable[[Tensor], Tensor | None]) -> Removable:
    """Call ``hook(grad)`` whenever this tensor's gradient is known; it may return another."""
    if not self._requires:
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
        raise GradError(f"retain_grad({self._brief()}): can't retain_grad on Tensor that has "
                        "requires_grad=False; call requires_grad_() first")  # fmt: skip
    if self._node is None or self._retains:
        return
    self._retains = True
    me = weakref.ref(self)

    def keep(g: Tensor) -> None:
        tensor = me()
        if tensor is not None:
            copy = g if mode.grad else wrap(g.array.copy())
            tensor._grad = copy if tensor._grad is None else tensor._grad + copy

    if self._node._hooks is None:
        self._node._hooks = {}
    self._node._retain = keep


def _register_post_accumulate_grad_hook(self: Tensor, hook: Callable[[Tensor], Any]) -> Removable:
    """Call ``hook(tensor)`` once per backward, after this leaf's ``grad`` is complete."""
    if self._node is not None or not self.requires_grad:
        raise GradError(
            f"register_post_accumulate_grad_hook({self._brief()}): post accumulate grad hooks "
            "cannot be registered on non-leaf tensors or tensors that do not require grad"
        )
    return post_hook(self, hook)


def _is_view(self: Tensor) -> bool:
    """Return True when this tensor was made as a view of another."""
    return self._base is not None or "_custom_view" in self.__dict__


setattr(Tensor, "_is_view", _is_view)  # noqa: B010
for _method in (
    _backward,
    _register_hook,
    _retain_grad,
    _register_post_accumulate_grad_hook,
):
    setattr(Tensor, _method.__name__.lstrip("_"), _method)


def _call_node(self: Node, *grads: Tensor | None) -> Any:
    """Return the gradients of the operands for those of the outputs."""
    count = max(1, len(self.likes))
    if len(grads) != count:
        raise ArgumentTypeError(
            f"{self.name()}(): expected {count} arguments, got {len(grads)} instead"
        )
    given = [engine.conjugated(g) for g in grads]
    g = tuple(given) if self.likes else given[0]
    found = self.pull_graph(engine.tensor_functions, g)
    found = tuple([engine.conjugated(x) for x in found])
    return found[0] if len(found) == 1 else found


setattr(Node, "__call__", _call_node)  # noqa: B010
Tensor._recording.append(lambda: mode.grad)
