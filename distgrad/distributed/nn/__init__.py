"""Collectives that autograd differentiates."""

from distgrad.distributed.nn import functional

__all__ = ["functional"]
