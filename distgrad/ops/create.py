"""Tensors from data, sizes and ranges."""
