"""Training steps on one GPU: distgrad, launched op by op and captured, beside PyTorch.

    python benchmarks/gpu.py                          # everything, on a machine with a GPU
    python benchmarks/gpu.py --works gpt2 --repeats 5
    python benchmarks/gpu.py --tiny --device cpu      # does it run at all; figures mean nothing

Each row is a process of its own, in turns: its peak memory and clocks are nobody else's.  Models
are written once: both libraries have the same names.  ``gpt2`` (124 M) and ``resnet50`` train in
bfloat16 under autocast, ``mlp`` in float32 with TF32 products.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIDES = ("distgrad", "distgrad captured", "torch eager", "torch compile")
WORKS = ("mlp", "resnet50", "gpt2", "overhead", "ranks")
ROOT = Path(__file__).parents[1]


# ---------------------------------------------------------------------- the models, for both
def mlp(lib: Any, tiny: bool) -> Any:
    """784-512-512-10, as the smallest thing people train."""
    nn, width = lib.nn, 16 if tiny else 512
    return nn.Sequential(
        nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )


def gpt2(lib: Any, tiny: bool) -> Any:
    """GPT-2 124 M without dropout."""
    nn = lib.nn
    functional = importlib.import_module(f"{lib.__name__}.nn.functional")
    width, heads, layers, context, words = (
        (32, 2, 2, 16, 64) if tiny else (768, 12, 12, 1024, 50304)
    )

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.mlp = nn.Sequential(
                nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width)
            )

        def forward(self, x: Any) -> Any:
            b, t, c = x.shape
            q, k, v = self.qkv(self.ln_1(x)).view(b, t, 3, heads, c // heads).unbind(2)
            y = functional.scaled_dot_product_attention(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
            )
            x = x + self.out(y.transpose(1, 2).reshape(b, t, c))
            return x + self.mlp(self.ln_2(x))

    class GPT2(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wte, self.wpe = nn.Embedding(words, width), nn.Embedding(context, width)
            self.h = nn.Sequential(*[Block() for _ in range(layers)])
            self.ln_f, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)
            self.head.weight = self.wte.weight
            self.register_buffer("places", lib.arange(context))

        def forward(self, tokens: Any) -> Any:
            x = self.wte(tokens) + self.wpe(self.places[: tokens.shape[1]])
            return self.head(self.ln_f(self.h(x)))

    return GPT2()


def resnet50(lib: Any, tiny: bool) -> Any:
    """ResNet-50, or a few of its blocks."""
    nn = lib.nn

    class Bottleneck(nn.Module):
        def __init__(self, inputs: int, width: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
            self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
            self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
            self.bn3, self.relu = nn.BatchNorm2d(4 * width), nn.ReLU(inplace=True)
            self.down = None
            if stride != 1 or inputs != 4 * width:
                self.down = nn.Sequential(
                    nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
                )

        def forward(self, x: Any) -> Any:
            short = x if self.down is None else self.down(x)
            x = self.relu(self.bn1(self.conv1(x)))
            x = self.relu(self.bn2(self.conv2(x)))
            return self.relu(self.bn3(self.conv3(x)) + short)

    first, depths = (8, (1, 1)) if tiny else (64, (3, 4, 6, 3))
    layers = [
        nn.Conv2d(3, first, 7, 2, 3, bias=False), nn.BatchNorm2d(first), nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]  # fmt: skip
    inputs = first
    for i, depth in enumerate(depths):
        for j in range(depth):
            layers.append(Bottleneck(inputs, first << i, 2 if i and not j else 1))
            inputs = 4 * (first << i)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


# ---------------------------------------------------------------------- one side
def work_of(name: str, lib: Any, device: str, tiny: bool) -> tuple[Any, Any, Any, int, bool]:
    """Return model, inputs, targets, units of work in a step, and whether it is in bfloat16."""
    lib.manual_seed(0)
    if name == "mlp":
        model, x = mlp(lib, tiny), lib.randn(128, 784)
        return model.to(device), x.to(device), lib.randint(0, 10, (128,)).to(device), 128, False
    if name == "resnet50":
        batch, side = (2, 32) if tiny else (128, 224)
        model, x = resnet50(lib, tiny).to(device), lib.randn(batch, 3, side, side).to(device)
        model = model.to(memory_format=lib.channels_last)
        x = x.to(memory_format=lib.channels_last)
        return model, x, lib.randint(0, 1000, (batch,)).to(device), batch, True
    batch, context, words = (2, 16, 64) if tiny else (16, 1024, 50257)
    tokens = lib.randint(0, words, (batch, context + 1)).to(device)
    model = gpt2(lib, tiny).to(device)
    return model, tokens[:, :-1], tokens[:, 1:].reshape(-1), batch * context, True


def step_of(name: str, side: str, lib: Any, device: str, tiny: bool) -> tuple[Any, int]:
    """Return a function that trains one step, and the units of work in it."""
    functional = importlib.import_module(f"{lib.__name__}.nn.functional")
    model, x, y, units, narrow = work_of(name, lib, device, tiny)
    options = {"fused": True} if lib.__name__ == "torch" and device == "cuda" else {}
    if name == "gpt2":
        optimizer = lib.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.1, **options)
    else:
        optimizer = lib.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, **options)
    run = lib.compile(model) if side == "torch compile" else model

    def step() -> Any:
        optimizer.zero_grad(set_to_none=True)
        with lib.autocast(device, dtype=lib.bfloat16, enabled=narrow):
            out = run(x)
            loss = functional.cross_entropy(out.reshape(-1, out.shape[-1]), y)
        loss.backward()
        optimizer.step()
        return loss

    return lib.cuda.capture_step(step) if side == "distgrad captured" else step, units


def measure(name: str, side: str, device: str, tiny: bool, seconds: float) -> dict[str, Any]:
    """Return step time, rate, peak memory and the loss after the last step."""
    lib = importlib.import_module("torch" if side.startswith("torch") else "distgrad")
    lib.set_float32_matmul_precision("high")
    wait: Callable[[], None] = lib.cuda.synchronize if device == "cuda" else lambda: None
    if name == "overhead":
        return overhead(lib, device, wait)
    step, units = step_of(name, side, lib, device, tiny)
    for _ in range(5):
        step()
    wait()
    if device == "cuda":
        lib.cuda.reset_peak_memory_stats()
    times: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or len(times) < 5:
        start = time.perf_counter()
        for _ in range(10):
            loss = step()
        wait()
        times.append((time.perf_counter() - start) / 10)
    each = statistics.median(times)
    peak = lib.cuda.max_memory_allocated() if device == "cuda" else 0
    found = {"step_us": each * 1e6, "rate": units / each, "peak_mib": peak / 2**20}
    if not math.isfinite(float(loss)):
        raise SystemExit(f"{name}, {side}: the loss is {float(loss)}")
    return found | {"loss": float(loss)}


def overhead(lib: Any, device: str, wait: Callable[[], None]) -> dict[str, Any]:
    """Return what the host spends on one small operation: without, and with gradients."""
    count, found = 2000, {}
    for name, wanted in (("no_grad_us", False), ("record_us", True)):
        x = lib.ones(8, 8, device=device, requires_grad=wanted)
        times = []
        for _ in range(7):
            y, start = x, time.perf_counter()
            for _ in range(count):
                y = y * 1.5
            times.append((time.perf_counter() - start) / count)
            wait()
            del y
        found[name] = statistics.median(times) * 1e6
    return found


def ranks_on_one_gpu(device: str, tiny: bool) -> dict[str, Any]:
    """Return the step time of data parallelism; run under mpirun, all ranks on GPU 0."""
    import distgrad as dg

    group = dg.distributed.init_process_group()
    place = "cuda:0" if device == "cuda" else device
    width = 32 if tiny else 4096
    dg.manual_seed(0)
    model = dg.nn.Sequential(*[dg.nn.Linear(width, width) for _ in range(4)]).to(place)
    parallel = dg.nn.parallel.DistributedDataParallel(model)
    optimizer = dg.optim.SGD(model.parameters(), lr=1e-4)
    x = dg.randn(64, width).to(place)
    wait: Callable[[], None] = dg.cuda.synchronize if device == "cuda" else lambda: None
    times = []
    for _ in range(12):
        group.barrier()
        start = time.perf_counter()
        optimizer.zero_grad()
        parallel(x).square().mean().backward()
        optimizer.step()
        wait()
        times.append(time.perf_counter() - start)
    return {"rank": group.rank, "step_us": statistics.median(times[2:]) * 1e6}


# ---------------------------------------------------------------------- all of them
def child(words: list[str]) -> dict[str, Any]:
    """Return what a process of its own has measured, or why it could not."""
    environ = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(words, capture_output=True, text=True, env=environ, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1][:200]}
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return next((row for row in rows if row.get("rank", 0) == 0), rows[0])


def compare(name: str, options: argparse.Namespace) -> None:
    """Measure one workload on all sides, in turns, and print the medians."""
    sides = [s for s in options.sides if name != "overhead" or s in ("distgrad", "torch eager")]
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    flags = ["--device", options.device, *(["--tiny"] if options.tiny else [])]
    for _ in range(options.repeats):
        for side in sides:
            words = [sys.executable, __file__, "--one", name, side, *flags]
            runs[side].append(child(words))
    print(f"\n{name}")
    base: dict[str, float] = {}
    for side in sides:
        failed = [run["error"] for run in runs[side] if "error" in run]
        if failed:
            print(f"  {side:<18} failed: {failed[0]}")
            continue
        row = {k: statistics.median(run[k] for run in runs[side]) for k in runs[side][0]}
        if side == "torch eager":
            base = row
        print(f"  {side:<18} " + "  ".join(f"{k} {v:,.4g}" for k, v in row.items()))
    ours = runs.get("distgrad captured") or runs["distgrad"]
    if base and "step_us" in base and all("error" not in run for run in ours):
        mine = statistics.median(run["step_us"] for run in ours)
        print(f"  distgrad captured is {base['step_us'] / mine:.2f} x as fast as torch eager")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="small models: a trial of the program")
    parser.add_argument("--one", nargs=2, metavar=("WORK", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, side = options.one
        if name == "ranks":
            found = ranks_on_one_gpu(options.device, options.tiny)
        else:
            seconds = 0.1 if options.tiny else options.seconds
            found = measure(name, side, options.device, options.tiny, seconds)
        print(json.dumps(found), flush=True)
        return
    for name in (work for work in options.works if work != "ranks"):
        compare(name, options)
    if "ranks" in options.works:
        print("\nranks on one GPU (4 layers of 4096 x 4096, float32)")
        for ranks in (1, 2, 3, 4):
            words = ["mpirun", "-n", str(ranks), sys.executable, __file__, "--one", "ranks", "-"]
            flags = ["--device", options.device, *(["--tiny"] if options.tiny else [])]
            found = child(words + flags)
            print(f"  {ranks} ranks  {found.get('error') or round(found['step_us'])} us a step")


if __name__ == "__main__":
    main()
