"""PyTorch's zip files: a pickle, and one record for each storage.

Nothing is unpacked by the names in a file.  Records are stored, not compressed, so none can be
larger than the file itself.
"""

from __future__ import annotations

import contextlib
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from typing import IO, Any

import numpy

from distgrad.errors import CheckpointError
from distgrad.serialization.machine import Machine
from distgrad.serialization.policy import FilePolicy
from distgrad.serialization.storages import Span, Storage, StorageKind

MAGIC = b"PK\x03\x04"
_ALIGNMENT = 64  # of storages, so that a mapped file can be used as it lies
_PADDING = struct.Struct("<2sH")  # head of the extra field that fills up to there
_ZIP64 = struct.Struct("<HHQQ")  # the extra field of a record above 4 GiB
_LOCAL = struct.Struct("<4s22xHH")  # a record's local head: lengths of its name and extra field
_PIECE = 1 << 20
_DATE = (1980, 1, 1, 0, 0, 0)


# ---------------------------------------------------------------------- writing
def write(file: Any, name: str, pickle: bytes, spans: list[Span]) -> None:
    """Write an archive of a pickle and its storages.

    Args:
        file: a path, or a file that can be written.
        name: the folder inside.
        pickle: the pickle.
        spans: the storages that it names.
    """
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _put(archive, f"{name}/data.pkl", pickle)
        _put(archive, f"{name}/.format_version", b"1")
        _put(archive, f"{name}/.storage_alignment", str(_ALIGNMENT).encode())
        _put(archive, f"{name}/byteorder", sys.byteorder.encode())
        for span in spans:
            _put(archive, f"{name}/data/{span.key}", memoryview(span.host().view(numpy.uint8)))
        _put(archive, f"{name}/version", b"3\n")


def _put(archive: zipfile.ZipFile, name: str, content: Any) -> None:
    """Write one record, whose content begins at a multiple of the alignment."""
    info = zipfile.ZipInfo(name, _DATE)
    info.file_size = len(content)
    large = info.file_size * 1.05 > zipfile.ZIP64_LIMIT  # as zipfile decides
    head = _LOCAL.size + len(name.encode()) + _ZIP64.size * large + _PADDING.size
    padding = -(archive.fp.tell() + head) % _ALIGNMENT  # type: ignore[union-attr]
    info.extra = _PADDING.pack(b"FB", padding) + b"Z" * padding
    with archive.open(info, "w", force_zip64=large) as record:
        for start in range(0, len(content), _PIECE):
            record.write(content[start : start + _PIECE])


# ---------------------------------------------------------------------- reading
class Archive:
    """An archive that is read.

    Args:
        file: an open file.
        path: its path, where ``mapped`` storages are wanted.
        move: puts the bytes of a storage on a device.

    Raises:
        CheckpointError: it is cut off, damaged, or no archive of PyTorch's.
    """

    def __init__(self, file: IO[bytes], path: str | None, move: Callable[[Any, str], Any]) -> None:
        self._file = file
        self._path = path
        self._move = move
        with _damage_named():
            self._zip = zipfile.ZipFile(file)
        self._records = _checked(self._zip, _length(file))
        found = [n for n in self._records if n.endswith("/data.pkl") and n.count("/") == 1]
        if len(found) != 1:
            raise CheckpointError(
                "a zip file without data.pkl: TorchScript and other archives cannot be loaded"
                if not found
                else "a zip file with several data.pkl"
            )
        self._prefix = found[0].removesuffix("data.pkl")
        self._swapped = self._read("byteorder", sys.byteorder.encode()) != sys.byteorder.encode()
        if self._prefix + "constants.pkl" in self._records:
            raise CheckpointError("a TorchScript archive: its program cannot be run here")
        self._storages: dict[str, Storage] = {}

    def load(self, weights_only: bool, encoding: str) -> Any:
        """Return the object of the archive."""
        policy = FilePolicy(self._storage, weights_only)
        return Machine(self.pickle(), policy, encoding).run()

    def pickle(self) -> bytes:
        """Return the pickle of the archive."""
        return self._read("data.pkl")

    def _read(self, name: str, default: bytes | None = None) -> bytes:
        info = self._records.get(self._prefix + name)
        if info is None and default is not None:
            return default
        if info is None:
            raise CheckpointError(f"the archive has no record {name}")
        with _damage_named():
            return self._zip.read(info)

    def _storage(self, key: Any) -> Storage:
        kind, name, place, count = storage_key(key)
        if name not in self._storages:
            info = self._records.get(f"{self._prefix}data/{name}")
            size = count * kind.itemsize
            if info is None or info.file_size < size:
                length = "no record" if info is None else f"{info.file_size} bytes"
                raise CheckpointError(f"storage {name} should have {size} bytes, there is {length}")
            data = self._bytes(info)[:size]
            if self._swapped:
                data = _byteswapped(data, kind)
            self._storages[name] = Storage(self._move(data, place), kind)
        known = self._storages[name]
        return known if known.kind == kind else Storage(known.data, kind)

    def _bytes(self, info: zipfile.ZipInfo) -> Any:
        if self._path is not None and info.file_size:
            return numpy.memmap(self._path, numpy.uint8, "c", self._begin(info), info.file_size)
        data = numpy.empty(info.file_size, numpy.uint8)
        view = memoryview(data.data)
        with _damage_named(), self._zip.open(info) as record:
            while count := record.readinto(view[:_PIECE]):  # type: ignore[attr-defined]
                view = view[count:]
        if len(view):
            raise CheckpointError(f"record {info.filename} is cut off")
        return data

    def _begin(self, info: zipfile.ZipInfo) -> int:
        """Return where the content of a record begins in the file."""
        self._file.seek(info.header_offset)
        magic, name, extra = _LOCAL.unpack(self._file.read(_LOCAL.size))
        begin: int = info.header_offset + _LOCAL.size + name + extra
        if magic != MAGIC or begin + info.file_size > _length(self._file):
            raise CheckpointError(f"record {info.filename} is damaged")
        return begin


@contextlib.contextmanager
def _damage_named() -> Iterator[None]:
    """Raise one class for whatever the zip reader finds wrong."""
    try:
        yield
    except (zipfile.error, ValueError, RuntimeError, OSError, EOFError, struct.error) as error:
        raise CheckpointError(
            f"not a whole zip file ({error}); it may have been cut off or damaged"
        ) from error


def _checked(archive: zipfile.ZipFile, length: int) -> dict[str, zipfile.ZipInfo]:
    """Return the records by name; refuse what PyTorch never writes."""
    records: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename
        if name in records:
            raise CheckpointError(f"record {name} stands twice in the archive")
        if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
            raise CheckpointError(f"record {name!r} reaches out of its folder")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise CheckpointError(f"record {name} is compressed, as PyTorch's never are")
        records[name] = info
    if sum(info.file_size for info in records.values()) > length:
        raise CheckpointError("the records say that they are larger than the file")
    return records


def _length(file: IO[bytes]) -> int:
    return file.seek(0, 2)


def storage_key(key: Any) -> tuple[StorageKind, str, str, int]:
    """Return kind, name, device and number of elements of a storage, from its key in a pickle."""
    good = isinstance(key, tuple) and len(key) >= 5 and key[0] == "storage"
    if not good or not isinstance(key[1], StorageKind) or type(key[4]) is not int or key[4] < 0:
        raise CheckpointError("a storage is described in another way than PyTorch's")
    return key[1], str(key[2]), str(key[3]), key[4]


def _byteswapped(data: Any, kind: StorageKind) -> Any:
    """Return the bytes of a storage from a computer of the other byte order."""
    if kind.dtype is None:
        raise CheckpointError("a storage without a dtype comes from the other byte order")
    width = kind.itemsize // 2 if kind.dtype.is_complex else kind.itemsize
    return numpy.ascontiguousarray(data.reshape(-1, width)[:, ::-1]).reshape(-1)
