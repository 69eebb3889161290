"""Files of tensors in the safetensors format: written with their sums, read with suspicion.

The format is a length of 8 bytes, a JSON table of names, types, shapes and offsets, and the bytes
of the tensors one after the other. Everything in the table is compared with what the index of the
checkpoint says and with the length of the file before memory is taken for a tensor.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from distgrad.backend.dtype import as_numpy
from distgrad.distributed.checkpoint.folder import (
    Folder,
    Sum,
    read_at,
    read_into,
    sum_of,
    write_file,
)
from distgrad.distributed.checkpoint.strict import count_in, list_in, parsed, table_in
from distgrad.distributed.work import HostArray
from distgrad.errors import CheckpointError

MOST_HEAD = 100 << 20  # bytes; what the safetensors package takes as well
MOST_DIMENSIONS = 64
NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
    "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "U16": "uint16", "U32": "uint32",
    "U64": "uint64", "BOOL": "bool", "C64": "complex64", "C128": "complex128",
}  # fmt: skip
_CODES = {name: code for code, name in NAMES.items()}
_SIZES = {"BF16": 2} | {
    code: np.dtype(name).itemsize for code, name in NAMES.items() if code != "BF16"
}
_known_codes: dict[np.dtype[Any], str] = {}


def code_of(dtype: np.dtype[Any]) -> str:
    """Return how the format names a dtype.

    Example:
        >>> code_of(np.dtype("float32"))
        'F32'
    """
    code = _known_codes.get(dtype)
    if code is None:  # the name of a dtype takes long to find
        code = _known_codes[dtype] = _CODES[dtype.name]
    return code


def item_size(code: str) -> int:
    """Return the bytes of one element."""
    return _SIZES[code]


# ---------------------------------------------------------------------- writing
def write(path: Path, arrays: Mapping[str, HostArray]) -> Sum:
    """Write arrays to a new file, wait until it is on the disk, and return its sum."""
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    head: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, array in ordered:
        head[name] = {
            "dtype": code_of(array.dtype),
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    lead = len(text).to_bytes(8, "little") + text
    return write_file(path, [lead, *(_bytes(array) for _, array in ordered)])


def _bytes(array: HostArray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


# ---------------------------------------------------------------------- reading
class TensorFile:
    """One file of tensors, open for reading.

    Args:
        folder: where it is.
        name: its name there.
        told: the sum that it should have.
        parts: type and shape of each tensor that should be in it.

    Raises:
        CheckpointError: it is not what the index says.
    """

    def __init__(
        self, folder: Folder, name: str, told: Sum, parts: Mapping[str, tuple[str, tuple[int, ...]]]
    ) -> None:
        self.name, self._told = name, told
        self._handle, size = folder.open(name)
        try:
            if size != told.size:
                raise CheckpointError(f"{name} is damaged, it has {size} bytes and not {told.size}")
            self._starts = self._placed(parts)
        except BaseException:
            self.close()
            raise

    def _placed(self, parts: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, int]:
        """Return where in the file each tensor begins."""
        data = sum(item_size(code) * math.prod(shape) for code, shape in parts.values())
        length = self._told.size - 8 - data
        said = int.from_bytes(read_at(self._handle, 0, 8), "little") if length >= 0 else -1
        if said != length or length > MOST_HEAD:
            raise CheckpointError(
                f"{self.name}: its table has {said} bytes, where the tensors leave room for "
                f"{min(length, MOST_HEAD)}"
            )
        head = table_in(parsed(read_at(self._handle, 8, length), self.name), self.name)
        head.pop("__metadata__", None)
        if head.keys() != parts.keys():
            odd = sorted(head.keys() ^ parts.keys())[0]
            raise CheckpointError(
                f"{self.name}: {odd[:80]!r} is in it or in the index, not in both"
            )
        starts: dict[str, int] = {}
        spans: list[tuple[int, int]] = []
        for name, about in head.items():
            begin, end = self._span(name, table_in(about, name), *parts[name])
            spans.append((begin, end))
            starts[name] = 8 + length + begin
        _check_row(self.name, spans, data)
        return starts

    def _span(
        self, name: str, about: dict[str, Any], code: str, shape: tuple[int, ...]
    ) -> tuple[int, int]:
        if about.get("dtype") != code or about.get("shape") != list(shape):
            raise CheckpointError(f"{self.name}: {name[:80]!r} has another type or shape")
        ends = list_in(about.get("data_offsets"), name)
        if len(ends) != 2:
            raise CheckpointError(f"{self.name}: {name[:80]!r} has no offsets")
        begin, end = (count_in(value, f"{self.name}: an offset") for value in ends)
        if end - begin != item_size(code) * math.prod(shape):
            raise CheckpointError(f"{self.name}: {name[:80]!r} has offsets that do not fit it")
        return begin, end

    def verify(self) -> None:
        """Raise unless the file has its sum."""
        if sum_of(self._handle) != self._told:
            raise CheckpointError(f"{self.name} is damaged, its sha256 is not the one in the index")

    def read(self, name: str, code: str, first: int, count: int) -> HostArray:
        """Return ``count`` elements of a tensor from ``first`` on, flat."""
        array = np.empty(count, as_numpy(NAMES[code]))
        start = self._starts[name] + first * item_size(code)
        read_into(self._handle, start, array.view(np.uint8).data)
        return array

    def close(self) -> None:
        """Close the file."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def _check_row(title: str, spans: list[tuple[int, int]], size: int) -> None:
    """Raise unless the tensors lie one after the other, without gaps and overlaps."""
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            raise CheckpointError(f"{title}: its tensors overlap or leave gaps at byte {begin}")
        at = end
    if at != size:
        raise CheckpointError(f"{title}: its tensors end at byte {at} and not at {size}")
