"""Checks of captured CUDA graphs: steps, callables, what is refused.

``tests/test_gpu_capture.py`` runs them on CuPy's stand-in, which records the work of a capture and
does it again at each launch; ``tests/gpu`` runs them on a real GPU.
"""

from __future__ import annotations

import copy
import functools
import gc
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import distgrad as dg
from distgrad import nn
from distgrad.backend.device import device
from distgrad.cuda.captured_step import CapturedStep
from distgrad.distributed import ProcessGroup
from distgrad.errors import ArgumentError, CaptureError
from distgrad.nn import functional as F
from distgrad.testing.device_ranks import place_of
from distgrad.testing.on_device import MODELS, batch

STEPS = 20
OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "adamw": lambda p: dg.optim.AdamW(p, lr=1e-2, amsgrad=True),
    "sgd": lambda p: dg.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
}
ARRAY_STEPS: dict[str, Callable[[Any], Any]] = {  # by array operations, without a kernel
    "nadam": lambda p: dg.optim.NAdam(p, lr=1e-2, weight_decay=0.1, decoupled_weight_decay=True),
    "rprop": lambda p: dg.optim.Rprop(p, lr=1e-3),
    "asgd": lambda p: dg.optim.ASGD(p, lr=0.05, t0=6, weight_decay=1e-3, maximize=True),
    "lamb": lambda p: dg.optim.LAMB(p, lr=1e-2),
    "lars": lambda p: dg.optim.LARS(p, lr=0.5, weight_decay=1e-3, nesterov=True),
    "adafactor": lambda p: dg.optim.Adafactor(p, lr=1e-2, weight_decay=0.1),
}
OPTIMIZERS |= ARRAY_STEPS
TRAININGS = [
    *itertools.product(["perceptron", "images", "text"], ["adamw", "sgd"]),
    *itertools.product(["perceptron"], ARRAY_STEPS),
    ("text", "adafactor"),
    ("text", "lamb"),
]
"""Models with optimizers, all of which are to be captured."""


class Training:
    """A model, its optimizer and a whole step.

    Args:
        model: its name in ``on_device.MODELS``.
        optimizer: its name here.
        place: the GPU.
        dropout: the probability in all its dropouts.
    """

    def __init__(self, model: str, optimizer: str, place: device, dropout: float = 0.0) -> None:
        dg.manual_seed(0)
        self.name, self.place = model, place
        self.net = MODELS[model]().to(place)
        for module in self.net.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout
        self.optimizer = OPTIMIZERS[optimizer](self.net.parameters())
        self.rng = np.random.default_rng(0)

    def step(self, x: Any, y: Any) -> tuple[Any, Any]:
        """Return loss and norm of the gradients after forward, backward, clip and update."""
        self.optimizer.zero_grad()
        out = self.net(x)
        loss = F.cross_entropy(out.reshape(-1, out.shape[-1]), y.reshape(-1))
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), 0.5)
        self.optimizer.step()
        return loss, norm

    def batch(self, size: int = 6) -> list[Any]:
        """Return input and labels on the GPU."""
        arrays = batch(self.name, self.rng, size)
        return [
            dg.from_numpy(a if a.dtype.kind in "iu" else a.astype("f4")).to(self.place)
            for a in arrays
        ]

    def run(self, step: Callable[..., Any], steps: int = STEPS, **sizes: int) -> list[float]:
        """Return what all steps return."""
        return [v.item() for _ in range(steps) for v in step(*self.batch(**sizes))]

    def numbers(self) -> list[Any]:
        """Return parameters, buffers and the state of the optimizer, on the host."""
        tensors = [*self.net.parameters(), *self.net.buffers()]
        state = self.optimizer.state
        tensors += [t for p in self.net.parameters() for t in state[p].values()]
        return [t.detach().cpu().numpy() for t in tensors]


def trained(model: str, optimizer: str, place: device, captured: bool) -> list[Any]:
    """Return losses, norms and all numbers after training."""
    training = Training(model, optimizer, place)
    step: Any = dg.cuda.capture_step(training.step) if captured else training.step
    losses = training.run(step)
    if captured:
        assert step.captured == 1, step.captured
    return [np.array(losses), *training.numbers()]


def check_step(model: str, optimizer: str, place: device) -> None:
    """Compare a captured step with one that is run each time."""
    runs = [trained(model, optimizer, place, captured) for captured in (False, True)]
    for eager, captured in zip(*runs, strict=True):
        np.testing.assert_allclose(captured, eager, rtol=2e-4, atol=1e-5)


def check_memory(place: device) -> None:
    """Check that replays take no memory, and that a graph's is given back with it."""
    training = Training("text", "adamw", place)
    step = dg.cuda.capture_step(training.step)
    x, y = training.batch()
    before = dg.cuda.memory_allocated()
    for _ in range(5):
        step(x, y)
    assert step.captured == 1
    held = dg.cuda.memory_allocated()
    for _ in range(10):
        step(x, y)
    assert dg.cuda.memory_allocated() == held > before
    training.optimizer.zero_grad()
    del step
    gc.collect()
    assert dg.cuda.memory_allocated() < held


def check_learning_rate(place: device) -> None:
    """Check that replays take the learning rate that a scheduler or a program has set."""
    ends = []
    for captured in (False, True):
        training = Training("perceptron", "adamw", place)
        step: Any = dg.cuda.capture_step(training.step) if captured else training.step
        schedule = dg.optim.lr_scheduler.StepLR(training.optimizer, 2, 0.5)
        for _ in range(12):
            step(*training.batch())
            schedule.step()
        before = training.numbers()[0]
        training.optimizer.param_groups[0]["lr"] = 0.0
        training.optimizer.param_groups[0]["weight_decay"] = 0.0
        step(*training.batch())
        np.testing.assert_array_equal(training.numbers()[0], before)
        ends.append(before)
    np.testing.assert_allclose(ends[1], ends[0], rtol=2e-4, atol=1e-5)


def check_keys(place: device) -> None:
    """Check that other shapes and modes are captured apart, and that loaded states are taken."""
    ends = []
    for captured in (False, True):
        training = Training("perceptron", "adamw", place)
        step: Any = dg.cuda.capture_step(training.step, warmup=2) if captured else training.step
        seen = training.run(step, 4) + training.run(step, 4, size=3)
        training.net.eval()
        seen += training.run(step, 4)
        training.net.train()
        if captured:
            assert step.captured == 3, step.captured
        saved = copy.deepcopy(training.optimizer.state_dict())
        seen += training.run(step, 2)
        training.optimizer.load_state_dict(saved)
        seen += training.run(step, 5)
        if captured:
            assert step.captured == 4, step.captured
        ends.append(seen)
    np.testing.assert_allclose(ends[1], ends[0], rtol=2e-4, atol=1e-5)


def check_joined(place: device) -> None:
    """Check that many tensors are joined in a capture, where CuPy would upload their addresses."""
    parts = [dg.full((2, 3), float(i), device=place) for i in range(20)]

    def join(x: Any) -> Any:
        return dg.cat([x * part for part in parts], 1), dg.stack([x + p for p in parts], -1)

    captured = dg.cuda.capture_step(join, warmup=1)
    for scale in (1.0, 2.0, 3.0):
        x = dg.full((2, 3), scale, device=place)
        for one, other in zip(captured(x), join(x), strict=True):
            assert one.equal(other)
    assert captured.captured == 1


def check_dropout(place: device) -> None:
    """Check that each replay draws numbers of its own, the same after the same seed."""
    layer = nn.Dropout(0.5)
    x = dg.ones(64, 8, device=place)

    draw = dg.cuda.capture_step(lambda x: (layer(x), dg.randn(8, device=place)), warmup=1)
    for _ in range(2):
        draw(x)
    assert draw.captured == 1
    draws = []
    for _ in range(2):
        dg.manual_seed(3)
        draws.append([[t.clone() for t in draw(x)] for _ in range(3)])
    kept = [d[0].mean().item() for d in draws[0]]
    assert all(0.7 < mean < 1.3 for mean in kept), kept
    first, second, _ = draws[0]
    assert not first[0].equal(second[0]) and not first[1].equal(second[1])
    for one, other in zip(*draws, strict=True):
        assert all(a.equal(b) for a, b in zip(one, other, strict=True))


def scaled(place: device, captured: bool, steps: int = 14) -> tuple[list[float], dict[str, Any]]:
    """Return losses and scales of training with a gradient scaler, which leaves two steps out."""
    dg.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 5)).to(place)
    optimizer = dg.optim.AdamW(net.parameters(), lr=0.05)
    scaler = dg.amp.GradScaler(place.type, init_scale=8.0, growth_interval=3)

    def step(x: Any) -> Any:
        optimizer.zero_grad()
        loss = net(x).square().mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(net.parameters(), 0.3)
        scaler.step(optimizer)
        scaler.update()
        return loss

    run = dg.cuda.capture_step(step) if captured else step
    rng, seen = np.random.default_rng(0), []
    for number in range(steps):
        x = rng.standard_normal((4, 6)).astype("f4")
        if number in (6, 9):
            x[0, 0] = np.inf
        loss = run(dg.from_numpy(x).to(place)).item()
        seen += [scaler.get_scale(), *([] if number in (6, 9) else [loss])]
    return seen, scaler.state_dict()


def check_scaled(place: device, rtol: float) -> tuple[list[float], dict[str, Any]]:
    """Compare captured training with a scaler with training that is not, which is returned."""
    eager, captured = (scaled(place, way) for way in (False, True))
    assert eager[1] == captured[1]
    np.testing.assert_allclose(captured[0], eager[0], rtol=rtol)
    return eager


def check_callables(place: device) -> None:
    """Compare graphed modules and functions with plain ones: outputs, gradients, modes."""
    dg.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)).to(place)
    graphed = copy.deepcopy(plain)
    x = dg.ones(3, 4, device=place, requires_grad=True)

    def tail(y: Any, z: Any) -> Any:
        return {"sum": y + z, "count": (y > 0).sum()}

    made, end = dg.cuda.make_graphed_callables(
        (graphed, tail), ((x,), (dg.ones(3, 4, device=place, requires_grad=True), x.detach()))
    )
    assert made is graphed
    rng = np.random.default_rng(0)
    for _ in range(3):
        numbers = rng.standard_normal((3, 4)).astype("f4")
        found = []
        for net, last in ((plain, tail), (graphed, end)):
            given = dg.from_numpy(numbers).to(place).requires_grad_()
            net.zero_grad()
            out = last(net(given), given.detach())
            (out["sum"] ** 2).sum().backward()
            tensors = [out["sum"], out["count"], given.grad, *(p.grad for p in net.parameters())]
            found.append([t.detach().cpu().numpy().copy() for t in tensors])
        for one, other in zip(*found, strict=True):
            np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)
    graphed.eval()
    assert graphed(x[:2]).shape == (2, 4)  # as before, in another mode
    graphed.train()
    _raises(ArgumentError, lambda: graphed(x[:2]), "shape")


def check_graph(place: device, folder: Path) -> None:
    """Check the class of graphs itself: states, pools, files, streams that take part."""
    x, out = dg.arange(4.0, device=place), dg.zeros(4, device=place)
    first, second = dg.cuda.CUDAGraph(), dg.cuda.CUDAGraph()
    side, start, end = dg.cuda.Stream(), dg.cuda.Event(), dg.cuda.Event()
    _raises(CaptureError, first.replay, "nothing was captured")
    _raises(CaptureError, first.capture_end, "no capture")
    _raises(CaptureError, first.capture_begin, "default stream")
    assert not dg.cuda.is_current_stream_capturing()
    with dg.cuda.graph(first):
        assert dg.cuda.is_current_stream_capturing() and not gc.isenabled()
        y = x * 2
        start.record()
        with dg.cuda.stream(side):
            start.wait()
            z = x + 1
            end.record()
        end.wait()
        out.copy_(y + z)
    assert gc.isenabled() and out.tolist() == [0.0] * 4  # nothing was computed yet
    with dg.cuda.graph(second, pool=first.pool()):
        out.mul_(2)
    assert first.pool() == second.pool()
    for shift in (0.0, 1.0):
        x.copy_(dg.arange(4.0) + shift)
        first.replay()
        second.replay()
        assert out.tolist() == [2 * (3 * (i + shift) + 1) for i in range(4)]
    first.debug_dump(folder / "graph.dot")
    assert "digraph" in (folder / "graph.dot").read_text()
    _raises(CaptureError, first.capture_begin, "captured already")
    first.reset()
    _raises(CaptureError, first.replay, "nothing was captured")


def _stays(place: device) -> list[tuple[str, str, Callable[[Any], Any]]]:
    """Return what cannot be captured: by a name, words of the message, and a function."""
    w = dg.ones(4, device=place, requires_grad=True)
    w.grad = dg.ones(4, device=place)
    host = dg.ones(4)
    lbfgs, lamb, fresh = dg.optim.LBFGS([w]), dg.optim.LAMB([w]), dg.optim.AdamW([w])
    matrix = dg.ones(4, 4, device=place, requires_grad=True)
    matrix.grad = dg.ones(4, 4, device=place)
    muon = dg.optim.Muon([matrix])
    muon.step()
    nadam = dg.optim.NAdam([w])
    nadam.step()
    nadam.found_inf = dg.zeros(1, device=place).array
    return [
        ("item", "item() (device_capture.py:", lambda x: x.sum().item()),
        ("if", "waits for the GPU", lambda x: 1 if x.sum() > 0 else 0),
        ("list", "tensor() (device_capture.py:", lambda x: x + dg.tensor([1.0] * 4, device=place)),
        ("host", "(device_capture.py:", lambda x: x + host.to(place)),
        ("mask", "(device_capture.py:", lambda x: x[x > 0]),
        ("nonzero", "nonzero() (device_capture.py:", lambda x: x.nonzero()),
        ("wait", "synchronize() (device_", lambda x: dg.cuda.current_stream().synchronize()),
        ("lbfgs", "LBFGS.step(): the host works out", lambda x: lbfgs.step(lambda: x.sum())),
        ("muon", "Muon.step(): the host works out", lambda x: muon.step()),
        ("scaler", "NAdam.step(): the host has to know whether", lambda x: nadam.step()),
        ("lamb", "LAMB.step(): its first step makes its state", lambda x: lamb.step()),
        ("state", "AdamW.step(): it lays out its state", lambda x: fresh.step()),
    ]  # fmt: skip


def check_refusals(place: device) -> None:
    """Check that what cannot be captured is named with its line, and leaves nothing behind."""
    x = dg.arange(4.0, device=place)
    for name, words, call in _stays(place):
        graph = dg.cuda.CUDAGraph()

        def captured(graph: Any = graph, call: Any = call) -> None:
            with dg.cuda.graph(graph):
                call(x)

        _raises(CaptureError, captured, words)
        assert gc.isenabled() and not dg.cuda.is_current_stream_capturing(), name
        assert (x + 1).tolist() == [1.0, 2.0, 3.0, 4.0], name
        _raises(CaptureError, graph.replay, "nothing was captured")
    step = dg.cuda.capture_step(lambda x: x + 1)
    _raises(ArgumentError, lambda: step(dg.ones(2)), "on the CPU")


def check_errors_pass(place: device) -> None:
    """Check that an error of the program inside a capture is itself."""

    def captured() -> None:
        with dg.cuda.graph(dg.cuda.CUDAGraph()):
            raise KeyError("mine")

    _raises(KeyError, captured, "mine")
    assert not dg.cuda.is_current_stream_capturing()


def check_baked_options(place: device) -> None:
    """Check that rates go to steps without a kernel, and that other options have to stay."""
    for name in ("lamb", "nadam", "asgd"):
        ends = []
        for captured in (False, True):
            training = Training("perceptron", name, place)
            step: Any = dg.cuda.capture_step(training.step) if captured else training.step
            schedule = dg.optim.lr_scheduler.StepLR(training.optimizer, 2, 0.5)
            for _ in range(9):
                step(*training.batch())
                schedule.step()
            ends.append(training.numbers())
        for eager, replayed in zip(*ends, strict=True):
            np.testing.assert_allclose(replayed, eager, rtol=2e-4, atol=1e-5)
        training.optimizer.param_groups[0]["weight_decay"] = 0.25
        again = functools.partial(step, *training.batch())
        _raises(CaptureError, again, "weight_decay has changed since")
        training.optimizer.load_state_dict(training.optimizer.state_dict())
        again()  # another state: captured anew, after it has run some times


def check_uneven_counts(place: device) -> None:
    """Check that a graph of steps with one count is not replayed when counts differ."""
    params = [dg.ones(3, device=place, requires_grad=True) for _ in range(2)]
    optimizer = dg.optim.LAMB(params)

    def step(x: Any) -> None:
        optimizer.zero_grad()
        ((params[0] + params[1]) * x).sum().backward()
        optimizer.step()

    run, x = dg.cuda.capture_step(step, warmup=2), dg.ones(3, device=place)
    for _ in range(4):
        run(x)
    assert [float(optimizer.state[p]["step"]) for p in params] == [4.0, 4.0]
    kept, params[0].grad = params[0].grad, None
    optimizer.step()
    params[0].grad = kept
    _raises(CaptureError, lambda: run(x), "have made [5, 6] steps")


CHECKS: list[Callable[[device], None]] = [
    check_memory, check_learning_rate, check_keys, check_joined, check_dropout, check_callables,
    check_errors_pass, check_baked_options, check_uneven_counts,
]  # fmt: skip


# ---------------------------------------------------------------------- ranks
def parallel(
    group: ProcessGroup, gpus: int, captured: bool, accumulate: bool, uneven: bool
) -> list[float]:
    """Return losses and parameters of a rank: all-reduce, clip and AdamW in one captured step."""
    place, rng = place_of(group, gpus), np.random.default_rng(3)
    net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 5)).to(place)
    for p in net.parameters():
        p.data.copy_(dg.from_numpy(rng.standard_normal(p.shape).astype("f4")))
    model = nn.parallel.DistributedDataParallel(net, process_group=group, bucket_cap_mb=0.0002)
    optimizer = dg.optim.AdamW(model.parameters(), lr=0.05)

    def step(x: Any, update: bool) -> Any:
        loss = model(x).square().mean()
        loss.backward()
        if update:
            nn.utils.clip_grad_norm_(model.parameters(), 0.3)
            optimizer.step()
            optimizer.zero_grad()
        return loss

    run = dg.cuda.capture_step(step) if captured else step
    rng, seen = np.random.default_rng(10 + group.rank), []
    for number in range(12):
        size = 4 if uneven and number % 5 == 4 and group.rank == 0 else 2
        x = dg.from_numpy(rng.standard_normal((size, 6)).astype("f4")).to(place)
        for _ in range(accumulate * (1 + number % 2)):  # the mean is over 2 or 3 batches
            with model.no_sync():
                seen.append(run(x, False).item())
        seen.append(run(x, True).item())
    if isinstance(run, CapturedStep):
        assert run.captured >= 1 + accumulate, run.captured
    return [*seen, *(p.sum().item() for p in model.parameters())]


def _model(group: ProcessGroup, place: device, build: Callable[[Any], Any]) -> tuple[Any, Any]:
    """Return a model of several buckets, and its optimizer."""
    net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 5))
    rng = np.random.default_rng(3)
    for p in net.parameters():
        p.data.copy_(dg.from_numpy(rng.standard_normal(p.shape).astype("f4")))
    net = net.to(place)
    model = nn.parallel.DistributedDataParallel(net, process_group=group, bucket_cap_mb=0.0002)
    return model, build(model.parameters())


def sharded(
    group: ProcessGroup, gpus: int, captured: bool, stage: int, rule: str, overlap: bool
) -> list[Any]:
    """Return losses and parameters of a rank that shares its optimizer: ZeRO-1 or 2."""
    place, kind = place_of(group, gpus), getattr(dg.optim, rule)
    net, rng = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 5)), _drawn(group.rank)
    for p in net.parameters():
        p.data.copy_(dg.from_numpy(_drawn(7).standard_normal(p.shape).astype("f4")))
    model = nn.parallel.DistributedDataParallel(
        net.to(place), process_group=group, bucket_cap_mb=0.0002, shard_gradients=stage == 2
    )
    zero = dg.distributed.optim.ZeroRedundancyOptimizer
    optimizer = zero(model.parameters(), kind, overlap_with_ddp=overlap, lr=0.05)
    schedule = dg.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)

    def step(x: Any) -> Any:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        return loss

    run, seen = dg.cuda.capture_step(step) if captured else step, []
    for number in range(10):
        size = 3 if number % 4 == 3 and group.rank == 0 else 2
        x = dg.from_numpy(rng.standard_normal((size, 6)).astype("f4")).to(place)
        seen.append(run(x).item())
        schedule.step()
    optimizer.wait()
    if isinstance(run, CapturedStep):
        assert run.captured >= 1, run.captured
    return [*seen, *(p.detach().cpu().numpy().tobytes() for p in model.parameters())]


def _drawn(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def refused(
    group: ProcessGroup, gpus: int, captured: bool, accumulate: bool
) -> tuple[str, list[float]]:
    """Return how a capture is refused, and what steps give that go on without it."""
    place = place_of(group, gpus)
    model, optimizer = _model(group, place, lambda p: dg.optim.AdamW(p, lr=0.05))

    def step(x: Any) -> Any:
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    run = dg.cuda.capture_step(step, warmup=2)
    rng, seen, words = np.random.default_rng(10 + group.rank), [], ""
    for _ in range(7):
        x = dg.from_numpy(rng.standard_normal((2, 6)).astype("f4")).to(place)
        if accumulate:
            with model.no_sync():
                model(x).square().mean().backward()
        if captured and not words:
            try:
                seen.append(run(x).item())
                continue
            except CaptureError as error:
                words = str(error)
        seen.append(step(x).item())
    return words, [*seen, *(p.sum().item() for p in model.parameters())]


def refused_by_one(group: ProcessGroup, gpus: int) -> str:
    """Return how a step is refused that only rank 1 cannot capture."""
    place = place_of(group, gpus)
    model, optimizer = _model(group, place, lambda p: dg.optim.AdamW(p, lr=0.05))

    def step(x: Any) -> Any:
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item() if group.rank == 1 else loss

    run, x = dg.cuda.capture_step(step, warmup=2), dg.ones(2, 6, device=place)
    for _ in range(2):
        run(x)
    try:
        run(x)
    except CaptureError as error:
        step(x)  # the ranks are together
        return str(error)
    return ""


def beside(group: ProcessGroup, gpus: int) -> None:
    """Take steps on another stream than the default one, where the model was made."""
    place = place_of(group, gpus)
    model, optimizer = _model(group, place, lambda p: dg.optim.AdamW(p, lr=0.05))
    x, side = dg.ones(2, 6, device=place), dg.cuda.Stream()
    for _ in range(3):
        side.wait_stream(dg.cuda.current_stream())
        with dg.cuda.stream(side):
            model(x).square().mean().backward()
            optimizer.step()
        dg.cuda.current_stream().wait_stream(side)
        dg.zeros(85, device=place)  # takes what was freed


def _raises(kind: type[Exception], call: Callable[[], Any], words: str) -> None:
    try:
        call()
    except kind as error:
        assert words in str(error), str(error)
    else:
        raise AssertionError(f"nothing was raised; expected {kind.__name__}: {words}")
