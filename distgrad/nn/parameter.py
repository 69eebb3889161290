"""Parameters and buffers: tensors that a module finds when they are assigned to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distgrad.backend.device import device as Device
from distgrad.backend.device import device_of, namespace_of
from distgrad.backend.dtype import as_numpy, default_float, from_numpy
from distgrad.errors import ArgumentError, ArgumentTypeError, CheckpointError
from distgrad.tensor import Tensor, wrap


class Parameter(Tensor):
    """A tensor that belongs to a module: it requires grad and optimizers change it.

    Args:
        data: the tensor whose memory the parameter takes; empty when left out.
        requires_grad: whether gradients are wanted.

    Example:
        >>> import distgrad as dg
        >>> Parameter(dg.ones(2))
        Parameter containing:
        tensor([1., 1.], requires_grad=True)
    """

    __slots__ = ()

    def __init__(self, data: Tensor | None = None, requires_grad: bool = True) -> None:
        _take(self, "Parameter", data)
        self.requires_grad_(requires_grad)

    def __repr__(self) -> str:  # type: ignore[override]
        return "Parameter containing:\n" + super().__repr__()


class Buffer(Tensor):
    """A tensor that belongs to a module's state but is not trained.

    Args:
        data: the tensor whose memory the buffer takes; empty when left out.
        persistent: whether ``state_dict`` holds it.
    """

    __slots__ = ()
    persistent: bool = True

    def __init__(self, data: Tensor | None = None, *, persistent: bool = True) -> None:
        _take(self, "Buffer", data)
        self.persistent = persistent


def _take(self: Tensor, kind: str, data: Any) -> None:
    """Give ``self`` the memory of ``data``, without its history."""
    if data is None:
        array = namespace_of(Device("cpu")).empty(0, default_float())
    elif isinstance(data, Tensor):
        array = data.array
    else:
        raise ArgumentTypeError(
            f"{kind}(data: {type(data).__name__}): takes a Tensor; make one with tensor(...)"
        )
    self.array = array
    self._requires = False
    self._grad = self._node = self._shared = None


# ---------------------------------------------------------------------- shapes known later
_NO_SHAPE = (
    "Can't access the shape of an uninitialized parameter or buffer. This error usually happens in "
    "`load_state_dict` when trying to load an uninitialized parameter into an initialized one. "
    "Call `forward` to initialize the parameters before accessing their attributes."
)
_slot: Any = Tensor.__dict__["array"]  # where a tensor keeps its array


class UninitializedTensorMixin:
    """A tensor whose shape is not known yet: it has a dtype and a device, and no elements."""

    __slots__ = ()
    cls_to_become: type[Tensor] = Tensor

    def _start(self, device: Any, dtype: Any, requires_grad: bool) -> None:
        kind = default_float() if dtype is None else as_numpy(dtype)
        _slot.__set__(self, namespace_of(Device(device or "cpu")).empty(0, kind))
        own: Any = self
        own._requires = requires_grad
        own._grad = own._node = own._shared = None

    @property
    def array(self) -> Any:
        """There is none: operations on the tensor are refused."""
        raise ArgumentError(
            "Attempted to use an uninitialized parameter. This error happens when you are using a "
            "`LazyModule` or explicitly manipulating `nn.parameter.UninitializedParameter` "
            "objects. When using LazyModules Call `forward` with a dummy batch to initialize the "
            "parameters before calling functions on them"
        )

    @property
    def shape(self) -> Any:
        """It is not known yet."""
        raise CheckpointError(_NO_SHAPE)

    @property
    def dtype(self) -> Any:
        """The type of the elements to be."""
        return from_numpy(_slot.__get__(self).dtype)

    @property
    def device(self) -> Any:
        """Where the elements will be."""
        return device_of(_slot.__get__(self))

    def materialize(self, shape: Any, device: Any = None, dtype: Any = None) -> None:
        """Become a parameter or buffer of ``shape``, uninitialised."""
        place = self.device if device is None else Device(device)
        kind = _slot.__get__(self).dtype if dtype is None else as_numpy(dtype)
        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        _slot.__set__(self, namespace_of(place).empty(sizes, kind))
        self.__class__ = self.cls_to_become  # type: ignore[assignment]

    def convert(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Take dtype and device of ``fn`` of an empty tensor like this one."""
        _slot.__set__(self, fn(wrap(_slot.__get__(self))).array)

    def share_memory_(self) -> None:
        """Refuse: there is nothing to share yet."""
        raise CheckpointError(
            "Can't share memory on an uninitialized parameter or buffer. Call `forward` to "
            "initialize the parameters before calling `module.share_memory()`."
        )

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"<{type(self).__name__}>"

    def __reduce_ex__(self, protocol: Any) -> Any:
        own: Any = self
        return type(self), (own._requires, str(self.device), self.dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        own: Any = self
        if id(self) not in memo:
            memo[id(self)] = type(self)(own._requires, self.device, self.dtype)  # type: ignore[call-arg]
        return memo[id(self)]


class UninitializedParameter(UninitializedTensorMixin, Parameter):  # type: ignore[misc]
    """A parameter whose shape the first forward tells; see ``LazyModuleMixin``.

    Example:
        >>> weight = UninitializedParameter()
        >>> weight
        <UninitializedParameter>
        >>> weight.materialize((2, 3))
        >>> weight.shape
        distgrad.Size([2, 3])
    """

    __slots__ = ()
    cls_to_become = Parameter

    def __init__(self, requires_grad: bool = True, device: Any = None, dtype: Any = None) -> None:
        """Note device and dtype."""
        self._start(device, dtype, requires_grad)


class UninitializedBuffer(UninitializedTensorMixin, Buffer):  # type: ignore[misc]
    """A buffer whose shape the first forward tells; it becomes a plain tensor."""

    __slots__ = ()

    def __init__(
        self,
        requires_grad: bool = False,
        device: Any = None,
        dtype: Any = None,
        persistent: bool = True,
    ) -> None:
        """Note device and dtype."""
        self._start(device, dtype, requires_grad)
        self.persistent = persistent


def is_lazy(param: Any) -> bool:
    """Return whether ``param`` has no shape yet."""
    return isinstance(param, UninitializedTensorMixin)
