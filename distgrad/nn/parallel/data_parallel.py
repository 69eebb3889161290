"""``DataParallel``: one process, one device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distgrad.errors import ArgumentError
from distgrad.nn.module import Module

__all__ = ["DataParallel", "data_parallel"]


def _check_devices(device_ids: Sequence[Any] | None) -> list[Any]:
    ids = list(device_ids or [])
    if len(ids) > 1:
        raise ArgumentError(
            f"DataParallel(device_ids={ids}): one process drives one device here; start a process "
            "for each and use DistributedDataParallel"
        )
    return ids


class DataParallel(Module):
    """Runs ``module`` on its device, under the names that PyTorch's ``DataParallel`` gives it.

    Args:
        module: what is run.
        device_ids: at most one device.
        output_device: taken for compatibility: outputs are where the module is.
        dim: taken for compatibility: nothing is scattered.

    Differs from PyTorch:
        several devices are refused: ``DistributedDataParallel`` is the way to use them.
    """

    def __init__(
        self,
        module: Module,
        device_ids: Sequence[Any] | None = None,
        output_device: Any = None,
        dim: int = 0,
    ) -> None:
        """Keep the module."""
        super().__init__()
        self.device_ids = _check_devices(device_ids)
        self.module = module

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """Return ``module(*inputs, **kwargs)``."""
        return self.module(*inputs, **kwargs)


def data_parallel(
    module: Module,
    inputs: Any,
    device_ids: Sequence[Any] | None = None,
    output_device: Any = None,
    dim: int = 0,
    module_kwargs: dict[str, Any] | None = None,
) -> Any:
    """Return ``module(*inputs, **module_kwargs)``; see ``DataParallel``."""
    _check_devices(device_ids)
    given = inputs if isinstance(inputs, tuple) else () if inputs is None else (inputs,)
    return module(*given, **(module_kwargs or {}))
