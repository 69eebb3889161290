"""Quantized computation, which this package does not have."""

from __future__ import annotations

engine = "none"
supported_engines = ["none"]
