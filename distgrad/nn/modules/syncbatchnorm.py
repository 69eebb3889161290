"""Batch normalisation over the batches of all ranks.

Note [One collective each way]
    Forward collects count, mean and sum of squared deviations of every rank, 2C + 1 numbers, and
    each rank combines them in rank order: the same bits everywhere, nothing cancels as in
    E[x²] - E[x]². Backward collects the sums of g and of g·(x - mean). Both run on the group's
    "control" channel, so buckets travel beside them.

Note [Weights]
    Through the common statistics, the loss of every rank reaches the input of every other. Inside
    DistributedDataParallel with ``reduction="mean"``, rank s brings a mean that weighs w_s, its
    count, and what rank r computes is multiplied by w_r afterwards. So the sums that reach rank r
    weigh w_s / w_r, and the gradient is that of the big batch for uneven counts too. The adjoint of
    a sum of weight 1 is then the sum with these weights, and the other way round.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from distgrad.autograd.function import Function
from distgrad.autograd.mode import mode
from distgrad.backend.device import CPU, array_namespace, device_of, to_device
from distgrad.distributed.default import default_group
from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.nccl import Turn, link_of
from distgrad.errors import ArgumentError
from distgrad.nn.module import Module
from distgrad.nn.modules.batchnorm import _BatchNorm
from distgrad.ops.reduce import sum as sum_of
from distgrad.ops.shape import reshape
from distgrad.tensor import Tensor, shared_of, wrap

Weight = Callable[[], float]


class SyncBatchNorm(_BatchNorm):
    """Normalises each channel of (N, C, *) over the batches of all ranks, on CPU and GPU.

    Each sample weighs the same, however unevenly they lie; a rank may have none. In evaluation, on
    one rank and without a process group it is ``BatchNorm``.

    Ranks: in training, forward and backward are collectives of the group. Join needs
        ``throw_on_early_termination=True``, as a rank without data cannot take part.

    Example:
        >>> import distgrad as dg
        >>> dg.nn.SyncBatchNorm.convert_sync_batchnorm(dg.nn.Sequential(dg.nn.BatchNorm1d(3)))
        Sequential(
          (0): SyncBatchNorm(3, eps=1e-05, momentum=0.1, affine=True, bias=True,
          track_running_stats=True)
        )
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: ProcessGroup | None = None,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> None:
        """Start with scale 1, shift 0, running mean 0 and running variance 1.

        Args:
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias: as in
                ``BatchNorm1d``.
            process_group: the ranks; default is the group of the DistributedDataParallel around it,
                else the default group.
        """
        super().__init__(
            num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias
        )
        self.process_group = process_group
        self._around: tuple[ProcessGroup, Weight] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a copy, which belongs to no DistributedDataParallel."""
        return {**self.__dict__, "_around": None}

    def bind(self, group: ProcessGroup, weight: Weight) -> None:
        """Belong to a DistributedDataParallel on ``group``; see Note [Weights].

        Args:
            weight: returns what this rank's loss will weigh, at the time of backward.
        """
        self._around = group, weight

    def _check_input_dim(self, input: Tensor) -> None:
        shape = input.array.shape
        if len(shape) < 2:
            raise ArgumentError(
                f"SyncBatchNorm({input._brief()}): expected at least 2D input (got "
                f"{len(shape)}D input)"
            )
        if shape[1] != self.num_features:
            raise ArgumentError(
                f"SyncBatchNorm({input._brief()}): the input has {shape[1]} channels and "
                f"num_features is {self.num_features}; dimension 1 must hold the channels"
            )

    def forward(self, input: Tensor) -> Tensor:
        """Return the input normalised over all ranks, or by running statistics in evaluation."""
        group, weight = self._around or (default_group(), _one)
        group = self.process_group or group
        if not self.training or group is None or group.size == 1:
            return super().forward(input)
        self._check_input_dim(input)
        out, mean, var, total = _SyncNorm.apply(
            input, self.weight, self.bias, self.eps, group.channel("control"), weight
        )
        if self.track_running_stats:
            self._track(mean.array, var.array * (total / max(total - 1, 1)))
        return out  # type: ignore[no-any-return]

    def _track(self, mean: Any, var: Any) -> None:
        """Move the running statistics towards those of this batch."""
        factor = 0.0 if self.momentum is None else self.momentum
        counted = self.num_batches_tracked
        if counted is not None:
            counted.array += 1
            if self.momentum is None:
                factor = 1.0 / float(counted.array)
        for running, new in ((self.running_mean, mean), (self.running_var, var)):
            if running is not None:
                running.array[...] = running.array * (1 - factor) + factor * new
                shared_of(running).bump()

    @classmethod
    def convert_sync_batchnorm(
        cls, module: Module, process_group: ProcessGroup | None = None
    ) -> Module:
        """Return ``module`` with a SyncBatchNorm in the place of each BatchNorm, in place.

        Parameters and buffers are the same objects; so make the optimizer before or after.
        """
        out = module
        if isinstance(module, _BatchNorm):
            new = cls(
                module.num_features, module.eps, module.momentum, module.affine,
                module.track_running_stats, process_group,
            )  # fmt: skip
            new._parameters = module._parameters
            new._buffers = module._buffers
            new.training = module.training
            out = new
        for name, child in module.named_children():
            setattr(out, name, cls.convert_sync_batchnorm(child, process_group))
        return out


def _one() -> float:
    return 1.0


class _SyncNorm(Function):
    """The normalised input, mean and variance of all ranks, and their number of values."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        scale: Tensor | None,
        shift: Tensor | None,
        eps: float,
        group: ProcessGroup,
        weight: Weight,
    ) -> tuple[Tensor, Tensor, Tensor, float]:
        images = _by_channel(x.array)
        mean, var, total = _statistics(images, group, x)
        out = images - mean[:, None]
        factor = 1 / array_namespace(images).sqrt(var + eps)
        out *= (factor if scale is None else factor * scale.array)[:, None]
        if shift is not None:
            out += shift.array[:, None]
        ctx.save_for_backward(x, scale)
        ctx.mean, ctx.var, ctx.total, ctx.eps = mean, var, total, eps
        ctx.group, ctx.weight, ctx.has_shift = group, weight, shift is not None
        found = wrap(mean), wrap(var)
        ctx.mark_non_differentiable(*found)
        out = out.reshape(x.array.shape).astype(x.array.dtype, copy=False)
        return wrap(out), *found, total

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, scale = ctx.saved_tensors
        make = _with_history if mode.grad else _by_arrays
        d_x, d_scale, d_shift = make(ctx, g, x, scale)
        return (
            d_x,
            None if scale is None else d_scale,
            d_shift if ctx.has_shift else None,
            *[None] * 3,
        )


def _by_channel(x: Any) -> Any:
    """Return ``x`` as (N, C, L), half precision in float32."""
    places = int(np.prod(x.shape[2:]))
    x = x.reshape(*x.shape[:2], places)
    return x.astype(np.float32) if x.dtype.itemsize == 2 else x


def _statistics(images: Any, group: ProcessGroup, x: Tensor) -> tuple[Any, Any, float]:
    """Return mean, biased variance and number of values of each channel over all ranks."""
    xp, channels = array_namespace(images), images.shape[1]
    count = images.shape[0] * images.shape[2]
    mean = images.sum(axis=(0, 2)) / max(count, 1)
    centred = images - mean[:, None]
    centred *= centred
    here = xp.concatenate([mean, centred.sum(axis=(0, 2))])
    rows, numbers = _gather(group, count, here)
    counts, means, squares = rows[:, :1], rows[:, 1 : channels + 1], rows[:, channels + 1 :]
    total = float(numbers.sum())
    if total < 2:
        raise ArgumentError(
            f"SyncBatchNorm({x._brief()}): Expected more than 1 value per channel when training, "
            f"and all {group.size} ranks together have {int(total)}; use a larger batch"
        )
    whole = (counts * means).sum(0) / total
    spread = (squares + counts * (means - whole) ** 2).sum(0) / total
    both = array_namespace(whole).stack([whole, spread]).astype(images.dtype)
    both = to_device(both, device_of(images))
    return both[0], both[1], total


def _gather(group: ProcessGroup, number: float, array: Any) -> tuple[Any, Any]:
    """Return number and array of every rank as rows in float64, and the numbers on the host.

    The rows are on the GPU where NCCL brings them, else on the host.
    """
    link = link_of(group, array, "statistics")
    if link is not None:
        xp = array_namespace(array)
        numbers = np.zeros(group.size)
        numbers[group.rank] = number
        group.all_reduce(numbers)  # the host knows its own, so it waits for no GPU
        here = xp.concatenate([xp.full(1, number, np.float64), array.astype(np.float64)])
        return Turn(link).all_gathered("all_gather(statistics)", here), numbers
    rows = np.zeros((group.size, 1 + array.size))
    rows[group.rank, 0], rows[group.rank, 1:] = number, to_device(array, CPU)
    group.all_reduce(rows)  # a sum with zeros is exact, and a small one faster than all_gather
    return rows, rows[:, 0]


def _rank_sum(array: Any, group: ProcessGroup, weight: float, weighted: bool) -> Any:
    """Return the sum over ranks, where rank s weighs 1, or w_s / w_r on rank r.

    What weighs nothing may be no number, and counts as 0.
    """
    rows, weights = _gather(group, weight, array)
    values = rows[:, 1:]
    factors = weights / (weight or 1.0) if weighted else np.ones(len(rows))
    total = array_namespace(rows).zeros(values.shape[1])
    for factor, row, own in zip(factors.tolist(), values, weights, strict=True):
        if own or not weighted:
            total += factor * row
    return to_device(total.astype(array.dtype), device_of(array))


class _RankSum(Function):
    """The sum over ranks as a differentiable function; see Note [Weights]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup, weight: float, weighted: bool) -> Tensor:
        ctx.how = group, weight, not weighted
        return wrap(_rank_sum(x.array, group, weight, weighted))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        return _RankSum.apply(g, *ctx.how), None, None, None


def _by_arrays(ctx: Any, g: Tensor, x: Tensor, scale: Tensor | None) -> tuple[Tensor, ...]:
    """Return the gradients: dx = w·r·(g - mean(g) - x̂·mean(g·x̂)), the means over all ranks."""
    xp, gs, images = array_namespace(x.array), _by_channel(g.array), _by_channel(x.array)
    centred = images - ctx.mean[:, None]
    d_shift, moment = gs.sum(axis=(0, 2)), (gs * centred).sum(axis=(0, 2))
    sums = _rank_sum(xp.concatenate([d_shift, moment]), ctx.group, ctx.weight(), True)
    sum_g, sum_gx = sums.reshape(2, -1) / ctx.total
    inverse = 1 / xp.sqrt(ctx.var + ctx.eps)
    centred *= (-inverse * inverse * sum_gx)[:, None]
    centred += gs
    centred -= sum_g[:, None]
    centred *= (inverse if scale is None else inverse * scale.array)[:, None]
    d_x = centred.reshape(x.array.shape).astype(x.array.dtype, copy=False)
    kind = x.array.dtype if scale is None else scale.array.dtype
    sides = (moment * inverse, d_shift)
    return wrap(d_x), *[wrap(side.astype(kind, copy=False)) for side in sides]


def _with_history(ctx: Any, g: Tensor, x: Tensor, scale: Tensor | None) -> tuple[Tensor, ...]:
    """Return the same gradients as functions of g, x and scale, statistics computed anew."""
    dims, shape = (0, *range(2, x.ndim)), (1, -1) + (1,) * (x.ndim - 2)
    weight = ctx.weight()

    def mean_of(values: Tensor, weighted: bool) -> Tensor:
        total = _RankSum.apply(sum_of(values, dims), ctx.group, weight, weighted)
        return reshape(total / ctx.total, shape)

    centred = x - mean_of(x, False)
    inverse = (mean_of(centred * centred, False) + ctx.eps) ** -0.5
    normal = centred * inverse
    d_x = (g - mean_of(g, True) - normal * mean_of(g * normal, True)) * inverse
    if scale is not None:
        d_x = d_x * reshape(scale, shape)
    return d_x, sum_of(g * normal, dims), sum_of(g, dims)
