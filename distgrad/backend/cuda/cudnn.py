"""cuDNN by way of NVIDIA's frontend for Python: the one file that calls it.

Note [Plans]
    cuDNN takes a graph of operations on tensors of known shapes, strides and types, and makes a
    plan of it, which takes 0.01 to 4 seconds.  Here a description, a tuple of all that matters,
    writes the graph; the plan is made once and kept under the description.  A description that
    cuDNN has no plan for is kept too, so that nobody asks again.

Note [Workspace]
    A convolution may ask for gigabytes where another algorithm needs none.  Plans of convolutions
    that take more than 64 MiB are left out, unless there is no other.

The frontend is looked for when it is first needed; without it everything is computed by CuPy.

Not yet run on a GPU: tests compute the graphs on a stand-in, and have cuDNN itself build the plans.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import cupy

from distgrad.backend import capture
from distgrad.backend.cuda import plan_files
from distgrad.backend.promises import promises
from distgrad.backend.switches import cudnn as switches
from distgrad.errors import DeviceError
from distgrad.typing import Array, Shape

__all__ = [
    "TYPES", "Description", "Place", "Plan", "Sketch", "Wishes", "aligned", "counts", "library",
    "made", "packed", "plan", "usable", "version", "wishes",
]  # fmt: skip

WORKSPACE = 64 << 20
_MOST_PLANS = 4096  # a program whose shapes always change must not fill the memory
_TRIES = 3  # runs of a candidate that are timed, after one that is not

TYPES = {
    "float16": "HALF", "bfloat16": "BFLOAT16", "float32": "FLOAT", "int32": "INT32",
    "int64": "INT64",
}  # fmt: skip
"""What cuDNN calls the types of numbers, by the names of dtypes."""


# ---------------------------------------------------------------------- the library
@functools.cache
def library() -> Any:
    """Return the frontend; None where it, or cuDNN itself, is not installed."""
    try:
        import cudnn  # an optional wheel, nvidia-cudnn-frontend; it loads libcudnn

        cudnn.backend_version()
    except (ImportError, OSError, RuntimeError):
        return None
    return cudnn


def version() -> int | None:
    """Return cuDNN's version, 91900 for 9.19.0; None where it is not installed."""
    return None if library() is None else int(library().backend_version())


class Wishes(NamedTuple):
    """What the program asked of cuDNN's algorithms."""

    tf32: bool
    deterministic: bool
    benchmark: int  # how many candidates to time; 0 for the one that cuDNN recommends


def wishes() -> Wishes:
    """Return what the program asks for now."""
    candidates = switches.benchmark_limit or _MOST_PLANS  # 0 and None: as many as there are
    return Wishes(
        bool(switches.allow_tf32),
        bool(switches.deterministic or promises.deterministic),
        candidates if switches.benchmark else 0,
    )


def usable(*arrays: Array) -> bool:
    """Return whether cuDNN may compute with these: it is there, and they hold numbers here."""
    if not switches.enabled or library() is None:
        return False
    here = cupy.cuda.runtime.getDevice()
    kind = arrays[0].dtype
    return kind.name in TYPES and all(
        a.size and a.dtype == kind and a.data.device_id == here for a in arrays
    )


def aligned(array: Array) -> Array:
    """Return ``array``, or its copy where it does not begin at a multiple of 16 bytes."""
    return array if array.data.ptr % 16 == 0 else array.astype(array.dtype)


def packed(shape: Sequence[int], order: Sequence[int]) -> Shape:
    """Return the strides, in elements, of dimensions that lie in memory in ``order``."""
    strides, step = [0] * len(shape), 1
    for dim in reversed(order):
        strides[dim], step = step, step * shape[dim]
    return tuple(strides)


# ---------------------------------------------------------------------- graphs
class Place(NamedTuple):
    """Shape and strides, in elements, of an operand."""

    shape: Shape
    strides: Shape


class Sketch:
    """A graph that is being written: tensors are numbered 1, 2, … as a run will bring them."""

    def __init__(self, graph: Any) -> None:
        self.graph, self._count = graph, 0

    def given(self, place: Place, dtype: str) -> Any:
        """Return the next operand."""
        return self._numbered(self.result(place, dtype))

    def result(self, place: Place, dtype: str) -> Any:
        """Return a tensor that an operation takes as an option and fills; `gives` numbers it."""
        shape, strides = map(list, place)
        return self.graph.tensor(dim=shape, stride=strides, data_type=data_type(dtype))

    def gives(self, tensor: Any, place: Place, dtype: str) -> Any:
        """Return ``tensor``, as the next result."""
        tensor.set_output(True).set_data_type(data_type(dtype))
        tensor.set_dim(list(place.shape)).set_stride(list(place.strides))
        return self._numbered(tensor)

    def _numbered(self, tensor: Any) -> Any:
        self._count += 1
        tensor.set_uid(self._count)
        return tensor


def data_type(dtype: str) -> Any:
    """Return cuDNN's constant for the name of a dtype."""
    return getattr(library().data_type, TYPES[dtype])


class Description(Protocol):
    """A computation, hashable, which can write its graph."""

    @property
    def dtype(self) -> str:
        """The name of the operands' dtype."""

    @property
    def workspace(self) -> int | None:
        """Bytes that its plan should not exceed; None for no limit."""

    @property
    def compiled(self) -> bool:
        """Whether kernels are compiled for it, which are worth a file."""

    @property
    def wishes(self) -> Wishes:
        """What the program asked for."""

    def write(self, sketch: Sketch) -> None:
        """Write the graph."""


def made(description: Description, **target: Any) -> Any:
    """Return the built graph of a description; None where cuDNN has no plan for it.

    Args:
        target: what to build for: a ``handle``, or a ``device_property`` where there is no GPU.
    """
    for limit in dict.fromkeys((description.workspace, None)):
        graph = _empty(description, **target)
        try:
            _build(graph, description, limit)
        except library().cudnnGraphNotSupportedError:
            continue
        return graph
    return None


def _empty(description: Description, **target: Any) -> Any:
    return library().pygraph(
        io_data_type=data_type(description.dtype),
        intermediate_data_type=library().data_type.FLOAT,
        compute_data_type=library().data_type.FLOAT,
        **target,
    )


def _build(graph: Any, description: Description, limit: int | None) -> None:
    description.write(Sketch(graph))
    graph.validate()
    graph.build_operation_graph()
    modes = library().heur_mode
    graph.create_execution_plans([modes.A, modes.FALLBACK])
    if limit is not None:
        graph.deselect_workspace_greater_than(limit)
    graph.deselect_numeric_notes(_unwanted(description))
    graph.check_support()
    policies = library().build_plan_policy
    graph.build_plans(policies.ALL if description.wishes.benchmark else policies.HEURISTICS_CHOICE)


def _unwanted(description: Description) -> list[Any]:
    """Return the notes of algorithms that the program did not ask for."""
    notes, asked = library().numerical_note, description.wishes
    found = [notes.DOWN_CONVERT_INPUTS]  # float32 rounded to half precision
    if asked.deterministic:
        found.append(notes.NONDETERMINISTIC)
    if description.dtype == "float32" and not asked.tf32:
        found.append(notes.TENSOR_CORE)
    return found


# ---------------------------------------------------------------------- plans
class _Handles(threading.local):
    """The handles of a thread, one for each device."""

    def __init__(self) -> None:
        self.of: dict[int, Any] = {}


class Counts:
    """How often a plan was made, read from disk, and there already."""

    made = 0
    read = 0
    found = 0


counts = Counts()
_handles = _Handles()
_plans: dict[tuple[int, Any], Plan | None] = {}
_lock = threading.Lock()


def _handle() -> Any:
    """Return this thread's handle for the current device, working on the current stream."""
    device = cupy.cuda.runtime.getDevice()
    found = _handles.of.get(device)
    if found is None:
        found = _handles.of[device] = library().create_handle()
    library().set_stream(handle=found, stream=cupy.cuda.get_current_stream().ptr)
    return found


class Plan:
    """How cuDNN computes a description on one kind of device."""

    __slots__ = ("_choice", "_graph", "_untried", "_workspace")

    def __init__(self, graph: Any, candidates: int) -> None:
        self._graph, self._choice = graph, -1  # -1: the one that cuDNN recommends
        self._workspace = int(graph.get_workspace_size())
        self._untried = min(candidates, graph.get_execution_plan_count()) if candidates else 0

    def run(self, *arrays: Array) -> None:
        """Compute on operands and results, in the order in which the graph numbers them.

        Raises:
            DeviceError: cuDNN refuses.
        """
        pointers = {number: a.data.ptr for number, a in enumerate(arrays, 1)}
        handle = _handle()
        try:
            if self._untried:
                self._try_all(pointers, handle)
            self._once(pointers, handle, self._choice, self._workspace)
        except RuntimeError as error:
            raise DeviceError(
                f"cuDNN {version()}: {error}; distgrad.backends.cudnn.enabled = False computes "
                "without it"
            ) from error

    def _once(self, pointers: dict[int, int], handle: Any, choice: int, nbytes: int) -> None:
        # Freed when this returns: whatever takes it next comes later on the same stream.
        workspace = cupy.empty(nbytes, "i1") if nbytes else None
        address = 0 if workspace is None else workspace.data.ptr
        if choice < 0:
            self._graph.execute(pointers, address, handle=handle)
        else:
            self._graph.execute_plan_at_index(pointers, address, choice, handle=handle)

    def _try_all(self, pointers: dict[int, int], handle: Any) -> None:
        """Time the candidates on these operands, and keep the fastest."""
        stream = cupy.cuda.get_current_stream()
        if stream.is_capturing():
            return
        best = float("inf")
        for index in range(self._untried):
            try:
                nbytes = int(self._graph.get_workspace_size_plan_at_index(index))
                seconds = self._seconds(pointers, handle, index, nbytes, stream)
            except (RuntimeError, library().cudnnGraphNotSupportedError):
                continue  # left out by a limit or a note, or not built
            if seconds < best:
                best, self._choice, self._workspace = seconds, index, nbytes
        self._untried = 0

    def _seconds(
        self, pointers: dict[int, int], handle: Any, index: int, nbytes: int, stream: Any
    ) -> float:
        self._once(pointers, handle, index, nbytes)
        stream.synchronize()
        begin = time.perf_counter()
        for _ in range(_TRIES):
            self._once(pointers, handle, index, nbytes)
        stream.synchronize()
        return time.perf_counter() - begin


def plan(description: Description) -> Plan | None:
    """Return the plan of a description for the current device; None where cuDNN has none."""
    key = (cupy.cuda.runtime.getDevice(), description)
    try:
        found = _plans[key]
    except KeyError:
        pass
    else:
        counts.found += 1
        return found
    with _lock, capture.outside():
        if key not in _plans:
            if len(_plans) >= _MOST_PLANS:
                del _plans[next(iter(_plans))]
            _plans[key] = _new(description)
        return _plans[key]


def _new(description: Description) -> Plan | None:
    """Return a new plan, read from disk if it was compiled before."""
    candidates, handle = description.wishes.benchmark, _handle()
    purpose = _purpose(description) if description.compiled and not candidates else ""
    graph = _empty(description, handle=handle)
    if purpose and plan_files.read(purpose, graph, handle):
        counts.read += 1
        return Plan(graph, 0)
    counts.made += 1
    found = made(description, handle=handle)
    if found is None:
        return None
    if purpose:
        plan_files.write(purpose, found)
    return Plan(found, candidates)


def _purpose(description: Description) -> str:
    """Return all that a plan on disk depends on, as text."""
    device = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())
    versions = library().__version__, version()
    return repr((versions, device["name"], device["major"], device["minor"], description))
