"""Random tensors and operations."""
