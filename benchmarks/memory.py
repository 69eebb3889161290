"""Peak memory of training steps, distgrad beside PyTorch, each in a process of its own.

    python benchmarks/memory.py

``peak`` is the largest resident size of the process, ``step`` what training adds to the process
after import: parameters, gradients, optimizer state and everything saved for backward.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

JOBS = ("mlp", "gpt")


def resident_mib() -> float:
    """Return the resident size of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def library(name: str) -> Any:
    """Return distgrad or torch as the module of the same interface."""
    if name == "distgrad":
        import distgrad

        return distgrad
    import torch

    torch.set_num_threads(1)
    return torch


def mlp(lib: Any) -> tuple[Any, Any]:
    """Return a deep network and its loss: 24 layers of 512, batch 2048."""
    layers: list[Any] = []
    for _ in range(24):
        layers += [lib.nn.Linear(512, 512), lib.nn.ReLU()]
    model = lib.nn.Sequential(*layers)
    x = lib.randn(2048, 512)
    return model, lambda: model(x).square().mean()


def gpt(lib: Any) -> tuple[Any, Any]:
    """Return a transformer of 6 layers of 384 and its loss: batch 8 of 256 tokens."""
    width, heads, time, vocabulary = 384, 6, 256, 1000
    nn, functional = lib.nn, lib.nn.functional

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.fc, self.out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: Any) -> Any:
            b, t, c = x.shape
            q, k, v = self.qkv(self.ln_1(x)).view(b, t, 3, heads, c // heads).unbind(2)
            q, k, v = (y.transpose(1, 2) for y in (q, k, v))
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.proj(y.transpose(1, 2).reshape(b, t, c))
            return x + self.out(functional.gelu(self.fc(self.ln_2(x)), approximate="tanh"))

    embed, head = nn.Embedding(vocabulary, width), nn.Linear(width, vocabulary)
    model = nn.Sequential(embed, *[Block() for _ in range(6)], nn.LayerNorm(width), head)
    ids = lib.randint(0, vocabulary, (8, time + 1))

    def loss() -> Any:
        logits = model(ids[:, :-1])
        return functional.cross_entropy(logits.reshape(-1, vocabulary), ids[:, 1:].reshape(-1))

    return model, loss


def worker(name: str, job: str, steps: int) -> None:
    """Train for a few steps and print the sizes."""
    lib = library(name)
    before = resident_mib()
    lib.manual_seed(0)
    model, loss = {"mlp": mlp, "gpt": gpt}[job](lib)
    optimizer = lib.optim.AdamW(model.parameters(), lr=1e-4)
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(json.dumps({"peak": peak, "step": peak - before, "loss": float(value)}))


def main() -> None:
    """Run all as children and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--worker", nargs=2)
    args = parser.parse_args()
    if args.worker:
        worker(*args.worker, args.steps)
        return
    print(
        f"{'MiB':6}{'peak: distgrad':>16}{'torch':>8}{'step: distgrad':>17}{'torch':>8}{'ratio':>8}"
    )
    for job in JOBS:
        found = {}
        for name in ("distgrad", "torch"):
            command = [sys.executable, __file__, "--steps", str(args.steps), "--worker", name, job]
            env = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
            found[name] = json.loads(done.stdout)
        ours, theirs = found["distgrad"], found["torch"]
        print(
            f"{job:6}{ours['peak']:16.0f}{theirs['peak']:8.0f}{ours['step']:17.0f}"
            f"{theirs['step']:8.0f}{ours['step'] / theirs['step']:8.2f}"
        )


if __name__ == "__main__":
    main()
