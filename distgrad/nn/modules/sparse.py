"""Tables of learned vectors."""

from __future__ import annotations

from typing import Any

from distgrad.errors import ArgumentError
from distgrad.nn import functional as F
from distgrad.nn import init
from distgrad.nn.module import Module
from distgrad.nn.parameter import Parameter
from distgrad.ops.create import empty
from distgrad.tensor import Tensor, shared_of


class _Table(Module):
    """``num_embeddings`` vectors of size ``embedding_dim``."""

    weight: Tensor

    def _setup(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None,
        weight: Tensor | None,
        freeze: bool,
        device: Any,
        dtype: Any,
    ) -> None:
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        if padding_idx is not None:
            if not -num_embeddings <= padding_idx < num_embeddings:
                raise ArgumentError(
                    f"{type(self).__name__}({num_embeddings}, {embedding_dim}, "
                    f"padding_idx={padding_idx}): Padding_idx must be within num_embeddings"
                )
            padding_idx %= num_embeddings
        self.padding_idx = padding_idx
        if weight is not None and weight.array.shape != (num_embeddings, embedding_dim):
            raise ArgumentError(
                f"{type(self).__name__}({num_embeddings}, {embedding_dim}, _weight: "
                f"{weight._brief()}): Shape of weight does not match num_embeddings and "
                "embedding_dim"
            )
        if weight is None:
            sizes = (num_embeddings, embedding_dim)
            made = empty(sizes, device=device, dtype=dtype)
            self.weight = Parameter(made, requires_grad=not freeze)
            self.reset_parameters()
        else:
            self.weight = Parameter(weight, requires_grad=not freeze)

    def reset_parameters(self) -> None:
        """Draw the vectors from the standard normal distribution; the padding vector is 0."""
        init.normal_(self.weight)
        if self.padding_idx is not None:
            self.weight.array[self.padding_idx] = 0
            shared_of(self.weight).bump()


class Embedding(_Table):
    """Looks up the vector of each index.

    Shape:
        int indices (...) -> (..., embedding_dim)

    Args:
        num_embeddings: number of vectors.
        embedding_dim: size of each vector.
        padding_idx: index whose vector gets no gradient and starts at 0.
        max_norm: vectors that are looked up are scaled down to this norm.
        norm_type: exponent of that norm.
        scale_grad_by_freq: divide gradients by the number of times an index occurs.
        sparse: accepted; gradients are dense.

    Example:
        >>> import distgrad as dg
        >>> Embedding(10, 3)(dg.tensor([[1, 2], [4, 5]])).shape
        distgrad.Size([2, 2, 3])
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        _weight: Tensor | None = None,
        _freeze: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Draw the vectors from the standard normal distribution."""
        super().__init__()
        self._setup(num_embeddings, embedding_dim, padding_idx, _weight, _freeze, device, dtype)
        self.max_norm, self.norm_type = max_norm, norm_type
        self.scale_grad_by_freq, self.sparse = scale_grad_by_freq, sparse

    def forward(self, input: Tensor) -> Tensor:
        """Return the vectors of the indices."""
        return F.embedding(
            input, self.weight, self.padding_idx, self.max_norm, self.norm_type,
            self.scale_grad_by_freq, self.sparse,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Return the sizes and the options that are not the default."""
        s = f"{self.num_embeddings}, {self.embedding_dim}"
        if self.padding_idx is not None:
            s += f", padding_idx={self.padding_idx}"
        if self.max_norm is not None:
            s += f", max_norm={self.max_norm}"
        if self.norm_type != 2:
            s += f", norm_type={self.norm_type}"
        if self.scale_grad_by_freq:
            s += f", scale_grad_by_freq={self.scale_grad_by_freq}"
        return s + ", sparse=True" if self.sparse else s

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Tensor,
        freeze: bool = True,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
    ) -> Embedding:
        """Return a table of given vectors, which are not trained unless ``freeze`` is False."""
        if embeddings.array.ndim != 2:
            raise ArgumentError(
                f"from_pretrained({embeddings._brief()}): Embeddings parameter is expected to be "
                "2-dimensional"
            )
        rows, columns = embeddings.array.shape
        return cls(
            rows, columns, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse,
            embeddings, freeze,
        )  # fmt: skip


class EmbeddingBag(_Table):
    """Looks up vectors and reduces them bag by bag: ``mode`` "sum", "mean" or "max"."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        _weight: Tensor | None = None,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        """Draw the vectors from the standard normal distribution."""
        super().__init__()
        self._setup(num_embeddings, embedding_dim, padding_idx, _weight, False, device, dtype)
        self.max_norm, self.norm_type, self.mode = max_norm, norm_type, mode
        self.scale_grad_by_freq, self.sparse = scale_grad_by_freq, sparse
        self.include_last_offset = include_last_offset

    def forward(
        self,
        input: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Return the reduced vectors: bags are rows of ``input``, or begin at ``offsets``."""
        return F.embedding_bag(
            input, self.weight, offsets, self.max_norm, self.norm_type, self.scale_grad_by_freq,
            self.mode, self.sparse, per_sample_weights, self.include_last_offset, self.padding_idx,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Return the sizes and the options that are not the default."""
        s = f"{self.num_embeddings}, {self.embedding_dim}"
        if self.max_norm is not None:
            s += f", max_norm={self.max_norm}"
        if self.norm_type != 2:
            s += f", norm_type={self.norm_type}"
        if self.scale_grad_by_freq:
            s += f", scale_grad_by_freq={self.scale_grad_by_freq}"
        s += f", mode={self.mode!r}"
        return s if self.padding_idx is None else f"{s}, padding_idx={self.padding_idx}"

    @classmethod
    def from_pretrained(
        cls,
        embeddings: Tensor,
        freeze: bool = True,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: str = "mean",
        sparse: bool = False,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
    ) -> EmbeddingBag:
        """Return a table of given vectors, which are not trained unless ``freeze`` is False."""
        rows, columns = embeddings.array.shape
        bag = cls(
            rows, columns, max_norm, norm_type, scale_grad_by_freq, mode, sparse, embeddings,
            include_last_offset, padding_idx,
        )  # fmt: skip
        bag.weight.requires_grad = not freeze
        return bag
