"""Constants that packages take from PyTorch's flexible attention."""

__all__ = ["_DEFAULT_SPARSE_BLOCK_SIZE"]

_DEFAULT_SPARSE_BLOCK_SIZE = 128
