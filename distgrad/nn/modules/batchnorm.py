"""Layers that normalise each channel over a batch."""

from __future__ import annotations

from typing import Any

from distgrad.backend.device import working_on
from distgrad.backend.dtype import int64
from distgrad.errors import ArgumentError
from distgrad.nn import functional as F
from distgrad.nn.module import Module
from distgrad.nn.modules.lazy import LazyModuleMixin
from distgrad.nn.modules.normalization import affine_parameters, reset_affine
from distgrad.nn.parameter import UninitializedBuffer, UninitializedParameter
from distgrad.ops.create import ones, tensor, zeros
from distgrad.tensor import Tensor, shared_of


class _NormBase(Module):
    """Scale, shift and running statistics of ``num_features`` channels."""

    _version = 2
    _dims: tuple[int, ...] = ()  # numbers of dimensions that the input may have
    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float,
        momentum: float | None,
        affine: bool,
        track_running_stats: bool,
        device: Any,
        dtype: Any,
        bias: bool,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        affine_parameters(self, num_features, affine, bias, device, dtype)
        stats: tuple[Any, Any, Any] = (None, None, None)
        if track_running_stats:
            stats = (
                zeros(num_features, device=device, dtype=dtype),
                ones(num_features, device=device, dtype=dtype),
                tensor(0, dtype=int64, device=device),
            )
        for name, value in zip(
            ("running_mean", "running_var", "num_batches_tracked"), stats, strict=True
        ):
            self.register_buffer(name, value)
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Forget the statistics of earlier batches."""
        for buffer, value in (
            (self.running_mean, 0),
            (self.running_var, 1),
            (self.num_batches_tracked, 0),
        ):
            if buffer is not None:
                buffer.array[...] = value
                shared_of(buffer).bump()

    def reset_parameters(self) -> None:
        """Forget the statistics and set scale 1 and shift 0."""
        self.reset_running_stats()
        reset_affine(self)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.array.ndim not in self._dims:
            wanted = " or ".join(f"{n}D" for n in self._dims)
            raise ArgumentError(
                f"{type(self).__name__}({input._brief()}): expected {wanted} input "
                f"(got {input.array.ndim}D input)"
            )

    def extra_repr(self) -> str:
        """Return the number of features and the options."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, "
            f"affine={self.affine}, bias={self.bias is not None}, "
            f"track_running_stats={self.track_running_stats}"
        )

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # Before version 2 there was no count of batches.
        version, tracked = local_metadata.get("version"), self.num_batches_tracked
        if (version is None or version < 2) and tracked is not None:
            state_dict.setdefault(prefix + "num_batches_tracked", tracked)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


class _BatchNorm(_NormBase):
    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        """Start with scale 1, shift 0, running mean 0 and running variance 1.

        Args:
            num_features: number of channels.
            eps: added to the variance.
            momentum: weight of a new batch in the running statistics; None: plain average.
            affine: learn a scale and, with ``bias``, a shift for each channel.
            track_running_stats: keep statistics of the batches for evaluation.
            device: where parameters and buffers live.
            dtype: of parameters and buffers.
            bias: learn the shift.
        """
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias
        )

    def forward(self, input: Tensor) -> Tensor:
        """Return the input normalised by this batch, or by the running statistics in evaluation."""
        self._check_input_dim(input)
        average = self.training and self.track_running_stats
        factor = 0.0 if self.momentum is None else self.momentum
        counted = self.num_batches_tracked
        if average and counted is not None:
            with working_on(counted.array):
                counted.array += 1  # by itself: the count takes part in no graph
            if self.momentum is None:
                factor = 1.0 / float(counted.array)
        own = not self.training or self.track_running_stats
        return F.batch_norm(
            input,
            self.running_mean if own else None,
            self.running_var if own else None,
            self.weight,
            self.bias,
            self.training or (self.running_mean is None and self.running_var is None),
            factor,
            self.eps,
        )


class BatchNorm1d(_BatchNorm):
    """Normalises each channel of (N, C) or (N, C, L) over the batch.

    In training by the batch's own mean and variance, in evaluation by running averages of them.
    """

    _dims = (2, 3)


class BatchNorm2d(_BatchNorm):
    """Normalises each channel of (N, C, H, W) over the batch; see ``BatchNorm1d``."""

    _dims = (4,)


class BatchNorm3d(_BatchNorm):
    """Normalises each channel of (N, C, D, H, W) over the batch; see ``BatchNorm1d``."""

    _dims = (5,)


# ---------------------------------------------------------------------- channels known later
class LazyNormBase(LazyModuleMixin, _NormBase):
    """A normalisation whose ``num_features`` its first input tells."""

    weight: Any
    bias: Any
    running_mean: Any
    running_var: Any

    def __init__(
        self,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        """Leave parameters and statistics without a shape."""
        super().__init__(0, eps, momentum, False, False, device, dtype, bias=bias)
        self.affine, self.track_running_stats = affine, track_running_stats
        if affine:
            self.weight = UninitializedParameter(device=device, dtype=dtype)
            if bias:
                self.bias = UninitializedParameter(device=device, dtype=dtype)
        if track_running_stats:
            self.running_mean = UninitializedBuffer(device=device, dtype=dtype)
            self.running_var = UninitializedBuffer(device=device, dtype=dtype)
            self.num_batches_tracked = tensor(0, dtype=int64, device=device)

    def reset_parameters(self) -> None:
        """Forget the statistics and set scale 1 and shift 0, once there is a shape."""
        if not self.has_uninitialized_params() and self.num_features != 0:
            super().reset_parameters()

    def initialize_parameters(self, input: Tensor) -> None:
        """Take the number of channels from ``input``."""
        self._check_input_dim(input)
        lazy = self.has_uninitialized_params()
        self.num_features = input.array.shape[self._channel_dim(input)]
        if lazy:
            open_ = (self.weight, self.bias, self.running_mean, self.running_var)
            for value in open_:
                if value is not None:
                    value.materialize((self.num_features,))
            self.reset_parameters()

    def _channel_dim(self, input: Tensor) -> int:
        return 1


class LazyBatchNorm1d(LazyNormBase, BatchNorm1d):
    """A ``BatchNorm1d`` whose ``num_features`` its first input tells."""

    cls_to_become = BatchNorm1d


class LazyBatchNorm2d(LazyNormBase, BatchNorm2d):
    """A ``BatchNorm2d`` whose ``num_features`` its first input tells."""

    cls_to_become = BatchNorm2d


class LazyBatchNorm3d(LazyNormBase, BatchNorm3d):
    """A ``BatchNorm3d`` whose ``num_features`` its first input tells."""

    cls_to_become = BatchNorm3d
