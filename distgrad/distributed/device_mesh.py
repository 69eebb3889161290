"""Ranks laid out in several dimensions, with a group for each line of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from distgrad.distributed.default import default_group, get_group
from distgrad.distributed.group import ProcessGroup
from distgrad.distributed.lifecycle import init_process_group
from distgrad.distributed.subgroups import split_group, together
from distgrad.errors import (
    ArgumentError,
    ArgumentTypeError,
    DistgradError,
    DistributedError,
)
from distgrad.tensor import Tensor, wrap


class MeshDimensionError(DistributedError, KeyError):
    """A mesh has no dimension of that name; PyTorch raises KeyError."""

    __str__ = Exception.__str__  # KeyError's puts the message in quotes


class DeviceMesh:
    """Ranks in an array of several dimensions, which may have names.

    Along every dimension a rank has a group: of the ranks that differ from it there alone. A
    part of the mesh with some of the dimensions is ``mesh["name"]`` or ``mesh["one", "other"]``.

    Args:
        device_type: "cpu" or "cuda"; for programs that ask for it.
        mesh: ranks of the default group, each at most once.
        mesh_dim_names: a name for each dimension.

    Ranks: all of the default group, with the same arguments.
    """

    def __init__(
        self,
        device_type: str,
        mesh: Tensor | Sequence[Any] | np.ndarray[Any, Any],
        *,
        mesh_dim_names: Sequence[str] | None = None,
    ) -> None:
        world = default_group() or init_process_group()
        try:
            ranks = _ranks(world, mesh)
            names = _names(ranks.shape, mesh_dim_names)
            _known_device(device_type)
        except DistgradError as error:
            raise together(world, error) from None
        groups = [_lines(world, ranks, axis, names) for axis in range(ranks.ndim)]
        self._lay(device_type, ranks, names, groups, world.rank)

    def _lay(
        self,
        device_type: str,
        ranks: np.ndarray[Any, Any],
        names: tuple[str, ...] | None,
        groups: Sequence[ProcessGroup | None],
        rank: int,
    ) -> None:
        self.device_type, self.mesh_dim_names = device_type, names
        self._ranks, self._groups, self._rank = ranks, list(groups), rank
        found = np.argwhere(ranks == rank)
        self._place = tuple(int(n) for n in found[0]) if len(found) else None

    @classmethod
    def from_group(
        cls,
        group: ProcessGroup | Sequence[ProcessGroup],
        device_type: str,
        mesh: Tensor | Sequence[Any] | np.ndarray[Any, Any] | None = None,
        *,
        mesh_dim_names: Sequence[str] | None = None,
    ) -> DeviceMesh:
        """Return a mesh made of groups that are there already.

        Args:
            group: one, or one for each dimension.
            device_type: "cpu" or "cuda".
            mesh: the ranks; needed for several groups.
            mesh_dim_names: a name for each dimension.
        """
        groups = [group] if isinstance(group, ProcessGroup) else list(group)
        if mesh is None and len(groups) != 1:
            raise ArgumentError(
                f"from_group({len(groups)} groups): must pass mesh if passing multiple groups"
            )
        ranks = _ranks(get_group(), list(groups[0].ranks) if mesh is None else mesh)
        if ranks.ndim != len(groups):
            raise ArgumentError(
                f"from_group({len(groups)} groups, mesh of shape {list(ranks.shape)}): a mesh "
                "needs a group for each dimension"
            )
        _known_device(device_type)
        made = cls.__new__(cls)
        names = _names(ranks.shape, mesh_dim_names)
        made._lay(device_type, ranks, names, groups, get_group().rank)
        return made

    def __repr__(self) -> str:
        if self.mesh_dim_names is None:
            return f"DeviceMesh({self.shape}, {self.device_type!r})"
        pairs = zip(self.mesh_dim_names, self.shape, strict=True)
        sizes = ", ".join(f"{name}={size}" for name, size in pairs)
        return f"DeviceMesh(({sizes}), {self.device_type!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DeviceMesh) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[object, ...]:
        return self.device_type, self.shape, self._ranks.tobytes(), self.mesh_dim_names

    def __getitem__(self, mesh_dim_names: str | Sequence[str]) -> DeviceMesh:
        """Return the part of the mesh with these dimensions that this rank is in."""
        names = [mesh_dim_names] if isinstance(mesh_dim_names, str) else list(mesh_dim_names)
        if self.mesh_dim_names is None:
            raise DistributedError(
                f"{self!r}[{mesh_dim_names!r}]: Cannot slice a DeviceMesh without mesh_dim_names; "
                "give it some"
            )
        axes = [self._axis(f"{self!r}[{mesh_dim_names!r}]", name) for name in names]
        if self._place is None:
            raise DistributedError(f"{self!r}[{mesh_dim_names!r}]: this rank is not in the mesh")
        rest = [axis for axis in range(self.ndim) if axis not in axes]
        turned = self._ranks.transpose(rest + axes)
        part = turned[tuple(self._place[axis] for axis in rest)]
        made = DeviceMesh.__new__(DeviceMesh)
        groups = [self._groups[axis] for axis in axes]
        made._lay(self.device_type, part, tuple(names), groups, self._rank)
        return made

    @property
    def mesh(self) -> Tensor:
        """The ranks, an int32 tensor."""
        return wrap(self._ranks.astype(np.int32))

    @property
    def ndim(self) -> int:
        """How many dimensions there are."""
        return self._ranks.ndim

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of the dimensions."""
        return tuple(self._ranks.shape)

    def size(self, mesh_dim: int | None = None) -> int:
        """Return the number of ranks, or the size of a dimension."""
        return self._ranks.size if mesh_dim is None else self.shape[mesh_dim]

    def get_group(self, mesh_dim: int | str | None = None) -> ProcessGroup:
        """Return this rank's group along a dimension, which may be left out if it is the only one.

        Raises:
            DistributedError: this rank is not in the mesh, or there are several dimensions.
        """
        group = self._groups[self._one_axis("get_group", mesh_dim)]
        if group is None:
            raise DistributedError(f"get_group({mesh_dim!r}): this rank is not in {self!r}")
        return group

    def get_all_groups(self) -> list[ProcessGroup]:
        """Return this rank's group along each dimension."""
        return [self.get_group(axis) for axis in range(self.ndim)]

    def get_rank(self) -> int:
        """Return this rank's number in the default group."""
        return self._rank

    def get_local_rank(self, mesh_dim: int | str | None = None) -> int:
        """Return this rank's place along a dimension, which may be left out if it is the only one.

        Example:
            >>> from distgrad.distributed import run_ranks
            >>> def body(group):
            ...     mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
            ...     return mesh["dp"].get_local_rank(), mesh.get_group("tp").ranks
            >>> run_ranks(4, body)
            [(0, (0, 1)), (0, (0, 1)), (1, (2, 3)), (1, (2, 3))]
        """
        axis = self._one_axis("get_local_rank", mesh_dim)
        if self._place is None:
            raise DistributedError(f"get_local_rank({mesh_dim!r}): this rank is not in {self!r}")
        return self._place[axis]

    def get_coordinate(self) -> tuple[int, ...] | None:
        """Return this rank's place along each dimension; None if it is not in the mesh."""
        return self._place

    def _axis(self, call: str, name: str) -> int:
        known = self.mesh_dim_names or ()
        if name not in known:
            raise MeshDimensionError(
                f"{call}: Invalid mesh_dim_name {name!r}. Valid mesh_dim_names are {list(known)}."
            )
        return known.index(name)

    def _one_axis(self, function: str, mesh_dim: int | str | None) -> int:
        call = f"{function}({mesh_dim!r})"
        if isinstance(mesh_dim, str):
            return self._axis(call, mesh_dim)
        if mesh_dim is None:
            if self.ndim == 1:
                return 0
            raise DistributedError(
                f"{call}: {self!r} has {self.ndim} dimensions; say which with mesh_dim"
            )
        if not -self.ndim <= mesh_dim < self.ndim:
            raise ArgumentError(f"{call}: {self!r} has {self.ndim} dimensions")
        return mesh_dim % self.ndim


def init_device_mesh(
    device_type: str,
    mesh_shape: Sequence[int],
    *,
    mesh_dim_names: Sequence[str] | None = None,
) -> DeviceMesh:
    """Return a mesh of the first ranks, in order; makes the default group if there is none.

    Args:
        device_type: "cpu" or "cuda".
        mesh_shape: how many ranks along each dimension.
        mesh_dim_names: a name for each dimension.

    Ranks: all of the default group, with the same arguments.
    """
    world = default_group() or init_process_group()
    shape = tuple(mesh_shape)
    count = int(np.prod(shape)) if all(isinstance(n, int) and n > 0 for n in shape) else 0
    if not 0 < count <= world.size:
        error = DistributedError(
            f"init_device_mesh(mesh_shape={shape}): Mesh should not be bigger than default world "
            f"size {world.size}, but found {count} ranks; start more, or take other sizes, all 1 "
            "or more"
        )
        raise together(world, error)
    ranks = np.arange(count).reshape(shape)
    return DeviceMesh(device_type, ranks, mesh_dim_names=mesh_dim_names)


def _ranks(world: ProcessGroup, mesh: Any) -> np.ndarray[Any, Any]:
    array = np.array(mesh.array if isinstance(mesh, Tensor) else mesh)
    if array.dtype.kind not in "iu" or array.ndim == 0:
        raise ArgumentTypeError(f"DeviceMesh(mesh={mesh!r}): must be an array of numbers of ranks")
    if len(np.unique(array)) != array.size or array.min() < 0 or array.max() >= world.size:
        raise DistributedError(
            f"DeviceMesh(mesh={array.tolist()}): must name ranks 0 to {world.size - 1}, each once "
            "at most"
        )
    return array.astype(np.int64)


def _names(shape: tuple[int, ...], names: Sequence[str] | None) -> tuple[str, ...] | None:
    if names is None:
        return None
    if len(names) != len(shape):
        raise DistributedError(
            f"DeviceMesh(mesh_dim_names={tuple(names)}): mesh_shape and mesh_dim_names should have "
            f"same length; the mesh has {len(shape)} dimensions"
        )
    if len(set(names)) != len(names):
        raise DistributedError(
            f"DeviceMesh(mesh_dim_names={tuple(names)}): Each mesh_dim_name must be unique"
        )
    return tuple(names)


def _known_device(device_type: str) -> None:
    if device_type not in ("cpu", "cuda"):
        raise DistributedError(
            f"DeviceMesh(device_type={device_type!r}): must be 'cpu' or 'cuda', without an index; "
            "each rank chooses its own device"
        )


def _lines(
    world: ProcessGroup, ranks: np.ndarray[Any, Any], axis: int, names: tuple[str, ...] | None
) -> ProcessGroup | None:
    """Return this rank's group along a dimension."""
    lines = np.moveaxis(ranks, axis, -1).reshape(-1, ranks.shape[axis]).tolist()
    if lines == [list(range(world.size))]:
        return world
    name = str(axis) if names is None else names[axis]
    return split_group(world, lines, group_desc=f"mesh_{name}")
