"""``torch.profiler``: only names for parts of a program; times come from Python's own profilers."""

from distgrad.as_torch.extra.autograd.profiler import record_function

__all__ = ["record_function"]
