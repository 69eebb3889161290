"""The index of a checkpoint: which elements of which tensor are in which file, and all the rest."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from distgrad.distributed.checkpoint.folder import Sum, check_name
from distgrad.distributed.checkpoint.strict import (
    LARGEST,
    check_depth,
    count_in,
    list_in,
    parsed,
    table_in,
)
from distgrad.distributed.checkpoint.tensors import MOST_DIMENSIONS, NAMES, item_size
from distgrad.errors import ArgumentError, CheckpointError

FORMAT = 2
MOST_BYTES = 256 << 20
_END = 12 + 64 + 3  # bytes that `signed` adds
_COMPACT: dict[str, Any] = {"separators": (",", ":"), "allow_nan": False}


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements of a tensor, by their place in the flat one, in a file."""

    file: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor: its type in the words of safetensors, its shape, and where its elements are."""

    code: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Index:
    """What is in a checkpoint.

    ``serial`` counts the checkpoints of a directory in the order in which they were written;
    ``objects`` are numbers, texts and containers in JSON.
    """

    serial: int
    world: int
    files: dict[str, Sum] = field(default_factory=dict)
    tensors: dict[str, Entry] = field(default_factory=dict)
    objects: dict[str, Any] = field(default_factory=dict)

    def text(self) -> bytes:
        """Return the index as it is written."""
        files = {name: [s.size, s.sha256] for name, s in sorted(self.files.items())}
        tensors = {
            key: [t.code, list(t.shape), [[p.file, p.start, p.stop] for p in t.pieces]]
            for key, t in sorted(self.tensors.items())
        }
        value = {
            "format": FORMAT, "serial": self.serial, "world": self.world, "files": files,
            "tensors": tensors,
        }  # fmt: skip
        objects = json.dumps(dict(sorted(self.objects.items())), **_COMPACT).encode()
        try:
            check_depth(objects, "the state")
        except CheckpointError as error:
            raise ArgumentError(f"{error}; make it flatter") from None
        lines = [
            json.dumps({name: part}, **_COMPACT).encode()[1:-1] for name, part in value.items()
        ]
        return signed(b"{" + b",\n".join([*lines, b'"objects":' + objects]))

    def contents(self) -> dict[str, dict[str, tuple[str, tuple[int, ...]]]]:
        """Return for each file type and shape of what is in it, by the names there."""
        found: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {f: {} for f in self.files}
        for key, t in self.tensors.items():
            for p in t.pieces:
                found[p.file][name_in_file(p.file, key)] = t.code, shape_in_file(t, p)
        return found


def signed(body: bytes) -> bytes:
    """Return the text of an index, which ends in the sum of all that is before."""
    return body + b',\n"sha256":"' + hashlib.sha256(body).hexdigest().encode() + b'"}\n'


def stem_of(key: str) -> str:
    """Return the first word of the names of files that hold the tensor ``key``.

    Example:
        >>> stem_of("model/head.weight"), stem_of("head.weight")
        ('model', 'tensors')
    """
    top, slash, _ = key.partition("/")
    return top if slash and top.isascii() and top.isidentifier() and len(top) <= 32 else "tensors"


def name_in_file(file: str, key: str) -> str:
    """Return the name of a tensor in a file: without what the name of the file says."""
    stem = stem_of(key)
    return key.removeprefix(f"{stem}/") if file.startswith(stem) else key


def shape_in_file(entry: Entry, piece: Piece) -> tuple[int, ...]:
    """Return the shape of a piece in its file: whole tensors keep theirs, others are flat."""
    whole = piece.stop - piece.start == entry.size
    return entry.shape if whole else (piece.stop - piece.start,)


# ---------------------------------------------------------------------- reading
def read_index(text: bytes, title: str) -> Index:
    """Return the index that ``text`` stands for, when all of it makes sense.

    Raises:
        CheckpointError: it is torn, of another format, or contradicts itself.
    """
    value = table_in(parsed(text, title), title)
    if value.get("format") != FORMAT:
        raise CheckpointError(
            f"has format {str(value.get('format'))[:80]}, this version reads {FORMAT}"
        )
    if signed(text[:-_END]) != text:
        raise CheckpointError(f"{title} is damaged, its sha256 is not the one at its end")
    files = {name: _sum(name, about) for name, about in _table(value, "files").items()}
    tensors = {key: _entry(key, about, files) for key, about in _table(value, "tensors").items()}
    index = Index(
        count_in(value.get("serial"), "serial"), count_in(value.get("world"), "world"), files,
        tensors, _table(value, "objects"),
    )  # fmt: skip
    _check_room(index)
    return index


def _table(value: Mapping[str, Any], name: str) -> dict[str, Any]:
    return table_in(value.get(name), name)


def _sum(name: str, about: Any) -> Sum:
    check_name(name)
    row = list_in(about, name)
    if len(row) != 2 or not isinstance(row[1], str):
        raise CheckpointError(f"{name} has no size and sum in the index")
    return Sum(count_in(row[0], f"the size of {name}"), row[1])


def _entry(key: str, about: Any, files: Mapping[str, Sum]) -> Entry:
    row = list_in(about, key)
    title = repr(key[:80])
    if len(row) != 3 or not isinstance(row[0], str) or row[0] not in NAMES:
        raise CheckpointError(f"{title} has no known type")
    shape = tuple(count_in(n, f"a size of {title}") for n in list_in(row[1], title))
    if len(shape) > MOST_DIMENSIONS or math.prod(n or 1 for n in shape) > LARGEST // 16:
        raise CheckpointError(f"{title} has a shape that nothing can have")
    pieces = [_piece(title, piece, files) for piece in list_in(row[2], title)]
    _check_cover(title, pieces, math.prod(shape))
    return Entry(row[0], shape, tuple(pieces))


def _piece(title: str, about: Any, files: Mapping[str, Sum]) -> Piece:
    row = list_in(about, title)
    if len(row) != 3 or not isinstance(row[0], str) or row[0] not in files:
        raise CheckpointError(f"{title} is in a file that the index does not know")
    return Piece(row[0], count_in(row[1], title), count_in(row[2], title))


def _check_cover(title: str, pieces: list[Piece], size: int) -> None:
    """Raise unless the pieces are each element once, each in a file of its own."""
    at = 0
    for piece in sorted(pieces, key=lambda p: (p.start, p.stop)):
        if piece.start != at or piece.stop < piece.start or (size and piece.stop == piece.start):
            raise CheckpointError(f"{title} has elements twice or never, at {piece.start}")
        at = piece.stop
    if at != size:
        raise CheckpointError(f"{title} has {at} of {size} elements")
    if len({piece.file for piece in pieces}) < len(pieces) or (not size and len(pieces) != 1):
        raise CheckpointError(f"{title} is twice in one file, or nowhere")


def _check_room(index: Index) -> None:
    """Raise unless the files are long enough for what is said to be in them."""
    need = dict.fromkeys(index.files, 8)
    names: set[tuple[str, str]] = set()
    for key, entry in index.tensors.items():
        for piece in entry.pieces:
            need[piece.file] += (piece.stop - piece.start) * item_size(entry.code)
            names.add((piece.file, name_in_file(piece.file, key)))
    for name, size in need.items():
        if size > index.files[name].size:
            raise CheckpointError(f"{name} would need {size} bytes, and the index gives it fewer")
    if len(names) < sum(len(entry.pieces) for entry in index.tensors.values()):
        raise CheckpointError("two tensors of the index are the same one in a file")
