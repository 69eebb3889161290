"""Automatic differentiation: modes, the graph, the declaration of operations, and the engine."""

from distgrad.autograd import anomaly, forward_ad, function, functional, graph
from distgrad.autograd import anomaly as anomaly_mode
from distgrad.autograd import mode as grad_mode
from distgrad.autograd.anomaly import detect_anomaly, set_detect_anomaly
from distgrad.autograd.function import Function, NestedIOFunction
from distgrad.autograd.gradcheck import gradcheck, gradgradcheck
from distgrad.autograd.gradients import backward, grad
from distgrad.autograd.graph import _unsafe_preserve_version_counter
from distgrad.autograd.inference import inference_mode
from distgrad.autograd.mode import (
    _force_original_view_tracking,
    enable_grad,
    is_grad_enabled,
    is_inference_mode_enabled,
    is_multithreading_enabled,
    is_view_replay_enabled,
    no_grad,
    set_grad_enabled,
    set_multithreading_enabled,
)
from distgrad.autograd.saving import SavedTensor
from distgrad.autograd.variable import Variable

__all__ = [
    "Function",
    "NestedIOFunction",
    "SavedTensor",
    "Variable",
    "_force_original_view_tracking",
    "_unsafe_preserve_version_counter",
    "anomaly",
    "anomaly_mode",
    "backward",
    "detect_anomaly",
    "enable_grad",
    "forward_ad",
    "function",
    "functional",
    "grad",
    "grad_mode",
    "gradcheck",
    "gradgradcheck",
    "graph",
    "inference_mode",
    "is_grad_enabled",
    "is_inference_mode_enabled",
    "is_multithreading_enabled",
    "is_view_replay_enabled",
    "no_grad",
    "set_detect_anomaly",
    "set_grad_enabled",
    "set_multithreading_enabled",
]
