"""The older names of the functions that fill parameters, without an underscore at their end."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

from distgrad.nn import init


def _older(name: str) -> Callable[..., Any]:
    function = getattr(init, name + "_")

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        warnings.warn(
            f"`nn.init.{name}` is now deprecated in favor of `nn.init.{name}_`.",
            FutureWarning,
            stacklevel=2,
        )
        return function(*args, **options)

    return call


for _name in (
    "constant", "dirac", "eye", "kaiming_normal", "kaiming_uniform", "normal", "orthogonal",
    "sparse", "uniform", "xavier_normal", "xavier_uniform",
):  # fmt: skip
    globals()[_name] = _older(_name)
