"""Gradients of gradients: a network that solves a differential equation, and Newton's method.

python examples/second_gradient.py
"""

import distgrad as dg
from distgrad import nn
from distgrad.autograd import grad

dg.manual_seed(0)

# ---------------------------------------------------------------- u'' = -u,  u(0) = 0,  u'(0) = 1
net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
optimizer = dg.optim.LBFGS(net.parameters(), line_search_fn="strong_wolfe", max_iter=25)
points = dg.linspace(0, 3, 40)[:, None].requires_grad_()


def solution(x):
    """Give u with the right value and slope at 0, whatever the network says."""
    return x + x**2 * net(x)


def residual():
    u = solution(points)
    (slope,) = grad(u.sum(), points, create_graph=True)  # each u depends on its own point only
    (curvature,) = grad(slope.sum(), points, create_graph=True)
    return (curvature + u).square().mean()


def closure():
    optimizer.zero_grad()
    loss = residual()
    loss.backward()  # the third derivative: of the network's curvature with respect to weights
    return loss


for _ in range(5):
    print(f"residual {optimizer.step(closure).item():.2e}")
with dg.no_grad():
    error = (solution(points) - points.sin()).abs().max()
print(f"largest distance from sin(x): {error.item():.1e}")


# ---------------------------------------------------------------- Newton: the whole Hessian
def valley(p):
    return (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2


p = dg.tensor([-1.2, 1.0], dtype=dg.float64, requires_grad=True)
for _ in range(6):
    (slope,) = grad(valley(p), p, create_graph=True)
    hessian = dg.stack([grad(s, p, retain_graph=True)[0] for s in slope])
    with dg.no_grad():
        p -= dg.linalg.solve(hessian, slope)
print(f"Newton's minimum {[round(v, 6) for v in p.tolist()]} after 6 steps")
