"""Settings of PyTorch's code generator: they can be set, and nothing follows from them."""

from __future__ import annotations

from types import SimpleNamespace

config = SimpleNamespace(
    coordinate_descent_tuning=False, fx_graph_cache=True, triton=SimpleNamespace()
)
