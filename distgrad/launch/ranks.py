"""The variables by which programs written for ``torchrun`` learn their place among the ranks."""

from __future__ import annotations

import os
import socket

from distgrad.distributed.group import ProcessGroup


def variables(group: ProcessGroup) -> dict[str, str]:
    """Return RANK, WORLD_SIZE and their kin; what the user has set of MASTER_ADDR and PORT stays.

    Ranks: a collective.
    """
    hosts = -(-group.size // group.local_size)
    host = next((i for i, ranks in enumerate(group.hosts) if group.rank in ranks), 0)
    alone = len(group.hosts) == group.size  # nobody said who shares a host
    where = group.broadcast_object(_meeting_point(hosts) if group.rank == 0 else None)
    assert where is not None
    return {
        "RANK": str(group.rank),
        "WORLD_SIZE": str(group.size),
        "LOCAL_RANK": str(group.local_rank),
        "LOCAL_WORLD_SIZE": str(group.local_size),
        "GROUP_RANK": str(group.rank // group.local_size if alone else host),
        "GROUP_WORLD_SIZE": str(hosts),
        "ROLE_RANK": str(group.rank),
        "ROLE_WORLD_SIZE": str(group.size),
        "ROLE_NAME": "default",
        **where,
    }


def _meeting_point(hosts: int) -> dict[str, str]:
    """Return an address and a free port of this host, for programs that open one of their own."""
    address = os.environ.get("MASTER_ADDR") or ("127.0.0.1" if hosts == 1 else socket.gethostname())
    port = os.environ.get("MASTER_PORT") or str(_free_port())
    return {"MASTER_ADDR": address, "MASTER_PORT": port}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
