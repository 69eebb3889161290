"""Softmax over very many classes: rare ones in clusters."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy

from distgrad.backend.device import CPU, to_device
from distgrad.errors import ArgumentError, ShapeError
from distgrad.nn.functional import log_softmax
from distgrad.nn.module import Module
from distgrad.nn.modules.container import ModuleList, Sequential
from distgrad.nn.modules.linear import Linear
from distgrad.ops.index import index_add, index_select
from distgrad.ops.join import cat
from distgrad.ops.scatter import gather
from distgrad.tensor import Tensor, wrap
from distgrad.typing import Array

__all__ = ["AdaptiveLogSoftmaxWithLoss"]


class _ASMoutput(NamedTuple):
    """The log-probability of each target, and the loss."""

    output: Tensor
    loss: Tensor


class AdaptiveLogSoftmaxWithLoss(Module):
    """Softmax and its loss over many classes, cheap where frequent classes have small numbers.

    The head answers for classes below ``cutoffs[0]`` and for each cluster of the others; cluster i
    is computed only for targets in it, by a projection to in_features / div_value^i.

    Shape:
        input (N, in_features), target (N) -> output (N), loss (); or without N

    Args:
        in_features: size of an input.
        n_classes: number of classes.
        cutoffs: first classes of the clusters, increasing.
        div_value: how much smaller each cluster's projection is than that of the one before.
        head_bias: learn a bias in the head.
        device: where the parameters live.
        dtype: of the parameters.

    Source: Grave et al. 2017, "Efficient softmax approximation for GPUs".
    """

    def __init__(
        self,
        in_features: int,
        n_classes: int,
        cutoffs: Sequence[int],
        div_value: float = 4.0,
        head_bias: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Draw the layers' parameters."""
        super().__init__()
        cuts = list(cutoffs)
        self._check_cutoffs(cuts, n_classes)
        self.in_features, self.n_classes = in_features, n_classes
        self.cutoffs = [*cuts, n_classes]
        self.div_value, self.head_bias = div_value, head_bias
        self.shortlist_size, self.n_clusters = cuts[0], len(cuts)
        self.head_size = self.shortlist_size + self.n_clusters
        self.head = Linear(in_features, self.head_size, head_bias, device, dtype)
        self.tail = ModuleList()
        for k in range(self.n_clusters):
            inner = int(in_features // div_value ** (k + 1))
            size = self.cutoffs[k + 1] - self.cutoffs[k]
            self.tail.append(
                Sequential(
                    Linear(in_features, inner, False, device, dtype),
                    Linear(inner, size, False, device, dtype),
                )
            )

    @staticmethod
    def _check_cutoffs(cuts: list[int], n_classes: int) -> None:
        if not cuts:
            raise ArgumentError("cutoffs should be a sequence of length larger than 0")
        rising = all(a < b for a, b in pairwise(cuts))
        if not rising or cuts[0] <= 0 or cuts[-1] > n_classes - 1 or any(int(c) != c for c in cuts):
            raise ArgumentError(
                "cutoffs should be a sequence of unique, positive integers sorted in an increasing "
                "order, where each value is between 1 and n_classes-1"
            )

    def reset_parameters(self) -> None:
        """Draw the parameters anew."""
        self.head.reset_parameters()
        for pair in self.tail:
            layers: Any = pair
            for layer in layers:
                layer.reset_parameters()

    def _check(self, input: Tensor, target: Tensor) -> Array:
        """Return the targets in host memory."""
        problem = ""
        if target.ndim > 1:
            problem = "0D or 1D target tensor expected, multi-target not supported"
        elif target.ndim == 1 and (not input.ndim or input.array.shape[0] != target.array.shape[0]):
            problem = "Input and target should have the same size in the batch dimension."
        elif input.ndim != target.ndim + 1:
            problem = (
                f"{target.ndim}D target tensor expects {target.ndim + 1}D input tensors, but found "
                f"inputs with size {input.shape}"
            )
        classes = numpy.atleast_1d(to_device(target.array, CPU))
        if not problem and classes.size:
            low, high = int(classes.min()), int(classes.max())
            if low < 0 or high >= self.n_classes:
                problem = (
                    f"Target values should be in [0, {self.n_classes - 1}], but values in range "
                    f"[{low}, {high}] were found. "
                )
        if problem:
            raise ShapeError(
                f"AdaptiveLogSoftmaxWithLoss(input: {input._brief()}, target: {target._brief()}): "
                f"{problem}"
            )
        return classes

    def forward(self, input_: Tensor, target_: Tensor) -> _ASMoutput:
        """Return the log-probability of each target, and the mean of minus those."""
        classes = self._check(input_, target_)
        single = target_.ndim == 0
        rows: Any = input_.unsqueeze(0) if single else input_
        cluster = numpy.searchsorted(self.cutoffs, classes, side="right")
        places = numpy.where(cluster == 0, classes, self.shortlist_size + cluster - 1)
        out: Any = gather(log_softmax(self.head(rows), dim=1), 1, _index(places[:, None], rows))
        out = out.squeeze(1)
        for k in range(self.n_clusters):
            chosen = numpy.flatnonzero(cluster == k + 1)
            if not chosen.size:
                continue
            own = _index(chosen, rows)
            inner = log_softmax(self.tail[k](index_select(rows, 0, own)), dim=1)
            local = _index((classes[chosen] - self.cutoffs[k])[:, None], rows)
            out = index_add(out, 0, own, gather(inner, 1, local).squeeze(1))
        loss = (-out).mean()
        return _ASMoutput(out.squeeze(0) if single else out, loss)

    def log_prob(self, input: Tensor) -> Tensor:
        """Return the log-probabilities of all classes: (N, n_classes)."""
        head: Any = log_softmax(self.head(input), dim=1)
        parts = [head[:, : self.shortlist_size]]
        for k, layers in enumerate(self.tail):
            place = self.shortlist_size + k
            parts.append(log_softmax(layers(input), dim=1) + head[:, place : place + 1])
        return cat(parts, 1)

    def predict(self, input: Tensor) -> Tensor:
        """Return the most likely class of each input: (N)."""
        best: Tensor = self.log_prob(input).argmax(1)
        return best


def _index(values: Array, like: Tensor) -> Tensor:
    return wrap(to_device(values.astype(numpy.int64), like.device))
