"""Processes that nobody launched together meet over sockets, at PyTorch's address."""

import json
import subprocess
import sys
import textwrap
from collections.abc import Sequence

import pytest

from distgrad.launch.ranks import _free_port

HEAD = """
import os, sys, json
import numpy as np
import distgrad as dg
import distgrad.distributed as dist
rank, size, port = map(int, sys.argv[1:4])
group = dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
"""


def start(program: str, size: int) -> list[subprocess.Popen[str]]:
    port = _free_port()
    source = HEAD + textwrap.dedent(program)
    return [
        subprocess.Popen(
            [sys.executable, "-c", source, str(rank), str(size), str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def run(program: str, size: int, statuses: Sequence[int] | None = None) -> list[str]:
    """Return what each rank prints."""
    processes = start(program, size)
    try:
        outputs = [process.communicate(timeout=200) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for rank, process in enumerate(processes):
        assert process.returncode == (statuses or [0] * size)[rank], outputs[rank][1]
    return [out for out, _ in outputs]


def test_every_collective_and_message() -> None:
    said = run(
        """
        t = lambda *v: dg.tensor(v, dtype=dg.float32)
        x = t(rank, 1)
        found = {}
        dist.all_reduce(x); found["all_reduce"] = x.tolist()
        y = t(rank); dist.broadcast(y, 2); found["broadcast"] = y.tolist()
        parts = [dg.zeros(1) for _ in range(3)]; dist.all_gather(parts, t(rank))
        found["all_gather"] = [p.item() for p in parts]
        z = dg.zeros(1); dist.reduce_scatter(z, [t(i * (rank + 1)) for i in range(3)])
        found["reduce_scatter"] = z.item()
        z = dg.zeros(3); dist.all_to_all_single(z, t(*[10 * rank + i for i in range(3)]))
        found["all_to_all"] = z.tolist()
        names = [None] * 3; dist.all_gather_object(names, {"rank": rank})
        found["objects"] = names
        if rank == 0:
            dist.send(t(7), 1); dist.isend(t(8), 2).wait()
        else:
            m = dg.zeros(1); dist.recv(m, 0); found["recv"] = m.item()
        part = dist.new_group([0, 2])
        if rank != 1:
            s = t(rank + 1); dist.all_reduce(s, group=part); found["part"] = s.item()
        b = dg.ones(2, dtype=dg.bfloat16); dist.all_reduce(b)
        found["bfloat16"] = b.float().tolist()
        c = dg.ones(2, dtype=dg.complex64) * 1j; dist.all_reduce(c); found["complex"] = str(c)
        dist.barrier()
        print(json.dumps(found), repr(group))
        dist.destroy_process_group()
        """,
        3,
    )
    found = [json.loads(text.rpartition("} ")[0] + "}") for text in said]
    for rank, one in enumerate(found):
        assert one["all_reduce"] == [3, 3] and one["broadcast"] == [2]
        assert one["all_gather"] == [0, 1, 2] and one["reduce_scatter"] == 6 * rank
        assert one["all_to_all"] == [rank, 10 + rank, 20 + rank]
        assert one["objects"] == [{"rank": r} for r in range(3)]
        assert one["bfloat16"] == [3, 3]
        assert one["complex"] == "tensor([0.+3.j, 0.+3.j])"
        assert f"ProcessGroup(sockets, rank {rank} of 3" in said[rank]
    assert found[1]["recv"] == 7 and found[2]["recv"] == 8
    assert found[0]["part"] == found[2]["part"] == 4


def test_replicas_stay_the_same() -> None:
    said = run(
        """
        dg.manual_seed(rank)
        model = dg.nn.parallel.DistributedDataParallel(dg.nn.Linear(4, 2))
        optimizer = dg.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(dg.randn(5, 4)).square().mean().backward()
            optimizer.step()
        print(model.module.weight.tolist())
        """,  # leaves without destroying its group
        2,
    )
    assert said[0] == said[1] != ""


def test_ranks_that_lost_step_are_told() -> None:
    said = run(
        """
        try:
            dist.all_reduce(dg.ones(2 if rank else 3))
        except RuntimeError as error:
            print(error)
        """,
        2,
    )
    assert all("float32[3]" in text and "float32[2]" in text for text in said)


@pytest.mark.parametrize("ends", [0, 1])
def test_a_rank_that_ends_is_not_waited_for(ends: int) -> None:
    said = run(
        f"""
        if rank == {ends}:
            os._exit(5)
        try:
            dist.all_reduce(dg.ones(1))
        except RuntimeError as error:
            print(error)
        """,
        2,
        [5 if rank == ends else 0 for rank in range(2)],
    )
    reason = "where the ranks meet, has ended" if ends == 0 else "waits for rank 1"
    assert reason in said[1 - ends]


def test_a_port_that_is_taken_is_named() -> None:
    said = run(
        """
        dist.destroy_process_group()
        import socket
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0)); taken.listen()
            place = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
            try:
                rank or dist.init_process_group("gloo", place, rank=0, world_size=2)
            except RuntimeError as error:
                print(error)
        """,
        2,
    )
    assert "choose another MASTER_PORT" in said[0]
