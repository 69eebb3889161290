"""Checks of ranks whose tensors lie on GPUs: one for each rank, or one that they share.

Each compares with the same on the host. ``tests/test_gpu_standin_ranks.py`` runs them on CuPy's
stand-in, ``tests/gpu`` on real GPUs; ranks are threads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

import distgrad as dg
from distgrad import nn
from distgrad.backend.device import CPU, device
from distgrad.distributed import ProcessGroup, ReduceOp, run_ranks
from distgrad.tensor import Tensor

Inside = Callable[[], AbstractContextManager[None]]  # what a step runs in
STEPS = 4


def place_of(group: ProcessGroup, gpus: int) -> device:
    """Return the device of a rank, made the current one of its thread; the CPU for no GPUs."""
    if not gpus:
        return CPU
    dg.cuda.set_device(group.rank % gpus)
    return device("cuda", group.rank % gpus)


# ---------------------------------------------------------------------- collectives
def _numbers(rank: int, *shape: int, dtype: str = "f4") -> Any:
    made = np.random.default_rng(rank + 1).standard_normal(shape) * 4
    return made.astype(dtype)


def all_reduce(group: ProcessGroup, place: device) -> list[Tensor]:
    """All-reduce contiguous and strided tensors, by several operations and dtypes."""
    outs = []
    for dtype in ("f4", "f8", "f2", "i4", "u1"):
        for op in (ReduceOp.SUM, ReduceOp.MIN, ReduceOp.MAX):
            whole = dg.from_numpy(np.abs(_numbers(group.rank, 4, 6)).astype(dtype)).to(place)
            dg.distributed.all_reduce(whole, op)
            outs.append(whole)
    strided = dg.from_numpy(_numbers(group.rank, 4, 6)).to(place)
    dg.distributed.all_reduce(strided.t(), ReduceOp.AVG)
    flags = dg.tensor([group.rank == 0, True, False], device=place)
    dg.distributed.all_reduce(flags, ReduceOp.BOR)  # not one of NCCL's
    pair = [dg.ones(3, device=place) * group.rank, dg.ones(2, 2, device=place)]
    dg.distributed.all_reduce_coalesced(pair)
    return [*outs, strided, flags, *pair]


def moves(group: ProcessGroup, place: device) -> list[Tensor]:
    """Broadcast, gather, scatter and reduce."""
    size, last = group.size, group.size - 1
    x = dg.from_numpy(_numbers(group.rank, 3, 2)).to(place)
    outs = [x.clone() for _ in range(4)]
    dg.distributed.broadcast(outs[0], last)
    dg.distributed.reduce(outs[1], 0)
    dg.distributed.broadcast(outs[2].t(), 0)
    listed = [dg.empty(3, 2, device=place) for _ in range(size)]
    dg.distributed.all_gather(listed, x)
    whole = dg.empty(3 * size, 2, device=place)
    dg.distributed.all_gather_into_tensor(whole, x)
    here = group.rank == last
    gathered = [dg.empty(3, 2, device=place) for _ in range(size)] if here else None
    dg.distributed.gather(x, gathered, last)
    parts = [x + i for i in range(size)] if here else None
    dg.distributed.scatter(outs[3], parts, last)
    if group.rank:
        outs[1].zero_()  # what the others keep after a reduce
    return [*outs, *listed, whole, *(gathered or [])]


def exchanges(group: ProcessGroup, place: device) -> list[Tensor]:
    """Reduce-scatter and all-to-all, in equal and in uneven parts."""
    size, rank = group.size, group.rank
    x = dg.from_numpy(_numbers(rank, 2 * size, 3)).to(place)
    part, listed = dg.empty(2, 3, device=place), dg.empty(2, 3, device=place)
    dg.distributed.reduce_scatter_tensor(part, x)
    dg.distributed.reduce_scatter(listed, list(x.chunk(size)), ReduceOp.MAX)
    even = dg.empty_like(x)
    dg.distributed.all_to_all_single(even, x)
    sends = [(rank + peer) % 3 for peer in range(size)]  # alike in both directions
    rows = dg.from_numpy(_numbers(rank, sum(sends), 3)).to(place)
    uneven = dg.empty_like(rows)
    dg.distributed.all_to_all_single(uneven, rows, sends, sends)
    into = [dg.empty(2, 3, device=place) for _ in range(size)]
    dg.distributed.all_to_all(into, list(x.chunk(size)))
    return [part, listed, even, uneven, *into]


def asynchronous(group: ProcessGroup, place: device) -> list[Tensor]:
    """Several at a time, waited for in another order, with work before and after."""
    xs = [dg.from_numpy(_numbers(group.rank, 50 + i)).to(place) * 2 for i in range(4)]
    works = [dg.distributed.all_reduce(x, async_op=True) for x in xs]
    for work in reversed(works):
        assert work is not None
        work.wait()
    return [x + 1 for x in xs]


def messages(group: ProcessGroup, place: device) -> list[Tensor]:
    """Send to the next rank and receive from the one before."""
    x = dg.from_numpy(_numbers(group.rank, 5)).to(place)
    y = dg.empty(5, device=place)
    work = dg.distributed.isend(x, (group.rank + 1) % group.size)
    dg.distributed.recv(y, (group.rank - 1) % group.size)
    assert work is not None
    work.wait()
    return [y]


COLLECTIVES: dict[str, Callable[[ProcessGroup, device], list[Tensor]]] = {
    f.__name__: f for f in (all_reduce, moves, exchanges, asynchronous, messages)
}


def check_collective(name: str, ranks: int, gpus: int) -> None:
    """Compare a collective of tensors on ``gpus`` GPUs with that of the host."""

    def body(group: ProcessGroup, count: int) -> list[Any]:
        outs = COLLECTIVES[name](group, place_of(group, count))
        assert all(out.is_cuda == bool(count) for out in outs)
        return [out.cpu().numpy() for out in outs]

    for got, want in zip(run_ranks(ranks, body, gpus), run_ranks(ranks, body, 0), strict=True):
        for a, b in zip(got, want, strict=True):
            tolerance = 2e-3 if a.dtype == np.float16 else 1e-6
            np.testing.assert_allclose(
                a.astype("f8"), b.astype("f8"), rtol=tolerance, atol=tolerance
            )


# ---------------------------------------------------------------------- training
def steps(
    group: ProcessGroup, gpus: int, inside: Inside, build: Callable[[nn.Module], Any], **how: Any
) -> list[Any]:
    """Return the parameters after some steps on uneven batches.

    Args:
        group: the ranks.
        gpus: how many there are for them; 0 takes the CPU.
        inside: what forward, backward and update run in, after the first step.
        build: makes the optimizer, of the model in its DistributedDataParallel.
        how: options of DistributedDataParallel.
    """
    place = place_of(group, gpus)
    rng = np.random.default_rng(3)
    net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))
    for p in net.parameters():
        p.data.copy_(dg.from_numpy(rng.standard_normal(p.shape).astype("f4") / 3))
    ddp = nn.parallel.DistributedDataParallel(
        net.to(place), process_group=group, bucket_cap_mb=0.0008, **how
    )
    optimizer = build(ddp)
    shards = how.get("shards") or group.size
    for step in range(STEPS):
        batches = rng.standard_normal((shards, 4, 6)).astype("f4")
        mine = [dg.from_numpy(batches[s][: 4 - s % 2]).to(place) for s in ddp.local_shards]
        with inside() if step else contextlib.nullcontext():
            optimizer.zero_grad()
            for x in mine:
                ddp(x).square().mean().backward()
            optimizer.step()
    assert len(ddp.reducer.buckets) > 1
    return [p.detach().cpu().numpy() for p in net.parameters()]


def tiny_gradient(group: ProcessGroup, gpus: int) -> list[Any]:
    """Return a gradient whose partial sums over four shards are below the least normal float32."""
    place = place_of(group, gpus)
    net = nn.Linear(1, 5, bias=False).to(place)
    ddp = nn.parallel.DistributedDataParallel(
        net, process_group=group, determinism="world", shards=4, reduction="sum"
    )
    for _ in ddp.local_shards:
        ddp(dg.tensor([[5e-39]], device=place)).sum().backward()
    assert net.weight.grad is not None
    return [net.weight.grad.cpu().numpy()]


def sgd(model: nn.Module) -> Any:
    """Return SGD with momentum."""
    return dg.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def zero(model: nn.Module) -> Any:
    """Return AdamW whose state lies with its owners."""
    return dg.distributed.optim.ZeroRedundancyOptimizer(model.parameters(), dg.optim.AdamW, lr=1e-2)


def normalised(group: ProcessGroup, gpus: int, inside: Inside) -> list[Any]:
    """Return what SyncBatchNorm makes of uneven batches, its gradients and running statistics."""
    place = place_of(group, gpus)
    norm = nn.SyncBatchNorm(3, process_group=group).double().to(place)
    x = dg.from_numpy(_numbers(group.rank, 2 + group.rank, 3, 4, dtype="f8")).to(place)
    x.requires_grad_()
    y = norm(x)  # the ranks meet for the first time
    weight, buffers = norm.weight, dict(norm.named_buffers())
    with inside():
        (norm(x) * y.detach()).pow(2).sum().backward()
    assert weight is not None
    outs = [y, x.grad, weight.grad, buffers["running_mean"], buffers["running_var"]]
    return [out.detach().cpu().numpy() for out in outs if out is not None]


def compressed(group: ProcessGroup, gpus: int, inside: Inside, hook: Any) -> list[Any]:
    """Return what a communication hook makes of given gradients, in three steps.

    They are next to 0, to the largest of float16, half-way between two numbers, and infinite.
    """
    place, given = place_of(group, gpus), _numbers(group.rank, 77)
    given[:7] = 1.3e-38, -1.3e-38, 7e4, 6e-8, 1 + 2**-8, 1 + 2**-11, np.inf
    module = nn.Module()
    module.weight = nn.Parameter(dg.zeros(77, device=place))
    module.forward = lambda x: (module.weight * x).sum()
    ddp = nn.parallel.DistributedDataParallel(module, process_group=group)
    ddp.register_comm_hook(None, hook)
    for factor in range(1, 4):
        module.weight.grad = None
        x = dg.from_numpy(given * np.float32(factor)).to(place)
        with inside(), np.errstate(all="ignore"):
            ddp(x).backward()
    return [module.weight.grad.cpu().numpy()]


@contextlib.contextmanager
def anything() -> Iterator[None]:
    """Forbid nothing."""
    yield


def trained(
    ranks: int, gpus: int, inside: Inside = anything, build: Any = sgd, **how: Any
) -> list[list[Any]]:
    """Return what `steps` returns on each rank."""
    return run_ranks(ranks, lambda group: steps(group, gpus, inside, build, **how))


def check_same_bits(one: list[list[Any]], other: list[list[Any]]) -> None:
    """Compare the parameters of all ranks, bit for bit."""
    for a, b in zip(one, other, strict=False):
        assert [x.tobytes() for x in a] == [y.tobytes() for y in b]


def check_close(one: list[list[Any]], other: list[list[Any]]) -> None:
    """Compare the parameters of all ranks."""
    for a, b in zip(one, other, strict=False):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)
