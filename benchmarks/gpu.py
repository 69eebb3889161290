"""Training steps on one GPU: distgrad, launched op by op and captured, beside PyTorch.

    python benchmarks/gpu.py                          # everything, on a machine with a GPU
    python benchmarks/gpu.py --works gpt2 --repeats 5 --out gpt2.jsonl
    python benchmarks/gpu.py --tiny --device cpu      # does it run at all; figures mean nothing

Each row is a process of its own, in turns: its peak memory and clocks are nobody else's, and one
that fails or takes too long is noted and ends nothing else.  The file named by ``--out`` gets a
line of JSON for each as soon as it is there.  Models are written once: both libraries have the
same names.  ``gpt2`` (124 M) and ``resnet50`` train in bfloat16 under autocast, ``mlp`` in float32
with TF32 products; ``ceilings`` are a copy and matrix products, ``kernels`` single functions.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIDES = ("distgrad", "distgrad captured", "torch eager", "torch compile")
WORKS = ("ceilings", "mlp", "gpt2", "resnet50", "kernels", "overhead", "ranks")
TWO_SIDED = ("ceilings", "kernels", "overhead")  # not of whole steps
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
            loss = functional.cross_entropy(run(x).flatten(0, -2), y)  # nobody holds the logits
        loss.backward()
        optimizer.step()
        return loss

    return lib.cuda.capture_step(step) if side == "distgrad captured" else step, units


def measure(name: str, side: str, device: str, tiny: bool, seconds: float) -> dict[str, Any]:
    """Return step time, rate, peak memory and the loss after the last step."""
    lib = importlib.import_module("torch" if side.startswith("torch") else "distgrad")
    lib.set_float32_matmul_precision("high")
    wait: Callable[[], None] = lib.cuda.synchronize if device == "cuda" else lambda: None
    if name in TWO_SIDED:
        single = {"ceilings": ceilings, "kernels": kernels, "overhead": overhead}[name]
        return single(lib, device, tiny, wait)
    step, units = step_of(name, side, lib, device, tiny)
    began = time.perf_counter()
    for _ in range(5):
        step()
    wait()
    found = {"first_s": time.perf_counter() - began}
    times: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or len(times) < 5:
        start = time.perf_counter()
        for _ in range(10):
            loss = step()
        wait()
        times.append((time.perf_counter() - start) / 10)
    each = statistics.median(times)
    found |= {"step_us": each * 1e6, "rate": units / each, "loss": float(loss)}
    if device == "cuda":  # counting memory takes time, so it begins here
        lib.cuda.reset_peak_memory_stats()
        for _ in range(2):
            step()
        found["peak_mib"] = lib.cuda.max_memory_allocated() / 2**20
    if not math.isfinite(found["loss"]):
        raise SystemExit(f"{name}, {side}: the loss is {found['loss']}")
    return found


def timed(function: Callable[[], Any], wait: Callable[[], None], count: int = 20) -> float:
    """Return the seconds that a call takes, the median of some rounds."""
    for _ in range(3):
        function()
    wait()
    times = []
    for _ in range(7):
        start = time.perf_counter()
        for _ in range(count):
            function()
        wait()
        times.append((time.perf_counter() - start) / count)
    return statistics.median(times)


def copies(x: Any, wait: Callable[[], None]) -> float:
    """Return the TB/s of copies of ``x``, read and written."""
    y = x.clone()
    return 2 * 4 * x.numel() / timed(lambda: y.copy_(x), wait) / 1e12


def ceilings(lib: Any, device: str, tiny: bool, wait: Callable[[], None]) -> dict[str, Any]:
    """Return what copies and matrix products reach: TB/s, read and written, and TFLOP/s."""
    found = {"copy_tbs": copies(lib.zeros(1 << (16 if tiny else 28)).to(device), wait)}
    shapes = [
        ("square", 8192, 8192, 8192), ("mlp", 16384, 768, 3072), ("head", 16384, 768, 50304),
    ]  # fmt: skip
    for name, m, k, n in shapes:
        m, k, n = (v // 64 for v in (m, k, n)) if tiny else (m, k, n)
        for kind in ("bfloat16", "float32"):
            a, b = (lib.randn(*size).to(device, getattr(lib, kind)) for size in ((m, k), (n, k)))
            seconds = timed(lambda a=a, b=b: a @ b.T, wait, 5)
            found[f"{name}_{'tf32' if kind == 'float32' else 'bf16'}_tflops"] = (
                2 * m * k * n / seconds / 1e12
            )
    return found


def kernels(lib: Any, device: str, tiny: bool, wait: Callable[[], None]) -> dict[str, Any]:
    """Return the TB/s of functions that memory bounds, in bfloat16: of what they must move."""
    functional = importlib.import_module(f"{lib.__name__}.nn.functional")
    rows, width, words = (64, 64, 64) if tiny else (16384, 3072, 50304)
    x = lib.randn(rows, width).to(device, lib.bfloat16).requires_grad_()
    weight, bias = (lib.ones(width).to(device, lib.bfloat16).requires_grad_() for _ in "wb")
    logits = lib.randn(rows // 4, words).to(device, lib.bfloat16).requires_grad_()
    target = lib.randint(0, words, (rows // 4,)).to(device)
    table = lib.randn(words, width).to(device, lib.bfloat16).requires_grad_()
    index = lib.randint(0, words, (rows,)).to(device)
    one, affine, size = x.numel() * 2, (x, weight, bias), (width,)
    cases = {
        "layer_norm": (lambda: functional.layer_norm(x, size, weight, bias), affine, 2 * one,
                       3 * one),
        "gelu": (lambda: functional.gelu(x), (x,), 2 * one, 3 * one),
        "dropout": (lambda: functional.dropout(x, 0.1), (x,), 2 * one, 2 * one),
        "softmax": (lambda: functional.softmax(x, -1), (x,), 2 * one, 3 * one),
        "cross_entropy": (
            lambda: functional.cross_entropy(logits, target), (logits,), logits.numel() * 2,
            logits.numel() * 4,
        ),
        "embedding": (lambda: functional.embedding(index, table), (table,), 2 * one,
                      one + table.numel() * 2),
    }  # fmt: skip
    found: dict[str, Any] = {}
    for name, (function, inputs, forward, backward) in cases.items():
        out = function()
        g = lib.ones_like(out)

        def back(out: Any = out, inputs: Any = inputs, g: Any = g) -> None:
            lib.autograd.grad(out, inputs, g, retain_graph=True)

        found[f"{name}_tbs"] = forward / timed(function, wait) / 1e12
        found[f"{name}_back_tbs"] = backward / timed(back, wait) / 1e12
        del out, g, back
    numbers = 1 << (12 if tiny else 27)
    p = lib.zeros(numbers).to(device).requires_grad_()
    p.grad = lib.ones_like(p)
    options = {"fused": True} if lib.__name__ == "torch" and device == "cuda" else {}
    optimizer = lib.optim.AdamW([p], lr=1e-3, **options)
    found["adamw_tbs"] = 7 * 4 * numbers / timed(optimizer.step, wait) / 1e12
    return found


def overhead(lib: Any, device: str, tiny: bool, wait: Callable[[], None]) -> dict[str, Any]:
    """Return what the host spends on one small operation: without, and with gradients."""
    count, found = (100 if tiny else 2000), {}
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
class Log:
    """Writes rows down, each as soon as it is there.

    Args:
        file: gets lines of JSON.
        seconds: that all works together may take.
    """

    def __init__(self, file: Path, seconds: float) -> None:
        self.file, self.until = file, time.monotonic() + seconds

    def row(self, work: str, side: str, found: dict[str, Any]) -> None:
        """Append a row."""
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps({"work": work, "side": side, **found}) + "\n")

    def left(self, budget: float) -> Callable[[], float]:
        """Return what tells how many seconds are left of a budget that begins now."""
        until = min(time.monotonic() + budget, self.until)
        return lambda: until - time.monotonic()


def child(words: list[str], seconds: float, more: list[dict[str, str]] | None = None) -> Any:
    """Return what a process of its own has measured, or why it could not.

    Args:
        words: the command.
        seconds: after which it is ended, with what it started.
        more: variables for each of several such processes, of which the first has the answer.
    """
    if seconds < 5:
        return {"error": "no time was left"}
    path = f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        started = [
            subprocess.Popen(
                words, env=os.environ | root | {"PYTHONPATH": path} | variables, text=True,
                stdout=out if not i else subprocess.DEVNULL, stderr=errors, start_new_session=True,
            )
            for i, variables in enumerate(more or [{}])
        ]  # fmt: skip
        try:
            code, late = started[0].wait(seconds), False
        except subprocess.TimeoutExpired:
            code, late = -1, True
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        out.seek(0)
        errors.seek(0)
        lines = [line for line in out.read().splitlines() if line.startswith("{")]
        said = errors.read().strip().splitlines()
    if late:
        return {"error": f"not ready after {seconds:.0f} s", "stderr": said[-5:]}
    if code or not lines:
        return {"error": (said or ["no output"])[-1][:300], "stderr": said[-15:]}
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return next((row for row in rows if row.get("rank", 0) == 0), rows[0])


def command(name: str, side: str, options: argparse.Namespace) -> list[str]:
    """Return what measures one row."""
    flags = ["--device", options.device, "--seconds", str(options.seconds)]
    tiny = ["--tiny"] if options.tiny else []
    return [sys.executable, "-W", "ignore", __file__, "--one", name, side, *flags, *tiny]


def compare(name: str, options: argparse.Namespace, log: Log) -> None:
    """Measure one workload on all sides, in turns, and print the medians."""
    plain = ("distgrad", "torch eager")
    sides = [s for s in options.sides if name not in TWO_SIDED or s in plain]
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    left = log.left(options.budget)
    for _ in range(options.repeats):
        for side in sides:
            if runs[side] and (left() < 5 or "error" in runs[side][-1]):
                continue  # what failed would fail again
            found = child(command(name, side, options), left())
            log.row(name, side, found)
            runs[side].append(found)
    print(f"\n{name}")
    rows: dict[str, dict[str, float]] = {}
    for side in sides:
        good = [run for run in runs[side] if "error" not in run]
        if not good:
            print(f"  {side:<18} failed: {runs[side][-1]['error']}")
            continue
        rows[side] = {k: statistics.median(run[k] for run in good) for k in good[0]}
        print(f"  {side:<18} " + "  ".join(f"{k} {v:,.4g}" for k, v in rows[side].items()))
    ours = rows.get("distgrad captured") or rows.get("distgrad", {})
    base = rows.get("torch eager", {})
    if "step_us" in ours and "step_us" in base:
        print(f"  distgrad is {base['step_us'] / ours['step_us']:.2f} x as fast as torch eager")
    sys.stdout.flush()


def compare_ranks(options: argparse.Namespace, log: Log) -> None:
    """Measure data parallelism on one GPU and print the step times."""
    print("\nranks on one GPU (4 layers of 4096 x 4096, float32)")
    left = log.left(options.budget)
    for ranks in (1, 2, 3, 4):
        words = command("ranks", "-", options)
        found: dict[str, Any] = {"error": "there is no mpirun"}
        if shutil.which("mpirun"):
            found = child(["mpirun", "-n", str(ranks), *words], min(left(), options.budget / 4))
            log.row("ranks", f"{ranks} by mpirun", found)
        if "error" in found:  # no MPI here: sockets bring the ranks together
            with socket.create_server(("127.0.0.1", 0)) as server:
                port = str(server.getsockname()[1])
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks)}
            each = [place | {"RANK": str(rank)} for rank in range(ranks)]
            found = child(words, min(left(), options.budget / 4), each)
            log.row("ranks", f"{ranks} by sockets", found)
        step = found.get("step_us")
        print(f"  {ranks} ranks  {found['error'] if step is None else f'{step:.0f} us a step'}")
        sys.stdout.flush()


def one(name: str, side: str, options: argparse.Namespace) -> None:
    """Measure one row, in a process of its own, and print it."""
    if name == "ranks":
        found = ranks_on_one_gpu(options.device, options.tiny)
    else:
        seconds = 0.1 if options.tiny else options.seconds
        found = measure(name, side, options.device, options.tiny, seconds)
    print(json.dumps(found), flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--budget", type=float, default=300, help="seconds for each work")
    parser.add_argument("--total", type=float, default=3600, help="seconds for all works")
    parser.add_argument("--out", type=Path, default=Path("gpu-bench.jsonl"))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="small models: a trial of the program")
    parser.add_argument("--one", nargs=2, metavar=("WORK", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(*options.one, options)
        return
    log = Log(options.out, options.total)
    for name in options.works:
        try:
            if name == "ranks":
                compare_ranks(options, log)
            else:
                compare(name, options, log)
        except Exception as error:  # the other works are measured all the same
            log.row(name, "-", {"error": repr(error)})
            print(f"  {name} failed: {error!r}", flush=True)


if __name__ == "__main__":
    main()
