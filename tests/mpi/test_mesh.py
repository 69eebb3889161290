"""Meshes of ranks on every backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import distgrad as dg
from distgrad import distributed as dist
from distgrad.distributed import DeviceMesh, ProcessGroup, init_device_mesh
from distgrad.errors import ArgumentTypeError, DistributedError

pytestmark = pytest.mark.mpi(sizes=(2, 4))


def test_sums_along_each_dimension(group: ProcessGroup) -> None:
    if group.size % 2:
        pytest.skip("makes pairs")
    rows, n = 2, group.size
    mesh = init_device_mesh("cpu", (rows, n // rows), mesh_dim_names=("dp", "tp"))
    row, column = divmod(group.rank, n // rows)
    assert (mesh.ndim, mesh.shape, mesh.size(), mesh.size(1)) == (2, (2, n // 2), n, n // 2)
    assert mesh.get_coordinate() == (row, column)
    assert (mesh["dp"].get_local_rank(), mesh.get_local_rank("tp")) == (row, column)
    assert mesh.mesh.tolist() == [list(range(n // 2)), list(range(n // 2, n))]
    for name, peers in (("dp", [column, column + n // 2]), ("tp", mesh.mesh[row].tolist())):
        value = dg.tensor(float(group.rank))
        dist.all_reduce(value, group=mesh.get_group(name))
        assert value.item() == sum(peers)
        assert mesh[name].mesh.tolist() == peers
        assert dist.get_process_group_ranks(mesh[name].get_group()) == peers
    turned = mesh["tp", "dp"]
    assert turned.shape == (n // 2, 2)
    assert turned.get_group(0) is mesh.get_group("tp")
    assert turned["dp"] == mesh["dp"]
    assert hash(turned["dp"]) == hash(mesh["dp"])
    assert repr(mesh) == f"DeviceMesh((dp=2, tp={n // 2}), 'cpu')"


def test_one_dimension_is_the_default_group(group: ProcessGroup) -> None:
    mesh = init_device_mesh("cpu", (group.size,))
    assert mesh.get_group() is group
    assert mesh.get_local_rank() == mesh.get_rank() == group.rank
    assert DeviceMesh.from_group(group, "cpu") == mesh
    assert mesh.get_all_groups() == [group]


def test_ranks_outside_of_the_mesh(group: ProcessGroup) -> None:
    mesh = DeviceMesh("cpu", [0])
    if group.rank == 0:
        assert mesh.get_coordinate() == (0,)
        assert mesh.get_group().size == 1
        return
    assert mesh.get_coordinate() is None
    for call in (mesh.get_group, mesh.get_local_rank):
        with pytest.raises(DistributedError, match="this rank is not in DeviceMesh"):
            call()


MISTAKES: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: init_device_mesh("cpu", (99,)), RuntimeError, "should not be bigger than default"),
    (lambda: init_device_mesh("cpu", (0,)), RuntimeError, "all 1 or more"),
    (lambda: init_device_mesh("tpu", (1,)), RuntimeError, "must be 'cpu' or 'cuda'"),
    (lambda: init_device_mesh("cpu", (1,), mesh_dim_names=("a", "b")), RuntimeError, "same length"),
    (lambda: init_device_mesh("cpu", (1, 1), mesh_dim_names="aa"), RuntimeError, "be unique"),
    (lambda: DeviceMesh("cpu", [0, 0]), RuntimeError, "each once at most"),
    (lambda: DeviceMesh("cpu", [0.5]), ArgumentTypeError, "numbers of ranks"),
]


@pytest.mark.parametrize(("call", "kind", "text"), MISTAKES)
def test_a_mistake_is_heard_of_everywhere(
    group: ProcessGroup, call: Callable[[], Any], kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind, match=text):
        call()
    if group.size == 1:
        return
    last = group.rank == group.size - 1
    with pytest.raises(kind if last else DistributedError, match=text if last else "differs"):
        call() if last else init_device_mesh("cpu", (1, group.size))
    group.barrier()
