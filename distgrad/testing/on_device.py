"""Checks of a whole library on another device: training, data parallelism, state, errors.

Each compares with the same on the host, in float64.  ``tests/test_gpu_standin.py`` runs them on the
stand-in for CuPy, ``tests/gpu`` on a real GPU.
"""

from __future__ import annotations

import copy
import functools
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import distgrad as dg
from distgrad import func, nn
from distgrad.backend import philox
from distgrad.backend.device import CPU, device
from distgrad.backend.random import default_generator
from distgrad.distributed import ProcessGroup, run_ranks
from distgrad.errors import DeviceError, DistgradError
from distgrad.nn import functional as F
from distgrad.ops.shape import windows_backward
from distgrad.tensor import Tensor
from distgrad.testing.device_calls import CALLS

VOCABULARY, LENGTH, CLASSES = 17, 10, 5


# ---------------------------------------------------------------------- models
class Perceptron(nn.Module):
    """Two layers with dropout."""

    def __init__(self) -> None:
        """Draw the weights."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(6, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, CLASSES)
        )

    def forward(self, x: Any) -> Any:
        """Return logits."""
        return self.layers(x)


class Images(nn.Module):
    """Convolutions, batch norm and pooling."""

    def __init__(self) -> None:
        """Draw the weights."""
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, stride=2), nn.GELU(), nn.AdaptiveAvgPool2d(2),
        )  # fmt: skip
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Any) -> Any:
        """Return logits."""
        return self.head(self.features(x).flatten(1))


class Text(nn.Module):
    """A transformer block with causal attention and tied embeddings."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        """Draw the weights."""
        super().__init__()
        self.heads = heads
        self.embedding, self.places = nn.Embedding(VOCABULARY, width), nn.Embedding(LENGTH, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(0.1)
        )
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Any) -> Any:
        """Return logits."""
        places = self.places(dg.arange(tokens.shape[1], device=tokens.device))
        x = self.embedding(tokens) + places
        batch, length, width = x.shape
        parts = self.qkv(self.norms[0](x)).split(width, -1)
        q, k, v = (p.view(batch, length, self.heads, -1).transpose(1, 2) for p in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).reshape(batch, length, width))
        return self.head(self.norms[2](x + self.mlp(self.norms[1](x))))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "perceptron": Perceptron,
    "images": Images,
    "text": Text,
}
OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda p: dg.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adamw": lambda p: dg.optim.AdamW(p, lr=1e-2),
}
RULES: dict[str, Callable[[Any], Any]] = {
    "adam": lambda p: dg.optim.Adam(p, amsgrad=True, maximize=True, weight_decay=0.1),
    "nadam": lambda p: dg.optim.NAdam(p, decoupled_weight_decay=True, weight_decay=0.1),
    "radam": dg.optim.RAdam,
    "adamax": dg.optim.Adamax,
    "adagrad": dg.optim.Adagrad,
    "adadelta": dg.optim.Adadelta,
    "rmsprop": lambda p: dg.optim.RMSprop(p, momentum=0.9, centered=True),
    "rprop": dg.optim.Rprop,
    "asgd": lambda p: dg.optim.ASGD(p, t0=1),
    "lamb": dg.optim.LAMB,
    "lars": dg.optim.LARS,
    "adafactor": dg.optim.Adafactor,
    "muon": dg.optim.Muon,
}


def batch(model: str, rng: np.random.Generator, size: int = 6) -> tuple[Any, Any]:
    """Return random input of a model, and its labels."""
    if model == "text":
        tokens = rng.integers(0, VOCABULARY, (size, LENGTH + 1))
        return tokens[:, :-1].copy(), tokens[:, 1:].copy()
    shape = (size, 6) if model == "perceptron" else (size, 2, 8, 8)
    return rng.standard_normal(shape), rng.integers(0, CLASSES, size)


def _loss(net: nn.Module, x: Any, y: Any, reduction: str = "mean") -> Any:
    out = net(x)
    flat = out.reshape(-1, out.shape[-1])
    return F.cross_entropy(flat, y.reshape(-1), reduction=reduction)


# ---------------------------------------------------------------------- training
def check_training(model: str, optimizer: str, place: device) -> None:
    """Compare losses, gradient norms and final parameters of a few steps with the host's."""
    np.testing.assert_allclose(
        _trained(model, optimizer, place), _trained(model, optimizer, CPU), rtol=1e-7, atol=1e-9
    )


def _without_dropout(net: nn.Module) -> nn.Module:
    """Return ``net``, whose random numbers would be others on another device, without them."""
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return net


def _trained(model: str, optimizer: str, place: device) -> list[float]:
    dg.manual_seed(0)
    net = _without_dropout(MODELS[model]()).double().to(place)
    rule = OPTIMIZERS[optimizer](net.parameters())
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(3):
        x, y = (dg.from_numpy(a).to(place) for a in batch(model, rng))
        rule.zero_grad()
        loss = _loss(net, x, y)
        loss.backward()
        seen += [loss, nn.utils.clip_grad_norm_(net.parameters(), 0.5)]
        rule.step()
    assert all(p.device == x.device for p in net.parameters())
    return [float(v) for v in (*seen, *(p.sum() for p in net.parameters()))]


def check_rule(name: str, place: device) -> None:
    """Compare parameters and state after five steps of an optimizer with the host's."""
    for mine, other in zip(_stepped(name, place), _stepped(name, CPU), strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-6, atol=1e-6)


def _stepped(name: str, place: device) -> list[Any]:
    rng = np.random.default_rng(0)
    shapes = [(3, 4), (5, 2)] if name == "muon" else [(3, 4), (4,), (), (2, 3, 2)]
    draws = [np.asarray(rng.standard_normal((6, *s)), "float32") for s in shapes]
    params = [dg.tensor(d[0], device=place, requires_grad=True) for d in draws]
    optimizer = RULES[name](params)
    for step in range(1, 6):
        for p, d in zip(params, draws, strict=True):
            p.grad = dg.tensor(d[step], device=place)
        optimizer.step()
    entries = [t for p in params for t in optimizer.state[p].values()]
    return [t.detach().cpu().numpy() for t in (*params, *entries)]


def check_lbfgs(place: device) -> None:
    """Compare the losses of a line search with the host's."""
    losses: dict[device, list[float]] = {}
    for where in (place, CPU):
        p = dg.tensor([3.0, -2.0, 0.5], dtype=dg.float64, device=where, requires_grad=True)
        optimizer = dg.optim.LBFGS([p], line_search_fn="strong_wolfe", max_iter=6)
        losses[where] = _searched(optimizer, p)
    np.testing.assert_allclose(losses[place], losses[CPU], rtol=1e-7)


def _searched(optimizer: Any, p: Any) -> list[float]:
    seen: list[float] = []

    def closure() -> Any:
        optimizer.zero_grad()
        loss = ((p - 1) ** 4).sum() + (p * p.cos()).sum()
        loss.backward()
        seen.append(float(loss.detach()))
        return loss

    optimizer.step(closure)
    return seen


def check_data_parallel(model: str, reduction: str, place: device) -> None:
    """Compare the steps of two ranks, with host staging and uneven batches, with the host's."""
    np.testing.assert_allclose(
        run_ranks(2, _parallel, model, reduction, place),
        run_ranks(2, _parallel, model, reduction, CPU),
        rtol=1e-7,
        atol=1e-9,
    )


def _parallel(group: ProcessGroup, model: str, reduction: str, place: device) -> list[float]:
    net = MODELS[model]().double().to(place).eval()  # dropout draws from one stream of all threads
    rng = np.random.default_rng(5)
    for p in net.parameters():
        p.data.copy_(dg.from_numpy(rng.standard_normal(p.shape) + group.rank))
    ddp = nn.parallel.DistributedDataParallel(
        net, process_group=group, reduction=reduction, bucket_cap_mb=0.0005
    )
    if model == "images":
        net.train()
    rule = OPTIMIZERS["adamw"](ddp.parameters())
    seen = []
    for _ in range(3):
        x, y = batch(model, rng, 7)
        mine = slice(0, 3) if group.rank else slice(3, 7)
        rule.zero_grad()
        mx, my = (dg.from_numpy(a[mine].copy()).to(place) for a in (x, y))
        loss = _loss(ddp, mx, my, reduction)
        loss.backward()
        seen += [loss, nn.utils.clip_grad_norm_(ddp.parameters(), 0.5)]
        rule.step()
    assert len(ddp.reducer.buckets) > 1
    return [float(v) for v in (*seen, *(p.sum() for p in net.parameters()))]


# ---------------------------------------------------------------------- random numbers
def check_random(place: device) -> None:
    """Check that a device draws what its key says, anew after a seed, and otherwise each time."""
    n = 10_007
    dg.manual_seed(5)
    key = default_generator.ticket()
    dg.manual_seed(5)
    uniform, after = dg.rand(n, device=place), dg.rand(n, device=place)
    bits = philox.words(n, key)
    np.testing.assert_array_equal(uniform.tolist(), (bits >> 8) * 2.0**-24)
    assert not bool((uniform == after).any())
    dg.manual_seed(5)
    normal = dg.randn(n, device=place)
    numbers = (((bits >> 8).astype("f4") * np.float32(2**-24))[: n - 1]).reshape(-1, 2)
    radius = np.sqrt(-2 * np.log1p(-numbers[:, 0].astype("f8")))
    want = radius * np.cos(2 * np.pi * numbers[:, 1].astype("f8"))
    np.testing.assert_allclose(normal.cpu().numpy()[: n - 1 : 2], want, atol=3e-6)
    dg.manual_seed(5)
    whole = dg.randint(-3, 9, (n,), device=place)
    assert (int(whole.min()), int(whole.max())) == (-3, 8) and whole.dtype == dg.int64
    assert sorted(dg.randperm(100, device=place).tolist()) == list(range(100))
    assert abs(float(dg.empty(n, device=place).exponential_(4.0).mean()) - 0.25) < 0.01
    assert abs(float(dg.empty(n, device=place).bernoulli_(0.3).mean()) - 0.3) < 0.02


def check_dropout(place: device) -> None:
    """Check dropout and its gradient, and that a saved state brings the same choice again."""
    for kind, size in ((dg.float32, 10_007), (dg.bfloat16, 4096), (dg.float64, 33)):
        x = dg.ones(size, device=place, dtype=kind, requires_grad=True)
        dg.manual_seed(5)
        key = default_generator.ticket()
        dg.manual_seed(5)
        state = dg.get_rng_state()
        out = F.dropout(x, 0.25)
        out.sum().backward()
        assert x.grad is not None
        kept = philox.words(size, key) >= 2**30
        np.testing.assert_allclose(out.tolist(), kept / 0.75, rtol=5e-3)
        assert x.grad.tolist() == out.tolist()
        assert F.dropout(x, 0.25).tolist() != out.tolist()
        dg.set_rng_state(state)
        assert F.dropout(x, 0.25).tolist() == out.tolist()


def check_random_transforms(place: device) -> None:
    """Check random operations in ``vmap`` and forward mode, and by a generator of their own."""
    x = dg.ones(3, 50, device=place)
    for how in ("same", "different"):
        drawn = func.vmap(lambda r: F.dropout(r, 0.5), randomness=how)(x)
        assert ((drawn == 0) | (drawn == 2)).all().item()
        assert (drawn[0] == drawn[1]).all().item() == (how == "same")
        assert func.vmap(lambda r: dg.randn_like(r), randomness=how)(x).device == place
    _raises(RuntimeError, lambda: func.vmap(lambda r: F.dropout(r, 0.5))(x), "randomness")
    out, along = func.jvp(lambda r: F.dropout(r, 0.5), (x,), (3 * x,))
    assert along.tolist() == (3 * out).tolist()
    one, other = (dg.Generator("cuda").manual_seed(2) for _ in range(2))
    first = dg.rand(9, device=place, generator=one)
    assert first.tolist() == dg.rand(9, device=place, generator=other).tolist()
    assert first.tolist() != dg.rand(9, device=place, generator=other).tolist()


def check_wrong_numbers(place: device) -> None:
    """Check that a wrong label or index is an error as soon as the host reads a number."""
    x = dg.ones(4, 3, device=place)
    loss = F.cross_entropy(x, dg.tensor([0, 1, 7, 2], device=place))
    _raises(IndexError, loss.item, "Target 7 is out of bounds: classes are 0 … 2")
    assert math.isnan(loss.item())
    rows = F.embedding(dg.tensor([0, -4, 1], device=place), x)
    _raises(IndexError, rows.tolist, "-4 is not in [0, 4)")
    assert np.isnan(rows.tolist()).tolist() == [[False] * 3, [True] * 3, [False] * 3]
    assert F.cross_entropy(x, dg.tensor([0, 1, 2, 2], device=place)).item() > 0


# ---------------------------------------------------------------------- calls
def check_call(name: str, place: device) -> None:
    """Compare what a call of ``device_calls`` returns, and its gradients, with the host's."""
    for want, got in zip(_called(name, CPU), _called(name, place), strict=True):
        assert got.dtype == want.dtype
        exact = want.dtype.kind != "V" and want.itemsize > 4
        rtol = 1e-8 if exact else 1e-2
        np.testing.assert_allclose(
            got.astype("f8"), want.astype("f8"), rtol=rtol, atol=rtol / 1e4, err_msg=name
        )


def _called(name: str, place: device) -> list[Any]:
    rng = np.random.default_rng(0)
    dg.manual_seed(0)
    x = dg.tensor(rng.standard_normal((3, 4)), device=place, requires_grad=True)
    i = dg.tensor(rng.integers(0, 4, (3, 4)), device=place)
    m = dg.tensor(rng.standard_normal((2, 3, 8, 8)), device=place, requires_grad=True)
    found = CALLS[name](x, i, m)
    outs = [found] if isinstance(found, Tensor) else list(found)
    roots = [(o.double() ** 2).sum() for o in outs if o.requires_grad]
    if roots:
        dg.stack(roots).sum().backward()
    outs += [t.grad for t in (x, m) if t.grad is not None]
    return [o.detach().cpu().numpy() for o in outs]


# ---------------------------------------------------------------------- tensors between devices
def check_conversions(place: device) -> None:
    """Check ``cpu``, ``to``, ``numpy``, printing, copying and pickling of a device tensor."""
    host = dg.arange(6.0).reshape(2, 3)
    x = host.to(place)
    assert x.is_cuda and x.to(place) is x and x.to("cuda") is x and x.cpu().device == CPU
    assert x.to(dg.float64).device == place and host.to(x).device == place
    assert x.tolist() == host.tolist() and float(x.sum()) == 15.0
    assert repr(x) == repr(host)[:-1] + f", device='{place}')"
    for refused in (x.numpy, lambda: np.asarray(x)):
        _raises(DeviceError, refused, "use Tensor.cpu()")
    np.testing.assert_array_equal(x.numpy(force=True), host.numpy())
    for again in (copy.deepcopy(x), pickle.loads(pickle.dumps(x)), x.clone()):
        assert again.device == place and again.data_ptr() != x.data_ptr()
        assert again.tolist() == host.tolist()
    y = dg.zeros(2, 3, device=place)
    y.copy_(host)
    y[0, 1] = 7
    y[1] = host[0].to(place)
    assert y.tolist() == [[0.0, 7.0, 2.0], [0.0, 1.0, 2.0]]
    assert x[dg.tensor([1, 0])].tolist() == host[dg.tensor([1, 0])].tolist()  # a host's index


def check_numbers(place: device) -> None:
    """Check Python numbers beside device tensors, on both sides, after the same on the host."""
    for where in (CPU, place):
        x = dg.tensor([1.0, -2.0], device=where, requires_grad=True)
        y = 2.0 * x + 1 - 3 / x + (1 - x) ** 2 + dg.where(x > 0, 1.0, 0.0) + dg.where(x > 0, x, 5)
        y.sum().backward()
        assert y.tolist() == [2.0, 12.5]
        assert x.grad is not None and x.grad.tolist() == [6.0, -3.25], x.grad


def check_views(place: device) -> None:
    """Check that changes in place reach gradients through views, and the shape that is refused."""
    for where in (CPU, place):
        x = dg.ones(4, device=where, requires_grad=True)
        y = x * 2
        y.as_strided((2,), (2,))[...] = 0
        y[1:2].mul_(5)
        y.unfold(0, 2, 2)[1] *= 3
        y.sum().backward()
        assert x.grad is not None and x.grad.tolist() == [0.0, 10.0, 0.0, 6.0], x.grad
        z = dg.ones(3, 3, device=where, requires_grad=True)
        for _ in range(2):  # gradients arrive as views of overlapping windows
            (windows_backward(z, (5,), 0, 3, 1) * dg.arange(5.0, device=where)).sum().backward()
        assert z.grad is not None and z.grad.is_contiguous()
        assert z.grad.tolist() == [[0, 2, 4], [2, 4, 6], [4, 6, 8]], z.grad
        wide = dg.ones(1, device=where).expand(3)
        _raises(RuntimeError, functools.partial(wide.add_, 1), "clone()")


def check_linalg_errors(place: device) -> None:
    """Check that what has no solution is an error and no rubbish."""
    singular = dg.ones(2, 2, dtype=dg.float64, device=place)
    _raises(DistgradError, lambda: dg.linalg.inv(singular), "singular")
    _raises(DistgradError, lambda: dg.linalg.cholesky(-singular), "")


def check_mixed_devices(place: device) -> None:
    """Check that operands on two devices are named, each with its own."""
    here, there = dg.ones(2, 2), dg.ones(2, 2, device=place)
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: here + there, "input is on cpu, other is on cuda"),
        (lambda: there * here, "input is on cuda, other is on cpu"),
        (lambda: there @ here, "input is on cuda, other is on cpu"),
        (lambda: F.linear(here, there), "input is on cpu, weight is on cuda"),
        (lambda: dg.where(there > 0, here, there), "condition is on cuda, input is on cpu"),
        (lambda: dg.cat([there, here]), "tensors[0] is on cuda, tensors[1] is on cpu"),
    ]
    for call, words in calls:
        _raises(DeviceError, call, words)


def check_state(place: device, folder: Path) -> None:
    """Check that states and files carry parameters between devices."""
    dg.manual_seed(1)
    net = Images().to(place)
    rule = OPTIMIZERS["adamw"](net.parameters())
    net(dg.randn(3, 2, 8, 8, device=place)).square().mean().backward()
    rule.step()
    dg.save({"model": net.state_dict(), "rule": rule.state_dict()}, folder / "all.pt")
    again, moved = Images(), Images().to(place)
    saved = dg.load(folder / "all.pt")
    again.load_state_dict(saved["model"])
    moved.load_state_dict(saved["model"])
    other = OPTIMIZERS["adamw"](moved.parameters())
    other.load_state_dict(saved["rule"])
    located = dg.load(folder / "all.pt", map_location=place)["model"]
    for p, q, r in zip(net.parameters(), again.parameters(), moved.parameters(), strict=True):
        assert (p.device, q.device, r.device) == (place, CPU, place)
        assert p.tolist() == q.tolist() == r.tolist()
        slots = (rule.state[p], other.state[r])
        assert [s["exp_avg"].device for s in slots] == [place, place]
        assert slots[0]["exp_avg"].tolist() == slots[1]["exp_avg"].tolist()
    assert all(t.device == place for t in located.values() if isinstance(t, Tensor))


def _raises(kind: type[Exception], call: Callable[[], Any], words: str) -> None:
    try:
        call()
    except kind as error:
        assert words in str(error), str(error)
    else:
        raise AssertionError(f"nothing was raised; expected {kind.__name__}: {words}")
