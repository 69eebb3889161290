"""A variational autoencoder of scikit-learn's scanned digits (Kingma & Welling 2014).

pip install '.[examples]' && python examples/vae.py [epochs]
"""

import sys

from sklearn.datasets import load_digits

import distgrad as dg
from distgrad import nn
from distgrad.nn import functional as F
from distgrad.utils.data import DataLoader, TensorDataset

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 30
dg.manual_seed(0)
images = dg.tensor(load_digits().data / 16.0, dtype=dg.float32)
loader = DataLoader(TensorDataset(images), batch_size=64, shuffle=True)


class VAE(nn.Module):
    """An image becomes a normal distribution of a few numbers; a draw from it, an image."""

    def __init__(self, pixels=64, width=128, latent=8):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(pixels, width), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(width, latent), nn.Linear(width, latent)
        self.decoder = nn.Sequential(
            nn.Linear(latent, width), nn.ReLU(), nn.Linear(width, pixels), nn.Sigmoid()
        )

    def forward(self, x):
        hidden = self.encoder(x)
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        noise = dg.randn_like(mean)  # drawn apart, so that gradients pass through mean and spread
        return self.decoder(mean + noise * (0.5 * log_variance).exp()), mean, log_variance


def negative_bound(x, again, mean, log_variance):
    """How badly the image comes back, and how far the distribution is from the standard one."""
    misfit = F.binary_cross_entropy(again, x, reduction="sum")
    distance = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum()
    return misfit + distance


model = VAE()
optimizer = dg.optim.Adam(model.parameters(), lr=2e-3)
for epoch in range(1, EPOCHS + 1):
    total = 0.0
    for (x,) in loader:
        optimizer.zero_grad()
        loss = negative_bound(x, *model(x))
        loss.backward()
        optimizer.step()
        total += loss.item()
    if epoch % 5 == 0 or epoch == 1:
        print(f"epoch {epoch}  loss per image {total / len(images):.2f}")

with dg.no_grad():
    drawn = model.decoder(dg.randn(4, 8)).view(4, 8, 8)
for row in range(8):  # four new digits, side by side
    print("   ".join("".join(" .:-=+*#%@"[int(v * 9.99)] for v in d[row]) for d in drawn.tolist()))
