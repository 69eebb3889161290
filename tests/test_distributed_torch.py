"""The same data on two ranks of PyTorch's DistributedDataParallel (gloo) and of this one."""

import os
import socket
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest

import distgrad as dg
from distgrad.distributed.optim import ZeroRedundancyOptimizer
from distgrad.distributed.threads import run_ranks
from distgrad.nn.parallel import DistributedDataParallel
from distgrad.nn.utils import clip_grad_norm_

pytest.importorskip("torch")
pytestmark = pytest.mark.torch

RANKS, STEPS, MICRO, CLIP = 2, 6, 2, 0.5
RULES = {"SGD": {"lr": 0.1, "momentum": 0.9}, "AdamW": {"lr": 0.01}}

# What both sides run: the names are the same, and so is the program.
PROGRAM = '''
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(6, 20), nn.LayerNorm(20)
        self.left, self.right, self.never = nn.Linear(20, 3), nn.Linear(20, 3), nn.Linear(20, 3)
        self.scale = nn.Parameter(lib.ones(()))

    def forward(self, x, branch):
        x = self.norm(lib.tanh(self.first(x)))
        return getattr(self, branch)(x) * self.scale


def train(lib, net, ddp, optimizer, clip, tensor, rank):
    """Accumulates two batches; a branch is used on both ranks, on one, or on none."""
    for step in range(STEPS):
        for micro in range(MICRO):
            rng = np.random.default_rng([step, micro, rank])
            x = tensor(rng.standard_normal((5, 6)).astype(np.float32))
            y = tensor(rng.standard_normal((5, 3)).astype(np.float32))
            branch = "left" if step in (0, 3) or rank == 0 else "right"
            with nullcontext() if micro == MICRO - 1 else ddp.no_sync():
                (((ddp(x, branch) - y) ** 2).mean() / MICRO).backward()
        assert net.never.weight.grad is None
        assert (net.right.weight.grad is None) == (step in (0, 3))
        clip(net.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
'''

OTHER = f"""
import gc
import sys
from contextlib import nullcontext
import numpy as np
import torch as lib
from torch import nn

lib.set_num_threads(1)
STEPS, MICRO, CLIP = {STEPS}, {MICRO}, {CLIP}
{PROGRAM}
rank, start, out = int(sys.argv[1]), *sys.argv[2:]
lib.distributed.init_process_group("gloo", rank=rank, world_size={RANKS})
for rule, options in {RULES}.items():
    net = Net()
    with np.load(start) as values, lib.no_grad():
        for name, p in net.named_parameters():
            p.copy_(lib.from_numpy(values[name]))
    ddp = nn.parallel.DistributedDataParallel(net, find_unused_parameters=True, bucket_cap_mb=1e-3)
    optimizer = getattr(lib.optim, rule)(net.parameters(), **options)
    train(lib, net, ddp, optimizer, nn.utils.clip_grad_norm_, lib.from_numpy, rank)
    weights = {{n: p.detach().numpy() for n, p in net.named_parameters()}}
    np.savez(f"{{out}}-{{rule}}{{rank}}.npz", **weights)
del net, ddp, optimizer
gc.collect()  # PyTorch 2.13 can abort when a DDP model outlives its group
lib.distributed.destroy_process_group()
"""


def parts():
    """Return the class and the loop of the program, on this package."""
    names = {"lib": dg, "nn": dg.nn, "np": np, "nullcontext": nullcontext}
    names |= {"STEPS": STEPS, "MICRO": MICRO, "CLIP": CLIP}
    exec(PROGRAM, names)
    return names["Net"], names["train"]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The file with the values to begin with."""
    path = tmp_path_factory.mktemp("torch") / "start.npz"
    rng = np.random.default_rng(0)
    net = parts()[0]()
    np.savez(
        path,
        **{
            n: np.asarray(rng.standard_normal(tuple(p.shape)) / 3, np.float32)
            for n, p in net.named_parameters()
        },
    )
    return path


@pytest.fixture(scope="module")
def theirs(start):
    """The weights of both ranks of PyTorch, by rule."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environ = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    out = start.with_name("end")
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", OTHER, str(rank), str(start), str(out)], env=environ
        )
        for rank in range(RANKS)
    ]
    try:
        assert [job.wait(240) for job in jobs] == [0] * RANKS
    finally:
        for job in jobs:
            job.kill()
    return {
        rule: [dict(np.load(f"{out}-{rule}{rank}.npz")) for rank in range(RANKS)] for rule in RULES
    }


def own_weights(start, rule, zero, determinism):
    kind, train = parts()

    def body(group):
        net = kind()
        with np.load(start) as values:
            for name, p in net.named_parameters():
                p.data.copy_(dg.from_numpy(values[name]))
        ddp = DistributedDataParallel(
            net, process_group=group, bucket_cap_mb=1e-3, determinism=determinism
        )
        made, options = getattr(dg.optim, rule), RULES[rule]
        optimizer = (
            ZeroRedundancyOptimizer(net.parameters(), made, **options)
            if zero
            else made(net.parameters(), **options)
        )
        train(dg, net, ddp, optimizer, clip_grad_norm_, dg.from_numpy, group.rank)
        return {n: p.numpy(force=True).copy() for n, p in net.named_parameters()}

    return run_ranks(RANKS, body)


@pytest.mark.parametrize("rule", RULES)
def test_the_weights_are_those_of_pytorch(start, theirs, rule):
    before = dict(np.load(start))
    for zero, determinism in ((0, "off"), (0, "run"), (0, "world"), (1, "run")):
        for rank, ours in enumerate(own_weights(start, rule, zero, determinism)):
            for name, want in theirs[rule][rank].items():
                np.testing.assert_allclose(ours[name], want, 2e-5, 2e-5, err_msg=name)
    moved = [n for n in before if np.abs(theirs[rule][0][n] - before[n]).max() > 1e-3]
    assert set(before) - set(moved) == {"never.weight", "never.bias"}
