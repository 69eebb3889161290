"""Where a pass over a loader stands, and how to go on from there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy

from distgrad.backend.random import Generator, current_generator
from distgrad.errors import ArgumentError

if TYPE_CHECKING:
    from distgrad.utils.data.dataloader import DataLoader


@dataclass
class Position:
    """How far a pass is, and what its order came from: generators and sampler when it began."""

    begun: bool  # False: between two passes
    batches: int
    random: list[Any]
    sampler: Any

    def as_state(self) -> dict[str, Any]:
        """Return it as a dict of numbers and tensors."""
        return {name: getattr(self, name) for name in _NAMES}

    @staticmethod
    def from_state(state: Any) -> Position:
        """Return what ``as_state`` gave.

        Raises:
            ArgumentError: it is something else.
        """
        if not isinstance(state, dict) or set(state) != _NAMES:
            raise ArgumentError(
                "load_state_dict(): not the state of a DataLoader; pass what its state_dict() gave"
            )
        return Position(**state)


_NAMES = {f.name for f in fields(Position)}


def position_of(loader: DataLoader[Any], begun: bool) -> Position:
    """Return the position before the first batch of a pass, which may have begun just now."""
    states = [generator.get_state() for generator in _generators(loader)]
    sampler = _stateful(loader)
    return Position(begun, 0, states, None if sampler is None else sampler.state_dict())


@contextlib.contextmanager
def as_it_was(loader: DataLoader[Any], position: Position) -> Iterator[None]:
    """Put generators and sampler back to where the pass of ``position`` began.

    At the end the program's own generator is what it was: a program that resumes restores it.
    Between two passes it is left alone.
    """
    generators = _generators(loader)
    if len(generators) != len(position.random):
        raise ArgumentError(
            f"DataLoader: the state has {len(position.random)} generators, this loader and its "
            f"sampler use {len(generators)}; build the loader as it was"
        )
    ours = generators[0].get_state()
    for generator, state in zip(generators, position.random, strict=True):
        if position.begun or generator is not generators[0]:
            generator.set_state(numpy.asarray(state))
    sampler = _stateful(loader)
    if sampler is not None and position.sampler is not None:
        sampler.load_state_dict(position.sampler)
    try:
        yield
    finally:
        if position.begun:
            generators[0].set_state(ours)


def _generators(loader: DataLoader[Any]) -> list[Generator]:
    """Return all generators that the order may come from, the program's own first."""
    found: list[Generator] = [current_generator()]
    outer = loader.batch_sampler
    for owner in (loader, loader.sampler, outer, getattr(outer, "sampler", None)):
        generator = getattr(owner, "generator", None)
        if isinstance(generator, Generator) and all(generator is not g for g in found):
            found.append(generator)
    return found


def _stateful(loader: DataLoader[Any]) -> Any:
    """Return the sampler that has a state, if one has."""
    outer = loader.batch_sampler
    for owner in (outer, getattr(outer, "sampler", None), loader.sampler):
        if hasattr(owner, "state_dict") and hasattr(owner, "load_state_dict"):
            return owner
    return None
