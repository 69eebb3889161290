"""Checks of optimizers, norms and gradient scalers on a GPU.

``tests/test_gpu_optim.py`` runs them on CuPy's stand-in, ``tests/gpu`` on a real GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import distgrad as dg
from distgrad import nn, optim
from distgrad.backend.device import CPU, device

RULES: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda p: optim.SGD(p, lr=0.1),
    "sgd_momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.1, weight_decay=0.01),
    "sgd_nesterov": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, maximize=True),
    "adam": lambda p: optim.Adam(p, lr=0.1, weight_decay=0.1),
    "adam_max": lambda p: optim.Adam(p, lr=0.1, amsgrad=True, maximize=True),
    "adamw": lambda p: optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "adamw_max": lambda p: optim.AdamW(p, lr=0.1, amsgrad=True),
    "adamax": lambda p: optim.Adamax(p, lr=0.1, weight_decay=0.1),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.1, lr_decay=0.01),
    "adadelta": lambda p: optim.Adadelta(p, lr=0.1),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01),
    "rmsprop_momentum": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.9),
    "rmsprop_centered": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "radam": lambda p: optim.RAdam(p, lr=0.1, decoupled_weight_decay=True, weight_decay=0.1),
}
SHAPES: list[tuple[int, ...]] = [(3, 4), (4,), (), (0, 2), (2, 3, 2), (8195,), *[(5,)] * 46]


def stepped(
    name: str, place: device, dtype: str = "float32", steps: int = 7, capturable: bool = False,
    shapes: Sequence[tuple[int, ...]] = SHAPES, flat: bool = False, last: str = "",
) -> list[Any]:  # fmt: skip
    """Return parameters and state after some steps, on the host in float64.

    ``last``: what of four dimensions lies channels last, "parameters", "gradients" or "both".
    """
    rng, kind = np.random.default_rng(0), getattr(dg, dtype)
    draws = [rng.standard_normal((steps + 1, *s)) for s in shapes]
    made = [dg.tensor(d[0], dtype=kind, device=place) for d in draws]
    made = [_last(t) if last in ("parameters", "both") else t for t in made]
    params = [p.requires_grad_() for p in made]
    if flat:
        optim.optimizer.flatten_parameters(params)
    optimizer = RULES[name](params)
    for group in optimizer.param_groups:
        group["capturable"] = capturable
    for step in range(1, steps + 1):
        for p, d in zip(params, draws, strict=True):
            grad = dg.tensor(d[step], dtype=kind, device=place)
            grad = _last(grad) if last in ("gradients", "both") else grad
            if flat:
                p.grad = p._grad_buffer
                p.grad.copy_(grad)  # type: ignore[union-attr]
            else:
                p.grad = grad
        optimizer.step()
    entries = [t for p in params for t in optimizer.state[p].values()]
    return [t.detach().cpu().double().numpy() for t in (*params, *entries)]


def _last(tensor: dg.Tensor) -> dg.Tensor:
    return tensor.contiguous(memory_format=dg.channels_last) if tensor.ndim == 4 else tensor


def check_rule(name: str, place: device, dtype: str, capturable: bool) -> None:
    """Compare some steps with the host's."""
    host = stepped(name, CPU, dtype)
    rtol, atol = (1e-5, 1e-6) if dtype == "float32" else (1e-10, 1e-12)
    for mine, other in zip(stepped(name, place, dtype, capturable=capturable), host, strict=True):
        np.testing.assert_allclose(mine, other, rtol=rtol, atol=atol)


def check_narrow(name: str, place: device, dtype: str) -> None:
    """Check that 16-bit parameters take steps like those of float32, but for their rounding."""
    got, want = stepped(name, place, dtype, 3), stepped(name, CPU, "float32", 3)
    for mine, other in zip(got[: len(SHAPES)], want, strict=False):
        np.testing.assert_allclose(mine, other, rtol=0.05, atol=0.05)


def check_changes(place: device) -> None:
    """Check steps with options and gradients that change, on the host's side and the GPU's."""
    ends = []
    for where, capturable in ((CPU, False), (place, False), (place, True)):
        rng = np.random.default_rng(1)
        params = [dg.tensor(rng.standard_normal(6), device=where) for _ in range(3)]
        optimizer = optim.AdamW([p.requires_grad_() for p in params], lr=0.1, capturable=capturable)
        for step in range(8):
            for number, p in enumerate(params):
                g = dg.tensor(rng.standard_normal(6), device=where)
                p.grad = None if step in (2, 3) and number == 1 else g
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + step)
            optimizer.step()
            if step == 5:
                optimizer.load_state_dict(optimizer.state_dict())
        steps = [float(optimizer.state[p]["step"]) for p in params]
        assert steps == [8.0, 6.0, 8.0], steps
        ends.append([p.detach().cpu().numpy() for p in params])
    for mine in ends[1:]:
        np.testing.assert_allclose(mine, ends[0], rtol=1e-5, atol=1e-6)


def check_rate_on_the_gpu(place: device) -> None:
    """Check that a learning rate may be a tensor on the GPU."""
    rate = dg.tensor(0.5, device=place)
    p = dg.ones(3, device=place, requires_grad=True)
    optimizer = optim.SGD([p], lr=rate)
    optimizer.param_groups[0]["capturable"] = True
    for value in (0.5, 0.25):
        rate.fill_(value)
        p.grad = dg.ones(3, device=place)
        optimizer.step()
    assert p.tolist() == [0.25] * 3


def check_norms(place: device, dtype: str) -> None:
    """Compare norms of gradients and clipping with the host's."""
    rng, kind = np.random.default_rng(0), getattr(dg, dtype)
    arrays = [rng.standard_normal(s) * 3 for s in ((3, 4), (9001,), (0,), (), *[(2, 2)] * 50)]
    for order in (2.0, 1.0, math.inf, 0.0, 3.0):
        found = []
        for where in (CPU, place):
            params = [dg.zeros(a.shape, dtype=kind, device=where) for a in arrays]
            for p, a in zip(params, arrays, strict=True):
                p.requires_grad_().grad = dg.tensor(a, dtype=kind, device=where)
            total = nn.utils.get_total_norm([p.grad for p in params], order)  # type: ignore[misc]
            norm = nn.utils.clip_grad_norm_(params, 1.5, order)
            assert norm.device == total.device == params[0].device and norm.dtype is kind
            assert norm.item() == total.item()
            grads = [p.grad.cpu().double().numpy() for p in params]  # type: ignore[union-attr]
            found.append([np.float64(norm.item()), *grads])
        for mine, other in zip(*reversed(found), strict=True):
            np.testing.assert_allclose(mine, other, rtol=1e-2 if kind.itemsize == 2 else 1e-5)


def check_wrong_norms(place: device) -> None:
    """Check norms of what is not finite, which gradients are multiplied by, and no gradients."""
    nan, inf = math.nan, math.inf
    for bad, order in ((nan, 2.0), (nan, inf), (inf, 2.0), (inf, inf)):
        p = dg.zeros(3, device=place, requires_grad=True)
        p.grad = dg.tensor([1.0, bad, 2.0], device=place)
        norm = nn.utils.clip_grad_norm_([p], 1.0, order).item()
        assert math.isnan(norm) if math.isnan(bad) else math.isinf(norm)
        first = p.grad[0].item()
        assert math.isnan(first) if math.isnan(bad) else first == 0.0, first
    p.grad = dg.tensor([0.1, 0.2, 0.3], device=place)
    nn.utils.clip_grad_norm_([p], 1.0)
    assert p.grad.tolist() == dg.tensor([0.1, 0.2, 0.3]).tolist()  # short enough: not touched


def check_scaler(name: str, place: device) -> None:
    """Compare training with a scaler, and two infinite gradients, with the host's."""
    runs = []
    for where in (CPU, place):
        rng = np.random.default_rng(0)
        p = dg.ones(4, device=where, requires_grad=True)
        optimizer = RULES[name]([p])
        scaler = dg.amp.GradScaler(where.type, init_scale=4.0, growth_interval=2)
        seen = []
        for step in range(8):
            optimizer.zero_grad()
            x = rng.standard_normal(4)
            x[0] = math.inf if step in (3, 6) else x[0]
            scaler.scale((p * dg.tensor(x, dtype=dg.float32, device=where)).sum()).backward()
            if step == 4:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            seen.append(scaler.get_scale())
            if step == 5:
                saved = scaler.state_dict()
                scaler.load_state_dict(saved)
        scaler.update(16.0)
        seen.append(scaler.get_scale())
        counts = [float(v) for k, v in optimizer.state[p].items() if k == "step"]
        runs.append([*seen, *counts, *p.tolist()])
    np.testing.assert_allclose(runs[1], runs[0], rtol=1e-5)
