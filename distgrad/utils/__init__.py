"""Saving and loading, and activation checkpointing."""

from distgrad.utils import checkpoint, hooks
from distgrad.utils.serialization import load, load_file, save, save_file

__all__ = ["checkpoint", "hooks", "load", "load_file", "save", "save_file"]
