"""Meshes of ranks: questions without an answer, and the default group."""

from __future__ import annotations

import pytest

from distgrad import distributed as dist
from distgrad.distributed import DeviceMesh, ProcessGroup, init_device_mesh, run_ranks


def test_questions_without_an_answer() -> None:
    def body(group: ProcessGroup) -> None:
        mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("a", "b"))
        with pytest.raises(KeyError, match=r"Valid mesh_dim_names are \['a', 'b'\]"):
            mesh["c"]
        with pytest.raises(RuntimeError, match="has 2 dimensions; say which"):
            mesh.get_group()
        with pytest.raises(ValueError, match="has 2 dimensions"):
            mesh.get_group(2)
        with pytest.raises(RuntimeError, match="without mesh_dim_names"):
            init_device_mesh("cpu", (2,))["a"]
        with pytest.raises(ValueError, match="must pass mesh"):
            DeviceMesh.from_group([group, group], "cpu")

    run_ranks(2, body)


def test_a_mesh_makes_the_default_group() -> None:
    mesh = init_device_mesh("cpu", (1,))
    try:
        assert mesh.get_group() is dist.get_group()
    finally:
        dist.destroy_process_group()
