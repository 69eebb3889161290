"""PyTorch's database of operations, run against this package.

Each entry of the database makes samples of its operation: operands, options, and calls that must be
refused.  Both sides are run on them.  A check is one of

    forward    values, dtype and shape, for each dtype the entry names
    method     the same through the method of the tensor
    inplace    the same through the method that ends in ``_``
    out        the same through ``out=``
    backward   gradients of float64 and complex128 operands
    second     gradients of those gradients
    jvp        forward mode
    errors     calls that are refused, by the same builtin class

``python -m distgrad.testing.torch_database [--op NAME ...] [--check NAME ...] [--all]`` prints what
differs.  PyTorch and ``expecttest`` must be installed; ``--all`` takes the larger set of samples.
"""

from __future__ import annotations

import argparse
import collections
import functools
import types
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

import distgrad as dg
from distgrad.testing.torch_convert import (
    Converter,
    Difference,
    clone,
    cotangents,
    is_wrapper,
    leaves_of,
    rebound,
    same,
    same_gradient,
    text_of,
    tree_map,
)

CHECKS = ("forward", "method", "inplace", "out", "backward", "second", "jvp", "errors")
ALL = (
    "bool", "uint8", "int8", "int16", "int32", "int64",
    "float16", "bfloat16", "float32", "float64", "complex64", "complex128",
)  # fmt: skip
FEW = ("bool", "int64", "float32", "complex64")
DTYPES = {
    "forward": ALL, "method": FEW, "inplace": FEW, "out": FEW,
    "backward": ("float64", "complex128"), "second": ("float64", "complex128"),
    "jvp": ("float64", "complex128"),
}  # fmt: skip
DERIVATIVES = ("backward", "second", "jvp")
# Only dtype and shape of the results are defined.
WITHOUT_VALUES = {
    "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "empty_permuted",
}  # fmt: skip
# The factors are not unique: what the entry itself makes of them is compared.
NOT_UNIQUE = ("linalg.", "svd", "qr", "geqrf", "lu", "pca_lowrank", "cholesky")


class NotHere(Exception):
    """PyTorch itself does not run this sample here, or the form does not apply to it."""


def unchanged(value: Any) -> Any:
    """Return ``value``."""
    return value


@functools.cache
def entries() -> list[Any]:
    """Return the entries of the database."""
    from torch.testing._internal.common_methods_invocations import op_db  # an extra of the tests

    return list(op_db)


def name_of(entry: Any) -> str:
    """Return the name of an entry with its variant."""
    variant = entry.variant_test_name
    return f"{entry.name}.{variant}" if variant else str(entry.name)


def ours(entry: Any) -> Callable[..., Any] | None:
    """Return this package's function for an entry, or None."""
    if is_wrapper(entry.op):
        return rebound(entry.op)  # type: ignore[no-any-return]
    found: Any = dg
    for part in entry.name.split("."):
        found = getattr(found, part, None)
    return found if callable(found) else getattr(dg.Tensor, entry.name, None)


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
        torch.manual_seed(7)
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
        slack = 1.0 if self.unique else 20.0
        same(got, want, values=self.entry.name not in WITHOUT_VALUES, slack=slack)

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

        torch.manual_seed(7)
        want = self.theirs(sample.input, *sample.args, **sample.kwargs)
        wants = list(leaves_of(want))
        if not all(isinstance(w, torch.Tensor) for w in wants):
            raise NotHere
        convert = Converter()
        outs = [convert(w.clone().zero_()) for w in wants]
        several = isinstance(want, list | tuple)
        into = (outs if isinstance(want, list) else tuple(outs)) if several else outs[0]
        form = Pair(self.entry, functools.partial(self.own, out=into), self.theirs)
        form.call(sample, convert)
        values = self.unique and self.entry.name not in WITHOUT_VALUES
        same(outs, wants, values=values)

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


def torch_dual(value: Any, directions: dict[int, Any]) -> Any:
    """Return PyTorch's dual tensor for a tensor that has a direction."""
    import torch  # an extra of the tests
    import torch.autograd.forward_ad as fw

    if id(value) not in directions:
        return value
    direction = torch.from_numpy(directions[id(value)])
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
    wants = torch.autograd.grad(
        [w for _, w in pairs], [w for _, w in leaves], [torch.from_numpy(a) for a in arrays],
        allow_unused=True, create_graph=more,
    )  # fmt: skip
    tracked = [
        (g, dg.from_numpy(a)) for (g, _), a in zip(pairs, arrays, strict=True)
        if g is not None and g.requires_grad  # else its gradient is zero: to be compared
    ]  # fmt: skip
    try:
        gots: Any = [None] * len(leaves)
        if tracked:
            outputs, cotangent = zip(*tracked, strict=True)
            gots = dg.autograd.grad(
                outputs, [g for g, _ in leaves], cotangent, allow_unused=True, create_graph=more
            )
    except Exception as error:
        raise Difference(f"{type(error).__name__}: {error}") from error
    return list(zip(gots, wants, strict=True))


class Result:
    """What one check of one entry found."""

    def __init__(self) -> None:
        self.passed = 0
        self.skipped = 0
        self.failures: list[str] = []

    def run(self, checker: Callable[[Any], None], sample: Any) -> None:
        """Run one sample and note how it went."""
        try:
            checker(sample)
        except NotHere:
            self.skipped += 1
        except Exception as error:
            kind = "" if isinstance(error, Difference) else f"check: {type(error).__name__}: "
            text = f"{text_of(getattr(sample, 'sample_input', sample))}: {kind}{error}"
            self.failures.append(text.replace("\n", " ")[:400])
        else:
            self.passed += 1


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


def samples_of(entry: Any, check: str, dtype: str, every: bool) -> list[Any]:
    """Return the samples of an entry for one dtype; none where the check has no such dtype."""
    import torch  # an extra of the tests

    kind = getattr(torch, dtype)
    tracks = check in DERIVATIVES
    if kind not in (entry.supported_backward_dtypes("cpu") if tracks else entry.dtypes):
        return []
    torch.manual_seed(0)
    source = entry.reference_inputs if every else entry.sample_inputs
    try:
        return list(source("cpu", kind, requires_grad=tracks))
    except Exception:  # what PyTorch's own sample functions cannot make
        return []


def run_check(entry: Any, check: str, *, every: bool = False, limit: int = 0) -> Result:
    """Run one check of one entry on its samples, or on ``limit`` of them for each dtype."""
    result = Result()
    function = ours(entry)
    if function is None:
        if check == "forward":
            result.failures.append(f"distgrad.{entry.name}: is not there")
        return result
    if check == "errors":
        cases = entry.error_inputs("cpu") if entry.error_inputs_func else ()
        for case in cases:
            result.run(functools.partial(check_error, entry=entry, function=function), case)
        return result
    pair = form(entry, check, function)
    if pair is None:
        return result
    checker = getattr(pair, "forward" if check == "method" else check)
    for dtype in DTYPES[check]:
        samples = samples_of(entry, check, dtype, every)
        for sample in samples[:: max(1, len(samples) // limit)] if limit else samples:
            result.run(checker, sample)
    return result


def main() -> None:
    """Print what differs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--op", nargs="*", default=[], help="names of entries; default: all")
    parser.add_argument("--check", nargs="*", default=CHECKS, choices=CHECKS)
    parser.add_argument("--all", action="store_true", help="the larger set of samples")
    parser.add_argument("--limit", type=int, default=0, help="samples for each dtype; 0: all")
    parser.add_argument("--lines", type=int, default=3, help="failures printed for each check")
    parser.add_argument("--part", default="0/1", help="i/n: every n-th entry, from the i-th")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    part, parts = (int(n) for n in options.part.split("/"))
    chosen = [e for e in entries() if not options.op or {e.name, name_of(e)} & set(options.op)]
    totals: collections.Counter[str] = collections.Counter()
    for entry in chosen[part::parts]:
        good = True
        for check in options.check:
            result = run_check(entry, check, every=options.all, limit=options.limit)
            totals[f"{check} passed"] += result.passed
            totals[f"{check} failed"] += len(result.failures)
            good = good and not result.failures
            report(f"{name_of(entry)} {check}", result, options.lines)
        totals["entries"] += 1
        totals["entries that agree"] += good
    for name, count in totals.items():
        print(f"{name}: {count}", flush=True)


def report(title: str, result: Result, lines: int) -> None:
    """Print the failures of one check: the first of each kind."""
    if not result.failures:
        return
    print(f"{title}: {len(result.failures)} of {result.passed + len(result.failures)} differ")
    kinds = {f.split("): ", 1)[-1][:60]: f for f in reversed(result.failures)}
    for text in list(reversed(kinds.values()))[:lines]:
        print(f"    {text}")


if __name__ == "__main__":
    main()
