"""The corpus and the losses of models that only count."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest

from distgrad.errors import ConfigError
from distgrad.launch.jobs import textdata


def test_a_text_becomes_numbers_and_back():
    corpus = textdata.from_text("x", "hello wörld" * 10)
    assert corpus.vocabulary == " dehlorwö"
    assert corpus.decode(corpus.encode("hello wörld")) == "hello wörld"
    assert corpus.decode(np.concatenate([corpus.train, corpus.held_out])) == "hello wörld" * 10
    assert corpus.train.dtype == np.int64
    assert corpus.sha256 == hashlib.sha256(("hello wörld" * 10).encode()).hexdigest()


def test_the_last_tenth_is_held_out():
    corpus = textdata.from_text("x", "ab" * 500)
    assert (len(corpus.train), len(corpus.held_out), len(corpus)) == (900, 100, 1000)


def test_a_character_that_the_text_lacks_is_an_error():
    with pytest.raises(ConfigError, match="has no character 'z'"):
        textdata.from_text("x", "abc").encode("az")


def test_baselines_are_the_losses_of_counting():
    corpus = textdata.from_text("x", "ab" * 500)
    found = textdata.baselines(corpus)
    assert found["uniform"] == pytest.approx(math.log(2))
    assert found["unigram"] == pytest.approx(math.log(2), abs=1e-6)
    # a is followed by b 450 times of 450, plus one for each of the two characters
    after_a, after_b = -math.log(451 / 452), -math.log(450 / 451)
    assert found["bigram"] == pytest.approx((50 * after_a + 49 * after_b) / 99)


def test_the_default_text_is_that_of_the_documentation_and_counting_predicts_some_of_it():
    pytest.importorskip("pydoc_data.topics")
    corpus = textdata.load(None, 64)
    assert corpus.name == "pydoc_data.topics"
    assert len(corpus) > 300_000
    found = textdata.baselines(corpus)
    assert found["bigram"] < found["unigram"] - 0.5 < found["uniform"] - 1.5


@pytest.mark.parametrize("lacking", [1, 2])
def test_where_a_text_is_missing_the_next_one_is_taken(monkeypatch, lacking):
    for source in ("documentation", "library_sources")[:lacking]:
        monkeypatch.setattr(textdata, source, lambda: "")
    corpus = textdata.load(None, 64)
    assert corpus.name == ("standard library", "unicodedata")[lacking - 1]
    assert len(corpus) > 300_000
    assert textdata.baselines(corpus)["bigram"] < textdata.baselines(corpus)["unigram"]


def test_the_names_of_characters_always_come_in_the_same_order():
    assert textdata.character_names() == textdata.character_names()


def test_a_python_without_any_text_asks_for_a_file(monkeypatch):
    for source in ("documentation", "library_sources", "character_names"):
        monkeypatch.setattr(textdata, source, lambda: "")
    with pytest.raises(ConfigError, match="--data FILE"):
        textdata.load(None, 64)


def test_ones_own_file_is_read(tmp_path):
    path = tmp_path / "own.txt"
    path.write_bytes(b"\xef\xbb\xbfline\r\n" * 1 + b"line\r\n" * 200)
    corpus = textdata.load(str(path), 16)
    assert corpus.vocabulary == "\neiln"
    assert corpus.name == str(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has 0 characters; a context of 64 needs 651 or more"),
        (b"short", "has 5 characters"),
        (b"ab\xff" * 1000, r"is not UTF-8 text \(byte 2 is 0xff\)"),
    ],
)
def test_a_file_that_cannot_be_used_is_an_error(tmp_path, content, message):
    path = tmp_path / "own.txt"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        textdata.load(str(path), 64)


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        textdata.load(str(tmp_path / "none.txt"), 64)


def test_the_least_length_leaves_one_window_in_the_tail(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("x" * 651)
    assert len(textdata.load(str(path), 64).held_out) >= 65
