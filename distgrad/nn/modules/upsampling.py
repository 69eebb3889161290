"""Layers that change resolution."""

from __future__ import annotations

from collections.abc import Sequence

from distgrad.nn import functional as F
from distgrad.nn.module import Module
from distgrad.tensor import Tensor


class Upsample(Module):
    """Interpolates (N, C, ...) to ``size``, or by ``scale_factor``.

    Args:
        size: sizes of the output.
        scale_factor: output size divided by input size.
        mode: "nearest", "linear", "bilinear", "bicubic", "trilinear", ...
        align_corners: whether the corner elements keep their places.
        recompute_scale_factor: compute the factor anew from the rounded sizes.
    """

    def __init__(
        self,
        size: int | Sequence[int] | None = None,
        scale_factor: float | Sequence[float] | None = None,
        mode: str = "nearest",
        align_corners: bool | None = None,
        recompute_scale_factor: bool | None = None,
    ) -> None:
        """Take the sizes or factors and the mode."""
        super().__init__()
        self.name = type(self).__name__
        self.size = size
        if isinstance(scale_factor, tuple | list):
            self.scale_factor: float | Sequence[float] | None = tuple(
                float(factor) for factor in scale_factor
            )
        else:
            self.scale_factor = float(scale_factor) if scale_factor else None  # type: ignore[arg-type]
        self.mode, self.align_corners = mode, align_corners
        self.recompute_scale_factor = recompute_scale_factor

    def forward(self, input: Tensor) -> Tensor:
        """Return the interpolated input."""
        return F.interpolate(
            input,
            self.size,
            self.scale_factor,
            self.mode,
            self.align_corners,
            recompute_scale_factor=self.recompute_scale_factor,
        )

    def extra_repr(self) -> str:
        """Return the factor or size, and the mode."""
        if self.scale_factor is not None:
            return f"scale_factor={self.scale_factor!r}, mode={self.mode!r}"
        return f"size={self.size!r}, mode={self.mode!r}"


class UpsamplingNearest2d(Upsample):
    """Repeats each element of (N, C, H, W)."""

    def __init__(
        self,
        size: int | Sequence[int] | None = None,
        scale_factor: float | Sequence[float] | None = None,
    ) -> None:
        """Take the sizes or factors."""
        super().__init__(size, scale_factor, mode="nearest")


class UpsamplingBilinear2d(Upsample):
    """Interpolates (N, C, H, W) linearly, corners in their places."""

    def __init__(
        self,
        size: int | Sequence[int] | None = None,
        scale_factor: float | Sequence[float] | None = None,
    ) -> None:
        """Take the sizes or factors."""
        super().__init__(size, scale_factor, mode="bilinear", align_corners=True)
