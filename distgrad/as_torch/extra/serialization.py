"""Types that ``torch.serialization`` names."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import IO, Any

__all__ = ["FILE_LIKE", "MAP_LOCATION"]

FILE_LIKE = str | os.PathLike[str] | IO[bytes]
MAP_LOCATION = Callable[..., Any] | str | dict[str, str] | None
