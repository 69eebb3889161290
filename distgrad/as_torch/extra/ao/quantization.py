"""Quantization, which is not here: the marks for it pass their input on, as before conversion."""

from __future__ import annotations

from distgrad.nn import Identity


class QuantStub(Identity):
    """Where quantized computation would begin; it passes its input on."""


class DeQuantStub(Identity):
    """Where quantized computation would end; it passes its input on."""
