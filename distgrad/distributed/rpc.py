"""PyTorch's remote procedure calls, which this package does not have."""

from __future__ import annotations

from typing import NoReturn

from distgrad.errors import DistributedError


class NotSupportedError(DistributedError, NotImplementedError):
    """What is asked for is not part of this package."""


def is_available() -> bool:
    """Return False: there are no remote procedure calls."""
    return False


def init_rpc(name: str, backend: object = None, rank: int = -1, world_size: int | None = None,
             rpc_backend_options: object = None) -> NoReturn:  # fmt: skip
    """Raise: there are no remote procedure calls.

    Raises:
        NotSupportedError: always.
    """
    raise NotSupportedError(
        f"init_rpc({name!r}): remote procedure calls are not part of distgrad; use collectives, "
        "send and recv, or the *_object functions of distgrad.distributed"
    )
