"""What programs may ask of numerical libraries, where the code that obeys can read it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Attention", "Cudnn", "attention", "cudnn"]


class Cudnn:
    """What ``backends.cudnn`` is set to."""

    enabled = True
    benchmark = False
    benchmark_limit: int | None = 10
    deterministic = False
    allow_tf32 = True


class Attention:
    """Which of PyTorch's kernels of attention may be used; here there are cuDNN's and "math"."""

    flash = math = memory_efficient = cudnn = True

    @property
    def fused(self) -> bool:
        """Whether one that does not write the weights out may be used."""
        return self.flash or self.memory_efficient or self.cudnn

    @contextmanager
    def only(self, flash: bool, math: bool, memory_efficient: bool, cudnn: bool) -> Iterator[None]:
        """Have these values inside a ``with`` block."""
        before = self.flash, self.math, self.memory_efficient, self.cudnn
        self.flash, self.math = flash, math
        self.memory_efficient, self.cudnn = memory_efficient, cudnn
        try:
            yield
        finally:
            self.flash, self.math, self.memory_efficient, self.cudnn = before


cudnn, attention = Cudnn(), Attention()
