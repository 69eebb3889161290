"""The command line of ``python -m distgrad.launch`` and where each setting comes from.

Precedence is command line > environment > TOML file > default.  Keys are those of the table in
``distgrad.config`` and the fields of the job's configuration, nested ones with dots.
"""

from __future__ import annotations

import json
import operator
import os
import tomllib
import types
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from distgrad.config import SWITCHES, TABLE, Switch, flag, nearest
from distgrad.errors import ConfigError

USAGE = "python -m distgrad.launch [options] [script.py | -m module] [arguments]"
ACTIONS = {
    "help": "show this text",
    "list_jobs": "name the built-in jobs",
    "print_config": "print every setting and where it comes from, as TOML",
    "version": "print the version",
}
OPTIONS = {row.name: row for row in TABLE if row.scope != "engine"}
SHORT = {"h": "help", "n": "nproc"}
ALIASES = {"nproc_per_node": "nproc", "np": "nproc"}


@dataclass(frozen=True, slots=True)
class Target:
    """What to run: a job, a script or a module, with the arguments that belong to it."""

    kind: Literal["job", "script", "module"] = "job"
    name: str = ""
    argv: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Command:
    """A command line, split: what to do, what to run and the settings as texts."""

    action: str
    target: Target
    config_file: str | None
    given: tuple[tuple[str, str, str], ...]  # key, text, option as it was written


@dataclass(frozen=True, slots=True)
class Setting:
    """A value and the place it comes from."""

    value: Any
    origin: str


@dataclass(frozen=True, slots=True)
class Resolved:
    """All settings of a run."""

    settings: Mapping[str, Setting]
    config: Any  # the job's dataclass, or None for a script

    def __getitem__(self, key: str) -> Any:
        return self.settings[key].value


# ------------------------------------------------------------------ the command line


def parse(argv: list[str]) -> Command:
    """Return the command that ``argv`` spells.

    Raises:
        ConfigError: for an unknown option, a missing value or an option that fits no target.

    Example:
        >>> parse(["--steps", "10", "train.py", "--fast"]).target
        Target(kind='script', name='train.py', argv=('--fast',))
    """
    words, action, config_file = list(argv), "run", None
    given: list[tuple[str, str, str]] = []
    while words and words[0].startswith("-") and words[0] not in ("-m", "--"):
        key, written, text = _next_option(words)
        if key in ACTIONS:
            action = key
        elif key == "config":
            config_file = text
        elif key == "set":
            name, equals, text = text.partition("=")
            if not equals:
                raise ConfigError(f"--set {name}: has no value; write --set {name}=VALUE")
            given.append((name.strip().replace("-", "_"), text.strip(), f"--set {name}"))
        else:
            given.append((key, text, written))
    return Command(action, _target(words), config_file, tuple(given))


def _next_option(words: list[str]) -> tuple[str, str, str]:
    """Take one option off ``words``: its key, the option as written, its text."""
    word = words.pop(0)
    name, equals, text = word.partition("=")
    if not word.startswith("--") and word[1:2] in SHORT and not word.startswith("-np"):
        name, equals, text = word[:2], word[2:3], word[2:].removeprefix("=")
    key = name.lstrip("-").replace("-", "_")
    key = SHORT.get(key, ALIASES.get(key, key))
    row = OPTIONS.get(key)
    if key not in ACTIONS and key not in ("config", "set") and row is None:
        known = [f"--{k.replace('_', '-')}" for k in (*OPTIONS, *ACTIONS, "config", "set")]
        raise ConfigError(
            f"{name}: unknown option{nearest(name.replace('_', '-'), known)} (--help lists all; "
            f"options of a script stand behind its name)"
        )
    if key in ACTIONS or (row is not None and row.read is flag):
        return key, name, text if equals else "true"
    if not equals:
        if not words or words[0].startswith("--"):
            raise ConfigError(f"{name}: needs a value; write {name} VALUE")
        text = words.pop(0)
    return key, name, text


def _target(words: list[str]) -> Target:
    if not words:
        return Target()
    first, *rest = words
    if first in ("-m", "--"):
        if not rest:
            noun = "module" if first == "-m" else "script"
            raise ConfigError(f"{first}: needs the name of a {noun} behind it")
        return Target("module" if first == "-m" else "script", rest[0], tuple(rest[1:]))
    return Target("script", first, tuple(rest))


def help_text() -> str:
    """Return the text of ``--help``."""
    lines = [f"usage: {USAGE}", "", "Without a script the job textgpt is trained.", ""]
    plain = [("-m MODULE", "run a module instead of a script")]
    plain += [(f"--{key.replace('_', '-')}", doc) for key, doc in ACTIONS.items()]
    plain += [("--config FILE", "read settings from a TOML file")]
    plain += [("--set KEY=VALUE", "set any key of the configuration, such as model.width=96")]
    titles = {"launch": "where to run", "run": "how to run a job", "job": "settings of the job"}
    for scope, title in titles.items():
        lines.append(f"{title}:")
        rows = [row for row in TABLE if row.scope == scope]
        lines += [_help_line(_spelling(row), row.doc) for row in rows]
        lines.append("")
    lines += ["general:", *(_help_line(left, doc) for left, doc in plain), ""]
    lines += [
        "Each setting is also read from DISTGRAD_NAME and from the TOML file;",
        "the command line wins over the environment, that over the file, that over the default.",
        "Exit status: 0 done, 1 error, 2 usage, 3 expectation missed, 69 too few hosts answer, 75",
        "stopped by a signal after saving, 76 ranks lost or stalled and no restart left, 128+N",
        "killed by signal N.",
    ]
    return "\n".join(lines)


def _spelling(row: Switch) -> str:
    short = f"-{row.short}, " if row.short else ""
    return f"{short}--{row.name.replace('_', '-')} {row.metavar}".rstrip()


def _help_line(left: str, doc: str) -> str:
    return f"  {left:<38} {doc}" if len(left) < 38 else f"  {left}\n  {'':<38} {doc}"


# ------------------------------------------------------------------ from texts to settings


def resolve(command: Command, defaults: Any) -> Resolved:
    """Return every setting of ``command`` for a job with these ``defaults``, or a script's (None).

    Raises:
        ConfigError: for an unknown key or a value that the key does not take.
    """
    scopes = ("launch",) if defaults is None else ("launch", "run")
    known = {row.name: Setting(row.default, "default") for row in TABLE if row.scope in scopes}
    hints = _flat_fields(defaults)
    known |= {key: Setting(value, "default") for key, (_, value) in hints.items()}
    layers = [*_from_file(command.config_file), *_from_environment(known), *command.given]
    for key, raw, origin in layers:
        if key not in known:
            raise ConfigError(_unknown(key, origin, list(known), defaults is None))
        value = _value(key, raw, origin, hints)
        row = SWITCHES.get(key)
        if row is not None and row.many and known[key].origin == origin:
            value = known[key].value + value
        known[key] = Setting(value, origin)
    if defaults is None:
        return Resolved(known, None)
    for text in known["expect"].value:
        Expectation.parse(text)
    return Resolved(known, _filled(defaults, known, ""))


def job_name(command: Command) -> str:
    """Return the name of the job that ``command`` asks for."""
    layers = [*_from_file(command.config_file), *_from_environment({"job": None}), *command.given]
    names = [str(raw) for key, raw, _ in layers if key == "job"]
    return names[-1] if names else str(SWITCHES["job"].default)


def _from_file(path: str | None) -> list[tuple[str, Any, str]]:
    if path is None:
        return []
    try:
        table = tomllib.loads(Path(path).read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: is not valid TOML: {error}") from None
    return [(key, raw, path) for key, raw in _flat_table(table, "")]


def _flat_table(table: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for name, raw in table.items():
        key = prefix + name.replace("-", "_")
        flat += _flat_table(raw, key + ".") if isinstance(raw, dict) else [(key, raw)]
    return flat


def _from_environment(known: Mapping[str, Any]) -> list[tuple[str, Any, str]]:
    return [
        (row.name, os.environ[row.env], row.env)
        for row in TABLE
        if row.env in os.environ and row.name in known
    ]


def _flat_fields(defaults: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Return type and default of each field of a dataclass, nested ones by dotted keys."""
    if defaults is None:
        return {}
    hints = get_type_hints(type(defaults))
    flat: dict[str, tuple[Any, Any]] = {}
    for field in fields(defaults):
        value = getattr(defaults, field.name)
        if is_dataclass(value):
            flat |= _flat_fields(value, f"{prefix}{field.name}.")
        else:
            flat[prefix + field.name] = (hints[field.name], value)
    return flat


def _filled(defaults: Any, settings: Mapping[str, Setting], prefix: str) -> Any:
    values = {}
    for field in fields(defaults):
        old = getattr(defaults, field.name)
        key = prefix + field.name
        nested = is_dataclass(old)
        values[field.name] = _filled(old, settings, f"{key}.") if nested else settings[key].value
    return replace(defaults, **values)


def _unknown(key: str, origin: str, known: list[str], script: bool) -> str:
    if script and key in SWITCHES:
        return (
            f"{origin}: configures a built-in job; to give it to the script, write it behind "
            f"the script's name"
        )
    here = f"{origin}: " if origin.startswith("-") else f"{origin}: key {key!r}: "
    return f"{here}unknown setting{nearest(key, known)} (--print-config lists all)"


def _value(key: str, raw: Any, origin: str, hints: Mapping[str, tuple[Any, Any]]) -> Any:
    place = origin if origin.startswith(("-", "DISTGRAD_")) else f"{origin}: {key}"
    row = SWITCHES.get(key)
    if row is None:
        return _convert(raw, hints[key][0], place)
    if row.many:
        texts = raw if isinstance(raw, list) else [raw]
        return tuple(row.parse(str(text), place) for text in texts)
    return row.parse(str(raw), place)


def _convert(raw: Any, kind: Any, place: str) -> Any:
    """Return ``raw``, a text or a TOML value, as a value of the annotated type ``kind``."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        if str(raw).lower() == "none" and type(None) in arguments:
            return None
        return _convert(raw, next(a for a in arguments if a is not type(None)), place)
    if origin is tuple:
        parts = raw if isinstance(raw, list) else str(raw).strip("()[]").split(",")
        kinds = [arguments[0]] * len(parts) if arguments[-1] is Ellipsis else arguments
        if len(parts) != len(kinds):
            raise ConfigError(f"{place}: {raw!r} has {len(parts)} values, not {len(kinds)}")
        return tuple(_convert(part, k, place) for part, k in zip(parts, kinds, strict=True))
    if origin is Literal:
        if raw not in arguments:
            raise ConfigError(f"{place}: {raw!r} is none of {', '.join(map(str, arguments))}")
        return raw
    try:
        return flag(str(raw)) if kind is bool else kind(str(raw).strip())
    except ValueError:
        raise ConfigError(f"{place}: {raw!r} is not of type {kind.__name__}") from None


# ------------------------------------------------------------------ what is printed and checked


def as_toml(resolved: Resolved) -> str:
    """Return the settings as TOML that ``--config`` reads back, with the origin of each."""
    lines = []
    for key, setting in resolved.settings.items():
        if setting.value is None:
            lines.append(f"{'# ' + key + ' is not set':<40}  # {setting.origin}")
        else:
            lines.append(f"{key + ' = ' + _toml(key, setting.value):<40}  # {setting.origin}")
    return "\n".join(lines)


def _toml(key: str, value: Any) -> str:
    if key == "profile_steps":
        return f'"{value[0]}:{value[1]}"'
    return json.dumps(list(value) if isinstance(value, tuple) else value)


_SIGNS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}


@dataclass(frozen=True, slots=True)
class Expectation:
    """A bound on a final metric, such as ``val_loss<2.3``."""

    metric: str
    sign: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> Expectation:
        """Return the expectation that ``text`` spells.

        Example:
            >>> Expectation.parse("val_loss < 2.3")
            Expectation(metric='val_loss', sign='<', bound=2.3)
        """
        for sign in _SIGNS:
            metric, found, bound = text.partition(sign)
            if found:
                try:
                    return cls(metric.strip(), sign, float(bound))
                except ValueError:
                    break
        raise ConfigError(f"--expect {text!r}: write a metric, one of < <= > >= and a number")

    def met(self, metrics: Mapping[str, float]) -> bool:
        """Return whether ``metrics`` satisfy the bound; a metric that is absent is an error."""
        if self.metric not in metrics:
            names = ", ".join(metrics) or "none at all"
            raise ConfigError(
                f"--expect {self}: the run has no metric {self.metric!r}; it has {names}"
                + nearest(self.metric, metrics)
            )
        return bool(_SIGNS[self.sign](metrics[self.metric], self.bound))

    def __str__(self) -> str:
        return f"{self.metric}{self.sign}{self.bound:g}"
