"""FullyShardedDataParallel: the older interface to `fully_shard`, a module around another."""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from distgrad.distributed.group import ProcessGroup
from distgrad.errors import ArgumentError
from distgrad.nn.module import Module
from distgrad.nn.parallel.defaults import default_group
from distgrad.nn.parallel.fsdp.fully_shard import fully_shard, summon_full_params
from distgrad.nn.parallel.fsdp.module import FSDPModule
from distgrad.nn.parallel.fsdp.policy import MixedPrecisionPolicy
from distgrad.nn.parameter import Parameter
from distgrad.nn.state import IncompatibleKeys
from distgrad.nn.utils.clip_grad import clip_grad_norm_
from distgrad.tensor import Tensor

_WRAPPED = "_fsdp_wrapped_module"


class ShardingStrategy(enum.Enum):
    """When parameters are whole."""

    FULL_SHARD = enum.auto()  # while a module computes
    SHARD_GRAD_OP = enum.auto()  # from forward to the end of backward
    NO_SHARD = enum.auto()  # always: DistributedDataParallel
    HYBRID_SHARD = enum.auto()
    _HYBRID_SHARD_ZERO2 = enum.auto()


class ModuleWrapPolicy:
    """Makes each module of some classes a group.

    Args:
        module_classes: the classes.
    """

    def __init__(self, module_classes: Iterable[type[Module]]) -> None:
        self.module_classes = tuple(module_classes)

    def __call__(self, module: Module, recurse: bool, nonwrapped_numel: int) -> bool:
        """Return whether to look inside a module, or whether to make it a group."""
        return recurse or isinstance(module, self.module_classes)


def size_based_auto_wrap_policy(
    module: Module, recurse: bool, nonwrapped_numel: int, min_num_params: int = int(1e8)
) -> bool:
    """Return True for modules with so many parameters that are in no group yet."""
    return nonwrapped_numel >= min_num_params


class FullyShardedDataParallel(Module):
    """Trains ``module`` with parameters that lie in parts on the ranks; see `fully_shard`.

    Args:
        module: the model.
        process_group: the ranks; default is the default group.
        sharding_strategy: FULL_SHARD (default) drops parameters between forward and backward,
            SHARD_GRAD_OP keeps them.
        auto_wrap_policy: which modules inside become groups: a `ModuleWrapPolicy`, or a function of
            a module, whether it is asked about what is inside, and the number of elements in no
            group yet. None makes the whole model one group.
        mixed_precision: the types to compute and to communicate in.
        ignored_states: parameters to leave as they are, or modules whose are.
        sync_module_states, forward_prefetch, limit_all_gathers, use_orig_params: accepted; the
            start is that of rank 0, the next group is gathered while one computes and no other, and
            parameters keep their names and identity.
        reduction, shards: as for `fully_shard`.

    Ranks: all make it, and call forward, backward, ``state_dict`` and ``clip_grad_norm_``.

    Example:
        >>> import distgrad as dg
        >>> model = FullyShardedDataParallel(dg.nn.Linear(3, 1))
        >>> model(dg.ones(4, 3)).mean().backward()
        >>> model.module.bias.grad
        tensor([1.])
    """

    def __init__(
        self,
        module: Module,
        process_group: ProcessGroup | None = None,
        sharding_strategy: ShardingStrategy | None = None,
        auto_wrap_policy: Callable[[Module, bool, int], bool] | None = None,
        mixed_precision: MixedPrecisionPolicy | None = None,
        ignored_states: Iterable[Tensor | Module] | None = None,
        sync_module_states: bool = False,
        forward_prefetch: bool = False,
        limit_all_gathers: bool = True,
        use_orig_params: bool = True,
        *,
        reduction: str | None = None,
        shards: int | None = None,
    ) -> None:
        """Make groups from the inside to the outside."""
        super().__init__()
        strategy = sharding_strategy or ShardingStrategy.FULL_SHARD
        if strategy not in (ShardingStrategy.FULL_SHARD, ShardingStrategy.SHARD_GRAD_OP):
            raise ArgumentError(
                f"FullyShardedDataParallel(sharding_strategy={strategy}): takes FULL_SHARD or "
                "SHARD_GRAD_OP; use DistributedDataParallel for whole parameters on each rank"
            )
        group = default_group() if process_group is None else process_group
        drops = strategy is ShardingStrategy.FULL_SHARD
        ignored = _ignored(ignored_states or ())
        if auto_wrap_policy is not None:
            for part in _wrapped(module, auto_wrap_policy, ignored)[:-1]:
                fully_shard(
                    part, mesh=group, reshard_after_forward=drops, mp_policy=mixed_precision,
                    ignored_params=ignored,
                )  # fmt: skip
        fully_shard(
            module, mesh=group, reshard_after_forward=None if drops else False,
            mp_policy=mixed_precision, ignored_params=ignored, reduction=reduction, shards=shards,
        )  # fmt: skip
        self._modules[_WRAPPED] = module

    @property
    def module(self) -> Any:
        """The model."""
        return self._modules[_WRAPPED]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return ``module(*args, **kwargs)``."""
        return self.module(*args, **kwargs)

    def no_sync(self) -> AbstractContextManager[None]:
        """Return a block in which backward only adds up gradients, whole, on each rank."""
        block: AbstractContextManager[None] = self.module.no_sync()
        return block

    def clip_grad_norm_(self, max_norm: float, norm_type: float = 2.0) -> Tensor:
        """Scale all gradients so that their norm over all ranks is at most ``max_norm``."""
        return clip_grad_norm_(list(self.parameters()), max_norm, norm_type)

    @staticmethod
    def summon_full_params(
        module: Module, recurse: bool = True, writeback: bool = True
    ) -> AbstractContextManager[None]:
        """Return a block in which all parameters in ``module`` are whole on each rank.

        Args:
            module: any module with groups inside.
            recurse: True only: all groups inside.
            writeback: keep what was written to them.
        """
        if not recurse:
            raise ArgumentError("summon_full_params(recurse=False): use module.unshard() for one")
        return summon_full_params(module, writeback)

    # ------------------------------------------------------------------ names of the model itself
    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """Give the parameters by the names that they have in the model."""
        yield from self.module.named_parameters(prefix, recurse, remove_duplicate)

    def state_dict(
        self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Any]:
        """Return whole parameters and buffers by the names that they have in the model.

        Args: as for ``Module.state_dict``.

        Ranks: a collective.
        """
        found: dict[str, Any] = self.module.state_dict(
            *args, destination=destination, prefix=prefix, keep_vars=keep_vars
        )
        return found

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> IncompatibleKeys:
        """Take whole parameters and buffers by the names that they have in the model."""
        found: IncompatibleKeys = self.module.load_state_dict(state_dict, strict, assign)
        return found


def _ignored(states: Iterable[Tensor | Module]) -> set[Tensor]:
    found: set[Tensor] = set()
    for state in states:
        found |= set(state.parameters()) if isinstance(state, Module) else {state}
    return found


def _wrapped(
    module: Module, policy: Callable[[Module, bool, int], bool], ignored: Collection[Tensor]
) -> list[Module]:
    """Return what the policy makes groups of in ``module``, the innermost first, and itself."""
    chosen: list[Module] = []

    def visit(part: Module) -> int:
        """Return how many elements of ``part`` became part of a group."""
        own = [p for p in part.parameters() if p not in ignored]
        size = sum(p.numel() for p in own)
        taken = 0
        if policy(part, True, size):
            taken = sum(visit(child) for child in part.children())
        if part is not module and size > taken and policy(part, False, size - taken):
            chosen.append(part)
            return size
        return taken

    visit(module)
    return [*dict.fromkeys(m for m in chosen if not isinstance(m, FSDPModule)), module]
