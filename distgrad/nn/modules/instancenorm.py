"""Layers that normalise each channel of each sample."""

from __future__ import annotations

import warnings
from typing import Any

from distgrad.errors import ArgumentError
from distgrad.nn import functional as F
from distgrad.nn.modules.batchnorm import LazyNormBase, _NormBase
from distgrad.ops.shape import squeeze, unsqueeze
from distgrad.tensor import Tensor


class _InstanceNorm(_NormBase):
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        """Start without learned scale and without running statistics by default."""
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias
        )

    def _check_channels(self, input: Tensor) -> None:
        dim = input.array.ndim - self._dims[0]
        size = input.array.shape[dim]
        if size == self.num_features:
            return
        if self.affine:
            raise ArgumentError(
                f"{type(self).__name__}({input._brief()}): expected input's size at dim={dim} to "
                f"match num_features ({self.num_features}), but got: {size}."
            )
        warnings.warn(
            f"input's size at dim={dim} does not match num_features. You can silence this warning "
            "by not passing in num_features, which is not used because affine=False",
            stacklevel=3,
        )

    def forward(self, input: Tensor) -> Tensor:
        """Return the input with each channel of each sample normalised."""
        self._check_input_dim(input)
        self._check_channels(input)
        batched = input.array.ndim == self._dims[1]
        out = F.instance_norm(
            input if batched else unsqueeze(input, 0),
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training or not self.track_running_stats,
            0.0 if self.momentum is None else self.momentum,
            self.eps,
        )
        return out if batched else squeeze(out, 0)


class InstanceNorm1d(_InstanceNorm):
    """Normalises each channel of each sample of (N, C, L) or (C, L)."""

    _dims = (2, 3)


class InstanceNorm2d(_InstanceNorm):
    """Normalises each channel of each sample of (N, C, H, W) or (C, H, W)."""

    _dims = (3, 4)


class InstanceNorm3d(_InstanceNorm):
    """Normalises each channel of each sample of (N, C, D, H, W) or (C, D, H, W)."""

    _dims = (4, 5)


# ---------------------------------------------------------------------- channels known later
class _LazyInstanceNorm(LazyNormBase, _InstanceNorm):
    def _channel_dim(self, input: Tensor) -> int:
        dim: int = input.ndim - self._dims[0]
        return dim


class LazyInstanceNorm1d(_LazyInstanceNorm, InstanceNorm1d):
    """An ``InstanceNorm1d`` whose ``num_features`` its first input tells."""

    cls_to_become = InstanceNorm1d


class LazyInstanceNorm2d(_LazyInstanceNorm, InstanceNorm2d):
    """An ``InstanceNorm2d`` whose ``num_features`` its first input tells."""

    cls_to_become = InstanceNorm2d


class LazyInstanceNorm3d(_LazyInstanceNorm, InstanceNorm3d):
    """An ``InstanceNorm3d`` whose ``num_features`` its first input tells."""

    cls_to_become = InstanceNorm3d
