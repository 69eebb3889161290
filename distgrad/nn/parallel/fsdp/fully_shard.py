"""fully_shard: each rank keeps a part of parameters, gradients and the state of optimizers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

from distgrad.backend.dtype import as_numpy
from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.spread import spread_of
from distgrad.errors import ArgumentError, ArgumentTypeError
from distgrad.nn.module import Module
from distgrad.nn.parallel.defaults import default_group
from distgrad.nn.parallel.fsdp.module import FSDPModule, Settings, run, units_of
from distgrad.nn.parallel.fsdp.policy import MixedPrecisionPolicy, OffloadPolicy, check_offload
from distgrad.nn.parallel.fsdp.unit import Home, Unit, Whole
from distgrad.tensor import Tensor


def fully_shard(
    module: Any,
    *,
    mesh: ProcessGroup | None = None,
    reshard_after_forward: bool | int | None = None,
    shard_placement_fn: None = None,
    mp_policy: MixedPrecisionPolicy | None = None,
    offload_policy: OffloadPolicy | None = None,
    ignored_params: set[Tensor] | None = None,
    reduction: str | None = None,
    shards: int | None = None,
) -> Any:
    """Return ``module``, of whose parameters each rank keeps a part from now on (ZeRO-3, FSDP).

    Its parameters, those of groups inside aside, are one group: they are gathered before its
    forward, dropped after it, gathered again for its backward, and their gradients are reduced to
    the ranks that own the elements. Call it on the layers first, and on the model last; then make
    the optimizer, any one that updates element by element. Parameters keep their identity, and
    become flat tensors with the elements of this rank, perhaps none.

    Args:
        module: a module, or a list of modules that forward goes through in this order. Its class
            becomes one with the methods of `FSDPModule` as well.
        mesh: the ranks; default is the default group.
        reshard_after_forward: drop the whole parameters between forward and backward. None does so
            but for the outermost module, which backward begins with.
        shard_placement_fn: None only: elements are shared out by their place in the flat group.
        mp_policy: the types to compute and to communicate in.
        offload_policy: ``OffloadPolicy()`` only.
        ignored_params: parameters to leave as they are, on each rank, and not to reduce.
        reduction: "mean" (default) where the loss is a mean over the local samples, "sum" where it
            is a sum. Either way the gradient is that of the mean over the global batch. Of the
            outermost module.
        shards: into how many equal parts V the global batch is always cut (default: one for each
            rank). Each rank runs one forward and backward for each of its ``local_shards``; the
            bits are those of DistributedDataParallel with ``determinism="world"`` and as many
            shards, on any number of ranks. Of the outermost module.

    Raises:
        ArgumentError: a parameter is in another group already, dtypes in the group differ, or an
            option asks for what is not offered.

    Ranks: all, with the same modules in the same order; a difference is named on every rank. All
        call forward and backward of the groups in the same order, also to evaluate.
    Cost: a group's bytes are gathered twice, (P-1)/P to each rank, and reduced once.

    Differs from PyTorch: a part is no DTensor but a plain tensor of one dimension. Parameters and
        buffers of rank 0 are the start. Means are over the samples of all ranks.

    Example:
        >>> import distgrad as dg
        >>> model = dg.nn.Sequential(dg.nn.Linear(2, 3), dg.nn.Linear(3, 1))
        >>> for layer in model:
        ...     layer = fully_shard(layer)
        >>> model = fully_shard(model)
        >>> optimizer = dg.optim.SGD(model.parameters(), lr=0.1)
        >>> model(dg.ones(4, 2)).mean().backward()
        >>> model[1].bias.grad
        tensor([1.])
    """
    if shard_placement_fn is not None:
        raise ArgumentError(
            "fully_shard(shard_placement_fn): elements are shared out by their place in the flat "
            "group, not by dimensions; leave it None"
        )
    if not isinstance(reshard_after_forward, bool | None):
        raise ArgumentError(
            f"fully_shard(reshard_after_forward={reshard_after_forward}): there is no smaller "
            "group to keep parameters in; take True, False or None"
        )
    check_offload(offload_policy or OffloadPolicy())
    modules = _modules(module)
    policy = mp_policy or MixedPrecisionPolicy()
    group = default_group() if mesh is None else mesh
    settings = Settings(group, policy, reduction, shards)
    homes = _collect(modules, ignored_params or set())
    if homes:
        settings.unit = _unit(modules, homes, settings)
        settings.unit.drops_after_forward = reshard_after_forward
    for part in modules:
        part.__dict__["_fsdp"] = settings
        part.__class__ = _class(type(part))
        _hook_state(part, settings)
    return module


def register_fsdp_forward_method(module: Module, method_name: str) -> None:
    """Let ``module.method_name(...)`` gather and drop parameters as a call of the module does.

    A module without `fully_shard` is left as it is.
    """
    if not isinstance(module, FSDPModule):
        return
    method = getattr(module, method_name)

    @wraps(method)
    def gathered(*args: Any, **kwargs: Any) -> Any:
        return run(module, method, args, kwargs)

    module.__dict__[method_name] = gathered


@contextmanager
def summon_full_params(module: Module, writeback: bool = True) -> Iterator[None]:
    """Keep all parameters in ``module`` whole inside the block, in their own types.

    Args:
        module: any module with groups inside.
        writeback: keep what was written to them; each rank takes its own elements.

    Ranks: all enter the block. In it, forward of a module needs no other rank; there is no
        backward.
    """
    modules = [m for m in module.modules() if isinstance(m, FSDPModule)]
    units = units_of(modules)
    for unit in units:
        unit.drop()
        unit.start(unit.local.dtype)
    for unit in units:  # a lost rank may keep some from coming
        unit.gather()
    for unit in units:
        unit.held += 1
    for part in modules:
        part._fsdp.summoned += 1
    try:
        yield
    finally:
        for part in modules:
            part._fsdp.summoned -= 1
        for unit in units:
            unit.held -= 1
            if writeback:
                unit.keep()
            unit.drop()


# ---------------------------------------------------------------------- making groups
def _modules(module: Any) -> list[Module]:
    modules = list(module) if isinstance(module, list | tuple) else [module]
    for part in modules:
        if not isinstance(part, Module):
            raise ArgumentTypeError(
                f"fully_shard({type(part).__name__}): takes a Module or a list of Modules"
            )
        if isinstance(part, FSDPModule):
            raise ArgumentError("fully_shard(): the module is a group already; call it once")
    return modules


def _collect(modules: Sequence[Module], ignored: Iterable[Tensor]) -> dict[int, _Found]:
    """Return the parameters that are in no group yet, with all places where they are."""
    left_out = {id(p) for p in ignored}
    found: dict[int, _Found] = {}
    elsewhere: list[str] = []
    for path, module in _own_modules(modules):
        for name, param in module._parameters.items():
            if param is None or id(param) in left_out:
                continue
            full = f"{path}.{name}" if path else name
            if spread_of(param) is not None or isinstance(param, Whole):
                elsewhere.append(full)
            else:
                entry = found.setdefault(id(param), _Found(param, full))
                entry.homes.append(Home(module, name))
    if elsewhere:
        raise ArgumentError(
            f"fully_shard(): parameter {elsewhere[0]} is in another group "
            "already; put all modules that share it in one group: fully_shard([first, second])"
        )
    return found


def _own_modules(modules: Sequence[Module]) -> Iterator[tuple[str, Module]]:
    """Give the modules that belong to no group inside, with their names."""
    for place, top in enumerate(modules):
        lead = str(place) if len(modules) > 1 else ""
        groups = [m for m in top.modules() if isinstance(m, FSDPModule)]
        inside = {id(m) for group in groups for m in group.modules()}
        yield from ((n, m) for n, m in top.named_modules(prefix=lead) if id(m) not in inside)


class _Found:
    """A parameter and where it is registered."""

    __slots__ = ("homes", "name", "param")

    def __init__(self, param: Tensor, name: str) -> None:
        self.param, self.name = param, name
        self.homes: list[Home] = []


def _unit(modules: Sequence[Module], found: dict[int, _Found], settings: Settings) -> Unit:
    params = [entry.param for entry in found.values()]
    kinds = sorted({f"{p.dtype} on {p.device}" for p in params})
    if len(kinds) > 1:
        raise ArgumentError(
            f"fully_shard({type(modules[0]).__name__}): FSDP expects uniform original parameter "
            f"dtype, and parameters of this group are {', '.join(kinds)}; convert them, or make "
            "groups of their modules first"
        )
    policy = settings.policy
    dtype = None if policy.param_dtype is None else as_numpy(policy.param_dtype)
    wire = None if policy.reduce_dtype is None else as_numpy(policy.reduce_dtype)
    names = [entry.name for entry in found.values()]
    homes = [entry.homes for entry in found.values()]
    name = type(modules[0]).__name__
    return Unit(modules, name, params, names, homes, settings.group, dtype, wire)


_classes: dict[type[Module], type[FSDPModule]] = {}


def _class(kind: type[Module]) -> type[FSDPModule]:
    """Return the subclass of ``kind`` with the methods of FSDPModule."""
    if kind not in _classes:
        _classes[kind] = type(f"FSDP{kind.__name__}", (FSDPModule, kind), {})
    return _classes[kind]


# ---------------------------------------------------------------------- state
def _hook_state(module: Module, settings: Settings) -> None:
    """Let ``state_dict`` and ``load_state_dict`` see whole parameters."""
    unit = settings.unit
    if unit is None:
        return

    def before(*_: Any) -> None:
        unit.drop()  # what is there may have the types of a MixedPrecisionPolicy
        unit.gather(unit.spread.params[0].array.dtype)

    def after_saving(_own: Module, state: dict[str, Any], *_: Any) -> None:
        state |= {name: v.detach() for name, v in state.items() if isinstance(v, Whole)}
        unit.drop()

    def before_loading(own: Module, state: Any, prefix: str, metadata: Any, *_: Any) -> None:
        if metadata.get("assign_to_params_buffers"):
            raise ArgumentError(
                "load_state_dict(assign=True): parameters are parts, and values are copied into "
                "them; leave assign False"
            )
        before()

    def after_loading(*_: Any) -> None:
        unit.keep()
        unit.drop()

    module.register_state_dict_pre_hook(before)
    module.register_state_dict_post_hook(after_saving)
    module.register_load_state_dict_pre_hook(before_loading)
    module.register_load_state_dict_post_hook(after_loading)
