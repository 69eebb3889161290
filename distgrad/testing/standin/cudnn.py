"""A stand-in for cuDNN's frontend (the module ``cudnn``): graphs that NumPy computes.

It takes the calls in the order in which the frontend takes them, refuses what cuDNN 9.19 has no
plan for on an H200 (seen by building plans with the real one), and reads and writes the memory
that a run names by address, as work of the handle's stream.  See ``cudnn_math`` for the numbers.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from distgrad.testing.standin import cudnn_math as mathematics
from distgrad.testing.standin.array import done
from distgrad.testing.standin.captures import CUDARuntimeError
from distgrad.testing.standin.ledger import ledger
from distgrad.testing.standin.streams import Stream, current_stream, machine, memory_at

__all__ = ["make_module"]

VERSION = 91900
_CANDIDATES = 3  # plans of a graph; the second needs more memory than a workspace should have


class cudnnGraphNotSupportedError(Exception):
    """There is no plan."""


def _words(name: str, *words: str) -> Any:
    return enum.Enum(name, list(words))


data_type = _words("data_type", "NOT_SET", "HALF", "BFLOAT16", "FLOAT", "DOUBLE", "INT32", "INT64")
heur_mode = _words("heur_mode", "A", "B", "FALLBACK")
build_plan_policy = _words("build_plan_policy", "HEURISTICS_CHOICE", "ALL")
numerical_note = _words(
    "numerical_note", "TENSOR_CORE", "DOWN_CONVERT_INPUTS", "NONDETERMINISTIC", "WINOGRAD"
)
diagonal_alignment = _words("diagonal_alignment", "TOP_LEFT", "BOTTOM_RIGHT")

_DTYPES = {
    data_type.HALF: "float16", data_type.BFLOAT16: "bfloat16", data_type.FLOAT: "float32",
    data_type.INT32: "int32", data_type.INT64: "int64",
}  # fmt: skip
_NARROW = (data_type.HALF, data_type.BFLOAT16)


# ---------------------------------------------------------------------- handles
class Handle:
    """A handle of the device that was current when it was made."""

    def __init__(self) -> None:
        self.device, self.stream = current_stream().device_id, 0

    def queue(self) -> Stream:
        """Return the stream that its work goes to."""
        for stream in list(machine.streams):
            if stream.ptr == self.stream and stream.device_id == self.device:
                return stream
        raise CUDARuntimeError("cudaErrorInvalidResourceHandle: the handle's stream is gone")


def set_stream(handle: Handle, stream: int) -> None:
    """Let the handle's work go to a stream, by its address."""
    handle.stream = stream


# ---------------------------------------------------------------------- tensors
class Tensor:
    """A tensor of a graph."""

    def __init__(self, dim: Sequence[int], stride: Sequence[int], kind: Any) -> None:
        self.dim, self.stride, self.data_type = list(dim), list(stride), kind
        self.uid, self.output = 0, False

    def set_output(self, value: bool) -> Tensor:
        """Say whether a run writes it to memory."""
        self.output = value
        return self

    def set_uid(self, uid: int) -> Tensor:
        """Set the number by which a run names it."""
        self.uid = uid
        return self

    def set_dim(self, dim: Sequence[int]) -> Tensor:
        """Set the shape."""
        self.dim = list(dim)
        return self

    def set_stride(self, stride: Sequence[int]) -> Tensor:
        """Set the strides, in elements."""
        self.stride = list(stride)
        return self

    def set_data_type(self, kind: Any) -> Tensor:
        """Set the type of numbers."""
        self.data_type = kind
        return self

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's name of the type."""
        return np.dtype(_DTYPES[self.data_type])

    def at(self, address: int, stream: Stream) -> np.ndarray[Any, Any]:
        """Return the memory that a run names, as this tensor."""
        if address % min(16, self.dtype.itemsize * 8):
            ledger.refuse(f"tensor {self.uid}: misaligned address", RuntimeError)
        reach = sum((n - 1) * s for n, s in zip(self.dim, self.stride, strict=True)) + 1
        memory = memory_at(address, reach * self.dtype.itemsize)
        memory.use(stream)
        begin = address - memory.begin
        flat = memory.bytes()[begin : begin + reach * self.dtype.itemsize].view(self.dtype)
        steps = [s * self.dtype.itemsize for s in self.stride]
        return np.lib.stride_tricks.as_strided(flat, self.dim, steps)


Values = dict[int, np.ndarray[Any, Any]]  # of tensors, by id()


# ---------------------------------------------------------------------- graphs
stored: list[Any] | None = None  # a list, for tests of plans on disk


class pygraph:
    """Operations on tensors; a plan of them is made once, and run on addresses."""

    def __init__(
        self, *, io_data_type: Any, intermediate_data_type: Any, compute_data_type: Any,
        handle: Handle | None = None,
    ) -> None:  # fmt: skip
        self._io, self._stage = io_data_type, "written"
        if {intermediate_data_type, compute_data_type} != {data_type.FLOAT}:
            ledger.refuse("cudnn.pygraph: sums are to be made in float32", ValueError)
        if handle is None:
            ledger.refuse("cudnn.pygraph: a plan without a handle runs nowhere", ValueError)
        self._tensors: list[Tensor] = []
        self._steps: list[Callable[[Values], None]] = []
        self._checks: list[Callable[[], str | None]] = []
        self._limit = float("inf")

    # ------------------------------------------------------------------ writing
    def tensor(self, *, dim: list[int], stride: list[int], data_type: Any) -> Tensor:
        """Return an operand."""
        self._tensors.append(Tensor(dim, stride, data_type))
        return self._tensors[-1]

    def _result(self, dim: Sequence[int]) -> Tensor:
        strides = [int(np.prod(dim[i + 1 :])) for i in range(len(dim))]
        return self.tensor(dim=list(dim), stride=strides, data_type=self._io)

    def _convolution(
        self, name: str, first: Tensor, second: Tensor, shape: Sequence[int],
        geometry: mathematics.Geometry,
    ) -> Tensor:  # fmt: skip
        out, function = self._result(shape), getattr(mathematics, name)

        def step(values: Values) -> None:
            operands = values[id(first)], values[id(second)]
            shaped = () if name == "fprop" else (tuple(out.dim),)
            values[id(out)] = function(*operands, *shaped, geometry)

        def wrong() -> str | None:
            image, filter, loss = {"fprop": (first, second, out), "dgrad": (out, second, first),
                                   "wgrad": (first, out, second)}[name]  # fmt: skip
            places = geometry.places(tuple(image.dim[2:]), tuple(filter.dim[2:]))
            fits = [image.dim[0], filter.dim[0], *places] == loss.dim
            if not fits or image.dim[1] % filter.dim[1]:
                raise RuntimeError(f"conv_{name}: sizes do not fit: {image.dim} {filter.dim}")
            if first.data_type != second.data_type or first.data_type not in (
                *_NARROW, data_type.FLOAT
            ):  # fmt: skip
                return "types of operands"
            return "a result in float32 of half precision" if (
                first.data_type in _NARROW and out.output and out.data_type != first.data_type
            ) else None  # fmt: skip

        self._steps.append(step)
        self._checks.append(wrong)
        return out

    def conv_fprop(
        self, image: Tensor, weight: Tensor, *, pre_padding: list[int], post_padding: list[int],
        stride: list[int], dilation: list[int],
    ) -> Tensor:  # fmt: skip
        """Return the convolution."""
        geometry = _geometry(pre_padding, post_padding, stride, dilation)
        places = geometry.places(tuple(image.dim[2:]), tuple(weight.dim[2:]))
        return self._convolution(
            "fprop", image, weight, (image.dim[0], weight.dim[0], *places), geometry
        )

    def conv_dgrad(
        self, loss: Tensor, filter: Tensor, *, pre_padding: list[int], post_padding: list[int],
        stride: list[int], dilation: list[int],
    ) -> Tensor:  # fmt: skip
        """Return the gradient of the image, whose size is to be set."""
        geometry = _geometry(pre_padding, post_padding, stride, dilation)
        return self._convolution("dgrad", loss, filter, loss.dim, geometry)

    def conv_wgrad(
        self, image: Tensor, loss: Tensor, *, pre_padding: list[int], post_padding: list[int],
        stride: list[int], dilation: list[int],
    ) -> Tensor:  # fmt: skip
        """Return the gradient of the filter, whose size is to be set."""
        geometry = _geometry(pre_padding, post_padding, stride, dilation)
        return self._convolution("wgrad", image, loss, image.dim, geometry)

    def bias(self, input: Tensor, bias: Tensor) -> Tensor:
        """Return the sum of two tensors."""
        out = self._result(input.dim)

        def step(values: Values) -> None:
            values[id(out)] = values[id(input)] + values[id(bias)]

        self._steps.append(step)
        return out

    def sdpa(
        self, *, q: Tensor, k: Tensor, v: Tensor, attn_scale: float, generate_stats: bool,
        bias: Tensor | None = None, dropout: Any = None, diagonal_alignment: Any = None,
        diagonal_band_right_bound: int | None = None,
    ) -> list[Tensor]:  # fmt: skip
        """Return attention and its statistics."""
        out, stats = self._result([*q.dim[:3], v.dim[3]]), self._result([*q.dim[:3], 1])
        rules = _reader(attn_scale, bias, dropout, diagonal_alignment, diagonal_band_right_bound)

        def step(values: Values) -> None:
            values[id(out)], values[id(stats)] = mathematics.attention(
                values[id(q)], values[id(k)], values[id(v)], rules(values)
            )

        self._steps.append(step)
        self._checks.append(lambda: _attention_refused(q, k, v))
        if not generate_stats:
            ledger.refuse("cudnn sdpa: backward needs the statistics", ValueError)
        return [out, stats]

    def sdpa_backward(
        self, *, q: Tensor, k: Tensor, v: Tensor, o: Tensor, dO: Tensor, stats: Tensor,
        attn_scale: float, bias: Tensor | None = None, dBias: Tensor | None = None,
        dropout: Any = None, diagonal_alignment: Any = None,
        diagonal_band_right_bound: int | None = None, use_deterministic_algorithm: bool = False,
    ) -> list[Tensor]:  # fmt: skip
        """Return the gradients of q, k and v."""
        found = [self._result(t.dim) for t in (q, k, v)]
        rules = _reader(attn_scale, bias, dropout, diagonal_alignment, diagonal_band_right_bound)

        def step(values: Values) -> None:
            *three, logits = mathematics.attention_backward(
                values[id(q)], values[id(k)], values[id(v)], values[id(o)], values[id(dO)],
                values[id(stats)], rules(values),
            )  # fmt: skip
            values.update((id(t), x) for t, x in zip(found, three, strict=True))
            if dBias is not None:
                values[id(dBias)] = mathematics.summed_to(logits, tuple(dBias.dim))

        self._steps.append(step)
        self._checks.append(lambda: _attention_refused(q, k, v))
        return found

    # ------------------------------------------------------------------ planning
    def _then(self, before: str, after: str) -> None:
        if self._stage != before:
            ledger.refuse(f"cudnn.pygraph: {after} comes after {before}", RuntimeError)
        self._stage = after

    def validate(self) -> None:
        """Check the graph's sizes."""
        self._then("written", "validated")
        self._refusals = [check() for check in self._checks]
        numbers = [t.uid for t in self._tensors if t.uid]
        if len(numbers) != len(set(numbers)):
            raise RuntimeError("uids are not unique")

    def build_operation_graph(self) -> None:
        """Go on."""
        self._then("validated", "graph")

    def create_execution_plans(self, modes: list[Any]) -> None:
        """Ask for candidates."""
        self._then("graph", "candidates")
        if any(self._refusals):
            raise cudnnGraphNotSupportedError(f"no plan: {self._refusals}")

    def deselect_workspace_greater_than(self, limit: int) -> None:
        """Leave out candidates that need more memory."""
        self._filter()
        self._limit = limit

    def deselect_numeric_notes(self, notes: list[Any]) -> None:
        """Leave out candidates with one of the notes."""
        self._filter()
        assert all(isinstance(n, numerical_note) for n in notes)

    def _filter(self) -> None:
        if self._stage != "candidates":
            ledger.refuse("cudnn.pygraph: a filter works on candidates", RuntimeError)

    def check_support(self) -> None:
        """Go on."""
        self._then("candidates", "supported")

    def build_plans(self, policy: Any = build_plan_policy.HEURISTICS_CHOICE) -> None:
        """Make the first plan, or all."""
        self._then("supported", "built")
        self._all = policy is build_plan_policy.ALL

    def get_workspace_size(self) -> int:
        """Return the bytes that the first plan needs."""
        return self.get_workspace_size_plan_at_index(0)

    def get_execution_plan_count(self) -> int:
        """Return the number of candidates."""
        return _CANDIDATES

    def get_workspace_size_plan_at_index(self, index: int) -> int:
        """Return the bytes that a candidate needs."""
        return [131, 1 << 30, 0][index]

    def serialize(self) -> list[int]:
        """Return what `deserialize` knows this graph by in this process; nothing by default."""
        if stored is None:
            return []
        stored.append(self)
        return list(f"stand-in {len(stored) - 1}".encode())

    def deserialize(self, handle: Handle, data: list[int]) -> None:
        """Become a graph that was serialized."""
        if type(data) is not list:  # pybind11 makes no vector of bytes
            ledger.refuse(f"cudnn: Unable to cast {type(data).__name__} to C++ type", RuntimeError)
        word, number = bytes(data).decode().split()
        if word != "stand-in" or stored is None:
            raise RuntimeError("unknown format")
        vars(self).update(vars(stored[int(number)]))

    # ------------------------------------------------------------------ running
    def execute(self, pack: dict[int, int], workspace: int, *, handle: Handle) -> None:
        """Run the first plan on the addresses in ``pack``."""
        self._run(pack, workspace, handle, 0)

    def execute_plan_at_index(
        self, pack: dict[int, int], workspace: int, index: int, *, handle: Handle
    ) -> None:
        """Run a candidate."""
        if not self._all or self.get_workspace_size_plan_at_index(index) > self._limit:
            raise RuntimeError(f"plan {index} was left out or not built")
        self._run(pack, workspace, handle, index)

    def _run(self, pack: dict[int, int], workspace: int, handle: Handle, index: int) -> None:
        if self._stage != "built":
            ledger.refuse("cudnn.pygraph: not built", RuntimeError)
        stream = handle.queue()
        nbytes = self.get_workspace_size_plan_at_index(index)
        if nbytes:
            memory_at(workspace, nbytes).use(stream)
        named = [t for t in self._tensors if t.uid]
        if set(pack) != {t.uid for t in named}:
            ledger.refuse(f"cudnn: run on {sorted(pack)}, not {[t.uid for t in named]}", ValueError)
        memory = [(t, t.at(pack[t.uid], stream)) for t in named]
        done(lambda: self._compute(memory), kernel=False)
        ledger.launches.append("cudnn")

    def _compute(self, memory: list[tuple[Tensor, np.ndarray[Any, Any]]]) -> None:
        exact = {t: m.astype("int64" if m.dtype.kind == "i" else "float64") for t, m in memory}
        values: Values = {id(t): m for t, m in exact.items() if not t.output}
        for step in self._steps:
            step(values)
        for t, m in memory:
            if t.output:
                m[...] = values[id(t)].astype(t.dtype)


def _geometry(
    before: list[int], after: list[int], stride: list[int], dilation: list[int]
) -> mathematics.Geometry:
    if before != after:
        ledger.refuse("cudnn: padding differs on the two sides", ValueError)
    return mathematics.Geometry(tuple(before), tuple(stride), tuple(dilation))


def _reader(
    scale: float, bias: Tensor | None, dropout: Any, alignment: Any, right: int | None
) -> Callable[[Values], mathematics.Rules]:
    """Return a function that reads the rules of attention from a run's numbers."""
    if alignment is not None and (alignment, right) != (diagonal_alignment.TOP_LEFT, 0):
        ledger.refuse("cudnn sdpa: only the causal mask is implemented", NotImplementedError)
    p, *state = dropout or (0.0,)

    def read(values: Values) -> mathematics.Rules:
        seed, offset = (int(values[id(t)].item()) for t in state) if state else (0, 0)
        added = None if bias is None else values[id(bias)]
        return mathematics.Rules(scale, alignment is not None, added, p, seed, offset)

    return read


def _attention_refused(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    if q.data_type not in _NARROW:
        return "attention in float32 has no backward"
    if any(t.dim[3] % 8 or t.dim[3] > 256 for t in (q, k, v)):
        return "hidden_dim should be less than or equal to 256 and a multiple of 8"
    if any(t.stride[3] != 1 for t in (q, k, v)):
        return "the last stride should be 1"
    return None


def make_module() -> ModuleType:
    """Return the module."""
    module = ModuleType("cudnn", __doc__)
    names = ("cudnnGraphNotSupportedError data_type heur_mode build_plan_policy numerical_note "
             "diagonal_alignment pygraph set_stream Handle")  # fmt: skip
    for name in names.split():
        setattr(module, name, globals()[name])
    module.backend_version = lambda: VERSION  # type: ignore[attr-defined]
    module.create_handle = Handle  # type: ignore[attr-defined]
    module.__version__ = "1.28.0"  # type: ignore[attr-defined]
    return module
