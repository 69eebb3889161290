"""Modules that wait for their parameters, where those are gathered while forward runs."""

from __future__ import annotations

from typing import Any

from distgrad.distributed.reducer import Reducer
from distgrad.nn.module import Module


class Guard:
    """A hook that returns when a module's own parameters are whole; copies of it do nothing."""

    __slots__ = ("reducer",)

    def __init__(self, reducer: Reducer | None = None) -> None:
        self.reducer = reducer

    def __call__(self, module: Module, *_: Any) -> None:
        """Wait for the parameters of ``module``, its children's aside."""
        if self.reducer is not None and self.reducer.gathering:
            self.reducer.wait_for(module.parameters(recurse=False))

    def __reduce__(self) -> tuple[type[Guard], tuple[()]]:
        """Forget the reducer: a copied module has parameters of its own."""
        return Guard, ()


def guard(module: Module, reducer: Reducer) -> None:
    """Let all of ``module`` wait for parameters before forward, saving and loading."""
    hook = Guard(reducer)
    for part in module.modules():
        part.register_forward_pre_hook(hook)
        part.register_state_dict_pre_hook(hook)
        part.register_load_state_dict_pre_hook(hook)
