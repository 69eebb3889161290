"""Handwritten digits: a small convolutional network on scikit-learn's 1,797 scans of 8 x 8."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distgrad import nn
from distgrad.backend.device import to_device
from distgrad.errors import ConfigError, MissingExtra
from distgrad.launch.jobs import Context
from distgrad.launch.jobs.training import Trainer, TrainingConfig, choose_device
from distgrad.nn import functional as F
from distgrad.ops.random import manual_seed
from distgrad.tensor import Tensor, wrap


@dataclass(frozen=True, slots=True)
class DigitsConfig(TrainingConfig):
    """Settings of the job."""

    steps: int = 300
    global_batch: int = 64
    micro_batch: int = 16
    eval_every: int = 100
    model: str = "cnn"  # cnn | mlp
    held_out: int = 360  # scans


DEFAULTS = DigitsConfig()
EVALUATED = 64  # scans in one forward


def network(kind: str) -> nn.Module:
    """Return the network ``kind``.  Shape: [batch, 1, 8, 8] -> [batch, 10]."""
    if kind == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    if kind != "cnn":
        raise ConfigError(f"model {kind!r}: is none of cnn, mlp")
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


class DigitsTask:
    """The scans in a fixed shuffled order; the last ones are held out."""

    metric = "val_loss"

    def __init__(self, config: DigitsConfig, context: Context) -> None:
        """Load the scans and make the network on this rank's device."""
        if config.data is not None:
            raise ConfigError("--data: the job digits has its own data; leave it out")
        self.config = config
        self.device = choose_device(config.device, context.group)
        images, labels = _scans()
        order = np.random.default_rng(0).permutation(len(labels))
        cut = len(labels) - config.held_out
        self.train = (images[order[:cut]], labels[order[:cut]])
        self.held_out = (images[order[cut:]], labels[order[cut:]])
        self.baselines = {"uniform": float(np.log(10))}
        manual_seed(config.seed)
        self.model = network(config.model).to(self.device)

    def batch(self, step: int, rows: slice) -> tuple[Tensor, Tensor]:
        """Return scans drawn by seed and step alone."""
        rng = np.random.default_rng([self.config.seed, step])
        picks = rng.integers(0, len(self.train[1]), self.config.global_batch)[rows]
        return self._tensors(self.train[0][picks], self.train[1][picks])

    def _tensors(self, images: Any, labels: Any) -> tuple[Tensor, Tensor]:
        return wrap(to_device(images, self.device)), wrap(to_device(labels, self.device))

    def loss(self, output: Tensor, target: Tensor) -> tuple[Tensor, int]:
        """Return the summed cross-entropy and the number of scans."""
        return F.cross_entropy(output, target, reduction="sum"), len(target)

    @property
    def parts(self) -> int:
        """How many parts the held-out scans are cut into."""
        return max(1, -(-len(self.held_out[1]) // EVALUATED))

    def score(self, part: int) -> tuple[float, float, int]:
        """Return loss, hits and count of a part."""
        rows = slice(part * EVALUATED, (part + 1) * EVALUATED)
        x, y = self._tensors(*(array[rows] for array in self.held_out))
        output = self.model(x)
        hits = (output.argmax(1) == y).sum().item()
        return self.loss(output, y)[0].item(), hits, len(y)

    def metrics(self, total: Sequence[float]) -> dict[str, float]:
        """Return the mean loss, and how many of the scans are recognised."""
        return {
            "val_loss": float(total[0] / total[2]),
            "val_accuracy": float(total[1] / total[2]),
        }

    def finish(self, say: Callable[[str], None]) -> None:
        """Say nothing more: the accuracy says all."""


def _scans() -> tuple[Any, Any]:
    try:
        # an optional extra, and a second to import
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtra(
            "the job digits needs scikit-learn, which brings the scans; "
            "pip install 'distgrad[examples]'"
        ) from error
    data = load_digits()
    images = (data.images[:, None] / 16.0 - 0.3).astype(np.float32)
    return images, data.target.astype(np.int64)


def run(config: DigitsConfig, context: Context) -> dict[str, float]:
    """Train, and return the final metrics; every rank calls it."""
    return Trainer(config, context, DigitsTask(config, context)).run()
