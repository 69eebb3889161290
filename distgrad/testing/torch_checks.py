"""The checks of ``torch_database``: one form of an operation, on both sides, on one sample."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import distgrad as dg
from distgrad.testing.torch_convert import (
    Converter,
    Difference,
    as_near,
    clone,
    cotangents,
    is_wrapper,
    leaves_of,
    rebound,
    same,
    same_but_order,
    same_gradient,
    tensor_of,
    tree_map,
)

# Only dtype and shape of the results are defined.
WITHOUT_VALUES = {
    "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "empty_permuted",
}  # fmt: skip
# The factors are not unique: what the entry itself makes of them is compared.
NOT_UNIQUE = ("linalg.", "svd", "qr", "geqrf", "lu", "pca_lowrank", "cholesky")
# The place of ``dim`` among the options where the order of equal values is not defined.
TIES = {"sort": 0, "argsort": 0, "mode": 0, "topk": 1, "kthvalue": 1}


class NotHere(Exception):
    """PyTorch itself does not run this sample here, or the form does not apply to it."""


def unchanged(value: Any) -> Any:
    """Return ``value``."""
    return value


class Pair:
    """One form of an operation on both sides.

    Args:
        entry: of the database.
        own: this package's function.
        theirs: PyTorch's.
    """

    def __init__(self, entry: Any, own: Callable[..., Any], theirs: Callable[..., Any]) -> None:
        self.entry, self.own, self.theirs = entry, own, theirs
        self.unique = not entry.name.startswith(NOT_UNIQUE)

    def call(
        self, sample: Any, convert: Callable[[Any], Any], process: bool = False
    ) -> tuple[Any, Any]:
        """Return both results, or raise ``Difference`` where this package refuses.

        Args:
            process: apply what the entry makes of results before they are compared.
        """
        import torch  # an extra of the tests

        operands = convert((sample.input, sample.args, sample.kwargs))
        torch.default_generator.manual_seed(7)
        try:
            want = self.theirs(sample.input, *sample.args, **sample.kwargs)
        except Exception as error:
            raise NotHere from error
        after = getattr(sample, "output_process_fn_grad", unchanged)
        if not process or not is_wrapper(after):
            after = unchanged
        return self.run_own(operands, after), after(want)

    def run_own(self, operands: tuple[Any, Any, Any], after: Any) -> Any:
        """Return this package's result."""
        first, args, kwargs = operands
        dg.manual_seed(7)
        try:
            return rebound(after)(self.own(first, *args, **kwargs))
        except Exception as error:
            raise Difference(f"{type(error).__name__}: {error}") from error

    def forward(self, sample: Any) -> None:
        """Compare the values."""
        got, want = self.call(sample, Converter(), process=not self.unique)
        self.compare(sample, got, want)

    def compare(self, sample: Any, got: Any, want: Any) -> None:
        """Raise ``Difference`` unless both results say the same.

        The order of equal values is free, and a result also agrees where it is as near as PyTorch's
        own to what PyTorch finds in double precision.
        """
        defined = self.entry.name not in WITHOUT_VALUES
        try:
            same(got, want, values=defined, slack=1.0 if self.unique else 20.0)
        except Difference:
            if not (
                self.unique and (self.tied(sample, got, want) or self.exact(sample, got, want))
            ):
                raise

    def tied(self, sample: Any, got: Any, want: Any) -> bool:
        """Return whether the results differ in the order of equal values alone."""
        place = TIES.get(self.entry.name)
        if place is None or sample.kwargs.get("stable"):
            return False
        dim = sample.kwargs.get("dim", sample.args[place] if len(sample.args) > place else -1)
        return same_but_order(sample.input, dim, list(leaves_of(got)), list(leaves_of(want)))

    def exact(self, sample: Any, got: Any, want: Any) -> bool:
        """Return whether ``got`` is as near as ``want`` to what PyTorch finds in float64."""
        import torch  # an extra of the tests

        first, args, kwargs = tree_map(doubled, (sample.input, sample.args, sample.kwargs))
        torch.default_generator.manual_seed(7)
        try:
            found = self.theirs(first, *args, **kwargs)
            sides = zip(leaves_of(got), leaves_of(want), leaves_of(found), strict=True)
            return all(as_near(g, w, f) for g, w, f in sides)
        except Exception:  # whatever goes wrong: the results differ
            return False

    def inplace(self, sample: Any) -> None:
        """Compare the values that the in-place method leaves in its operand."""
        if sample.broadcasts_input:
            raise NotHere
        copied = types.SimpleNamespace(
            input=clone(sample.input), args=sample.args, kwargs=sample.kwargs
        )
        convert = Converter()
        got, want = self.call(copied, convert)
        same(got, want)
        same(convert(copied.input), copied.input)

    def out(self, sample: Any) -> None:
        """Compare the values that ``out=`` receives."""
        import torch  # an extra of the tests

        torch.default_generator.manual_seed(7)
        want = self.theirs(sample.input, *sample.args, **sample.kwargs)
        wants = list(leaves_of(want))
        if not all(isinstance(w, torch.Tensor) for w in wants):
            raise NotHere
        convert = Converter()
        targets = [w.clone().zero_() for w in wants]
        outs = [convert(t) for t in targets]

        def like(tensors: list[Any]) -> Any:
            kind = type(want) if type(want) in (list, tuple) else tuple
            return kind(tensors) if isinstance(want, list | tuple) else tensors[0]

        into = functools.partial(self.own, out=like(outs))
        theirs = functools.partial(self.theirs, out=like(targets))
        Pair(self.entry, into, theirs).call(sample, convert)
        if self.unique:
            self.compare(sample, outs, wants)
        else:
            same(outs, wants, values=False)

    def backward(self, sample: Any, orders: int = 1) -> None:
        """Compare the gradients, and ``orders - 1`` times the gradients of those."""
        convert = Converter(tracks=True)
        got, want = self.call(sample, convert, process=True)
        wants = [w for w in leaves_of(want) if hasattr(w, "requires_grad")]
        gots = [g for g in leaves_of(got) if isinstance(g, dg.Tensor)]
        pairs = [(g, w) for g, w in zip(gots, wants, strict=True) if w.requires_grad]
        if not pairs or not convert.leaves:
            raise NotHere
        for order in range(orders):
            if not order and not all(g.requires_grad for g, _ in pairs):
                raise Difference("the result does not require grad")
            found = gradients(pairs, convert.leaves, more=order + 1 < orders)
            for i, (g, w) in enumerate(found):
                same_gradient(i, g, w)
            pairs = [(g, w) for g, w in found if w is not None and w.requires_grad]
            if not pairs:
                return

    def second(self, sample: Any) -> None:
        """Compare the gradients of the gradients."""
        self.backward(sample, orders=2)

    def jvp(self, sample: Any) -> None:
        """Compare the directional derivatives of forward mode."""
        import torch.autograd.forward_ad as fw  # an extra of the tests

        values = sample.input, sample.args, sample.kwargs
        found: list[Any] = []
        tree_map(lambda v: found.append(v) if getattr(v, "requires_grad", False) else None, values)
        directions = {id(t): d for t, d in zip(found, cotangents(found), strict=True)}
        if not found:
            raise NotHere
        with fw.dual_level(), dg.autograd.forward_ad.dual_level():
            first, args, kwargs = tree_map(lambda v: torch_dual(v, directions), values)
            duals = types.SimpleNamespace(
                input=first, args=args, kwargs=kwargs,
                output_process_fn_grad=sample.output_process_fn_grad,
            )  # fmt: skip
            got, want = self.call(duals, DualConverter(), process=True)
            gots, wants = list(leaves_of(got)), list(leaves_of(want))
            if len(gots) != len(wants):
                raise Difference(f"{len(gots)} results, not {len(wants)}")
            for i, (g, w) in enumerate(zip(gots, wants, strict=True)):
                if isinstance(g, dg.Tensor):
                    mine = dg.autograd.forward_ad.unpack_dual(g).tangent
                    same_gradient(i, mine, fw.unpack_dual(w).tangent)  # type: ignore[no-untyped-call]


def doubled(value: Any) -> Any:
    """Return a tensor of floats in double precision."""
    wide = {"float16", "bfloat16", "float32", "complex64"}
    if str(getattr(value, "dtype", "")).removeprefix("torch.") not in wide:
        return value
    return value.detach().cdouble() if value.is_complex() else value.detach().double()


def torch_dual(value: Any, directions: dict[int, Any]) -> Any:
    """Return PyTorch's dual tensor for a tensor that has a direction."""
    import torch.autograd.forward_ad as fw  # an extra of the tests

    if id(value) not in directions:
        return value
    direction = tensor_of(directions[id(value)])
    return fw.make_dual(value.detach(), direction)  # type: ignore[no-untyped-call]


class DualConverter(Converter):
    """Makes dual tensors of PyTorch's dual tensors."""

    def tensor(self, value: Any) -> Any:
        """Return a new tensor, dual where ``value`` is."""
        import torch.autograd.forward_ad as fw  # an extra of the tests

        primal, tangent = fw.unpack_dual(value)  # type: ignore[no-untyped-call]
        made = super().tensor(primal)
        if tangent is None:
            return made
        return dg.autograd.forward_ad.make_dual(made, super().tensor(tangent))


def gradients(
    pairs: list[tuple[Any, Any]], leaves: list[tuple[Any, Any]], more: bool
) -> list[tuple[Any, Any]]:
    """Return the gradients of both sides for the same random cotangents."""
    import torch  # an extra of the tests

    arrays = cotangents([w for _, w in pairs])
    outputs, inputs = [w for _, w in pairs], [w for _, w in leaves]
    given = [tensor_of(a) for a in arrays]
    try:
        wants = torch.autograd.grad(outputs, inputs, given, allow_unused=True, create_graph=more)
    except RuntimeError as error:  # some derivatives are missing there
        raise NotHere from error
    tracked = [
        (g, dg.from_numpy(a)) for (g, _), a in zip(pairs, arrays, strict=True)
        if g is not None and g.requires_grad  # else its gradient is zero: to be compared
    ]  # fmt: skip
    try:
        gots: Any = [None] * len(leaves)
        if tracked:
            mine, cotangent = zip(*tracked, strict=True)
            gots = dg.autograd.grad(
                mine, [g for g, _ in leaves], cotangent, allow_unused=True, create_graph=more
            )
    except Exception as error:
        raise Difference(f"{type(error).__name__}: {error}") from error
    return list(zip(gots, wants, strict=True))


def check_error(case: Any, entry: Any, function: Callable[..., Any]) -> None:
    """Raise ``Difference`` unless a call is refused by the builtin class that PyTorch raises."""
    sample = case.sample_input
    try:
        operands = Converter()((sample.input, sample.args, sample.kwargs))
    except Exception as error:  # such as more dimensions than NumPy's 64
        raise NotHere from error
    try:
        entry.op(sample.input, *sample.args, **sample.kwargs)
    except Exception as error:
        expected = type(error)
    else:
        raise NotHere
    try:
        function(operands[0], *operands[1], **operands[2])
    except Exception as error:
        if isinstance(error, expected) or expected.__module__ != "builtins":
            return
        raise Difference(
            f"{type(error).__name__}({error}), not {expected.__name__} ({case.error_regex})"
        ) from error
    raise Difference(f"accepted, not {expected.__name__} ({case.error_regex})")


def form(entry: Any, check: str, function: Callable[..., Any]) -> Pair | None:
    """Return both sides of the form that a check is about, or None where there is none."""
    if check == "method":
        return method_form(entry, entry.method_variant)
    if check == "inplace":
        return method_form(entry, entry.inplace_variant)
    offered = {
        "out": entry.supports_out,
        "backward": entry.supports_autograd,
        "second": entry.supports_autograd and entry.supports_gradgrad,
        "jvp": entry.supports_autograd and entry.supports_forward_ad,
    }
    return Pair(entry, function, entry.op) if offered.get(check, True) else None


def method_form(entry: Any, theirs: Any) -> Pair | None:
    """Return a method of both tensors."""
    name = getattr(theirs, "__name__", None)
    if name is None or is_wrapper(theirs):
        return None

    def absent(*args: Any, **kwargs: Any) -> Any:
        raise AttributeError(f"Tensor.{name}: is not there")

    return Pair(entry, getattr(dg.Tensor, name, absent), theirs)
