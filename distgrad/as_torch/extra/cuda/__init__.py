"""What only PyTorch's programs ask of ``torch.cuda``: older names of types."""

from __future__ import annotations

from distgrad.cuda import stream
from distgrad.ops.typed import ON_CUDA

_initialized = False  # as far as PyTorch's programs look at it; is_initialized() knows
StreamContext = stream
globals().update(ON_CUDA)
