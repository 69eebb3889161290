"""Memory of a GPU handed to MPI itself, where the library is known to take it.

Note [Proven, or not at all]
    A library that does not know GPUs reads their addresses as the host's, and the process dies. So
    it must say that it knows them: by the kinds of memory in the info of MPI_COMM_WORLD (MPI 4.1),
    or by MPIX_Query_cuda_support (Open MPI, MPICH). ``DISTGRAD_CUDA_AWARE`` says 0 for never and 1
    for a library that knows GPUs and does not tell.

Note [What goes this way]
    Broadcast, gather, scatter, all-to-all and messages of tensors. Sums do not: libraries add in
    orders of their own, and non-blocking sums of memory of a GPU are not safe in all of them. MPI
    knows nothing of streams, so the host waits for the stream before it calls MPI.
"""

from __future__ import annotations

import ctypes
import sys
from typing import TYPE_CHECKING, Any

from distgrad.config import switch
from distgrad.distributed.staging import cupy
from distgrad.typing import Array

if TYPE_CHECKING:
    from collections.abc import Sequence

    from distgrad.distributed.collective import Steps
    from distgrad.distributed.group import ProcessGroup

_PROGRAM = (
    "from mpi4py import MPI; from distgrad.distributed import cuda_aware; "
    "print(cuda_aware.proof(MPI))"
)
_TIMEOUT_S = 60


def proof(mpi: Any) -> str:
    """Return what says that MPI, which has started, takes memory of a GPU; nothing if nothing does.

    Args:
        mpi: mpi4py's module.
    """
    info = mpi.COMM_WORLD.Get_info()
    kinds = info.Get("mpi_memory_alloc_kinds") or ""
    info.Free()
    if "cuda" in (kind.partition(":")[0] for kind in kinds.split(",")):
        return f"mpi_memory_alloc_kinds is {kinds}"
    query = getattr(ctypes.CDLL(mpi.__file__), "MPIX_Query_cuda_support", None)
    return "MPIX_Query_cuda_support() is 1" if query is not None and query() == 1 else ""


def takes_gpu_memory(mpi: Any) -> bool:
    """Return whether memory of a GPU may be handed to MPI; see Note [Proven, or not at all]."""
    asked = switch("cuda_aware")
    return asked == "1" or (asked == "auto" and bool(proof(mpi)))


def in_words() -> str:
    """Return what a fresh process finds, for people; MPI does not start here."""
    asked = switch("cuda_aware")
    if asked != "auto":
        return f"DISTGRAD_CUDA_AWARE={asked} says " + ("yes" if asked == "1" else "no")
    import subprocess  # only the doctor asks; it takes 5 ms of each import

    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    found = done.stdout.strip()
    return f"yes: {found}" if found else "no: tensors on a GPU go to MPI by way of the host"


class Direct:
    """A call whose arrays on a GPU are handed to MPI as they are.

    Args:
        index: the GPU.
    """

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index

    def take(self) -> None:
        """Wait for the current stream: MPI reads at once."""
        cupy().cuda.get_current_stream(self.index).synchronize()

    def arrive(self) -> None:
        """Do nothing: MPI has written."""

    def empty(self, shape: Sequence[int], dtype: Any) -> Array:
        """Return a new array of the GPU."""
        module = cupy()
        with module.cuda.Device(self.index):
            return module.empty(shape, dtype)

    def steps(
        self,
        group: ProcessGroup,
        collective: str,
        call: str,
        source: Any,
        target: Any,
        op: str = "",
        peer: int = -1,
        sends: Sequence[int] = (),
        receives: Sequence[int] = (),
    ) -> Steps:
        """Make the transfer, by MPI."""
        yield group.launch(collective, call, source, target, op, peer, sends, receives)
