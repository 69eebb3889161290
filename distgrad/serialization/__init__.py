"""Saving and loading: PyTorch's ``.pt`` files and safetensors, without running what is in them."""

from distgrad.serialization import safetensors
from distgrad.serialization.atomic import atomic_path
from distgrad.serialization.errors import MissingFile, RefusedGlobal
from distgrad.serialization.files import get_unsafe_globals_in_checkpoint, load, save
from distgrad.serialization.policy import (
    add_safe_globals,
    clear_safe_globals,
    get_safe_globals,
    safe_globals,
)
from distgrad.serialization.safetensors import load_file, load_model, save_file, save_model

__all__ = [
    "MissingFile",
    "RefusedGlobal",
    "add_safe_globals",
    "atomic_path",
    "clear_safe_globals",
    "get_safe_globals",
    "get_unsafe_globals_in_checkpoint",
    "load",
    "load_file",
    "load_model",
    "safe_globals",
    "safetensors",
    "save",
    "save_file",
    "save_model",
]
