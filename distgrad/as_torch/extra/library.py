"""Own operations in Python: their functions run as they are, and differentiate by their rules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from distgrad.autograd.function import Function
from distgrad.errors import ArgumentError

__all__ = [
    "CustomOpDef", "Library", "custom_op", "define", "impl", "register_autograd", "register_fake",
    "register_kernel", "register_vmap", "triton_op", "wrap_triton",
]  # fmt: skip

operations: dict[str, CustomOpDef] = {}


class CustomOpDef:
    """An operation made of a Python function, with a rule for its gradient if it has been given.

    Example:
        >>> import distgrad as dg
        >>> from distgrad.as_torch.extra.library import custom_op
        >>> @custom_op("mine::twice", mutates_args=())
        ... def twice(x: dg.Tensor) -> dg.Tensor:
        ...     return x * 2
        >>> twice.register_autograd(lambda ctx, grad: grad * 2)
        >>> x = dg.ones(2, requires_grad=True)
        >>> twice(x).sum().backward()
        >>> x.grad
        tensor([2., 2.])
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name, self.function = name, function
        self.__name__, self.__doc__ = name.rpartition("::")[2], function.__doc__
        self._rule: type[Function] | None = None
        self.default = self  # the only overload
        operations[name] = self

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Return what the function does; keywords go by position, as rules get them so."""
        if self._rule is None:
            return self.function(*args, **options)
        return self._rule.apply(*_in_order(self.function, args, options))

    def register_autograd(
        self, backward: Callable[..., Any], /, *, setup_context: Callable[..., Any] | None = None
    ) -> None:
        """Take ``backward(ctx, *grads)`` for the gradient.

        Args:
            setup_context: ``setup_context(ctx, inputs, output)`` keeps what backward needs.
        """
        function = self.function

        class Rule(Function):
            @staticmethod
            def forward(*inputs: Any) -> Any:
                return function(*inputs)

            @staticmethod
            def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
                if setup_context is not None:
                    setup_context(ctx=ctx, inputs=inputs, output=output)

            @staticmethod
            def backward(ctx: Any, *grads: Any) -> Any:
                return backward(ctx, *grads)

        Rule.__name__ = self.__name__
        self._rule = Rule

    def register_kernel(self, device_types: Any, func: Any = None, /) -> Any:
        """Take ``func`` for the function, whatever the device."""

        def take(kernel: Callable[..., Any]) -> Callable[..., Any]:
            self.function = kernel
            return kernel

        return take if func is None else take(func)

    def register_fake(self, fn: Any, /) -> Any:
        """Return ``fn``: only a compiler would call it."""
        return fn

    register_vmap = register_fake


def _in_order(
    function: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]
) -> tuple[Any, ...]:
    from inspect import signature  # only operations with a rule pay for it

    bound = signature(function).bind(*args, **options)
    bound.apply_defaults()
    return bound.args


def custom_op(
    name: str,
    fn: Callable[..., Any] | None = None,
    /,
    *,
    mutates_args: Any = (),
    device_types: Any = None,
    schema: str | None = None,
    tags: Any = None,
) -> Any:
    """Return an operation made of ``fn``, or a decorator that makes one.

    Args:
        name: ``"namespace::name"``.
        mutates_args, device_types, schema, tags: of PyTorch's dispatcher, which is not here.
    """
    if fn is None:
        return lambda function: CustomOpDef(name, function)
    return CustomOpDef(name, fn)


def triton_op(name: str, fn: Any = None, /, *, mutates_args: Any = (), **options: Any) -> Any:
    """Return an operation made of ``fn``, as `custom_op` does."""
    return custom_op(name, fn, mutates_args=mutates_args)


def wrap_triton(fn: Any, /) -> Any:
    """Return ``fn``."""
    return fn


def _known(op: Any) -> CustomOpDef | None:
    return op if isinstance(op, CustomOpDef) else operations.get(str(op))


def register_autograd(
    op: Any,
    backward: Callable[..., Any],
    /,
    *,
    setup_context: Callable[..., Any] | None = None,
    lib: Any = None,
) -> None:
    """Take ``backward`` for the gradient of ``op``; see `CustomOpDef.register_autograd`.

    An operation that nobody made in Python, as one of a compiled library, is not here: nothing
    can call it, so nothing needs its rule.
    """
    known = _known(op)
    if known is not None:
        known.register_autograd(backward, setup_context=setup_context)


def register_fake(op: Any, func: Any = None, /, *, lib: Any = None, **options: Any) -> Any:
    """Return the function, or a decorator that does: only a compiler would call it."""
    return (lambda function: function) if func is None else func


register_vmap = register_fake


def register_kernel(op: Any, device_types: Any, func: Any = None, /, *, lib: Any = None) -> Any:
    """Take ``func`` for the function of ``op``."""
    known = _known(op)
    if known is None:
        raise ArgumentError(f"register_kernel({op!r}): no such operation; make it with custom_op")
    return known.register_kernel(device_types, func)


def define(qualname: str, schema: Any = None, *, lib: Any = None, tags: Sequence[Any] = ()) -> Any:
    """Return nothing, or a decorator that makes an operation of a function."""
    return (lambda function: CustomOpDef(qualname, function)) if callable(schema) else None


def impl(qualname: Any, types: Any, func: Any = None, *, lib: Any = None) -> Any:
    """Make an operation of ``func``, or return a decorator that does so."""
    if func is None:
        return lambda function: CustomOpDef(str(qualname), function)
    return CustomOpDef(str(qualname), func)


class Library:
    """A namespace of operations.

    Args:
        ns: its name.
        kind: "DEF", "IMPL" or "FRAGMENT".
        dispatch_key: of PyTorch's dispatcher, which is not here.
    """

    def __init__(self, ns: str, kind: str, dispatch_key: str = "") -> None:
        self.ns, self.kind = ns, kind

    def define(self, schema: str, alias_analysis: str = "", *, tags: Any = ()) -> str:
        """Return the name in ``schema``."""
        return schema.partition("(")[0].strip()

    def impl(self, op_name: Any, fn: Any, dispatch_key: str = "", **options: Any) -> None:
        """Make an operation of ``fn``."""
        if dispatch_key != "Meta":
            CustomOpDef(f"{self.ns}::{str(op_name).rpartition('::')[2]}", fn)
