"""Compile the CUDA C++ of the package for a GPU, which need not be there.

``python -m distgrad.testing.compile_kernels sm_90 [types]`` asks CuPy's NVRTC, as CuPy does when a
kernel is first launched, and prints how many registers each kernel takes and what it spills.  It
fails if a program does not compile, or a kernel spills more than a few bytes.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import Any

__all__ = ["compiled", "instructions", "main", "programs"]

KINDS = ("float", "half", "bf16", "double")
_USE = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers", re.S
)
_MOST_SPILLED = 32  # bytes: what calls of division put aside; float64 needs more, and is rare


def programs(kind: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Return each source file with its types, for one type of numbers."""
    wide = "double" if kind == "double" else "float"
    for file in ("activation.cu", "integers.cu", "optim.cu", "pool.cu", "random.cu", "softmax.cu"):
        yield file, {"T": kind}
    for weight in {kind, wide}:
        yield "norm.cu", {"T": kind, "W": weight}
        yield "batch.cu", {"T": kind, "W": weight}
        yield "softmax.cu", {"T": kind, "W": wide, "Y": "long long", "L": weight}
    if kind == wide:
        yield "attention.cu", {"T": kind}
    yield "embed.cu", {"T": kind, "I": "long long"}
    if kind in ("half", "bf16"):
        yield "compress.cu", {"T": kind}
    order = "f(f(f(x(0),x(1)),f(x(2),x(3))),f(f(x(4),x(5)),f(x(6),x(7))))"
    for between in {kind, wide}:
        yield "window.cu", {"T": kind, "W": between, "OP": "Sum", "ORDER": order}


def compiled(file: str, types: dict[str, str], architecture: str) -> list[tuple[str, int, int]]:
    """Return the kernels of a program, each with its registers and the bytes it spills.

    Raises:
        RuntimeError: it does not compile.
    """
    log = _program(file, types, architecture)[1]
    return [(name, int(used), int(spilled)) for name, spilled, used in _USE.findall(log)]


def instructions(file: str, types: dict[str, str]) -> dict[str, str]:
    """Return the kernels of a program as PTX, by name, as an H100 or H200 gets it."""
    from cupy.cuda import nvrtc  # optional

    text = nvrtc.getPTX(_program(file, types, "compute_90")[0]).decode()
    return {part.partition("(")[0].strip(): part for part in text.split(".visible .entry ")[1:]}


def _program(file: str, types: dict[str, str], architecture: str) -> tuple[Any, str]:
    """Return a program that NVRTC has compiled as CuPy has it do so, and what it says."""
    from cupy.cuda import nvrtc  # optional

    from distgrad.backend.cuda import module  # it imports CuPy

    program: Any = nvrtc.createProgram(module.source(file), file, (), ())
    macros = [f"-D{letter}_TYPE={name}" for letter, name in types.items()]
    options = (f"-arch={architecture}", "--std=c++17", "-default-device", "-ftz=true", *macros)
    try:
        verbose = ("--ptxas-options=-v",) if architecture.startswith("sm_") else ()
        nvrtc.compileProgram(program, (*options, *verbose))
    except nvrtc.NVRTCError as error:
        text = nvrtc.getProgramLog(program)
        raise RuntimeError(f"{file} with {types}: {error}\n{text}") from error
    return program, nvrtc.getProgramLog(program)


def main(architecture: str, kinds: tuple[str, ...] = KINDS) -> int:
    """Compile everything; return how many kernels spill."""
    spilling = 0
    for kind in kinds:
        for file, types in programs(kind):
            kernels = compiled(file, types, architecture)
            assert kernels, f"{file}: no kernels"
            for name, registers, spilled in kernels:
                print(f"{architecture} {file:14} {types} {name}: {registers} registers", end="")
                print(f", {spilled} bytes spilled" if spilled else "")
                spilling += spilled > _MOST_SPILLED and kind != "double"
    return spilling


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], tuple(sys.argv[2:]) or KINDS))
