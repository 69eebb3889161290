"""The named tuples that operations of several outputs return."""

from __future__ import annotations

from distgrad.autograd.declare import table

for _name, _op in table.items():
    if _op.outputs:
        globals()[_name] = _op.function.__globals__["_result"]
