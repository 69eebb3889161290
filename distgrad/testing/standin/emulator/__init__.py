"""``cupy.RawModule`` without a GPU: the same CUDA C++, compiled by g++ and run by ``emulator.h``.

It shows whether kernels are right, not how fast they are.  Compiled programs are kept in the
user's cache folder, by their text and the compiler's version.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from distgrad.testing.standin.array import ndarray
from distgrad.testing.standin.between import SharedMemory, UnownedMemory
from distgrad.testing.standin.ledger import ledger
from distgrad.testing.standin.streams import CUDARuntimeError, memories_at, memory_at, note

__all__ = ["RawKernel", "RawModule", "compiler"]

_HEADER = Path(__file__).with_name("emulator.h")
_KERNEL = re.compile(r'extern "C"\s+void\s+(\w+)\(')  # after the preprocessor
_FLAGS = [
    "-std=c++17", "-O1", "-w", "-ffp-contract=off", "-fPIC", "-shared", "-fno-weak",
    "-U_FORTIFY_SOURCE",
    "-Wl,-Bsymbolic",  # a kernel named compress is not that of zlib, which Python may have loaded
]  # fmt: skip
_MOST_SHARED, _MOST_OPTED = 48 << 10, 227 << 10  # bytes of dynamic shared memory on an H100


@cache
def compiler() -> str | None:
    """Return the path of g++; None where there is none, and so no kernels."""
    return shutil.which("g++")


class RawKernel:
    """A kernel of a program, to be launched as on a device."""

    def __init__(self, code: str, name: str, options: tuple[str, ...] = ()) -> None:
        self._program = _program(code, tuple(options))
        if not hasattr(self._program, f"run_{name}"):
            raise CUDARuntimeError(f"cudaErrorSymbolNotFound: named symbol not found ({name})")
        self.name, self.max_dynamic_shared_size_bytes = name, _MOST_SHARED
        self._run = getattr(self._program, f"run_{name}")
        self._run.restype = ctypes.c_char_p
        letters = getattr(self._program, f"letters_{name}")
        letters.restype = ctypes.c_char_p
        self._letters = letters().decode()

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], *,
        shared_mem: int = 0, stream: None = None,
    ) -> None:  # fmt: skip
        """Run the kernel with threads in some order, which differs from launch to launch."""
        dims = [max(1, n) for n in (*(*grid, 1, 1)[:3], *(*block, 1, 1)[:3])]
        self._check(dims, args, shared_mem)
        values = [self._value(i, a) for i, a in enumerate(args)]
        shape = (ctypes.c_uint * 7)(*dims, shared_mem)
        pointers = (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))

        def launch() -> None:
            failure = self._run(shape, ledger.thread_order(), pointers)
            ledger.launches.append(self.name)
            if failure is not None:
                ledger.refuse(f"{self.name}: {failure.decode()}", CUDARuntimeError)

        launch.__name__ = self.name
        launch()
        kept = [a.host for a in args if isinstance(a, ndarray)], values  # a graph knows addresses
        note(functools.partial(_launch_again, launch, kept))

    def _check(self, dims: list[int], args: tuple[Any, ...], shared_mem: int) -> None:
        threads = dims[3] * dims[4] * dims[5]
        limit = min(self.max_dynamic_shared_size_bytes, _MOST_OPTED)
        if threads > 1024 or shared_mem > limit or dims[1] > 65535 or dims[2] > 65535:
            ledger.refuse(
                f"cudaErrorInvalidValue: {self.name} with {dims} and {shared_mem} bytes",
                CUDARuntimeError,
            )
        if threads % 32:
            ledger.refuse(f"{self.name}: {threads} threads are no whole warps", ValueError)
        if len(args) != len(self._letters):
            ledger.refuse(f"{self.name}: takes {len(self._letters)} arguments, got {len(args)}")

    def _value(self, place: int, value: Any) -> Any:
        """Return an argument as it lies in memory; CuPy itself would check nothing."""
        letter, kind = self._letters[place], type(value)
        if letter == "P" and isinstance(value, ndarray):
            return ctypes.c_void_p(int(value.use().ctypes.data))
        if letter == "P" and kind is int:
            if value:
                memory_at(value, 1).use()
            return ctypes.c_void_p(value)
        if letter == "S" and isinstance(value, np.ndarray) and value.size == 1:
            return _structure(value)
        if letter == "q" and kind in (int, np.int64):  # of a bool CuPy writes one byte
            return ctypes.c_longlong(value)
        if letter == "d" and kind in (float, np.float64):
            return ctypes.c_double(value)
        ledger.refuse(f"{self.name}: argument {place} is {kind.__name__}, its type {letter!r}")


def _structure(value: np.ndarray[Any, Any]) -> Any:
    """Return a structure given by value; the addresses in it are of memory that is used.

    Kernels only read what other ranks may read at the same time.
    """
    for memory in memories_at(value.reshape(-1).view(np.int64).tolist()):
        raw = isinstance(memory, SharedMemory)
        (UnownedMemory(memory.begin, memory.nbytes, None) if raw else memory).use()
    return (ctypes.c_char * value.nbytes).from_buffer_copy(value.tobytes())


def _launch_again(launch: Callable[[], None], kept: Any) -> None:
    """Launch a kernel of a graph, whose memory is ``kept``."""
    launch()


class RawModule:
    """A program, whose kernels are had by name."""

    def __init__(self, code: str, *, options: tuple[str, ...] = (), backend: str = "nvrtc") -> None:
        if type(options) is not tuple:
            ledger.refuse(f"Argument 'options' has incorrect type {type(options)}")
        self.code, self.options = code, options

    def get_function(self, name: str) -> RawKernel:
        """Return a kernel; the program is compiled when the first is asked for."""
        return RawKernel(self.code, name, self.options)


@cache
def _program(code: str, options: tuple[str, ...]) -> ctypes.PyDLL:
    """Return the library made of CUDA C++; calls keep the GIL, as all kernels share memory."""
    macros = [option for option in options if option.startswith("-D")]
    version = _run_compiler("--version")
    words = " ".join([*_FLAGS, *macros]).encode()
    parts = (code.encode(), _HEADER.read_bytes(), words, version.encode())
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "distgrad"
    library = folder / f"{hashlib.sha256(b'|'.join(parts)).hexdigest()[:32]}.so"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _compile(f'#include "{_HEADER}"\n{code}', macros, library)
    return ctypes.PyDLL(str(library))


def _compile(text: str, macros: list[str], library: Path) -> None:
    with tempfile.TemporaryDirectory(dir=library.parent) as work:
        program, made = Path(work, "program.cc"), Path(work, "program.so")
        program.write_text(text, encoding="utf-8")
        kernels = _KERNEL.findall(_run_compiler("-E", *macros, str(program)))
        program.write_text("\n".join([text, *map(_entry, kernels)]), encoding="utf-8")
        _run_compiler(*_FLAGS, *macros, "-o", str(made), str(program))
        made.replace(library)  # in one step: others may be looking for it


def _entry(name: str) -> str:
    """Return the functions by which Python calls a kernel."""
    return (
        f'extern "C" const char* letters_{name}() {{ return emulator::letters({name}); }}\n'
        f'extern "C" const char* run_{name}(const unsigned* dims, unsigned seed, void** values) '
        f"{{ return emulator::start({name}, dims, seed, values); }}"
    )


def _run_compiler(*arguments: str) -> str:
    done = subprocess.run([str(compiler()), *arguments], capture_output=True, text=True)
    if done.returncode:
        raise CUDARuntimeError(f"g++ {' '.join(arguments)}\n{done.stderr}")
    return done.stdout
