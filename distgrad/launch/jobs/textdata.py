"""Text to learn from without a download, as numbers, and how well counting alone predicts it."""

from __future__ import annotations

import hashlib
import importlib
import random
import sysconfig
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from distgrad.errors import ConfigError

HELD_OUT = 0.1  # the last part of the text, never trained on
_SOURCES_LIMIT = 1_000_000  # characters of source text, enough for a minute of training

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Corpus:
    """A text as character numbers, split into a part to train on and the held-out tail."""

    name: str
    sha256: str
    vocabulary: str
    train: Ids
    held_out: Ids

    def __len__(self) -> int:
        return len(self.train) + len(self.held_out)

    def encode(self, text: str) -> Ids:
        """Return the numbers of the characters of ``text``, all of which the corpus has."""
        table = {character: number for number, character in enumerate(self.vocabulary)}
        try:
            return np.array([table[character] for character in text], dtype=np.int64)
        except KeyError as error:
            raise ConfigError(
                f"encode({text!r}): the corpus {self.name} has no character {error.args[0]!r}; "
                f"it has {self.vocabulary!r}"
            ) from None

    def decode(self, ids: npt.ArrayLike) -> str:
        """Return the text that ``ids`` stand for."""
        return "".join(self.vocabulary[number] for number in np.asarray(ids).ravel())


def load(path: str | None, context: int) -> Corpus:
    """Return the text of the file ``path``, or without one the best text at hand, as a corpus.

    Args:
        path: a UTF-8 file, or None for the documentation that comes with Python.
        context: the characters a model sees at once; either part must hold one more.

    Raises:
        ConfigError: if the file cannot be read, is no UTF-8 text or is too short.
    """
    name, text = (path, _file(path)) if path is not None else _at_hand()
    least = int((context + 1) / HELD_OUT) + 1
    if len(text) < least:
        raise ConfigError(
            f"--data {name}: has {len(text)} characters; a context of {context} needs {least} "
            f"or more, so that the last tenth holds one window"
        )
    return from_text(name, text)


def from_text(name: str, text: str) -> Corpus:
    """Return ``text`` as a corpus."""
    # lone surrogates are characters here too: sources may hold them
    coded = text.encode("utf-32-le", "surrogatepass")
    points, ids = np.unique(np.frombuffer(coded, np.uint32), return_inverse=True)
    cut = len(ids) - int(len(ids) * HELD_OUT)
    vocabulary = "".join(chr(point) for point in points)
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    ids = ids.astype(np.int64)
    return Corpus(name, digest, vocabulary, ids[:cut], ids[cut:])


def baselines(corpus: Corpus) -> dict[str, float]:
    """Return the loss on the held-out tail, in nats per character, of models that only count.

    ``uniform`` knows the vocabulary, ``unigram`` how often each character occurs, ``bigram`` how
    often it follows the one before; counts of the training part, plus one.
    """
    size, train, tail = len(corpus.vocabulary), corpus.train, corpus.held_out
    single = np.bincount(train, minlength=size) + 1.0
    counts = np.bincount(train[:-1] * size + train[1:], minlength=size * size)
    pairs = counts.reshape(size, size) + 1.0
    unigram = np.log(single / single.sum())
    bigram = np.log(pairs / pairs.sum(axis=1, keepdims=True))
    return {
        "uniform": float(np.log(size)),
        "unigram": float(-unigram[tail].mean()),
        "bigram": float(-bigram[tail[:-1], tail[1:]].mean()),
    }


def _file(path: str) -> str:
    try:
        return Path(path).read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise ConfigError(f"--data {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"--data {path}: is not UTF-8 text (byte {error.start} is "
            f"0x{error.object[error.start]:02x}); convert it to UTF-8"
        ) from None


def _at_hand() -> tuple[str, str]:
    """Return name and text of the first source that this Python has."""
    for name, source in (
        ("pydoc_data.topics", documentation),
        ("standard library", library_sources),
        ("unicodedata", character_names),
    ):
        text = source()
        if text:
            return name, text
    raise ConfigError("textgpt: this Python brings no text along; give a file with --data FILE")


def documentation() -> str:
    """Return the text of Python's language reference, or nothing where it is not installed."""
    try:
        # not everywhere: embedded and frozen builds of Python leave it out
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        return ""
    return "\n".join(topics[key] for key in sorted(topics))


def library_sources() -> str:
    """Return sources of the standard library, or nothing where they are not installed."""
    parts: list[str] = []
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        parts.append(file.read_text("utf-8", errors="replace"))
        if sum(map(len, parts)) > _SOURCES_LIMIT:
            break
    return "".join(parts)[:_SOURCES_LIMIT]


def character_names() -> str:
    """Return the names of the Unicode characters, in an order that is mixed but always the same."""
    every = (unicodedata.name(chr(point), "") for point in range(0x20000))
    names = [name for name in every if name and not name.startswith(("CJK", "HANGUL"))]
    random.Random(0).shuffle(names)
    return "\n".join(names).lower()
