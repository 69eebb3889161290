"""What the processor can do."""

from __future__ import annotations

from pathlib import Path


def get_cpu_capability() -> str:
    """Return PyTorch's word for the widest vectors of this processor."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:  # not Linux
        return "DEFAULT"
    return "AVX512" if "avx512f" in flags else "AVX2" if "avx2" in flags else "DEFAULT"
