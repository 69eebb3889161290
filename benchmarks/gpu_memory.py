"""Memory and launches of training steps: distgrad on the stand-in, PyTorch by what it dispatches.

    python benchmarks/gpu_memory.py                   # the table; needs PyTorch, and no GPU
    python benchmarks/gpu_memory.py --works gpt --largest 12

distgrad's bytes are those that CuPy's pool would give out.  PyTorch runs on the CPU, and the
storages of all tensors that its operations return are counted: what they use inside is not seen, so
its numbers are a little too small.  Under autocast its layer norms and losses get float32, as on a
GPU.  Launches are kernels and calls of cuBLASLt and cuDNN; PyTorch's are its operations that are no
views, of which some (embedding, batch norm, attention) launch several kernels on a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import traceback
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

WORKS = ("mlp", "resnet", "block", "gpt")
TOKENS, WIDTH, HEADS, LAYERS, WORDS = 256, 128, 4, 4, 4096


# ---------------------------------------------------------------------- the models, for both
def _block(lib: Any) -> Any:
    """Return a block of GPT-2 without dropout."""
    nn = lib.nn
    functional = importlib.import_module(f"{lib.__name__}.nn.functional")

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.mlp = nn.Sequential(
                nn.Linear(WIDTH, 4 * WIDTH), nn.GELU("tanh"), nn.Linear(4 * WIDTH, WIDTH)
            )

        def forward(self, x: Any) -> Any:
            b, t, c = x.shape
            q, k, v = self.qkv(self.ln_1(x)).view(b, t, 3, HEADS, c // HEADS).unbind(2)
            y = functional.scaled_dot_product_attention(
                q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
            )
            x = x + self.out(y.transpose(1, 2).reshape(b, t, c))
            return x + self.mlp(self.ln_2(x))

    return Block()


def _gpt(lib: Any) -> Any:
    nn = lib.nn

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wte, self.wpe = nn.Embedding(WORDS, WIDTH), nn.Embedding(TOKENS, WIDTH)
            self.h = nn.Sequential(*[_block(lib) for _ in range(LAYERS)])
            self.ln_f, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
            self.head.weight = self.wte.weight
            self.register_buffer("places", lib.arange(TOKENS))

        def forward(self, tokens: Any) -> Any:
            return self.head(self.ln_f(self.h(self.wte(tokens) + self.wpe(self.places))))

    return GPT()


def _mlp(lib: Any) -> Any:
    nn = lib.nn
    return nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )


def _resnet(lib: Any) -> Any:
    """Return two blocks of ResNet-50, a quarter as wide."""
    nn = lib.nn

    class Bottleneck(nn.Module):
        def __init__(self, inputs: int, width: int, stride: int) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
            self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
            self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
            self.bn3, self.relu = nn.BatchNorm2d(4 * width), nn.ReLU(inplace=True)
            self.down = nn.Sequential(
                nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

        def forward(self, x: Any) -> Any:
            short = self.down(x)
            x = self.relu(self.bn1(self.conv1(x)))
            x = self.relu(self.bn2(self.conv2(x)))
            return self.relu(self.bn3(self.conv3(x)) + short)

    return nn.Sequential(
        nn.Conv2d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1), Bottleneck(16, 16, 1), Bottleneck(64, 32, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


def _parts(name: str, lib: Any, device: str) -> tuple[Any, Any, Any]:
    """Return model, input and target."""
    lib.manual_seed(0)
    if name == "mlp":
        return _mlp(lib), lib.randn(128, 784), lib.randint(0, 10, (128,))
    if name == "resnet":
        form = {"memory_format": lib.channels_last}
        x = lib.randn(8, 3, 32, 32).to(device).to(**form)
        return _resnet(lib).to(device).to(**form), x, lib.randint(0, 10, (8,))
    if name == "block":
        return _block(lib), lib.randn(1, TOKENS, WIDTH), lib.randn(1, TOKENS, WIDTH)
    tokens = lib.randint(0, WORDS, (1, TOKENS + 1))
    return _gpt(lib), tokens[:, :-1].contiguous(), tokens[:, 1:].reshape(-1)


Mark = Callable[[str], None]


def step_of(name: str, lib: Any, device: str, narrow: bool, mark: Mark) -> Callable[[], None]:
    """Return a function that makes a step, and calls ``mark`` with the name of each phase's end."""
    functional = importlib.import_module(f"{lib.__name__}.nn.functional")
    model, x, y = _parts(name, lib, device)
    model, x, y = model.to(device), x.to(device), y.to(device)
    fused = {"fused": True} if lib.__name__ == "torch" else {}
    optimizer = lib.optim.AdamW(model.parameters(), lr=1e-3, **fused)

    def step() -> None:
        optimizer.zero_grad()
        mark("begin")
        with lib.autocast(device, dtype=lib.bfloat16, enabled=narrow):
            if name == "block":
                loss, g = model(x.detach().requires_grad_()), y
            else:  # nobody holds the logits
                loss, g = functional.cross_entropy(model(x).flatten(0, -2), y), None
        mark("forward")
        loss.backward(g)
        del loss
        mark("backward")
        optimizer.step()
        mark("update")

    return step


# ---------------------------------------------------------------------- what is counted
class Tally:
    """Bytes in use, and the most of them in each phase of a step."""

    def __init__(self) -> None:
        self.bytes = self.begin = self.peak = 0
        self.live: dict[Any, tuple[int, str]] = {}
        self.largest: dict[Any, tuple[int, str]] = {}  # at the peak of all
        self.kept: dict[str, int] = {}  # bytes at the end of each phase, above those at the begin
        self.peaks: dict[str, int] = {}
        self.launches: Counter[str] = Counter()
        self.counts: dict[str, Counter[str]] = {}

    def took(self, key: Any, nbytes: int, what: str) -> None:
        """Count a piece of memory."""
        self.bytes += nbytes
        self.live[key] = nbytes, what
        if self.bytes > self.peak:
            self.peak = self.bytes
            if self.bytes - self.begin > max(self.peaks.values(), default=0):
                self.largest = dict(self.live)

    def freed(self, key: Any) -> None:
        """Count a piece that is free."""
        self.bytes -= self.live.pop(key, (0, ""))[0]

    def mark(self, phase: str) -> None:
        """End a phase."""
        if phase == "begin":
            self.begin, self.kept, self.peaks, self.counts = self.bytes, {}, {}, {}
            self.old = set(self.live)
        else:
            self.kept[phase], self.peaks[phase] = self.bytes - self.begin, self.peak - self.begin
            self.counts[phase] = Counter(self.launches)
        self.peak = self.bytes
        self.launches.clear()


def ours(name: str, narrow: bool, places: bool = False) -> Tally:
    """Return the counts of a step of distgrad; ``places``: note where memory was taken."""
    import distgrad as dg
    from distgrad.testing import standin
    from distgrad.testing.standin import streams

    tally = Tally()

    class Hook(streams.MemoryHook):
        """Counts."""

        def malloc_postprocess(self, **what: Any) -> None:
            """Count what was taken."""
            tally.took(what["pmem_id"], what["mem_size"], _place() if places else "")

        def free_preprocess(self, **what: Any) -> None:
            """Count what was given back."""
            tally.freed(what["pmem_id"])

    with standin.installed() as ledger, Hook():

        def mark(phase: str) -> None:
            for names in (ledger.launches, ledger.products, ledger.kernels):
                tally.launches.update(names)
                names.clear()
            tally.mark(phase)

        _run(step_of(name, dg, "cuda", narrow, mark))
    return tally


def _place() -> str:
    frames = [f for f in traceback.extract_stack() if "/standin/" not in f.filename]
    return " < ".join(f"{f.filename.rpartition('/')[2]}:{f.lineno}" for f in frames[-2:-7:-1])


def _run(step: Callable[[], None]) -> None:
    """Make a step, after which all that lasts is there, and another one that counts."""
    step()
    gc.collect()
    gc.disable()
    try:
        step()
    finally:
        gc.enable()


_NO_LAUNCH = ("profiler.", "aten.detach", "aten.empty", "aten._unsafe_view", "aten.t.default")


def theirs(name: str, narrow: bool) -> Tally:
    """Return the counts of a step of PyTorch."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    tally = Tally()

    class Mode(TorchDispatchMode):
        """Counts operations, and follows the storages of what they return."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            out = func(*args, **(kwargs or {}))
            if not func.is_view and not str(func).startswith(_NO_LAUNCH):
                tally.launches[str(func)] += 1
            for tensor in tree_leaves(out):
                if isinstance(tensor, torch.Tensor):
                    storage = tensor.untyped_storage()
                    if storage._cdata not in tally.live and storage.nbytes():
                        tally.took(storage._cdata, storage.nbytes(), str(func))
                        weakref.finalize(storage, tally.freed, storage._cdata)
            return out

    with _in_float32(torch, narrow), Mode():
        _run(step_of(name, torch, "cpu", narrow, tally.mark))
    return tally


@contextlib.contextmanager
def _in_float32(torch: Any, narrow: bool) -> Iterator[None]:
    """Let layer norms and losses have float32, as autocast gives it to them on a GPU."""
    functional = torch.nn.functional
    norm, loss = functional.layer_norm, functional.cross_entropy
    if narrow:
        functional.layer_norm = lambda x, *rest: norm(x.float(), *rest)
        functional.cross_entropy = lambda x, y: loss(x.float(), y)
    try:
        yield
    finally:
        functional.layer_norm, functional.cross_entropy = norm, loss


# ---------------------------------------------------------------------- the table
def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--largest", type=int, default=0, help="arrays to show of our peak")
    options = parser.parse_args()
    print("KiB above those before a step: kept by forward, peaks; and launches")
    print(f"{'':24}{'kept':>9}{'forward':>9}{'backward':>9}{'fwd':>6}{'bwd':>6}{'update':>7}")
    for name in options.works:
        for narrow in (False, True):
            for side, count in (("distgrad", ours), ("torch", theirs)):
                tally = count(name, narrow, True) if side == "distgrad" else count(name, narrow)  # type: ignore[operator]
                numbers = [tally.kept["forward"], tally.peaks["forward"], tally.peaks["backward"]]
                launches = [
                    sum(tally.counts[p].values()) for p in ("forward", "backward", "update")
                ]
                print(f"{name:8}{'bfloat16' if narrow else 'float32':9}{side:>8}"
                      + "".join(f"{n / 1024:9.1f}" for n in numbers)
                      + "{:6}{:6}{:7}".format(*launches))  # fmt: skip
                if side == "distgrad":
                    _show(tally, options.largest)


def _show(tally: Tally, most: int) -> None:
    pieces = Counter(v for k, v in tally.largest.items() if k not in tally.old)
    for (nbytes, place), times in sorted(pieces.items(), key=lambda p: -p[0][0] * p[1])[:most]:
        print(f"    {times} x {nbytes / 1024:.1f} KiB  {place}")


if __name__ == "__main__":
    main()
