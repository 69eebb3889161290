"""Logs for TensorBoard, written by tensorboardX where it is installed."""

from __future__ import annotations

from typing import Any

from distgrad.errors import MissingExtra


def __getattr__(name: str) -> Any:
    """Return tensorboardX's ``SummaryWriter``.

    Raises:
        MissingExtra: tensorboardX is not installed.
    """
    if name != "SummaryWriter":
        raise AttributeError(name)
    try:
        from tensorboardX import SummaryWriter  # optional
    except ImportError as error:
        raise MissingExtra(
            "torch.utils.tensorboard: logs for TensorBoard are written by tensorboardX, which is "
            "not installed; pip install tensorboardX"
        ) from error
    return SummaryWriter
