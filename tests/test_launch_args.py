"""The command line, the TOML file, the environment and which of them wins."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field

import pytest

from distgrad.errors import ConfigError
from distgrad.launch import args
from distgrad.launch.jobs import JOBS, load, micro_batches


@dataclass(frozen=True)
class Model:
    width: int = 64
    dropout: float = 0.0
    tied: bool = True


@dataclass(frozen=True)
class Config:
    steps: int = 600
    lr: float = 4e-3
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float | None = 1.0
    model: Model = field(default_factory=Model)


def resolved(*argv: str) -> args.Resolved:
    return args.resolve(args.parse(list(argv)), Config())


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "train.toml"
    path.write_text("steps = 30\nlr = 0.5\n[model]\nwidth = 8\n")
    return str(path)


def test_without_words_the_job_runs_with_its_defaults():
    assert args.parse([]) == args.Command("run", args.Target(), None, ())
    assert resolved().config == Config()


def test_words_behind_the_script_belong_to_the_script():
    command = args.parse(["--run-dir", "x", "train.py", "--steps", "3", "-m"])
    assert command.target == args.Target("script", "train.py", ("--steps", "3", "-m"))
    assert command.given == (("run_dir", "x", "--run-dir"),)


def test_a_module_takes_all_words_behind_it():
    assert args.parse(["-n4", "-m", "pkg.mod", "-n"]).target == args.Target(
        "module", "pkg.mod", ("-n",)
    )


@pytest.mark.parametrize(
    "words",
    [
        ["-n", "4"],
        ["-n4"],
        ["--nproc=4"],
        ["--nproc", "4"],
        ["--nproc_per_node", "4"],
        ["-np", "4"],
    ],
)
def test_every_spelling_of_the_number_of_ranks_is_read(words):
    assert resolved(*words)["nproc"] == 4


def test_dashes_and_underscores_are_the_same():
    assert resolved("--run_dir", "a")["run_dir"] == resolved("--run-dir=a")["run_dir"] == "a"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--stpes", "3"], "--stpes: unknown option; did you mean --steps?"),
        (["--steps"], "--steps: needs a value"),
        (["--steps", "--lr", "1"], "--steps: needs a value"),
        (["--steps", "many"], "--steps: 'many' is not a whole number"),
        (["--steps", "0"], "--steps: '0' is below 1"),
        (["--lr", "nan"], "--lr: 'nan' is below 0"),
        (["--set", "steps"], "--set steps: has no value"),
        (["--set", "model.widht=3"], "did you mean model.width?"),
        (["--set", "model.width=big"], "--set model.width: 'big' is not of type int"),
        (["--set", "betas=0.9"], "has 1 values, not 2"),
        (["--set", "model.tied=perhaps"], "'perhaps' is not of type bool"),
        (["--seed", "1"], "--seed: unknown setting"),  # this job has none
        (["--expect", "loss"], "--expect 'loss': write a metric"),
        (["--profile-steps", "9:3"], "FIRST:STOP"),
        (["-m"], "-m: needs the name of a module"),
        (["--config", "/nowhere.toml"], "--config /nowhere.toml: cannot be read"),
    ],
)
def test_a_wrong_word_is_named_with_its_cure(words, message):
    with pytest.raises(ConfigError) as error:
        resolved(*words)
    assert message in str(error.value)


def test_the_settings_of_a_job_do_not_reach_a_script():
    with pytest.raises(ConfigError, match=r"--steps: configures a built-in job"):
        args.resolve(args.parse(["--steps", "3", "train.py"]), None)


def test_command_line_beats_environment_beats_file_beats_default(file, monkeypatch):
    def steps(*argv: str) -> args.Setting:
        return resolved(*argv).settings["steps"]

    assert steps() == args.Setting(600, "default")
    assert steps("--config", file) == args.Setting(30, file)
    monkeypatch.setenv("DISTGRAD_STEPS", "20")
    assert steps("--config", file) == args.Setting(20, "DISTGRAD_STEPS")
    assert steps("--config", file, "--steps", "10") == args.Setting(10, "--steps")
    assert steps("--config", file, "--set", "steps=9") == args.Setting(9, "--set steps")


def test_tables_of_the_file_reach_nested_fields(file):
    config = resolved("--config", file, "--set", "model.tied=no", "--set", "clip=none").config
    assert config == Config(30, 0.5, clip=None, model=Model(width=8, tied=False))


def test_an_unknown_key_of_the_file_is_an_error(tmp_path):
    path = tmp_path / "train.toml"
    path.write_text("[model]\nwidht = 8\n")
    with pytest.raises(ConfigError, match=r"'model\.widht'.*did you mean model\.width\?"):
        resolved("--config", str(path))


def test_a_file_that_is_no_toml_is_an_error(tmp_path):
    path = tmp_path / "train.toml"
    path.write_text("steps 3")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        resolved("--config", str(path))


def test_printed_settings_are_toml_that_gives_the_same_settings(tmp_path):
    words = ["--steps", "7", "--set", "betas=0.8,0.99", "--expect", "a<1", "--expect", "b>2"]
    first = resolved(*words, "--profile-steps", "2:5")
    path = tmp_path / "again.toml"
    path.write_text(args.as_toml(first))
    again = resolved("--config", str(path))
    assert again.config == first.config
    assert again["expect"] == ("a<1", "b>2")
    assert again["profile_steps"] == (2, 5)
    assert tomllib.loads(path.read_text())["steps"] == 7


def test_help_names_every_option():
    text = args.help_text()
    assert all(f"--{name.replace('_', '-')}" in text for name in args.OPTIONS)


def test_the_name_of_the_job_follows_the_same_order(tmp_path, monkeypatch):
    path = tmp_path / "job.toml"
    path.write_text('job = "digits"')
    words = ["--config", str(path)]
    assert args.job_name(args.parse([])) == "textgpt"
    assert args.job_name(args.parse(words)) == "digits"
    monkeypatch.setenv("DISTGRAD_JOB", "a.b")
    assert args.job_name(args.parse(words)) == "a.b"
    assert args.job_name(args.parse([*words, "--job", "c.d"])) == "c.d"


@pytest.mark.parametrize(
    ("text", "value", "met"),
    [("x<2", 1.9, True), ("x<2", 2.0, False), ("x<=2", 2.0, True), ("x>=2", 1.9, False)],
)
def test_an_expectation_compares(text, value, met):
    assert args.Expectation.parse(text).met({"x": value}) is met


def test_an_expectation_of_nan_is_missed():
    assert not args.Expectation.parse("x<2").met({"x": float("nan")})


def test_an_expectation_names_the_metrics_there_are():
    with pytest.raises(ConfigError, match=r"no metric 'val_los'.*did you mean val_loss\?"):
        args.Expectation.parse("val_los<2").met({"val_loss": 1.0})


def test_an_unknown_job_is_an_error():
    with pytest.raises(ConfigError, match=r"--job textgtp: .*did you mean textgpt\?"):
        load("textgtp")
    with pytest.raises(ConfigError, match="no module 'nowhere'"):
        load("nowhere.job")
    with pytest.raises(ConfigError, match="has no DEFAULTS"):
        load("json.decoder")
    assert set(JOBS) == {"textgpt", "digits", "allreduce-bench", "scaling"}


def test_the_global_batch_is_cut_into_the_same_micro_batches_for_any_number_of_ranks():
    assert [[len(share) for share in micro_batches(32, 4, n)] for n in (1, 2, 3, 4)] == [
        [8], [4, 4], [3, 3, 2], [2, 2, 2, 2],
    ]  # fmt: skip
    for world in (1, 2, 3, 5, 8):
        rows = [row for share in micro_batches(32, 4, world) for row in share]
        assert rows == [slice(i, i + 4) for i in range(0, 32, 4)]


@pytest.mark.parametrize(
    ("batch", "micro", "world", "hint"),
    [
        (30, 4, 3, "--global-batch 28 or 32"),
        (33, 4, 3, "or --micro-batch 3"),
        (8, 4, 4, "--micro-batch 2 or less, or --global-batch 16"),
        (2, 4, 1, "--global-batch 4, or --micro-batch 2"),
    ],
)
def test_a_batch_that_does_not_divide_is_an_error_with_the_next_that_do(batch, micro, world, hint):
    with pytest.raises(ConfigError) as error:
        micro_batches(batch, micro, world)
    assert hint in str(error.value)
