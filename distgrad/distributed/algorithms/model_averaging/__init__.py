"""Averages of models instead of gradients, by PyTorch's names."""

from __future__ import annotations

from distgrad.distributed.algorithms.model_averaging import (
    averagers,
    hierarchical_model_averager,
    utils,
)
from distgrad.distributed.algorithms.model_averaging.averagers import (
    ModelAverager,
    PeriodicModelAverager,
)
from distgrad.distributed.algorithms.model_averaging.hierarchical_model_averager import (
    HierarchicalModelAverager,
)

__all__ = [
    "HierarchicalModelAverager",
    "ModelAverager",
    "PeriodicModelAverager",
    "averagers",
    "hierarchical_model_averager",
    "utils",
]
