"""Saving and loading."""

from distgrad.utils.serialization import load, load_file, save, save_file

__all__ = ["load", "load_file", "save", "save_file"]
