"""Matrices of few numbers: their places and values, multiplied with dense tensors."""

from __future__ import annotations

from typing import Any

from distgrad.autograd.declare import as_method
from distgrad.backend.device import device as Device
from distgrad.backend.dtype import dtype as Dtype
from distgrad.backend.layout import layout
from distgrad.errors import ArgumentError, ShapeError
from distgrad.ops.create import as_tensor, zeros
from distgrad.tensor import Tensor

__all__ = ["SparseTensor", "sparse_coo", "sparse_coo_tensor", "to_sparse"]

sparse_coo = layout("sparse_coo")


class SparseTensor:
    """An array given by the places and values of some of its numbers; the others are zero.

    Values at the same place are added. Gradients reach the values and the dense factor.

    Differs from PyTorch: it is no ``Tensor``; what it can do is written here.

    Example:
        >>> from distgrad import ones
        >>> a = sparse_coo_tensor([[0, 1], [2, 0]], [3.0, 4.0], (2, 3))
        >>> a @ ones(3, 1)
        tensor([[3.],
                [4.]])
    """

    __slots__ = ("_numbers", "_places", "shape")
    is_sparse, layout = True, sparse_coo

    def __init__(self, indices: Tensor, values: Tensor, size: tuple[int, ...]) -> None:
        self._places, self._numbers, self.shape = indices, values, size

    def __repr__(self) -> str:
        return (
            f"tensor(indices={self._places}, values={self._numbers}, size={self.shape}, "
            f"nnz={self._nnz()}, layout={self.layout})"
        )

    @property
    def dtype(self) -> Dtype:
        """The dtype of the values."""
        return self._numbers.dtype

    @property
    def device(self) -> Device:
        """Where the values are."""
        return self._numbers.device

    @property
    def requires_grad(self) -> bool:
        """Whether gradients of the values are wanted."""
        return self._numbers.requires_grad

    def indices(self) -> Tensor:
        """Return the places, a column for each value."""
        return self._places

    def values(self) -> Tensor:
        """Return the values, in the order of the places."""
        return self._numbers

    _indices, _values = indices, values

    def _nnz(self) -> int:
        count: int = self._numbers.shape[0]
        return count

    def size(self, dim: int | None = None) -> Any:
        """Return the shape, or the number at ``dim`` in it."""
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        """Return the number of dimensions."""
        return len(self.shape)

    def to(self, *args: Any) -> SparseTensor:
        """Return it with the values that ``Tensor.to`` makes of its own."""
        values = self._numbers.to(*args)
        return SparseTensor(self._places.to(values.device), values, self.shape)

    def t(self) -> SparseTensor:
        """Return the transposed matrix."""
        return SparseTensor(self._places.flip(0), self._numbers, self.shape[::-1])

    def coalesce(self) -> SparseTensor:
        """Return it with every place once, in order, and no zeros."""
        return to_sparse(self.to_dense())

    def to_dense(self) -> Tensor:
        """Return the same numbers as a tensor."""
        return self + zeros(self.shape, dtype=self.dtype, device=self.device)

    def __matmul__(self, dense: Tensor) -> Tensor:
        if not isinstance(dense, Tensor):
            return NotImplemented
        if self.dim() != 2 or dense.ndim != 2 or self.shape[1] != dense.shape[0]:
            raise ShapeError(
                f"mm(sparse: {self.dtype}{list(self.shape)}, dense: {dense._brief()}): two "
                "matrices are wanted, the columns of the first as many as the rows of the second"
            )
        rows, columns = self._places
        terms = self._numbers[:, None] * dense[columns]
        out = zeros(self.shape[0], dense.shape[1], dtype=terms.dtype, device=terms.device)
        return out.index_add(0, rows, terms)

    def __rmatmul__(self, dense: Tensor) -> Tensor:
        return (self.t() @ dense.t()).t()

    def __add__(self, dense: Tensor) -> Tensor:
        numbers = self._numbers.to(dense.dtype)
        return dense.index_put(tuple(self._places), numbers, accumulate=True)

    __radd__ = __add__

    def __mul__(self, number: float) -> SparseTensor:
        return SparseTensor(self._places, self._numbers * number, self.shape)

    __rmul__ = __mul__


def sparse_coo_tensor(
    indices: Any,
    values: Any,
    size: Any = None,
    *,
    dtype: Dtype | None = None,
    device: Any = None,
    requires_grad: bool = False,
) -> SparseTensor:
    """Return the array with ``values`` at the places that the columns of ``indices`` name.

    Args:
        size: its shape; by default it just holds the places.
    """
    places = as_tensor(indices, device=device).long()
    numbers = as_tensor(values, dtype=dtype, device=device)
    if size is None and places.ndim == 2 and places.shape[1]:
        size = [int(last) + 1 for last in places.amax(1).tolist()]
    shape = tuple(size or ())
    if numbers.ndim != 1 or tuple(places.shape) != (len(shape), numbers.shape[0]):
        raise ArgumentError(
            f"sparse_coo_tensor(indices: {places._brief()}, values: {numbers._brief()}, "
            f"size={shape}): indices needs a row for each dimension and a column for each value"
        )
    return SparseTensor(places, numbers.requires_grad_() if requires_grad else numbers, shape)


def to_sparse(self: Tensor) -> SparseTensor:
    """Return the places and values of the numbers that are not zero."""
    places = self.nonzero()
    return SparseTensor(places.t(), self[tuple(places.t())], tuple(self.shape))


as_method(to_sparse)
