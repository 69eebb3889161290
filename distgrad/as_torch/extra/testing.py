"""``torch.testing``: comparisons for tests."""

from distgrad.testing.close import assert_close

__all__ = ["assert_close"]
