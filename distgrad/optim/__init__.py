"""Optimizers and schedules of their learning rates."""

from distgrad.optim import lr_scheduler, swa_utils
from distgrad.optim.adam import Adam, Adamax, AdamW, NAdam, RAdam
from distgrad.optim.adaptive import Adadelta, Adagrad, RMSprop, Rprop
from distgrad.optim.lbfgs import LBFGS
from distgrad.optim.optimizer import (
    Optimizer,
    flatten_parameters,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
    swap_in_optimizer_params_and_state,
)
from distgrad.optim.sgd import ASGD, SGD
from distgrad.optim.whole import LAMB, LARS, Adafactor, Muon

__all__ = [
    "ASGD",
    "LAMB",
    "LARS",
    "LBFGS",
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Muon",
    "NAdam",
    "Optimizer",
    "RAdam",
    "RMSprop",
    "Rprop",
    "flatten_parameters",
    "lr_scheduler",
    "register_optimizer_step_post_hook",
    "register_optimizer_step_pre_hook",
    "swa_utils",
    "swap_in_optimizer_params_and_state",
]
