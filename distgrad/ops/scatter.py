"""Gather and scatter along a dimension."""
