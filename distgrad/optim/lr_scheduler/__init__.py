"""Schedules of learning rates.  Call ``scheduler.step()`` after ``optimizer.step()``.

Each schedule computes the next rate from the current one, as PyTorch does, so schedules can be
chained and interrupted runs continue with the same bits.
"""

from distgrad.optim.lr_scheduler.base import EPOCH_DEPRECATION_WARNING, LRScheduler
from distgrad.optim.lr_scheduler.cycles import CosineAnnealingWarmRestarts, CyclicLR, OneCycleLR
from distgrad.optim.lr_scheduler.plateau import ReduceLROnPlateau
from distgrad.optim.lr_scheduler.several import ChainedScheduler, SequentialLR
from distgrad.optim.lr_scheduler.simple import (
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    MultiplicativeLR,
    MultiStepLR,
    PolynomialLR,
    StepLR,
)

_LRScheduler = LRScheduler  # PyTorch's older name

__all__ = [
    "EPOCH_DEPRECATION_WARNING",
    "ChainedScheduler",
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CyclicLR",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "MultiplicativeLR",
    "OneCycleLR",
    "PolynomialLR",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
]
