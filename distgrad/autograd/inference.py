"""``inference_mode``: nothing is recorded, and what is made inside never takes part in autograd.

Note [Inference tensors cost nothing]
    A tensor made in the mode carries a token.  Its memory has no version counter: ``UNTRACKED``
    stands in its place, for views of it too, while views of ordinary tensors share the counter of
    those and stay ordinary.  Two globals of the operations are replaced: while a thread is in the
    mode, the one that makes tensors, and as long as a token is held somewhere, the one that makes
    nodes, which must not save what carries it.  Ordinary programs run neither.
"""

from __future__ import annotations

import weakref
from typing import Any

from distgrad.autograd import saving
from distgrad.autograd.mode import _Switch, is_inference_mode_enabled, mode
from distgrad.errors import ArgumentTypeError, GradError
from distgrad.tensor import Tensor, is_inference


class _Token:
    """Held by every inference tensor, so that its end is the end of the last of them."""

    __slots__ = ("__weakref__",)


class _State:
    users = 0  # how many blocks are open, in all threads
    token: _Token | None = None  # while there are any
    ref: weakref.ref[_Token] | None = None


_state = _State()


def _count(change: int) -> None:
    """Note that a block begins (1) or ends (-1)."""
    with saving.lock:
        _state.users += change
        if not _state.users:
            saving.replace("_new", object.__new__)
            _state.token = None
        elif _state.token is None:
            token = None if _state.ref is None else _state.ref()
            if token is None:
                token = _Token()
                _state.ref = weakref.ref(token, _forgotten)
                saving.switch.inspect = _refuse
                saving.observe(1)
            _state.token = token
            saving.replace("_new", _made)


def _forgotten(ref: object) -> None:
    """No inference tensor is left."""
    with saving.lock:
        saving.observe(-1)
        if ref is _state.ref:
            saving.switch.inspect = _state.ref = None


def _made(kind: type[Tensor]) -> Tensor:
    """Return an empty tensor, marked if this thread is in inference mode."""
    tensor = object.__new__(kind)
    if mode.inference:
        tensor._inference = _state.token
    return tensor


def _refuse(value: Any) -> None:
    """Raise for an inference tensor among the values that a node is to save."""
    if isinstance(value, list | tuple):
        for one in value:
            _refuse(one)
    elif isinstance(value, Tensor) and is_inference(value):
        raise GradError(
            f"save({value._brief()}): Inference tensors cannot be saved for backward. Please do "
            "not use Tensors created in inference mode in computation tracked by autograd. To work "
            "around this, you can make a clone to get a normal tensor and use it in autograd, or "
            "use dg.no_grad() instead of dg.inference_mode()"
        )


Tensor._inferring = staticmethod(is_inference_mode_enabled)


class inference_mode(_Switch):
    """Turns recording off; tensors made inside can never take part in autograd later.

    Args:
        mode: False turns recording on again inside an outer inference mode.

    Example:
        >>> import distgrad as dg
        >>> with dg.inference_mode():
        ...     x = dg.ones(2)
        >>> x.is_inference(), (x * 2).is_inference()
        (True, False)
    """

    def __new__(cls, mode: Any = True) -> Any:
        """Return the switch, or the function decorated when used as ``@inference_mode``."""
        self = super().__new__(cls)
        if callable(mode):
            self._grad, self._inference = False, True
            return self(mode)
        if not isinstance(mode, bool):
            raise ArgumentTypeError(f"inference_mode(mode={mode!r}): takes a bool")
        self._grad, self._inference = not mode, mode
        return self

    def __enter__(self) -> None:
        if self._inference:
            _count(1)
        super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        if self._inference:
            _count(-1)

    def _again(self) -> _Switch:
        switch: _Switch = inference_mode(bool(self._inference))
        return switch
