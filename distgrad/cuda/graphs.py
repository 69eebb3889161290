"""CUDA graphs: a step's work for the GPU is recorded once and then launched as a whole.

Note [What a graph is]
    Kernels, copies and calls of NCCL with the addresses and numbers they had when they were
    recorded.  So tensors that a step reads from outside must stay where they are; what changes
    lies on the GPU and is written before a replay.  Optimizers do so for learning rates by
    themselves (`distgrad.backend.capture`).

Note [A pool of its own]
    Memory that is freed in a capture is given out again in the same capture, and to nobody else:
    each replay writes to all of it.  So a graph has its own pool, which lives as long as it does.

Note [Captures are relaxed]
    CUDA's stricter modes forbid taking memory, which a pool must do.  What those modes would find
    (work of other threads that does harm) cannot harm here: only this thread's stream is recorded.
"""

from __future__ import annotations

import gc
import itertools
import re
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import CodeType, TracebackType
from typing import Any, NoReturn
from weakref import WeakSet, WeakValueDictionary

from distgrad.amp.state import clear_autocast_cache
from distgrad.backend import capture as captures
from distgrad.backend.capture import Capture
from distgrad.backend.device import cuda_in_use, cupy_module, namespace_of
from distgrad.backend.device import device as Device
from distgrad.cuda.devices import synchronize
from distgrad.cuda.streams import Stream
from distgrad.errors import ArgumentError, CaptureError
from distgrad.tensor import clock

__all__ = [
    "CUDAGraph", "graph", "graph_pool_handle", "is_current_stream_capturing", "private_pools",
]  # fmt: skip

Handle = tuple[int, int]
MODES = ("global", "thread_local", "relaxed")


# ---------------------------------------------------------------------- pools of graphs
class Pool:
    """A pool that graphs share."""

    __slots__ = ("__weakref__", "device", "handle", "raw")

    def __init__(self, handle: Handle, cupy: Any) -> None:
        self.handle, self.raw = handle, cupy.cuda.MemoryPool()
        self.device = int(cupy.cuda.runtime.getDevice())
        _all_pools.add(self)


_numbers = itertools.count(1)
_pools: WeakValueDictionary[Handle, Pool] = WeakValueDictionary()
_all_pools: WeakSet[Pool] = WeakSet()


def graph_pool_handle() -> Handle:
    """Return what ``pool=`` of captures takes, so that graphs share their memory.

    Only graphs that are replayed in the order of their captures, and never at the same time, may.
    """
    return 0, next(_numbers)


def private_pools(device: int) -> list[Any]:
    """Return CuPy's pools of graphs on a device."""
    return [pool.raw for pool in list(_all_pools) if pool.device == device]


def _pool(handle: Handle | None, cupy: Any) -> Pool:
    handle = graph_pool_handle() if handle is None else handle
    if not (isinstance(handle, tuple) and len(handle) == 2):
        raise ArgumentError(
            f"CUDAGraph.capture_begin(pool={handle!r}): no handle of a pool; take what "
            "graph_pool_handle() or another graph's pool() returns"
        )
    found = _pools.get(handle)
    if found is None:
        found = _pools[handle] = Pool(handle, cupy)
    return found


# ---------------------------------------------------------------------- the collector rests
class _Collector:
    """Python's collector, off while any thread captures: what it frees may call CUDA."""

    def __init__(self) -> None:
        self._lock, self._captures, self._was_on = threading.Lock(), 0, False

    def pause(self) -> None:
        """Turn it off."""
        with self._lock:
            if not self._captures:
                self._was_on = gc.isenabled()
                gc.disable()
            self._captures += 1

    def resume(self) -> None:
        """Turn it on again after the last capture, if it was."""
        with self._lock:
            self._captures -= 1
            if not self._captures and self._was_on:
                gc.enable()


_collector = _Collector()


# ---------------------------------------------------------------------- graphs
class CUDAGraph:
    """Work for a GPU that was recorded and can be done again; see ``graph`` for how to record.

    Args:
        keep_graph: PyTorch's, for changing a graph before its first launch, which is not done here.
    """

    def __init__(self, keep_graph: bool = False) -> None:
        self._graph: Any = None
        self._pool: Pool | None = None
        self._capture: Capture | None = None  # of which this graph is
        self._end: Callable[[], None] | None = None  # what a capture under way has to undo
        self._stream: Any = None

    def capture_begin(self, pool: Handle | None = None, capture_error_mode: str = "global") -> None:
        """Record the work of the current stream from here on, instead of doing it.

        Args:
            pool: of another graph, to share its memory; see ``graph_pool_handle``.
            capture_error_mode: accepted; see Note [Captures are relaxed].

        Raises:
            CaptureError: another capture is under way, this graph has one, or the current stream
                is the default one, which CUDA cannot capture.
        """
        if capture_error_mode not in MODES:
            raise ArgumentError(
                f"CUDAGraph.capture_begin(capture_error_mode={capture_error_mode!r}): takes one "
                f"of {', '.join(MODES)}"
            )
        cupy = cupy_module("cuda.CUDAGraph.capture_begin()")
        stream = cupy.cuda.get_current_stream()
        self._check_begin(stream)
        self._pool = _pool(pool, cupy)
        capture = Capture(cupy, clock.tick())
        undo = ExitStack()
        undo.callback(_collector.resume)
        _collector.pause()
        undo.enter_context(cupy.cuda.using_allocator(self._pool.raw.malloc))
        capture.keep(undo.enter_context(namespace_of(Device("cuda")).own_workspace()))
        captures.entered(capture)
        undo.callback(captures.entered, None)
        self._end, self._stream, self._capture = undo.close, stream, capture
        try:
            stream.begin_capture()
        except BaseException:
            self._give_up()
            raise

    def _check_begin(self, stream: Any) -> None:
        name = "CUDAGraph.capture_begin()"
        if captures.current() is not None:
            raise CaptureError(f"{name}: a capture is under way in this thread; end it first")
        if self._graph is not None:
            raise CaptureError(f"{name}: this graph is captured already; call reset() first")
        if stream.ptr in (0, 1, 2):  # the default stream, and its handles
            raise CaptureError(
                f"{name}: CUDA cannot capture the default stream; use `with "
                "distgrad.cuda.graph(g):`, or make another stream the current one"
            )

    def capture_end(self) -> None:
        """End what ``capture_begin`` has begun.

        Raises:
            CaptureError: no capture is under way, or CUDA could not record all of it.
        """
        if self._end is None:
            raise CaptureError("CUDAGraph.capture_end(): no capture has begun")
        cupy = cupy_module("cuda.CUDAGraph.capture_end()")
        try:
            self._graph = self._stream.end_capture()
        except cupy.cuda.runtime.CUDARuntimeError as error:
            self._give_up()
            raise CaptureError(f"CUDAGraph.capture_end(): {_reason(str(error))}") from error
        end, self._end = self._end, None
        end()

    def _give_up(self) -> None:
        """End a capture that failed."""
        end, self._end = self._end, None
        if end is not None:
            try:
                if self._stream.is_capturing():
                    self._stream.end_capture()
            except RuntimeError:  # CUDA says once more that it failed
                pass
            end()
        self.reset()

    def replay(self) -> None:
        """Do the recorded work, on the current stream.

        Raises:
            CaptureError: nothing was captured.
        """
        if self._graph is None or self._capture is None:
            raise CaptureError(
                "CUDAGraph.replay(): nothing was captured; use `with distgrad.cuda.graph(g):`"
            )
        for action in self._capture.before:
            action()
        self._graph.launch()
        for action in self._capture.after:
            action()

    def instantiate(self) -> None:
        """Do nothing: a graph is ready for launches when its capture ends."""

    def reset(self) -> None:
        """Forget the recorded work, and give its memory back where no tensor is in it."""
        self._graph = self._capture = self._pool = self._stream = None

    def pool(self) -> Handle:
        """Return the handle of its memory, for other captures.

        Raises:
            CaptureError: there was no capture.
        """
        if self._pool is None:
            raise CaptureError("CUDAGraph.pool(): nothing was captured, so there is no memory")
        return self._pool.handle

    def enable_debug_mode(self) -> None:
        """Do nothing: ``debug_dump`` can always be called."""

    def debug_dump(self, debug_path: str | Path) -> None:
        """Write the recorded work to a file, for Graphviz.

        Raises:
            CaptureError: nothing was captured.
        """
        if self._graph is None:
            raise CaptureError("CUDAGraph.debug_dump(): nothing was captured")
        Path(debug_path).write_text(self._graph.debug_dot_str(), encoding="utf-8")


class _Streams(threading.local):
    """The streams on which a thread captures, by CuPy and device: graphs of a pool share them."""

    def __init__(self) -> None:
        self.by_device: dict[tuple[Any, int], Stream] = {}


_streams = _Streams()


def capture_stream(cupy: Any) -> Stream:
    """Return the stream on which this thread captures for the current device."""
    device = int(cupy.cuda.runtime.getDevice())
    found = _streams.by_device.get((cupy, device))
    if found is None:
        found = _streams.by_device[cupy, device] = Stream(device)
    return found


class graph(AbstractContextManager[None]):
    """Records the work for the GPU in a ``with`` block into a graph, instead of doing it.

    The same work has to run a few times before, on another stream than the default one: libraries
    prepare themselves in their first calls.  ``capture_step`` and ``make_graphed_callables`` do so.

    Args:
        cuda_graph: a new ``CUDAGraph``.
        pool: of another graph, to share its memory; see ``graph_pool_handle``.
        stream: on which to record; the default is one for all captures of the thread.
        capture_error_mode: accepted; see Note [Captures are relaxed].

    Raises:
        CaptureError: something in the block cannot be recorded; names it, and the line.
    """

    def __init__(
        self,
        cuda_graph: CUDAGraph,
        pool: Handle | None = None,
        stream: Stream | None = None,
        capture_error_mode: str = "global",
    ) -> None:
        self._graph, self._pool, self._mode = cuda_graph, pool, capture_error_mode
        self._given, self._stream = stream, stream

    def __enter__(self) -> None:
        cupy = cupy_module("cuda.graph()")
        self._stream = self._given or capture_stream(cupy)
        synchronize()
        gc.collect()
        clear_autocast_cache()  # replays have to convert the parameters too
        self._stream.__enter__()
        try:
            self._graph.capture_begin(self._pool, self._mode)
        except BaseException:
            self._stream.__exit__(*sys.exc_info())
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._stream is not None
        clear_autocast_cache()
        try:
            if error is None:
                self._graph.capture_end()
            else:
                self._graph._give_up()
        finally:
            self._stream.__exit__(kind, error, trace)
        if isinstance(error, Exception):
            _explain(error, trace)


def is_current_stream_capturing() -> bool:
    """Return whether the work of the current stream is being recorded."""
    if not cuda_in_use():
        return False
    stream = cupy_module("cuda.is_current_stream_capturing()").cuda.get_current_stream()
    return bool(stream.is_capturing())


# ---------------------------------------------------------------------- why a capture failed
_REASONS = {
    "cudaErrorStreamCaptureUnsupported": "it waits for the GPU, or copies between the host and the "
    "GPU",
    "cudaErrorStreamCaptureImplicit": "it works on the default stream",
    "cudaErrorStreamCaptureIsolation": "it waits for an event from before the capture",
    "cudaErrorStreamCaptureUnjoined": "another stream took part and was not waited for at the end; "
    "let the capturing stream wait for it",
    "cudaErrorStreamCaptureInvalidated": "something in it could not be captured",
    "cudaErrorCapturedEvent": "it asks for an event that is only recorded",
    "during stream capture": "CuPy's call of this library cannot be captured",
    "waits for the device": "it waits for the GPU",
}


def _reason(text: str) -> str:
    """Return what an error of CUDA or CuPy says about a capture; nothing if it is of another kind.

    Example:
        >>> _reason("cudaErrorStreamCaptureImplicit: operation would make ...")
        'it works on the default stream'
    """
    return next((why for sign, why in _REASONS.items() if sign in text), "")


def _explain(error: Exception, trace: TracebackType | None) -> None:
    """Raise a `CaptureError` for an error that comes of capturing; return for others."""
    cause: BaseException | None = error
    while cause is not None:
        why = _reason(str(cause))
        if why and not isinstance(cause, CaptureError):
            _refuse(why, error, trace)
        cause = cause.__cause__ or cause.__context__


_LIBRARY = re.compile(r"(cupy|cupyx|cupy_backends|nvmath|cudnn|distgrad\.testing\.standin)\b")
_OURS = re.compile(r"distgrad\b(?!\.testing\b)")


def _name_of(code: CodeType) -> str:
    """Return the name of a public function or operation for messages; nothing for another."""
    if code.co_filename.startswith("<distgrad "):  # <distgrad operator matmul>
        return f"{code.co_filename[:-1].split()[-1]}()"
    return "" if code.co_name[0] == "_" else f"{code.co_name}()"


def _refuse(why: str, error: Exception, trace: TracebackType | None) -> NoReturn:
    name, place = "work in the block", ""
    while trace is not None:
        module, code = trace.tb_frame.f_globals.get("__name__", ""), trace.tb_frame.f_code
        if _LIBRARY.match(module):
            pass
        elif not _OURS.match(module):
            name, place = "", f" ({Path(code.co_filename).name}:{trace.tb_lineno})"
        elif not name:
            name = _name_of(code)
        trace = trace.tb_next
    raise CaptureError(
        f"{name or 'a call'}{place}: {why}, which a CUDA graph cannot record; leave it out of the "
        "captured step, or keep what it needs on the GPU"
    ) from error
