"""Directories that appear under their name only when they are complete, and how they are read.

Note [Names]: while ``step_00000200`` is written it is ``step_00000200.<token>.tmp``. The token is
drawn by rank 0 for each program, so a process that a killed job left behind writes elsewhere. What
has such a name is not complete, and the next job removes it.

Note [What is opened]: a checkpoint may come from anybody. A file in it is opened by a plain name
beside the index, never through a link, and only if it is a regular file: opening a pipe would wait
for ever, and opening a device may do anything.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from distgrad.errors import CheckpointError

INDEX = "index.json"
TEMPORARY = ".tmp"
CHUNK = 1 << 22
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_LEFT = re.compile(r".*\.[0-9a-f]{8}(\.(old|del))?\.tmp|step_\d{8}\.tmp|latest\.tmp", re.DOTALL)


_OLD = re.compile(r"(.*)\.[0-9a-f]{8}\.old\.tmp", re.DOTALL)
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


@dataclass(frozen=True, slots=True)
class Sum:
    """What a file must be like."""

    size: int
    sha256: str


# ---------------------------------------------------------------------- writing
def new_token() -> str:
    """Return what tells the temporary names of two programs apart."""
    return os.urandom(4).hex()


def temporary(target: Path, token: str) -> Path:
    """Return where ``target`` is while it is written."""
    return target.with_name(f"{target.name}.{token}{TEMPORARY}")


def write_file(path: Path, parts: Iterable[bytes | memoryview]) -> Sum:
    """Write a new file, wait until it is on the disk, and return size and sum of it."""
    total, size = hashlib.sha256(), 0
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(path, flags, 0o666)
    try:
        for part in parts:
            view = memoryview(part)
            for start in range(0, len(view), CHUNK):
                chunk = view[start : start + CHUNK]
                total.update(chunk)
                _write_all(handle, chunk)
            size += len(view)
        os.fsync(handle)
    finally:
        os.close(handle)
    return Sum(size, total.hexdigest())


def _write_all(handle: int, chunk: memoryview) -> None:
    while chunk:
        chunk = chunk[os.write(handle, chunk) :]


def flush(folder: Path) -> None:
    """Wait until the names in a directory are on the disk, so that they survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that know no such thing
            raise
    finally:
        os.close(handle)


def put(part: Path, target: Path, token: str) -> None:
    """Give the finished directory ``part`` its name; what had the name before is dropped."""
    flush(part)
    if not os.path.lexists(target):
        os.rename(part, target)
        flush(target.parent)
        return
    old = target.with_name(f"{target.name}.{token}.old{TEMPORARY}")
    if _swapped(part, target):
        os.rename(part, old)
    else:  # between the two there is none; `clean` would bring the old one back
        os.rename(target, old)
        os.rename(part, target)
    flush(target.parent)
    drop(old)


def _swapped(a: Path, b: Path) -> bool:
    """Let two directories swap their names at one stroke; return False where that is not known."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    done: int = rename(_HERE, os.fsencode(a), _HERE, os.fsencode(b), _EXCHANGE)
    return done == 0


def link(place: Path, target: str, token: str) -> None:
    """Let the symbolic link ``place`` lead to ``target``, at one stroke."""
    part = temporary(place, token)
    part.symlink_to(target)
    try:
        os.replace(part, place)
    except OSError:
        part.unlink()
        raise


def remove(path: Path, token: str) -> bool:
    """Remove a checkpoint, unless somebody reads it; return whether it is gone.

    It loses its name first: a job that is killed meanwhile leaves no half checkpoint.
    """
    try:
        handle = os.open(path / INDEX, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        handle = -1  # none, or not ours to lock
    try:
        if handle >= 0 and not _locked(handle, fcntl.LOCK_EX):
            return False
        gone = path.with_name(f"{path.name}.{token}.del{TEMPORARY}")
        os.rename(path, gone)
    finally:
        if handle >= 0:
            os.close(handle)
    drop(gone)
    return True


def drop(path: Path) -> None:
    """Remove a file, a link, or a directory with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def clean(folder: Path, name: str = "") -> int:
    """Remove what writers that were killed have left, of ``name`` or of all; return how many.

    A directory gets another name first: should its writer live after all, it can finish nothing.
    """
    try:
        found = [p for p in folder.iterdir() if p.name.startswith(name) and _LEFT.fullmatch(p.name)]
    except OSError:
        return 0
    for path in found:
        old = _OLD.fullmatch(path.name)
        if old is not None and not os.path.lexists(path.with_name(old[1])):
            path.rename(path.with_name(old[1]))  # its place was not taken
            continue
        gone = path
        if path.is_dir() and not path.is_symlink():
            gone = path.with_name(f"{path.name}.{new_token()}.del{TEMPORARY}")
            path.rename(gone)
        drop(gone)
    return len(found)


def _locked(handle: int, kind: int) -> bool:
    """Return whether the lock was had; True where the file system has none."""
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


# ---------------------------------------------------------------------- reading
class Folder:
    """A checkpoint's directory, open for reading; nobody removes it meanwhile.

    Args:
        path: the directory; the user chose it, so it may be a link.
        lead: the file that says what is in the others.

    Raises:
        CheckpointError: there is no such directory, or the leading file is none.
    """

    def __init__(self, path: Path, lead: str = INDEX) -> None:
        self.path = path
        self._lock = -1
        try:
            self._handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise CheckpointError(f"there is no directory {path} ({error.strerror})") from error
        try:
            self._lock, self.lead_size = self.open(lead)
            _locked(self._lock, fcntl.LOCK_SH)
        except BaseException:
            self.close()
            raise

    def open(self, name: str) -> tuple[int, int]:
        """Return a handle and the size of a file in the directory.

        Raises:
            CheckpointError: the name leads elsewhere, or it is no regular file.
        """
        check_name(name)
        try:
            before = os.stat(name, dir_fd=self._handle, follow_symlinks=False)
            _check_kind(name, before.st_mode)
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            handle = os.open(name, flags, dir_fd=self._handle)
        except FileNotFoundError as error:
            raise CheckpointError(f"{name} is missing") from error
        except OSError as error:
            raise CheckpointError(f"{name} cannot be read ({error.strerror})") from error
        now = os.fstat(handle)
        if not stat.S_ISREG(now.st_mode):
            os.close(handle)
            _check_kind(name, now.st_mode)
        return handle, now.st_size

    def lead(self, most: int) -> bytes:
        """Return the leading file.

        Raises:
            CheckpointError: it is longer than ``most``.
        """
        if self.lead_size > most:
            raise CheckpointError(f"its index has {self.lead_size} bytes, more than {most}")
        return read_at(self._lock, 0, self.lead_size)

    def close(self) -> None:
        """Let go of the directory."""
        for handle in (self._lock, self._handle):
            if handle >= 0:
                os.close(handle)
        self._lock = self._handle = -1


def check_name(name: str) -> None:
    """Raise unless ``name`` is that of a file right here.

    Example:
        >>> check_name("model.safetensors")
        >>> check_name("../model.safetensors")
        Traceback (most recent call last):
        distgrad.errors.CheckpointError: '../model.safetensors' is no plain name of a file
    """
    if not isinstance(name, str) or _PLAIN.fullmatch(name) is None:
        shown = repr(name)
        raise CheckpointError(f"{shown[:80]} is no plain name of a file")


def _check_kind(name: str, mode: int) -> None:
    kinds = {
        stat.S_IFLNK: "a symbolic link", stat.S_IFIFO: "a pipe", stat.S_IFDIR: "a directory",
        stat.S_IFCHR: "a device", stat.S_IFBLK: "a device", stat.S_IFSOCK: "a socket",
    }  # fmt: skip
    kind = kinds.get(stat.S_IFMT(mode))
    if kind is not None:
        raise CheckpointError(f"{name} is {kind} and no file; a checkpoint has regular files only")


def read_at(handle: int, start: int, size: int) -> bytes:
    """Return ``size`` bytes of a file from ``start`` on."""
    data = bytearray(size)
    read_into(handle, start, memoryview(data))
    return bytes(data)


def read_into(handle: int, start: int, room: memoryview) -> None:
    """Fill ``room`` with the bytes of a file from ``start`` on.

    Raises:
        CheckpointError: the file ends before.
    """
    while room:
        count = os.preadv(handle, [room[:CHUNK]], start)
        if not count:
            raise CheckpointError("a file ended while it was read")
        start, room = start + count, room[count:]


def sum_of(handle: int) -> Sum:
    """Return size and sum of an open file."""
    total, size, room = hashlib.sha256(), 0, bytearray(CHUNK)
    view = memoryview(room)
    while count := os.preadv(handle, [view], size):
        total.update(view[:count])
        size += count
    return Sum(size, total.hexdigest())
