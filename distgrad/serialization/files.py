"""``save`` and ``load``: PyTorch's ``.pt`` files, without PyTorch and without running anything."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
from collections.abc import Iterator
from pathlib import PurePath
from typing import IO, Any

from distgrad.errors import ArgumentError, ArgumentTypeError, CheckpointError
from distgrad.serialization import archive, legacy, safetensors
from distgrad.serialization.atomic import FilePath, atomic_path
from distgrad.serialization.errors import MissingFile, RefusedGlobal
from distgrad.serialization.locations import MapLocation, mover
from distgrad.serialization.pickler import PROTOCOL, pickled
from distgrad.serialization.policy import FilePolicy

FileLike = FilePath | IO[bytes]


def save(
    obj: Any,
    f: FileLike,
    pickle_module: Any = None,
    pickle_protocol: int = PROTOCOL,
    _use_new_zipfile_serialization: bool = True,
) -> None:
    """Write an object to a file that PyTorch's ``load`` reads too.

    Tensors that share memory share it again when they are loaded.  A file takes its name only when
    it is complete; after an error an old one is as it was.

    Args:
        obj: tensors, containers of them, or an object that can be pickled.
        f: a path, or a file that is open for writing.
        pickle_module: accepted when it is Python's ``pickle``.
        pickle_protocol: the version of the pickle.
        _use_new_zipfile_serialization: accepted; the zip format is always written.

    Raises:
        ArgumentTypeError: something inside cannot be pickled.
        CheckpointError: the file could not be written.

    Differs from PyTorch:
        Views of one memory with different dtypes are written apart; PyTorch refuses them.

    Example:
        >>> import io
        >>> import distgrad as dg
        >>> file = io.BytesIO()
        >>> save({"weight": dg.ones(2), "step": 3}, file)
        >>> _ = file.seek(0)
        >>> load(file)
        {'weight': tensor([1., 1.]), 'step': 3}
    """
    _check_module("save", pickle_module)
    content, spans = _pickled(obj, pickle_protocol)
    try:
        if isinstance(f, str | os.PathLike):
            with atomic_path(f) as temporary:
                archive.write(temporary, PurePath(f).stem or "archive", content, spans)
        else:
            archive.write(f, "archive", content, spans)
    except OSError as error:
        raise CheckpointError(
            f"save({_title(f)}): could not be written ({error}); check the space and the rights of "
            "its directory; a file that was there before is unchanged"
        ) from error


def _pickled(obj: Any, protocol: int) -> Any:
    try:
        return pickled(obj, protocol)
    except RecursionError as error:
        raise ArgumentTypeError("save(): the object is nested too deeply") from error
    except (pickle.PicklingError, AttributeError) as error:
        raise ArgumentTypeError(
            f"save(): a part of the object cannot be pickled ({error}); save a state_dict instead"
        ) from error


def load(
    f: FileLike,
    map_location: MapLocation = None,
    pickle_module: Any = None,
    *,
    weights_only: bool | None = None,
    mmap: bool | None = None,
    encoding: str = "utf-8",
) -> Any:
    """Return the object of a file that ``save`` or PyTorch wrote, or a safetensors file's tensors.

    Nothing in a file is executed; see ``distgrad.serialization.policy`` for what may be in it.

    Args:
        f: a path, or a file that is open for reading.
        map_location: where tensors are put: a device, a dict of names of devices, a function of
            a storage and the name of its device; None leaves them on theirs.
        pickle_module: accepted when it is Python's ``pickle``.
        weights_only: True (as None) takes tensors and plain containers; False takes objects of
            the user's classes as well.
        mmap: map the file into memory; storages are read when they are used, and changes to them
            stay in memory.
        encoding: of the texts that Python 2 wrote.

    Raises:
        RefusedGlobal: the file wants a class or function that is not allowed; it is named.
        CheckpointError: the file is missing, cut off or damaged, or of another kind.

    Differs from PyTorch:
        ``weights_only=False`` does not run the file's code either.  NumPy's arrays and numbers
        need no permission.
    """
    _check_module("load", pickle_module)
    move = mover(map_location)
    only_weights = weights_only is not False
    with _worded(f), _opened(f) as file:
        head = file.read(32)
        file.seek(0)
        path = os.fspath(f) if isinstance(f, str | os.PathLike) else None
        if mmap and path is None:
            raise ArgumentError("f must be a file path in order to use the mmap argument")
        if head.startswith(archive.MAGIC):
            return archive.Archive(file, path if mmap else None, move).load(only_weights, encoding)
        if mmap:
            raise CheckpointError("mmap needs a file of PyTorch's zip format")
        if legacy.is_legacy(head):
            return legacy.load(file.read(), move, only_weights, encoding)
        if path is not None and (head[8:9] == b"{" or path.endswith(".safetensors")):
            return safetensors.read(path, move)
        raise CheckpointError(
            "the file is empty" if not head else "neither a file of PyTorch's nor of safetensors"
        )


def _check_module(name: str, module: Any) -> None:
    if module is not None and module is not pickle:
        raise ArgumentError(
            f"{name}(pickle_module={getattr(module, '__name__', module)}): only Python's pickle; "
            "leave it out"
        )


def _title(f: Any) -> str:
    return repr(os.fspath(f)) if isinstance(f, str | os.PathLike) else type(f).__name__


@contextlib.contextmanager
def _opened(f: Any) -> Iterator[IO[bytes]]:
    """Give the file from its present place on, as one that can be searched."""
    if isinstance(f, str | os.PathLike):
        with open(f, "rb") as file:
            yield file
    elif not hasattr(f, "read"):
        raise ArgumentTypeError(f"load({type(f).__name__}): takes a path or a file that is open")
    elif hasattr(f, "seek") and hasattr(f, "tell") and f.tell() == 0:
        yield f
    else:
        yield io.BytesIO(f.read())


@contextlib.contextmanager
def _worded(f: Any) -> Iterator[None]:
    """Say in every error about the content of a file which file it is."""
    title = f"load({_title(f)})"
    try:
        yield
    except FileNotFoundError as error:
        raise MissingFile(f"{title}: there is no such file") from error
    except RefusedGlobal as error:
        raise RefusedGlobal(f"{title}: {error}") from error
    except CheckpointError as error:
        if str(error).startswith("load("):
            raise
        raise CheckpointError(f"{title}: {error}; take another copy or an older file") from error
    except OSError as error:
        raise CheckpointError(f"{title}: the file cannot be read ({error})") from error


def get_unsafe_globals_in_checkpoint(f: FileLike) -> list[str]:
    """Return the classes and functions in a file that ``load`` would refuse.

    Example:
        >>> import fractions, io
        >>> file = io.BytesIO()
        >>> save(fractions.Fraction(1, 2), file)
        >>> _ = file.seek(0)
        >>> get_unsafe_globals_in_checkpoint(file)
        ['fractions.Fraction']
    """
    import pickletools  # nothing else needs it

    policy = FilePolicy(lambda key: None, weights_only=True)
    with _worded(f), _opened(f) as file:
        content = archive.Archive(file, None, mover("cpu")).pickle()
    found: list[str] = []
    for code, argument, _ in pickletools.genops(content):
        if code.name == "GLOBAL":
            module, name = str(argument).split(" ", 1)
            try:
                policy.find(module, name)
            except RefusedGlobal:
                found.append(f"{module}.{name}")
    return sorted(set(found))
