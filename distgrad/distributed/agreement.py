"""Do all ranks still have the same parameters? Compared by digests, named when they differ."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from distgrad.backend.device import CPU, to_device
from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.work import HostArray
from distgrad.errors import DistributedError
from distgrad.tensor import Tensor

_DIGEST = 16  # bytes


def check_values(group: ProcessGroup, named: Sequence[tuple[str, Tensor]], when: str) -> None:
    """Return if the parameters have the same bits on all ranks.

    Args:
        group: the ranks.
        named: names and parameters, in the same order on all ranks.
        when: for the message.

    Raises:
        DistributedError: the same text on every rank, naming a parameter and the ranks that differ
            from rank 0.

    Ranks: a collective. Cost: 16 bytes from each rank while they agree, and a look at all bytes.
    """
    digests = [_digest(_host(p)) for _, p in named]
    mine = np.frombuffer(hashlib.blake2b(b"".join(digests), digest_size=_DIGEST).digest(), np.uint8)
    together = group.all_gather(mine)
    if all(bytes(other) == bytes(together[0]) for other in together):
        return
    norms = [_norm(_host(p)) for _, p in named]
    each = group.all_gather_object(list(zip(digests, norms, strict=True)))
    place = next(i for i in range(len(named)) if len({row[i][0] for row in each}) > 1)
    first, norm = each[0][place]
    others = ", ".join(
        f"rank {rank} (norm {row[place][1]:.9g})"
        for rank, row in enumerate(each)
        if row[place][0] != first
    )
    name, array = named[place][0], named[place][1].array
    raise DistributedError(
        f"check_every: {when}, parameter {name} ({array.dtype}{list(array.shape)}) is not the same "
        f"on all ranks: {others} differ from rank 0 (norm {norm:.9g}); give all ranks the same "
        "optimizer, options and learning rate, and change parameters on all of them alike"
    )


def _host(param: Tensor) -> HostArray:
    return np.ascontiguousarray(to_device(param.array, CPU))


def _digest(array: HostArray) -> bytes:
    data = array.reshape(-1).view(np.uint8).data
    return hashlib.blake2b(data, digest_size=_DIGEST).digest()


def _norm(array: HostArray) -> float:
    wide = np.abs(array).astype(np.float64).reshape(-1)
    with np.errstate(all="ignore"):  # inf and nan are answers here
        return float(np.sqrt(wide @ wide))
