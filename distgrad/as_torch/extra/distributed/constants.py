"""Constants of process groups."""

from __future__ import annotations

from datetime import timedelta

from distgrad.distributed.group import DEFAULT_TIMEOUT_S

default_pg_timeout = timedelta(seconds=DEFAULT_TIMEOUT_S)
