"""``ChannelShuffle``, under the module name that it has in PyTorch."""

from distgrad.nn.modules.pixelshuffle import ChannelShuffle

__all__ = ["ChannelShuffle"]
