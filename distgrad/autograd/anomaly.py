"""Anomaly mode: says which line of the forward made the node that fails in backward."""

from __future__ import annotations

import sys
import threading
import traceback
import warnings
from typing import Any

from distgrad.autograd import engine, saving
from distgrad.autograd.node import Node
from distgrad.backend.device import array_namespace
from distgrad.errors import GradError
from distgrad.tensor import Tensor


class _State:
    """Whether the mode is on, in all threads, as in PyTorch."""

    enabled = False
    check_nan = True


_state = _State()


def is_anomaly_enabled() -> bool:
    """Return True when anomaly mode is on."""
    return _state.enabled


def is_anomaly_check_nan_enabled() -> bool:
    """Return True when anomaly mode looks for nan values in gradients."""
    return _state.check_nan


def set_anomaly_enabled(enabled: bool, check_nan: bool = True) -> None:
    """Turn anomaly mode on or off."""
    if enabled and not _state.enabled:
        saving.switch.at_birth = _note
        saving.observe(1)
        engine.walks.append(_CheckedWalk)
    elif _state.enabled and not enabled:
        saving.switch.at_birth = None
        saving.observe(-1)
        engine.walks.remove(_CheckedWalk)
    _state.enabled, _state.check_nan = enabled, check_nan


class set_detect_anomaly:
    """Turns anomaly mode on or off: at once when called, until the end of a ``with`` block.

    Args:
        mode: on or off.
        check_nan: also raise when a node returns nan in backward.
    """

    def __init__(self, mode: bool, check_nan: bool = True) -> None:
        """Set the mode."""
        self.prev, self.prev_check_nan = _state.enabled, _state.check_nan
        set_anomaly_enabled(mode, check_nan)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        set_anomaly_enabled(self.prev, self.prev_check_nan)


class detect_anomaly:
    """Anomaly mode for a ``with`` block: forward notes where it is, backward says so on errors.

    Args:
        check_nan: also raise when a node returns nan in backward.

    Raises:
        GradError: in backward, ``Function 'MulBackward0' returned nan values in its 0th output.``
    """

    def __init__(self, check_nan: bool = True) -> None:
        """Keep the setting, and warn that the mode is slow."""
        self.prev, self.prev_check_nan = _state.enabled, _state.check_nan
        self.check_nan = check_nan
        warnings.warn(
            "Anomaly Detection has been enabled. This mode will increase the runtime and should "
            "only be enabled for debugging.",
            stacklevel=2,
        )

    def __enter__(self) -> None:
        set_anomaly_enabled(True, self.check_nan)

    def __exit__(self, *error: object) -> None:
        set_anomaly_enabled(self.prev, self.prev_check_nan)


class _Running(threading.local):
    """The nodes in whose backward this thread records a graph, innermost last."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []


_running = _Running()


def _note(node: Node) -> None:
    """Keep the stack of a node's making, and the node in whose backward it was made."""
    frames = [f for f in traceback.extract_stack() if not _inside(f.filename)]
    node.metadata["traceback_"] = traceback.format_list(frames)
    if _running.nodes:
        node.metadata["parent_"] = _running.nodes[-1]


def _inside(filename: str) -> bool:
    return filename in (__file__, saving.__file__) or filename.startswith("<distgrad")


class _CheckedWalk(engine._Walk):
    """A backward that names the forward line of a node that raises or returns nan."""

    current: Any = None

    def _node(self, node: Any, g: Any) -> None:
        self.current = node
        if self.create_graph:
            _running.nodes.append(node)
        try:
            super()._node(node, g)
        except Exception:
            _tell(node)
            raise
        finally:
            if self.create_graph:
                _running.nodes.pop()

    def _deliver(self, edges: tuple[Any, ...], grads: Any, g: Any) -> None:
        for place, (edge, new) in enumerate(zip(edges, grads, strict=True)):
            if _state.check_nan and edge is not None and new is not None and _has_nan(new):
                raise GradError(
                    f"backward({self.current.name()}): Function '{self.current.name()}' returned "
                    f"nan values in its {place}th output."
                )
        super()._deliver(edges, grads, g)


def _has_nan(g: Any) -> bool:
    array = g.array if isinstance(g, Tensor) else g
    return bool(array_namespace(array).isnan(array).any()) if array.dtype.kind in "fcV" else False


def _warn(message: str) -> None:
    """Warn; where warnings are errors, write to stderr, for an error is on its way already."""
    try:
        warnings.warn(message, stacklevel=7)
    except Warning:
        print(message, file=sys.stderr)


def _tell(node: Any) -> None:
    """Warn with the line of the forward that made ``node``, and those that led to it."""
    notes = node.metadata
    if "traceback_" not in notes:
        _warn(
            f"Error detected in {node.name()}. No forward pass information available. Enable "
            "detect anomaly during forward pass for more information.",
        )
        return
    lines = "".join(notes["traceback_"])
    _warn(
        f"Error detected in {node.name()}. Traceback of forward call that caused the error:\n"
        f"{lines}",
    )
    seen = [node]
    parent = notes.get("parent_")
    while parent is not None and parent not in seen:
        seen.append(parent)
        lines = "".join(parent.metadata.get("traceback_", ["No forward pass information.\n"]))
        _warn(
            f"\n\nPrevious calculation was induced by {parent.name()}. Traceback of forward call "
            f"that induced the previous calculation:\n{lines}",
        )
        parent = parent.metadata.get("parent_")
