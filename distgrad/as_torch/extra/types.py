"""Names of types for annotations."""

from __future__ import annotations

from builtins import bool as _bool
from builtins import float as _float
from builtins import int as _int
from collections.abc import Sequence
from os import PathLike
from typing import IO, Any

from distgrad.backend.device import device
from distgrad.backend.dtype import dtype
from distgrad.backend.layout import layout
from distgrad.tensor import Size, Tensor

Number = _int | _float | _bool
Device = device | str | _int | None
FileLike = str | PathLike[str] | IO[bytes]
_size = Size | list[_int] | tuple[_int, ...]
_dtype, _device, _layout = dtype, device, layout
_TensorOrTensors = Tensor | Sequence[Tensor]
_TensorOrTensorsOrGradEdge = _TensorOrTensors
_Number, _symsize, Any_ = Number, _size, Any
