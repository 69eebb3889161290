"""The same names at another path of PyTorch's."""

from distgrad.as_torch.extra.distributed.checkpoint import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)

__all__ = ["HuggingFaceStorageReader", "HuggingFaceStorageWriter"]
