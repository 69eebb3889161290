"""Loads the plugin that runs tests on several ranks."""

from __future__ import annotations

pytest_plugins = ["distgrad.testing.mpi_plugin"]
collect_ignore_glob = ["as_torch/programs/*"]  # they are run by tests, not imported
