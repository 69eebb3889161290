"""A language model of words with an LSTM, trained on a text file.

python examples/lstm.py [file] [epochs]        (default: the programs of this folder)
"""

import re
import sys
from pathlib import Path

import distgrad as dg
from distgrad import nn

FILE = Path(sys.argv[1]) if len(sys.argv) > 1 else None
EPOCHS = int(sys.argv[2]) if len(sys.argv) > 2 else 20
BATCH, LENGTH, WIDTH = 8, 16, 96

dg.manual_seed(0)
files = [FILE] if FILE else sorted(Path(__file__).parent.glob("*.py"))
words = re.findall(r"\w+|[^\w\s]|\n", "".join(f.read_text("utf-8") for f in files))
vocabulary = sorted(set(words))
number = {word: i for i, word in enumerate(vocabulary)}

# The text as BATCH long columns side by side: states of one piece go on into the next.
tokens = dg.tensor([number[w] for w in words])
rows = (len(tokens) - 1) // BATCH
inputs = tokens[: rows * BATCH].view(BATCH, rows).t()
targets = tokens[1 : rows * BATCH + 1].view(BATCH, rows).t()


class WordModel(nn.Module):
    """Two layers of LSTM between an embedding and a choice of the next word."""

    def __init__(self, words, width):
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.lstm = nn.LSTM(width, width, num_layers=2, dropout=0.2)
        self.choice = nn.Linear(width, words)
        self.choice.weight = self.embedding.weight  # the same table for reading and writing

    def forward(self, x, state=None):
        out, state = self.lstm(self.embedding(x), state)
        return self.choice(out), state


model = WordModel(len(vocabulary), WIDTH)
nn.init.normal_(model.embedding.weight, std=0.1)
optimizer = dg.optim.Adam(model.parameters(), lr=1e-2)
schedule = dg.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS, eta_min=1e-3)
print(f"{len(words)} words, {len(vocabulary)} different")
for epoch in range(1, EPOCHS + 1):
    state, total, count = None, 0.0, 0
    for start in range(0, rows, LENGTH):
        x, y = inputs[start : start + LENGTH], targets[start : start + LENGTH]
        logits, state = model(x, state)
        state = tuple(s.detach() for s in state)  # gradients end at the piece's beginning
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total, count = total + loss.item() * y.numel(), count + y.numel()
    schedule.step()
    print(f"epoch {epoch}  perplexity {dg.tensor(total / count).exp().item():.1f}")

model.eval()
with dg.no_grad():
    word, state, text = tokens[:1], None, []
    for _ in range(40):
        logits, state = model(word[None], state)
        word = dg.multinomial((logits[-1, 0] / 0.7).softmax(0), 1)
        text.append(vocabulary[word.item()])
print(" ".join(text))
