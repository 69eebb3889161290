"""The default job: a character GPT on the text of Python's own documentation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distgrad import nn
from distgrad.autograd.mode import no_grad
from distgrad.backend.device import to_device
from distgrad.errors import ConfigError
from distgrad.launch.jobs import Context, textdata
from distgrad.launch.jobs.training import Trainer, TrainingConfig, choose_device
from distgrad.nn import functional as F
from distgrad.nn.modules.pairs import activated
from distgrad.ops.random import manual_seed
from distgrad.ops.ranges import arange
from distgrad.tensor import Tensor, wrap


@dataclass(frozen=True, slots=True)
class TextGPTConfig(TrainingConfig):
    """Settings of the job."""

    context: int = 64  # characters
    width: int = 64
    layers: int = 2
    heads: int = 4
    sample: int = 300  # characters written at the end
    temperature: float = 0.8


DEFAULTS = TextGPTConfig()
EVALUATED = 32  # windows in one forward, or fewer


class Block(nn.Module):
    """Causal self-attention and a two-layer network, each added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.ln_2 = nn.LayerNorm(width)
        self.fc = nn.Linear(width, 4 * width)
        self.gelu = nn.GELU("tanh")
        self.out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output.  Shape: [batch, time, width] -> the same."""
        batch, time, width = x.shape
        qkv = self.qkv(self.ln_1(x)).view(batch, time, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).reshape(batch, time, width))
        out: Tensor = x + self.out(activated(self.fc, self.gelu, self.ln_2(x)))
        return out


class GPT(nn.Module):
    """A language model over characters.  Shape: [batch, time] -> [batch, time, vocabulary]."""

    def __init__(self, vocabulary: int, context: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width)
        self.wpe = nn.Embedding(context, width)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(layers)])
        self.ln_f = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)
        for name, p in self.named_parameters():
            if name.endswith(("out.weight", "proj.weight")):
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * layers))
            elif name.endswith("weight") and p.dim() > 1:
                nn.init.normal_(p, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits of the character after each one."""
        place = arange(ids.shape[1], device=ids.device)
        x = self.wte(ids) + self.wpe(place)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.ln_f(x))
        return logits


class TextTask:
    """The text, cut into windows of ``context`` characters."""

    metric = "val_loss"

    def __init__(self, config: TextGPTConfig, context: Context) -> None:
        """Load the text and make the model on this rank's device."""
        if config.width % config.heads:
            raise ConfigError(
                f"width {config.width}: is not divisible by {config.heads} heads; choose a multiple"
            )
        self.config = config
        self.device = choose_device(config.device, context.group)
        self.corpus = textdata.load(config.data, config.context)
        self.baselines = textdata.baselines(self.corpus)
        starts = np.arange(0, len(self.corpus.held_out) - config.context, config.context)
        self._held_out = np.array_split(starts, -(-len(starts) // EVALUATED))
        manual_seed(config.seed)
        self.model = GPT(
            len(self.corpus.vocabulary), config.context, config.width, config.layers, config.heads
        ).to(self.device)
        context.say(
            f"text {self.corpus.name}, {len(self.corpus):,} characters, "
            f"{len(self.corpus.vocabulary)} different, sha256 {self.corpus.sha256[:8]}"
        )

    def batch(self, step: int, rows: slice) -> tuple[Tensor, Tensor]:
        """Return windows of the training text and the same one character further.

        Where they begin depends on seed and step alone, so a resumed run and a run on another
        number of ranks see the same text.
        """
        rng = np.random.default_rng([self.config.seed, step])
        high = len(self.corpus.train) - self.config.context
        starts = rng.integers(0, high, self.config.global_batch)[rows]
        return self._windows(self.corpus.train, starts)

    def _windows(self, ids: Any, starts: Any) -> tuple[Tensor, Tensor]:
        grid = starts[:, None] + np.arange(self.config.context + 1)
        both = ids[grid]
        x, y = np.ascontiguousarray(both[:, :-1]), np.ascontiguousarray(both[:, 1:])
        return wrap(to_device(x, self.device)), wrap(to_device(y, self.device))

    def loss(self, output: Tensor, target: Tensor) -> tuple[Tensor, int]:
        """Return the summed cross-entropy and the number of characters."""
        flat = output.view(-1, output.shape[-1])
        return F.cross_entropy(flat, target.view(-1), reduction="sum"), target.numel()

    @property
    def parts(self) -> int:
        """How many parts the held-out tail is cut into."""
        return len(self._held_out)

    def score(self, part: int) -> tuple[float, int]:
        """Return the summed loss over a part's windows, and the number of characters."""
        x, y = self._windows(self.corpus.held_out, self._held_out[part])
        loss, count = self.loss(self.model(x), y)
        return loss.item(), count

    def metrics(self, total: Sequence[float]) -> dict[str, float]:
        """Return the mean loss."""
        return {"val_loss": float(total[0] / total[1])}

    def finish(self, say: Callable[[str], None]) -> None:
        """Let the model write."""
        if self.config.sample:
            say("sample\n  " + self.write(self.config.sample).replace("\n", "\n  "))

    def write(self, length: int) -> str:
        """Return ``length`` characters drawn one after another from the model."""
        with no_grad():
            return self._write(length)

    def _write(self, length: int) -> str:
        config, rng = self.config, np.random.default_rng(self.config.seed)
        ids = list(self.corpus.train[:1])
        self.model.eval()
        for _ in range(length):
            window = np.array([ids[-config.context :]])
            logits = self.model(wrap(to_device(window, self.device)))[0, -1].cpu().numpy()
            scaled = logits.astype(np.float64) / config.temperature
            chances = np.exp(scaled - scaled.max())
            ids.append(int(rng.choice(len(chances), p=chances / chances.sum())))
        return self.corpus.decode(ids[1:])


def run(config: TextGPTConfig, context: Context) -> dict[str, float]:
    """Train, and return the final metrics; every rank calls it."""
    return Trainer(config, context, TextTask(config, context)).run()
