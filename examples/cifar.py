"""A residual network on CIFAR-10 from a local folder, in one process (He et al. 2016).

python examples/cifar.py FOLDER [epochs] [blocks]

FOLDER holds the files of "CIFAR-10 python version", data_batch_1 to data_batch_5 and test_batch
(https://www.cs.toronto.edu/~kriz/cifar.html). Three blocks a stage are the paper's ResNet-20.
"""

import pickle
import sys
from pathlib import Path

import numpy as np

import distgrad as dg
from distgrad import nn
from distgrad.nn import functional as F
from distgrad.utils.data import DataLoader, Dataset

FOLDER = Path(sys.argv[1])
EPOCHS = int(sys.argv[2]) if len(sys.argv) > 2 else 10
BLOCKS = int(sys.argv[3]) if len(sys.argv) > 3 else 3


class ArraysOnly(pickle.Unpickler):
    """Reads pickles of arrays and refuses all else: a pickle from elsewhere may run any program."""

    def find_class(self, module, name):
        if module.startswith("numpy") and name in ("_reconstruct", "ndarray", "dtype"):
            owner = np._core.multiarray if name == "_reconstruct" else np
            return getattr(owner, name)
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return lambda text, encoding: text.encode("latin1")
        raise pickle.UnpicklingError(f"wants {module}.{name}, which is no array")


class Cifar(Dataset):
    """Images of 3 x 32 x 32 numbers and their labels, mirrored and moved at random if asked."""

    def __init__(self, files, change):
        parts = []
        for file in files:
            with file.open("rb") as stream:
                parts.append(ArraysOnly(stream, encoding="bytes").load())
        self.pixels = np.concatenate([p[b"data"] for p in parts]).reshape(-1, 3, 32, 32)
        self.labels = np.concatenate([p[b"labels"] for p in parts])
        self.change = change

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = (self.pixels[index].astype(np.float32) / 255 - 0.47) / 0.25
        if self.change:
            mirror, down, right = dg.randint(9, (3,)).tolist()
            padded = np.pad(image, ((0, 0), (4, 4), (4, 4)))
            image = padded[:, down : down + 32, right : right + 32]
            image = image[:, :, ::-1] if mirror % 2 else image
        return dg.tensor(image.copy()), int(self.labels[index])


class Residual(nn.Module):
    """What two convolutions add to their input."""

    def __init__(self, before, after, stride):
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(after) for _ in "ab")
        same = stride == 1 and before == after
        self.way = nn.Identity() if same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x):
        change = self.norms[1](self.second(F.relu(self.norms[0](self.first(x)))))
        return F.relu(self.way(x) + change)


def resnet(blocks):
    layers = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    before = 16
    for after in (16, 32, 64):
        for _ in range(blocks):
            layers.append(Residual(before, after, 1 if before == after else 2))
            before = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


dg.manual_seed(0)
train = DataLoader(Cifar(sorted(FOLDER.glob("data_batch_*")), True), 128, shuffle=True)
test = DataLoader(Cifar([FOLDER / "test_batch"], False), 256)
model = resnet(BLOCKS)
optimizer = dg.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4, nesterov=True)
schedule = dg.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, EPOCHS * len(train))

for epoch in range(1, EPOCHS + 1):
    model.train()
    for images, labels in train:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    with dg.no_grad():
        right = sum((model(x).argmax(1) == y).sum().item() for x, y in test)
    print(f"epoch {epoch}  loss {loss.item():.3f}  accuracy {right / len(test.dataset):.1%}")
