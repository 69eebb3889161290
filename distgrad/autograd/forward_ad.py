"""Forward mode: tensors that carry a tangent through every operation.

How each operation treats tangents is derived from its declaration in ``autograd/dual.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from distgrad.autograd import engine
from distgrad.autograd.declare import Operation
from distgrad.autograd.dual import DualArray, DualLevel
from distgrad.autograd.graph import Node, edge_of
from distgrad.autograd.mode import _Switch, mode
from distgrad.autograd.traced import running
from distgrad.errors import ArgumentError, GradError
from distgrad.tensor import Tensor, clock, shared_of, wrap

__all__ = [
    "UnpackedDualTensor",
    "dual_level",
    "enter_dual_level",
    "exit_dual_level",
    "make_dual",
    "unpack_dual",
]

_levels: list[DualLevel] = []


class UnpackedDualTensor(NamedTuple):
    """What ``unpack_dual`` returns: the primal, and its tangent or None."""

    primal: Tensor
    tangent: Tensor | None


_current_level = -1  # the number of the level that is open


def enter_dual_level() -> int:
    """Begin a level of forward mode and return its number.

    Raises:
        GradError: a level is open already; nest with ``func.jvp`` instead.
    """
    if _levels:
        raise GradError(
            "enter_dual_level(): Nested forward mode AD is not supported at the moment; "
            "use func.jvp inside func.jvp"
        )
    level = DualLevel().__enter__()
    level.functional = False
    _levels.append(level)
    globals()["_current_level"] = 0
    return 0


def exit_dual_level(*, level: int | None = None) -> None:
    """End the level: all of its tensors lose their tangents."""
    if not _levels:
        raise GradError("exit_dual_level(): no level exists; call enter_dual_level() first")
    if level not in (None, 0):
        raise GradError(
            f"exit_dual_level(level={level}): Trying to exit a forward AD level that was not the "
            "last one that was created. This is not supported."
        )
    _levels.pop().__exit__()
    globals()["_current_level"] = -1


class dual_level(_Switch):
    """Context manager, or decorator, around a level of forward mode.

    Example:
        >>> import distgrad as dg
        >>> with dual_level():
        ...     x = make_dual(dg.tensor([1.0, 2.0]), dg.tensor([1.0, 0.0]))
        ...     print(unpack_dual(x * x).tangent)
        tensor([2., 0.])
    """

    def __enter__(self) -> int:  # type: ignore[override]
        return enter_dual_level()

    def __exit__(self, *error: object) -> None:
        exit_dual_level()


class _set_fwd_grad_enabled(_Switch):
    """Context manager, or decorator, that lets operations carry tangents on or not."""

    def __init__(self, mode: bool) -> None:
        """Set the switch at once; ``__exit__`` puts it back."""
        self._set, self._was = mode, running.forward_mode
        running.forward_mode = mode

    def _again(self) -> _set_fwd_grad_enabled:
        return _set_fwd_grad_enabled(self._set)

    def __enter__(self) -> None:
        running.forward_mode = self._set

    def __exit__(self, *error: object) -> None:
        running.forward_mode = self._was


def _is_fwd_grad_enabled() -> bool:
    """Return True when operations of this thread carry tangents on."""
    return running.forward_mode


class _MakeDual(Node):
    """Connects a dual tensor with the tensor that it was made of."""

    __slots__ = ()

    def pull(self, F: Any, g: Any) -> tuple[Any, ...]:
        return (g,)

    pull_graph = pull


def make_dual(tensor: Tensor, tangent: Tensor, *, level: int | None = None) -> Tensor:
    """Return ``tensor`` with a tangent, which every operation carries on.

    Raises:
        GradError: no level is open, the tensor has a tangent already, or the shapes differ.
        ArgumentError: one of them is not of floating point or complex dtype.
    """
    if not _levels or (level is not None and level < 0):
        raise GradError(
            "make_dual(): Trying to create a dual Tensor for forward AD but no level exists, make "
            "sure to enter_dual_level() first."
        )
    for what, t in (("primal", tensor), ("tangent", tangent)):
        if t.array.dtype.kind not in "fcV":
            raise ArgumentError(
                f"make_dual({what}: {t._brief()}): Expected {what} to be floating point or "
                f"complex, but got: {t.dtype}"
            )
    current = _levels[-1]
    if current.parts(tensor)[1] is not None:
        raise GradError(
            "make_dual(): Making a dual Tensor based on a Tensor that already has a forward "
            "gradient at the same level 0 is not supported."
        )
    if current.parts(tangent)[1] is not None:
        raise GradError(
            "make_dual(): Setting a forward grad that itself has a forward gradient at the same "
            "level0 is not supported."
        )
    check_tangent("make_dual", tensor, tangent)
    if tensor.array.strides != tangent.array.strides and tangent.array.size:
        tangent = engine.tensor_functions.clone(tangent)  # type: ignore[attr-defined]
    out = current.dual(tensor, tangent)
    out._shared = shared_of(tensor)
    if tensor.requires_grad and mode.grad:
        node = _MakeDual()
        node._edges, node._shape = (edge_of(tensor),), tensor.array.shape
        node.clock, node.saved = clock.tick(), ()
        out._requires, out._node = True, node
    return out


def check_tangent(name: str, primal: Tensor, tangent: Tensor) -> None:
    """Raise unless a tangent has the shape of its primal."""
    if primal.array.shape != tangent.array.shape:
        raise GradError(
            f"{name}({primal._brief()}, {tangent._brief()}): Trying to set a forward gradient that "
            "has a different size than that of the original Tensor, this is not supported. Tensor "
            f"is of size {list(primal.array.shape)} while the given forward gradient is of size "
            f"{list(tangent.array.shape)}."
        )


def unpack_dual(tensor: Tensor, *, level: int | None = None) -> UnpackedDualTensor:
    """Return a tensor's primal and its tangent; None where it has none."""
    array = tensor.array
    if _levels and isinstance(array, DualArray) and array.level is _levels[-1]:
        return UnpackedDualTensor(array.below, array.tangent)
    return UnpackedDualTensor(tensor, None)


def jvp_arrays(
    op: Operation, primals: Sequence[Any], tangents: Sequence[Any], options: dict[str, Any]
) -> Any:
    """Return the directional derivative of ``op`` at ``primals`` along ``tangents``, on arrays.

    Args:
        op: the operation.
        primals: one array (None, list of arrays) per operand.
        tangents: the same for the direction; None for an operand that stays fixed.
        options: the options of the call.

    Returns:
        An array, or a list of the differentiable outputs' tangents.
    """
    names = [o.name for o in op.operands]
    with DualLevel() as level:
        operands = [_dual(level, p, t) for p, t in zip(primals, tangents, strict=True)]
        out = op.function(**dict(zip(names, operands, strict=True)), **options)
        outs = [out] if isinstance(out, Tensor) else list(out)
        if op.outputs:
            outs = [o for o, f in zip(outs, op.outputs.values(), strict=True) if f]
        found = [level.parts(o)[1] for o in outs]
    if all(t is None for t in found):
        raise GradError(f"jvp({op.name}): no operand with a derivative has a tangent")
    arrays = [None if t is None else t.array for t in found]
    return arrays[0] if isinstance(out, Tensor) else arrays


def _dual(level: DualLevel, primal: Any, tangent: Any) -> Any:
    if isinstance(primal, list):
        along = [None] * len(primal) if tangent is None else tangent
        return [_dual(level, p, t) for p, t in zip(primal, along, strict=True)]
    if primal is None or tangent is None or primal.dtype.kind not in "fcV":
        return None if primal is None else wrap(primal)
    return level.dual(wrap(primal), wrap(tangent))
