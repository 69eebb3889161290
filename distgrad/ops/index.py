"""Indexing by numbers, slices, masks and tensors of indices."""
