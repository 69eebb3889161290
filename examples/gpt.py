"""A small GPT of characters, trained on a text file (Radford et al. 2018, 2019).

python examples/gpt.py [file] [steps]        (default: the programs of this folder)
"""

import math
import sys
from pathlib import Path

import distgrad as dg
from distgrad import nn
from distgrad.nn import functional as F

FILE = Path(sys.argv[1]) if len(sys.argv) > 1 else None
STEPS = int(sys.argv[2]) if len(sys.argv) > 2 else 600
BATCH, LENGTH, WIDTH, HEADS, LAYERS = 16, 64, 64, 4, 2

dg.manual_seed(0)
files = [FILE] if FILE else sorted(Path(__file__).parent.glob("*.py"))
text = "".join(f.read_text("utf-8") for f in files)
alphabet = sorted(set(text))
number = {c: i for i, c in enumerate(alphabet)}
tokens = dg.tensor([number[c] for c in text])


class Block(nn.Module):
    """Each character looks at those before it, then thinks for itself."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.before_look, self.before_think = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.project = nn.Linear(width, width)
        self.think = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def look(self, x):
        batch, length, width = x.shape
        parts = self.query_key_value(x).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.project(seen.transpose(1, 2).reshape(batch, length, width))

    def forward(self, x):
        x = x + self.look(self.before_look(x))
        return x + self.think(self.before_think(x))


class GPT(nn.Module):
    """Characters and their places become vectors; blocks mix them; a table reads off the next."""

    def __init__(self, characters, width, heads, layers):
        super().__init__()
        self.characters, self.places = nn.Embedding(characters, width), nn.Embedding(LENGTH, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, x):
        x = self.characters(x) + self.places(dg.arange(x.shape[1]))
        return self.norm(self.blocks(x)) @ self.characters.weight.t()

    @dg.no_grad()
    def write(self, start, count):
        for _ in range(count):
            logits = self(start[None, -LENGTH:])[0, -1]
            start = dg.cat([start, dg.multinomial((logits / 0.8).softmax(0), 1)])
        return start


model = GPT(len(alphabet), WIDTH, HEADS, LAYERS)
matrices = [p for p in model.parameters() if p.dim() == 2]
rest = [p for p in model.parameters() if p.dim() < 2]
optimizer = dg.optim.AdamW(
    [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
    lr=3e-3,
    betas=(0.9, 0.95),
)


def rate(step):
    """Rise for a tenth of the steps, then fall along a cosine."""
    rise = max(1, STEPS // 10)
    return min((step + 1) / rise, 0.55 + 0.45 * math.cos(math.pi * step / STEPS))


schedule = dg.optim.lr_scheduler.LambdaLR(optimizer, rate)
weights = sum(p.numel() for p in model.parameters())
print(f"{len(text)} characters, {len(alphabet)} different, {weights} weights")
for step in range(1, STEPS + 1):
    starts = dg.randint(len(tokens) - LENGTH, (BATCH, 1))
    piece = tokens[starts + dg.arange(LENGTH + 1)]
    loss = F.cross_entropy(model(piece[:, :-1]).flatten(0, 1), piece[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    if step % 50 == 0 or step in (1, STEPS):
        print(f"step {step}  loss {loss.item():.3f}")
print("".join(alphabet[i] for i in model.write(tokens[:1], 200).tolist()))
