"""A convolution or linear layer and the batch normalisation after it as one layer."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from distgrad.errors import ArgumentError
from distgrad.nn.module import Module
from distgrad.nn.parameter import Parameter
from distgrad.tensor import Tensor

__all__ = [
    "fuse_conv_bn_eval",
    "fuse_conv_bn_weights",
    "fuse_linear_bn_eval",
    "fuse_linear_bn_weights",
]

M = TypeVar("M", bound=Module)


def _fused(
    weight: Any, bias: Any, mean: Any, var: Any, eps: float, scale: Any, shift: Any, dim: int
) -> tuple[Parameter, Parameter]:
    """Return weight and bias of the layer with the normalisation inside; outputs are ``dim``."""
    factor = 1 / (var + eps).sqrt()
    if scale is not None:
        factor = scale * factor
    moved = ((0.0 if bias is None else bias) - mean) * factor
    if shift is not None:
        moved = moved + shift
    shape = [1] * weight.ndim
    shape[dim] = -1
    new = (weight * factor.reshape(shape)).to(weight.dtype)
    kept = weight.requires_grad
    trained = kept if bias is None else bias.requires_grad
    return Parameter(new.detach(), kept), Parameter(moved.to(weight.dtype).detach(), trained)


def fuse_conv_bn_weights(
    conv_w: Tensor,
    conv_b: Tensor | None,
    bn_rm: Tensor,
    bn_rv: Tensor,
    bn_eps: float,
    bn_w: Tensor | None,
    bn_b: Tensor | None,
    transpose: bool = False,
) -> tuple[Parameter, Parameter]:
    """Return weight and bias of a convolution that does the normalisation too."""
    return _fused(conv_w, conv_b, bn_rm, bn_rv, bn_eps, bn_w, bn_b, 1 if transpose else 0)


def fuse_linear_bn_weights(
    linear_w: Tensor,
    linear_b: Tensor | None,
    bn_rm: Tensor,
    bn_rv: Tensor,
    bn_eps: float,
    bn_w: Tensor,
    bn_b: Tensor,
) -> tuple[Parameter, Parameter]:
    """Return weight and bias of a linear layer that does the normalisation too."""
    return _fused(linear_w, linear_b, bn_rm, bn_rv, bn_eps, bn_w, bn_b, 0)


def _check(layer: Module, bn: Any) -> None:
    if layer.training or bn.training:
        raise AssertionError("Fusion only for eval!")
    if bn.running_mean is None or bn.running_var is None:
        raise ArgumentError("the normalisation must track statistics to be fused")


def fuse_conv_bn_eval(conv: M, bn: Any, transpose: bool = False) -> M:
    """Return a copy of a convolution with the batch normalisation after it inside, both in eval.

    Args:
        conv: the convolution.
        bn: the normalisation.
        transpose: ``conv`` is a transposed convolution.
    """
    _check(conv, bn)
    fused: Any = copy.deepcopy(conv)
    fused.weight, fused.bias = fuse_conv_bn_weights(
        fused.weight, fused.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias,
        transpose,
    )  # fmt: skip
    out: M = fused
    return out


def fuse_linear_bn_eval(linear: M, bn: Any) -> M:
    """Return a copy of a linear layer with the batch normalisation after it inside, in eval."""
    _check(linear, bn)
    fused: Any = copy.deepcopy(linear)
    if fused.out_features != bn.num_features and bn.num_features != 1:
        raise AssertionError(
            "To fuse, linear.out_features == bn.num_features or bn.num_features == 1"
        )
    fused.weight, fused.bias = fuse_linear_bn_weights(
        fused.weight, fused.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
    )
    out: M = fused
    return out
