"""A line through the readings of an unknown thermometer: by hand, with autograd, with nn.

python examples/thermometer.py
"""

import distgrad as dg
from distgrad import nn

celsius = dg.tensor([0.5, 14.0, 15.0, 28.0, 11.0, 8.0, 3.0, -4.0, 6.0, 13.0, 21.0])
unknown = dg.tensor([35.7, 55.9, 58.2, 81.9, 56.3, 48.9, 33.9, 21.8, 48.4, 60.4, 68.4])
x = unknown * 0.1  # so that both gradients have about one size
STEPS, RATE = 5000, 1e-2


def by_hand():
    """Gradients of the mean square, as one derives them on paper."""
    w, b = 1.0, 0.0
    for _ in range(STEPS):
        error = w * x + b - celsius
        w -= RATE * (2 * error * x).mean().item()
        b -= RATE * (2 * error).mean().item()
    return w, b


def with_autograd():
    """The same steps; backward() finds the gradients."""
    params = dg.tensor([1.0, 0.0], requires_grad=True)
    for _ in range(STEPS):
        loss = ((params[0] * x + params[1] - celsius) ** 2).mean()
        params.grad = None
        loss.backward()
        with dg.no_grad():
            params -= RATE * params.grad
    return params.tolist()


def with_modules():
    """The same with a module, a loss and an optimizer that looks at curvature."""
    model = nn.Linear(1, 1)
    optimizer = dg.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x[:, None]), celsius[:, None])
        loss.backward()
        return loss

    optimizer.step(closure)
    return model.weight.item(), model.bias.item()


for fit in (by_hand, with_autograd, with_modules):
    w, b = fit()
    loss = ((w * x + b - celsius) ** 2).mean().item()
    print(f"{fit.__name__:14} celsius = {w / 10:.3f} * reading {b:+.2f}   loss {loss:.4f}")
