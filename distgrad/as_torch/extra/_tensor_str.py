"""How tensors are printed, by the names inside PyTorch that packages use."""

from __future__ import annotations

from distgrad.backend import format as printing
from distgrad.tensor import Tensor

__all__ = ["PRINT_OPTS", "_tensor_str", "set_printoptions"]

set_printoptions = printing.set_printoptions


class _Options:
    """The settings in use."""

    @property
    def threshold(self) -> float:
        """The number of elements from which on the middle is left out."""
        return float(printing.get_printoptions()["threshold"])

    @property
    def precision(self) -> int:
        """Digits after the point."""
        return int(printing.get_printoptions()["precision"])


PRINT_OPTS = _Options()


def _tensor_str(self: Tensor, indent: int) -> str:
    """Return the numbers of a tensor as its ``repr`` shows them, without what stands around."""
    text = repr(self.detach())
    return text[text.index("(") + 1 : text.rindex("]") + 1] if self.ndim else str(self.item())
