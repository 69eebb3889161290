"""Gradients averaged over all ranks for some steps, then within subgroups only.

Note [Local SGD]
    After ``start_localSGD_iter`` steps the ranks of a subgroup, by default those of one host, go on
    by themselves; `PostLocalSGDOptimizer` averages the parameters over all ranks from time to time.
    A subgroup's gradient is weighed by its share of the samples, so that to first order the average
    of the parameters has moved by the gradient of the big batch, however unevenly samples lie.
    Flags of used parameters and counts still go to all ranks in each step: some bytes for each
    parameter, so that what lost step or ran out of samples is named.
    (Lin, Stich, Patel, Jaggi, "Don't Use Large Mini-Batches, Use Local SGD", 2020.)
"""

from __future__ import annotations

from typing import Any

from distgrad.distributed.algorithms.ddp_comm_hooks.debugging_hooks import noop_hook
from distgrad.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from distgrad.distributed.comm_hooks import GradBucket
from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.subgroups import new_subgroups
from distgrad.errors import ArgumentError
from distgrad.futures import Future
from distgrad.tensor import Tensor


class PostLocalSGDState:
    """When and where gradients are averaged.

    Args:
        process_group: the ranks at first; default is the group of the DistributedDataParallel.
        subgroup: those after that; default is the ranks of this host, made when it is needed.
        start_localSGD_iter: steps with all ranks.
        post_local_gradient_allreduce: False leaves each rank its own gradients after that.
    """

    def __init__(
        self,
        process_group: ProcessGroup | None,
        subgroup: ProcessGroup | None,
        start_localSGD_iter: int,
        post_local_gradient_allreduce: bool = True,
    ) -> None:
        if start_localSGD_iter < 0:
            raise ArgumentError(
                f"PostLocalSGDState(start_localSGD_iter={start_localSGD_iter}): a number of steps "
                "is 0 or more"
            )
        self.process_group, self.subgroup = process_group, subgroup
        self.start_localSGD_iter = start_localSGD_iter
        self.post_local_gradient_allreduce = post_local_gradient_allreduce
        self.iter = 0

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a checkpoint, which holds no process groups."""
        return {**self.__dict__, "process_group": None, "subgroup": None}

    def maybe_increase_iter(self, bucket: GradBucket) -> None:
        """Count a step with its last bucket."""
        if bucket.is_last():
            self.iter += 1


def post_localSGD_hook(state: PostLocalSGDState, bucket: GradBucket) -> Future[Tensor]:
    """Average over all ranks at first, later over those of a subgroup; see Note [Local SGD]."""
    local = state.iter >= state.start_localSGD_iter
    state.maybe_increase_iter(bucket)
    if not local:
        return allreduce_hook(state.process_group, bucket)
    if not state.post_local_gradient_allreduce:
        return noop_hook(None, bucket)
    if state.subgroup is None:
        made, _ = new_subgroups(group=bucket.group(state.process_group))
        assert isinstance(made, ProcessGroup)
        state.subgroup = made
    return allreduce_hook(state.subgroup, bucket)
