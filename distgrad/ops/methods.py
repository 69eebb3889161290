"""Methods of Tensor that are plain functions of operations."""
