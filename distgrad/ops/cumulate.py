"""Cumulative functions along a dimension: sums, products, extremes, differences."""

from __future__ import annotations

__all__: list[str] = []
