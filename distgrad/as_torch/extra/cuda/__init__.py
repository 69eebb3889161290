"""What only PyTorch's programs ask of ``torch.cuda``: older names of types, and captured graphs."""

from __future__ import annotations

from typing import Any, NoReturn

from distgrad.cuda import stream
from distgrad.errors import ArgumentError
from distgrad.ops.typed import ON_CUDA

_initialized = False  # as far as PyTorch's programs look at it; is_initialized() knows
StreamContext = stream
globals().update(ON_CUDA)


def is_current_stream_capturing() -> bool:
    """Return False: steps are not captured."""
    return False


def make_graphed_callables(callables: Any, sample_args: Any, **options: Any) -> NoReturn:
    """Raise: steps are not captured.

    Raises:
        ArgumentError: always.
    """
    raise ArgumentError(
        "make_graphed_callables(): distgrad captures no CUDA graphs yet; call the modules as they "
        "are"
    )


class CUDAGraph:
    """A captured graph, which cannot be made yet."""

    def __init__(self, keep_graph: bool = False) -> None:
        raise ArgumentError(
            "CUDAGraph(): distgrad captures no CUDA graphs yet; run the step itself"
        )


class graph(CUDAGraph):
    """The block that captures, which cannot be made yet."""
