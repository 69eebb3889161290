"""The same names at another path of PyTorch's."""

from contextlib import nullcontext
from typing import Any

from distgrad.as_torch.extra._subclasses import FakeTensor, FakeTensorMode

__all__ = ["FakeTensor", "FakeTensorMode", "is_fake", "unset_fake_temporarily"]


def is_fake(x: Any) -> bool:
    """Return False: tensors have data."""
    return False


def unset_fake_temporarily() -> Any:
    """Return a context that changes nothing."""
    return nullcontext()
