"""Datasets and loaders, and activation checkpointing."""

from distgrad.utils import checkpoint, data, hooks

__all__ = ["checkpoint", "data", "hooks"]
