"""DistributedDataParallel: a module around a reducer.

Note [Join]
    In a block of `join`, every forward that trains tells the ranks that have run out of batches
    what it will need: whose buffers count, and whether backward sends. Those ranks weigh 0: the
    gradient is that of the samples that were there, whoever brought them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from distgrad.autograd.mode import mode
from distgrad.backend.device import CPU, bind_gpu, device, device_of, to_device
from distgrad.backend.random import Generator, current_generator, use_generator
from distgrad.config import switch
from distgrad.distributed import get_group, is_initialized
from distgrad.distributed.algorithms.join import Join, Joinable, JoinHook
from distgrad.distributed.comm_hooks import Hook, HookedReduction
from distgrad.distributed.group import ProcessGroup, check_same
from distgrad.distributed.reducer import Reducer
from distgrad.distributed.sharded import ShardedReducer
from distgrad.errors import ArgumentError, ArgumentTypeError, DistributedError, GradError, describe
from distgrad.nn.module import Module
from distgrad.nn.modules.syncbatchnorm import SyncBatchNorm
from distgrad.nn.parallel.defaults import default_group, samples_in
from distgrad.nn.parallel.guard import guard

_IGNORED = "_ddp_params_and_buffers_to_ignore"


class DistributedDataParallel(Module, Joinable):
    """Trains ``module`` on all ranks of a group: gradients are averaged while backward runs.

    Args:
        module: the model; its parameters become views of flat buckets, and so do their gradients.
        device_ids, output_device, dim: accepted for PyTorch's sake; the module's device counts.
        broadcast_buffers: give every rank the buffers of rank 0 before a forward that trains,
            outside no_sync().
        init_sync: give every rank the parameters and buffers of rank 0 at the start.
        process_group: the ranks; default is the default group, made if there is none.
        bucket_cap_mb: MiB of gradients that travel together (default 25, the first 1).
        find_unused_parameters, check_reduction, gradient_as_bucket_view, static_graph,
            delay_all_reduce_named_params, param_to_hook_all_reduce: accepted; unused parameters are
            found at the end of backward at no cost, gradients are views of buckets always, and a
            bucket goes when it is complete.
        mixed_precision: None only; use autocast, and ``bf16_compress_hook`` for smaller messages.
        reduction: "mean" where the loss is a mean over the local batch, "sum" where it is a sum.
            Either way the gradient is that of the mean over the global batch.
        determinism: "off" lets the MPI library add in an order of its own; "run" gives the same
            bits on the same ranks; "world" gives the same bits on any number of ranks. Default is
            what the launcher was told, or "run".
        shards: with "world", into how many equal parts V the global batch is always cut (default:
            one for each rank). Each rank runs one forward and backward for each of its parts,
            which ``local_shards`` numbers; the last one communicates. Random numbers drawn in
            forward belong to the part; elsewhere, draw what does not depend on the rank.
        shard_gradients: leave to each rank the mean gradients of 1/P of the elements, and drop the
            rest as soon as it is summed (ZeRO-2). After backward ``grad`` is None; it takes
            `distgrad.distributed.optim.ZeroRedundancyOptimizer` and ``clip_grad_norm_``, which
            know where the gradients are. Means of several backwards are added, as PyTorch does.
        check_every: after every so many reductions, compare digests of all parameters, and raise
            on all ranks if one has other values. The number of the step and the settings of a
            ZeroRedundancyOptimizer are compared in each reduction, at no cost.

    Units: a sample is an entry of the first dimension of the first tensor that forward gets; call
        ``add_count`` to count otherwise, in tokens for example, or forward is called without
        tensors.

    Ranks: all construct it, with the same parameters in the same order; a difference is named on
        every rank.

    Example:
        >>> import distgrad as dg
        >>> model = DistributedDataParallel(dg.nn.Linear(3, 1))
        >>> model(dg.ones(4, 3)).mean().backward()
        >>> model.module.bias.grad
        tensor([1.])
    """

    def __init__(
        self,
        module: Module,
        device_ids: Sequence[int] | None = None,
        output_device: Any = None,
        dim: int = 0,
        broadcast_buffers: bool = True,
        init_sync: bool = True,
        process_group: ProcessGroup | None = None,
        bucket_cap_mb: float | None = None,
        find_unused_parameters: bool = False,
        check_reduction: bool = False,
        gradient_as_bucket_view: bool = True,
        static_graph: bool = False,
        delay_all_reduce_named_params: Any = None,
        param_to_hook_all_reduce: Any = None,
        mixed_precision: None = None,
        *,
        reduction: str = "mean",
        determinism: str | None = None,
        shards: int | None = None,
        shard_gradients: bool = False,
        check_every: int | None = None,
    ) -> None:
        """Lay out and compare the parameters, and start from those of rank 0."""
        super().__init__()
        if mixed_precision is not None:
            raise ArgumentError(
                f"DistributedDataParallel(mixed_precision={mixed_precision!r}): parameters have "
                "one precision; use autocast, and bf16_compress_hook for smaller messages"
            )
        self.module, self.dim = module, dim
        self.device_ids, self.output_device = device_ids, output_device
        self.broadcast_buffers = broadcast_buffers
        self.find_unused_parameters, self.static_graph = find_unused_parameters, static_graph
        self.gradient_as_bucket_view = gradient_as_bucket_view
        self.parameters_to_ignore = set(getattr(module, _IGNORED, ()))
        self.shard_gradients = shard_gradients
        self._how = reduction, bucket_cap_mb, determinism or switch("determinism") or "run", shards
        self.check_every = check_every
        for p in module.parameters():  # the rank's own GPU from now on, as PyTorch demands
            bind_gpu(p.device)
            break
        self._connect(process_group if process_group is not None else default_group())
        if init_sync:
            self.reducer.broadcast_parameters()
            self._broadcast_buffers()

    def _connect(self, group: ProcessGroup, plan: list[list[int]] | None = None) -> None:
        """Start to reduce the gradients over ``group``."""
        self.process_group = group
        ignored = self.parameters_to_ignore
        named = [(n, p) for n, p in self.module.named_parameters() if n not in ignored]
        if not any(p.requires_grad for _, p in named):
            raise GradError(
                "DistributedDataParallel is not needed when a module doesn't have any parameters "
                "that require a gradient."
            )
        reduction, bucket_cap_mb, determinism, shards = self._how
        kind = ShardedReducer if self.shard_gradients else Reducer
        reducer = kind(
            named, group, reduction, bucket_cap_mb, determinism, shards, self.check_every, plan
        )
        self.reducer, module = reducer, self.module
        reducer.gathering.guard = lambda: guard(module, reducer)
        self._generator, self._place = Generator(), (0, 0, -1)
        self._seed = group.broadcast_object(current_generator().initial_seed())
        self._synced = [m for m in self.module.modules() if isinstance(m, SyncBatchNorm)]
        self._bind_batch_norms()

    def _bind_batch_norms(self) -> None:
        """Let batch norms over all ranks know how much this one weighs."""
        reducer = self.reducer
        if self._synced and reducer.tree.shards > self.process_group.size:
            raise ArgumentError(
                f"DistributedDataParallel(shards={reducer.tree.shards}): SyncBatchNorm needs all "
                "shards at once, and a rank has several, one after the other; use BatchNorm, whose "
                "statistics are of a shard, or as many ranks as shards"
            )
        for module in self._synced:
            module.bind(
                self.process_group,
                lambda: float(reducer.count) if reducer.reduction == "mean" else 1.0,
            )

    def rebuild(self, group: ProcessGroup | None = None, reductions: int | None = None) -> None:
        """Go on with the ranks that `distgrad.distributed.shrink` has left.

        The gradients of a backward that did not come to its end are dropped; do it anew. The
        parameters must be alike on all ranks, as they are after the last update that all made.
        With ``determinism="world"`` the next gradients have the bits that they would have had.

        Args:
            group: default is the default group.
            reductions: how many backwards count as done, by which random numbers of forward go
                with "world"; default is the number that all ranks have come to.

        Ranks: all that are left.
        """
        old, seed = self.reducer, self._seed
        old.close()
        group = group if group is not None else default_group()
        done = np.array([old.reductions if reductions is None else reductions])
        group.all_reduce(done, "min")
        self.module.zero_grad()
        if old.determinism == "world":  # the parts of the batch stay what they are
            self._how = (*self._how[:3], old.tree.shards)
        self._connect(group, group.broadcast_object(old.plan))
        self.reducer.reductions, self._seed = int(done[0]), seed
        self.reducer.timeline = old.timeline
        if old.comm is not None:
            self.reducer.comm = old.comm.for_reducer(self.reducer)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a copy; the copy belongs to the default group.

        Raises:
            DistributedError: this one belongs to another.
        """
        default = get_group() if is_initialized() else self.process_group
        if default is not self.process_group:
            raise DistributedError(
                "DistributedDataParallel: DDP Pickling/Unpickling are only supported when using "
                "DDP with the default process group; copy ddp.module instead"
            )
        left = ("process_group", "reducer", "_generator", "_synced", "_join_config")
        return {k: v for k, v in self.__dict__.items() if k not in left}

    def __setstate__(self, saved: dict[str, Any]) -> None:
        """Connect a copy; all ranks do so together. A communication hook is not copied."""
        super().__setstate__(saved)
        self._connect(default_group())

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Return ``module(*inputs, **options)``, counting the samples."""
        if mode.grad:
            self.reducer.begin()
            source = self._announce() if self._join_config.enable else 0
            if self.will_sync_module_buffers() and self._begins_step():
                self._broadcast_buffers(source)
            if not self.reducer.explicit_count:
                self.reducer.count += samples_in(inputs, options, self.dim)
        if self.reducer.determinism != "world" or not self.training:
            return self.module(*inputs, **options)
        with use_generator(self._stream()):
            return self.module(*inputs, **options)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of all parameters, or fill them with zeros."""
        super().zero_grad(set_to_none)
        self.reducer.drop()

    def will_sync_module_buffers(self) -> bool:
        """Return whether a forward now would give every rank the same buffers."""
        return self.broadcast_buffers and self.training and self.reducer.enabled

    def _begins_step(self) -> bool:
        """Return whether a forward now is one that every rank makes: the first of its shards.

        Ranks may have different numbers of shards of a global batch.
        """
        own = self.reducer.local_shards
        return len(own) < 2 or self.reducer.shard == own[0]

    def _stream(self) -> Generator:
        """Return the random numbers of the shard at hand: the same whichever rank has it."""
        place = (self._seed, self.reducer.reductions, self.reducer.shard)
        if self._place != place:
            digest = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
            self._generator.manual_seed(int.from_bytes(digest, "little"))
            self._place = place
        return self._generator

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Only accumulate gradients in backwards inside the block; the next one outside sends."""
        with self.reducer.no_sync():
            yield

    @property
    def local_shards(self) -> range:
        """The parts of the global batch that this rank computes, one backward for each."""
        return self.reducer.local_shards

    def add_count(self, samples: int) -> None:
        """Weigh this rank by ``samples``, instead of by the length of its batches.

        Call it before the backward that sends; counts of several calls add up, until then.
        """
        self.reducer.add_count(samples)

    @property
    def require_backward_grad_sync(self) -> bool:
        """Whether the next backward sends; may be set, as `no_sync` does."""
        return self.reducer.enabled

    @require_backward_grad_sync.setter
    def require_backward_grad_sync(self, sync: bool) -> None:
        self.reducer.enabled = sync

    def _set_static_graph(self) -> None:
        """Note that the graph is the same in each iteration; nothing depends on it."""
        self.static_graph = True

    @staticmethod
    def _set_params_and_buffers_to_ignore_for_model(
        module: Module, params_and_buffers_to_ignore: Iterable[str]
    ) -> None:
        """Leave these names of ``module`` to each rank; call before wrapping it."""
        setattr(module, _IGNORED, list(params_and_buffers_to_ignore))

    def register_comm_hook(self, state: Any, hook: Hook) -> None:
        """Let ``hook(state, bucket)`` average each bucket over the ranks.

        It is called in backward when a bucket is complete, in the order of the buckets, and returns
        the future of the mean over ranks of ``bucket.buffer()``; it divides by the number of ranks
        itself. Means over the samples stay exact if the hook is linear; see Note [Exact means with
        hooks] in `distgrad.distributed.comm_hooks`. Once only, between two iterations.

        With several shards on a rank the hook gets their sum, once; with ``shard_gradients`` it
        still averages whole buckets, of which each rank keeps what it owns.

        Ranks: all, with the same hook.
        """
        if not callable(hook):
            raise ArgumentTypeError(
                f"register_comm_hook(hook: {describe(hook)}): Communication hook must be callable."
            )
        reducer = self.reducer
        if reducer.comm is not None:
            raise DistributedError(
                "register_comm_hook(): register_comm_hook can only be called once for a model"
            )
        name = getattr(hook, "__qualname__", type(hook).__qualname__)
        check_same(self.process_group.channel("control"), "communication hook", name)
        reducer.comm = HookedReduction(reducer, state, hook)

    # ------------------------------------------------------------------ uneven inputs
    def join(
        self,
        divide_by_initial_world_size: bool = True,
        enable: bool = True,
        throw_on_early_termination: bool = False,
    ) -> Join:
        """Return a block in which ranks may have different numbers of batches.

        A rank that has left it takes part in the reductions of the others with nothing, until all
        have left; then all get the parameters and buffers of a rank that trained to the end. One
        backward belongs to each forward that trains. It goes on with the steps of the others as
        well, where a `ZeroRedundancyOptimizer` has these parameters; but not with other collectives
        of the loop, such as ``clip_grad_norm_`` where gradients are kept by their owners.

        Args:
            divide_by_initial_world_size: accepted; there is no division by a number of ranks, but
                by the number of samples that were there, so ranks without any make no difference.
            enable: False makes the block a plain one.
            throw_on_early_termination: raise on all ranks as soon as one has left; SyncBatchNorm
                needs it, as the statistics are of all ranks.
        """
        return Join([self, *self.reducer.followers], enable, throw_on_early_termination)

    def join_hook(self, **options: Any) -> JoinHook:
        """Return what shadows the forward and backward of the other ranks.

        Args:
            options: ``divide_by_initial_world_size`` is accepted, as in `join`.
        """
        if self.reducer.tree.shards > self.process_group.size:
            raise ArgumentError(
                f"join(): each rank has several of {self.reducer.tree.shards} shards, and with "
                "shards the ranks have the same number of steps; give a shard no samples instead"
            )
        return _Shadow(self)

    @property
    def join_device(self) -> device:
        """Where the parameters are."""
        return next(p.device for _, p in self.reducer.named)

    @property
    def join_process_group(self) -> ProcessGroup:
        """The ranks."""
        return self.process_group

    def _announce(self) -> int:
        """Tell ranks without batches about this forward; returns the rank whose buffers count."""
        if self._synced and not self._join_config.throw_on_early_termination:
            raise ArgumentError(
                "join(): SyncBatchNorm takes the statistics of all ranks, and ranks without "
                "batches have none; use join(throw_on_early_termination=True)"
            )
        Join.notify_join_context(self)
        plan = [self.process_group.rank + 1, self.reducer.enabled, self.will_sync_module_buffers()]
        return self._agree(plan)[0] - 1

    def _agree(self, plan: Sequence[int]) -> list[int]:
        agreed = np.array(plan, np.int64)
        self.process_group.channel("control").all_reduce(agreed, "max")
        return [int(value) for value in agreed]

    def _broadcast_buffers(self, src: int = 0) -> None:
        if self.process_group.size == 1:
            return
        channel = self.process_group.channel("control")
        for name, buffer in self.module.named_buffers():
            if name in self.parameters_to_ignore:
                continue
            array = buffer.array
            host = np.ascontiguousarray(to_device(array, CPU)).reshape(array.shape)
            channel.broadcast(host, src)
            array[...] = to_device(host, device_of(array))


class _Shadow(JoinHook):
    """What a model without batches does."""

    def __init__(self, ddp: DistributedDataParallel) -> None:
        self._ddp = ddp

    def main_hook(self) -> None:
        """Take part in the buffers and the reduction of one iteration."""
        ddp = self._ddp
        rank, sends, buffers = ddp._agree([0, 0, 0])
        if buffers:
            ddp._broadcast_buffers(rank - 1)
        if sends:
            ddp.reducer.shadow()

    def post_hook(self, is_last_joiner: bool) -> None:
        """Take parameters and buffers of the last rank that trained to the end.

        The gradients of others go: the last step was made with them.
        """
        ddp = self._ddp
        if not is_last_joiner:
            ddp.zero_grad()
        source = ddp._agree([ddp.process_group.rank + 1 if is_last_joiner else 0])[0] - 1
        ddp.reducer.broadcast_parameters(source)
        ddp._broadcast_buffers(source)
