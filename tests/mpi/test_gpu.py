"""Ranks with tensors on a GPU under real MPI, on the stand-in: each process has its own."""

import contextlib
import gc
import hashlib
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

import distgrad as dg
from distgrad.distributed import check_same, ipc, local_group
from distgrad.distributed import nccl as links
from distgrad.errors import DistributedError
from distgrad.testing import device_ranks, standin

pytestmark = pytest.mark.mpi(sizes=(3,))
SMALL = "0.002"  # MiB of a window: arrays take many turns


@contextlib.contextmanager
def machine_of(group, gpus=1):
    """GPUs: one that all ranks share, or as many as ranks."""
    if group.backend != "mpi":
        pytest.skip("threads of one process share the stand-in: see test_gpu_standin_ranks.py")
    made = tempfile.mkdtemp() if group.rank == 0 else None
    folder = Path(group.broadcast_object(made))
    with standin.installed(gpus, folder=folder) as ledger:
        yield ledger
        for sibling in group.siblings.values():
            if sibling.gpus is not None:
                sibling.gpus.close()
                sibling.gpus = None
        group.barrier()
        if group.rank == 0:
            shutil.rmtree(folder)
        assert not ledger.hazards and not ledger.refused


@pytest.mark.parametrize("determinism", ["off", "run", "world"])
@pytest.mark.parametrize("build", [device_ranks.sgd, device_ranks.zero])
def test_training_by_way_of_the_host_has_the_numbers_of_the_host(
    group, monkeypatch, build, determinism
):
    monkeypatch.setenv("DISTGRAD_GPU_WINDOW", "0")
    how = {"determinism": determinism} | ({"shards": 4} if determinism == "world" else {})
    want = device_ranks.steps(group, 0, device_ranks.anything, build, **how)
    with machine_of(group) as machine:
        got = device_ranks.steps(group, 1, standin.no_syncs, build, **how)
        waits = machine.syncs
        if determinism == "world":  # a GPU of its own and no other ranks: the same bits
            alone = device_ranks.steps(local_group(), 1, device_ranks.anything, build, **how)
            device_ranks.check_same_bits([got], [alone])
    device_ranks.check_close([got], [want])
    check_same(group, "weights", hashlib.sha256(b"".join(x.tobytes() for x in got)).hexdigest())
    assert waits < 60  # pinned: copies are beside the host's work


@pytest.mark.parametrize("build", [device_ranks.sgd, device_ranks.zero])
def test_training_by_nccl_agrees_and_never_waits_for_a_gpu(group, build):
    want = device_ranks.steps(group, 0, device_ranks.anything, build)
    with machine_of(group, group.size) as machine:
        machine.latency = 1 << 60
        got = device_ranks.steps(group, group.size, standin.no_syncs, build)
        assert "nccl init" in machine.trace and machine.contexts == {group.rank}
    device_ranks.check_close([got], [want])


# ---------------------------------------------------------------------- windows
@pytest.mark.mpi(sizes=(2, 3, 4))
@pytest.mark.parametrize("window", ["32", SMALL])
@pytest.mark.parametrize("name", device_ranks.COLLECTIVES)
def test_collectives_by_windows_of_other_processes(group, monkeypatch, name, window):
    monkeypatch.setenv("DISTGRAD_GPU_WINDOW", window)
    collective = device_ranks.COLLECTIVES[name]
    if name == "messages" and group.size == 1:
        pytest.skip("a rank sends nothing to itself")
    want = [t.numpy() for t in collective(group, dg.device("cpu"))]
    with machine_of(group) as machine:
        machine.latency = 1 << 60
        got = [t.cpu().numpy() for t in collective(group, device_ranks.place_of(group, 1))]
        assert "host" not in str(machine.trace)
    for a, b in zip(got, want, strict=True):
        tolerance = 2e-3 if a.dtype == np.float16 else 1e-6
        np.testing.assert_allclose(a.astype("f8"), b.astype("f8"), rtol=tolerance, atol=tolerance)


@pytest.mark.mpi(sizes=(2, 3, 4))
@pytest.mark.parametrize("determinism", ["run", "world"])
@pytest.mark.parametrize("build", [device_ranks.sgd, device_ranks.zero])
def test_training_by_windows_of_other_processes(group, monkeypatch, build, determinism):
    monkeypatch.setenv("DISTGRAD_GPU_WINDOW", SMALL)
    how = {"determinism": determinism} | ({"shards": 4} if determinism == "world" else {})
    want = device_ranks.steps(group, 0, device_ranks.anything, build, **how)
    with machine_of(group) as machine:
        machine.latency = 1 << 60
        got = device_ranks.steps(group, 1, standin.no_syncs, build, **how)
        assert "to host" not in str(machine.trace) and "reduce_windows" in machine.launches
        if determinism == "world":
            alone = device_ranks.steps(local_group(), 1, device_ranks.anything, build, **how)
            device_ranks.check_same_bits([got], [alone])
    device_ranks.check_close([got], [want])
    check_same(group, "weights", hashlib.sha256(b"".join(x.tobytes() for x in got)).hexdigest())


@pytest.mark.mpi(sizes=(2, 3))
@pytest.mark.parametrize("late", [0, 1])
def test_processes_of_any_speed_find_windows_in_order(group, monkeypatch, late):
    """One rank comes late to each call, and one is slow to read what others are to overwrite."""
    monkeypatch.setenv("DISTGRAD_GPU_WINDOW", SMALL)
    right = ipc.reduce_into
    with machine_of(group) as machine:
        machine.latency = 1 << 60
        if group.rank != late:
            monkeypatch.setattr(ipc, "reduce_into", lambda *args: (time.sleep(0.01), right(*args)))
        for step in range(4):
            x = dg.ones(900, device="cuda") * (group.rank + 1 + step)
            time.sleep(0.02 * (group.rank == late))
            dg.distributed.all_reduce(x)
            total = sum(range(1, group.size + 1)) + step * group.size
            assert x.tolist() == [total] * 900


@pytest.mark.parametrize("fault", ["event", "half"])
def test_processes_notice_what_no_event_orders(group, monkeypatch, fault):
    monkeypatch.setenv("DISTGRAD_GPU_WINDOW", SMALL)
    if fault == "event":
        monkeypatch.setattr(ipc.Opened, "wait", lambda self, half, stream: None)
    else:  # the half that is filled is the one that others may be reading
        right = ipc.Window.__init__

        def one(self, nbytes):
            right(self, nbytes)
            self.memory[1] = self.memory[0]

        monkeypatch.setattr(ipc.Window, "__init__", one)
    with machine_of(group) as machine:
        machine.latency = 1 << 60
        with pytest.raises(DistributedError, match=r"wait for its event|has ended|has failed"):
            dg.distributed.all_reduce(dg.ones(5000, device="cuda"))
        found = group.all_gather_object(len(machine.hazards))
        assert any(found)
        machine.hazards.clear()


@pytest.mark.parametrize("right", [True, False])
def test_memory_stays_until_other_processes_have_closed_it(group, right):
    with machine_of(group) as machine:
        window = ipc.Window(1 << 12)
        offers = group.all_gather_object(window.offer())
        opened = [ipc.Opened(offer, 0) for offer in offers]
        for rank, each in enumerate(opened):
            if right or rank == group.rank:
                each.close()
        group.barrier()
        del window
        gc.collect()
        assert len(machine.hazards) == (0 if right else 2)
        machine.hazards.clear()
        group.barrier()
        for each in opened:
            each.close()


def test_windows_that_one_process_cannot_open_are_given_back_in_order(group, monkeypatch):
    with machine_of(group) as machine:
        import cupy

        def refuse(handle):
            raise cupy.cuda.runtime.CUDARuntimeError("cudaErrorNotSupported: not supported")

        if group.rank == 1:
            monkeypatch.setattr(cupy.cuda.runtime, "ipcOpenEventHandle", refuse)
        if group.rank == 2:  # late to close what it has open
            right = ipc.Opened.close
            monkeypatch.setattr(ipc.Opened, "close", lambda self: (time.sleep(0.1), right(self)))
        x = dg.ones(3, device="cuda")
        dg.distributed.all_reduce(x)
        assert x.tolist() == [3.0] * 3 and group.gpus.link is None
        assert "rank 1 has no access to the GPU memory" in group.gpus.why
        gc.collect()
        group.barrier()
        assert not machine.hazards


@pytest.mark.parametrize("how", ["fails", "leaves"])
def test_a_process_that_will_not_come_is_named(group, how):
    with machine_of(group):
        x = dg.ones(900, device="cuda")
        dg.distributed.all_reduce(x)
        link = group.gpus.link
        if group.rank == 1:
            if how == "fails":
                link._watch.fail("a transfer", "failed for the test")
            else:
                link.close()
        else:
            turn = links.Turn(link)
            turn.take()
            with pytest.raises(DistributedError, match=r"rank 1 has ended|rank \d has failed"):
                turn.run("all_reduce", "all_reduce(x)", x.array, x.array, "sum")
                turn.arrive()
        group.barrier()


@pytest.mark.parametrize("switch", ["0", "1"])
@pytest.mark.parametrize("name", ["moves", "exchanges", "messages"])
def test_what_moves_may_be_handed_to_mpi(group, monkeypatch, name, switch):
    """The stand-in's memory is the host's, so every MPI takes it."""
    monkeypatch.setenv("DISTGRAD_CUDA_AWARE", switch)
    if group.size == 1:
        pytest.skip("a rank sends nothing to itself")
    collective = device_ranks.COLLECTIVES[name]
    want = [t.numpy() for t in collective(group, dg.device("cpu"))]
    with machine_of(group):
        got = [t.cpu().numpy() for t in collective(group, device_ranks.place_of(group, 1))]
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_mpi_here_does_not_claim_to_know_gpus(group, monkeypatch):
    monkeypatch.delenv("DISTGRAD_CUDA_AWARE", raising=False)
    assert group.backend != "mpi" or not group.takes_gpu_memory()
