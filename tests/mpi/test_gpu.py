"""Ranks with tensors on a GPU under real MPI, on the stand-in: each process has its own."""

import contextlib
import hashlib
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

import distgrad as dg
from distgrad.distributed import check_same, local_group
from distgrad.testing import device_ranks, standin

pytestmark = pytest.mark.mpi(sizes=(3,))


@contextlib.contextmanager
def machine_of(group, gpus=1):
    """GPUs: one that all ranks share, or as many as ranks."""
    if group.backend != "mpi":
        pytest.skip("threads of one process share the stand-in: see test_gpu_standin_ranks.py")
    made = tempfile.mkdtemp() if group.rank == 0 else None
    folder = Path(group.broadcast_object(made))
    with standin.installed(gpus, folder=folder) as ledger:
        yield ledger
        group.barrier()
        if group.rank == 0:
            shutil.rmtree(folder)
        assert not ledger.hazards and not ledger.refused


@pytest.mark.parametrize("determinism", ["off", "run", "world"])
@pytest.mark.parametrize("build", [device_ranks.sgd, device_ranks.zero])
def test_training_by_way_of_the_host_has_the_numbers_of_the_host(group, build, determinism):
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
