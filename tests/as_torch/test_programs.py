"""Programs in plain PyTorch, as people write them, print the same numbers here and there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from distgrad.launch.ranks import _free_port

pytestmark = [pytest.mark.torch, pytest.mark.slow]
PROGRAMS = Path(__file__).parent / "programs"
ROOT = PROGRAMS.parents[2]
NUMBER = re.compile(r"-?\d+\.\d+(?:e[-+]?\d+)?")

# relative tolerance; sums in another order grow with every step of training
TOLERANCES = {
    "charlstm": 1e-4, "data_files": 1e-4, "dcgan": 1e-3, "gpt": 1e-3, "hogwild": 1e-5,
    "mnist": 1e-3, "moe": 1e-4, "ngram": 1e-4, "reinforce": 1e-3, "resnet_cifar": 1e-2,
    "seq2seq": 1e-3, "superres": 1e-3, "vae": 1e-4, "vit": 3e-3,
}  # fmt: skip


def run(command: list[str], name: str, *arguments: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PMI", "DISTGRAD_"))}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, f"{name}.py", *arguments],
        cwd=PROGRAMS,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def as_torch(name: str, *arguments: str) -> str:
    launcher = [sys.executable, "-m", "distgrad.launch", "--as-torch"]
    return run(launcher, name, *arguments)


def compare(ours: str, theirs: str, rtol: float) -> None:
    assert NUMBER.sub("#", ours) == NUMBER.sub("#", theirs)
    mine, wanted = (list(map(float, NUMBER.findall(text))) for text in (ours, theirs))
    assert len(wanted) >= 3
    assert mine == pytest.approx(wanted, rel=rtol, abs=2e-4)


@pytest.mark.parametrize("name", sorted(TOLERANCES))
def test_a_program_prints_what_it_prints_under_pytorch(name: str) -> None:
    pytest.importorskip("torch")
    compare(as_torch(name), run([sys.executable], name), TOLERANCES[name])


@pytest.mark.parametrize("name", ["ddp_spawn", "dist_tuto"])
def test_processes_that_a_program_starts_train_together(name: str) -> None:
    pytest.importorskip("torch")
    ours = as_torch(name, str(_free_port()))
    compare(ours, run([sys.executable], name, str(_free_port())), 1e-4)


def test_a_program_for_torchrun_runs_under_the_launcher(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    options = ["--nproc", "2", "--run-dir", str(tmp_path)]
    ours = run([sys.executable, "-m", "distgrad.launch", "--as-torch", *options], "torchrun")
    port = f"--master_port={_free_port()}"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", port]
    compare(ours, run(torchrun, "torchrun"), 1e-4)


def test_every_rank_prints(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os, torch.distributed as dist\n"
        "dist.init_process_group('gloo')\n"
        "print('rank', dist.get_rank(), os.environ['LOCAL_RANK'], os.environ['WORLD_SIZE'])\n"
    )
    options = ["--nproc", "2", "--run-dir", str(tmp_path / "run")]
    launcher = [sys.executable, "-m", "distgrad.launch", "--as-torch", *options]
    assert sorted(run(launcher, str(tmp_path / "program")).splitlines()) == [
        "rank 0 0 2",
        "rank 1 1 2",
    ]


def test_spawn_uses_the_ranks_of_the_launcher(tmp_path: Path) -> None:
    options = ["--nproc", "2", "--run-dir", str(tmp_path)]
    launcher = [sys.executable, "-m", "distgrad.launch", "--as-torch", *options]
    alone = as_torch("ddp_spawn", str(_free_port()))
    compare(run(launcher, "ddp_spawn", "1"), alone, 1e-5)
