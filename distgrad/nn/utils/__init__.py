"""Helpers for training: gradients, parameters as functions of others, sequences, pruning."""

from typing import TYPE_CHECKING

from distgrad.later import later
from distgrad.nn.utils.spectral_norm import remove_spectral_norm, spectral_norm
from distgrad.nn.utils.weight_norm import remove_weight_norm, weight_norm

if TYPE_CHECKING:
    from distgrad.nn.utils import parametrizations, parametrize, rnn, stateless
    from distgrad.nn.utils.clip_grad import (
        clip_grad_norm,
        clip_grad_norm_,
        clip_grad_value_,
        clip_grads_with_norm_,
        get_total_norm,
    )
    from distgrad.nn.utils.convert_parameters import parameters_to_vector, vector_to_parameters
    from distgrad.nn.utils.fusion import (
        fuse_conv_bn_eval,
        fuse_conv_bn_weights,
        fuse_linear_bn_eval,
        fuse_linear_bn_weights,
    )
    from distgrad.nn.utils.init import skip_init
    from distgrad.nn.utils.memory_format import (
        convert_conv2d_weight_memory_format,
        convert_conv3d_weight_memory_format,
    )

__all__ = [
    "clip_grad_norm",
    "clip_grad_norm_",
    "clip_grad_value_",
    "clip_grads_with_norm_",
    "convert_conv2d_weight_memory_format",
    "convert_conv3d_weight_memory_format",
    "fuse_conv_bn_eval",
    "fuse_conv_bn_weights",
    "fuse_linear_bn_eval",
    "fuse_linear_bn_weights",
    "get_total_norm",
    "parameters_to_vector",
    "parametrizations",
    "parametrize",
    "remove_spectral_norm",
    "remove_weight_norm",
    "rnn",
    "skip_init",
    "spectral_norm",
    "stateless",
    "vector_to_parameters",
    "weight_norm",
]

_PLACES = {
    "clip_grad": (
        "clip_grad_norm",
        "clip_grad_norm_",
        "clip_grad_value_",
        "clip_grads_with_norm_",
        "get_total_norm",
    ),
    "convert_parameters": (
        "parameters_to_vector",
        "vector_to_parameters",
    ),
    "fusion": (
        "fuse_conv_bn_eval",
        "fuse_conv_bn_weights",
        "fuse_linear_bn_eval",
        "fuse_linear_bn_weights",
    ),
    "init": ("skip_init",),
    "memory_format": (
        "convert_conv2d_weight_memory_format",
        "convert_conv3d_weight_memory_format",
    ),
}
__getattr__ = later(
    __name__,
    {name: f"{__name__}.{module}:" for module, names in _PLACES.items() for name in names}
    | {n: f"{__name__}.{n}" for n in ("parametrizations", "parametrize", "rnn", "stateless")},
)
