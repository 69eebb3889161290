"""DistributedDataParallel: a module around a reducer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from distgrad.autograd.mode import mode
from distgrad.backend.device import CPU, device_of, to_device
from distgrad.backend.random import Generator, current_generator, use_generator
from distgrad.config import switch
from distgrad.distributed import get_group, init_process_group, is_initialized, local_group
from distgrad.distributed.env import world_from_env
from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.reducer import Reducer
from distgrad.nn.module import Module
from distgrad.tensor import Tensor


class DistributedDataParallel(Module):
    """Trains ``module`` on all ranks of a group: gradients are averaged while backward runs.

    Args:
        module: the model; its parameters become views of flat buckets, and so do their gradients.
        device_ids, output_device, dim: accepted for PyTorch's sake; the module's device counts.
        broadcast_buffers: give every rank the buffers of rank 0 before a forward that trains.
        init_sync: give every rank the parameters and buffers of rank 0 at the start.
        process_group: the ranks; default is the default group, made if there is none.
        bucket_cap_mb: MiB of gradients that travel together (default 25, the first 1).
        find_unused_parameters, gradient_as_bucket_view, static_graph: accepted; unused parameters
            are found at the end of backward at no cost, gradients are views of buckets always.
        reduction: "mean" where the loss is a mean over the local batch, "sum" where it is a sum.
            Either way the gradient is that of the mean over the global batch.
        determinism: "off" lets the MPI library add in an order of its own; "run" gives the same
            bits on the same ranks; "world" gives the same bits on any number of ranks. Default is
            what the launcher was told, or "run".
        shards: with "world", into how many equal parts V the global batch is always cut (default:
            one for each rank). Each rank runs one forward and backward for each of its parts,
            which ``local_shards`` numbers; the last one communicates. Random numbers drawn in
            forward belong to the part; elsewhere, draw what does not depend on the rank.

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
        *,
        reduction: str = "mean",
        determinism: str | None = None,
        shards: int | None = None,
    ) -> None:
        """Lay out and compare the parameters, and start from those of rank 0."""
        super().__init__()
        self.module = module
        self.dim = dim
        self.process_group = process_group if process_group is not None else _default_group()
        self.broadcast_buffers = broadcast_buffers
        named = list(module.named_parameters())
        determinism = determinism or switch("determinism") or "run"
        self.reducer = Reducer(
            named, self.process_group, reduction, bucket_cap_mb, determinism, shards
        )
        self._generator, self._place = Generator(), (0, 0, -1)
        self._seed = self.process_group.broadcast_object(current_generator().initial_seed())
        if init_sync:
            self.reducer.broadcast_parameters()
            self._broadcast_buffers()

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Return ``module(*inputs, **options)``, counting the samples."""
        if mode.grad:
            self.reducer.begin()
            if self.broadcast_buffers and self.training and self.reducer.enabled:
                self._broadcast_buffers()
            if not self.reducer.explicit_count:
                self.reducer.count += _samples(inputs, options, self.dim)
        if self.reducer.determinism != "world" or not self.training:
            return self.module(*inputs, **options)
        with use_generator(self._stream()):
            return self.module(*inputs, **options)

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

    def _broadcast_buffers(self) -> None:
        if self.process_group.size == 1:
            return
        channel = self.process_group.channel("control")
        for buffer in self.module.buffers():
            array = buffer.array
            host = np.ascontiguousarray(to_device(array, CPU)).reshape(array.shape)
            channel.broadcast(host)
            array[...] = to_device(host, device_of(array))


def _default_group() -> ProcessGroup:
    """Return the default group: made under a launcher, a group of this process without one."""
    if is_initialized():
        return get_group()
    several = (world_from_env().size or 1) > 1
    return init_process_group() if several else local_group()


def _samples(inputs: Sequence[Any], options: Mapping[str, Any], dim: int) -> int:
    """Return the length of the first tensor along ``dim``; 1 without a tensor."""
    for value in (*inputs, *options.values()):
        if isinstance(value, Tensor):
            return int(value.array.shape[dim]) if value.array.ndim > dim else 1
        if isinstance(value, list | tuple | dict):
            nested = value.values() if isinstance(value, dict) else value
            if any(isinstance(v, Tensor) for v in nested):
                return _samples(tuple(nested), {}, dim)
    return 1
