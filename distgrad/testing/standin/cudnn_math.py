"""What cuDNN computes, in NumPy and float64: convolutions, and attention row by row of its formula.

Written from cuDNN's documentation, with nothing of the package's own operations in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

Numbers = np.ndarray[Any, Any]


# ---------------------------------------------------------------------- convolutions
class Geometry(NamedTuple):
    """Padding on both sides, stride and dilation for each dimension of space."""

    padding: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]

    def places(self, space: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[int, ...]:
        """Return how many windows there are."""
        return tuple(
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, p, s, d in zip(space, kernel, *self, strict=True)
        )

    def padded(self, image: Numbers) -> Numbers:
        """Return the image with zeros around it."""
        return np.pad(image, [(0, 0), (0, 0), *[(p, p) for p in self.padding]])

    def cut(self, padded: Numbers) -> Numbers:
        """Return the image inside of its padding."""
        inner = (slice(p, n - p) for p, n in zip(self.padding, padded.shape[2:], strict=True))
        return padded[(slice(None), slice(None), *inner)]

    def offsets(
        self, kernel: tuple[int, ...], places: tuple[int, ...]
    ) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...]]]:
        """Return each element of the filter, and what it meets of the padded image."""
        for offset in itertools.product(*map(range, kernel)):
            each = zip(offset, places, self.stride, self.dilation, strict=True)
            met = tuple(slice(k * d, k * d + s * (n - 1) + 1, s) for k, n, s, d in each)
            yield (..., *offset), (..., *met)


def _split(x: Numbers, groups: int, axis: int) -> Numbers:
    shape = (*x.shape[:axis], groups, x.shape[axis] // groups, *x.shape[axis + 1 :])
    return x.reshape(shape)


def fprop(image: Numbers, filter: Numbers, geometry: Geometry) -> Numbers:
    """Return the cross-correlation of images with filters."""
    groups = image.shape[1] // filter.shape[1]
    places = geometry.places(image.shape[2:], filter.shape[2:])
    padded, filters = geometry.padded(image), _split(filter, groups, 0)
    total: Any = 0
    for element, met in geometry.offsets(filter.shape[2:], places):
        pixels = _split(padded[met], groups, 1)
        total = total + np.einsum("ngc...,goc->ngo...", pixels, filters[element])
    shape = (len(image), len(filter), *places)
    return np.asarray(total).reshape(shape)


def dgrad(loss: Numbers, filter: Numbers, shape: tuple[int, ...], geometry: Geometry) -> Numbers:
    """Return the gradient of an image of ``shape``."""
    groups = shape[1] // filter.shape[1]
    padded = geometry.padded(np.zeros(shape))
    losses, filters = _split(loss, groups, 1), _split(filter, groups, 0)
    for element, met in geometry.offsets(filter.shape[2:], loss.shape[2:]):
        part = np.einsum("ngo...,goc->ngc...", losses, filters[element])
        padded[met] += part.reshape(len(part), -1, *part.shape[3:])
    return geometry.cut(padded)


def wgrad(image: Numbers, loss: Numbers, shape: tuple[int, ...], geometry: Geometry) -> Numbers:
    """Return the gradient of a filter of ``shape``."""
    groups = image.shape[1] // shape[1]
    padded, losses = geometry.padded(image), _split(loss, groups, 1)
    out = np.zeros((groups, shape[0] // groups, *shape[1:]))
    for element, met in geometry.offsets(shape[2:], loss.shape[2:]):
        pixels = _split(padded[met], groups, 1)
        flat = (*pixels.shape[:3], -1)
        out[element] = np.einsum(
            "ngop,ngcp->goc", losses.reshape(*losses.shape[:3], -1), pixels.reshape(flat)
        )
    return out.reshape(shape)


# ---------------------------------------------------------------------- attention
class Rules(NamedTuple):
    """What changes the weights of attention."""

    scale: float
    causal: bool
    bias: Numbers | None
    dropout: float
    seed: int
    offset: int


def _repeated(x: Numbers, heads: int) -> Numbers:
    """Return keys or values once for each head of queries."""
    return np.repeat(x, heads // x.shape[1], axis=1)


def _logits(q: Numbers, k: Numbers, rules: Rules) -> Numbers:
    s = np.einsum("bhqd,bhkd->bhqk", q, _repeated(k, q.shape[1])) * rules.scale
    if rules.bias is not None:
        s = s + rules.bias
    if rules.causal:
        s = np.where(np.tri(*s.shape[-2:]) > 0, s, -np.inf)
    return np.asarray(s)


def _kept(shape: tuple[int, ...], rules: Rules) -> Any:
    """Return the factors of dropout; seed and offset give the same ones each time."""
    if not rules.dropout:
        return 1.0
    stream = np.random.Generator(
        np.random.Philox(key=rules.seed % 2**64, counter=rules.offset % 2**64)
    )
    return (stream.random(shape) >= rules.dropout) / (1 - rules.dropout)


def attention(q: Numbers, k: Numbers, v: Numbers, rules: Rules) -> tuple[Numbers, Numbers]:
    """Return the output, and the logarithm of each row's sum of exponentials."""
    s = _logits(q, k, rules)
    top = s.max(-1, keepdims=True)
    stats = top + np.log(np.exp(s - top).sum(-1, keepdims=True))
    weights = np.exp(s - stats) * _kept(s.shape, rules)
    return weights @ _repeated(v, q.shape[1]), stats


def attention_backward(
    q: Numbers, k: Numbers, v: Numbers, out: Numbers, g: Numbers, stats: Numbers, rules: Rules
) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """Return the gradients of q, k, v and the logits."""
    s = _logits(q, k, rules)
    weights, kept = np.exp(s - stats), _kept(s.shape, rules)
    groups = q.shape[1] // k.shape[1]

    def summed(x: Numbers) -> Numbers:
        return np.asarray(x.reshape(len(x), -1, groups, *x.shape[2:]).sum(2))

    d_v = summed((weights * kept).swapaxes(-1, -2) @ g)
    d_weights = g @ _repeated(v, q.shape[1]).swapaxes(-1, -2) * kept
    d_s = weights * (d_weights - (g * out).sum(-1, keepdims=True))
    d_q = d_s @ _repeated(k, q.shape[1]) * rules.scale
    d_k = summed(d_s.swapaxes(-1, -2) @ q) * rules.scale
    return d_q, d_k, d_v, d_s


def summed_to(x: Numbers, shape: tuple[int, ...]) -> Numbers:
    """Return ``x`` summed over the dimensions in which ``shape`` is 1."""
    axes = tuple(i for i, n in enumerate(shape) if n == 1)
    return np.asarray(x.sum(axes, keepdims=True))
