"""Loaders with random augmentation in their workers, checkpoints in the middle, whole models."""

import collections
import dataclasses
import os
import tempfile

import torch
import torch.nn as nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info, random_split
from torch.utils.data.sampler import SubsetRandomSampler, WeightedRandomSampler


@dataclasses.dataclass
class Config:
    width: int = 8
    name: str = "net"


class Net(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.layers = nn.Sequential(nn.Linear(5, config.width), nn.Tanh())
        self.out = nn.Linear(config.width, 1)
        self.activation = nn.functional.relu
        self.register_buffer("shift", torch.full((1,), 0.5))

    def forward(self, x):
        return self.out(self.activation(self.layers(x))) + self.shift


class Noisy(Dataset):
    def __init__(self, length):
        self.x = torch.randn(length, 5)
        self.y = self.x.sum(1, keepdim=True)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        x = self.x[index] + 0.1 * torch.randn(5)
        return {"x": x, "y": self.y[index], "number": index, "name": f"s{index}"}


class Stream(IterableDataset):
    def __iter__(self):
        info = get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        for number in range(first, 9, step):
            yield number, torch.rand(1).item()


def train(model, optimizer, loader):
    for batch in loader:
        optimizer.zero_grad()
        loss = ((model(batch["x"]) - batch["y"]) ** 2).mean()
        loss.backward()
        optimizer.step()
    return loss.item(), batch["name"][0]


def main():
    torch.manual_seed(0)
    part, _ = random_split(Noisy(40), [0.75, 0.25])
    model = Net(Config())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    loader = DataLoader(part, batch_size=8, shuffle=True, num_workers=2)
    for epoch in range(2):
        print(epoch, *train(model, optimizer, loader))

    folder = tempfile.mkdtemp()
    path = os.path.join(folder, "checkpoint.pt")
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 2}
    torch.save(state | {"random": torch.get_rng_state()}, path)
    first = train(model, optimizer, loader)
    saved = torch.load(path, map_location=lambda storage, location: storage)
    print(model.load_state_dict(saved["model"]), saved["epoch"])
    optimizer.load_state_dict(saved["optimizer"])
    torch.set_rng_state(saved["random"])
    print("the same again:", train(model, optimizer, loader) == first, *first)

    torch.save({"model": model, "history": collections.defaultdict(list, loss=[1.5])}, path)
    whole = torch.load(path, weights_only=False)
    print(whole["model"].config, dict(whole["history"]), whole["model"](torch.ones(1, 5)).item())
    try:
        torch.load(path)
    except Exception as error:
        print("refused:", "Net" in str(error))
    try:
        torch.load(os.path.join(folder, "missing.pt"))
    except FileNotFoundError:
        print("missing")

    for workers in (0, 2):
        torch.manual_seed(5)
        for number, value in DataLoader(Stream(), batch_size=2, num_workers=workers):
            print(number.tolist(), value.tolist(), value.dtype)
    for sampler in (SubsetRandomSampler([4, 8, 1]), WeightedRandomSampler([1, 2, 3.0], 6)):
        print(type(sampler).__name__, list(sampler), torch.rand(1).item())


if __name__ == "__main__":
    main()
