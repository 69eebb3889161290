"""Sub-pixel super-resolution, and a coordinate network with sines."""

import math
from math import log10

import numpy as np
import torch
import torch.nn as nn
import torch.nn.init as init
import torch.optim as optim
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(123)


class Net(nn.Module):
    def __init__(self, upscale_factor):
        super(Net, self).__init__()
        self.relu = nn.ReLU()
        self.conv1 = nn.Conv2d(1, 16, (5, 5), (1, 1), (2, 2))
        self.conv2 = nn.Conv2d(16, 8, (3, 3), (1, 1), (1, 1))
        self.conv3 = nn.Conv2d(8, upscale_factor**2, (3, 3), (1, 1), (1, 1))
        self.pixel_shuffle = nn.PixelShuffle(upscale_factor)
        self._initialize_weights()

    def forward(self, x):
        x = self.relu(self.conv1(x))
        x = self.relu(self.conv2(x))
        return self.pixel_shuffle(self.conv3(x))

    def _initialize_weights(self):
        init.orthogonal_(self.conv1.weight, init.calculate_gain("relu"))
        init.orthogonal_(self.conv2.weight, init.calculate_gain("relu"))
        init.orthogonal_(self.conv3.weight)


high = torch.rand(32, 1, 12, 12)
low = nn.functional.interpolate(high, scale_factor=0.5, mode="bilinear", align_corners=False)
loader = DataLoader(TensorDataset(low, high), batch_size=8, shuffle=True)
model, criterion = Net(upscale_factor=2), nn.MSELoss()
optimizer = optim.Adam(model.parameters(), lr=0.01)
for epoch in range(3):
    epoch_loss, avg_psnr = 0, 0
    for batch in loader:
        input, target = batch[0], batch[1]
        optimizer.zero_grad()
        loss = criterion(model(input), target)
        epoch_loss += loss.item()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        for input, target in loader:
            avg_psnr += 10 * log10(1 / criterion(model(input), target).item())
    print(
        f"Epoch {epoch}: Loss {epoch_loss / len(loader):.4f} PSNR {avg_psnr / len(loader):.4f} dB"
    )


class SineLayer(nn.Module):
    def __init__(self, in_features, out_features, is_first=False, omega_0=30):
        super().__init__()
        self.omega_0, self.is_first, self.in_features = omega_0, is_first, in_features
        self.linear = nn.Linear(in_features, out_features)
        with torch.no_grad():
            bound = 1 / in_features if is_first else np.sqrt(6 / in_features) / omega_0
            self.linear.weight.uniform_(-bound, bound)

    def forward(self, input):
        return torch.sin(self.omega_0 * self.linear(input))


def get_mgrid(sidelen, dim=2):
    tensors = tuple(dim * [torch.linspace(-1, 1, steps=sidelen)])
    return torch.stack(torch.meshgrid(*tensors, indexing="ij"), dim=-1).reshape(-1, dim)


def gradient(y, x):
    return torch.autograd.grad(y, [x], grad_outputs=torch.ones_like(y), create_graph=True)[0]


def laplace(y, x):
    grad, div = gradient(y, x), 0.0
    for i in range(grad.shape[-1]):
        div += torch.autograd.grad(
            grad[..., i], x, torch.ones_like(grad[..., i]), create_graph=True
        )[0][..., i : i + 1]
    return div


siren = nn.Sequential(SineLayer(2, 16, is_first=True), SineLayer(16, 16), nn.Linear(16, 1))
coords = get_mgrid(12)
truth = torch.sin(math.pi * coords[:, :1]) * torch.cos(math.pi * coords[:, 1:])
optim_siren = torch.optim.Adam(lr=1e-3, params=siren.parameters())
for step in range(5):
    x = coords.clone().detach().requires_grad_(True)
    y = siren(x)
    loss = ((y - truth) ** 2).mean() + 1e-4 * (gradient(y, x) ** 2).mean()
    optim_siren.zero_grad()
    loss.backward()
    optim_siren.step()
    print(
        "Step %d, Total loss %0.6f laplacian %.3f" % (step, loss, laplace(siren(x), x).abs().mean())
    )
