"""A convolutional network on scikit-learn's scanned digits, in one process.

pip install '.[examples]' && python examples/images.py
"""

import numpy as np
from sklearn.datasets import load_digits

import distgrad as dg
from distgrad import nn

data = load_digits()
order = np.random.default_rng(0).permutation(len(data.target))
images = dg.tensor(data.images[order, None] / 16.0, dtype=dg.float32)
labels = dg.tensor(data.target[order])
train, test = slice(0, 1400), slice(1400, None)

dg.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1),
    nn.BatchNorm2d(16),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Conv2d(16, 32, 3, padding=1),
    nn.BatchNorm2d(32),
    nn.ReLU(),
    nn.Flatten(),
    nn.Dropout(0.2),
    nn.Linear(32 * 4 * 4, 10),
)
optimizer = dg.optim.Adam(model.parameters(), lr=3e-3)

for epoch in range(1, 6):
    model.train()
    for batch in dg.randperm(1400).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[train][batch]), labels[train][batch]).backward()
        optimizer.step()
    model.eval()
    with dg.no_grad():
        right = (model(images[test]).argmax(1) == labels[test]).float().mean()
    print(f"epoch {epoch}  accuracy {right:.1%}")
