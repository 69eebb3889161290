"""Step time of the default job's model, distgrad beside PyTorch, in one run.

    python benchmarks/step_time.py --ranks 1 2 4

Both train the same GPT from the same weights on the same batches: distgrad under ``mpirun``,
PyTorch as DistributedDataParallel over gloo; one thread per rank.  The two take turns; printed are
medians of the step time on rank 0, the ratio, and the losses, which must agree.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY, CONTEXT, WIDTH, LAYERS, HEADS = 103, 64, 64, 2, 4
GLOBAL_BATCH, MICRO_BATCH = 32, 4
LR, WARM_STEPS = 1e-3, 5


def batch(step: int, rows: slice) -> tuple[Any, Any]:
    """Return random inputs and targets of these rows of the global batch."""
    ids = np.random.default_rng(step).integers(0, VOCABULARY, (GLOBAL_BATCH, CONTEXT + 1))[rows]
    return np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:])


def my_rows(rank: int, size: int) -> list[slice]:
    """Return this rank's micro-batches."""
    from distgrad.launch.jobs import micro_batches

    return micro_batches(GLOBAL_BATCH, MICRO_BATCH, size)[rank]


# ---------------------------------------------------------------------- distgrad
def distgrad_worker(steps: int, weights: Path) -> dict[str, Any]:
    """Train with distgrad on this rank."""
    import distgrad as dg
    from distgrad import distributed as dist
    from distgrad.launch.jobs.textgpt import GPT

    dist.init_process_group()
    rank, size = dist.get_rank(), dist.get_world_size()
    model = GPT(VOCABULARY, CONTEXT, WIDTH, LAYERS, HEADS)
    loaded = np.load(weights)
    model.load_state_dict({k: dg.from_numpy(loaded[k]) for k in loaded.files})
    ddp = dg.nn.parallel.DistributedDataParallel(model, reduction="sum", bucket_cap_mb=0.125)
    optimizer = dg.optim.AdamW(model.parameters(), lr=LR)
    cross_entropy = dg.nn.functional.cross_entropy

    def step(number: int) -> float:
        optimizer.zero_grad()
        mine, total = my_rows(rank, size), 0.0
        for i, rows in enumerate(mine):
            x, y = (dg.from_numpy(a) for a in batch(number, rows))
            ddp.reducer.enabled = i == len(mine) - 1
            loss = cross_entropy(ddp(x).view(-1, VOCABULARY), y.view(-1), reduction="sum")
            ddp.add_count(y.numel())
            loss.backward()
            total += loss.item()
        dg.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return total

    sums = np.array([0.0])
    times, losses = timed_steps(step, steps)
    sums = np.array(losses)
    dist.get_group().all_reduce(sums)
    return {"ms": times, "losses": (sums / (GLOBAL_BATCH * CONTEXT)).tolist(), "rank": rank}


# ---------------------------------------------------------------------- PyTorch
def torch_model() -> Any:
    """Return the same GPT in PyTorch, with the same names of parameters."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.qkv = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
            self.proj, self.ln_2 = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
            self.fc, self.out = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

        def forward(self, x: Any) -> Any:
            b, t, c = x.shape
            qkv = self.qkv(self.ln_1(x)).view(b, t, 3, HEADS, c // HEADS)
            q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.proj(y.transpose(1, 2).reshape(b, t, c))
            return x + self.out(F.gelu(self.fc(self.ln_2(x)), approximate="tanh"))

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wte, self.wpe = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
            self.blocks = nn.ModuleList([Block() for _ in range(LAYERS)])
            self.ln_f, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY)

        def forward(self, ids: Any) -> Any:
            x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
            for block in self.blocks:
                x = block(x)
            return self.head(self.ln_f(x))

    return GPT()


def torch_worker(steps: int, weights: Path) -> dict[str, Any]:
    """Train with PyTorch on this rank."""
    import torch
    import torch.distributed as dist
    from torch.nn import functional as F

    torch.set_num_threads(1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    model = torch_model()
    loaded = np.load(weights)
    model.load_state_dict({k: torch.from_numpy(loaded[k]) for k in loaded.files})
    ddp = model
    if size > 1:
        dist.init_process_group("gloo")
        ddp = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    tokens = GLOBAL_BATCH * CONTEXT

    def step(number: int) -> float:
        optimizer.zero_grad()
        mine, total = my_rows(rank, size), 0.0
        for i, rows in enumerate(mine):
            x, y = (torch.from_numpy(a) for a in batch(number, rows))
            if size > 1:
                ddp.require_backward_grad_sync = i == len(mine) - 1
            loss = F.cross_entropy(ddp(x).view(-1, VOCABULARY), y.view(-1), reduction="sum")
            (loss * (size / tokens)).backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return total

    times, losses = timed_steps(step, steps)
    sums = torch.tensor(losses, dtype=torch.float64)
    if size > 1:
        dist.all_reduce(sums)
    return {"ms": times, "losses": (sums / tokens).tolist(), "rank": rank}


def timed_steps(step: Any, steps: int) -> tuple[list[float], list[float]]:
    """Return milliseconds and losses of each step after the first few."""
    times, losses = [], []
    for number in range(steps):
        begin = time.perf_counter()
        losses.append(step(number))
        if number >= WARM_STEPS:
            times.append((time.perf_counter() - begin) * 1e3)
    return times, losses


# ---------------------------------------------------------------------- taking turns
def run(library: str, ranks: int, steps: int, weights: Path, env: dict[str, str]) -> dict[str, Any]:
    """Return what rank 0 of one run of ``library`` reports."""
    out = Path(tempfile.mkstemp(suffix=".json")[1])
    me = [sys.executable, __file__, "--worker", library, "--steps", str(steps),
          "--weights", str(weights), "--out", str(out)]  # fmt: skip
    if library == "distgrad":
        mpirun = shutil.which("mpirun", path=os.path.dirname(sys.executable)) or "mpirun"
        command = [mpirun, "-n", str(ranks), *me] if ranks > 1 else me
        subprocess.run(command, env=env, check=True)
    else:
        port = str(20000 + os.getpid() % 20000)
        many = [
            subprocess.Popen(me, env=env | {
                "RANK": str(r), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(r),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            })
            for r in range(ranks)
        ]  # fmt: skip
        if any([p.wait() for p in many]):
            raise SystemExit("a PyTorch rank failed")
    result: dict[str, Any] = json.loads(out.read_text())
    out.unlink()
    return result


def compare(ranks: int, steps: int, turns: int, weights: Path, native: bool) -> None:
    """Let both take turns and print one line."""
    env = os.environ | {f"{n}_NUM_THREADS": "1" for n in ("OMP", "OPENBLAS", "MKL")}
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), env.get("PYTHONPATH", "")])
    if native:
        env.pop("OPENBLAS_CORETYPE", None)
    results: dict[str, list[dict[str, Any]]] = {"distgrad": [], "torch": []}
    for _ in range(turns):
        for library, runs in results.items():
            runs.append(run(library, ranks, steps, weights, env))
    medians = {
        name: statistics.median(t for r in runs for t in r["ms"]) for name, runs in results.items()
    }
    ours, theirs = (np.array(runs[0]["losses"]) for runs in results.values())
    worst = float(np.max(np.abs(ours - theirs) / theirs))
    print(
        f"{ranks:5d}  {'native' if native else 'as found':9}{medians['distgrad']:10.1f}"
        f"{medians['torch']:10.1f}{medians['distgrad'] / medians['torch']:12.2f}"
        f"{worst:14.1e}", flush=True,
    )  # fmt: skip


def main() -> None:
    """Run as a worker, or compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=45)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--native", action="store_true", help="also without OPENBLAS_CORETYPE")
    parser.add_argument("--worker", choices=["distgrad", "torch"])
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.worker:
        work = distgrad_worker if args.worker == "distgrad" else torch_worker
        result = work(args.steps, args.weights)
        if result["rank"] == 0:
            args.out.write_text(json.dumps(result))
        return
    import torch

    torch.manual_seed(0)
    weights = Path(tempfile.mkdtemp()) / "weights.npz"
    np.savez(weights, **{k: v.numpy() for k, v in torch_model().state_dict().items()})
    print(f"step of a 117,479-parameter GPT, global batch 32 = 8 micro-batches; ms, torch "
          f"{torch.__version__}; ratio = distgrad / torch")  # fmt: skip
    print(f"{'ranks':>5}  {'BLAS':9}{'distgrad':>10}{'torch':>10}{'ratio':>12}{'loss differs':>14}")
    for native in (False, True) if args.native else (False,):
        for ranks in args.ranks:
            compare(ranks, args.steps, args.turns, weights, native)


if __name__ == "__main__":
    main()
