"""FSDPModule: what a module can do after `fully_shard`, and how its forward is called.

Note [Outermost]
    Groups are made from the inside to the outside. The module whose forward is called first, or
    that is asked for shards or counts first, is the outermost: from then on one `Conductor` leads
    all groups in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NoReturn

import numpy as np

from distgrad.autograd.engine import in_backward
from distgrad.autograd.mode import mode
from distgrad.backend.device import CPU, device_of, to_device
from distgrad.backend.random import Generator, current_generator, use_generator
from distgrad.distributed.group import ProcessGroup
from distgrad.errors import ArgumentError, DistributedError
from distgrad.nn.module import Module
from distgrad.nn.modules.syncbatchnorm import SyncBatchNorm
from distgrad.nn.parallel.defaults import samples_in
from distgrad.nn.parallel.fsdp.conductor import Conductor
from distgrad.nn.parallel.fsdp.policy import MixedPrecisionPolicy, casted, mapped
from distgrad.nn.parallel.fsdp.unit import Unit
from distgrad.tensor import Tensor


class Settings:
    """What `fully_shard` was told about a module."""

    __slots__ = (
        "conductor", "group", "policy", "reduction", "shards", "stream", "summoned", "unit",
    )  # fmt: skip

    def __init__(
        self,
        group: ProcessGroup,
        policy: MixedPrecisionPolicy,
        reduction: str | None,
        shards: int | None,
    ) -> None:
        self.group, self.policy, self.reduction, self.shards = group, policy, reduction, shards
        self.unit: Unit | None = None  # None without parameters of its own
        self.conductor: Conductor | None = None  # known once forward was called
        self.summoned = 0  # blocks that keep all parameters whole
        self.stream: Stream | None = None  # of the outermost module, where shards are asked for


class Stream:
    """Random numbers that belong to the shard at hand, whichever rank has it."""

    __slots__ = ("_generator", "_place", "_seed")

    def __init__(self, group: ProcessGroup) -> None:
        self._seed = group.broadcast_object(current_generator().initial_seed())
        self._generator, self._place = Generator(), (0, 0, -1)

    def at(self, reduction: int, shard: int) -> Generator:
        """Return the generator of a shard of a reduction."""
        place = (self._seed, reduction, shard)
        if self._place != place:
            digest = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
            self._generator.manual_seed(int.from_bytes(digest, "little"))
            self._place = place
        return self._generator


class UnshardHandle:
    """Waits for parameters that ``unshard(async_op=True)`` has begun to gather."""

    def __init__(self, unit: Unit | None) -> None:
        self._unit = unit

    def wait(self) -> None:
        """Return when they are whole, and in their place in the module."""
        if self._unit is not None:
            self._unit.gather()


class FSDPModule(Module):
    """What `fully_shard` adds to the class of a module."""

    _fsdp: Settings

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return ``forward(*args, **kwargs)`` on whole parameters."""
        return run(self, super().__call__, args, kwargs)

    # ------------------------------------------------------------------ whole parameters
    def unshard(self, async_op: bool = False) -> UnshardHandle | None:
        """Gather the parameters of this group, without those of groups inside.

        Args:
            async_op: return at once what can be waited for.

        Ranks: all.
        """
        unit = self._fsdp.unit
        if unit is not None:
            unit.start()
        handle = UnshardHandle(unit)
        if async_op:
            return handle
        handle.wait()
        return None

    def reshard(self) -> None:
        """Drop the whole parameters of this group; parts take their place."""
        if self._fsdp.unit is not None:
            self._fsdp.unit.drop()

    def set_reshard_after_forward(self, reshard_after_forward: bool, recurse: bool = True) -> None:
        """Drop parameters after forward, or keep them for backward."""
        for unit in self._units(recurse):
            unit.drops_after_forward = reshard_after_forward

    def set_reshard_after_backward(
        self, reshard_after_backward: bool, *, recurse: bool = True
    ) -> None:
        """Drop parameters after backward, or keep them for the next forward.

        They are dropped before an update in any case: the next forward gathers what has changed.
        """
        for unit in self._units(recurse):
            unit.drops_after_backward = reshard_after_backward

    def set_modules_to_forward_prefetch(self, modules: list[FSDPModule]) -> None:
        """Start to gather ``modules`` in forward when this one is gathered, and no others."""
        self._fsdp_unit("set_modules_to_forward_prefetch").prefetch_forward = units_of(modules)

    def set_modules_to_backward_prefetch(self, modules: list[FSDPModule]) -> None:
        """Start to gather ``modules`` in backward when this one is gathered, and no others."""
        self._fsdp_unit("set_modules_to_backward_prefetch").prefetch_backward = units_of(modules)

    # ------------------------------------------------------------------ gradients
    def set_requires_gradient_sync(
        self, requires_gradient_sync: bool, *, recurse: bool = True
    ) -> None:
        """Reduce gradients in backward, or only add them up, whole, on each rank.

        Args:
            requires_gradient_sync: False for all but the last backward of several.
            recurse: True only: one reduction is of all groups.
        """
        if not recurse:
            raise ArgumentError(
                "set_requires_gradient_sync(recurse=False): a reduction is of all groups; call it "
                "on the outermost module with recurse=True"
            )
        self._conductor().enabled = requires_gradient_sync

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Only add up gradients in backwards inside the block."""
        conductor = self._conductor()
        before, conductor.enabled = conductor.enabled, False
        try:
            yield
        finally:
            conductor.enabled = before

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of all parameters, also those of backwards without a reduction."""
        super().zero_grad(set_to_none)
        if self._fsdp.conductor is not None:
            self._fsdp.conductor.forget()

    def add_count(self, samples: int) -> None:
        """Weigh this rank by ``samples``, instead of by the length of its batches.

        Call it before the backward that sends; counts of several calls add up, until then.
        """
        self._conductor().add_count(samples)

    @property
    def local_shards(self) -> list[int]:
        """The parts of the global batch that this rank computes, one backward for each.

        All ranks have as many. A rank for which there is none in the last turn repeats its last
        one: its gradient is not used a second time.
        """
        return self._conductor().local_shards

    def set_is_last_backward(self, is_last_backward: bool) -> None:
        """Accept what is not needed: a backward that reduces always waits for its reductions."""

    def set_requires_all_reduce(self, requires_all_reduce: bool, *, recurse: bool = True) -> None:
        """Accept what is not needed: there is no second group over which copies are reduced."""

    def set_unshard_in_backward(self, unshard_in_backward: bool) -> None:
        """Accept what is not needed: backward gathers again what it reads."""

    def set_gradient_divide_factor(self, factor: float) -> NoReturn:
        """Refuse: means are over the samples of all ranks, whatever their number."""
        raise ArgumentError(
            f"set_gradient_divide_factor({factor}): gradients are sums divided by the number of "
            "samples; use fully_shard(reduction='sum') and add_count() for another divisor"
        )

    # ------------------------------------------------------------------ inside
    def _units(self, recurse: bool) -> list[Unit]:
        modules = self.modules() if recurse else [self]
        return units_of([m for m in modules if isinstance(m, FSDPModule)])

    def _fsdp_unit(self, call: str) -> Unit:
        unit = self._fsdp.unit
        if unit is None:
            raise ArgumentError(
                f"{call}(): the module has no parameters of its own to gather; call it on one that "
                "has"
            )
        return unit

    def _conductor(self) -> Conductor:
        return conductor_of(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise DistributedError(
            "deepcopy(FSDPModule): FSDP does not support deepcopy; a copy would have parts of the "
            "same ranks: make a new model, and load the state_dict()"
        )


# ---------------------------------------------------------------------- forward
def run(module: FSDPModule, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return ``forward(*args, **kwargs)`` on whole parameters of the module's group."""
    settings = module._fsdp
    if settings.summoned:
        return forward(*args, **kwargs)
    unit, conductor = settings.unit, conductor_of(module)
    outermost = settings.stream is not None
    if outermost and not in_backward():
        conductor.follow()
        if mode.grad:
            conductor.begin(samples_in(args, kwargs, 0))
    if unit is not None:
        conductor.enter(unit)
    policy = settings.policy
    if policy.param_dtype is not None and policy.cast_forward_inputs:
        args, kwargs = casted(args, policy.param_dtype), casted(kwargs, policy.param_dtype)
    with _random_numbers(settings, conductor, module) if outermost else nullcontext():
        result = forward(*args, **kwargs)
    if policy.output_dtype is not None:
        result = casted(result, policy.output_dtype)
    if unit is not None and module is unit.modules[-1]:
        drops = not outermost if unit.drops_after_forward is None else unit.drops_after_forward
        conductor.leave(unit, drops or not mode.grad)
    if unit is not None and mode.grad and not in_backward():
        _watch_results(conductor, unit, result)
    return result


def _random_numbers(settings: Settings, conductor: Conductor, module: Module) -> Any:
    """Return a block in which random numbers belong to the shard at hand."""
    if settings.shards is None or not module.training or settings.stream is None:
        return nullcontext()
    shard = conductor.shard
    if shard >= conductor.shards:  # this turn repeats the last one
        shard -= conductor.group.size
    return use_generator(settings.stream.at(conductor.reductions, shard))


def _watch_results(conductor: Conductor, unit: Unit, result: Any) -> None:
    """Gather the unit again when the first gradient reaches one of the module's results."""

    def watch(tensor: Tensor) -> Tensor:
        if tensor._node is not None:
            tensor.register_hook(lambda _: conductor.before_backward(unit))
        return tensor

    mapped(result, watch)


def conductor_of(module: FSDPModule) -> Conductor:
    """Return who conducts the groups in ``module``; made now if it is the outermost.

    Ranks: all, the first time.
    """
    settings = module._fsdp
    if settings.conductor is not None:
        return settings.conductor
    inside = [m._fsdp for m in module.modules() if isinstance(m, FSDPModule)]
    units = units_of([m for m in module.modules() if isinstance(m, FSDPModule)])
    for other in inside:
        told = other.reduction is not None or other.shards is not None
        if other is not settings and told:
            raise ArgumentError(
                "fully_shard(reduction, shards): belong to the outermost module; leave them out "
                "for modules inside"
            )
        if other.conductor is not None:
            raise ArgumentError(
                "fully_shard(): forward of a module inside was called before that of the outermost "
                "one; call the outermost one first"
            )
    if not units:
        raise ArgumentError("fully_shard(): the module has no parameters")
    _name(module)
    group = settings.group
    conductor = Conductor(units, group, settings.reduction or "mean", settings.shards)
    for other in inside:
        other.conductor = conductor
    settings.stream = Stream(group)
    _broadcast_buffers(module, group)
    bind_batch_norms(module, conductor)
    return conductor


def _name(module: Module) -> None:
    """Give the units the names that they have from the outermost module."""
    for path, part in module.named_modules():
        if path and isinstance(part, FSDPModule):
            unit = part._fsdp.unit
            if unit is not None and part is unit.modules[0]:
                unit.name = path
                unit.spread.names = [f"{path}.{name}" for name in unit.spread.names]


def _broadcast_buffers(module: Module, group: ProcessGroup) -> None:
    """Give every rank the buffers of rank 0."""
    if group.size == 1:
        return
    for buffer in module.buffers():
        array = buffer.array
        host = np.ascontiguousarray(to_device(array, CPU)).reshape(array.shape)
        group.channel("control").broadcast(host)
        array[...] = to_device(host, device_of(array))


def bind_batch_norms(module: Module, conductor: Conductor) -> None:
    """Let batch norms over all ranks know how much this one weighs."""
    synced = [m for m in module.modules() if isinstance(m, SyncBatchNorm)]
    if synced and conductor.shards > conductor.group.size:
        raise ArgumentError(
            f"fully_shard(shards={conductor.shards}): SyncBatchNorm needs all shards at once, and "
            "a rank has several, one after the other; use BatchNorm, or as many ranks as shards"
        )

    def weight() -> float:
        return float(conductor.count) if conductor.reduction == "mean" else 1.0

    for norm in synced:
        norm.bind(conductor.group, weight)


def units_of(modules: Iterable[FSDPModule]) -> list[Unit]:
    """Return the units of modules, each once."""
    units = [m._fsdp.unit for m in modules]
    return list({id(unit): unit for unit in units if unit is not None}.values())
