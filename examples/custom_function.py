"""Functions with gradients of one's own: a polynomial, and rounding that lets gradients through.

python examples/custom_function.py
"""

import math

import distgrad as dg


class Legendre3(dg.autograd.Function):
    """The polynomial (5 x³ - 3 x) / 2."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return 0.5 * (5 * x**3 - 3 * x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * 1.5 * (5 * x**2 - 1)


class Round(dg.autograd.Function):
    """Rounds; its gradient is that of the identity (a straight-through estimator)."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


point = dg.linspace(-0.9, 0.9, 5, dtype=dg.float64).requires_grad_()
print("gradcheck", dg.autograd.gradcheck(Legendre3.apply, (point,)))

# Fit sin(x) by a + b P3(c + d x).
x = dg.linspace(-math.pi, math.pi, 2000)
y = x.sin()
params = dg.tensor([0.0, -1.0, 0.0, 0.3], requires_grad=True)
optimizer = dg.optim.SGD([params], lr=5e-6)
for step in range(1, 2001):
    a, b, c, d = params
    loss = (a + b * Legendre3.apply(c + d * x) - y).pow(2).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 500 == 0:
        print(f"step {step}  loss {loss.item():.3f}")

# Find whole numbers whose weighted sum is 14: round() alone would have no gradient.
weights = dg.tensor([1.0, 2.0, 3.0])
numbers = dg.tensor([0.3, 0.6, 0.9], requires_grad=True)
optimizer = dg.optim.SGD([numbers], lr=0.003)
loss = dg.ones(())
while loss > 0:
    loss = ((Round.apply(numbers) * weights).sum() - 14) ** 2
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("whole numbers", Round.apply(numbers).tolist(), "loss", loss.item())
