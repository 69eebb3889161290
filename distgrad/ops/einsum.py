"""Sums of products written with letters (Einstein's summation).

The operands are contracted two at a time, each pair by one (batched) matrix product, so gradients
of every order and BLAS's speed come from ``matmul``.
"""

from __future__ import annotations

import functools
import math
import string
from collections.abc import Sequence
from typing import Any

import numpy

from distgrad.autograd.declare import recover
from distgrad.errors import ArgumentError, ShapeError
from distgrad.ops.elementwise import mul
from distgrad.ops.matmul import matmul
from distgrad.ops.reduce import sum as sum_
from distgrad.ops.shape import permute, reshape
from distgrad.tensor import Tensor

__all__ = ["bilinear", "einsum"]

Labels = tuple[int, ...]
_LETTERS = string.ascii_uppercase + string.ascii_lowercase
_DOTS = 1000  # labels of the dimensions that an ellipsis stands for begin here


def einsum(*args: Any) -> Tensor:
    """Return the sums of products that ``equation`` describes.

    Every letter names a dimension; letters that are missing after ``->`` are summed over.

    Args:
        args: the equation, then the tensors; or each tensor followed by the list of its
            dimensions' numbers (and at last the list for the result).

    Example:
        >>> import distgrad as dg
        >>> dg.einsum("ij,j->i", dg.tensor([[1.0, 2.0], [3.0, 4.0]]), dg.tensor([1.0, 10.0]))
        tensor([21., 43.])
    """
    equation, operands = _arguments(args)
    try:
        if not operands:
            raise ArgumentError("must specify the equation string and at least one operand")
        shapes = tuple(o.array.shape for o in operands)
        inputs, output = read_equation(equation, tuple(map(len, shapes)))
        sizes = _sizes(inputs, shapes)
    except Exception as error:
        named = {f"operands[{i}]": o for i, o in enumerate(operands)}
        recover("einsum", error, named, {"equation": equation})
    terms = [_simplified(o, labels, sizes) for o, labels in zip(operands, inputs, strict=True)]
    for first, second in _order(tuple(labels for _, labels in terms), output, tuple(sizes.items())):
        b, a = terms.pop(second), terms.pop(first)
        keep = set(output).union(*(labels for _, labels in terms))
        terms.append(_contract(a, b, keep))
    tensor, labels = _reduced(terms[0], set(output))
    order = tuple(labels.index(label) for label in output)
    return tensor if order == tuple(range(len(order))) else permute(tensor, order)


def bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``input1 @ weight[o] @ input2 + bias[o]`` for every output ``o``.

    Shape:
        input1: ``(*, in1)``, input2: ``(*, in2)``, weight: ``(out, in1, in2)``, bias: ``(out,)``.
    """
    out = einsum("...i,oij,...j->...o", input1, weight, input2)
    return out if bias is None else out + bias


# ---------------------------------------------------------------------- reading
def _arguments(args: tuple[Any, ...]) -> tuple[str, list[Tensor]]:
    """Return the equation as text and the operands."""
    if not args:
        return "", []
    if isinstance(args[0], str):
        rest = args[1:]
        operands = list(rest[0]) if len(rest) == 1 and isinstance(rest[0], list | tuple) else rest
        return args[0].replace(" ", ""), list(operands)
    operands = list(args[0 : len(args) - len(args) % 2 : 2])
    equation = ",".join(_written(labels) for labels in args[1 : 2 * len(operands) : 2])
    if len(args) % 2:
        equation += "->" + _written(args[-1])
    return equation, operands


def _written(numbers: Sequence[Any]) -> str:
    for n in numbers:
        if n is not Ellipsis and not 0 <= n < len(_LETTERS):
            raise ArgumentError(
                f"einsum(): subscript {n} in subscript list is not within the valid range [0, 52)"
            )
    return "".join("..." if n is Ellipsis else _LETTERS[n] for n in numbers)


@functools.lru_cache(maxsize=1024)
def read_equation(equation: str, ndims: tuple[int, ...]) -> tuple[tuple[Labels, ...], Labels]:
    """Return the labels of every operand's dimensions and of the result's."""
    left, arrow, right = equation.partition("->")
    parts = left.split(",")
    if len(parts) != len(ndims):
        fewer = "more" if len(ndims) > len(parts) else "fewer"
        raise ShapeError(f"{fewer} operands were provided than specified in the equation")
    inputs = tuple(
        _labels(part, n, i) for i, (part, n) in enumerate(zip(parts, ndims, strict=True))
    )
    seen = [label for labels in inputs for label in labels]
    dots = tuple(sorted({label for label in seen if label >= _DOTS}))
    if not arrow:
        once = sorted(label for label in seen if label < _DOTS and seen.count(label) == 1)
        return inputs, dots + tuple(once)
    before, has_dots, after = right.partition("...")
    output = (*_letters(before), *(dots if has_dots else ()), *_letters(after))
    for label in output:
        if label not in seen:
            raise ShapeError(
                f"output subscript {_LETTERS[label]} does not appear in the equation for any "
                "input operand"
            )
        if output.count(label) > 1:
            raise ShapeError(
                f"output subscript {_LETTERS[label]} appears more than once in the output"
            )
    return inputs, output


def _letters(text: str) -> Labels:
    wrong = [c for c in text if c not in _LETTERS]
    if wrong:
        raise ShapeError(f"invalid subscript given: {wrong[0]!r}; use letters from a-z and A-Z")
    return tuple(_LETTERS.index(c) for c in text)


def _labels(part: str, ndim: int, number: int) -> Labels:
    """Return the labels of one operand; the dimensions of "..." are counted from the right."""
    before, dots, after = part.partition("...")
    letters = _letters(before), _letters(after)
    free = ndim - len(letters[0]) - len(letters[1])
    if free < 0 or (free and not dots):
        raise ShapeError(
            f"the number of subscripts in the equation ({len(before + after)}) "
            f"{'is more than' if free < 0 else 'does not match'} the number of dimensions ({ndim}) "
            f"for operand {number}" + ("" if dots else " and no ellipsis was given")
        )
    return (*letters[0], *range(_DOTS + 100 - free, _DOTS + 100), *letters[1])


def _sizes(inputs: Sequence[Labels], shapes: Sequence[tuple[int, ...]]) -> dict[int, int]:
    """Return the length of every label; a length of 1 broadcasts."""
    sizes: dict[int, int] = {}
    for number, (labels, shape) in enumerate(zip(inputs, shapes, strict=True)):
        for place, (label, n) in enumerate(zip(labels, shape, strict=True)):
            if label in labels[:place] and n != shape[labels.index(label)]:
                raise ShapeError(
                    f"subscript {_LETTERS[label]} is repeated for operand {number} but the sizes "
                    f"don't match, {n} != {shape[labels.index(label)]}"
                )
            known = sizes.get(label, 1)
            if n not in (known, 1) and known != 1:
                name = _LETTERS[label] if label < _DOTS else "..."
                raise ShapeError(
                    f"subscript {name} has size {n} for operand {number} which does not broadcast "
                    f"with previously seen size {known}"
                )
            sizes[label] = known if n == 1 else n
    return sizes


@functools.lru_cache(maxsize=1024)
def _order(
    labels: tuple[Labels, ...], output: Labels, sizes: tuple[tuple[int, int], ...]
) -> list[tuple[int, int]]:
    """Return which two terms to contract at each step; the result becomes the last term."""
    if len(labels) < 3:
        return [(0, 1)] * (len(labels) - 1)
    length = dict(sizes)
    args: list[Any] = []
    names = {label: i for i, label in enumerate(length)}
    for own in labels:
        args += [numpy.broadcast_to(0.0, [length[i] for i in own]), [names[i] for i in own]]
    path = numpy.einsum_path(*args, [names[i] for i in output], optimize="greedy")[0][1:]
    pairs = []
    for step in path:
        places = sorted(int(p) for p in step)
        while len(places) > 1:  # a step of several is taken two at a time
            pairs.append((places[0], places[1]))
            count = len(labels) - len(pairs)
            places = [p - 2 for p in places[2:]] + [count - 1]
    return pairs


# ---------------------------------------------------------------------- contracting
Term = tuple[Tensor, Labels]


def _simplified(tensor: Tensor, labels: Labels, sizes: dict[int, int]) -> Term:
    """Return a term in which every label stands once, and none of length 1 that broadcasts."""
    own = list(labels)
    for label in set(labels):
        while own.count(label) > 1:
            first = own.index(label)
            second = own.index(label, first + 1)
            tensor = tensor.diagonal(0, first, second)
            own = [v for i, v in enumerate(own) if i not in (first, second)] + [label]
    shape = tensor.array.shape
    if any([n == 1 and sizes[v] != 1 for n, v in zip(shape, own, strict=True)]):
        kept = [i for i, (n, v) in enumerate(zip(shape, own, strict=True)) if n == sizes[v]]
        tensor, own = reshape(tensor, tuple(shape[i] for i in kept)), [own[i] for i in kept]
    return tensor, tuple(own)


def _reduced(term: Term, keep: set[int]) -> Term:
    """Return the term summed over the labels that nobody else needs."""
    tensor, labels = term
    gone = tuple(i for i, label in enumerate(labels) if label not in keep)
    if not gone:
        return term
    return sum_(tensor, gone), tuple(label for label in labels if label in keep)


def _contract(a: Term, b: Term, keep: set[int]) -> Term:
    """Return the product of two terms, summed over the labels that only they have."""
    a, b = _reduced(a, keep | set(b[1])), _reduced(b, keep | set(a[1]))
    both = [label for label in a[1] if label in b[1]]
    batch = [label for label in both if label in keep]
    inside = [label for label in both if label not in keep]
    left = [label for label in a[1] if label not in both]
    right = [label for label in b[1] if label not in both]
    size = dict(zip(a[1], a[0].array.shape, strict=True))
    size |= dict(zip(b[1], b[0].array.shape, strict=True))
    lengths = [tuple(size[v] for v in group) for group in (batch, left, inside, right)]
    one, two = _ordered(a, batch + left + inside), _ordered(b, batch + inside + right)
    if not inside:
        wide = reshape(one, lengths[0] + lengths[1] + (1,) * len(right)) if right else one
        tight = reshape(two, lengths[0] + (1,) * len(left) + lengths[3]) if left else two
        return mul(wide, tight), (*batch, *left, *right)
    m, k, n = (math.prod(group) for group in lengths[1:])
    product = matmul(_shaped(one, (*lengths[0], m, k)), _shaped(two, (*lengths[0], k, n)))
    shape = lengths[0] + lengths[1] + lengths[3]
    return _shaped(product, shape), (*batch, *left, *right)


def _ordered(term: Term, labels: list[int]) -> Tensor:
    tensor, own = term
    order = tuple(own.index(label) for label in labels)
    return tensor if order == tuple(range(len(order))) else permute(tensor, order)


def _shaped(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    return tensor if tensor.array.shape == shape else reshape(tensor, shape)
