"""What is wrong with a file: it is missing, damaged, or wants something that is not allowed."""

from __future__ import annotations

import pickle

from distgrad.errors import CheckpointError


class MissingFile(CheckpointError, FileNotFoundError):
    """There is no such file."""


class RefusedGlobal(CheckpointError, pickle.UnpicklingError):
    """A file names a class or function that it may not use."""
