"""Saved memory that a rule may overwrite, because it is the last one that has it.

A rule that asks for ``<operand>_spare`` gets True where nobody can ever see what becomes of that
operand's memory; then it may put its gradient there, and needs no second array of that size.
That nobody has it now is counted (`holders`).  The rest is promises about the future: no second
backward (``retain_graph``), no gradient of the gradient, no tool that looks at saved tensors, no
graph of CUDA's that would run this backward twice after one forward.
"""

from __future__ import annotations

from typing import Any

from distgrad.autograd import engine
from distgrad.autograd.holders import is_held_once
from distgrad.backend import capture


def spare(node: Any, place: int) -> bool:
    """Return whether the walk of this thread may overwrite what ``node`` saved at ``place``."""
    walk = engine._state.walk
    if walk is None or not engine.is_plain(walk) or walk.keep_graph or node.saved is not node._held:
        return False
    recorded = capture.current()
    if recorded is not None and recorded.since > node.clock:
        return False  # another graph's forward, which may be replayed less often than this
    return is_held_once(node._held, place)
