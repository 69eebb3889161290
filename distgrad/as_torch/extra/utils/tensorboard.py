"""Logs for TensorBoard, written by tensorboardX where it is installed."""

from __future__ import annotations

from typing import Any

from distgrad.errors import MissingExtra
from distgrad.tensor import Tensor


def __getattr__(name: str) -> Any:
    """Return tensorboardX's ``SummaryWriter``.

    Raises:
        MissingExtra: tensorboardX is not installed.
    """
    if name != "SummaryWriter":
        raise AttributeError(name)
    try:
        from tensorboardX import SummaryWriter, summary, x2num  # optional
    except ImportError as error:
        raise MissingExtra(
            "torch.utils.tensorboard: logs for TensorBoard are written by tensorboardX, which is "
            "not installed; pip install tensorboardX"
        ) from error
    _read_tensors(x2num, summary)
    return SummaryWriter


def _read_tensors(home: Any, user: Any) -> None:
    """Let tensorboardX read our tensors: it knows PyTorch's by the name of their class only."""
    known = home.make_np
    if known.__module__ == __name__:
        return

    def make_np(x: Any) -> Any:
        return known(x.detach().cpu().numpy() if isinstance(x, Tensor) else x)

    home.make_np = user.make_np = make_np
