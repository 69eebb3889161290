"""Automatic differentiation: modes, the graph, the declaration of operations, and the engine."""

from distgrad.autograd import anomaly, forward_ad, function, functional, graph
from distgrad.autograd.anomaly import detect_anomaly, set_detect_anomaly
from distgrad.autograd.function import Function
from distgrad.autograd.gradcheck import gradcheck, gradgradcheck
from distgrad.autograd.gradients import backward, grad
from distgrad.autograd.mode import (
    enable_grad,
    inference_mode,
    is_grad_enabled,
    is_inference_mode_enabled,
    no_grad,
    set_grad_enabled,
)
from distgrad.tensor import Tensor as Variable

__all__ = [
    "Function",
    "Variable",
    "anomaly",
    "backward",
    "detect_anomaly",
    "enable_grad",
    "forward_ad",
    "function",
    "functional",
    "grad",
    "gradcheck",
    "gradgradcheck",
    "graph",
    "inference_mode",
    "is_grad_enabled",
    "is_inference_mode_enabled",
    "no_grad",
    "set_detect_anomaly",
    "set_grad_enabled",
]
