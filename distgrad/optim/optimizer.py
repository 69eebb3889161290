"""Optimizer: parameter groups with their options, the state of each parameter, and the step."""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, ClassVar

from distgrad.autograd.graph import Removable
from distgrad.autograd.mode import enable_grad, no_grad
from distgrad.backend import capture as captures
from distgrad.backend import numpy_backend
from distgrad.backend.device import device, device_of, several_gpus, to_device, working_on
from distgrad.distributed.spread import spread_of
from distgrad.errors import ArgumentError, ArgumentTypeError, ConflictError
from distgrad.optim import rules
from distgrad.optim.device_steps import check_first, device_steps
from distgrad.optim.graph_steps import Row, record_step, refuse_step
from distgrad.optim.runs import (
    Decay,
    Plan,
    flatten_parameters,
    gradient_of,
    options_of,
    scalar,
)
from distgrad.tensor import Tensor, shared_of, wrap
from distgrad.typing import Array

Group = dict[str, Any]
Params = Iterable[Any]
Closure = Callable[[], Any]
Hook = Callable[..., Any]

_pre_hooks: OrderedDict[int, Hook] = OrderedDict()
_post_hooks: OrderedDict[int, Hook] = OrderedDict()


def register_optimizer_step_pre_hook(hook: Hook) -> Removable:
    """Call ``hook(optimizer, args, kwargs)`` before the step of every optimizer."""
    return Removable(_pre_hooks, hook)


def register_optimizer_step_post_hook(hook: Hook) -> Removable:
    """Call ``hook(optimizer, args, kwargs)`` after the step of every optimizer."""
    return Removable(_post_hooks, hook)


def _with_hooks(step: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``step`` with the hooks around it."""

    @functools.wraps(step)
    def wrapped(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        if "_optimizer_step_pre_hooks" not in self.__dict__:  # stands for one, as proxies do
            return step(self, *args, **kwargs)
        own = type(self)._step_group is not Optimizer._step_group
        if own or step.__qualname__ != "Optimizer.step":
            if not self._in_graphs or self.found_inf is not None:
                refuse_step(self)
            if self.found_inf is not None and bool(self.found_inf):  # the host has to know
                return None
        for hook in (*_pre_hooks.values(), *self._optimizer_step_pre_hooks.values()):
            new = hook(self, args, kwargs)
            if new is not None:
                if not (isinstance(new, tuple) and len(new) == 2):
                    raise ConflictError(
                        f"{type(self).__name__}.step must return None or a tuple of (new_args, "
                        f"new_kwargs), but got {new}."
                    )
                args, kwargs = new
        with working_on(_first_array(self)):
            out = step(self, *args, **kwargs)
        self._opt_called = True
        for hook in (*self._optimizer_step_post_hooks.values(), *_post_hooks.values()):
            hook(self, args, kwargs)
        return out

    return wrapped


class _Required:
    """The default of an option that every group must give."""

    def __repr__(self) -> str:
        return "<required parameter>"


required = _Required()


def _first_array(optimizer: Optimizer) -> Any:
    params = optimizer.param_groups[0]["params"] if optimizer.param_groups else []
    return params[0].array if params else None


class Optimizer:
    """Base of all optimizers.

    An optimizer with an update rule names it, ``_update``, and gives ``_slots`` (names and first
    values of the state arrays) and ``_numbers`` (what is kept once for each parameter). The rule
    asks for the options of a group by their names. One of another kind overrides ``step``.

    Args:
        params: tensors, pairs of name and tensor, or dicts with "params" and options of their own.
        defaults: options of groups that do not give them.
    """

    _update: ClassVar[Callable[..., None] | None] = None
    _asks: ClassVar[tuple[str, ...]] = ()
    _elementwise: ClassVar[bool] = True  # the rule may run over parts of parameters
    _in_graphs: ClassVar[bool] = False  # its own `step` or `_step_group` knows of captures
    param_groups: list[Group]
    state: defaultdict[Tensor, dict[str, Any]]
    _opt_called = False  # schedulers look at it
    found_inf: Array | None = None  # a gradient scaler's, while it steps: not 0 leaves a step out

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "step" in cls.__dict__:
            cls.step = _with_hooks(cls.__dict__["step"])  # type: ignore[method-assign]
        if "_update" in cls.__dict__:
            cls._asks = _keywords(cls._update)

    def __init__(self, params: Params, defaults: dict[str, Any]) -> None:
        """Take parameters and default options."""
        if isinstance(params, Tensor):
            raise ArgumentTypeError(
                "params argument given to the optimizer should be an iterable of Tensors or "
                f"dicts, but got {type(params).__name__}"
            )
        self.defaults = defaults
        self.state = defaultdict(dict)
        self.param_groups = []
        self._start()
        groups = list(params)
        if not groups:
            raise ArgumentError("optimizer got an empty parameter list")
        if not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        for group in groups:
            self.add_param_group(dict(group))

    def _start(self) -> None:
        """Set what is not part of the saved state."""
        self._plans: dict[int, Plan] = {}
        self._optimizer_step_pre_hooks: OrderedDict[int, Hook] = OrderedDict()
        self._optimizer_step_post_hooks: OrderedDict[int, Hook] = OrderedDict()
        self._optimizer_state_dict_pre_hooks: OrderedDict[int, Hook] = OrderedDict()
        self._optimizer_state_dict_post_hooks: OrderedDict[int, Hook] = OrderedDict()
        self._optimizer_load_state_dict_pre_hooks: OrderedDict[int, Hook] = OrderedDict()
        self._optimizer_load_state_dict_post_hooks: OrderedDict[int, Hook] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        own = {k: v for k, v in self.__dict__.items() if not k.startswith(("_optimizer", "_plans"))}
        return own

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self.__dict__.update(saved)
        if "_optimizer_step_pre_hooks" not in self.__dict__:
            self._start()
        for group in self.param_groups:
            for name, default in self.defaults.items():  # that older checkpoints do not have
                group.setdefault(name, default)
        self._plans.clear()

    def __repr__(self) -> str:
        text = type(self).__name__ + " ("
        for i, group in enumerate(self.param_groups):
            text += f"\nParameter Group {i}\n"
            for key in sorted(group):
                if key != "params":
                    text += f"    {key}: {group[key]}\n"
        return text + ")"

    # ------------------------------------------------------------------ groups
    def add_param_group(self, param_group: Group) -> None:
        """Add parameters with options of their own.

        Args:
            param_group: a dict with "params" and any options that differ from the defaults.
        """
        if not isinstance(param_group, dict):
            raise ArgumentTypeError(f"param_group must be a dict, but got {type(param_group)}")
        members, names = _named(param_group["params"])
        if names:
            param_group["param_names"] = names
        _check_members(members)
        if not self._elementwise and any(spread_of(p) for p in members):
            raise ArgumentError(
                f"{type(self).__name__}(): its rule looks at whole parameters, and fully_shard has "
                "left a rank with parts of them; take an optimizer that works element by element, "
                "such as AdamW"
            )
        known = {p for group in self.param_groups for p in group["params"]}
        if not known.isdisjoint(members):
            raise ArgumentError("some parameters appear in more than one parameter group")
        param_group["params"] = members
        for name, default in self.defaults.items():
            if default is required and name not in param_group:
                raise ArgumentError(
                    "parameter group didn't specify a value of required optimization parameter "
                    f"{name}"
                )
            param_group.setdefault(name, default)
        if self.param_groups and ("param_names" in self.param_groups[0]) != bool(names):
            raise ArgumentError(
                "all optimizer param groups should be with/without names. "
                f"cannot add param group {'with' if names else 'without'} names to the optimizer"
            )
        self.param_groups.append(param_group)
        self._plans.clear()

    # ------------------------------------------------------------------ the step
    def _slots(self, group: Group) -> dict[str, float]:
        """Return names and first values of the state arrays of a parameter."""
        return {}

    def _numbers(self, group: Group) -> dict[str, float]:
        """Return names and first values of the numbers kept for a parameter."""
        return {"step": 0.0}

    def _decay(self, group: Group) -> Callable[..., Array]:
        """Return the kind of weight decay, for groups that have some."""
        return rules.penalised

    def _rule(self, options: Group, step: int, numbers: dict[str, Array]) -> Callable[..., None]:
        """Return the update rule with what it asks for filled in.

        Args:
            options: of the group; tensors are numbers already.
            step: counts from 1.
            numbers: kept for these parameters, to be changed in place.
        """
        if self._update is None:
            raise NotImplementedError(f"{type(self).__name__} must override step()")
        asked = {name: options[name] for name in self._asks if name in options}
        if "step" in self._asks:
            asked["step"] = step
        return partial(self._update, **asked | self._factors(options, step, numbers))

    def _factors(self, options: Group, step: int, numbers: dict[str, Array]) -> dict[str, float]:
        """Return what the rule multiplies by that differs from step to step, by its names there.

        Arguments are those of `_rule`. A captured step finds these on the GPU, and nothing else.
        """
        return {}

    def _decay_of(self, options: Group) -> Decay | None:
        """Return what is done about the weights before the rule."""
        amount = options.get("weight_decay", 0)
        if not amount or "weight_decay" in self._asks:
            return None
        return partial(self._decay(options), lr=options["lr"], weight_decay=amount)

    @_with_hooks
    def step(self, closure: Closure | None = None) -> Any:
        """Update all parameters that have gradients.

        Args:
            closure: computes the loss anew, with gradients; called first.

        Returns:
            What ``closure`` returned.
        """
        loss = None
        if closure is not None:
            with enable_grad():
                loss = closure()
        with no_grad():
            for index, group in enumerate(self.param_groups):
                if several_gpus():
                    self._step_where_they_are(index, group)
                else:
                    self._step_group(index, group)
        return loss

    def _step_where_they_are(self, index: int, group: Group) -> None:
        """Update the parameters of a group on one GPU after the other."""
        places: dict[device, list[Tensor]] = {}
        for p in group["params"]:
            places.setdefault(device_of(p.array), []).append(p)
        for number, params in enumerate(places.values()):
            part = group if len(places) == 1 else {**group, "params": params}
            with working_on(params[0].array):
                self._step_group(index + (number << 32), part)

    def _step_group(self, index: int, group: Group) -> None:
        """Update the parameters of a group."""
        params = [p for p in group["params"] if p.grad is not None]
        plan, slots = self._plans.get(index), self._slots(group)
        if plan is None or not plan.fits(params, self.state, slots):
            captures.refuse(
                f"{type(self).__name__}.step()",
                "it lays out its state for these parameters and gradients",
                "take a step with the same ones before the capture",
            )
            plan = self._plans[index] = Plan(params, self.state, slots, self._numbers(group))
        if plan.runs and plan.runs[0].xp is not numpy_backend:
            if self._step_on_gpu(plan, group):
                return
            if captures.current() is not None:
                self._record(plan, group)
                return
        options = options_of(group)
        decay, rule, of_step = self._decay_of(options), None, 0
        for run in plan.runs:
            step = 1 if run.first else 2  # of rules that keep no count
            run.first = False
            counts = run.scalars.get("step")
            if counts is not None:
                counts += 1
                step = int(counts[0])
            if rule is None or step != of_step or len(run.scalars) > 1:
                rule, of_step = self._rule(options, step, run.scalars), step
            run.apply(rule, decay, options.get("maximize", False))

    def _record(self, plan: Plan, group: Group) -> None:
        """Let a capture record a step by array operations."""
        if self.found_inf is not None or type(self)._rule is not Optimizer._rule:
            refuse_step(self)
        rows = []
        for run in plan.runs:
            check_first(type(self).__name__, run.first)
            numbers = {name: a for name, a in run.scalars.items() if name != "step"}
            counts = [run.scalars["step"]] if "step" in run.scalars else []
            rows.append(Row([(run.array, gradient_of(run), run.state)], counts, numbers))
        record_step(self, group, rows)
        for p in plan.params:
            shared_of(p).bump()

    def _step_on_gpu(self, plan: Plan, group: Group) -> bool:
        """Update parameters by a kernel; return False where there is none for them."""
        if plan.device is None:
            own = type(self)._rule is Optimizer._rule
            found = device_steps(self, plan, self._decay(group)) if own else None
            plan.device = False if found is None else found
        capture = captures.current()
        if capture is not None:
            capture.keep(plan)  # a captured step knows it by its number
        if plan.device is False:
            if capture is not None:
                return False
            return self.found_inf is not None and bool(self.found_inf)  # the host has to know
        decoupled = self._decay(group) is rules.shrunk
        plan.device.step(group, decoupled, self.found_inf)
        return True

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of all parameters, or fill them with zeros."""
        for group in self.param_groups:
            for p in group["params"]:
                grad = p.grad
                if set_to_none or grad is None:
                    p.grad = None
                    continue
                grad.detach_()
                with no_grad():
                    grad.zero_()

    # ------------------------------------------------------------------ state
    def layouts(self) -> list[Plan]:
        """Return where the state lies; a captured step is made anew when these are others."""
        return list(self._plans.values())

    def state_dict(self) -> dict[str, Any]:
        """Return the state by the parameters' numbers, and the options of the groups."""
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        numbers: dict[Tensor, int] = {}
        groups = []
        for group in self.param_groups:
            packed = {k: v for k, v in group.items() if k != "params"}
            packed["params"] = [numbers.setdefault(p, len(numbers)) for p in group["params"]]
            groups.append(packed)
        state = {numbers.get(k, k): v for k, v in self.state.items()}
        out: dict[str, Any] = {"state": state, "param_groups": groups}
        for hook in self._optimizer_state_dict_post_hooks.values():
            new = hook(self, out)
            out = out if new is None else new
        return out

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned, here or in PyTorch (with tensors of ours).

        Raises:
            ArgumentError: the groups differ in number or size.
        """
        state_dict = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            new = hook(self, state_dict)
            state_dict = state_dict if new is None else new
        saved = copy.deepcopy(state_dict["param_groups"])
        if len(saved) != len(self.param_groups):
            raise ArgumentError("loaded state dict has a different number of parameter groups")
        numbers: dict[Any, Tensor] = {}
        for old, group in zip(saved, self.param_groups, strict=True):
            if len(old["params"]) != len(group["params"]):
                raise ArgumentError(
                    "loaded state dict contains a parameter group that doesn't match the size of "
                    "optimizer's group"
                )
            numbers.update(zip(old["params"], group["params"], strict=True))
            old["params"] = group["params"]
            if "param_names" in group and "param_names" not in old:
                old["param_names"] = group["param_names"]
        state: defaultdict[Any, dict[str, Any]] = defaultdict(dict)
        for key, entry in state_dict["state"].items():
            param = numbers.get(key)
            state[key if param is None else param] = _fitted(param, entry)
        self.__setstate__({"state": state, "param_groups": saved})
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    # ------------------------------------------------------------------ hooks
    def register_step_pre_hook(self, hook: Hook) -> Removable:
        """Call ``hook(optimizer, args, kwargs)`` before each step."""
        return Removable(self._optimizer_step_pre_hooks, hook)

    def register_step_post_hook(self, hook: Hook) -> Removable:
        """Call ``hook(optimizer, args, kwargs)`` after each step."""
        return Removable(self._optimizer_step_post_hooks, hook)

    def register_state_dict_pre_hook(self, hook: Hook, prepend: bool = False) -> Removable:
        """Call ``hook(optimizer)`` at the start of ``state_dict``."""
        return _hooked(self._optimizer_state_dict_pre_hooks, hook, prepend)

    def register_state_dict_post_hook(self, hook: Hook, prepend: bool = False) -> Removable:
        """Call ``hook(optimizer, state_dict)`` at the end of ``state_dict``."""
        return _hooked(self._optimizer_state_dict_post_hooks, hook, prepend)

    def register_load_state_dict_pre_hook(self, hook: Hook, prepend: bool = False) -> Removable:
        """Call ``hook(optimizer, state_dict)`` at the start of ``load_state_dict``."""
        return _hooked(self._optimizer_load_state_dict_pre_hooks, hook, prepend)

    def register_load_state_dict_post_hook(self, hook: Hook, prepend: bool = False) -> Removable:
        """Call ``hook(optimizer)`` at the end of ``load_state_dict``."""
        return _hooked(self._optimizer_load_state_dict_post_hooks, hook, prepend)


@contextlib.contextmanager
def swap_in_optimizer_params_and_state(
    optimizer: Optimizer,
    swapin_parameters: dict[str, Tensor],
    swapin_optim_state: dict[str, Any],
) -> Iterator[None]:
    """Let ``optimizer`` work on other parameters, with their state, inside a ``with`` block.

    Args:
        optimizer: has its own parameters and state again at the end.
        swapin_parameters: as many as it has, in the same order.
        swapin_optim_state: as ``state_dict`` returns it; its tensors are changed in place.
    """
    kept = optimizer.param_groups, optimizer.state
    if not optimizer.state:
        raise ConflictError(
            "swap_in_optimizer_params_and_state requires initialized optimizer state."
        )
    params = list(swapin_parameters.values())
    numbers = [n for group in swapin_optim_state["param_groups"] for n in group["params"]]
    if len(numbers) != len(params):
        raise ArgumentError(
            f"swap_in_optimizer_params_and_state(): {len(params)} parameters for a state of "
            f"{len(numbers)}; give as many"
        )
    by_number = dict(zip(numbers, params, strict=True))
    optimizer.param_groups = [
        {**group, "params": [by_number[n] for n in group["params"]]}
        for group in swapin_optim_state["param_groups"]
    ]
    optimizer.state = defaultdict(dict)
    for number, entry in swapin_optim_state["state"].items():
        optimizer.state[by_number[number]] = dict(entry)
    optimizer._plans.clear()
    try:
        yield
    finally:
        optimizer.param_groups, optimizer.state = kept
        optimizer._plans.clear()


def _hooked(hooks: OrderedDict[int, Hook], hook: Hook, prepend: bool) -> Removable:
    handle = Removable(hooks, hook)
    if prepend:
        hooks.move_to_end(handle.id, last=False)
    return handle


def _named(params: Any) -> tuple[list[Any], list[str]]:
    """Return the parameters of a group, and their names where they have some."""
    if isinstance(params, set):
        raise ArgumentTypeError(
            "optimizer parameters need to be organized in ordered collections, but the "
            "ordering of tensors in sets will change between runs. Please use a list instead."
        )
    members = [params] if isinstance(params, Tensor) else list(params)
    names = [p[0] for p in members if isinstance(p, tuple)]
    if not names:
        return members, names
    if len(names) != len(members):
        raise ArgumentError(
            "all optimizer params should be with/without names. Some param names are missing"
        )
    return [p[1] for p in members], names


def _check_members(members: list[Any]) -> None:
    for p in members:
        if not isinstance(p, Tensor):
            raise ArgumentTypeError(
                f"optimizer can only optimize Tensors, but one of the params is {type(p).__name__}"
            )
        if p._node is not None and not p._retains:
            raise ArgumentError("can't optimize a non-leaf Tensor")
    if len(members) != len(set(members)):
        warnings.warn(
            "optimizer contains a parameter group with duplicate parameters; in future, this will "
            "cause an error; see github.com/pytorch/pytorch/issues/40967 for more information",
            stacklevel=4,
        )


def _keywords(rule: Any) -> tuple[str, ...]:
    """Return the names of the keyword arguments of a rule."""
    code = rule.__code__
    names: tuple[str, ...] = code.co_varnames[code.co_argcount :][: code.co_kwonlyargcount]
    return names


def _fitted(param: Tensor | None, value: Any, name: str = "") -> Any:
    """Return a copy of a parameter's state on its device and in its dtype (but for counts)."""
    if isinstance(value, dict):
        return {key: _fitted(param, entry, key) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_fitted(param, entry, name) for entry in value)
    if name == "step" and isinstance(value, int | float):
        return scalar(value)  # as older checkpoints have it
    if param is None or not isinstance(value, Tensor):
        return copy.deepcopy(value)
    with working_on(value.array):
        array = value.array.copy()
    if name != "step":
        if array.ndim:
            array = to_device(array, device_of(param.array))
        if param.array.dtype.kind in "fV":
            with working_on(array):
                array = array.astype(param.array.dtype, copy=False)
    return wrap(array)


__all__ = [
    "Optimizer",
    "flatten_parameters",
    "register_optimizer_step_post_hook",
    "register_optimizer_step_pre_hook",
    "required",
    "swap_in_optimizer_params_and_state",
]
