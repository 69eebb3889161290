"""Writes ``docs/operations.md``: every operation of the table and what it can do.

``python -m distgrad.testing.op_table`` writes the file anew; a test fails when it is stale.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import distgrad.ops  # noqa: F401  (fills the table)
from distgrad.autograd.declare import Operation, table

PATH = Path(__file__).parents[2] / "docs" / "operations.md"

_HEAD = """\
# Operations

Written by `python -m distgrad.testing.op_table` from the table of declarations; do not edit.

Each row is one declaration. Functions of PyTorch that are made of these (`dg.nn.functional.conv2d`,
`dg.fft.rfft`, `dg.linalg.svd` …) need no declaration of their own and have no row.

* **forward**: the number of samples whose values are compared with PyTorch's where it has the
  function.
* **VJP**: the operands that get a gradient. With samples, it is compared with finite differences.
* **second order**: from the *rules*, which also run on tensors, or from the *formula* of a fused
  operation.
* **JVP**: how forward mode follows: by *linearity* (also in each operand), by the *rules* of an
  elementwise operation, by an *own rule*, by the *formula*, or by the *rules twice*.
* **CPU**, **CUDA**: where the forward runs. It is written once on an array namespace, NumPy or
  CuPy; `tests/test_gpu_standin.py` checks the calls against CuPy's interface without a GPU, and
  `tests/gpu` the results on one. *stand-in*: checked against the interface, not yet run on a GPU.
"""


def generate() -> str:
    """Return the text of the page."""
    rows = sorted(table.values(), key=lambda op: (_chapter(op), op.name))
    lines = [
        "| operation | chapter | forward | VJP | second order | JVP | CPU | CUDA |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(op) for op in rows]
    return "\n".join([_HEAD, _counts(rows), "", *lines]) + "\n"


def main() -> None:
    """Write the page."""
    PATH.write_text(generate())
    print(f"{PATH}: {len(table)} operations")


def _chapter(op: Operation) -> str:
    return str(op.forward.__module__).rpartition(".")[2]


def _counts(rows: Iterable[Operation]) -> str:
    ops = list(rows)
    tracked = [op for op in ops if op.rules]
    return (
        f"{len(ops)} operations, {len(tracked)} of them differentiable, in "
        f"{len({_chapter(op) for op in ops})} chapters; {sum(len(op.samples) for op in ops)} "
        f"samples; {sum(op.formula is not None for op in ops)} fused operations with a formula."
    )


def _row(op: Operation) -> str:
    operands = ", ".join(o.name for o in op.operands if o.name in op.plan.rules)
    second = "" if not op.rules else "formula" if op.formula else "rules"
    cells = [
        f"`{op.name}`", _chapter(op), str(len(op.samples)), operands or "–", second or "–",
        _forward_mode(op), "yes", "stand-in",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _forward_mode(op: Operation) -> str:
    if not op.rules:
        return "–"
    if op.jvp is not None:
        return "own rule"
    if op.kind in ("linear", "multilinear"):
        return "linearity"
    if op.kind == "elementwise":
        return "rules"
    return "formula" if op.formula else "rules twice"


if __name__ == "__main__":
    main()
