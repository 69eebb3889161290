"""Signal processing: ``distgrad.signal.windows``."""

from distgrad.signal import windows

__all__ = ["windows"]
