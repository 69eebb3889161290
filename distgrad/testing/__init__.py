"""Tools for tests: the check of operations, rank fixtures, comparison of tensors."""
