"""The table of switches."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import distgrad
from distgrad import config
from distgrad.errors import ConfigError


def test_a_switch_comes_from_the_environment_or_its_default(monkeypatch):
    assert config.switch("job") == "textgpt"
    monkeypatch.setenv("DISTGRAD_JOB", "digits")
    assert config.switch("job") == "digits"


def test_a_wrong_value_names_the_variable(monkeypatch):
    monkeypatch.setenv("DISTGRAD_DEVICE", "cdua")
    with pytest.raises(ConfigError, match=r"DISTGRAD_DEVICE: 'cdua' .*did you mean cuda\?"):
        config.switch("device")


def test_a_variable_that_no_switch_reads_is_reported(monkeypatch):
    assert config.unknown_variables() == []
    monkeypatch.setenv("DISTGRAD_STPES", "3")
    assert config.unknown_variables() == [
        "DISTGRAD_STPES is not a switch of distgrad; did you mean DISTGRAD_STEPS?"
    ]


def test_every_variable_that_the_code_names_is_in_the_table():
    known = {row.env for row in config.TABLE}
    root = Path(distgrad.__file__).parent
    for file in root.rglob("*.py"):
        named = set(re.findall(r"(?<![\w_])DISTGRAD_[A-Z_]*[A-Z]", file.read_text()))
        assert named - {"DISTGRAD_NAME"} <= known, file


def test_names_and_documents_of_switches_are_unique():
    assert len({row.name for row in config.TABLE}) == len(config.TABLE)
    assert len({row.doc for row in config.TABLE}) == len(config.TABLE)
