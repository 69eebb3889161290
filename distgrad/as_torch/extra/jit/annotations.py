"""Names of types for TorchScript."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple, Union  # noqa: UP035  programs import them here

BroadcastingList1 = BroadcastingList2 = BroadcastingList3 = list
Final = Any

__all__ = ["Dict", "Final", "List", "Optional", "Tuple", "Union"]
