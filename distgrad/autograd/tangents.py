"""What ``jvp`` of a custom Function must return: tangents related as the outputs are."""

from __future__ import annotations

from typing import Any, NamedTuple

from distgrad.autograd.traced import innermost
from distgrad.errors import GradError
from distgrad.tensor import Tensor


class Argument(NamedTuple):
    """One argument under forward mode."""

    arg: Any
    primal: Any
    tangent: Any  # as jvp got it
    version: int  # of the tangent before jvp


def check_jvp(
    name: str,
    ctx: Any,
    place: int,
    out: Any,
    tangent: Any,
    known: list[Argument],
) -> None:
    """Raise where a tangent is not related to those of the inputs as the output is to the inputs.

    Args:
        name: of the Function.
        ctx: its node.
        place: which output it is.
        out: the output.
        tangent: what ``jvp`` returned for it.
        known: what ``jvp`` got for each argument.
    """
    if tangent is None or not isinstance(out, Tensor):
        return
    why = ""
    plain = out.array.dtype.kind not in "fcV" or place in ctx._not_differentiable
    source = next((k for k in known if _same_memory(out, k.primal)), None)
    if plain:
        why = (
            f"output {place} is not differentiable, but jvp returned a tangent for it. You should "
            "return None at that position instead"
        )
    elif source is not None and source.primal is out:
        same = tangent is source.tangent and tangent._version > source.version
        if source.arg is not out and not same:
            why = (
                "An inplace custom Function is not modifying the forward mode gradients inplace. "
                "If the forward is modifying an input inplace, then the jvp function must modify "
                "the corresponding gradient inplace."
            )
    elif source is not None:
        why = _not_the_view(tangent, source.primal, source.tangent)
    if why:
        raise GradError(f"{name}.jvp(): {why}")


def _not_the_view(tangent: Tensor, primal: Tensor, given: Tensor | None) -> str:
    """Return what is wrong with the tangent of an output that is a view of ``primal``, or ""."""
    lead = (
        "A custom Function's forward is returning a view (or an input as-is) but the jvp is not "
        "returning a view"
    )
    if tangent._base is None:
        return f"{lead}."
    if given is None:
        return ""
    base = given if given._base is None else given._base
    if tangent._base is base:
        return ""
    what = "the given input" if given._base is None and primal._base is None else "the same base"
    return f"{lead} of {what}: jvp is not returning a view of {what}."


def _same_memory(one: Tensor, other: Any) -> bool:
    if not isinstance(other, Tensor):
        return False
    a, b = innermost(one.array), innermost(other.array)
    return a is b or (a.base is not None and (a.base is b or a.base is b.base))
