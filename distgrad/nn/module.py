"""Module: a tree of layers that knows its parameters, buffers and children by name."""

from __future__ import annotations

import functools
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from distgrad.autograd.graph import Removable
from distgrad.autograd.mode import no_grad
from distgrad.backend import dtype as dtypes
from distgrad.backend.device import device as Device
from distgrad.errors import ArgumentError, ArgumentTypeError
from distgrad.nn import hooks, state
from distgrad.nn.conversion import convert_parameter, no_device, parse_to, zero_gradient
from distgrad.nn.parameter import Buffer, Parameter, UninitializedTensorMixin, is_lazy
from distgrad.tensor import Tensor

M = TypeVar("M", bound="Module")
T_destination = TypeVar("T_destination", bound=dict[str, Any])
Hook = Callable[..., Any]


class Module:
    """Base of all layers and models: assign parameters and modules to it and define ``forward``.

    Example:
        >>> from distgrad import nn
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.hidden = nn.Linear(2, 3)
        ...
        ...     def forward(self, x):
        ...         return self.hidden(x).relu()
        >>> Net()
        Net(
          (hidden): Linear(in_features=2, out_features=3, bias=True)
        )
        >>> [name for name, _ in Net().named_parameters()]
        ['hidden.weight', 'hidden.bias']
    """

    dump_patches = False
    call_super_init = False  # True: __init__ goes on to the next class of the bases
    _version = 1
    _hooked = False  # True once a hook was registered: calls look for hooks
    training: bool
    _parameters: dict[str, Parameter | None]
    _buffers: dict[str, Tensor | None]
    _modules: dict[str, Module | None]
    _non_persistent_buffers_set: set[str]
    T_destination = T_destination

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Make an empty module in training mode; takes arguments for ``call_super_init`` alone."""
        if (args or kwargs) and not self.call_super_init:
            given = next(iter(kwargs), None)
            raise ArgumentTypeError(
                f"{type(self).__name__}.__init__() got an unexpected keyword argument '{given}'"
                if kwargs
                else f"{type(self).__name__}.__init__() takes 1 positional argument but "
                f"{len(args) + 1} were given"
            )
        self.__dict__.update(
            training=True,
            _parameters={},
            _buffers={},
            _non_persistent_buffers_set=set(),
            _backward_pre_hooks=OrderedDict(),
            _backward_hooks=OrderedDict(),
            _forward_hooks=OrderedDict(),
            _forward_hooks_with_kwargs=OrderedDict(),
            _forward_hooks_always_called=OrderedDict(),
            _forward_pre_hooks=OrderedDict(),
            _forward_pre_hooks_with_kwargs=OrderedDict(),
            _state_dict_hooks=OrderedDict(),
            _state_dict_pre_hooks=OrderedDict(),
            _load_state_dict_pre_hooks=OrderedDict(),
            _load_state_dict_post_hooks=OrderedDict(),
            _modules={},
        )
        if self.call_super_init:
            super().__init__(*args, **kwargs)

    # ------------------------------------------------------------------ call
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return ``forward(*args, **kwargs)`` with the hooks around it."""
        if self._hooked or hooks.everywhere.used:
            return hooks.call_with_hooks(self, args, kwargs)
        return self.forward(*args, **kwargs)

    _call_impl = _wrapped_call_impl = __call__

    def _no_forward(self, *args: Any) -> Any:
        raise NotImplementedError(
            f'Module [{type(self).__name__}] is missing the required "forward" function'
        )

    forward: Callable[..., Any] = _no_forward

    # ------------------------------------------------------------------ attributes
    def __getattr__(self, name: str) -> Any:
        own = self.__dict__
        if "_parameters" in own:
            if name in (held := own["_parameters"]):
                return held[name]
            if name in (held := own["_modules"]):
                return held[name]
            if name in (held := own["_buffers"]):
                return held[name]
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    def __setattr__(self, name: str, value: Any) -> None:
        own = self.__dict__
        params = own.get("_parameters")
        if params is None:
            _refuse_early(value)
            object.__setattr__(self, name, value)
        elif isinstance(value, Parameter):
            self._forget(name, "_parameters")
            self.register_parameter(name, value)
        elif name in params:
            _only_none(value, "parameter", name, "Parameter")
            params[name] = None
        elif isinstance(value, Module):
            self._forget(name, "_modules")
            self._modules[name] = hooks.registered(self, name, value, "module")
        elif name in self._modules:
            _only_none(value, "child module", name, "Module")
            self._modules[name] = None
        elif isinstance(value, Buffer):
            self._forget(name, "_buffers")
            self.register_buffer(name, value, value.persistent)
        elif name in self._buffers:
            if not isinstance(value, Tensor):
                _only_none(value, "buffer", name, "Buffer, Tensor")
            self._buffers[name] = value
        else:
            object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        for held in (self._parameters, self._buffers, self._modules):
            if name in held:
                del held[name]
                self._non_persistent_buffers_set.discard(name)
                return
        object.__delattr__(self, name)

    def _forget(self, name: str, keep: str) -> None:
        """Take ``name`` out of everything but ``keep``, so that it can be registered there."""
        self.__dict__.pop(name, None)
        for held in ("_parameters", "_buffers", "_modules"):
            if held != keep:
                self.__dict__[held].pop(name, None)
        self._non_persistent_buffers_set.discard(name)

    def __dir__(self) -> list[str]:
        names = [*dir(type(self)), *self.__dict__]
        names += [*self._parameters, *self._modules, *self._buffers]
        return sorted(name for name in names if not name[0].isdigit())

    def __setstate__(self, saved: dict[str, Any]) -> None:
        self.__dict__.update(saved)

    # ------------------------------------------------------------------ registration
    def register_parameter(self, name: str, param: Parameter | None) -> None:
        """Make ``param`` a parameter of this module under ``name``."""
        self._check_name("parameter", name, "_parameters")
        if param is not None and not isinstance(param, Parameter):
            raise ArgumentTypeError(
                f"cannot assign '{type(param).__name__}' object to parameter '{name}' "
                "(Parameter or None required)"
            )
        if param is not None and param._node is not None:
            raise ArgumentError(
                f"Cannot assign non-leaf Tensor to parameter '{name}'. Model parameters must be "
                f"created explicitly. To express '{name}' as a function of another Tensor, "
                "compute the value in the forward() method."
            )
        self._parameters[name] = hooks.registered(self, name, param, "parameter")

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Make ``tensor`` part of this module's state without training it.

        Args:
            name: attribute under which it is found.
            tensor: the buffer, or None.
            persistent: whether ``state_dict`` holds it.
        """
        self._check_name("buffer", name, "_buffers")
        if tensor is not None and not isinstance(tensor, Tensor):
            raise ArgumentTypeError(
                f"cannot assign '{type(tensor).__name__}' object to buffer '{name}' "
                "(Tensor or None required)"
            )
        self._buffers[name] = hooks.registered(self, name, tensor, "buffer")
        if persistent:
            self._non_persistent_buffers_set.discard(name)
        else:
            self._non_persistent_buffers_set.add(name)

    def add_module(self, name: str, module: Module | None) -> None:
        """Make ``module`` a child of this module under ``name``."""
        if module is not None and not isinstance(module, Module):
            raise ArgumentTypeError(f"{type(module).__name__} is not a Module subclass")
        self._check_name("module", name, "_modules")
        self._modules[name] = hooks.registered(self, name, module, "module")

    register_module = add_module

    def _check_name(self, kind: str, name: str, held: str) -> None:
        if held not in self.__dict__:
            raise AttributeError(f"cannot assign {kind} before Module.__init__() call")
        if not isinstance(name, str):
            raise ArgumentTypeError(f"{kind} name should be a string. Got {type(name).__name__}")
        if hasattr(self, name) and name not in self.__dict__[held]:
            raise KeyError(f"attribute '{name}' already exists")
        if "." in name:
            raise KeyError(f'{kind} name can\'t contain ".", got: {name}')
        if name == "":
            raise KeyError(f'{kind} name can\'t be empty string ""')

    # ------------------------------------------------------------------ finding by name
    def get_submodule(self, target: str) -> Module:
        """Return the descendant with the dotted name ``target``; "" is this module."""
        module: Any = self
        for item in target.split(".") if target else ():
            if not hasattr(module, item):
                raise AttributeError(f"{type(module).__name__} has no attribute `{item}`")
            module = getattr(module, item)
            if not isinstance(module, Module):
                raise AttributeError(f"`{item}` is not an nn.Module")
        found: Module = module
        return found

    def set_submodule(self, target: str, module: Module, strict: bool = False) -> None:
        """Put ``module`` in the place of the descendant with the dotted name ``target``.

        Args:
            target: the name; what it is in must exist.
            module: what is put there.
            strict: there must be one already.
        """
        if target == "":
            raise ArgumentError("Cannot set the submodule without a target name!")
        if not isinstance(module, Module):
            raise ArgumentError(f"`module` is not an nn.Module, found {type(module)}")
        path, _, name = target.rpartition(".")
        holder = self.get_submodule(path)
        if strict and not hasattr(holder, name):
            raise AttributeError(f"{type(holder).__name__} has no attribute `{name}`")
        if hasattr(holder, name) and not isinstance(getattr(holder, name), Module):
            raise AttributeError(f"`{name}` is not an nn.Module")
        setattr(holder, name, module)

    def get_parameter(self, target: str) -> Parameter:
        """Return the parameter with the dotted name ``target``."""
        path, _, name = target.rpartition(".")
        module = self.get_submodule(path)
        found = getattr(module, name, None)
        if not hasattr(module, name):
            raise AttributeError(f"{type(module).__name__} has no attribute `{name}`")
        if not isinstance(found, Parameter):
            raise AttributeError(f"`{name}` is not an nn.Parameter")
        return found

    def get_buffer(self, target: str) -> Tensor:
        """Return the buffer with the dotted name ``target``."""
        path, _, name = target.rpartition(".")
        module = self.get_submodule(path)
        if not hasattr(module, name):
            raise AttributeError(f"{type(module).__name__} has no attribute `{name}`")
        found = module._buffers.get(name)
        if found is None:
            raise AttributeError(f"`{name}` is not a buffer")
        return found

    # ------------------------------------------------------------------ walking the tree
    def named_modules(
        self, memo: set[Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Module]]:
        """Give this module and all descendants with their dotted names."""
        memo = set() if memo is None else memo
        if self in memo:
            return
        if remove_duplicate:
            memo.add(self)
        yield prefix, self
        for name, module in self._modules.items():
            if module is not None:
                below = prefix + ("." if prefix else "") + name
                yield from module.named_modules(memo, below, remove_duplicate)

    def modules(self) -> Iterator[Module]:
        """Give this module and all descendants, each once."""
        for _, module in self.named_modules():
            yield module

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """Give the immediate children with their names, each once."""
        seen: set[Module] = set()
        for name, module in self._modules.items():
            if module is not None and module not in seen:
                seen.add(module)
                yield name, module

    def children(self) -> Iterator[Module]:
        """Give the immediate children, each once."""
        for _, module in self.named_children():
            yield module

    def _named_members(
        self,
        get_members_fn: Callable[[Module], Any],
        prefix: str = "",
        recurse: bool = True,
        remove_duplicate: bool = True,
    ) -> Iterator[tuple[str, Any]]:
        seen: set[Any] = set()
        modules: Any = [(prefix, self)]
        if recurse:
            modules = self.named_modules(prefix=prefix, remove_duplicate=remove_duplicate)
        for path, module in modules:
            for name, value in get_members_fn(module):
                if value is None or value in seen:
                    continue
                if remove_duplicate:
                    seen.add(value)
                yield path + ("." if path else "") + name, value

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """Give the parameters with their dotted names; a shared one once, under its first name."""
        yield from self._named_members(
            lambda module: module._parameters.items(), prefix, recurse, remove_duplicate
        )

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """Give the parameters, each once; what an optimizer takes."""
        for _, param in self.named_parameters(recurse=recurse):
            yield param

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """Give the buffers with their dotted names."""
        yield from self._named_members(
            lambda module: module._buffers.items(), prefix, recurse, remove_duplicate
        )

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """Give the buffers, each once."""
        for _, buffer in self.named_buffers(recurse=recurse):
            yield buffer

    # ------------------------------------------------------------------ modes
    def train(self: M, mode: bool = True) -> M:
        """Set training mode (dropout, batch statistics) in the whole tree and return the module."""
        if not isinstance(mode, bool):
            raise ArgumentError("training mode is expected to be boolean")
        self.training = mode
        for module in self.children():
            module.train(mode)
        return self

    def eval(self: M) -> M:
        """Set evaluation mode in the whole tree and return the module."""
        return self.train(False)

    def requires_grad_(self: M, requires_grad: bool = True) -> M:
        """Set ``requires_grad`` of all parameters and return the module."""
        for param in self.parameters():
            param.requires_grad_(requires_grad)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of all parameters, or fill them with zeros."""
        for param in self.parameters():
            zero_gradient(param, set_to_none)

    def apply(self: M, fn: Callable[[Module], None]) -> M:
        """Call ``fn`` on every descendant, children first, then on this module."""
        for module in self.children():
            module.apply(fn)
        fn(self)
        return self

    # ------------------------------------------------------------------ conversion
    def _apply(self: M, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> M:
        """Replace the memory of every parameter, gradient and buffer by ``fn`` of it."""
        if recurse:
            for module in self.children():
                module._apply(fn)
        with no_grad():
            for param in self._parameters.values():
                if param is not None:
                    convert_parameter(param, fn)
            for name, buffer in self._buffers.items():
                if isinstance(buffer, UninitializedTensorMixin):
                    buffer.convert(fn)
                elif buffer is not None:
                    self._buffers[name] = fn(buffer)
        return self

    def to(self: M, *args: Any, **kwargs: Any) -> M:
        """Move to a device, or convert floating point parameters and buffers to a dtype.

        Takes ``to(device, dtype, non_blocking)``, ``to(dtype)``, ``to(tensor)`` or
        ``to(memory_format=…)``, which lays out those of 4 and 5 dimensions; in place. With
        ``non_blocking`` each tensor is copied as ``Tensor.to`` does, beside other work.
        """
        device, dtype, layout, non_blocking = parse_to(args, kwargs)
        if dtype is not None and not (dtype.is_floating_point or dtype.is_complex):
            raise ArgumentTypeError(
                f"nn.Module.to only accepts floating point or complex dtypes, but got desired "
                f"dtype={dtype}"
            )

        def convert(t: Any) -> Tensor:
            kind = dtype if t.is_floating_point() or t.is_complex() else None
            out = t.to(device=device, dtype=kind, non_blocking=non_blocking)
            if layout is not None and t.ndim in (4, 5):
                out = out.contiguous(memory_format=layout)
            moved: Tensor = out
            return moved

        return self._apply(convert)

    def _floats_to(self: M, dtype: dtypes.dtype) -> M:
        def convert(t: Any) -> Any:
            return t.to(dtype=dtype) if t.is_floating_point() else t

        return self._apply(convert)

    def cpu(self: M) -> M:
        """Move everything to the host."""
        return self.to(Device("cpu"))

    def cuda(self: M, device: Device | int | None = None) -> M:
        """Move everything to a GPU."""
        return self.to(Device("cuda" if device is None else device))

    def ipu(self: M, device: Device | int | None = None) -> M:
        """Refuse: there are no such devices here."""
        raise no_device("ipu")

    def xpu(self: M, device: Device | int | None = None) -> M:
        """Refuse: there are no such devices here."""
        raise no_device("xpu")

    def mtia(self: M, device: Device | int | None = None) -> M:
        """Refuse: there are no such devices here."""
        raise no_device("mtia")

    def share_memory(self: M) -> M:
        """Move parameters and buffers to memory that processes of this host share."""
        return self._apply(lambda t: t.share_memory_())

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing, whatever the arguments: there is no compiler, and calls stay as they are."""

    def float(self: M) -> M:
        """Convert floating point parameters and buffers to float32."""
        return self._floats_to(dtypes.float32)

    def double(self: M) -> M:
        """Convert floating point parameters and buffers to float64."""
        return self._floats_to(dtypes.float64)

    def half(self: M) -> M:
        """Convert floating point parameters and buffers to float16."""
        return self._floats_to(dtypes.float16)

    def bfloat16(self: M) -> M:
        """Convert floating point parameters and buffers to bfloat16."""
        return self._floats_to(dtypes.bfloat16)

    def type(self: M, dst_type: dtypes.dtype) -> M:
        """Convert all parameters and buffers to ``dst_type``."""
        return self._apply(lambda t: t.to(dtype=dst_type))

    def to_empty(self: M, *, device: Device | str | int | None, recurse: bool = True) -> M:
        """Move to ``device`` without copying the values."""
        return self.to(device) if device is not None else self

    # ------------------------------------------------------------------ state
    def get_extra_state(self) -> Any:
        """Return what a subclass wants kept in ``state_dict`` besides its tensors."""
        raise RuntimeError(
            "Reached a code path in Module.get_extra_state() that should never be called"
        )

    def set_extra_state(self, state: Any) -> None:
        """Take back what ``get_extra_state`` returned."""
        raise RuntimeError(
            "Reached a code path in Module.set_extra_state() that should never be called"
        )

    def _takes_extra_state(self) -> bool:
        return type(self).set_extra_state is not Module.set_extra_state

    def _own_state(self) -> Iterator[tuple[str, Tensor]]:
        """Give the parameters and persistent buffers of this module alone."""
        for name, param in self._parameters.items():
            if param is not None:
                yield name, param
        for name, buffer in self._buffers.items():
            if buffer is not None and name not in self._non_persistent_buffers_set:
                yield name, buffer

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        for name, value in self._own_state():
            kept = keep_vars or is_lazy(value)
            destination[prefix + name] = value if kept else value.detach()
        if type(self).get_extra_state is not Module.get_extra_state:
            destination[prefix + state.EXTRA_STATE] = self.get_extra_state()

    def state_dict(
        self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False
    ) -> dict[str, Any]:
        """Return parameters and persistent buffers by dotted name, sharing their memory.

        Args:
            args: the others by position, PyTorch's older form.
            destination: a dict to fill instead of a new one.
            prefix: put before every name.
            keep_vars: give the parameters themselves instead of detached tensors.
        """
        if args:
            warnings.warn(
                "Positional args are being deprecated, use kwargs instead.",
                FutureWarning,
                stacklevel=2,
            )
            given = (*args, *(destination, prefix, keep_vars)[len(args) :])
            destination, prefix, keep_vars = given
        if destination is None:
            destination = OrderedDict()
            destination._metadata = OrderedDict()
        metadata = {"version": self._version}
        if hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]] = metadata
        for hook in self._state_dict_pre_hooks.values():
            hook(self, prefix, keep_vars)
        self._save_to_state_dict(destination, prefix, keep_vars)
        for name, module in self._modules.items():
            if module is not None:
                module.state_dict(
                    destination=destination, prefix=prefix + name + ".", keep_vars=keep_vars
                )
        for hook in self._state_dict_hooks.values():
            new = hook(self, destination, prefix, metadata)
            destination = destination if new is None else new
        out: dict[str, Any] = destination
        return out

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
        """Copy this module's own entries; subclasses may override it to take older formats."""
        rest = (strict, missing_keys, unexpected_keys, error_msgs)
        for hook in self._load_state_dict_pre_hooks.values():
            hook(state_dict, prefix, local_metadata, *rest)
        found = state.IncompatibleKeys(missing_keys, unexpected_keys)
        state.load_own(self, state_dict, prefix, local_metadata, strict, found, error_msgs)

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> state.IncompatibleKeys:
        """Copy ``state_dict`` into this module and return the missing and unexpected keys.

        Args:
            state_dict: tensors by dotted name, as ``state_dict()`` returns them.
            strict: raise when a key is missing or unexpected.
            assign: take the tensors themselves instead of copying their values.

        Raises:
            CheckpointError: a shape differs, or with ``strict`` a key is missing or unexpected.
        """
        return state.load(self, state_dict, strict, assign)

    # ------------------------------------------------------------------ hooks
    def _hook(self, table: str, hook: Hook, prepend: bool = False) -> Removable:
        handle = Removable(self.__dict__[table], hook)
        self.__dict__["_hooked"] = True
        if prepend:
            self.__dict__[table].move_to_end(handle.id, last=False)
        return handle

    def register_forward_pre_hook(
        self, hook: Hook, *, prepend: bool = False, with_kwargs: bool = False
    ) -> Removable:
        """Call ``hook(module, args)`` before ``forward``; what it returns replaces the inputs."""
        handle = self._hook("_forward_pre_hooks", hook, prepend)
        if with_kwargs:
            self._forward_pre_hooks_with_kwargs[handle.id] = True
        return handle

    def register_forward_hook(
        self,
        hook: Hook,
        *,
        prepend: bool = False,
        with_kwargs: bool = False,
        always_call: bool = False,
    ) -> Removable:
        """Call ``hook(module, args, output)`` after ``forward``; it may return another output."""
        handle = self._hook("_forward_hooks", hook, prepend)
        if with_kwargs:
            self._forward_hooks_with_kwargs[handle.id] = True
        if always_call:
            self._forward_hooks_always_called[handle.id] = True
        return handle

    def register_full_backward_pre_hook(self, hook: Hook, prepend: bool = False) -> Removable:
        """Call ``hook(module, grad_output)`` before the module's backward."""
        return self._hook("_backward_pre_hooks", hook, prepend)

    def register_full_backward_hook(self, hook: Hook, prepend: bool = False) -> Removable:
        """Call ``hook(module, grad_input, grad_output)`` after the module's backward."""
        return self._hook("_backward_hooks", hook, prepend)

    def register_backward_hook(self, hook: Hook) -> Removable:
        """Register a full backward hook, which PyTorch recommends in the place of this one."""
        return self.register_full_backward_hook(hook)

    def register_state_dict_post_hook(self, hook: Hook) -> Removable:
        """Call ``hook(module, state_dict, prefix, metadata)`` at the end of ``state_dict``."""

        @functools.wraps(hook)
        def checked(*args: Any) -> None:
            if hook(*args) is not None:
                raise RuntimeError("state_dict post-hook must return None")

        return Removable(self._state_dict_hooks, checked)

    def _register_state_dict_hook(self, hook: Hook) -> Removable:
        """Call ``hook`` at the end of ``state_dict``; what it returns takes the dict's place."""
        return Removable(self._state_dict_hooks, hook)

    def register_state_dict_pre_hook(self, hook: Hook) -> Removable:
        """Call ``hook(module, prefix, keep_vars)`` at the start of ``state_dict``."""
        return Removable(self._state_dict_pre_hooks, hook)

    def register_load_state_dict_pre_hook(self, hook: Hook) -> Removable:
        """Call ``hook(module, state_dict, prefix, …)`` before this module's entries are loaded."""
        return self._register_load_state_dict_pre_hook(hook, with_module=True)

    def _register_load_state_dict_pre_hook(
        self, hook: Hook, with_module: bool = False
    ) -> Removable:
        bound: Hook = functools.partial(hook, self) if with_module else hook
        return Removable(self._load_state_dict_pre_hooks, bound)

    def register_load_state_dict_post_hook(self, hook: Hook) -> Removable:
        """Call ``hook(module, incompatible_keys)`` after this module and its children loaded."""
        return Removable(self._load_state_dict_post_hooks, hook)

    # ------------------------------------------------------------------ printed form
    def _get_name(self) -> str:
        return type(self).__name__

    def extra_repr(self) -> str:
        """Return what stands between the brackets of this module's printed form."""
        return ""

    def __repr__(self) -> str:
        extra = self.extra_repr()
        extra_lines = extra.split("\n") if extra else []
        child_lines = [
            f"({name}): " + repr(module).replace("\n", "\n  ")
            for name, module in self._modules.items()
        ]
        if len(extra_lines) == 1 and not child_lines:
            return f"{self._get_name()}({extra_lines[0]})"
        lines = extra_lines + child_lines
        body = "\n  " + "\n  ".join(lines) + "\n" if lines else ""
        return f"{self._get_name()}({body})"


def _refuse_early(value: Any) -> None:
    kinds = {Parameter: "parameters", Module: "module", Buffer: "buffer"}
    for kind, word in kinds.items():
        if isinstance(value, kind):
            raise AttributeError(f"cannot assign {word} before Module.__init__() call")


def _only_none(value: Any, what: str, name: str, wanted: str) -> None:
    if value is not None:
        raise ArgumentTypeError(
            f"cannot assign '{type(value).__name__}' as {what} '{name}' ({wanted} or None expected)"
        )


__all__ = ["Module"]
