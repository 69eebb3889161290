"""Sequences of different lengths: padded to one length, or packed without padding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy

from distgrad.backend.device import CPU, to_device
from distgrad.backend.dtype import dtype
from distgrad.errors import ArgumentError, ShapeError
from distgrad.ops.create import full
from distgrad.ops.index import index_copy, index_select
from distgrad.ops.join import cat, split, unbind
from distgrad.ops.shape import reshape, transpose
from distgrad.tensor import Tensor, wrap
from distgrad.typing import Array

_UNSORTED = (
    "`lengths` array must be sorted in decreasing order when `enforce_sorted` is True. You can "
    "pass `enforce_sorted=False` to pack_padded_sequence and/or pack_sequence to sidestep this "
    "requirement if you do not need ONNX exportability."
)


class PackedSequence_(NamedTuple):
    """The fields of a ``PackedSequence``."""

    data: Tensor
    batch_sizes: Tensor
    sorted_indices: Tensor | None = None
    unsorted_indices: Tensor | None = None


class PackedSequence(PackedSequence_):
    """Sequences of different lengths in one tensor, step by step, without padding.

    Made by ``pack_padded_sequence`` and ``pack_sequence``; recurrent layers take and return it.

    Args:
        data: the rows of the first step of all sequences, then those of the second, and so on.
        batch_sizes: how many sequences have this step.
        sorted_indices: place of each sequence, the longest first, among the ones given.
        unsorted_indices: the inverse of it.
    """

    __slots__ = ()

    def __new__(
        cls,
        data: Any,
        batch_sizes: Tensor | None = None,
        sorted_indices: Tensor | None = None,
        unsorted_indices: Tensor | None = None,
    ) -> PackedSequence:
        """Keep the parts; ``data`` alone may be the pair of data and sizes."""
        if batch_sizes is None:
            assert isinstance(data, list | tuple) and len(data) == 2, (
                "Expected data to be a list or tuple of length 2"
            )
            data, batch_sizes = data
        if unsorted_indices is None:
            unsorted_indices = invert_permutation(sorted_indices)
        if batch_sizes.device != CPU:
            raise ArgumentError(
                "PackedSequence(): batch_sizes should always be on CPU. Instances of "
                "PackedSequence should never be created manually. They should be instantiated by "
                "functions like pack_sequence and pack_padded_sequences in nn.utils.rnn."
            )
        return super().__new__(cls, data, batch_sizes, sorted_indices, unsorted_indices)

    def to(self, *args: Any, **kwargs: Any) -> PackedSequence:
        """Return the sequences on another device or in another dtype, as ``Tensor.to`` does."""
        data = self.data.to(*args, **kwargs)
        if data is self.data:
            return self

        flags = [value for value in args if isinstance(value, bool)]
        beside = kwargs.get("non_blocking", flags[0] if flags else False)

        def moved(index: Any) -> Tensor | None:
            return None if index is None else index.to(data.device, non_blocking=beside)

        indices = moved(self.sorted_indices), moved(self.unsorted_indices)
        return type(self)(data, self.batch_sizes, *indices)

    def cuda(self, *args: Any, **kwargs: Any) -> PackedSequence:
        """Return the sequences on a GPU."""
        return self if self.is_cuda and not args else self.to(*(args or ("cuda",)), **kwargs)

    def cpu(self) -> PackedSequence:
        """Return the sequences in host memory."""
        return self.to("cpu")

    def double(self) -> PackedSequence:
        """Return the sequences in float64."""
        return self._converted("float64")

    def float(self) -> PackedSequence:
        """Return the sequences in float32."""
        return self._converted("float32")

    def half(self) -> PackedSequence:
        """Return the sequences in float16."""
        return self._converted("float16")

    def long(self) -> PackedSequence:
        """Return the sequences in int64."""
        return self._converted("int64")

    def int(self) -> PackedSequence:
        """Return the sequences in int32."""
        return self._converted("int32")

    def short(self) -> PackedSequence:
        """Return the sequences in int16."""
        return self._converted("int16")

    def char(self) -> PackedSequence:
        """Return the sequences in int8."""
        return self._converted("int8")

    def byte(self) -> PackedSequence:
        """Return the sequences in uint8."""
        return self._converted("uint8")

    def _converted(self, name: str) -> PackedSequence:
        return self.to(dtype=dtype(name))

    @property
    def is_cuda(self) -> bool:
        """Whether the data are on a GPU."""
        return self.data.device.type == "cuda"

    def is_pinned(self) -> bool:
        """Return whether the data lie in page-locked memory."""
        return bool(self.data.is_pinned())

    def pin_memory(self) -> PackedSequence:
        """Return the sequences in page-locked memory, with what a GPU gets beside them."""

        def pinned(tensor: Any) -> Any:
            return None if tensor is None else tensor.pin_memory()

        indices = pinned(self.sorted_indices), pinned(self.unsorted_indices)
        return type(self)(pinned(self.data), self.batch_sizes, *indices)


def _index(values: Array, like: Tensor) -> Tensor:
    return wrap(to_device(values.astype(numpy.int64, copy=False), like.device))


def _numbers(lengths: Any) -> Array:
    values = lengths.tolist() if isinstance(lengths, Tensor) else list(lengths)
    return numpy.asarray([int(n) for n in values], numpy.int64)


def invert_permutation(permutation: Tensor | None) -> Tensor | None:
    """Return the inverse of a permutation of 0 … n - 1.

    Example:
        >>> import distgrad as dg
        >>> invert_permutation(dg.tensor([2, 0, 1]))
        tensor([1, 2, 0])
    """
    if permutation is None:
        return None
    return _index(numpy.argsort(to_device(permutation.array, CPU)), permutation)


# ---------------------------------------------------------------------- packing
def pack_padded_sequence(
    input: Tensor, lengths: Any, batch_first: bool = False, enforce_sorted: bool = True
) -> PackedSequence:
    """Return padded sequences packed: what lies beyond their lengths is left out.

    Shape:
        input (T, B, *), or (B, T, *) with ``batch_first``

    Args:
        input: the padded sequences.
        lengths: of each sequence: a tensor or a list.
        batch_first: the batch is the first dimension.
        enforce_sorted: the sequences come the longest first; False sorts them.

    Example:
        >>> import distgrad as dg
        >>> pack_padded_sequence(dg.tensor([[1, 4], [2, 5], [3, 0]]), [3, 2]).data
        tensor([1, 4, 2, 5, 3])
    """
    sizes = _numbers(lengths)
    if batch_first:
        input = transpose(input, 0, 1)
    order = None
    if not enforce_sorted:
        places = numpy.argsort(-sizes, kind="stable")
        order, sizes = _index(places, input), sizes[places]
        input = index_select(input, 1, order)
    steps, batch = input.array.shape[:2]
    _check_lengths(input, sizes, steps, batch)
    present = numpy.arange(int(sizes.max()))[:, None] < sizes
    rows = reshape(input, (steps * batch, *input.array.shape[2:]))
    data = index_select(rows, 0, _index(numpy.flatnonzero(present), input))
    return PackedSequence(data, wrap(present.sum(1)), order)


def _check_lengths(input: Tensor, sizes: Array, steps: int, batch: int) -> None:
    wrong = ""
    if len(sizes) != batch:
        wrong = (
            f"Expected `len(lengths)` to be equal to batch_size, but got {len(sizes)} "
            f"(batch_size={batch})"
        )
    elif not batch or sizes.min() <= 0:
        wrong = (
            "Length of all samples has to be greater than 0, but found an element in 'lengths' "
            "that is <= 0"
        )
    elif (numpy.diff(sizes) > 0).any():
        wrong = _UNSORTED
    elif sizes[0] > steps:
        wrong = f"a length of {sizes[0]} is more than the {steps} steps of the input"
    if wrong:
        raise ShapeError(
            f"pack_padded_sequence(input: {input._brief()}, lengths={sizes.tolist()}): {wrong}"
        )


def pad_packed_sequence(
    sequence: PackedSequence,
    batch_first: bool = False,
    padding_value: float = 0.0,
    total_length: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return packed sequences padded to one length, and their lengths.

    Args:
        sequence: the packed sequences.
        batch_first: the batch becomes the first dimension.
        padding_value: what stands beyond the end of a sequence.
        total_length: the length to pad to, instead of that of the longest.
    """
    sizes = _numbers(sequence.batch_sizes)
    steps, batch = len(sizes), int(sizes[0])
    if total_length is not None and total_length < steps:
        raise ArgumentError(
            "Expected total_length to be at least the length of the longest sequence in input, "
            f"but got total_length={total_length} and max sequence length being {steps}"
        )
    present = numpy.arange(batch) < sizes[:, None]
    shape = (total_length or steps, batch, *sequence.data.array.shape[1:])
    padded = _spread(sequence.data, numpy.flatnonzero(present), shape, padding_value)
    lengths = present.sum(0)
    unsorted = sequence.unsorted_indices
    if unsorted is not None:
        padded = index_select(padded, 1, unsorted)
        lengths = lengths[to_device(unsorted.array, CPU)]
    return transpose(padded, 0, 1) if batch_first else padded, wrap(lengths)


def _spread(rows: Tensor, places: Array, shape: tuple[int, ...], value: float) -> Tensor:
    """Return a tensor of ``shape`` with ``rows`` at ``places`` of its first two dimensions."""
    base = full((shape[0] * shape[1], *shape[2:]), value, dtype=rows.dtype, device=rows.device)
    return reshape(index_copy(base, 0, _index(places, rows), rows), shape)


def pad_sequence(
    sequences: Tensor | Sequence[Tensor],
    batch_first: bool = False,
    padding_value: float = 0.0,
    padding_side: str = "right",
) -> Tensor:
    """Return sequences of different lengths padded to the longest, in one tensor.

    Shape:
        sequences (L_i, *) -> (max L, B, *), or (B, max L, *) with ``batch_first``

    Args:
        sequences: a list of them.
        batch_first: the batch becomes the first dimension.
        padding_value: what stands where a sequence has no elements.
        padding_side: "right" or "left".

    Example:
        >>> import distgrad as dg
        >>> pad_sequence([dg.tensor([1, 2, 3]), dg.tensor([4])], batch_first=True)
        tensor([[1, 2, 3],
                [4, 0, 0]])
    """
    many = _as_list(sequences, padding_side)
    rest = many[0].array.shape[1:]
    lengths = numpy.asarray([one.array.shape[0] for one in many])
    longest = int(lengths.max())
    places = numpy.arange(longest)
    present = places < lengths[:, None]
    if padding_side == "left":
        present = present[:, ::-1]
    shape = (len(many), longest, *rest)
    out = _spread(cat(many, 0), numpy.flatnonzero(present), shape, padding_value)
    return out if batch_first else transpose(out, 0, 1)


def _as_list(sequences: Tensor | Sequence[Tensor], padding_side: str) -> list[Tensor]:
    """Return the sequences, all of one size after the first dimension."""
    if not isinstance(sequences, Iterable):
        raise ShapeError(
            "pad_sequence: Expected iterable for input sequences, but got arg of type: "
            f"{type(sequences)}"
        )
    many = list(unbind(sequences) if isinstance(sequences, Tensor) else sequences)
    if not many:
        raise ShapeError("pad_sequence(): received an empty list of sequences")
    if padding_side not in ("left", "right"):
        raise ShapeError(
            f"pad_sequence(): Expected padding_side to be one of left or right, but got "
            f"{padding_side}."
        )
    rest = many[0].array.shape[1:]
    for number, one in enumerate(many):
        if one.array.shape[1:] != rest:
            raise ShapeError(
                f"pad_sequence(sequences[{number}]: {one._brief()}): The size of the sequences "
                f"must match after the first dimension; that of the first is {list(rest)}"
            )
    return many


def unpad_sequence(
    padded_sequences: Tensor, lengths: Tensor, batch_first: bool = False
) -> list[Tensor]:
    """Return the sequences of a padded tensor as a list, without the padding."""
    if not batch_first:
        padded_sequences = transpose(padded_sequences, 0, 1)
    rows = zip(unbind(padded_sequences, 0), _numbers(lengths).tolist(), strict=True)
    return [row if n == row.array.shape[0] else split(row, [n, row.array.shape[0] - n])[0]
            for row, n in rows]  # fmt: skip


def pack_sequence(sequences: Sequence[Tensor], enforce_sorted: bool = True) -> PackedSequence:
    """Return sequences of different lengths packed.

    Example:
        >>> import distgrad as dg
        >>> pack_sequence([dg.tensor([1, 2]), dg.tensor([3])]).batch_sizes
        tensor([2, 1])
    """
    lengths = [one.array.shape[0] for one in sequences]
    return pack_padded_sequence(pad_sequence(sequences), lengths, enforce_sorted=enforce_sorted)


def unpack_sequence(packed_sequences: PackedSequence) -> list[Tensor]:
    """Return packed sequences as a list."""
    padded, lengths = pad_packed_sequence(packed_sequences, batch_first=True)
    return unpad_sequence(padded, lengths, batch_first=True)


__all__ = [
    "PackedSequence",
    "invert_permutation",
    "pack_padded_sequence",
    "pack_sequence",
    "pad_packed_sequence",
    "pad_sequence",
    "unpack_sequence",
    "unpad_sequence",
]
