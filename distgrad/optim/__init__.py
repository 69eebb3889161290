"""Optimizers and schedules of their learning rates."""

from distgrad.optim import lr_scheduler
from distgrad.optim.adam import Adam, Adamax, AdamW, NAdam, RAdam
from distgrad.optim.adaptive import Adadelta, Adagrad, RMSprop
from distgrad.optim.optimizer import (
    Optimizer,
    flatten_parameters,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from distgrad.optim.sgd import SGD

__all__ = [
    "SGD",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "flatten_parameters",
    "lr_scheduler",
    "register_optimizer_step_post_hook",
    "register_optimizer_step_pre_hook",
]
