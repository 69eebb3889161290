"""Logs for TensorBoard, written by tensorboardX where it is installed."""

from distgrad.errors import MissingExtra

try:
    from tensorboardX import SummaryWriter
except ImportError as error:
    raise MissingExtra(
        "torch.utils.tensorboard: logs for TensorBoard are written by tensorboardX, which is not "
        "installed; pip install tensorboardX"
    ) from error

__all__ = ["SummaryWriter"]
