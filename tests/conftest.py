"""Loads the plugin that runs tests on several ranks."""

from __future__ import annotations

pytest_plugins = ["distgrad.testing.mpi_plugin"]
