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
differs and a table; it fails if anything differs that ``torch_known`` does not explain.
PyTorch and ``expecttest`` must be installed; ``--all`` takes the larger set of samples.
"""

from __future__ import annotations

import argparse
import collections
import functools
import itertools
import multiprocessing
import random
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import distgrad as dg
from distgrad.testing.torch_checks import NotHere, check_error, form
from distgrad.testing.torch_convert import Difference, is_wrapper, rebound, text_of
from distgrad.testing.torch_known import KNOWN, reason, row_of

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


class Failure(NamedTuple):
    """A sample on which both sides differ."""

    dtype: str
    text: str


class Result:
    """What one check of one entry found."""

    def __init__(self, entry: str, check: str) -> None:
        self.entry, self.check = entry, check
        self.passed = 0
        self.skipped = 0
        self.failures: list[Failure] = []

    @property
    def known(self) -> list[Failure]:
        """The differences that are explained."""
        return [f for f in self.failures if reason(self.entry, self.check, f.dtype)]

    @property
    def unknown(self) -> list[Failure]:
        """The differences that are not."""
        return [f for f in self.failures if not reason(self.entry, self.check, f.dtype)]

    def run(self, checker: Callable[[Any], None], sample: Any, dtype: str = "") -> None:
        """Run one sample and note how it went."""
        try:
            checker(sample)
        except NotHere:
            self.skipped += 1
        except Exception as error:
            kind = "" if isinstance(error, Difference) else f"check: {type(error).__name__}: "
            text = f"{text_of(getattr(sample, 'sample_input', sample))}: {kind}{error}"
            self.failures.append(Failure(dtype, text.replace("\n", " ")[:400]))
        else:
            self.passed += 1


@functools.cache
def entries() -> list[Any]:
    """Return the entries of the database."""
    from torch.testing._internal.common_methods_invocations import op_db  # an extra of the tests

    return list(op_db)


@functools.cache
def by_name() -> dict[str, Any]:
    """Return the entries by name and variant."""
    return {name_of(entry): entry for entry in entries()}


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


_FEW_TIMES = 16


def samples_of(entry: Any, check: str, dtype: str, every: bool, limit: int) -> list[Any]:
    """Return the samples of an entry for one dtype; none where the check has no such dtype.

    With a ``limit``, only the first few times as many are made: some entries have ten thousand.
    """
    import torch  # an extra of the tests

    kind = getattr(torch, dtype)
    tracks = check in DERIVATIVES
    if kind not in (entry.supported_backward_dtypes("cpu") if tracks else entry.dtypes):
        return []
    torch.default_generator.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  some sample functions draw from these
    random.seed(0)
    # The functions themselves: what stands around them looks through the whole stack each time.
    source = (every and entry.reference_inputs_func) or entry.sample_inputs_func
    try:
        with torch.no_grad():
            made = source(entry, "cpu", kind, tracks)
            return list(itertools.islice(made, _FEW_TIMES * limit or None))
    except Exception:  # what PyTorch's own sample functions cannot make
        return []


def run_check(entry: Any, check: str, *, every: bool = False, limit: int = 0) -> Result:
    """Run one check of one entry on its samples, or on about ``limit`` of them for each dtype."""
    result = Result(name_of(entry), check)
    function = ours(entry)
    if function is None:
        if check == "forward":
            result.failures.append(Failure("", f"distgrad.{entry.name}: is not there"))
        return result
    if check == "errors":
        cases = entry.error_inputs_func(entry, "cpu") if entry.error_inputs_func else ()
        for case in cases:
            result.run(functools.partial(check_error, entry=entry, function=function), case)
        return result
    pair = form(entry, check, function)
    if pair is None:
        return result
    checker = getattr(pair, "forward" if check == "method" else check)
    for dtype in DTYPES[check]:
        samples = samples_of(entry, check, dtype, every, limit)
        for sample in samples[:: max(1, len(samples) // limit)] if limit else samples:
            result.run(checker, sample, dtype)
    return result


def run_entry(
    name: str, checks: Iterable[str] = CHECKS, every: bool = False, limit: int = 0
) -> list[Result]:
    """Run checks of the entry called ``name``."""
    entry = by_name()[name]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return [run_check(entry, check, every=every, limit=limit) for check in checks]


# ---------------------------------------------------------------------- the command
def main() -> int:
    """Print what differs; return 1 if anything does that is not known."""
    options = read_arguments()
    names = [n for n, e in by_name().items() if not options.op or {e.name, n} & set(options.op)]
    part, parts = (int(n) for n in options.part.split("/"))
    call = functools.partial(
        run_entry, checks=options.check, every=options.all, limit=options.limit
    )
    found: list[Result] = []
    for results in each(call, names[part::parts], options.jobs):
        for result in results:
            report(result, options.lines)
        found += results
    rows = summary(found)
    print("\n".join("".join(f"{cell!s:>10}" for cell in row) for row in rows))
    if options.write:
        options.write.write_text(page(rows, found))
    return int(any(r.unknown for r in found))


def read_arguments() -> argparse.Namespace:
    """Return the options of the command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--op", nargs="*", default=[], help="names of entries; default: all")
    parser.add_argument("--check", nargs="*", default=CHECKS, choices=CHECKS)
    parser.add_argument("--all", action="store_true", help="the larger set of samples")
    parser.add_argument("--limit", type=int, default=0, help="samples for each dtype; 0: all")
    parser.add_argument("--lines", type=int, default=3, help="failures printed for each check")
    parser.add_argument("--part", default="0/1", help="i/n: every n-th entry, from the i-th")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--write", type=Path, help="write the table as a page of the documentation")
    return parser.parse_args()


def each(
    call: Callable[[str], list[Result]], names: list[str], jobs: int
) -> Iterator[list[Result]]:
    """Yield the results of ``call`` for each name, in order, computed by ``jobs`` processes."""
    if jobs < 2:
        yield from map(call, names)
        return
    context = multiprocessing.get_context("spawn")  # PyTorch's threads do not survive a fork
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        yield from pool.map(call, names)


def report(result: Result, lines: int) -> None:
    """Print the unknown differences of one check: the first of each kind."""
    found = [f.text for f in result.unknown]
    if not found:
        return
    total = result.passed + len(result.failures)
    print(f"{result.entry} {result.check}: {len(found)} of {total} differ")
    kinds = {text.split("): ", 1)[-1][:60]: text for text in reversed(found)}
    for text in list(reversed(kinds.values()))[:lines]:
        print(f"    {text}")
    sys.stdout.flush()


def summary(found: list[Result]) -> list[tuple[Any, ...]]:
    """Return a table: a row for each check, and one for all of them."""
    rows: list[tuple[Any, ...]] = [("check", "entries", "agree", "known", "differ", "not there")]
    by_check: dict[str, list[Result]] = {c: [] for c in CHECKS}
    for result in found:
        by_check[result.check].append(result)
    for title, results in [*by_check.items(), ("all", found)]:
        entries = {r.entry for r in results if r.passed or r.failures}
        counts = (
            sum(r.passed for r in results),
            sum(len(r.known) for r in results),
            sum(len(r.unknown) for r in results),
            sum(r.skipped for r in results),
        )
        if results:
            rows.append((title, len(entries), *counts))
    return rows


def page(rows: list[tuple[Any, ...]], found: list[Result]) -> str:
    """Return the page ``docs/agreement.md``."""
    import torch  # an extra of the tests

    counts: collections.Counter[str] = collections.Counter()
    for result in found:
        counts.update(row_of(result.entry, result.check, f.dtype) for f in result.known)
    table = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    table.insert(1, "|---|" + "---:|" * (len(rows[0]) - 1))
    known = [f"| `{row}` | {n} | {KNOWN[row]} |" for row, n in sorted(counts.items())]
    version = torch.__version__.partition("+")[0]
    return PAGE.format(version=version, table="\n".join(table), known="\n".join(known))


PAGE = """\
# Agreement with PyTorch

PyTorch {version} comes with a database of its operations: entries with samples of operands and
options, and with calls that must be refused. Both sides run them; values, dtypes, shapes,
gradients and classes of errors are compared. This page is written by
`python -m distgrad.testing.torch_database --jobs 2 --limit 20 --write docs/agreement.md`,
from about 20 samples for each entry, check and dtype.

{table}

*agree*: samples on which both sides are the same; *known*: they differ for a reason below;
*differ*: anything else; *not there*: PyTorch itself refuses, or the form does not apply.

A result agrees within the tolerance of its dtype, or where it is as near as PyTorch's own to what
PyTorch finds in double precision. The order of equal values is free.

## Known differences
| entry, check, dtype | samples | why |
|---|---:|---|
{known}
"""


if __name__ == "__main__":
    sys.exit(main())
